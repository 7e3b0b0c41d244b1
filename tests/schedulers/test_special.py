"""Schedulers of single model families, and those of tokens: side by side with the reference, and what must hold without it."""

from __future__ import annotations
import copy
import inspect
import itertools
import pickle
import warnings
import diffusers
import numpy as np
import pytest
import torch
from families.samples import SHAPE, close, network, seeded
from darkroom import schedulers
from darkroom.config import freeze
from darkroom.errors import ConfigError, InputError

NEEDED = {
    "AmusedScheduler": {"mask_token_id": 20},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 2.5, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 21},
}  # fmt: skip
TOKENS = ("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler", "VQDiffusionScheduler")
NAMES = [
    *TOKENS, "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "HeliosDMDScheduler", "HeliosScheduler",
    "MiniMaxH3Scheduler", "PiflowScheduler", "RFD4ProteinaScheduler", "RePaintScheduler", "UnCLIPScheduler",
]  # fmt: skip


def build(name, **options):
    return getattr(schedulers, name)(**NEEDED.get(name, {}) | options)


def pair(name, **options):
    options = NEEDED.get(name, {}) | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(schedulers, name)(**options), getattr(diffusers, name)(**options)


def ready(name, *args, options=None, **kwargs):
    mine, ref = pair(name, **(options or {}))
    for scheduler in (mine, ref):
        scheduler.set_timesteps(*args, **kwargs)
    close(mine.timesteps, ref.timesteps)
    return mine, ref


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


def same(got, want):
    """Two results of `step`, field by field."""
    assert [k for k in want if want[k] is not None] == list(got)
    for key in got:
        close(got[key], want[key]) if isinstance(want[key], torch.Tensor) else None
    return got.prev_sample, want.prev_sample


def grid(**axes):
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


# the public surface


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_defaults_are_the_references(name):
    mine, ref = getattr(schedulers, name), getattr(diffusers, name)
    expected = list(inspect.signature(ref.__init__).parameters.values())[1:]
    got = inspect.signature(mine).parameters.values()
    assert [(p.name, p.default) for p in got] == [(p.name, freeze(p.default)) for p in expected]
    for method in (
        "set_timesteps",
        "step",
        "add_noise",
        "scale_noise",
        "undo_step",
        "step_correct",
        "q_posterior",
        "convert_flow_pred_to_x0",
    ):
        if hasattr(ref, method):
            got, want = (list(inspect.signature(getattr(c, method)).parameters) for c in (mine, ref))
            assert got == want
    assert mine.order == getattr(ref, "order", 1)


@pytest.mark.parametrize("name", NAMES)
def test_files_go_both_ways(name, tmp_path):
    mine, ref = pair(name)
    ref.save_pretrained(tmp_path / "ref")
    mine.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine/scheduler_config.json").read_text() == (tmp_path / "ref/scheduler_config.json").read_text()
    shown = {k: v for k, v in ref.config.items() if not k.startswith("_")}
    assert getattr(schedulers, name).from_pretrained(tmp_path / "ref").config == shown
    assert {k: freeze(v) for k, v in getattr(diffusers, name).from_pretrained(tmp_path / "mine").config.items() if k[0] != "_"} == {
        k: freeze(v) for k, v in shown.items()
    }
    assert repr(pickle.loads(pickle.dumps(mine))) == repr(mine)
    assert [c.__name__ for c in mine.compatibles if c.__name__ == name] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_can_pass_through_and_come_back(name):
    there = schedulers.DDIMScheduler.from_config(build(name).config)
    assert getattr(schedulers, name).from_config(there.config).config == build(name).config


# side by side


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", grid(variance_type=["fixed_small_log", "learned_range"], prediction_type=["epsilon", "sample"], clip_sample=[True, False])
)
def test_unclip(options, dtype):
    for steps, whole in ((10, False), (25, True)):
        mine, ref = ready("UnCLIPScheduler", steps, options={**options, "clip_sample_range": 0.8})
        x = y = seeded(dtype=dtype)
        one, two = rng(), rng()
        for t, later in zip(ref.timesteps, [*ref.timesteps[1:], None]):
            later = None if whole else later
            a, b = network(x, t), network(y, t)
            if options["variance_type"] == "learned_range":
                a, b = torch.cat([a, x.tanh()], 1), torch.cat([b, y.tanh()], 1)
            x, y = same(mine.step(a, t, x, later, one), ref.step(b, int(t), y, later, two))
        close(mine.add_noise(seeded(1), seeded(2), torch.tensor([3, 700])), ref.add_noise(seeded(1), seeded(2), torch.tensor([3, 700])))


COGS = [
    *grid(prediction_type=["epsilon", "sample", "v_prediction"], timestep_spacing=["linspace", "leading", "trailing"]),
    *grid(set_alpha_to_one=[False], prediction_type=["epsilon", "v_prediction"]),
    *grid(beta_schedule=["linear", "squaredcos_cap_v2"], snr_shift_scale=[1.0, 3.0], prediction_type=["v_prediction"]),
    *grid(rescale_betas_zero_snr=[True], prediction_type=["v_prediction"], timestep_spacing=["trailing"], beta_schedule=["linear", "scaled_linear"]),
    {"trained_betas": np.linspace(1e-4, 0.03, 1000), "steps_offset": 1},
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
def test_cogvideox(name, dtype):
    for options, steps in zip(COGS, itertools.cycle([10, 25])):
        mine, ref = ready(name, steps, options=options)
        close(mine.alphas_cumprod, ref.alphas_cumprod)
        x = y = seeded(dtype=dtype)
        t = torch.tensor([3, 700])
        close(mine.add_noise(x, seeded(2, dtype=dtype), t), ref.add_noise(y, seeded(2, dtype=dtype), t))
        close(mine.get_velocity(x, seeded(2, dtype=dtype), t), ref.get_velocity(y, seeded(2, dtype=dtype), t))
        one, two, old, before = rng(), rng(), (None, None), None
        for t in ref.timesteps:
            a, b = network(x, t), network(y, t)
            if name == "CogVideoXDDIMScheduler":
                x, y = same(mine.step(a, t, x), ref.step(b, t, y))
                continue
            got, want = mine.step(a, old[0], t, before, x, generator=one), ref.step(b, old[1], int(t), before, y, generator=two)
            close(got[0], want[0])
            close(got[1], want[1])
            (x, y), old, before = (got[0], want[0]), (got[1], want[1]), t


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("call", [{"num_inference_steps": 10}, {"num_inference_steps": 25}, {"timesteps": [1.0, 0.7, 0.31, 0.1, 0.0]}])
@pytest.mark.parametrize("scaler", [1.0, 0.6, 2.0])
def test_wuerstchen(scaler, call, dtype):
    mine, ref = ready("DDPMWuerstchenScheduler", options={"scaler": scaler}, **call)
    x = y = seeded(dtype=dtype)
    t = torch.tensor([0.2, 0.95])
    close(mine.add_noise(x, seeded(2, dtype=dtype), t), ref.add_noise(y, seeded(2, dtype=dtype), t))
    one, two = ([rng(1), rng(2)] for _ in range(2))
    for t in ref.timesteps[:-1]:
        t = t.expand(2).to(dtype)
        x, y = same(mine.step(network(x, t[0]), t, x, one), ref.step(network(y, t[0]), t, y, two))


@pytest.mark.parametrize(
    "options", [*grid(eta=[0.0, 0.7], clip_sample=[True, False]), {"trained_betas": np.linspace(1e-4, 0.03, 1000), "eta": 1.0}]
)
def test_repaint(options):
    for steps, length, times in ((10, 3, 2), (25, 5, 3), (7, 10, 10)):
        mine, ref = ready("RePaintScheduler", steps, length, times, options=options)
        x = y = seeded()
        image, mask = seeded(4).tanh(), (seeded(5) > 0).float()
        one, two, last = rng(), rng(), 1000
        for t in ref.timesteps:
            if t < last:
                x, y = same(mine.step(network(x, t), t, x, image, mask, one), ref.step(network(y, t), t, y, image, mask, two))
            else:
                x, y = mine.undo_step(x, last, one), ref.undo_step(y, last, two)
                close(x, y)
            last = t


PYRAMIDS = [
    *grid(solver_order=[1, 2, 3], solver_type=["bh1", "bh2"], lower_order_final=[True, False]),
    *grid(prediction_type=["epsilon", "sample", "v_prediction"], predict_x0=[True, False]),
    *grid(use_flow_sigmas=[False], prediction_type=["flow_prediction", "epsilon"]),
    *grid(use_dynamic_shifting=[True], time_shift_type=["linear", "exponential"], scheduler_type=["unipc", "euler"]),
    *grid(stages=[1], stage_range=[[0, 1]], shift=[1.0, 3.0], scheduler_type=["euler"], time_shift_type=["linear", "exponential"]),
    *grid(stages=[2], stage_range=[[0, 0.4, 1]], gamma=[0.5], shift=[1.0, 5.0], disable_corrector=[[], [0, 2]], num_train_timesteps=[500]),
    {"solver_type": "heun"}, {"scheduler_type": "dmd"},
]  # fmt: skip


def videos(mine, ref, steps, x, y, stage, **step):
    if mine.config.get("scheduler_type") == "dmd":
        return x, y
    for i, t in enumerate(ref.timesteps):
        options = {k: v[i] if isinstance(v, list) else v for k, v in step.items()}
        x, y = same(mine.step(network(x, t), t, x, **options), ref.step(network(y, t), t, y, **options))
    return x, y


@pytest.mark.parametrize("options", PYRAMIDS)
def test_helios(options):
    mine, ref = pair("HeliosScheduler", **options)
    for table in ("timestep_ratios", "start_sigmas", "end_sigmas", "ori_start_sigmas", "timesteps_per_stage", "sigmas_per_stage"):
        a, b = getattr(mine, table), getattr(ref, table)
        assert list(a) == list(b) and all(np.allclose(np.asarray(a[k]), np.asarray(b[k]), rtol=1e-12) for k in b)
    close(mine.timesteps, ref.timesteps)
    close(mine.sigmas, ref.sigmas)
    assert (mine.sigma_min, mine.sigma_max) == (ref.sigma_min, ref.sigma_max)
    x = y = seeded(shape=(2, 3, 2, 4, 4), dtype=torch.bfloat16 if options.get("solver_order") == 2 else torch.float32)
    for stage in range(options.get("stages", 3)):
        for scheduler in (mine, ref):
            scheduler.set_timesteps(10 + stage, stage, mu=0.8)
        close(mine.timesteps, ref.timesteps)
        close(mine.sigmas, ref.sigmas)
        x, y = videos(mine, ref, 10, x, y, stage)


@pytest.mark.parametrize("options", [{}, {"use_dynamic_shifting": True}, {"stages": 1, "stage_range": [0, 1], "shift": 3.0}])
def test_helios_dmd(options):
    mine, ref = pair("HeliosDMDScheduler", **options)
    x = y = seeded(shape=(2, 3, 2, 4, 4))
    noise = seeded(8, shape=x.shape)
    for stage, amplify in itertools.product(range(options.get("stages", 3)), (False, True)):
        for scheduler in (mine, ref):
            scheduler.set_timesteps(2, stage, mu=0.8, is_amplify_first_chunk=amplify)
        close(mine.timesteps, ref.timesteps)
        close(mine.sigmas, ref.sigmas)
        steps = list(range(len(ref.timesteps)))
        known = {"dmd_noisy_tensor": noise, "dmd_sigmas": ref.sigmas, "dmd_timesteps": ref.timesteps, "all_timesteps": ref.timesteps}
        x, y = videos(mine, ref, 2, x, y, stage, cur_sampling_step=steps, **known)


def test_helios_with_another_predictor():
    first = {"stages": 1, "stage_range": [0, 1]}
    mine = build("HeliosScheduler", solver_p=schedulers.FlowMatchEulerDiscreteScheduler(), **first)
    ref = diffusers.HeliosScheduler(solver_p=diffusers.FlowMatchEulerDiscreteScheduler(), **first)
    for scheduler in (mine, ref):
        scheduler.set_timesteps(6)
        scheduler.solver_p.set_timesteps(6)
        scheduler.solver_p.set_begin_index(0)
    x = y = seeded(shape=(1, 3, 2, 4, 4))
    videos(mine, ref, 6, x, y, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [*grid(shift=[1.0, 5.0], n_grid=[2, 10], final_step_size_scale=[0.5, 1.0]), {"num_policy_substeps": 16, "eps": 1e-4}]
)
def test_piflow(options, dtype):
    for steps, begin in ((4, 0), (10, 0), (8, 3)):
        mine, ref = ready("PiflowScheduler", steps, options=options)
        close(mine.sigmas, ref.sigmas)
        x = y = seeded(shape=(2, 5, 3), dtype=dtype)
        if begin:
            mine.set_begin_index(begin)
            ref.set_begin_index(begin)
        for t in ref.timesteps[begin:]:
            a, b = (torch.cat([network(v * (1 + 0.1 * k), t) for k in range(ref.config.n_grid)], -1) for v in (x, y))
            x, y = same(mine.step(a, t, x), ref.step(b, float(t), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("call", [{"num_inference_steps": 10}, {"num_inference_steps": 25}, {"sigmas": [1.0, 0.4, 0.05, 0.0]}])
def test_minimax(call, dtype):
    for shift, begin in ((12.0, 0), (1.0, 2), (1e7, 0)):
        mine, ref = ready("MiniMaxH3Scheduler", options={"shift": shift}, **call)
        close(mine.sigmas, ref.sigmas)
        assert mine.num_inference_steps == ref.num_inference_steps and mine.shift == ref.shift
        x = y = seeded(dtype=dtype)
        for t in (0.25, torch.tensor(0.25), torch.tensor([0.1, 1.0])):
            close(mine.scale_noise(x, t, seeded(3, dtype=dtype)), ref.scale_noise(x, t, seeded(3, dtype=dtype)))
        for t in ref.timesteps[begin:]:
            x, y = same(mine.step(network(x, t), t, x), ref.step(network(y, t), float(t), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", grid(schedule_mode=["log", "power"], noise_mode=["1/t", "tan"], tail_steps=[0, 3], tail_step_multiplier=[2, 3])
)
def test_rfd4(options, dtype):
    mask = seeded(5, (2, 7)) > -0.5
    for steps, start in ((10, None), (25, 0.4), (12, 0.0)):
        mine, ref = ready("RFD4ProteinaScheduler", steps, start_time=start, options=options)
        x = y = seeded(shape=(2, 7, 3), dtype=dtype)
        close(
            mine.add_noise(x, seeded(2, x.shape, dtype), torch.tensor([0.2, 0.9])),
            ref.add_noise(x, seeded(2, x.shape, dtype), torch.tensor([0.2, 0.9])),
        )
        one, two = ([rng(1), rng(2)] for _ in range(2))
        for t in ref.timesteps:
            x, y = same(mine.step(network(x, t), t, x, mask, one), ref.step(network(y, t), t, y, mask, two))


def logits(seed, shape=(3, 16, 20), scale=3.0, dtype=torch.float32):
    return (scale * seeded(seed, shape)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"alpha_cum_start": 0.99, "alpha_cum_end": 0.01, "gamma_cum_start": 0.004, "gamma_cum_end": 0.9}])
def test_vq_diffusion(options, dtype):
    mine, ref = ready("VQDiffusionScheduler", 25, options=options)
    for table in ("log_at", "log_bt", "log_ct", "log_cumprod_at", "log_cumprod_bt", "log_cumprod_ct"):
        close(getattr(mine, table), getattr(ref, table))
    x = y = torch.full((2, 30), 20)
    one, two = rng(), rng()
    for t in ref.timesteps:
        out = logits(int(t), (2, 20, 30)).log_softmax(1).to(dtype)
        if t > 0:
            close(mine.q_posterior(out, x, t), ref.q_posterior(out, y, t))
        x, y = same(mine.step(out, t, x, one), ref.step(out, int(t), y, two))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masking_schedule", ["cosine", "linear"])
def test_amused(masking_schedule, dtype):
    for steps, temperature, shape, ratio in ((10, (2, 0), (3, 16), 1.0), (25, 3, (3, 4, 4), 1.0), (12, [1.0, 0.5], (3, 16), 0.4)):
        mine, ref = ready("AmusedScheduler", steps, temperature, options={"masking_schedule": masking_schedule})
        close(mine.temperatures, ref.temperatures)
        one, two, sizes = rng(), rng(), (3, 20, *shape[1:]) if len(shape) == 3 else (*shape, 20)
        x = y = torch.full(shape, 20)
        whole = torch.randint(20, shape, generator=rng(3))
        close(mine.add_noise(whole, mine.timesteps[4], one), ref.add_noise(whole, ref.timesteps[4], two))
        for t in ref.timesteps:
            out = logits(int(t), sizes, dtype=dtype)
            x, y = same(mine.step(out, t, x, ratio, one), ref.step(out, int(t), y, ratio, two))


BLOCKS = [
    *grid(mask_token_id=[20, None], temperature=[0.0, 0.8], threshold=[None, 0.3], editing_threshold=[None, 0.2, 0.0]),
    *grid(mask_token_id=[20, None], temperature=[1.0], top_k=[None, 4], top_p=[None, 0.6], sampling_method=["multinomial", "greedy"]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_refinement(dtype):
    for call, steps in zip(BLOCKS, itertools.cycle([5, 16, 20])):
        mine, ref = ready("BlockRefinementScheduler", steps, options={"editing_threshold": 0.5}, block_length=16)
        x = y = torch.full((3, 16), 20)
        x = y = torch.where(seeded(9, x.shape) > 1, 2, x)
        one, two = rng(), rng()
        ended = [torch.zeros(3, dtype=torch.bool)] * 2
        for i in range(steps):
            out = logits(i, (3, 16, 21), dtype=dtype)
            options = {**call, "prompt_mask": torch.arange(16) < 2 if steps == 5 else None}
            got, want = mine.step(out, i, x, generator=one, **options), ref.step(out, torch.tensor(i), y, generator=two, **options)
            x, y = same(got, want)
            text = (torch.cat([torch.ones(3, 2).long(), y], 1), want.sampled_tokens, want.transfer_index)
            ended = [s.check_eos_finished(*text, e.clone(), 7, 20, 2) for s, e in zip((mine, ref), ended)]
            assert torch.equal(*ended)
        assert torch.equal(*(s.get_num_transfer_tokens(16, steps) for s in (mine, ref)))


def test_blocks_end_and_are_masked_as_in_the_reference():
    mine, ref = pair("BlockRefinementScheduler")
    for masks, editing, edit, post, done, step in itertools.product([True, False], [True, False], [0, 1], [0, 9], [0, 1], [0, 40]):
        call = (step, masks, editing, torch.tensor([edit]).bool(), post, 3, torch.tensor([done]).bool())
        assert mine.check_block_should_continue(*call) == ref.check_block_should_continue(*call)
    text = torch.randint(19, (3, 40), generator=rng())
    valid = (torch.arange(40) < torch.tensor([[40], [33], [20]])).long()
    for prompt, length in itertools.product([0, 5], [8, 17, 100]):
        call = {"prompt_length": prompt, "block_length": length, "mask_token_id": 20}
        for a, b in zip(mine.add_noise(text, valid, generator=rng(), **call), ref.add_noise(text, valid, generator=rng(), **call)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random"])
def test_discrete_ddim(rule, dtype):
    for steps, temperature, k in ((10, 0.0, 1), (25, 0.7, 4), (5, 1.0, 99)):
        mine, ref = ready(
            "DiscreteDDIMScheduler", steps, options={"corrector_selection": rule, "corrector_k": k, "corrector_selection_tau": 0.7}
        )
        x = y = torch.randint(20, (3, 16), generator=rng(3))
        one, two = rng(), rng()
        for t in ref.timesteps:
            out = logits(int(t), dtype=dtype)
            x, y = same(
                mine.step(out, t, x, temperature=temperature, generator=one),
                ref.step(out, int(t), y, temperature=temperature, generator=two),
            )
            if t < steps - 1:
                out = logits(int(t) + 99, dtype=dtype)
                x, y = same(mine.step_correct(out, t, x, generator=one), ref.step_correct(out, t, y, generator=two))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_bound(dtype):
    for steps, bound, call in ((10, 0.1, {}), (25, 2.0, {}), (5, 0.1, {"entropy_bound": 0.7})):
        mine, ref = ready("EntropyBoundScheduler", steps, options={"entropy_bound": bound, "t_max": 1.2})
        x = y = torch.randint(20, (3, 16), generator=rng(3))
        one, two = rng(), rng()
        for t in ref.timesteps:
            out = logits(int(t), scale=5.0, dtype=dtype)
            x, y = same(mine.step(out, t, x, generator=one, **call), ref.step(out, int(t), y, generator=two, **call))


# runs


def one_step(name, scheduler, x, t, i=0):
    """One step with plausible arguments."""
    tokens = name in TOKENS
    out = logits(i, (2, 12, 20)) if tokens else network(x.cpu() if x.device.type != "meta" else torch.zeros(x.shape), 5).to(x.device)
    if tokens:
        out = out.mT.log_softmax(1) if name == "VQDiffusionScheduler" else out
        options = {"mask_token_id": 20} if name == "BlockRefinementScheduler" else {}
        return scheduler.step(out.to(x.device), i if name == "BlockRefinementScheduler" else t, x, **options).prev_sample
    if name == "CogVideoXDPMScheduler":
        return scheduler.step(out, None, t, None, x)[0]
    if name == "RePaintScheduler":
        return scheduler.step(out, t, x, x, torch.ones_like(x)).prev_sample
    if name == "PiflowScheduler":
        return scheduler.step(torch.cat([out] * 10, -1), t, x).prev_sample
    if name == "RFD4ProteinaScheduler":
        return scheduler.step(out, t, x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)).prev_sample
    if name == "DDPMWuerstchenScheduler":
        return scheduler.step(out, t.expand(len(x)), x).prev_sample
    return scheduler.step(out, t, x, **({"cur_sampling_step": i} if name == "HeliosDMDScheduler" else {})).prev_sample


def start(name, device=None):
    scheduler = build(name)
    options = {"stage_index": 1} if "Helios" in name else {}
    scheduler.set_timesteps(20 if name == "RFD4ProteinaScheduler" else 6, **options, **({"device": device} if device else {}))
    shape = {"RFD4ProteinaScheduler": (2, 4, 4), "PiflowScheduler": (2, 4, 4)}.get(name, (2, 3, 2, 4, 4) if "Helios" in name else SHAPE)
    x = torch.full((2, 12), 20) if name in TOKENS else seeded(shape=shape)
    times = scheduler.timesteps[:-1] if name == "DDPMWuerstchenScheduler" else scheduler.timesteps
    return scheduler, x % 20 if name in ("DiscreteDDIMScheduler", "EntropyBoundScheduler") else x, list(times)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_an_independent_run(name):
    original, x, times = start(name)
    whole = copy.deepcopy(original)
    for i, t in enumerate(times[:3]):
        torch.manual_seed(i)
        x = one_step(name, original, x, t, i)
    twin, results = copy.copy(original), []
    for scheduler in (twin, original):
        y = x
        for i, t in enumerate(times[3:], 3):
            torch.manual_seed(i)
            y = one_step(name, scheduler, y, t, i)
        results.append(y)
    assert torch.equal(*results)
    y = start(name)[1]
    for i, t in enumerate(times):
        torch.manual_seed(i)
        y = one_step(name, whole, y, t, i)
    assert torch.equal(y, results[0])


@pytest.mark.parametrize("name", NAMES)
def test_steps_read_nothing_back_from_the_device(name):
    """Tensors on the meta device have no values: whatever would wait for a GPU to read one fails here."""
    scheduler, x, times = start(name, "meta")
    x = x.to("meta")
    for i, t in enumerate(times):
        x = one_step(name, scheduler, x, t, i)
        assert x.device.type == "meta"


# mathematics


@pytest.mark.parametrize(
    "name", ["UnCLIPScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "RFD4ProteinaScheduler"]
)
def test_samplers_reproduce_a_gaussian(name):
    """Data N(0.4, 0.3^2), of which the best denoiser is known; RFD4's temperature factor is off."""
    mean, spread, options = 0.4, 0.3, {"clip_sample": False}
    if name in ("DDPMWuerstchenScheduler", "RFD4ProteinaScheduler"):
        options = (
            {}
            if name.startswith("DDPM")
            else {"schedule_mode": "power", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0, "tail_steps": 0}
        )
    scheduler = build(name, **options)
    scheduler.set_timesteps(1000 if name == "CogVideoXDPMScheduler" else 200)  # of its ends every step counts
    x, source, old, before = seeded(shape=(1, 20000, 1)), rng(), None, None
    times = scheduler.timesteps[:-1] if name == "DDPMWuerstchenScheduler" else scheduler.timesteps
    for i, t in enumerate(times):
        if name == "RFD4ProteinaScheduler":
            alpha, sigma = t, 1 - t
        else:
            bar = scheduler._bar(t[None], t[None])[0] if name == "DDPMWuerstchenScheduler" else scheduler.alphas_cumprod[t]
            alpha, sigma = bar**0.5, (1 - bar) ** 0.5
        x0 = mean + alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * (x - alpha * mean)
        eps = (x - alpha * x0) / sigma
        if name == "CogVideoXDPMScheduler":
            x, old = scheduler.step(eps, old, t, before, x, generator=source)
            before = t
        elif name == "RFD4ProteinaScheduler":
            x = scheduler.step((x0 - x) / sigma, t, x, torch.ones(1, 20000).bool(), source).prev_sample
        elif name == "UnCLIPScheduler":
            later = times[i + 1] if i + 1 < len(times) else None
            x = scheduler.step(eps, t, x, later, source).prev_sample
        else:
            x = scheduler.step(eps, t[None] if name == "DDPMWuerstchenScheduler" else t, x, generator=source)[0]
    assert abs(x.mean() - mean) < 0.02 and abs(x.std() - spread) < 0.02


def test_the_posterior_of_vq_diffusion_is_bayes_rule():
    scheduler = build("VQDiffusionScheduler", num_vec_classes=4, num_train_timesteps=5)
    single, so_far = [], [torch.eye(4, dtype=torch.float64)]
    for a, b, c in zip(*(t.double().exp() for t in (scheduler.log_at, scheduler.log_bt, scheduler.log_ct))):
        step = torch.full((4, 4), b.item(), dtype=torch.float64) + a * torch.eye(4)  # rows: from
        step[:, 3], step[3] = c, torch.tensor([0, 0, 0, 1.0])
        single.append(step)
        so_far.append(so_far[-1] @ step)
    p = logits(0, (1, 3, 4)).log_softmax(1)
    x = torch.tensor([[0, 1, 2, 3]])
    for t in range(1, 5):
        got = scheduler.q_posterior(p, x, t).exp()
        for place, token in enumerate(x[0]):
            joint = single[t][:, token] * so_far[t][:3] / so_far[t + 1][:3, token, None]  # x0, x_{t-1}
            want = (p[0, :, place].double().exp()[:, None] * joint).sum(0)
            assert torch.allclose(got[0, :, place].double(), want, atol=1e-4) and abs(got[0, :, place].sum() - 1) < 1e-4


def test_the_weights_of_piflow_follow_a_straight_path():
    """If all predictions are the one velocity, a step is as long as the difference of the sigmas, except the last, which ends at eps."""
    for steps in (1, 4, 9):
        scheduler = build("PiflowScheduler")
        scheduler.set_timesteps(steps)
        assert torch.allclose(scheduler._weights.sum(1), scheduler.sigmas[:-1] - scheduler.sigmas[1:], atol=1e-4)
        x0, eps = seeded(1, (2, 4, 3)), seeded(2, (2, 4, 3))
        x = eps
        for t in scheduler.timesteps:
            x = scheduler.step(torch.cat([eps - x0] * 10, -1), t, x).prev_sample
        assert torch.allclose(x, x0, atol=1e-3)


@pytest.mark.parametrize("name", ["MiniMaxH3Scheduler", "HeliosScheduler"])
def test_a_straight_path_is_followed_exactly(name):
    x0, eps = seeded(1, (2, 3, 2, 4, 4)), seeded(2, (2, 3, 2, 4, 4))
    scheduler = build(name)
    scheduler.set_timesteps(7, **({"stage_index": 0} if name == "HeliosScheduler" else {}))
    first = scheduler.sigmas[0].float()
    x, velocity = (1 - first) * x0 + first * eps, x0 - eps if name == "MiniMaxH3Scheduler" else eps - x0
    for t in scheduler.timesteps:
        x = scheduler.step(velocity, t, x).prev_sample
    assert torch.allclose(x, x0, atol=1e-4)


def test_repaint_walks_every_stretch_as_often_as_asked():
    scheduler = build("RePaintScheduler")
    scheduler.set_timesteps(100, 10, 7)
    levels = (scheduler.timesteps // 10).tolist()
    assert levels[0] == 99 and levels[-1] == 0 and all(abs(a - b) == 1 for a, b in itertools.pairwise(levels))
    falls = [a for a, b in itertools.pairwise(levels) if b < a]
    assert falls.count(5) == 7 and falls.count(85) == 7 and falls.count(95) == 1


def test_repaint_keeps_what_is_known():
    scheduler = build("RePaintScheduler", eta=1.0)
    scheduler.set_timesteps(10, 2, 2)
    image, mask, x, last = seeded(1).tanh(), (seeded(2) > 0).float(), seeded(3), 1000
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, image, mask, rng()).prev_sample if t < last else scheduler.undo_step(x, last, rng())
        last = t
    assert torch.equal(x * mask, image * mask)
    assert scheduler.add_noise(image, x, torch.tensor([5])).isfinite().all()  # the reference refuses


@pytest.mark.parametrize("name", TOKENS)
def test_runs_end_without_masks(name):
    scheduler, x, times = start(name)
    masked = [12]
    for i, t in enumerate(times):
        x = one_step(name, scheduler, x, t, i)
        masked.append((x == 20).sum(1).max().item())
    assert masked[-1] == 0 and ((x >= 0) & (x < 20)).all()
    assert name not in ("AmusedScheduler", "BlockRefinementScheduler") or masked == sorted(masked, reverse=True)


def test_what_is_certain_is_accepted_at_once():
    out, x = torch.full((1, 6, 20), -50.0).index_fill(2, torch.tensor([4]), 50.0), torch.zeros(1, 6).long()
    for name in ("EntropyBoundScheduler", "BlockRefinementScheduler"):
        assert (build(name).step(out, 0, x).prev_sample == 4).all() or name == "BlockRefinementScheduler"
    scheduler = build("BlockRefinementScheduler")
    scheduler.set_timesteps(32)
    assert (scheduler.step(out, 0, torch.full((1, 6), 20), mask_token_id=20).prev_sample == 4).all()
    assert (scheduler.step(out, 0, x).prev_sample == 4).all()


def test_the_last_step_to_uniform_tokens_is_the_prediction():
    scheduler = build("DiscreteDDIMScheduler", num_inference_steps=4)
    result = scheduler.step(logits(1), 3, torch.zeros(3, 16).long(), temperature=1.0)
    assert torch.equal(result.prev_sample, result.sampled_tokens)
    assert scheduler.step_correct(logits(1), 3, result.prev_sample).prev_sample.shape == (3, 16)  # the reference takes the logarithm of 0


# errors

BAD = [
    ("UnCLIPScheduler", {"variance_type": "learned"}, "variance_type"),
    ("UnCLIPScheduler", {"num_train_timesteps": 0}, "num_train_timesteps"),
    ("UnCLIPScheduler", {"beta_schedule": "linear"}, "beta_schedule"),
    ("CogVideoXDDIMScheduler", {"snr_shift_scale": 0.0}, "snr_shift_scale"),
    ("CogVideoXDPMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule"),
    ("DDPMWuerstchenScheduler", {"scaler": -1.0}, "scaler"),
    ("RePaintScheduler", {"eta": float("nan")}, "eta"),
    ("RePaintScheduler", {"beta_schedule": "laplace"}, "beta_schedule"),
    ("VQDiffusionScheduler", {"num_vec_classes": 1}, "num_vec_classes"),
    ("VQDiffusionScheduler", {"num_train_timesteps": 1}, "num_train_timesteps"),
    ("VQDiffusionScheduler", {"alpha_cum_start": 0.9, "gamma_cum_start": 0.9}, "gamma_cum_start"),
    ("AmusedScheduler", {"masking_schedule": "square"}, "masking_schedule"),
    ("AmusedScheduler", {"mask_token_id": "mask"}, "mask_token_id"),
    ("HeliosScheduler", {"stages": 4}, "stage_range"),
    ("HeliosScheduler", {"stage_range": [0, 0.7, 0.5, 1]}, "stage_range"),
    ("HeliosScheduler", {"thresholding": True}, "thresholding"),
    ("HeliosScheduler", {"predict_x0": False}, "predict_x0"),
    ("HeliosScheduler", {"solver_type": "bh3"}, "solver_type"),
    ("HeliosScheduler", {"use_dynamic_shifting": True, "shift": 3.0}, "shift"),
    ("HeliosDMDScheduler", {"gamma": 0.0}, "gamma"),
    ("PiflowScheduler", {"n_grid": 1}, "n_grid"),
    ("PiflowScheduler", {"final_step_size_scale": 1.5}, "final_step_size_scale"),
    ("PiflowScheduler", {"eps": 0.0}, "eps"),
    ("MiniMaxH3Scheduler", {"shift": 0.0}, "shift"),
    ("RFD4ProteinaScheduler", {"schedule_mode": "linear"}, "schedule_mode"),
    ("RFD4ProteinaScheduler", {"tail_step_multiplier": 1}, "tail_step_multiplier"),
    ("RFD4ProteinaScheduler", {"tsr_k": float("nan")}, "tsr_k"),  # an option without a default
    ("RFD4ProteinaScheduler", {"noise_mode": float("inf")}, "noise_mode"),
    ("BlockRefinementScheduler", {"block_length": 0}, "block_length"),
    ("BlockRefinementScheduler", {"num_inference_steps": 0}, "num_inference_steps"),
    ("DiscreteDDIMScheduler", {"corrector_selection": "best"}, "corrector_selection"),
    ("DiscreteDDIMScheduler", {"corrector_selection_tau": 0.0}, "corrector_selection_tau"),
    ("EntropyBoundScheduler", {"t_max": 0.0}, "t_max"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "field"), BAD)
def test_options_without_meaning_are_named(name, options, field):
    with pytest.raises((ConfigError, InputError), match=field):
        build(name, **options)


@pytest.mark.parametrize("name", NEEDED)
def test_options_that_are_missing_are_named(name):
    with pytest.raises(ConfigError, match=next(iter(NEEDED[name]))):
        getattr(schedulers, name)()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, -3, 2.5, "ten", 10**8])
def test_impossible_numbers_of_steps(name, steps):
    if steps == 10**8 and name == "RePaintScheduler":
        pytest.skip("the table bounds them, as in the reference")
    with pytest.raises(InputError, match="num_inference_steps"):
        build(name).set_timesteps(steps)


def pure(scheduler):
    """A step from pure noise, where B(h) = h is infinite; the reference gives NaN."""
    scheduler.set_timesteps(5)
    scheduler.step(seeded(), None, seeded())


CALLS = [
    ("UnCLIPScheduler", lambda s: s.set_timesteps(1)),
    ("UnCLIPScheduler", lambda s: s.__class__(variance_type="learned_range").step(seeded(), 9, seeded())),
    ("CogVideoXDDIMScheduler", lambda s: s.step(seeded(), 9, seeded())),
    ("CogVideoXDPMScheduler", lambda s: (s.set_timesteps(5), s.step(seeded(), seeded(), 800, None, seeded()))),
    ("DDPMWuerstchenScheduler", lambda s: (s.set_timesteps(5), s.step(seeded(), torch.zeros(2), seeded()))),
    ("DDPMWuerstchenScheduler", lambda s: s.set_timesteps(timesteps=[0.5])),
    ("RePaintScheduler", lambda s: s.set_timesteps(10, 0)),
    ("RePaintScheduler", lambda s: s.set_timesteps(1000, 10, 10**9)),
    ("RePaintScheduler", lambda s: (s.set_timesteps(10), s.undo_step(seeded(), 950))),
    ("AmusedScheduler", lambda s: s.step(seeded(), 3, seeded())),
    ("AmusedScheduler", lambda s: (s.set_timesteps(5), s.add_noise(torch.zeros(1, 4).long(), 7))),
    ("HeliosScheduler", lambda s: s.set_timesteps(5)),
    ("HeliosScheduler", lambda s: (s.set_timesteps(1, 0), s.step(seeded(), 1.0))),
    ("HeliosScheduler", lambda s: (s.set_timesteps(1, 0), [s.step(seeded(), 1.0, seeded()) for _ in range(2)])),
    ("HeliosScheduler", lambda s: s.__class__(use_dynamic_shifting=True).set_timesteps(5, 0)),
    ("HeliosScheduler", lambda s: pure(s.__class__(stages=1, stage_range=[0, 1], solver_type="bh1"))),
    ("PiflowScheduler", lambda s: s.set_timesteps(5, mu=1.0)),
    ("PiflowScheduler", lambda s: (s.set_timesteps(5), s.step(seeded(), 1, seeded()))),
    ("PiflowScheduler", lambda s: (s.set_timesteps(5), s.step(seeded(), s.timesteps[0], seeded()))),
    ("MiniMaxH3Scheduler", lambda s: s.set_timesteps(1)),
    ("MiniMaxH3Scheduler", lambda s: s.set_timesteps(sigmas=[0.5, 0.7, 0.0])),
    ("MiniMaxH3Scheduler", lambda s: s.set_shift(-1.0)),
    ("MiniMaxH3Scheduler", lambda s: (s.set_timesteps(5), s.step(seeded(), 1, seeded()))),
    ("RFD4ProteinaScheduler", lambda s: s.set_timesteps(10)),
    ("RFD4ProteinaScheduler", lambda s: s.set_timesteps(30, start_time=1.0)),
    ("RFD4ProteinaScheduler", lambda s: (s.set_timesteps(30), s.step(seeded(), s.timesteps[3], seeded(), torch.ones(2, 3)))),
    ("RFD4ProteinaScheduler", lambda s: s.add_noise(seeded(), seeded(), 1.5)),
    ("BlockRefinementScheduler", lambda s: s.set_timesteps(5, block_length=0)),
    ("BlockRefinementScheduler", lambda s: s.step(logits(0), 0, torch.zeros(3, 16).long(), temperature=-1.0)),
    ("BlockRefinementScheduler", lambda s: s.step(logits(0), 0, torch.zeros(3, 16).long(), temperature=1.0, top_p=0.0)),
    ("DiscreteDDIMScheduler", lambda s: s.step(logits(0), 32, torch.zeros(3, 16).long())),
    ("EntropyBoundScheduler", lambda s: s.step(logits(0), -1, torch.zeros(3, 16).long())),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CALLS)))
def test_impossible_calls(case):
    name, call = CALLS[case]
    with pytest.raises(InputError):
        call(build(name))
