"""Schedulers of EDM, consistency and continuous-time models, side by side with the reference, and by themselves."""

from __future__ import annotations
import copy
import importlib.util
import inspect
import pickle
import sys
import diffusers
import numpy as np
import pytest
import torch
from families.samples import finite_close as close
from families.samples import network, seeded
from darkroom import schedulers
from darkroom.errors import ConfigError, InputError, MissingDependencyError

EULER, DPM, COSINE = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"
LCM, TCD, CM, SCM = "LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "SCMScheduler"
DECODER, IPNDM, VE, KARRAS, VP = (
    "ConsistencyDecoderScheduler",
    "IPNDMScheduler",
    "ScoreSdeVeScheduler",
    "KarrasVeScheduler",
    "ScoreSdeVpScheduler",
)
STEPPED = [EULER, DPM, COSINE, LCM, TCD, CM, SCM, DECODER, IPNDM]
NAMES = [*STEPPED, VE, KARRAS, VP]
# `get_scalings` is used by nobody, the updates are one formula here, and the others take less
INTERNAL = {"get_scalings", "index_for_timestep", "scale_model_input"} | {
    f"{kind}_order_update" for kind in ("dpm_solver_first", "multistep_dpm_solver_second", "multistep_dpm_solver_third")
}
STEPS = {DECODER: 2, SCM: 2}
pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab].*:UserWarning")  # torchsde, of the reference's ends
needs_torchsde = pytest.mark.skipif(importlib.util.find_spec("torchsde") is None, reason="Brownian trees need torchsde")


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()


def reference(name):
    return getattr(diffusers.schedulers, name)


def pair(name, **options):
    return getattr(schedulers, name)(**options), reference(name)(**options)


def ready(name, call=None, **options):
    both = pair(name, **options)
    call = STEPS.get(name, 10) if call is None else call
    for scheduler in both:
        scheduler.set_timesteps(**(call if isinstance(call, dict) else {"num_inference_steps": call}))
    return both


def walk(mine, ref, begin=0, dtype=torch.float32, named=True, generators=None, **options):
    """Step both schedulers through their runs, each fed with its own samples."""
    close(mine.timesteps, ref.timesteps)
    if hasattr(ref, "sigmas"):
        close(mine.sigmas, ref.sigmas)
    close(torch.as_tensor(mine.init_noise_sigma), torch.as_tensor(ref.init_noise_sigma))
    make = generators or (lambda: torch.Generator().manual_seed(1))
    sources = [{"generator": make()} if "generator" in inspect.signature(ref.step).parameters else {} for _ in range(2)]
    x = y = seeded(dtype=dtype)
    if begin:
        if named and hasattr(ref, "set_begin_index"):
            mine.set_begin_index(begin)
            ref.set_begin_index(begin)
        if hasattr(ref, "add_noise"):
            t, noise = ref.timesteps[begin : begin + 1].repeat(2), seeded(3, dtype=dtype)
            x, y = mine.add_noise(x, noise, t), ref.add_noise(y, noise, t)
            close(x, y)
    else:
        x, y = x * mine.init_noise_sigma, y * ref.init_noise_sigma
    last = -1 if isinstance(mine, schedulers.SCMScheduler) else None
    for t, u in zip(mine.timesteps[begin:last], ref.timesteps[begin:last], strict=True):
        a, b = x, y
        if hasattr(ref, "scale_model_input"):
            a, b = mine.scale_model_input(x, t), ref.scale_model_input(y, u)
            close(a, b)
        got = mine.step(network(a, u), t, x, **sources[0], **options)
        want = ref.step(network(b, u), u, y, **sources[1], **options)
        assert [*got] == [*want]
        for field in want:
            close(got[field], want[field])
        x, y = got.prev_sample, want.prev_sample
    return x


def grid(**axes):
    options = [{}]
    for name, values in axes.items():
        options = [{**o, name: v} for o in options for v in values]
    return options


PREDICTIONS = ["epsilon", "v_prediction"]
EDM = [
    *grid(sigma_schedule=["karras", "exponential"], prediction_type=PREDICTIONS, sigma_data=[0.5, 1.0]),
    *grid(sigma_min=[0.3], sigma_max=[14.6, 500], rho=[3.0, 7.0], num_train_timesteps=[100]),
]
TABLES = [
    *grid(beta_schedule=["scaled_linear", "linear", "squaredcos_cap_v2"], prediction_type=["epsilon", "sample", "v_prediction"]),
    *grid(set_alpha_to_one=[False], timestep_scaling=[0.1, 10.0], original_inference_steps=[25, 100]),
    *grid(thresholding=[True], sample_max_value=[1.0, 2.5], dynamic_thresholding_ratio=[0.9, 0.995]),
    *grid(clip_sample=[True], clip_sample_range=[0.5, 2.0], num_train_timesteps=[500]),
    *grid(rescale_betas_zero_snr=[True], prediction_type=["sample", "v_prediction"]),
    *grid(trained_betas=[np.linspace(1e-4, 0.02, 1000)]),
]
CASES = {
    EULER: [*EDM, *grid(final_sigmas_type=["sigma_min"], sigma_schedule=["karras", "exponential"])],
    DPM: [
        *EDM,
        *grid(solver_order=[1, 2, 3], solver_type=["midpoint", "heun"], sigma_schedule=["karras", "exponential"]),
        *grid(solver_order=[1, 2], solver_type=["midpoint", "heun"], algorithm_type=["sde-dpmsolver++"], prediction_type=PREDICTIONS),
        *grid(solver_order=[1, 3], lower_order_final=[False, True], euler_at_final=[False, True]),
        *grid(final_sigmas_type=["sigma_min"], sigma_schedule=["exponential"], euler_at_final=[True, False]),
        *grid(thresholding=[True], sample_max_value=[2.5], algorithm_type=["dpmsolver++", "sde-dpmsolver++"]),
        *grid(algorithm_type=["deis"], solver_type=["logrho", "bh1", "bh2"], final_sigmas_type=["sigma_min"]),
    ],
    COSINE: [
        *grid(sigma_schedule=["karras", "exponential"], prediction_type=PREDICTIONS),
        *grid(solver_order=[1, 2], solver_type=["midpoint", "heun", "bh1"]),
        *grid(sigma_min=[0.01], sigma_max=[80.0], rho=[3.0], sigma_data=[0.5], lower_order_final=[True, False]),
    ],
    LCM: TABLES,
    TCD: TABLES,
    CM: [
        *grid(clip_denoised=[True, False], s_noise=[1.0, 0.5]),
        *grid(num_train_timesteps=[18, 201], sigma_data=[0.5, 1.0], rho=[5.0], sigma_min=[0.01]),
    ],
    SCM: grid(sigma_data=[0.5, 1.0]),
    DECODER: grid(sigma_data=[0.5, 1.0], num_train_timesteps=[1024, 1200]),
    IPNDM: [{}, {"num_train_timesteps": 100}, {"trained_betas": (np.sin(np.linspace(1, 0, 11) * np.pi / 2) ** 2).tolist()}],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_defaults_are_the_references(name):
    mine, ref = getattr(schedulers, name), reference(name)
    expected = list(inspect.signature(ref.__init__).parameters.values())[1:]
    assert [(p.name, p.default) for p in inspect.signature(mine).parameters.values()] == [(p.name, p.default) for p in expected]
    for method, function in vars(ref).items():
        if inspect.isfunction(function) and method[0] != "_" and method not in INTERNAL:
            assert list(inspect.signature(getattr(mine, method)).parameters) == list(inspect.signature(function).parameters), method
    assert mine.order == ref.order
    assert mine().compatibles == [mine]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_reference_and_the_reverse(name, tmp_path):
    ref = reference(name)()
    ref.save_pretrained(tmp_path / "ref")
    mine = getattr(schedulers, name).from_pretrained(tmp_path / "ref")
    assert repr(mine) == repr(ref)
    mine.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "scheduler_config.json").read_text() == (tmp_path / "ref" / "scheduler_config.json").read_text()
    twin = pickle.loads(pickle.dumps(mine))
    assert repr(twin) == repr(mine) and torch.equal(twin.timesteps, mine.timesteps)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (DECODER, KARRAS, VP)])
def test_before_a_run(name):
    mine, ref = pair(name)
    close(mine.timesteps, ref.timesteps)
    for attribute in ("sigmas", "discrete_sigmas", "betas", "alphas", "alphas_cumprod"):
        if hasattr(ref, attribute):
            close(getattr(mine, attribute), getattr(ref, attribute))


@pytest.mark.parametrize(("name", "index"), [(n, i) for n in CASES for i in range(len(CASES[n]))])
def test_runs_agree(name, index):
    if name == COSINE:
        pytest.importorskip("torchsde")
    steps = 25 if index % 4 == 0 and name not in STEPS else None
    walk(*ready(name, 18 if name == CM and steps else steps, **CASES[name][index]))


@pytest.mark.parametrize("name", [n for n in STEPPED if n != COSINE])
def test_bfloat16_samples(name):
    for options in CASES[name][:4]:
        walk(*ready(name, **options), dtype=torch.bfloat16)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("begin", [3, 7])
@pytest.mark.parametrize("name", [n for n in STEPPED if n not in STEPS])
def test_runs_from_the_middle(name, begin, named):
    if name == COSINE:
        pytest.importorskip("torchsde")
    walk(*ready(name), begin=begin, named=named)


@pytest.mark.parametrize("name", [n for n in STEPPED if n not in (IPNDM,)])
def test_a_list_of_generators(name):
    if name == COSINE:
        pytest.importorskip("torchsde")
    options = {"s_churn": 5.0} if name == EULER else {}
    config = {"algorithm_type": "sde-dpmsolver++"} if name == DPM else {}
    walk(*ready(name, **config), generators=lambda: [torch.Generator().manual_seed(i) for i in (5, 6)], **options)


@pytest.mark.parametrize("churn", [{"s_churn": 4.0, "s_tmin": 0.5, "s_tmax": 12.0, "s_noise": 1.003}, {"s_churn": 40.0}])
def test_edm_euler_churn(churn):
    walk(*ready(EULER), **churn)


def test_edm_euler_with_x0_that_is_known():
    mine, ref = ready(EULER)
    close(*(s.step(seeded(1), s.timesteps[0], seeded(2), pred_original_sample=seeded(3)).prev_sample for s in (mine, ref)))


def test_edm_euler_through_shares():
    walk(*ready(EULER, {"num_inference_steps": None, "sigmas": torch.linspace(0, 1, 7) ** 2}))


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_tcd_shares_of_noise(eta, prediction_type):
    walk(*ready(TCD, 8, prediction_type=prediction_type), eta=eta)


CALLS = [
    {"num_inference_steps": 4, "strength": 0.6},
    {"num_inference_steps": 8, "original_inference_steps": 20},
    {"num_inference_steps": 8, "original_inference_steps": 30, "strength": 0.77},
    {"timesteps": [999, 759, 499, 259]},
    {"timesteps": [999, 759, 499, 259], "strength": 0.5},
    {"num_inference_steps": 1},
]


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("name", [LCM, TCD])
def test_timesteps_of_distillation(name, call):
    mine, ref = ready(name, call)
    assert mine.num_inference_steps == ref.num_inference_steps
    assert [mine.previous_timestep(t) for t in mine.timesteps] == [int(ref.previous_timestep(t)) for t in ref.timesteps]
    walk(mine, ref)


@pytest.mark.parametrize("name", [LCM, TCD])
def test_whole_numbers_for_timesteps(name):
    mine, ref = ready(name, 4)
    for t in ref.timesteps.tolist():
        close(*(s.step(seeded(1), t, seeded(2), generator=torch.Generator().manual_seed(0)).prev_sample for s in (mine, ref)))
    t = torch.tensor([17, 930])
    close(mine.add_noise(seeded(1), seeded(2), t), ref.add_noise(seeded(1), seeded(2), t))
    close(mine.get_velocity(seeded(1), seeded(2), t), ref.get_velocity(seeded(1), seeded(2), t))


@pytest.mark.parametrize("call", [1, 2, 18, {"timesteps": [22, 0]}, {"timesteps": [17]}, {"timesteps": [39, 20, 5, 1]}], ids=str)
def test_consistency_models(call):
    walk(*ready(CM, call))


SCM_CALLS = [
    {"num_inference_steps": 2},
    {"num_inference_steps": 2, "max_timesteps": 1.5, "intermediate_timesteps": 1.0},
    {"num_inference_steps": 1, "intermediate_timesteps": None},
    {"num_inference_steps": 4, "intermediate_timesteps": None, "max_timesteps": 1.56},
    {"num_inference_steps": 2, "timesteps": [1.5, 0.9, 0.0], "max_timesteps": None, "intermediate_timesteps": None},
]


@pytest.mark.parametrize("call", SCM_CALLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_continuous_consistency_models(call, dtype):
    walk(*ready(SCM, call), dtype=dtype)


@pytest.mark.parametrize("steps", [2, 10, 25])
@pytest.mark.parametrize("options", [{}, {"s_churn": 5, "s_noise": 1.0}, {"sigma_max": 50.0, "sigma_min": 0.1, "s_min": 1.0, "s_max": 20}])
def test_karras_ve_runs(options, steps):
    mine, ref = ready(KARRAS, steps, **options)
    close(mine.timesteps, ref.timesteps)
    close(mine.schedule, ref.schedule)
    assert mine.init_noise_sigma == ref.init_noise_sigma

    def sample(scheduler):
        generator, x, passed = torch.Generator().manual_seed(0), seeded() * scheduler.init_noise_sigma, []
        for t in scheduler.timesteps:
            sigma, after = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else 0
            hat, sigma_hat = scheduler.add_noise_to_input(x, sigma, generator=generator)
            out = scheduler.step(network(hat, sigma_hat), sigma_hat, after, hat)
            passed += [hat, out.prev_sample, out.derivative, out.pred_original_sample]
            if after != 0:
                again = network(out.prev_sample, after)
                out = scheduler.step_correct(again, sigma_hat, after, hat, out.prev_sample, out.derivative)
                passed += [out.prev_sample, out.derivative, out.pred_original_sample]
            x = out.prev_sample
        return passed

    for got, want in zip(sample(mine), sample(ref), strict=True):
        close(got, want)
    for method, more in (("step", ()), ("step_correct", (seeded(3), seeded(4)))):
        got, want = (getattr(s, method)(seeded(1), 2.0, 1.0, seeded(2), *more, return_dict=False) for s in (mine, ref))
        assert len(got) == len(want) == 2
        close(got[0], want[0])
    noisy = mine.add_noise(seeded(1), seeded(2), torch.tensor([1, 0]))
    close(noisy, seeded(1) + mine.schedule[:2].flip(0).reshape(2, 1, 1, 1) * seeded(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"snr": 0.3, "sigma_max": 50.0}, {"num_train_timesteps": 500, "sampling_eps": 1e-3}])
def test_score_sde_ve_runs(options, dtype):
    mine, ref = pair(VE, **options)
    assert mine.init_noise_sigma == ref.init_noise_sigma
    for scheduler in (mine, ref):
        scheduler.set_timesteps(25)
        scheduler.set_sigmas(25)
    for attribute in ("timesteps", "sigmas", "discrete_sigmas"):
        close(getattr(mine, attribute), getattr(ref, attribute))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    x = y = seeded(dtype=dtype)
    for t in ref.timesteps:
        x, y = (s.step_correct(-v / 9, v, generator=g).prev_sample for s, v, g in zip((mine, ref), (x, y), generators))
        close(x, y)
        got, want = (s.step_pred(-v / 9, t, v, generator=g) for s, v, g in zip((mine, ref), (x, y), generators))
        close(got.prev_sample, want.prev_sample)
        close(got.prev_sample_mean, want.prev_sample_mean)
        x, y = got.prev_sample.to(dtype), want.prev_sample.to(dtype)
    close(mine.add_noise(x, seeded(4), torch.tensor([3, 20])), ref.add_noise(y, seeded(4), torch.tensor([3, 20])))
    for method, more in (("step_pred", (0.5, seeded(2))), ("step_correct", (seeded(2),))):
        assert len(getattr(mine, method)(seeded(1), *more, return_dict=False)) == len(
            getattr(ref, method)(seeded(1), *more, return_dict=False)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"beta_min": 0.5, "beta_max": 5.0, "sampling_eps": 0.1}])
def test_score_sde_vp_runs(options, dtype):
    mine, ref = ready(VP, 25, **options)
    close(mine.timesteps, ref.timesteps)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    x = y = seeded(dtype=dtype)
    for t in ref.timesteps:
        for time in (t, t.repeat(2)):
            got, want = (s.step_pred(v / 2, v, time, generator=g) for s, v, g in zip((mine, ref), (x, y), generators))
            close(got[0], want[0])
            close(got[1], want[1])
        x, y = got[0].to(dtype), want[0].to(dtype)


# without the reference


def gaussian(x, sigma, mean=1.5, dev=0.4):
    """x0 as the mean of what a Gaussian target may have been, from x = x0 + sigma eps."""
    return mean + (dev**2 / (dev**2 + sigma**2)) * (x - mean)


def raw(scheduler, x, x0, sigma):
    """The output of a network with EDM's preconditioning that predicts x0."""
    zero, one = torch.zeros(()), torch.ones(())
    skip, gain = (scheduler.precondition_outputs(a, b, sigma) for a, b in ((one, zero), (zero, one)))
    return (x0 - skip * x) / gain


@pytest.mark.parametrize(
    ("name", "order", "options"), [(EULER, 1, {}), (DPM, 1, {"solver_order": 1}), (DPM, 2, {}), (DPM, 2, {"solver_type": "heun"})]
)
def test_order_of_convergence(name, order, options):
    errors, counts, dev = [], (40, 80, 160), 0.4
    for n in counts:
        scheduler = getattr(schedulers, name)(final_sigmas_type="sigma_min", sigma_min=0.1, **options)
        scheduler.set_timesteps(n)
        x = start = (seeded(shape=(1000,)) * 80).double()
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(raw(scheduler, x, gaussian(x, scheduler.levels[i]), scheduler.levels[i]), t, x).prev_sample
            x = x.double()
        exact = 1.5 + (start - 1.5) * ((dev**2 + 0.1**2) / (dev**2 + scheduler.levels[0] ** 2)) ** 0.5
        errors.append((x - exact).abs().mean().item())
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - order) < 0.35


@needs_torchsde
@pytest.mark.parametrize(
    ("name", "options"), [(DPM, {"algorithm_type": "sde-dpmsolver++"}), (COSINE, {"sigma_min": 0.01, "sigma_max": 50.0})]
)
def test_noise_keeps_the_statistics(name, options):
    scheduler, generator = getattr(schedulers, name)(**options), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(60)
    x = torch.randn(20_000, generator=generator) * scheduler.levels[0]
    for sigma, t in zip(scheduler.levels, scheduler.timesteps):
        x = scheduler.step(raw(scheduler, x, gaussian(x, sigma), sigma), t, x, generator=generator).prev_sample
    assert abs(x.mean() - 1.5) < 0.02 and abs(x.std() - 0.4) < 0.02


@pytest.mark.parametrize("name", [LCM, TCD, CM, SCM])
def test_a_perfect_consistency_model_gives_its_data(name):
    """With x0 predicted exactly, every sample of a run is that x0 and noise of the level."""
    data, options = seeded(5).clamp(-1, 1) * 0.5, {"prediction_type": "sample"} if name in (LCM, TCD) else {}
    scheduler = getattr(schedulers, name)(**options)
    scheduler.set_timesteps(STEPS.get(name, 4))
    x = seeded() * scheduler.init_noise_sigma
    steps = scheduler.timesteps[:-1] if name == SCM else scheduler.timesteps
    for i, t in enumerate(steps):
        out = data
        if name == CM:
            skip, gain = scheduler.get_scalings_for_boundary_condition(scheduler.sigmas[i])
            out = (data - skip * x) / gain
        elif name == SCM:
            out = (torch.cos(t) * x - data) / torch.sin(t)
        x = scheduler.step(out, t, x).prev_sample
    assert torch.allclose(x, data, atol=0.15 if name == TCD else 2e-3)  # TCD ends at timestep 0, where alpha bar is not 1


@pytest.mark.parametrize("name", STEPPED)
def test_copies_are_independent_runs(name):
    if name == COSINE:
        pytest.importorskip("torchsde")
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(STEPS.get(name, 6))
    ends, x = [], seeded() * scheduler.init_noise_sigma
    half = scheduler.timesteps[:1] if name in STEPS else scheduler.timesteps[:3]
    rest = scheduler.timesteps[1:2] if name in STEPS else scheduler.timesteps[3:]

    def step(run, t, x):
        return run.step(network(run.scale_model_input(x, t), t), t, x).prev_sample

    for t in half:
        x = step(scheduler, t, x)
    for run in (copy.copy(scheduler), scheduler):
        torch.manual_seed(1)
        y = x
        for t in rest:
            y = step(run, t, y)
        ends.append(y)
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", [n for n in STEPPED if n != COSINE])
def test_steps_read_nothing_back_from_the_device(name):
    options = {"algorithm_type": "sde-dpmsolver++"} if name == DPM else {}
    scheduler = getattr(schedulers, name)(**options)
    scheduler.set_timesteps(STEPS.get(name, 12), device="meta")
    x = seeded().to("meta")
    for t in scheduler.timesteps[:-1] if name == SCM else scheduler.timesteps:
        x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample
        assert x.device.type == "meta"


@pytest.mark.parametrize("name", [EULER, DPM])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_x0_and_eps_undo_the_noise(name, prediction_type):
    scheduler = getattr(schedulers, name)(prediction_type=prediction_type)
    scheduler.set_timesteps(8)
    x0, eps, t = seeded(1), seeded(2), scheduler.timesteps[3]
    alpha, sigma = scheduler.signal_and_noise(t, x0)
    x = scheduler.add_noise(x0, eps, t[None])
    assert torch.allclose(x, alpha * x0 + sigma * eps)
    got = scheduler.x0_and_eps(x, raw(scheduler, x, x0, sigma), alpha, sigma)
    assert torch.allclose(got[0], x0, atol=1e-4) and torch.allclose(got[1], eps, atol=1e-4)


# where the reference is wrong, or has nothing


@pytest.mark.parametrize(("name", "options"), [(DPM, {"algorithm_type": "sde-dpmsolver++"}), (DPM, {"solver_type": "heun"}), (COSINE, {})])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_a_last_step_that_goes_nowhere(name, options, schedule):
    """The reference divides by its length, 0, and has NaN; or its Brownian tree never ends."""
    if name == COSINE:
        pytest.importorskip("torchsde")
    for sigma_max in (14.6, 80.0):
        scheduler = getattr(schedulers, name)(final_sigmas_type="sigma_min", sigma_schedule=schedule, sigma_max=sigma_max, **options)
        scheduler.set_timesteps(20)
        x = seeded() * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        assert x.isfinite().all()


def test_third_order_with_noise():
    """The reference has no formula. A small step of third order is close to one of second."""
    scheduler = getattr(schedulers, DPM)(solver_order=3, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(100)
    generator, x = torch.Generator().manual_seed(0), seeded() * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, generator=generator).prev_sample
    assert x.isfinite().all() and x.abs().max() < 10


@pytest.mark.parametrize("name", [DPM, COSINE])
def test_networks_that_predict_x0(name):
    """The reference lists this prediction and refuses it at the first step."""
    scheduler = getattr(schedulers, name)(prediction_type="sample", solver_order=1)
    scheduler.set_timesteps(5)
    scheduler.step_index = 4
    data = seeded(1)
    assert torch.allclose(scheduler.step(data, scheduler.timesteps[4], seeded(2)).prev_sample, data) if name == DPM else True


def test_a_table_of_one():
    """The reference divides by the table's length less one."""
    scheduler = schedulers.CMStochasticIterativeScheduler(num_train_timesteps=1)
    scheduler.set_timesteps(1)
    assert scheduler.sigmas[0] == 80 and scheduler.timesteps.isfinite().all()


def test_brownian_noise_needs_torchsde(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    for name in ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"):
        scheduler = getattr(schedulers, name)()
        scheduler.set_timesteps(5)
        with pytest.raises(MissingDependencyError, match="torchsde") as caught:
            scheduler.step(seeded(), scheduler.timesteps[0], seeded())
        assert name in str(caught.value)


BAD = [
    *[(name, {"num_train_timesteps": 0}, "num_train_timesteps") for name in NAMES if name != KARRAS],
    *[(name, {"sigma_min": 0.0}, "sigma_min") for name in (EULER, DPM, COSINE, CM, VE, KARRAS)],
    (EULER, {"sigma_max": 0.001}, "sigma_max"),
    (EULER, {"prediction_type": "sample"}, "prediction_type"),
    (EULER, {"sigma_schedule": "beta"}, "sigma_schedule"),
    (EULER, {"rho": 0.0}, "rho"),
    (DPM, {"algorithm_type": "dpmsolver"}, "algorithm_type"),
    (DPM, {"solver_order": 4}, "solver_order"),
    (COSINE, {"solver_type": "euler"}, "solver_type"),
    (LCM, {"beta_schedule": "parabolic"}, "beta_schedule"),
    (TCD, {"beta_end": float("nan")}, "beta_end"),
    (SCM, {"prediction_type": "epsilon"}, "prediction_type"),
    (DECODER, {"num_train_timesteps": 1000}, "num_train_timesteps"),
    (IPNDM, {"trained_betas": [0.5, 1.5]}, "trained_betas"),
    (VE, {"sampling_eps": 0.0}, "sampling_eps"),
    (VP, {"beta_max": "much"}, "beta_max"),
]


@pytest.mark.parametrize(("name", "options", "field"), BAD)
def test_options_without_meaning_are_named(name, options, field):
    with pytest.raises(ConfigError, match=field):
        getattr(schedulers, name)(**options)


CONFLICTS = [
    *[(name, {"num_inference_steps": 0}) for name in NAMES],
    *[(name, {"num_inference_steps": 2.5}) for name in NAMES],
    (EULER, {}),
    (LCM, {"num_inference_steps": 51}),
    (LCM, {"num_inference_steps": 8, "strength": 0.1}),
    (LCM, {"num_inference_steps": 8, "original_inference_steps": 2000}),
    (LCM, {"timesteps": [5, 9]}),
    (LCM, {"timesteps": [1000, 9]}),
    (LCM, {"timesteps": [999, 9], "strength": 0.1}),
    (TCD, {"num_inference_steps": 5, "timesteps": [9, 5]}),
    (CM, {"num_inference_steps": 41}),
    (CM, {"timesteps": [40, 3]}),
    (CM, {"timesteps": [3, 9]}),
    (SCM, {"num_inference_steps": 4}),
    (SCM, {"num_inference_steps": 2, "timesteps": [1.5, 1.0, 0.0]}),
    (SCM, {"num_inference_steps": 2, "timesteps": [1.5, 0.0], "max_timesteps": None}),
    (SCM, {"num_inference_steps": 2, "max_timesteps": None}),
    (DECODER, {"num_inference_steps": 3}),
    (KARRAS, {"num_inference_steps": 1}),
]


@pytest.mark.parametrize(("name", "call"), CONFLICTS)
def test_schedules_that_contradict(name, call):
    with pytest.raises(InputError, match="set_timesteps"):
        getattr(schedulers, name)().set_timesteps(**({} if name in (VE, VP) else {"num_inference_steps": None}) | call)


@pytest.mark.parametrize("name", [DPM, COSINE, LCM, TCD, SCM])
def test_a_step_before_the_schedule(name):
    with pytest.raises(InputError, match="set_timesteps"):
        getattr(schedulers, name)().step(seeded(), 5, seeded())


@pytest.mark.parametrize("name", [EULER, CM])
def test_positions_are_no_timesteps(name):
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(5)
    for wrong in (3, torch.tensor(3), 2.5):
        with pytest.raises(InputError, match="timestep"):
            scheduler.step(seeded(), wrong, seeded())


def test_a_run_ends():
    scheduler = schedulers.SCMScheduler()
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps[:-1]:
        scheduler.step(seeded(), t, seeded())
    with pytest.raises(InputError, match="over"):
        scheduler.step(seeded(), scheduler.timesteps[-1], seeded())


def test_a_share_that_is_none():
    scheduler = schedulers.TCDScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="eta"):
        scheduler.step(seeded(), scheduler.timesteps[0], seeded(), eta=1.5)
