"""Schedulers of flow-matching models, side by side with the reference, and by themselves."""

from __future__ import annotations
import copy
import inspect
import pickle
import warnings
import diffusers
import numpy as np
import pytest
import torch
from families.samples import finite_close as close
from families.samples import seeded
from darkroom import schedulers
from darkroom.errors import ConfigError, InputError

EULER, LCM, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "FlowMatchHeunDiscreteScheduler"
MAP, LTX = "FlowMapEulerDiscreteScheduler", "LTXEulerAncestralRFScheduler"
NAMES = [EULER, LCM, HEUN, MAP, LTX]
SHIFTED = [EULER, LCM]


@pytest.fixture(autouse=True)
def quiet():
    diffusers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`timesteps` were passed")
        yield


def velocity(x, t):
    """A fixed, smooth stand-in for a network."""
    return (0.7 * torch.tanh(x.float()) + 0.2 * torch.sin(torch.arange(x[0].numel()) + float(t) / 300).reshape(x[0].shape)).to(x.dtype)


def pair(name, **options):
    return getattr(schedulers, name)(**options), getattr(diffusers, name)(**options)


def ready(name, call, **options):
    both = pair(name, **options)
    for scheduler in both:
        scheduler.set_timesteps(**(call if isinstance(call, dict) else {"num_inference_steps": call}))
    return both


def walk(mine, ref, begin=0, dtype=torch.float32, named=True, generators=None, **options):
    """Step both schedulers through their runs, each fed with its own samples."""
    close(mine.timesteps, ref.timesteps)
    close(mine.sigmas, ref.sigmas)
    make = generators or (lambda: torch.Generator().manual_seed(1))
    sources = [{"generator": make()} if "generator" in inspect.signature(ref.step).parameters else {} for _ in range(2)]
    x = y = seeded(dtype=dtype)
    if begin and named:
        mine.set_begin_index(begin)
        ref.set_begin_index(begin)
    if begin and hasattr(ref, "scale_noise"):
        t, noise = ref.timesteps[begin : begin + 1], seeded(3, dtype=dtype)
        x, y = mine.scale_noise(x, t, noise), ref.scale_noise(y, t, noise)
        close(x, y)
    for t, u in zip(mine.timesteps[begin:], ref.timesteps[begin:], strict=True):
        got = mine.step(velocity(x, u), t, x, **sources[0], **options)
        want = ref.step(velocity(y, u), u, y, **sources[1], **options)
        close(got.prev_sample, want.prev_sample)
        x, y = got.prev_sample, want.prev_sample
    return x


SPACINGS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
SHIFTS = [
    {},
    {"shift": 3.0},
    {"shift": 0.5, "invert_sigmas": True},
    {"shift": 7.0, "shift_terminal": 0.1},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
    {"use_dynamic_shifting": True, "invert_sigmas": True, "num_train_timesteps": 100},
]
EVEN = np.linspace(1.0, 0.1, 10)
CALLS = [10, 25, {"sigmas": EVEN}, {"timesteps": (1000 * EVEN).tolist()}, {"sigmas": EVEN.tolist(), "timesteps": (900 * EVEN).tolist()}]


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_defaults_are_the_references(name):
    mine, ref = getattr(schedulers, name), getattr(diffusers, name)
    expected = list(inspect.signature(ref.__init__).parameters.values())[1:]
    assert [(p.name, p.default) for p in inspect.signature(mine).parameters.values()] == [(p.name, p.default) for p in expected]
    for method in ("set_timesteps", "step", "scale_noise", "set_shift", "set_scale_factors", "time_shift", "stretch_shift_to_terminal"):
        if hasattr(ref, method):
            got, want = (list(inspect.signature(getattr(c, method)).parameters) for c in (mine, ref))
            assert got == want
    assert mine.order == ref.order
    assert [c.__name__ for c in mine().compatibles] == sorted(c.__name__ for c in ref().compatibles)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_reference_and_the_reverse(name, tmp_path):
    ref = getattr(diffusers, name)(num_train_timesteps=500)
    ref.save_pretrained(tmp_path / "ref")
    mine = getattr(schedulers, name).from_pretrained(tmp_path / "ref")
    assert repr(mine) == repr(ref)
    mine.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "scheduler_config.json").read_text() == (tmp_path / "ref" / "scheduler_config.json").read_text()
    assert repr(pickle.loads(pickle.dumps(mine))) == repr(mine)


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("shift", SHIFTS, ids=str)
@pytest.mark.parametrize("name", SHIFTED)
def test_every_schedule(name, shift, call):
    call = call if isinstance(call, dict) else {"num_inference_steps": call}
    if shift.get("use_dynamic_shifting"):
        call = {**call, "mu": 0.8}
    for spacing in SPACINGS:
        mine, ref = ready(name, call, **shift, **spacing)
        assert mine.num_inference_steps == ref.num_inference_steps
        close(mine.timesteps, ref.timesteps)
        close(mine.sigmas, ref.sigmas)
    walk(mine, ref)


@pytest.mark.parametrize("name", NAMES)
def test_before_a_run(name):
    mine, ref = pair(name, **({} if name == LTX else {"shift": 3.0}))
    if name != LTX:  # the reference has nothing there
        close(mine.timesteps, ref.timesteps)
        close(mine.sigmas, ref.sigmas)
    if name in (EULER, LCM, HEUN):
        assert (mine.sigma_min, mine.sigma_max) == (ref.sigma_min, ref.sigma_max)
    if name in SHIFTED:
        t, x, noise = torch.tensor([1000.0, ref.timesteps[400]]), seeded(1), seeded(2)
        close(mine.scale_noise(x, t, noise), ref.scale_noise(x, t, noise))


@pytest.mark.parametrize("steps", [1, 2, 10, 25])
@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"stochastic_sampling": True, "shift": 2.0}])
def test_euler_runs(options, steps):
    walk(*ready(EULER, steps, **options))


@pytest.mark.parametrize("begin", [2, 6])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_from_the_middle(name, begin, named, dtype):
    walk(*ready(name, 10, **({} if name == LTX else {"shift": 3.0})), begin=begin, named=named, dtype=dtype)


@pytest.mark.parametrize("name", [EULER, LCM, HEUN, LTX])
def test_a_list_of_generators(name):
    walk(
        *ready(name, 5), generators=lambda: [torch.Generator().manual_seed(i) for i in (5, 6)], **({"s_churn": 3.0} if name == HEUN else {})
    )


@pytest.mark.parametrize("name", SHIFTED)
def test_a_shift_that_is_set_later(name):
    mine, ref = pair(name, shift=2.0)
    for scheduler in (mine, ref):
        scheduler.set_shift(5.0)
        scheduler.set_timesteps(7)
    assert mine.shift == ref.shift == 5.0 and mine.config.shift == 2.0
    walk(mine, ref)


@pytest.mark.parametrize("options", [{}, {"stochastic_sampling": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_noise_level_for_each_token(options, dtype):
    mine, ref = ready(EULER, 8, shift=2.0, **options)
    x, out = seeded(shape=(2, 5, 6), dtype=dtype), seeded(1, (2, 5, 6), dtype)
    tokens = torch.stack([ref.timesteps[[0, 3, 7, 2, 2]], torch.tensor([1000.0, 500.0, 1.0, 0.0, 333.0])])
    got, want = (
        s.step(out, s.timesteps[0], x, per_token_timesteps=tokens, generator=torch.Generator().manual_seed(0)).prev_sample
        for s in (mine, ref)
    )
    close(got, want)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_that_grow(mode, dtype):
    mine, ref = ready(LCM, 4, scale_factors=[1.0, 1.5, 2.0], upscale_mode=mode, shift=2.0)
    assert walk(mine, ref, dtype=dtype).shape == (2, 3, 8, 8)
    for scheduler in (mine, ref):
        scheduler.set_scale_factors([2.0], "nearest")
        scheduler.set_timesteps(2)
    assert walk(mine, ref).shape == (2, 3, 8, 8)
    mine.set_timesteps(5)
    with pytest.raises(InputError, match="scale_factors"):
        mine.step(seeded(), mine.timesteps[0], seeded())


@pytest.mark.parametrize("steps", [1, 2, 10, 25])
@pytest.mark.parametrize("churn", [{}, {"s_churn": 4.0, "s_noise": 1.003}, {"s_churn": 40.0, "s_tmin": 0.2, "s_tmax": 0.9}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heun_runs(churn, steps, dtype):
    walk(*ready(HEUN, steps, shift=3.0), dtype=dtype, **churn)


@pytest.mark.parametrize("call", [1, 10, {"sigmas": EVEN.tolist()}, {"timesteps": (1000 * EVEN).tolist()}], ids=str)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flow_map_runs(shift, call, dtype):
    walk(*ready(MAP, call, shift=shift), dtype=dtype)


def test_flow_maps_jump_between_any_times():
    mine, ref = ready(MAP, 6, shift=2.0)
    rows = torch.tensor([700.0, 123.4])
    jumps = [(mine.timesteps[1], 0.0), (rows, rows / 2), (rows, mine.timesteps[5]), (mine.timesteps[0], rows), (333.3, 12.5), (333.3, rows)]
    for t, r in jumps:
        close(*(s.step(seeded(1), t, seeded(2), r_timestep=r).prev_sample for s in (mine, ref)))
    assert mine.step_index == ref.step_index
    for t in (rows, torch.tensor([5.0]), mine.timesteps[:2]):
        close(mine.scale_noise(seeded(1), t, seeded(2)), ref.scale_noise(seeded(1), t, seeded(2)))
    with pytest.raises(InputError, match="r_timestep"):
        mine.step(seeded(), 333.3, seeded())


LTX_SIGMAS = [1.0, 0.99375, 0.9875, 0.909375, 0.725, 0.421875, 0.0]


@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"eta": 0.3, "s_noise": 0.7}, {"s_noise": 0.0}], ids=str)
@pytest.mark.parametrize(
    "call", [10, {"sigmas": LTX_SIGMAS}, {"timesteps": torch.tensor(LTX_SIGMAS)}, {"sigmas": [0.9, 0.5, 0.1]}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ltx_runs(call, options, dtype):
    mine, ref = ready(LTX, call, **options)
    assert mine.num_inference_steps == ref.num_inference_steps
    walk(mine, ref, dtype=dtype)
    assert mine.step_index == ref.step_index


def test_ltx_is_shifted_by_the_configuration_of_euler():
    euler = pair(EULER, use_dynamic_shifting=True, shift_terminal=0.1)
    mine, ref = (getattr(m, LTX).from_config(s.config) for m, s in zip((schedulers, diffusers), euler))
    mine.set_timesteps(10, mu=0.7)
    ref.set_timesteps(10, mu=0.7)
    walk(mine, ref)
    assert schedulers.FlowMatchEulerDiscreteScheduler.from_config(mine.config).config == euler[0].config


# without the reference


@pytest.mark.parametrize("name", [EULER, HEUN, MAP])
def test_order_of_convergence(name):
    """A Gaussian target of mean m and deviation d: x / std(sigma) - m moves by scaling, where the path's deviation is known."""
    mean, dev, errors = 1.5, 0.4, []

    def exact(x, sigma):
        std = lambda s: ((1 - s) ** 2 * dev**2 + s**2) ** 0.5  # noqa: E731
        return mean + std(0.0) * (x - (1 - sigma) * mean) / std(sigma)

    def v(x, sigma):
        var = (1 - sigma) ** 2 * dev**2 + sigma**2
        return -mean + (sigma - (1 - sigma) * dev**2) / var * (x - (1 - sigma) * mean)

    counts = (16, 32, 64)
    for n in counts:
        scheduler = getattr(schedulers, name)(num_train_timesteps=100_000)
        scheduler.set_timesteps(n)
        x = start = seeded(shape=(1000,)).double()
        for t in scheduler.timesteps:
            level = scheduler.levels[scheduler._position(t)] if scheduler.step_index is not None else 1.0
            x = scheduler.step(v(x, level), t, x).prev_sample
        errors.append((x - exact(start, 1.0)).abs().mean().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - scheduler.order) < 0.35


@pytest.mark.parametrize(("name", "options"), [(EULER, {"stochastic_sampling": True}), (LCM, {}), (LTX, {}), (LTX, {"eta": 0.5})])
def test_noise_keeps_the_statistics(name, options):
    mean, dev = 1.5, 0.4
    scheduler = getattr(schedulers, name)(**options)
    scheduler.set_timesteps(240)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, generator=generator)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.levels[i]
        var = (1 - sigma) ** 2 * dev**2 + sigma**2
        if name == LTX:  # a solver of the flow; the others take samples of x0, as consistency models give
            out = -mean + (sigma - (1 - sigma) * dev**2) / var * (x - (1 - sigma) * mean)
        else:
            out = (x - (mean + dev * (x - (1 - sigma) * mean) / var**0.5)) / sigma
        x = scheduler.step(out, t, x, generator=generator).prev_sample
    assert abs(x.mean() - mean) < 0.02 and abs(x.std() - dev) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_noise_and_x0_undo_each_other(name):
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(8)
    x0, eps, t = seeded(1), seeded(2), scheduler.timesteps[3:4]
    alpha, sigma = scheduler.signal_and_noise(t, x0)
    x = scheduler.add_noise(x0, eps, t)
    assert torch.allclose(x, alpha * x0 + sigma * eps)
    out = scheduler.get_velocity(x0, eps, t)
    got = scheduler.x0_and_eps(x, out, alpha, sigma)
    assert torch.allclose(got[0], x0, atol=1e-5) and torch.allclose(got[1], eps, atol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_sigmas_descend_between_their_ends(spacing):
    for shift in (0.5, 1.0, 3.0):
        scheduler = schedulers.FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=0.05, **spacing)
        scheduler.set_timesteps(20)
        assert (scheduler.sigmas.diff() < 0).all()
        assert scheduler.sigmas[0] == 1 and abs(scheduler.sigmas[-2] - 0.05) < 1e-6 and scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_independent_runs_and_read_no_device(name):
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(6, device="meta")
    x = seeded().to("meta")
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(x, t, x).prev_sample
    other = copy.copy(scheduler)
    for run in (scheduler, other):
        y = x
        for t in scheduler.timesteps[3:]:
            y = run.step(y, t, y).prev_sample
        assert y.device.type == "meta" and y.shape == x.shape
    assert scheduler.step_index == other.step_index


@pytest.mark.parametrize("name", NAMES)
def test_tuples(name):
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(5)
    torch.manual_seed(0)
    result = copy.copy(scheduler).step(seeded(1), scheduler.timesteps[0], seeded())
    torch.manual_seed(0)
    plain = scheduler.step(seeded(1), scheduler.timesteps[0], seeded(), return_dict=False)
    assert len(plain) == 1 and torch.equal(plain[0], result.prev_sample)


BAD = [
    (EULER, {"shift": 0.0}, "shift"),
    (EULER, {"shift": float("nan")}, "shift"),
    (EULER, {"num_train_timesteps": 0}, "num_train_timesteps"),
    (EULER, {"shift_terminal": 1.0}, "shift_terminal"),
    (EULER, {"time_shift_type": "cubic"}, "time_shift_type"),
    (EULER, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas and use_beta_sigmas"),
    (LCM, {"upscale_mode": "cubic"}, "upscale_mode"),
    (HEUN, {"shift": -1.0}, "shift"),
    (MAP, {"num_train_timesteps": -5}, "num_train_timesteps"),
    (LTX, {"eta": "much"}, "eta"),
]


@pytest.mark.parametrize(("name", "options", "field"), BAD)
def test_options_without_meaning_are_named(name, options, field):
    with pytest.raises(ConfigError, match=field):
        getattr(schedulers, name)(**options)


CONFLICTS = [
    (EULER, {}, {}),
    (EULER, {}, {"num_inference_steps": 0}),
    (EULER, {}, {"num_inference_steps": 2.5}),
    (EULER, {}, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}),
    (EULER, {}, {"timesteps": [9.0], "sigmas": [1.0, 0.5]}),
    (EULER, {"use_dynamic_shifting": True}, {"num_inference_steps": 3}),
    (EULER, {"shift_terminal": 0.1}, {"num_inference_steps": 1}),
    (EULER, {"use_exponential_sigmas": True}, {"sigmas": [1.0, 0.5, 0.0]}),
    (LCM, {}, {"sigmas": []}),
    (HEUN, {}, {"num_inference_steps": -1}),
    (MAP, {}, {}),
    (LTX, {}, {}),
    (LTX, {}, {"sigmas": [1.0]}),
]


@pytest.mark.parametrize(("name", "options", "call"), CONFLICTS)
def test_schedules_that_contradict(name, options, call):
    scheduler = getattr(schedulers, name)(**options)
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.set_timesteps(**({"num_inference_steps": None} | call))


@pytest.mark.parametrize("name", [EULER, LCM, HEUN, LTX])
def test_positions_are_no_timesteps(name):
    scheduler = getattr(schedulers, name)()
    scheduler.set_timesteps(5)
    for wrong in (3, torch.tensor(3), 2.5):
        with pytest.raises(InputError, match="timestep"):
            scheduler.step(seeded(), wrong, seeded())


def test_noise_is_needed():
    with pytest.raises(InputError, match="noise"):
        schedulers.FlowMatchEulerDiscreteScheduler().scale_noise(seeded(), torch.tensor([1000.0]))
