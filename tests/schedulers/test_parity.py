"""Side by side with the reference: the same schedule, the same samples."""

from __future__ import annotations
import inspect
import itertools
import warnings
import diffusers
import numpy as np
import pytest
import torch
from families.samples import close, network, seeded
from darkroom import schedulers

DPM, SDE, SASOLVER, UNIPC = "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "SASolverScheduler", "UniPCMultistepScheduler"
INVERSE, SINGLE, DEIS = "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"
TWO_STAGES = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", SDE)


def pair(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(schedulers, name)(**options), getattr(diffusers, name)(**options)


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
        if hasattr(ref, "set_begin_index") and ref.timesteps[0] in ref.timesteps[1:]:
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


def without(case, *names):
    return {k: v for k, v in case.items() if k not in names}


def grid(**axes):
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


SPACINGS = ["linspace", "leading", "trailing"]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
DISCRETE = [
    *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS, steps_offset=[0, 1]),
    *grid(thresholding=[True], sample_max_value=[1.0, 2.5], dynamic_thresholding_ratio=[0.9, 0.995]),
    *grid(clip_sample=[True, False], clip_sample_range=[0.5], beta_schedule=["scaled_linear", "squaredcos_cap_v2"]),
    *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction", "sample"], timestep_spacing=SPACINGS),
]
MIDPOINT = [
    *grid(prediction_type=["epsilon", "v_prediction"], timestep_spacing=SPACINGS, steps_offset=[0, 1]),
    *grid(sigmas=["karras", "exponential", "beta"], beta_schedule=["linear", "scaled_linear", "squaredcos_cap_v2"]),
]
MULTISTEP = [
    *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS),
    *grid(sigmas=["karras", "exponential", "beta"], beta_schedule=["linear", "squaredcos_cap_v2"]),
    *grid(use_flow_sigmas=[True], prediction_type=["flow_prediction", "epsilon"], flow_shift=[1.0, 3.0]),
    *grid(thresholding=[True], sample_max_value=[2.5], beta_schedule=["scaled_linear"], steps_offset=[1], timestep_spacing=["leading"]),
]
CASES = {
    "DDPMScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS),
        *grid(variance_type=["fixed_small_log", "fixed_large"], beta_schedule=["scaled_linear", "squaredcos_cap_v2"]),
        *grid(thresholding=[True], sample_max_value=[1.0, 2.5], dynamic_thresholding_ratio=[0.9, 0.995]),
        *grid(clip_sample=[True, False], clip_sample_range=[0.5], steps_offset=[0, 1], beta_schedule=["sigmoid", "laplace"]),
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
        *grid(set_alpha_to_one=[True], steps_offset=[0, 1], skip_prk_steps=[True, False], beta_schedule=["scaled_linear"]),
        *grid(beta_schedule=["squaredcos_cap_v2"], skip_prk_steps=[True]),
    ],
    "EulerDiscreteScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS, final_sigmas_type=["zero", "sigma_min"]),
        *grid(sigmas=["karras", "exponential", "beta"], timestep_spacing=SPACINGS),
        *grid(sigmas=[None, "karras", "exponential", "beta"], interpolation_type=["log_linear"]),
        *grid(sigmas=["karras", "exponential", "beta"], sigma_min=[0.01], sigma_max=[None, 80.0]),
        *grid(timestep_type=["continuous"], prediction_type=["epsilon", "v_prediction"], sigmas=[None, "karras"]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction", "epsilon"], timestep_spacing=SPACINGS),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2"], steps_offset=[1], timestep_spacing=["leading"]),
        *grid(prediction_type=["original_sample"]),
    ],
    "EulerAncestralDiscreteScheduler": [
        *grid(prediction_type=["epsilon", "v_prediction"], timestep_spacing=SPACINGS, steps_offset=[0, 1]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction", "epsilon"], timestep_spacing=SPACINGS),
        *grid(beta_schedule=["scaled_linear", "squaredcos_cap_v2"]),
    ],
    "HeunDiscreteScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS),
        *grid(sigmas=["karras", "exponential", "beta"], beta_schedule=["linear", "squaredcos_cap_v2"]),
        *grid(beta_schedule=["scaled_linear", "exp"], steps_offset=[1], clip_sample=[True], clip_sample_range=[0.5]),
    ],
    "LMSDiscreteScheduler": [  # the reference integrates its coefficients numerically, which is slow
        *grid(prediction_type=PREDICTIONS),
        *grid(timestep_spacing=["leading", "trailing"], steps_offset=[1], beta_schedule=["scaled_linear"]),
        *grid(sigmas=["karras", "exponential", "beta"]),
    ],
    DPM: [
        *(
            case
            for case in grid(
                algorithm_type=["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"],
                solver_order=[1, 2, 3],
                solver_type=["midpoint", "heun"],
                final_sigmas_type=["sigma_min"],
            )
            if (case["algorithm_type"], case["solver_order"]) != ("sde-dpmsolver", 3)  # the reference has none
        ),
        *grid(algorithm_type=["dpmsolver", "dpmsolver++"], final_sigmas_type=["sigma_min"], prediction_type=PREDICTIONS),
        *grid(solver_order=[1, 2, 3], algorithm_type=["dpmsolver++", "sde-dpmsolver++"], timestep_spacing=SPACINGS),
        *grid(sigmas=["karras", "exponential", "beta", "lu"], beta_schedule=["linear", "scaled_linear", "squaredcos_cap_v2"]),
        *grid(use_flow_sigmas=[True], prediction_type=["flow_prediction"], flow_shift=[1.0, 3.0], solver_order=[2, 3]),
        *grid(thresholding=[True], sample_max_value=[2.5], algorithm_type=["dpmsolver++", "dpmsolver"], final_sigmas_type=["sigma_min"]),
        *grid(lower_order_final=[True, False], euler_at_final=[True, False], final_sigmas_type=["zero", "sigma_min"], solver_order=[3]),
        *grid(lambda_min_clipped=[-5.1], timestep_spacing=SPACINGS, beta_schedule=["squaredcos_cap_v2"]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction"], timestep_spacing=SPACINGS, steps_offset=[0, 1]),
        *grid(algorithm_type=["deis"], solver_type=["logrho", "bh1", "bh2"], final_sigmas_type=["sigma_min"]),
    ],
    INVERSE: [
        *MULTISTEP,
        *grid(solver_order=[1, 2, 3], algorithm_type=["dpmsolver", "dpmsolver++"], solver_type=["midpoint", "heun"]),
        *grid(
            solver_order=[1, 2], algorithm_type=["sde-dpmsolver++"], solver_type=["midpoint", "heun"],
            use_flow_sigmas=[True], prediction_type=["flow_prediction"],
        ),
        *grid(euler_at_final=[True], lower_order_final=[True, False], lambda_min_clipped=[-5.1], timestep_spacing=SPACINGS),
    ],
    SINGLE: [
        *(without(case, "timestep_spacing", "steps_offset") for case in MULTISTEP),
        *grid(solver_order=[1, 2, 3], algorithm_type=["dpmsolver++", "sde-dpmsolver++"], solver_type=["midpoint", "heun"]),
        *grid(solver_order=[2, 3], algorithm_type=["dpmsolver"], solver_type=["midpoint", "heun"], final_sigmas_type=["sigma_min"]),
        *grid(solver_order=[2, 3], lower_order_final=[True], final_sigmas_type=["zero", "sigma_min"], lambda_min_clipped=[-5.1]),
    ],
    DEIS: [
        *MULTISTEP,
        *grid(solver_order=[1, 2, 3], lower_order_final=[True, False], sigmas=[None, "karras"]),
        *grid(algorithm_type=["dpmsolver++"], solver_type=["midpoint", "heun", "bh2"]),
    ],
    UNIPC: [
        *MULTISTEP,
        *grid(solver_order=[1, 2, 3, 4], predict_x0=[True, False], solver_type=["bh1", "bh2"], final_sigmas_type=["sigma_min"]),
        *grid(solver_order=[2, 3], disable_corrector=[[0], [0, 1, 5]], lower_order_final=[True]),
        *grid(use_flow_sigmas=[True], prediction_type=["flow_prediction"], sigmas=["karras"], sigma_min=[None, 0.05], sigma_max=[None, 20.0]),
        *grid(use_flow_sigmas=[True], prediction_type=["flow_prediction"], shift_terminal=[0.02, 0.1], flow_shift=[3.0]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction"], timestep_spacing=SPACINGS),
    ],
    SASOLVER: [
        *MULTISTEP,
        *grid(predictor_order=[1, 2, 3, 4], corrector_order=[1, 2, 3, 4], algorithm_type=["data_prediction", "noise_prediction"]),
        *grid(lower_order_final=[False], lambda_min_clipped=[-5.1], timestep_spacing=SPACINGS, predictor_order=[3]),
        *grid(tau_func=[lambda t: 0.5, lambda t: 0.0]),
    ],
    "KDPM2DiscreteScheduler": MIDPOINT,
    "KDPM2AncestralDiscreteScheduler": MIDPOINT,
    SDE: [{**case, "noise_sampler_seed": seed} for case, seed in zip(MIDPOINT, [3, [1, 2]] * len(MIDPOINT))],
    "DDIMParallelScheduler": DISCRETE,
    "DDPMParallelScheduler": DISCRETE,
    "DDIMInverseScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=["leading", "trailing"], set_alpha_to_one=[True, False]),
        *grid(steps_offset=[1], clip_sample=[True, False], clip_sample_range=[0.5], beta_schedule=["scaled_linear"]),
        *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction"]),
    ],
}  # fmt: skip
NAMES = sorted(CASES)


def spelled(case):
    case = dict(case)
    kind = case.pop("sigmas", None)
    if kind is not None:
        case["use_lu_lambdas" if kind == "lu" else f"use_{kind}_sigmas"] = True
    return case


def ready(name, steps=10, **options):
    mine, ref = pair(name, **options)
    mine.set_timesteps(steps)
    ref.set_timesteps(steps)
    return mine, ref


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_defaults_are_the_references(name):
    mine, ref = getattr(schedulers, name), getattr(diffusers, name)
    expected = [p for p in list(inspect.signature(ref.__init__).parameters.values())[1:] if p.kind is not p.VAR_KEYWORD]
    got = inspect.signature(mine).parameters.values()
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]
    for method in ("set_timesteps", "step", "add_noise", "batch_step_no_noise"):
        if not hasattr(ref, method):
            continue
        got, want = (list(inspect.signature(getattr(c, method)).parameters) for c in (mine, ref))
        assert got == want
    assert mine.order == ref.order


@pytest.mark.parametrize(("name", "index"), [(n, i) for n in NAMES for i in range(len(CASES[n]))])
def test_runs_agree(name, index):
    walk(*ready(name, 25 if index % 4 == 0 else 10, **spelled(CASES[name][index])))


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_samples(name, beta_schedule):
    mine, ref = ready(name, 10, beta_schedule=beta_schedule, **{"noise_sampler_seed": 1} if name == SDE else {})
    walk(mine, ref, dtype=torch.bfloat16)


@pytest.mark.parametrize("begin", [3, 7])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("PNDMScheduler", INVERSE, "DDIMInverseScheduler")])
def test_runs_from_the_middle(name, begin):
    options = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1}
    options = without(options, "timestep_spacing", "steps_offset") if name == SINGLE else options
    options |= {"noise_sampler_seed": 1} if name == SDE else {}
    walk(*ready(name, 10, **options), begin=2 * begin if name in TWO_STAGES else begin)


@pytest.mark.parametrize("begin", [1, 4])
def test_pndm_from_the_middle(begin):
    walk(*ready("PNDMScheduler", skip_prk_steps=True, steps_offset=1), begin=begin)


@pytest.mark.parametrize("name", [n for n in NAMES if "generator" in inspect.signature(getattr(schedulers, n).step).parameters])
def test_a_list_of_generators(name):
    def make():
        return [torch.Generator().manual_seed(i) for i in (5, 6)]

    options = {"eta": 0.8} if name.startswith("DDIM") else {"s_churn": 5.0} if name == "EulerDiscreteScheduler" else {}
    config = {"algorithm_type": "sde-dpmsolver++"} if name in (DPM, SINGLE, INVERSE) else {}
    config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if name == INVERSE else {}
    walk(*ready(name, **config), generators=make, **options)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize(
    "options", [{"eta": 1.0}, {"eta": 0.3, "use_clipped_model_output": True}, {"eta": 0.5, "variance_noise": seeded(9)}]
)
def test_ddim_noise(options, prediction_type):
    none = {"generators": lambda: None} if "variance_noise" in options else {}
    walk(*ready("DDIMScheduler", prediction_type=prediction_type), **none, **options)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_ddpm_learned_variance(variance_type):
    mine, ref = ready("DDPMScheduler", variance_type=variance_type)
    x, t = seeded(), mine.timesteps[2]
    out = torch.cat([seeded(1), seeded(2).abs() if variance_type == "learned" else seeded(2).tanh()], 1)
    got, want = (s.step(out, t, x, generator=torch.Generator().manual_seed(0)) for s in (mine, ref))
    close(got.prev_sample, want.prev_sample)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_euler_churn(prediction_type):
    walk(*ready("EulerDiscreteScheduler", prediction_type=prediction_type), s_churn=4.0, s_tmin=0.5, s_tmax=12.0, s_noise=1.003)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_lms_orders(order):
    walk(*ready("LMSDiscreteScheduler", beta_schedule="scaled_linear"), order=order)


def test_dpm_noise_that_is_given():
    walk(*ready(DPM, algorithm_type="sde-dpmsolver++"), variance_noise=seeded(4))


def test_dpm_learned_variance():
    walk(*ready(DPM, variance_type="learned_range"), outputs=2)


AYS = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", DPM, SINGLE])
def test_custom_timesteps(name):
    mine, ref = pair(name, beta_schedule="scaled_linear")
    mine.set_timesteps(timesteps=AYS)
    ref.set_timesteps(timesteps=AYS)
    walk(mine, ref)


def test_custom_sigmas():
    mine, ref = pair("EulerDiscreteScheduler", beta_schedule="scaled_linear")
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    mine.set_timesteps(sigmas=sigmas)
    ref.set_timesteps(sigmas=sigmas)
    walk(mine, ref)


@pytest.mark.parametrize("name", [DPM, SINGLE, DEIS, UNIPC])
def test_dynamic_shifting(name):
    options = {"use_dynamic_shifting": True, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    mine, ref = pair(name, **options)
    mine.set_timesteps(10, mu=0.7)
    ref.set_timesteps(10, mu=0.7)
    walk(mine, ref)
    assert mine.config.flow_shift == 1.0


@pytest.mark.parametrize("options", [{}, {"use_dynamic_shifting": True}, {"flow_shift": 3.0}, {"shift_terminal": 0.1}])
def test_unipc_through_given_sigmas(options):
    mine, ref = pair(UNIPC, use_flow_sigmas=True, prediction_type="flow_prediction", **options)
    for scheduler in (mine, ref):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.1, 8), mu=0.7 if "use_dynamic_shifting" in options else None)
    walk(mine, ref)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", grid(solver_order=[3, 4], solver_type=["bh1", "bh2"], predict_x0=[True, False]), ids=str)
def test_unipc_rounds_halves_as_the_reference(options, dtype):
    """The differences of earlier predictions are summed in float32 and rounded once, before the newest one's is added."""
    mine, ref = ready(UNIPC, 12, final_sigmas_type="sigma_min", **options)
    x = y = seeded(dtype=dtype)
    for t in ref.timesteps:
        x, y = mine.step(network(x, t), t, x).prev_sample, ref.step(network(y, t), t, y).prev_sample
        assert torch.equal(x, y)


def test_unipc_with_another_predictor():
    mine, ref = getattr(schedulers, UNIPC), getattr(diffusers, UNIPC)
    mine, ref = (kind(solver_p=getattr(m, DPM)()) for kind, m in ((mine, schedulers), (ref, diffusers)))
    mine.set_timesteps(10)
    ref.set_timesteps(10)
    walk(mine, ref)


@pytest.mark.parametrize("name", ["DDIMParallelScheduler", "DDPMParallelScheduler"])
@pytest.mark.parametrize("case", DISCRETE)
def test_steps_of_rows(name, case):
    mine, ref = ready(name, 12, **case)
    for dtype in (torch.float32, torch.bfloat16):
        out, t, x = seeded(1, dtype=dtype), ref.timesteps[torch.tensor([11, 4])], seeded(2, dtype=dtype)
        close(mine.batch_step_no_noise(out, t, x), ref.batch_step_no_noise(out, t, x))


def test_ddim_inverse_of_an_old_file():
    old = {"set_alpha_to_zero": False}
    mine, ref = schedulers.DDIMInverseScheduler(**old), diffusers.DDIMInverseScheduler(**old)
    assert torch.equal(mine.initial_alpha_cumprod, ref.initial_alpha_cumprod) and mine.initial_alpha_cumprod < 1
    assert torch.equal(schedulers.DDIMInverseScheduler.from_config(old).initial_alpha_cumprod, ref.initial_alpha_cumprod)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_noise_of_training_rows(name, dtype):
    mine, ref = ready(name, 20, beta_schedule="scaled_linear")
    if not hasattr(ref, "add_noise"):
        return
    t = mine.timesteps[torch.tensor([12, 4])]
    x0, noise = seeded(1, dtype=dtype), seeded(2, dtype=dtype)
    close(mine.add_noise(x0, noise, t), ref.add_noise(x0, noise, t))
    if hasattr(ref, "get_velocity") and not name.startswith("Euler"):
        close(mine.get_velocity(x0, noise, t), ref.get_velocity(x0, noise, t))


BEFORE = ["DDIM", "DDPM", "DDIMParallel", "DDPMParallel", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete"]


@pytest.mark.parametrize("name", [f"{name}Scheduler" for name in BEFORE])
def test_noise_before_a_run(name):
    mine, ref = pair(name)
    t = torch.tensor([17, 930])
    close(mine.add_noise(seeded(1), seeded(2), t), ref.add_noise(seeded(1), seeded(2), t))
