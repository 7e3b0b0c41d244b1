"""Side by side with the reference: the same schedule, the same samples."""

from __future__ import annotations

import inspect
import itertools
import warnings

import diffusers
import numpy as np
import pytest
import torch

from darkroom import schedulers

NAMES = [name for name in schedulers.__all__ if name not in ("Scheduler", "KarrasScheduler", "SchedulerOutput")]
SIGMA_SPACE = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
DPM = "DPMSolverMultistepScheduler"
SHAPE = (2, 3, 4, 4)


def pair(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(schedulers, name)(**options), getattr(diffusers, name)(**options)


def seeded(seed=0, shape=SHAPE, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(x, t):
    """A fixed, smooth stand-in for a denoiser."""
    return 0.7 * torch.tanh(x.float()).to(x.dtype) + 0.2 * torch.sin(torch.arange(x[0].numel()) + float(t) / 300).reshape(x[0].shape).to(x)


def close(mine, ref, tol=1e-5):
    assert mine.dtype == ref.dtype and mine.shape == ref.shape and mine.device == ref.device
    if not mine.is_floating_point() or not ref.isfinite().all():
        assert torch.equal(mine, ref) or torch.allclose(mine, ref, rtol=tol, equal_nan=True)
        return
    scale = ref.double().abs().max().clamp(min=1e-3)
    assert ((mine.double() - ref.double()).abs().max() / scale) < tol


def walk(mine, ref, begin=0, dtype=torch.float32, generators=None, outputs=1, **options):
    """Step both schedulers through their runs, each fed with its own samples."""
    close(mine.timesteps, ref.timesteps)
    if hasattr(ref, "sigmas"):
        close(mine.sigmas, ref.sigmas)
    close(torch.as_tensor(mine.init_noise_sigma), torch.as_tensor(ref.init_noise_sigma))
    make = generators or (lambda: torch.Generator().manual_seed(1))
    takes = inspect.signature(ref.step).parameters
    sources = [{"generator": make()} if "generator" in takes else {} for _ in range(2)]
    x = y = seeded(dtype=dtype)
    if begin:
        mine.set_begin_index(begin)
        if hasattr(ref, "set_begin_index"):
            ref.set_begin_index(begin)
        noise, t = seeded(3, dtype=dtype), ref.timesteps[begin : begin + 1].repeat(2)
        x, y = mine.add_noise(x, noise, t), ref.add_noise(y, noise, t)
        close(x, y)
    else:
        if hasattr(ref, "set_begin_index") and ref.timesteps[0] == ref.timesteps[1]:
            ref.set_begin_index(0)  # or the reference would begin at the second step and run off the end
        x, y = x * mine.init_noise_sigma, y * ref.init_noise_sigma
    for t, u in zip(mine.timesteps[begin:], ref.timesteps[begin:], strict=True):
        a, b = mine.scale_model_input(x, t), ref.scale_model_input(y, u)
        close(a, b)
        out, expected = (torch.cat([network(v, u)] * outputs, 1) for v in (a, b))
        got = mine.step(out, t, x, **sources[0], **options)
        want = ref.step(expected, u, y, **sources[1], **options)
        close(got.prev_sample, want.prev_sample)
        if "pred_original_sample" in want:
            close(got.pred_original_sample, want.pred_original_sample)
        x, y = got.prev_sample, want.prev_sample
    return x


def grid(**axes):
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


SPACINGS = ["linspace", "leading", "trailing"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
CASES = {
    "DDPMScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS, variance_type=["fixed_small", "fixed_small_log", "fixed_large"]),
        *grid(thresholding=[True], sample_max_value=[1.0, 2.5], dynamic_thresholding_ratio=[0.9, 0.995]),
        *grid(clip_sample=[True, False], clip_sample_range=[0.5, 2.0], steps_offset=[0, 1]),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction", "sample"], timestep_spacing=SPACINGS),
    ],
    "DDIMScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS, set_alpha_to_one=[True, False]),
        *grid(thresholding=[True], sample_max_value=[1.0, 2.5], dynamic_thresholding_ratio=[0.9, 0.995]),
        *grid(clip_sample=[True, False], clip_sample_range=[0.5, 2.0], steps_offset=[0, 1]),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2"], trained_betas=[None, np.linspace(1e-4, 0.03, 1000)]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction", "sample"], timestep_spacing=SPACINGS),
    ],
    "PNDMScheduler": [
        *grid(prediction_type=["epsilon", "v_prediction"], timestep_spacing=SPACINGS, skip_prk_steps=[True, False]),
        *grid(set_alpha_to_one=[True, False], steps_offset=[0, 1], skip_prk_steps=[True, False]),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2"], skip_prk_steps=[True]),
    ],
    "EulerDiscreteScheduler": [
        *grid(prediction_type=[*PREDICTIONS, "original_sample"], timestep_spacing=SPACINGS, final_sigmas_type=["zero", "sigma_min"]),
        *grid(sigmas=["karras", "exponential", "beta"], timestep_spacing=SPACINGS, interpolation_type=["linear", "log_linear"]),
        *grid(sigmas=["karras", "exponential", "beta"], sigma_min=[None, 0.01], sigma_max=[None, 80.0]),
        *grid(timestep_type=["continuous"], prediction_type=["epsilon", "v_prediction"], sigmas=[None, "karras"]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction", "epsilon"], timestep_spacing=SPACINGS),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2"], steps_offset=[0, 1]),
    ],
    "EulerAncestralDiscreteScheduler": [
        *grid(prediction_type=["epsilon", "v_prediction"], timestep_spacing=SPACINGS, steps_offset=[0, 1]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction", "epsilon"], timestep_spacing=SPACINGS),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2"]),
    ],
    "HeunDiscreteScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS, clip_sample=[True, False]),
        *grid(sigmas=["karras", "exponential", "beta"], timestep_spacing=SPACINGS),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2", "exp"], steps_offset=[0, 1], clip_sample_range=[0.5]),
    ],
    "LMSDiscreteScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS, steps_offset=[0, 1]),
        *grid(sigmas=["karras", "exponential", "beta"], timestep_spacing=SPACINGS),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2"]),
    ],
    DPM: [
        *(
            case
            for case in grid(
                algorithm_type=["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"],
                solver_order=[1, 2, 3],
                solver_type=["midpoint", "heun"],
                final_sigmas_type=["zero", "sigma_min"],
                prediction_type=PREDICTIONS,
            )
            if (case["algorithm_type"].endswith("++") or case["final_sigmas_type"] == "sigma_min")
            and (case["algorithm_type"], case["solver_order"]) != ("sde-dpmsolver", 3)  # the reference has none
        ),
        *grid(sigmas=["karras", "exponential", "beta", "lu"], timestep_spacing=SPACINGS, beta_schedule=["linear", "scaled_linear", "squaredcos_cap_v2"]),
        *grid(use_flow_sigmas=[True], prediction_type=["flow_prediction"], flow_shift=[1.0, 3.0, 7.0], solver_order=[2, 3]),
        *grid(thresholding=[True], sample_max_value=[1.0, 2.5], algorithm_type=["dpmsolver++", "dpmsolver"], final_sigmas_type=["sigma_min"]),
        *grid(lower_order_final=[True, False], euler_at_final=[True, False], final_sigmas_type=["zero", "sigma_min"], solver_order=[2, 3]),
        *grid(lambda_min_clipped=[-5.1], timestep_spacing=SPACINGS, beta_schedule=["squaredcos_cap_v2", "linear"]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction"], timestep_spacing=SPACINGS, steps_offset=[0, 1]),
        *grid(algorithm_type=["deis"], solver_type=["logrho", "bh1", "bh2"]),
    ],
}  # fmt: skip


def spelled(case):
    case = dict(case)
    kind = case.pop("sigmas", None)
    if kind is not None:
        case["use_lu_lambdas" if kind == "lu" else f"use_{kind}_sigmas"] = True
    return case


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_defaults_are_the_references(name):
    mine, ref = getattr(schedulers, name), getattr(diffusers, name)
    expected = list(inspect.signature(ref.__init__).parameters.values())[1:]
    assert [(p.name, p.default) for p in inspect.signature(mine).parameters.values()] == [(p.name, p.default) for p in expected]
    for method in ("set_timesteps", "step", "add_noise"):
        got, want = (list(inspect.signature(getattr(c, method)).parameters) for c in (mine, ref))
        assert got == want
    assert mine.order == ref.order


@pytest.mark.parametrize(("name", "steps"), [(n, s) for n in NAMES for s in (10, 25)])
def test_runs_agree(name, steps):
    for case in map(spelled, CASES[name]):
        try:
            mine, ref = pair(name, **case)
            mine.set_timesteps(steps)
            ref.set_timesteps(steps)
            walk(mine, ref)
        except AssertionError as error:
            raise AssertionError(f"{name}({case}), {steps} steps") from error
