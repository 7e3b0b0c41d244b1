"""Configurations, files, runs that do not touch each other, errors, and the places where the reference is wrong."""

from __future__ import annotations
import copy
import json
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
import diffusers
import numpy as np
import pytest
import torch
from darkroom import schedulers
from darkroom.config import Config as BaseConfig
from darkroom.core.random import randn
from darkroom.errors import CheckpointError, ConfigError, DarkroomError, InputError

NEW = ["ERSDEScheduler", "RESMultistepScheduler"]  # beyond the reference
INVERSE = ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"]
SDE = "DPMSolverSDEScheduler"
KNOWN = [
    *INVERSE, SDE, "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    "SASolverScheduler", "UniPCMultistepScheduler",
]  # fmt: skip
NAMES = sorted([*KNOWN, *NEW])
pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # torchsde, of the rounding of an interval's ends
SD = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "skip_prk_steps": True,
    "set_alpha_to_one": False, "clip_sample": False, "trained_betas": None, "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0",
}  # fmt: skip


def build(name, **options):
    return getattr(schedulers, name)(**options)


def seeded(seed=0, shape=(2, 3, 4, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(scheduler, x, t):
    return scheduler.step(scheduler.scale_model_input(x, t).tanh(), t, x).prev_sample


# configuration and files


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_of_the_reference_loads_and_the_reverse(name, tmp_path):
    ref = getattr(diffusers, name)(num_train_timesteps=500, beta_end=0.03)
    ref.save_pretrained(tmp_path / "ref" / "scheduler")
    mine = getattr(schedulers, name).from_pretrained(tmp_path / "ref", subfolder="scheduler")
    shown = {k: v for k, v in ref.config.items() if not k.startswith("_")}
    assert mine.config == shown
    assert repr(mine) == repr(ref)
    mine.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "scheduler_config.json").read_text() == (tmp_path / "ref/scheduler/scheduler_config.json").read_text()
    back = getattr(diffusers, name).from_pretrained(tmp_path / "mine")
    assert {k: v for k, v in back.config.items() if not k.startswith("_")} == shown


@pytest.mark.parametrize("name", KNOWN)
def test_the_config_of_another_class_gives_what_the_reference_gives(name):
    mine, ref = getattr(schedulers, name).from_config(SD), getattr(diffusers, name).from_config(SD)
    assert mine.config == {k: v for k, v in ref.config.items() if not k.startswith("_")}
    mine.set_timesteps(10)
    ref.set_timesteps(10)
    assert torch.equal(mine.timesteps, ref.timesteps)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "EulerDiscreteScheduler"])
def test_switching_there_and_back_restores_hidden_values(name):
    first = build("EulerDiscreteScheduler", use_karras_sigmas=True, sigma_max=20.0, beta_schedule="scaled_linear")
    there = getattr(schedulers, name).from_config(first.config)
    assert there.config["sigma_max"] == 20.0
    back = schedulers.EulerDiscreteScheduler.from_config(there.config)
    assert back.config == first.config
    if name in NEW:
        return
    reference = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=20.0, beta_schedule="scaled_linear")
    assert set(there.config) == {k for k in getattr(diffusers, name).from_config(reference.config).config if k[0] != "_"}


def test_a_silent_default_does_not_travel():
    heun = schedulers.HeunDiscreteScheduler.from_config(build("EulerDiscreteScheduler").config)
    assert (heun.config.beta_start, heun.config.beta_end) == (0.00085, 0.012)


def test_a_hidden_switch_stays_off():
    heun = build("EulerAncestralDiscreteScheduler").from_config({"clip_sample": True, "thresholding": True, "use_karras_sigmas": True})
    plain = build("EulerAncestralDiscreteScheduler")
    for scheduler in (heun, plain):
        scheduler.set_timesteps(7)
    assert torch.equal(heun.sigmas, plain.sigmas)
    assert torch.equal(heun.limit(torch.tensor([9.0])), torch.tensor([9.0]))


def test_overrides_and_unused_options():
    scheduler, unused = schedulers.DDIMScheduler.from_config(SD, return_unused_kwargs=True, beta_end=0.5, colour="red")
    assert scheduler.config.beta_end == 0.5 and unused == {"colour": "red"}


@pytest.mark.parametrize("name", KNOWN)
def test_compatibles_are_the_references_and_the_new_ones_in_a_fixed_order(name):
    found = [c.__name__ for c in build(name).compatibles]
    known = {c.__name__ for c in getattr(diffusers, name)().compatibles}
    assert found == sorted({*known, *NEW} if len(known) > 1 else known)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0, "base_shift": 0.5}
FLOWING = [
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "ERSDEScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "RESMultistepScheduler",
    "SASolverScheduler", "UniPCMultistepScheduler",
]  # fmt: skip


@pytest.mark.parametrize("name", FLOWING)
def test_a_flow_travels_through_every_class_and_back(name):
    flow = build("FlowMatchEulerDiscreteScheduler", shift=3.0)
    for source in (FLOW, flow.config):
        there = getattr(schedulers, name).from_config(source)
        assert there.flow and there.flow_shift == 3.0
        again = getattr(schedulers, name).from_config(json.loads(there.to_json()))
        assert again.config == there.config and again.flow and again.flow_shift == 3.0
        back = schedulers.FlowMatchEulerDiscreteScheduler.from_config(there.config)
        assert back.config.shift == 3.0 and back.config.names() == flow.config.names()
    other = getattr(schedulers, name).from_config(FLOW, flow_shift=5.0)
    assert other.flow_shift == 5.0 and build(name, prediction_type="flow_prediction", flow_shift=5.0).flow_shift == 5.0
    assert not build(name).flow and "flow_shift" not in build("EulerDiscreteScheduler").config


@pytest.mark.parametrize("first", [("MiniMaxH3Scheduler", {"shift": 3.0}), ("PiflowScheduler", {"shift": 3.0, "n_grid": 4})], ids=str)
@pytest.mark.parametrize("name", FLOWING)
def test_a_shift_alone_makes_no_flow(name, first):
    kind, options = first
    special = build(kind, **options)
    for source in (special.config, dict(special.config), json.loads(special.to_json())):
        there = getattr(schedulers, name).from_config(source)
        assert not there.flow and there.config["shift"] == 3.0 and there.config.prediction_type == "epsilon"
        assert getattr(schedulers, kind).from_config(json.loads(there.to_json())).config["shift"] == 3.0
        back = getattr(schedulers, kind).from_config(there.config)
        assert all(back.config[key] == value for key, value in special.config.items())
    assert getattr(schedulers, name).from_config(build(kind).config).config == build(name).config


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"])
def test_every_configuration_of_a_flow_makes_one(kind):
    flow = build(kind, shift=3.0)
    bare = {k: v for k, v in flow.config.items() if k != "base_shift"} if kind != "FlowMatchLCMScheduler" else dict(flow.config)
    for source in (flow.config, bare, json.loads(flow.to_json())):
        there = schedulers.EulerDiscreteScheduler.from_config(source)
        assert there.flow and there.flow_shift == 3.0


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FLOWING and n != "DPMSolverMultistepInverseScheduler"])
def test_no_flows_where_they_have_no_meaning(name):
    with pytest.raises(ConfigError, match="prediction_type"):
        build(name, prediction_type="flow_prediction")


@pytest.mark.parametrize("name", NAMES)
def test_configurations_do_not_change(name):
    scheduler = build(name)
    before = dict(scheduler.config)
    scheduler.set_timesteps(9)
    torch.manual_seed(0)
    for t in scheduler.timesteps[:3]:
        step(scheduler, seeded(), t)
    assert dict(scheduler.config) == before
    with pytest.raises(AttributeError):
        scheduler.config.num_train_timesteps = 5


def test_trained_betas_of_any_kind():
    table = np.linspace(1e-4, 0.02, 1000)
    tables = [build("DDIMScheduler", trained_betas=kind(table)).betas for kind in (np.array, torch.tensor, list, tuple)]
    assert all(torch.equal(t, tables[0]) for t in tables)
    json.loads(build("DDIMScheduler", trained_betas=table).to_json())


def test_importing_the_package_of_schedulers_is_light():
    code = "import sys, darkroom.schedulers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for file in Path(schedulers.__file__).parent.glob("*.py"):
        assert not re.search(r"^(import|from) scipy", file.read_text(), re.MULTILINE)


# runs


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_an_independent_run(name):
    original = build(name)
    original.set_timesteps(6)
    alone = copy.deepcopy(original)
    x = y = z = seeded()
    torch.manual_seed(0)
    for t in original.timesteps:
        x = step(alone, x, t)
    for t in original.timesteps[:3]:
        torch.manual_seed(1)
        y = step(original, y, t)
    other = copy.copy(original)
    for scheduler in (other, original):
        torch.manual_seed(2)
        out = y
        for t in original.timesteps[3:]:
            out = step(scheduler, out, t)
        z = out if scheduler is other else z
    assert torch.equal(z, out)
    other.set_timesteps(4)
    assert len(original.timesteps) != len(other.timesteps)


@pytest.mark.parametrize("name", NAMES)
def test_schedulers_can_be_sent_to_another_process(name):
    scheduler = build(name)
    scheduler.set_timesteps(5)
    twin = pickle.loads(pickle.dumps(scheduler))
    assert repr(twin) == repr(scheduler) and torch.equal(twin.timesteps, scheduler.timesteps)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_equals_the_first(name):
    scheduler, results = build(name), []
    for _ in range(2):
        scheduler.set_timesteps(5)
        torch.manual_seed(0)
        x = seeded()
        for t in scheduler.timesteps:
            x = step(scheduler, x, t)
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_tuples(name):
    scheduler = build(name)
    scheduler.set_timesteps(5)
    x, t = seeded(), scheduler.timesteps[0]
    torch.manual_seed(0)
    result = scheduler.step(scheduler.scale_model_input(x, t), t, x)
    scheduler.set_timesteps(5)
    torch.manual_seed(0)
    plain = scheduler.step(scheduler.scale_model_input(x, t), t, x, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], result.prev_sample) and len(plain) == len(result)


@pytest.mark.parametrize("name", NAMES)
def test_x0_and_eps_undo_the_noise(name):
    for prediction in ("epsilon", "v_prediction"):
        scheduler = build(name, prediction_type=prediction)
        scheduler.set_timesteps(8)
        x0, eps, t = seeded(1), seeded(2), scheduler.timesteps[3]
        alpha, sigma = scheduler.signal_and_noise(t, x0)
        assert torch.allclose(alpha**2 + sigma**2, torch.ones(()), atol=1e-6)  # flows: in test_mathematics
        x = alpha * x0 + sigma * eps
        out = eps if prediction == "epsilon" else scheduler.get_velocity(x0, eps, t[None])
        got = scheduler.x0_and_eps(x, out, alpha, sigma)
        assert torch.allclose(got[0], x0, atol=1e-4) and torch.allclose(got[1], eps, atol=1e-4)


def test_the_weights_of_lms_are_integrals():
    lms = build("LMSDiscreteScheduler")
    lms.sigmas = torch.tensor([8.0, 5.0, 3.0, 2.0, 1.0])
    for order in (1, 2, 3, 4):
        weights = [lms.get_lms_coefficient(order, 3, k) for k in range(order)]
        nodes = np.array([2.0, 3.0, 5.0, 8.0][:order])
        for power in range(order):  # exact on every polynomial of that degree
            assert np.isclose(np.dot(weights, nodes**power), (1.0 - 2.0 ** (power + 1)) / (power + 1))


@pytest.mark.parametrize("name", NAMES)
def test_steps_read_nothing_back_from_the_device(name):
    """Tensors on the meta device have no values: whatever would wait for a GPU to read one fails here."""
    if name == SDE:
        return  # a Brownian tree is values
    options = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") and name not in INVERSE else {}
    scheduler = build(name, **options)
    scheduler.set_timesteps(12, device="meta")
    x = seeded().to("meta")
    for t in scheduler.timesteps:
        x = step(scheduler, x, t)
        assert x.device.type == "meta"
    if hasattr(scheduler, "sigmas"):
        scheduler.set_begin_index(3)
        assert scheduler.add_noise(x, x, scheduler.timesteps[3:4]).shape == x.shape


# random numbers


def test_rows_of_a_batch_are_their_own_seeds():
    rows = [randn((1, 4), torch.Generator().manual_seed(s)) for s in (1, 2, 3)]
    batch = randn((3, 4), [torch.Generator().manual_seed(s) for s in (1, 2, 3)])
    assert torch.equal(batch, torch.cat(rows))
    assert torch.equal(randn((3, 4), [torch.Generator().manual_seed(1)]), randn((3, 4), torch.Generator().manual_seed(1)))


def test_too_few_generators():
    with pytest.raises(InputError, match="generator"):
        randn((3, 4), [torch.Generator(), torch.Generator()])


# errors

BAD = [
    ("DDIMScheduler", {"num_train_timesteps": 0}, "num_train_timesteps"),
    ("DDIMScheduler", {"num_train_timesteps": -5}, "num_train_timesteps"),
    ("DDIMScheduler", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
    ("DDIMScheduler", {"num_train_timesteps": "many"}, "num_train_timesteps"),
    ("DDIMScheduler", {"beta_schedule": "parabolic"}, "beta_schedule"),
    ("DDIMScheduler", {"beta_schedule": None}, "beta_schedule"),
    ("DDIMScheduler", {"beta_schedule": float("nan")}, "beta_schedule"),
    ("DDIMScheduler", {"beta_start": float("nan")}, "beta_start"),
    ("DDIMScheduler", {"beta_end": float("inf")}, "beta_end"),
    ("DDIMScheduler", {"beta_end": 3.0}, "beta_end"),
    ("DDIMScheduler", {"trained_betas": [0.1, -0.2]}, "trained_betas"),
    ("DDIMScheduler", {"prediction_type": "noise"}, "prediction_type"),
    ("DDIMScheduler", {"timestep_spacing": "random"}, "timestep_spacing"),
    ("DDIMScheduler", {"clip_sample": "yes"}, "clip_sample"),
    ("DDIMScheduler", {"steps_ofset": 1}, "steps_ofset"),
    ("DDPMScheduler", {"variance_type": "small"}, "variance_type"),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "one"}, "final_sigmas_type"),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type"),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas and use_beta_sigmas"),
    ("EulerDiscreteScheduler", {"sigma_min": 0.0, "use_exponential_sigmas": True}, "sigma_min"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": {}}, "algorithm_type"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "ode"}, "algorithm_type"),
    ("DPMSolverMultistepScheduler", {"solver_type": "euler"}, "solver_type"),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type"),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "flow_shift": 0.0}, "flow_shift"),
    ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "flow_shift": -3.0}, "flow_shift"),
    ("EulerDiscreteScheduler", {"prediction_type": "flow_prediction", "flow_shift": "much"}, "flow_shift"),
    ("DPMSolverMultistepInverseScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
    ("DPMSolverMultistepInverseScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, "algorithm_type"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type"),
    ("DPMSolverSinglestepScheduler", {"solver_order": 4}, "solver_order"),
    ("DEISMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
    ("UniPCMultistepScheduler", {"solver_order": 0}, "solver_order"),
    ("UniPCMultistepScheduler", {"solver_type": "bh3"}, "solver_type"),
    ("UniPCMultistepScheduler", {"shift_terminal": 0.1}, "shift_terminal"),
    ("UniPCMultistepScheduler", {"solver_p": "euler"}, "solver_p"),
    ("UniPCMultistepScheduler", {"disable_corrector": 3}, "disable_corrector"),
    ("SASolverScheduler", {"predictor_order": 5}, "predictor_order"),
    ("SASolverScheduler", {"corrector_order": 0}, "corrector_order"),
    ("SASolverScheduler", {"tau_func": 0.5}, "tau_func"),
    ("DDIMInverseScheduler", {"timestep_spacing": "linspace"}, "timestep_spacing"),
    ("DPMSolverSDEScheduler", {"noise_sampler_seed": 0.5}, "noise_sampler_seed"),
    ("ERSDEScheduler", {"noise_scale": "loud"}, "noise_scale"),
    ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "use_karras_sigmas and use_exponential_sigmas"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "field"), BAD)
def test_options_without_meaning_are_named(name, options, field):
    with pytest.raises(ConfigError, match=field):
        build(name, **options)
    if "steps_ofset" not in options:  # from a file, keys of other classes are kept instead
        with pytest.raises(ConfigError, match=field):
            getattr(schedulers, name).from_config(options)


def test_a_configuration_without_a_table():
    class Untabled(schedulers.Scheduler):
        @dataclass(frozen=True, eq=False, repr=False)
        class Config(BaseConfig):
            temperature: float = 1.0

        def set_timesteps(self, steps):
            self._install(np.arange(self._steps(steps))[::-1].copy(), None)

    scheduler = Untabled.from_config({"num_train_timesteps": 5, "temperature": 0.5})
    assert scheduler
    scheduler.set_timesteps(2000)
    assert len(scheduler) == 2000 and scheduler.config == {"temperature": 0.5, "num_train_timesteps": 5}
    with pytest.raises(InputError, match="num_inference_steps"):
        scheduler.set_timesteps(0)
    with pytest.raises(ConfigError, match="temperature"):
        Untabled(temperature="hot")


@pytest.mark.parametrize("steps", [0, -3, 1001, None, 2.5, "ten"])
@pytest.mark.parametrize("name", NAMES)
def test_impossible_numbers_of_steps(name, steps):
    with pytest.raises(InputError, match="num_inference_steps"):
        build(name).set_timesteps(steps)


CONFLICTS = [
    ("EulerDiscreteScheduler", {}, {"num_inference_steps": 5, "timesteps": [9, 5]}),
    ("EulerDiscreteScheduler", {}, {"timesteps": [9, 5], "sigmas": [3.0, 0.0]}),
    ("EulerDiscreteScheduler", {}, {}),
    ("EulerDiscreteScheduler", {}, {"timesteps": []}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"timesteps": [9, 5]}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, {"timesteps": [9, 5]}),
    ("HeunDiscreteScheduler", {"use_beta_sigmas": True}, {"timesteps": [9, 5]}),
    ("HeunDiscreteScheduler", {}, {"num_inference_steps": 5, "timesteps": [9, 5]}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, {"timesteps": [9, 5]}),
    ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, {"timesteps": [9, 5]}),
    ("DPMSolverMultistepScheduler", {}, {"num_inference_steps": 5, "mu": 0.5}),
    ("DDPMScheduler", {}, {"num_inference_steps": 5, "timesteps": [9, 5]}),
    ("DDPMScheduler", {}, {"timesteps": [5, 9]}),
    ("DDPMScheduler", {}, {"timesteps": [1000, 9]}),
    ("DDPMScheduler", {}, {"timesteps": [9, -1]}),
    ("PNDMScheduler", {}, {"num_inference_steps": 3}),
    ("DEISMultistepScheduler", {}, {"num_inference_steps": 5, "mu": 0.5}),
    ("DPMSolverSinglestepScheduler", {}, {"num_inference_steps": 5, "timesteps": [9, 5]}),
    ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}, {"timesteps": [9, 5]}),
    ("UniPCMultistepScheduler", {}, {"sigmas": [0.9, 0.5]}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "use_dynamic_shifting": True}, {"num_inference_steps": 5}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "use_karras_sigmas": True}, {"sigmas": [0.9, 0.5]}),
    ("RESMultistepScheduler", {}, {"sigmas": [0.9, 0.5]}),
    ("RESMultistepScheduler", {}, {"num_inference_steps": 5, "mu": 0.5}),
]


@pytest.mark.parametrize(("name", "options", "call"), CONFLICTS)
def test_schedules_that_contradict(name, options, call):
    with pytest.raises(InputError, match="set_timesteps"):
        build(name, **options).set_timesteps(**call)


MULTISTEP = ["DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler", "UniPCMultistepScheduler", *NEW]


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", *MULTISTEP, *INVERSE])
def test_a_step_before_the_schedule(name):
    with pytest.raises(InputError, match="set_timesteps"):
        build(name).step(seeded(), 5, seeded())


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_positions_are_no_timesteps(name):
    scheduler = build(name)
    scheduler.set_timesteps(5)
    for wrong in (3, torch.tensor(3), 2.5):
        with pytest.raises(InputError, match="timestep"):
            scheduler.step(seeded(), wrong, seeded())


def test_a_run_ends():
    scheduler = build("EulerDiscreteScheduler")
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        step(scheduler, seeded(), t)
    with pytest.raises(InputError, match="over"):
        step(scheduler, seeded(), scheduler.timesteps[1])


def test_two_sources_of_noise():
    scheduler = build("DDIMScheduler")
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match="variance_noise"):
        scheduler.step(seeded(), 500, seeded(), eta=1.0, generator=torch.Generator(), variance_noise=seeded())


def test_a_variance_that_is_missing():
    scheduler = build("DDPMScheduler", variance_type="learned_range")
    with pytest.raises(InputError, match="channels"):
        scheduler.step(seeded(), 500, seeded())


def test_a_folder_without_a_scheduler(tmp_path):
    with pytest.raises(CheckpointError):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"beta_end": NaN}')
    with pytest.raises(DarkroomError):
        schedulers.DDIMScheduler.from_pretrained(tmp_path)


# where the reference is wrong


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_noise_grows_with_the_timestep_before_a_run(name):
    """The reference's tables of DPM-Solver run the other way than its timesteps until `set_timesteps`."""
    scheduler, euler = build(name, beta_start=1e-4, beta_end=0.02), build("EulerDiscreteScheduler")
    alpha, sigma = scheduler.signal_and_noise(torch.tensor([10, 990]), seeded())
    assert alpha[0] > 0.99 and alpha[1] < 0.01
    assert torch.allclose(sigma, euler.signal_and_noise(torch.tensor([10, 990]), seeded())[1])


def test_euler_velocity_is_the_one_of_ddpm():
    """The reference looks alpha bar up at the position instead of the timestep."""
    t = torch.tensor([17, 930])
    got = build("EulerDiscreteScheduler").get_velocity(seeded(1), seeded(2), t)
    assert torch.allclose(got, build("DDPMScheduler").get_velocity(seeded(1), seeded(2), t), atol=1e-5)


def test_large_log_variance_is_a_number():
    """The reference takes the square root of a negative logarithm."""
    results = []
    for kind in ("fixed_large", "fixed_large_log"):
        scheduler = build("DDPMScheduler", variance_type=kind)
        results.append(scheduler.step(seeded(1), 500, seeded(2), generator=torch.Generator().manual_seed(0)).prev_sample)
    assert torch.equal(*results)


def test_a_doubled_first_timestep_is_not_skipped():
    """The reference begins at the second step there, and fails after the last timestep."""
    scheduler = build("DPMSolverMultistepScheduler", beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    x = seeded()
    for t in scheduler.timesteps:
        x = step(scheduler, x, t)
    assert scheduler.step_index == 10 and x.isfinite().all()


def test_third_order_sde_with_noise_prediction():
    """The reference has no formula. The drift of the SDE is twice that of the ODE, at every order."""
    zero, results = torch.zeros(2, 3, 4, 4), {}
    for kind in ("dpmsolver", "sde-dpmsolver"):
        scheduler = build("DPMSolverMultistepScheduler", algorithm_type=kind, solver_order=3, final_sigmas_type="sigma_min")
        scheduler.set_timesteps(20)
        for x, history in ((seeded(1), (zero, zero, zero)), (seeded(1), (seeded(2), seeded(3), seeded(4)))):
            run = copy.copy(scheduler)
            run.step_index, run.model_outputs = 5, history[:2]
            prev = run.step(history[2], run.timesteps[5], x, variance_noise=zero).prev_sample
            results.setdefault(kind, []).append(prev)
    (base, ode), (same, sde) = results["dpmsolver"], results["sde-dpmsolver"]
    assert torch.allclose(base, same) and torch.allclose(sde - base, 2 * (ode - base), atol=1e-6)
    assert (ode - base).abs().max() > 1e-3


@pytest.mark.parametrize("name", FLOWING)
@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta"])
def test_sigma_schedules_of_flows(name, schedule):
    """The reference puts noise-to-signal ratios above 1 on a path that ends at 1, but in UniPC with Karras sigmas, whose rule this is."""
    if name == "EulerAncestralDiscreteScheduler":
        return
    kind, reference = getattr(schedulers, name), diffusers.UniPCMultistepScheduler(use_karras_sigmas=True, use_flow_sigmas=True)
    scheduler = kind.from_config(
        {"prediction_type": "flow_prediction", f"use_{schedule}_sigmas": True, "beta_start": 1e-4, "beta_end": 0.02}
    )
    scheduler.set_timesteps(10)
    reference.set_timesteps(10)
    x = seeded()
    if schedule == "karras" and scheduler.order == 1:
        assert torch.allclose(scheduler.sigmas[:-1], reference.sigmas[:-1])
    for t in scheduler.timesteps:
        x = step(scheduler, x, t)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
        ("UniPCMultistepScheduler", {"lower_order_final": False}),
        (
            "UniPCMultistepScheduler",
            {"lower_order_final": False, "solver_order": 3, "final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        ),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min", "use_exponential_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun", "final_sigmas_type": "sigma_min", "use_exponential_sigmas": True}),
    ],
)
def test_runs_that_the_reference_ends_with_no_number(name, options):
    """Its last step divides zero by zero, or infinity by infinity."""
    ends = []
    for library in (schedulers, diffusers):
        scheduler, x = getattr(library, name)(**options), seeded()
        scheduler.set_timesteps(20)
        for t in scheduler.timesteps:
            x = step(scheduler, x, t)
        ends.append(x)
    assert ends[0].isfinite().all() and not ends[1].isfinite().all()
