"""Every guidance: its arithmetic beside the reference's on the same predictions or beside the paper's equations, and its runs in a pipeline."""

from __future__ import annotations
import copy
import math
import threading
from types import SimpleNamespace
import diffusers
import numpy as np
import pytest
import torch
from diffusers.guiders import frequency_decoupled_guidance as their_fdg
from diffusers.guiders.magnitude_aware_guidance import MagnitudeAwareGuidance
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
    _gaussian_blur_2d,
)  # fmt: skip
from families import tiny
import darkroom
from darkroom import (
    APG,
    CFG,
    FDG,
    NAG,
    PAG,
    SAG,
    SEG,
    SLG,
    TCFG,
    APGMix,
    AutoGuidance,
    CFGZeroStar,
    ConfigError,
    DDIMScheduler,
    DiffusionPipeline,
    DynamicThresholding,
    EulerDiscreteScheduler,
    InputError,
    MagnitudeAware,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)  # fmt: skip
from darkroom.core.attention import Patch, eager
from darkroom.core.guidance.fdg import from_pyramid, pyramid
from darkroom.core.guidance.nag import normalized
from darkroom.core.guidance.seg import blur_tokens
from darkroom.core.loop import one_call_per_branch
from darkroom.core.types import Branch, Conditioning, Run, Step

STEPS = 10

# ---- the same predictions through ours and theirs


def predictions(seed=0, steps=STEPS):
    """For each step what the network says with the prompt, without, and impaired: 3 x (2, 4, 8, 8)."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(steps, 1, 2, 4, 8, 8, generator=g, dtype=torch.float64)
    return shared + 0.5 * torch.randn(steps, 3, 2, 4, 8, 8, generator=g, dtype=torch.float64)


def steps_of(guidance, preds, scheduler=None, x=None):
    """What the guidance makes of each step's predictions, and how many of them it asked for."""
    cond = Conditioning(Branch({"name": torch.tensor(0)}), Branch({"name": torch.tensor(1)}))
    guidance = copy.deepcopy(guidance)
    cond = Conditioning(cond.positive, cond.negative if guidance.needs_negative else None)
    run = Run(SimpleNamespace(), 2, cond, scheduler, timesteps=torch.linspace(999, 0, len(preds)))
    for run.index, step in enumerate(preds):
        asked = []

        def denoiser(_, branches, step=step, asked=asked):
            asked += branches
            return [step[2 if isinstance(b.attend, Patch) else int(b.cond["name"])] for b in branches]

        yield guidance(Step(run, run.timesteps[run.index], x, denoiser)), len(asked)


def theirs_of(guider, preds, names=("pred_cond", "pred_uncond", "pred_cond_skip")):
    for index, step in enumerate(preds):
        guider.set_state(index, len(preds), torch.tensor(0))
        guider.prepare_inputs({})
        count = guider.num_conditions
        cfg = guider._is_cfg_enabled() if hasattr(guider, "_is_cfg_enabled") else True
        chosen = names if count == 3 else names[:count] if cfg or count == 1 else (names[0], names[2])
        table = dict(zip(names, step))
        yield guider.forward(**{name: table[name] for name in chosen}).pred, count


THEIRS = diffusers.guiders
PART = dict(start=0.25, stop=0.75)
ORIGINAL = dict(use_original_formulation=True)
PAIRS = {
    "CFG": (CFG(5.0), THEIRS.ClassifierFreeGuidance(5.0)),
    "CFG, rescaled": (CFG(5.0, 0.7), THEIRS.ClassifierFreeGuidance(5.0, 0.7)),
    "CFG, original": (CFG(5.0, **ORIGINAL), THEIRS.ClassifierFreeGuidance(5.0, **ORIGINAL)),
    "CFG, original, below 1": (CFG(0.5, **ORIGINAL), THEIRS.ClassifierFreeGuidance(0.5, **ORIGINAL)),
    "CFG, original, 0": (CFG(0.0, **ORIGINAL), THEIRS.ClassifierFreeGuidance(0.0, **ORIGINAL)),
    "CFG, 1": (CFG(1.0), THEIRS.ClassifierFreeGuidance(1.0)),
    "CFG, part": (CFG(5.0, 0.3, **PART), THEIRS.ClassifierFreeGuidance(5.0, 0.3, **PART)),
    "CFG, empty": (CFG(5.0, start=0.5, stop=0.5), THEIRS.ClassifierFreeGuidance(5.0, start=0.5, stop=0.5)),
    "APG": (APG(7.5), THEIRS.AdaptiveProjectedGuidance(7.5)),
    "APG, momentum": (
        APG(7.5, 0.2, momentum=-0.5, norm_threshold=2.5, eta=0.0),
        THEIRS.AdaptiveProjectedGuidance(7.5, -0.5, 2.5, eta=0.0, guidance_rescale=0.2),
    ),
    "APG, axes": (
        APG(7.5, momentum=0.3, norm_threshold=1.5, eta=0.4, dims=(-1, -2), **ORIGINAL),
        THEIRS.AdaptiveProjectedGuidance(7.5, 0.3, 1.5, (-1, -2), 0.4, **ORIGINAL),
    ),
    "APG, one axis": (APG(7.5, eta=0.0, dims=1), THEIRS.AdaptiveProjectedGuidance(7.5, None, 15.0, 1, 0.0)),
    "APG, no threshold, part": (
        APG(7.5, norm_threshold=0.0, eta=0.0, momentum=-0.7, **PART),
        THEIRS.AdaptiveProjectedGuidance(7.5, -0.7, 0.0, eta=0.0, **PART),
    ),
    "APGMix": (APGMix(), THEIRS.AdaptiveProjectedMixGuidance()),
    "APGMix, part": (
        APGMix(4.0, 0.5, apg_scale=8.0, momentum=0.4, norm_threshold=2.0, eta=0.3, apg_start_step=2, start=0.1, stop=0.8, **ORIGINAL),
        THEIRS.AdaptiveProjectedMixGuidance(4.0, 0.5, 8.0, 0.4, 2.0, 0.3, True, 0.1, 0.8, 2),
    ),
    "APGMix, neutral": (APGMix(apg_scale=1.0), THEIRS.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_scale=1.0)),
    "CFGZeroStar": (CFGZeroStar(5.0), THEIRS.ClassifierFreeZeroStarGuidance(5.0)),
    "CFGZeroStar, 0": (CFGZeroStar(5.0, 0.4, zero_init_steps=0), THEIRS.ClassifierFreeZeroStarGuidance(5.0, 0, 0.4)),
    "CFGZeroStar, part": (
        CFGZeroStar(5.0, zero_init_steps=4, **PART, **ORIGINAL),
        THEIRS.ClassifierFreeZeroStarGuidance(5.0, 4, **PART, **ORIGINAL),
    ),
    "TCFG": (TCFG(5.0), THEIRS.TangentialClassifierFreeGuidance(5.0)),
    "TCFG, part": (TCFG(5.0, 0.6, **PART, **ORIGINAL), THEIRS.TangentialClassifierFreeGuidance(5.0, 0.6, **PART, **ORIGINAL)),
    "MagnitudeAware": (MagnitudeAware(), MagnitudeAwareGuidance()),
    "MagnitudeAware, part": (MagnitudeAware(6.0, 0.5, alpha=2.0, **PART, **ORIGINAL), MagnitudeAwareGuidance(6.0, 2.0, 0.5, **PART, **ORIGINAL)),
    "PAG": (
        CFG(5.0, terms=[PAG(2.8, start=0.01, stop=0.2)]),
        THEIRS.PerturbedAttentionGuidance(5.0, 2.8, 0.01, 0.2, perturbed_guidance_layers=[0]),
    ),
    "PAG, parts": (
        CFG(5.0, terms=[PAG(2.0, start=0.35, stop=0.9)], start=0.2, stop=0.6, **ORIGINAL),
        THEIRS.PerturbedAttentionGuidance(5.0, 2.0, 0.35, 0.9, [0], start=0.2, stop=0.6, **ORIGINAL),
    ),
    "SEG": (
        CFG(5.0, 0.4, [SEG(2.0, start=0.01)]),
        THEIRS.SmoothedEnergyGuidance(
            5.0, 2.0, seg_guidance_layers=[0], guidance_rescale=0.4, seg_guidance_start=0.01, seg_guidance_stop=1.0
        ),
    ),
    "SEG, alone": (
        CFG(0.0, terms=[SEG(2.0, start=0.3, stop=0.8)], **ORIGINAL),
        THEIRS.SmoothedEnergyGuidance(0.0, 2.0, seg_guidance_layers=[0], seg_guidance_start=0.3, seg_guidance_stop=0.8, **ORIGINAL),
    ),
    "SLG": (CFG(5.0, terms=[SLG()]), THEIRS.SkipLayerGuidance(5.0, skip_layer_guidance_layers=[0])),
    "SLG, parts": (
        CFG(5.0, terms=[SLG(2.0, start=0.2, stop=0.9)], start=0.4, **ORIGINAL),
        THEIRS.SkipLayerGuidance(5.0, 2.0, 0.2, 0.9, [0], start=0.4, **ORIGINAL),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_predictions_give_what_the_reference_gives(name):
    ours, theirs = PAIRS[name]
    preds = predictions()
    if name.startswith("MagnitudeAware"):  # the reference's torch.norm takes no more than two axes
        preds = preds.flatten(-2)
    third = "pred_cond_seg" if name.startswith("SEG") else "pred_cond_skip"
    results = zip(steps_of(ours, preds), theirs_of(theirs, preds, ("pred_cond", "pred_uncond", third)), strict=True)
    for index, ((got, asked), (expected, count)) in enumerate(results):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
        assert asked == (1 if name.startswith("CFGZero") and index < ours.zero_init_steps else count)


@pytest.mark.parametrize("options", [{}, {"guidance_rescale": 0.5}, ORIGINAL], ids=str)
def test_autoguidance_as_the_reference_weighs_it(options):
    """There the bad version stands where the unconditional prediction does in CFG: w bad-to-good is w - 1 of good - bad."""
    preds = predictions()
    theirs = THEIRS.AutoGuidance(
        2.5, auto_guidance_layers=[0], dropout=0.1, stop=0.7, **{k: v for k, v in options.items() if k in ORIGINAL}
    )
    weight = 2.5 if options == ORIGINAL else 1.5
    bad_in_the_place_of_uncond = preds[:, [0, 2, 1]]
    ours = steps_of(CFG(1.0, terms=[AutoGuidance(weight, dropout=0.1, stop=0.7)]), preds)
    for (got, _), (expected, _) in zip(ours, theirs_of(theirs, bad_in_the_place_of_uncond), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (dict(scale=(10.0, 5.0)), dict(guidance_scales=[10.0, 5.0])),
        (dict(scale=(9.0, 4.0, 2.0), parallel_weights=0.3), dict(guidance_scales=[9.0, 4.0, 2.0], parallel_weights=0.3)),
        (dict(scale=(9.0, 4.0), parallel_weights=(0.0, 1.0), **ORIGINAL), dict(guidance_scales=[9.0, 4.0], parallel_weights=[0.0, 1.0], **ORIGINAL)),
        (dict(scale=(8.0, 3.0), rescale=0.6, **PART), dict(guidance_scales=[8.0, 3.0], guidance_rescale=0.6, **PART)),
    ],
    ids=str,
)  # fmt: skip
def test_fdg_on_the_same_pyramid(ours, theirs, monkeypatch):
    """The reference takes its pyramid from kornia; here it gets ours, which the next test compares with the equations."""
    monkeypatch.setattr(their_fdg, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(their_fdg, "build_laplacian_pyramid_func", pyramid)
    monkeypatch.setattr(
        their_fdg, "upsample_and_blur_func", lambda x: from_pyramid([x.new_zeros(*x.shape[:2], x.shape[2] * 2, x.shape[3] * 2), x])
    )
    preds = predictions()
    preds = torch.nn.functional.interpolate(preds.flatten(0, 2), (16, 16)).unflatten(0, preds.shape[:3])
    guider = their_fdg.FrequencyDecoupledGuidance(**theirs)
    for (got, asked), (expected, count) in zip(steps_of(FDG(**ours), preds), theirs_of(guider, preds), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
        assert asked == count


def numpy_blur(x):
    taps = np.array([1, 4, 6, 4, 1]) / 16
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    rows = sum(t * padded[:, :, i : i + x.shape[2]] for i, t in enumerate(taps))
    return sum(t * rows[:, :, :, i : i + x.shape[3]] for i, t in enumerate(taps))


def numpy_double(x):
    """Bilinear, with pixels as areas: a quarter of the neighbour, three of the nearest."""
    for axis in (2, 3):
        near = np.repeat(x, 2, axis)
        shifted = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        left, right = np.split(
            np.stack([shifted.take(range(x.shape[axis]), axis), shifted.take(range(2, x.shape[axis] + 2), axis)], axis + 1), 2, axis + 1
        )
        x = 0.75 * near + 0.25 * np.concatenate([left, right], axis + 1).reshape(near.shape)
    return x


def test_the_pyramid_is_burt_and_adelson_s():
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands, level = pyramid(x, 3), x.numpy()
    for band in bands[:-1]:
        blurred = numpy_blur(level)
        smaller = (blurred[:, :, ::2, ::2] + blurred[:, :, 1::2, ::2] + blurred[:, :, ::2, 1::2] + blurred[:, :, 1::2, 1::2]) / 4
        np.testing.assert_allclose(band.numpy(), level - numpy_blur(numpy_double(smaller)), atol=1e-12)
        level = smaller
    np.testing.assert_allclose(bands[-1].numpy(), level, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 4, 13, 22), (1, 4, 3, 12, 10)], ids=str)
def test_the_pyramid_is_undone(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(from_pyramid(pyramid(x, 2)), x)


def test_nag_is_the_paper_s():
    g = torch.Generator().manual_seed(0)
    z, other = torch.randn(2, 2, 3, 5, 4, generator=g, dtype=torch.float64)
    scale, tau, alpha = 4.0, 1.3, 0.4
    expected = np.empty_like(z.numpy())
    for b in range(2):
        for n in range(5):
            positive, negative = z[b, :, n].numpy(), other[b, :, n].numpy()
            guided = positive + (scale - 1) * (positive - negative)
            ratio = np.abs(guided).sum() / np.abs(positive).sum()
            expected[b, :, n] = alpha * guided * min(ratio, tau) / ratio + (1 - alpha) * positive
    np.testing.assert_allclose(normalized(z, other, scale, tau, alpha).numpy(), expected, atol=1e-12)
    assert torch.equal(normalized(z * 0, z * 0, scale, tau, alpha), z * 0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("per_channel, strength", [(True, 1.0), (False, 0.6)])
def test_dynamic_thresholding_is_the_paper_s(prediction_type, per_channel, strength):
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    cond, uncond, x = (3 * torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).unbind()
    guidance = DynamicThresholding(20.0, mimic_scale=6.0, percentile=0.9, per_channel=per_channel, strength=strength)
    preds = torch.stack([cond, uncond, cond])[None]
    run_t = torch.tensor(500)
    run = Run(SimpleNamespace(), 2, Conditioning(Branch({}), Branch({"n": x})), scheduler, timesteps=torch.tensor([500]))
    got = guidance(Step(run, run_t, x, lambda _, branches: [preds[0, 1 if b.cond else 0] for b in branches]))
    bar = float(scheduler.alphas_cumprod[500])
    alpha, sigma, x, c, u = bar**0.5, (1 - bar) ** 0.5, x.numpy(), cond.numpy(), uncond.numpy()
    to_x0 = {"epsilon": lambda p: (x - sigma * p) / alpha, "v_prediction": lambda p: alpha * x - sigma * p, "sample": lambda p: p}[
        prediction_type
    ]
    strong, mild = to_x0(u + 20 * (c - u)), to_x0(u + 6 * (c - u))
    expected = np.empty_like(strong)
    for b in range(2):
        for part in [slice(i, i + 1) for i in range(4)] if per_channel else [slice(None)]:
            s, m = strong[b, part], mild[b, part]
            d = s - s.mean()
            reach, spread = np.abs(m - m.mean()).max(), np.quantile(np.abs(d), 0.9)
            top = max(reach, spread)
            expected[b, part] = strength * (s.mean() + np.clip(d, -top, top) * reach / top) + (1 - strength) * s
    np.testing.assert_allclose(to_x0(got.numpy()), expected, atol=1e-6, rtol=1e-6)
    assert np.abs(strong - expected).max() > 1


SCHEDULERS = [EulerDiscreteScheduler, darkroom.FlowMatchEulerDiscreteScheduler, darkroom.EDMEulerScheduler]


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_dynamic_thresholding_with_other_schedulers(kind):
    """x0 has the spread of the mild scale, about the mean of the strong one; with one scale nothing changes."""
    scheduler = kind()
    scheduler.set_timesteps(10)
    t, preds = scheduler.timesteps[4], predictions(steps=1)[0]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = Run(SimpleNamespace(), 2, Conditioning(Branch({}), Branch({"n": x})), scheduler, timesteps=scheduler.timesteps)
    step = Step(run, t, x, lambda _, branches: [preds[1 if b.cond else 0] for b in branches])
    alpha, sigma = scheduler.signal_and_noise(t, x)

    def x0(guidance):
        return scheduler.x0_and_eps(x, guidance(step), alpha, sigma)[0]

    def off_centre(values, centre):
        return (values - centre.mean((2, 3), keepdim=True)).abs().amax((2, 3))

    strong, held, mild = x0(CFG(20.0)), x0(DynamicThresholding(20.0, mimic_scale=4.0)), x0(CFG(4.0))
    torch.testing.assert_close(off_centre(held, strong), off_centre(mild, mild))
    assert not torch.allclose(held, strong)
    torch.testing.assert_close(x0(DynamicThresholding(4.0, mimic_scale=4.0, percentile=1.0)), mild)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_apg_of_x0_is_apg_of_a_network_that_predicts_it(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    t, preds = scheduler.timesteps[4], predictions(steps=1)[0]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run = Run(SimpleNamespace(), 2, Conditioning(Branch({}), Branch({"n": x})), scheduler, timesteps=scheduler.timesteps)
    alpha, sigma = scheduler.signal_and_noise(t, x)

    def x0(pred):
        return scheduler.x0_and_eps(x, pred, alpha, sigma)[0]

    options = dict(norm_threshold=3.0, eta=0.2)
    got = APG(9.0, denoised=True, **options)(Step(run, t, x, lambda _, branches: [preds[1 if b.cond else 0] for b in branches]))
    expected = APG(9.0, **options)(Step(run, t, x, lambda _, branches: [x0(preds[1 if b.cond else 0]) for b in branches]))
    torch.testing.assert_close(x0(got), expected)
    assert not torch.allclose(x0(APG(9.0, **options)(Step(run, t, x, lambda _, bs: [preds[1 if b.cond else 0] for b in bs]))), expected)


def test_dynamic_thresholding_says_which_schedulers_it_needs():
    class Silent:
        pass

    preds = predictions(steps=1)
    with pytest.raises(ConfigError, match="Silent"):
        list(steps_of(DynamicThresholding(), preds, Silent(), preds[0, 0]))


# ---- what becomes of attention


@pytest.mark.parametrize("side", [8, 7])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_seg_blurs_queries_as_the_reference_can(side, sigma):
    """The reference has its two cases the wrong way round: a finite sigma gives the mean, an infinite one a Gaussian."""
    q = torch.randn(2, 3, side * side, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def theirs(threshold):
        tokens = q.transpose(1, 2).flatten(2).clone()  # (B, N, h d)
        width = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
        return _gaussian_blur_2d(tokens, width, sigma, threshold).unflatten(-1, (3, 4)).transpose(1, 2)

    torch.testing.assert_close(blur_tokens(q, (side, side), sigma), theirs(0.0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(blur_tokens(q, (side, side), math.inf), theirs(math.inf))


def test_seg_of_a_wide_map_and_of_further_tokens():
    q = torch.randn(1, 2, 6 * 4 + 3, 4)
    out = blur_tokens(q, (4, 6), 1.0)
    assert torch.equal(out[:, :, 24:], q[:, :, 24:])
    turned = blur_tokens(q[:, :, :24].unflatten(2, (4, 6)).transpose(2, 3).flatten(2, 3), (6, 4), 1.0)
    torch.testing.assert_close(turned.unflatten(2, (6, 4)).transpose(2, 3).flatten(2, 3), out[:, :, :24])
    assert torch.equal(blur_tokens(q, (4, 6), 0.0), q)


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    made = DiffusionPipeline.from_pretrained(tiny_sd)
    made.set_progress_bar_config(disable=True)
    return made


BLOCK = "mid_block.attentions.0.transformer_blocks"
IMPAIRMENTS = {
    "SLG": (lambda: SLG(layers="mid"), lambda unet: apply_layer_skip(unet, LayerSkipConfig([0], fqn=BLOCK))),
    "PAG": (
        lambda: PAG(layers="mid"),
        lambda unet: apply_layer_skip(
            unet, LayerSkipConfig([0], fqn=BLOCK, skip_attention=False, skip_attention_scores=True, skip_ff=False)
        ),
    ),
    "SEG": (
        lambda: SEG(layers="mid"),
        lambda unet: _apply_smoothed_energy_guidance_hook(unet, SmoothedEnergyGuidanceConfig([0], fqn=BLOCK), 5.0),
    ),
}


@pytest.mark.parametrize("name", IMPAIRMENTS)
def test_an_impaired_network_predicts_what_the_reference_s_does(name, pipe, tiny_sd):
    """Ours impairs the attention of one call, the reference puts hooks into the network."""
    make, impair = IMPAIRMENTS[name]
    x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 32)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet")
    plain = theirs(x, 500, context).sample
    impair(theirs)
    expected = theirs(x, 500, context).sample
    assert (plain - expected).abs().max() > 1e-3
    term, cond = make(), Conditioning(Branch({"context": context}))
    term.prepare(cond, pipe)
    step = Step(Run(None, 2, cond, None), torch.tensor(500), x, None, cond)
    (branch,) = term.branches(step)
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(x, 500, context, attend=branch.attend).sample, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(pipe.unet(x, 500, context).sample, plain, atol=1e-5, rtol=1e-4)


def test_slg_skips_one_layer_of_a_block(pipe):
    sites = pipe.residual_sites()
    for layers, count in (("mid_block.*attn1$", 1), ("mid_block.*ff$", 1), (["mid_block.*attn1$", "mid_block.*attn2$"], 2), (BLOCK, 3)):
        term = SLG(layers=layers)
        term.prepare(None, pipe)
        assert len(term.sites) == count and term.sites <= set(sites)


def test_nag_reads_the_negative_prompt_beside_the_prompt(pipe):
    """Cross-attention of the network, by hand at one layer."""
    context, other = torch.randn(2, 2, 16, 32)
    cond = Conditioning(Branch({"context": context}), Branch({"context": other}))
    site = "mid_block.attentions.0.transformer_blocks.0.attn2"
    term = NAG(6.0, tau=1.5, alpha=0.5, layers="mid")
    term.prepare(cond, pipe)
    step = Step(Run(None, 2, cond, None, timesteps=torch.arange(3)), torch.tensor(500), None, None, Conditioning(cond.positive))
    layer, tokens = dict(pipe.unet.named_modules())[site], torch.randn(4, 9, 32)  # two branches at once
    twice = context.repeat(2, 1, 1)
    with torch.no_grad():
        got = layer(tokens, twice, attend=term.wrap(step).positive.attend)
        q, k, v, other_k, other_v = (
            project(t).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for project, t in (
                (layer.to_q, tokens),
                (layer.to_k, twice),
                (layer.to_v, twice),
                (layer.to_k, other.repeat(2, 1, 1)),
                (layer.to_v, other.repeat(2, 1, 1)),
            )
        )
        z = normalized(eager(q, k, v), eager(q, other_k, other_v), 6.0, 1.5, 0.5)
        torch.testing.assert_close(got, layer.to_out(z.transpose(1, 2).flatten(2)))


# ---- in a pipeline

WITH = {
    "CFG, part": lambda: CFG(5.0, start=0.3, stop=0.7),
    "CFG, function": lambda: CFG(lambda t: 1 + 4 * t / 1000),
    "APG": lambda: APG(5.0, momentum=-0.5, norm_threshold=2.0, eta=0.0),
    "APG, of x0": lambda: APG(5.0, momentum=-0.5, norm_threshold=2.0, eta=0.0, denoised=True),
    "APGMix": lambda: APGMix(5.0, apg_start_step=1),
    "CFGZeroStar": lambda: CFGZeroStar(5.0, zero_init_steps=0),
    "CFGZeroStar, 1": lambda: CFGZeroStar(5.0),
    "TCFG": lambda: TCFG(5.0),
    "FDG": lambda: FDG((5.0, 2.0)),
    "DynamicThresholding": lambda: DynamicThresholding(5.0, mimic_scale=2.0),
    "MagnitudeAware": lambda: MagnitudeAware(5.0),
    "PAG": lambda: CFG(5.0, terms=[PAG(3.0)]),
    "SAG": lambda: CFG(5.0, terms=[SAG(0.75)]),
    "SEG": lambda: CFG(5.0, terms=[SEG(3.0)]),
    "SEG, mild": lambda: CFG(5.0, terms=[SEG(3.0, sigma=1.0)]),
    "SLG": lambda: CFG(5.0, terms=[SLG(3.0, stop=1.0)]),
    "AutoGuidance": lambda: CFG(5.0, terms=[AutoGuidance(1.0, dropout=0.3)]),
    "NAG": lambda: CFG(5.0, terms=[NAG(5.0)]),
    "NAG, alone": lambda: CFG(1.0, terms=[NAG(5.0)]),
    "all": lambda: APG(
        5.0, 0.5, [NAG(3.0), PAG(1.0), SAG(0.5), SEG(1.0, start=0.4), SLG(1.0, stop=0.6), AutoGuidance(0.5, dropout=0.2)], momentum=-0.3, stop=0.7
    ),
}  # fmt: skip
NEGATIVE = "the dog"
guidances = pytest.mark.parametrize("name", WITH)


def run(pipe, guidance, steps=5, **changes):
    call = dict(num_inference_steps=steps, negative_prompt=NEGATIVE, output_type="latent", generator=torch.Generator().manual_seed(0))
    return pipe(["the cat", "a red cat"], guidance=guidance, **{**call, **changes}).images


@pytest.fixture(scope="module")
def plain(pipe):
    return run(pipe, CFG(5.0))


class OneByOne(StableDiffusionPipeline):
    predict = staticmethod(one_call_per_branch)


@guidances
def test_runs_and_differs_from_cfg(name, pipe, plain):
    got = run(pipe, WITH[name]())
    assert torch.isfinite(got).all() and (got - plain).abs().max() > 1e-4


@guidances
def test_one_call_per_branch_gives_the_same(name, pipe):
    torch.testing.assert_close(run(OneByOne.from_pipe(pipe), WITH[name]()), run(pipe, WITH[name]()), atol=1e-4, rtol=1e-4)


@guidances
def test_a_callback_sees_every_step(name, pipe):
    seen, guidance = [], WITH[name]()

    def callback(view, i, t, tensors):
        seen.append((i, *sorted(tensors)))
        return {"latents": tensors["latents"] * 1.0}

    names = ["latents", "prompt_embeds"]
    got = run(pipe, guidance, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen == [(i, "latents", "prompt_embeds") for i in range(5)]
    assert torch.equal(got, run(pipe, guidance))  # the same object again: nothing stays from the call before

    def switch_off(view, i, t, tensors):
        view._guidance_scale = 0.0
        return tensors

    assert torch.isfinite(run(pipe, guidance, callback_on_step_end=switch_off)).all()


@guidances
def test_two_threads_with_one_object(name, pipe):
    guidance, results = WITH[name](), {}
    alone = [run(pipe, guidance, steps=3 + s) for s in (0, 1)]
    threads = [threading.Thread(target=lambda s=s: results.update({s: run(pipe, guidance, steps=3 + s)})) for s in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[s], alone[s]) for s in (0, 1))


def asked_for(pipe, guidance, **changes):
    """How many branches each step computes."""
    counts = []

    class Counting(type(pipe)):
        @staticmethod
        def predict(pipe, run, t, x, branches):
            counts.append(len(branches))
            return one_call_per_branch(pipe, run, t, x, branches)

    run(Counting.from_pipe(pipe), guidance, steps=10, **changes)
    return counts


@pytest.mark.parametrize(
    "guidance, expected",
    [
        (CFG(5.0, start=0.2, stop=0.7), [1] * 2 + [2] * 5 + [1] * 3),
        (CFG(5.0, terms=[PAG(1.0, start=0.3, stop=0.6)], stop=0.5), [2] * 4 + [3, 2, 1, 1, 1, 1]),
        (CFG(5.0, terms=[SLG()]), [2, 3] + [2] * 8),
        (CFG(1.0, terms=[SEG(1.0), NAG(5.0)]), [2] * 10),
        (CFG(1.0, terms=[NAG(5.0)]), [1] * 10),
        (CFG(lambda t: 5.0 if t > 500 else 1.0), [2] * 5 + [1] * 5),
        (CFG(1.0, terms=[PAG(lambda t: 1.0 if t < 500 else 0.0)]), [1] * 5 + [2] * 5),
        (APG(5.0, start=0.5), [1] * 5 + [2] * 5),
        (FDG((1.0, 1.0)), [1] * 10),
        (FDG((lambda t: 2.0 if t > 500 else 1.0, 1.0)), [2] * 5 + [1] * 5),
        (CFG(5.0, start=0.4, stop=0.4), [1] * 10),
        (CFG(5.0, terms=[AutoGuidance(1.0, dropout=1.0)]), [3] * 10),
    ],
)
def test_outside_of_the_interval_nothing_more_is_computed(pipe, guidance, expected):
    assert asked_for(pipe, guidance) == expected


def test_sag_follows_the_base_where_guidance_stops(pipe):
    """Its base is the unconditional branch in the first half and the conditional one after it."""
    assert asked_for(pipe, CFG(5.0, terms=[SAG(0.5)], stop=0.5)) == [2, 1] * 5 + [1, 1] * 5
    half, none = run(pipe, CFG(5.0, terms=[SAG(0.5)], stop=0.0)), run(pipe, CFG(1.0, terms=[SAG(0.5)]))
    assert torch.equal(half, none)


def test_a_function_is_the_number_that_it_gives(pipe, plain):
    assert torch.equal(run(pipe, CFG(lambda t: 5.0)), plain)
    seen = []
    run(pipe, CFG(lambda t: seen.append(t) or 5.0))
    assert len(seen) == 5 and seen == sorted(seen, reverse=True) and all(isinstance(t, float) for t in seen)


@pytest.mark.parametrize(
    "make",
    [lambda o: APG(5.0, eta=1.0, norm_threshold=0.0, **o), lambda o: MagnitudeAware(5.0, alpha=0.0, **o), lambda o: FDG((5.0, 5.0), **o)],
)
@pytest.mark.parametrize(
    "options", [{}, {"rescale": 0.5}, {"terms": [PAG(2.0)]}, {"start": 0.2, "stop": 0.6}, ORIGINAL], ids=lambda o: " ".join(o) or "plain"
)
def test_what_comes_down_to_cfg_equals_it(pipe, make, options):
    torch.testing.assert_close(run(pipe, make(options)), run(pipe, CFG(5.0, **options)), atol=1e-4, rtol=1e-4)


def test_what_costs_nothing_changes_nothing(pipe, plain):
    for term in (NAG(1.0), SEG(0.0), SLG(0.0), AutoGuidance(0.0, dropout=0.5), SEG(3.0, start=0.5, stop=0.5)):
        assert torch.equal(run(pipe, CFG(5.0, terms=[term])), plain)
    torch.testing.assert_close(run(pipe, CFG(5.0, terms=[SEG(3.0, sigma=0.0)])), plain, atol=1e-4, rtol=1e-4)


def test_the_negative_prompt_reaches_nag(pipe, tmp_path):
    guided = [run(pipe, CFG(1.0, terms=[NAG(5.0)]), negative_prompt=text) for text in ("the dog", "")]
    assert (guided[0] - guided[1]).abs().max() > 1e-4
    distilled = DiffusionPipeline.from_pretrained(tiny.sd(tmp_path, time_cond_proj_dim=16))
    plain, one, two = (
        run(distilled, guidance, negative_prompt=text)
        for guidance, text in ((CFG(7.5), NEGATIVE), (CFG(7.5, terms=[NAG(5.0)]), NEGATIVE), (CFG(1.0, terms=[NAG(5.0)]), "the red"))
    )
    assert torch.isfinite(one).all() and (plain - one).abs().max() > 1e-4 and (one - two).abs().max() > 1e-4
    assert asked_for(distilled, CFG(7.5, terms=[NAG(5.0)])) == [1] * 10  # guidance is in the network


def test_a_distilled_network_needs_no_negative_prompt(tmp_path):
    distilled = DiffusionPipeline.from_pretrained(tiny.sd(tmp_path, time_cond_proj_dim=16))
    distilled.text_encoder = None
    embeds = dict(prompt_embeds=torch.randn(1, 16, 32), num_inference_steps=2, output_type="latent")
    assert torch.isfinite(distilled(guidance_scale=7.5, **embeds).images).all()


def test_autoguidance_with_another_network(pipe, tmp_path):
    other = UNet2DConditionModel.from_pretrained(tiny.sd(tmp_path / "other", seed=1, layers_per_block=2), subfolder="unet")
    before = {name: p.data_ptr() for name, p in other.named_parameters()}
    good, bad = run(pipe, CFG(1.0), steps=1), run(pipe.with_denoiser(other), CFG(1.0), steps=1)
    got = run(pipe, CFG(1.0, terms=[AutoGuidance(1.5, network=other)]), steps=1)
    torch.testing.assert_close(got, good + 1.5 * (good - bad), atol=1e-4, rtol=1e-4)  # a step of DDIM is linear in the prediction
    one_by_one = run(OneByOne.from_pipe(pipe), CFG(5.0, terms=[AutoGuidance(1.0, network=other)]))
    torch.testing.assert_close(one_by_one, run(pipe, CFG(5.0, terms=[AutoGuidance(1.0, network=other)])), atol=1e-4, rtol=1e-4)
    assert pipe.unet is not other and before == {name: p.data_ptr() for name, p in other.named_parameters()}
    guidance = CFG(5.0, terms=[AutoGuidance(1.0, network=other)])
    assert copy.deepcopy(guidance).terms[0].network is other
    strange = UNet2DConditionModel.from_pretrained(tiny.sd(tmp_path / "strange", in_channels=9), subfolder="unet")
    with pytest.raises(ConfigError, match="in_channels"):
        run(pipe, CFG(1.0, terms=[AutoGuidance(1.0, network=strange)]))


def test_dropout_is_the_same_for_all_pictures(pipe):
    guidance = CFG(5.0, terms=[AutoGuidance(2.0, dropout=0.5)])
    seeds = [torch.Generator().manual_seed(s) for s in (3, 4)]
    together = run(pipe, guidance, generator=seeds)
    alone = pipe(
        "a red cat",
        guidance=guidance,
        negative_prompt=NEGATIVE,
        num_inference_steps=5,
        output_type="latent",
        generator=torch.Generator().manual_seed(4),
    )
    torch.testing.assert_close(together[1], alone.images[0], atol=1e-4, rtol=1e-4)
    other = run(
        pipe, CFG(5.0, terms=[AutoGuidance(2.0, dropout=0.5, seed=1)]), generator=[torch.Generator().manual_seed(s) for s in (3, 4)]
    )
    assert (together - other).abs().max() > 1e-4


def test_without_prompts(tiny_ddpm):
    pipe = DiffusionPipeline.from_pretrained(tiny_ddpm)

    def call(guidance):
        return pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), guidance=guidance, output_type="np").images

    plain = call(CFG(1.0))
    for term in (PAG(3.0, layers="."), SEG(3.0, layers="."), SLG(3.0, layers="attentions", stop=1.0), AutoGuidance(2.0, dropout=0.5)):
        got = call(CFG(1.0, terms=[term]))
        assert np.isfinite(got).all() and np.abs(got - plain).max() > 1e-5
    with pytest.raises(InputError, match="no negative prompt"):
        call(CFG(1.0, terms=[NAG(5.0)]))


# ---- what cannot be

KINDS = [APG, APGMix, CFG, CFGZeroStar, DynamicThresholding, MagnitudeAware, TCFG]
TERMS = [PAG, SAG, SEG, SLG, NAG, lambda scale=1.0, **options: AutoGuidance(scale, dropout=0.1, **options)]


@pytest.mark.parametrize("kind", [*KINDS, *TERMS])
@pytest.mark.parametrize(
    "options",
    [dict(scale=-1.0), dict(scale=math.nan), dict(scale=math.inf), dict(scale="5"), dict(scale=None), dict(scale=True)]
    + [dict(start=0.8, stop=0.2), dict(start=-0.1), dict(stop=1.1), dict(stop="1")],
    ids=str,
)
def test_impossible_values(kind, options):
    with pytest.raises(InputError, match="scale|start|stop|reversed"):
        kind(**options)


@pytest.mark.parametrize(
    "make, where",
    [
        (lambda: CFG(5.0, rescale=1.5), "CFG.rescale"),
        (lambda: APG(5.0, momentum=1.0), "APG.momentum"),
        (lambda: APG(5.0, norm_threshold=-1.0), "APG.norm_threshold"),
        (lambda: APG(5.0, eta=-0.1), "APG.eta"),
        (lambda: APGMix(apg_scale=-1.0), "APGMix.apg_scale"),
        (lambda: APGMix(apg_start_step=-1), "APGMix.apg_start_step"),
        (lambda: CFGZeroStar(zero_init_steps=-1), "zero_init_steps"),
        (lambda: MagnitudeAware(alpha=-1.0), "MagnitudeAware.alpha"),
        (lambda: DynamicThresholding(mimic_scale=-1.0), "mimic_scale"),
        (lambda: DynamicThresholding(percentile=0.0), "percentile"),
        (lambda: DynamicThresholding(percentile=99.5), "percentile"),
        (lambda: DynamicThresholding(strength=2.0), "strength"),
        (lambda: FDG(5.0), "FDG.scale"),
        (lambda: FDG(()), "FDG.scale"),
        (lambda: FDG((5.0, -1.0)), "FDG.scale"),
        (lambda: FDG((5.0, 2.0), parallel_weights=(1.0,)), "parallel_weights"),
        (lambda: FDG((5.0, 2.0), parallel_weights=-1.0), "parallel_weights"),
        (lambda: PAG(adaptive_scale=-1.0), "PAG.adaptive_scale"),
        (lambda: SEG(sigma=-1.0), "SEG.sigma"),
        (lambda: NAG(tau=0.5), "NAG.tau"),
        (lambda: NAG(alpha=1.5), "NAG.alpha"),
        (lambda: AutoGuidance(1.0), "AutoGuidance"),
        (lambda: AutoGuidance(1.0, dropout=0.1, network=torch.nn.Identity()), "AutoGuidance"),
        (lambda: AutoGuidance(1.0, dropout=0.0), "AutoGuidance.dropout"),
        (lambda: AutoGuidance(1.0, dropout=1.5), "AutoGuidance.dropout"),
    ],
)
def test_impossible_options(make, where):
    with pytest.raises(InputError, match=where):
        make()


@pytest.mark.parametrize(
    "guidance, match",
    [
        *((CFG(5.0, terms=[kind(layers="nowhere")]), "nowhere") for kind in (PAG, SEG, SLG, NAG)),
        (CFG(5.0, terms=[AutoGuidance(1.0, dropout=0.1, layers=["mid", "nowhere"])]), "nowhere"),
        (CFG(5.0, terms=[SLG(layers="(")]), "regular expression"),
        (CFG(5.0, terms=[SEG(layers=[])]), "No layer is named"),
        (CFG(lambda t: -1.0), "CFG.scale"),
        (CFG(5.0, terms=[SEG(lambda t: math.nan)]), "SEG.scale"),
        (FDG((5.0,) * 5), "too small"),
        (PAG(3.0), "no guidance"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_a_call_refuses(pipe, guidance, match):
    with pytest.raises(InputError, match=match):
        run(pipe, guidance)


def test_a_scale_below_zero_is_no_guidance_in_a_call(pipe):
    """Programs pass -1 to the pipelines of the reference, where it is off."""
    call = dict(num_inference_steps=2, output_type="latent")
    off, one = (pipe("the cat", guidance_scale=s, generator=torch.Generator().manual_seed(0), **call).images for s in (-1.0, 1.0))
    assert torch.equal(off, one)
