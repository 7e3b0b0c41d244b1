"""The other ways from text to video beside the reference, on checkpoints that it wrote: the same array within 1e-4 in [0, 1]."""

from __future__ import annotations
import inspect
from functools import cache
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.pia import pipeline_pia
from diffusers.pipelines.deprecated.text_to_video_synthesis import pipeline_text_to_video_zero as reference_zero
from families import films, ip_adapters, motion, tiny
from families.side_by_side import TOLERANCE, both, compare, generators, picture, tensor
import darkroom
from darkroom import CFG, NAG, PAG, SAG, SLG, ConfigError, InputError
from darkroom.core.attention import Rows, nothing, resolve, sdpa
from darkroom.core.tasks.films import KEPT
from darkroom.core.tasks.zero_shot import ZeroShotVideo, moved
from darkroom.families import text_to_video as family

pytestmark = pytest.mark.filterwarnings("ignore:.*(meshgrid|grid_sample|output_type tensor)")
TEXT, VIDEO, PIA = "TextToVideoSDPipeline", "VideoToVideoSDPipeline", "PIAPipeline"
ZERO, ZERO_XL = "TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"
NAMES = [TEXT, VIDEO, PIA, ZERO, ZERO_XL]


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The same pipeline from both libraries."""

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        path = getattr(films, films.KINDS[name])(tmp_path_factory.mktemp(name), **options)
        none = {"safety_checker": None, "feature_extractor": None} if name == ZERO and not options.get("safety_checker") else {}
        return both(name, path, **none, **({"add_watermarker": False} if name == ZERO_XL else {}))

    return load


@pytest.fixture
def with_scheduler():
    """Pipelines with this scheduler each, until the test is over."""
    kept: list[tuple[Any, Any]] = []

    def change(pipes: Any, name: str, **options: Any) -> Any:
        for pipe in pipes:
            kept.append((pipe, pipe.scheduler))
            library = diffusers if type(pipe).__module__.startswith("diffusers") else darkroom
            pipe.scheduler = getattr(library, name).from_config(pipe.scheduler.config, **options)
        return pipes

    yield change
    for pipe, scheduler in reversed(kept):
        pipe.scheduler = scheduler


def pictures(count: int = 3, **options: Any) -> list[Any]:
    return [picture(seed, **options) for seed in range(count)]


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"prompt": "the cat and the dog", "num_inference_steps": 4, "output_type": "np"}
    own: dict[str, dict[str, Any]] = {
        TEXT: {"num_frames": 3, "height": 32, "width": 32},
        VIDEO: {"video": pictures()},
        PIA: {"image": picture(), "num_frames": 4, "height": 32, "width": 32},
    }
    zero = {"video_length": 3, "num_inference_steps": 6, "t0": 2, "t1": 4, "motion_field_strength_x": 40, "motion_field_strength_y": -70}
    return {**made, **own.get(name, zero), **changes}


CALLS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "without guidance": {"guidance_scale": 1.0},
    "negative": {"negative_prompt": "red"},
    "clip skip": {"clip_skip": 1},
    "eta": {"eta": 0.7},
    "size": {"height": 24, "width": 40},
    "latents out": {"output_type": "latent"},
}


def taken(name: str, call: dict[str, Any]) -> bool:
    """Whether the reference's class takes such a call. Without guidance its zero-shot pipeline fails: it puts None into the batch."""
    known = inspect.signature(getattr(diffusers, name).__call__).parameters
    return call.keys() <= known.keys() and not (name in (ZERO, ZERO_XL) and "guidance_scale" in call)


@pytest.mark.parametrize(("name", "call"), [(n, c) for n in NAMES for c in CALLS if taken(n, CALLS[c])])
def test_calls(pair, name, call):
    if name == ZERO_XL and call == "latents out":
        theirs, ours = (pipe(**arguments(name, **CALLS[call]), generator=generators(0)).images for pipe in pair(name))
        return torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    compare(pair(name), arguments(name, **CALLS[call]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler", "LCMScheduler"])
def test_schedulers(pair, with_scheduler, name, scheduler):
    """Noise is drawn frame by frame. Those of latents in other units are not for the reference's zero-shot pipelines, see below."""
    if name in (ZERO, ZERO_XL) and "Euler" in scheduler:
        scheduler = "DDPMScheduler"
    options = {"skip_prk_steps": True} if "PNDM" in scheduler else {}
    compare(with_scheduler(pair(name), scheduler, **options), arguments(name))


@pytest.mark.parametrize("name", [TEXT, PIA])
def test_two_prompts(pair, name):
    both_ways = arguments(name, prompt=["a cat", "the red dog"], negative_prompt=["red", ""], eta=0.5)
    compare(pair(name), both_ways | ({"image": pictures(2)} if name == PIA else {}))


@pytest.mark.parametrize("name", [TEXT, PIA])
def test_what_is_passed_in(pair, name):
    embeds, other = tensor(2, 2, 16, 32)
    call = arguments(name, prompt=None, prompt_embeds=embeds, negative_prompt_embeds=other)
    if name == PIA:
        call["image"] = pictures(2)
    compare(pair(name), {**call, "latents": tensor(2, 4, call["num_frames"], 16, 16)})


@pytest.mark.parametrize("name", [TEXT, VIDEO, ZERO, ZERO_XL])
def test_the_older_callback_sees_the_same(pair, name):
    seen: list[list[Any]] = []
    for pipe in pair(name):
        seen.append([])
        follow = lambda i, t, x, rows=seen[-1]: rows.append((i, int(t), x.clone()))  # noqa: E731
        pipe(**arguments(name, callback=follow), generator=generators(0))
    assert len(seen[0]) >= 2
    for theirs, ours in zip(*seen, strict=True):
        assert theirs[:2] == ours[:2]
        torch.testing.assert_close(ours[2], theirs[2], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_tuples_and_pictures(pair, name):
    theirs, ours = (pipe(**arguments(name, return_dict=False), generator=generators(0)) for pipe in pair(name))
    assert isinstance(ours, tuple) and len(ours) == len(theirs)
    np.testing.assert_allclose(ours[0], theirs[0], atol=TOLERANCE, rtol=0)
    found = pair(name)[1](**arguments(name, output_type="pil"), generator=generators(0))[0]
    frames = found if name in (ZERO, ZERO_XL) else found[0]
    expected = (theirs[0] if name in (ZERO, ZERO_XL) else theirs[0][0]) * 255
    assert np.abs(np.stack([np.asarray(frame, np.float32) for frame in frames]) - expected).max() < 0.55


# ---- a UNet over frames


@pytest.mark.parametrize("call", [
    {"strength": 0.3, "num_inference_steps": 8}, {"strength": 1.0}, {"video": pictures(2, size=(48, 24)), "eta": 1.0},
    {"video": np.stack([np.asarray(p, np.float32) / 255 for p in pictures(4)])}, {"video": tensor(3, 4, 8, 12), "eta": 1.0},
], ids=["strength", "all", "size", "array", "latents"])  # fmt: skip
def test_from_a_video(pair, call):
    compare(pair(VIDEO), arguments(VIDEO, **call))


def test_several_videos_at_once(pair):
    """What the reference fails on: add_noise gets as many timesteps as videos for all their frames. Each is as it is alone."""
    reference, pipe = pair(VIDEO)
    call = arguments(VIDEO, prompt=["a cat", "the red dog"], video=[pictures(2), pictures(3)[1:]], eta=1.0)
    with pytest.raises(RuntimeError, match="size of tensor"):
        reference(**call, generator=generators(0))
    together = pipe(**call, generator=generators([3, 4])).frames
    for i, seed in enumerate([3, 4]):
        alone = {**call, "prompt": call["prompt"][i], "video": call["video"][i]}
        np.testing.assert_allclose(together[i], compare((reference, pipe), alone, seed)[0], atol=TOLERANCE)


def test_each_video_draws_its_own_noise(pair):
    """The reference has no generator for each frame of several videos where a step draws noise."""
    reference, pipe = pair(TEXT)
    call = arguments(TEXT, prompt=["a cat", "the red dog"], eta=1.0)
    with pytest.raises(IndexError):
        reference(**call, generator=generators([3, 4]))
    together = pipe(**call, generator=generators([3, 4])).frames
    for i, seed in enumerate([3, 4]):
        np.testing.assert_allclose(together[i], compare((reference, pipe), {**call, "prompt": call["prompt"][i]}, seed)[0], atol=TOLERANCE)


def test_prompts_and_frames_of_a_network_over_frames(pair):
    pipe = pair(TEXT)[1]
    x, context = tensor(2, 4, 3, 8, 8), tensor(2, 5, 32)
    assert torch.equal(pipe.unet(x, 5, context).sample, pipe.unet(x, 5, context.repeat_interleave(3, 0)).sample)
    with pytest.raises(InputError, match="encoder_hidden_states"):
        pipe.unet(x, 5, tensor(5, 5, 32))
    at_once, parts = (pipe(**arguments(TEXT, decode_chunk_size=n), generator=generators(0)).frames for n in (None, 2))
    np.testing.assert_allclose(at_once, parts, atol=1e-5)
    alone = pipe(**arguments(TEXT, num_frames=1, latents=(noise := tensor(1, 4, 3, 16, 16))[:, :, :1])).frames
    assert np.abs(pipe(**arguments(TEXT, latents=noise)).frames[:, :1] - alone).max() > 0.01  # frames see one another


@pytest.mark.parametrize("name", [TEXT, VIDEO])
def test_free_init(pair, name):
    """It is for every network over videos."""
    pipe = type(pair(name)[1]).from_pipe(pair(name)[1])
    plain = pipe(**arguments(name), generator=generators(0)).frames
    pipe.enable_free_init(num_iters=2)
    assert np.abs(pipe(**arguments(name), generator=generators(0)).frames - plain).max() > 0.01
    pipe.disable_free_init()
    assert np.array_equal(pipe(**arguments(name), generator=generators(0)).frames, plain)


def test_the_family_is_found(pair):
    upscaled = darkroom.AutoPipelineForVideo2Video.from_pipe(pair(TEXT)[1])
    assert type(upscaled) is darkroom.VideoToVideoSDPipeline and upscaled.unet.conv_in.weight is pair(TEXT)[1].unet.conv_in.weight
    assert type(darkroom.AutoPipelineForText2Video.from_pipe(upscaled)) is darkroom.TextToVideoSDPipeline


# ---- a picture that begins to move


def test_how_much_is_kept_of_the_picture():
    for scale, row in enumerate(pipeline_pia.RANGE_list):
        assert list(KEPT[scale]) == row
    assert len(KEPT) == len(pipeline_pia.RANGE_list)


@pytest.mark.parametrize("call", [
    {"motion_scale": 2, "num_frames": 8}, {"motion_scale": 8}, {"strength": 0.6, "motion_scale": 4}, {"image": picture(size=(40, 24))},
], ids=" ".join)  # fmt: skip
def test_motion_of_a_picture(pair, call):
    compare(pair(PIA), arguments(PIA, **call))


@pytest.mark.parametrize("strength", [1.0, 0.75])
@pytest.mark.parametrize("options", [{"num_iters": 2}, {"num_iters": 2, "use_fast_sampling": True}], ids=str)
def test_motion_of_a_picture_with_free_init(pair, options, strength):
    pipes = tuple(type(pipe).from_pipe(pipe) for pipe in pair(PIA))
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        pipe.enable_free_init(**options)
    compare(pipes, arguments(PIA, strength=strength))


def test_callbacks_of_a_moving_picture(pair):
    seen: list[Any] = []

    def follow(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].clone()))
        return {"latents": tensors["latents"] * 0.9}

    compare(pair(PIA), arguments(PIA, callback_on_step_end=follow))
    half = len(seen) // 2
    for theirs, ours in zip(seen[:half], seen[half:], strict=True):
        assert theirs[:2] == ours[:2]
        torch.testing.assert_close(ours[2], theirs[2], atol=TOLERANCE, rtol=1e-4)


def test_each_picture_moves_by_itself(pair):
    """With a strength below 1 the reference fails on several."""
    reference, pipe = pair(PIA)
    call = arguments(PIA, prompt=["a cat", "the red dog"], image=pictures(2), strength=0.6)
    with pytest.raises(RuntimeError, match="size of tensor"):
        reference(**call, generator=generators(0))
    together = pipe(**call, generator=generators([1, 2])).frames
    for i, seed in enumerate([1, 2]):
        alone = {**call, "prompt": call["prompt"][i], "image": call["image"][i]}
        np.testing.assert_allclose(together[i], compare((reference, pipe), alone, seed)[0], atol=TOLERANCE)


def test_from_a_pipeline_for_pictures(tmp_path):
    adapter = motion.adapter(conv_in_channels=9)
    adapter.save_pretrained(tmp_path / "adapter")
    pipe = darkroom.StableDiffusionPipeline.from_pretrained(tiny.sd(tmp_path / "sd"))
    before = pipe("the cat", num_inference_steps=2, output_type="np", generator=generators(0)).images
    moving = darkroom.PIAPipeline.from_pipe(pipe, motion_adapter=darkroom.MotionAdapter.from_pretrained(tmp_path / "adapter"))
    assert moving(**arguments(PIA), generator=generators(0)).frames.shape == (1, 4, 32, 32, 3)
    assert np.array_equal(pipe("the cat", num_inference_steps=2, output_type="np", generator=generators(0)).images, before)
    motion.adapter().save_pretrained(tmp_path / "blind")
    blind = darkroom.PIAPipeline.from_pipe(pipe, motion_adapter=darkroom.MotionAdapter.from_pretrained(tmp_path / "blind"))
    with pytest.raises(ConfigError, match="in_channels"):
        blind(**arguments(PIA))
    for call in ({"motion_scale": 9}, {"strength": 0.0}, {"image": None}):
        with pytest.raises(InputError, match=next(iter(call))):
            moving(**arguments(PIA, **call))


# ---- a network for pictures as it is


@pytest.mark.parametrize("shift", [(12.0, 12.0), (-300.5, 77.25), (2000.0, -1.0), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (16, 24), (9, 7)], ids=str)
def test_motion_fields(shift, size):
    x, places = tensor(1, 4, *size), [1, 2, 7]
    theirs = reference_zero.create_motion_field_and_warp_latents(*shift, places, x.repeat(len(places), 1, 1, 1))
    ours = torch.cat([moved(x, *(by * place for by in shift)) for place in places])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [ZERO, ZERO_XL])
@pytest.mark.parametrize("call", [
    {"t0": 0, "t1": 5}, {"t0": 1, "t1": 2, "video_length": 2}, {"video_length": 1}, {"frame_ids": [0, 4, 9]}, {"latents": tensor(1, 4, 16, 16)},
    {"output_type": "tensor", "motion_field_strength_x": 0.0},
], ids=str)  # fmt: skip
def test_zero_shot(pair, name, call):
    compare(pair(name), arguments(name, **call))


@pytest.mark.parametrize("call", [
    {"denoising_end": 0.8}, {"denoising_end": 0.3}, {"original_size": (64, 48), "crops_coords_top_left": (3, 5), "target_size": (16, 16)},
    {"prompt_2": "the red dog", "negative_prompt": "red", "negative_prompt_2": "cat"},
], ids=str)  # fmt: skip
def test_zero_shot_with_sdxl(pair, call):
    compare(pair(ZERO_XL), arguments(ZERO_XL, **call))


def test_a_safety_checker_sees_every_frame(pair):
    pipes = pair(ZERO, safety_checker=True)
    compare(pipes, arguments(ZERO))
    theirs, ours = (pipe(**arguments(ZERO), generator=generators(0)).nsfw_content_detected for pipe in pipes)
    assert ours == theirs and len(ours) == 3


def test_frames_attend_to_the_first(pair, monkeypatch):
    pipe = pair(ZERO)[1]
    whole = pipe(**arguments(ZERO), generator=generators(0)).images
    monkeypatch.setattr(family, "across_frames", lambda attend, frames, sites: attend)
    apart = pipe(**arguments(ZERO), generator=generators(0)).images
    assert np.abs(whole[0] - apart[0]).max() < 1e-5 and np.abs(whole[1:] - apart[1:]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_several_zero_shot_videos(pair, with_scheduler, scheduler):
    """The reference makes one. Each of several is as it is alone, also where the scheduler knows of earlier steps."""
    pipe = pair(ZERO)[1]
    with_scheduler([pipe], scheduler)
    together = pipe(**arguments(ZERO, prompt=["a cat", "the red dog"], eta=0.5, decode_chunk_size=2), generator=generators([3, 4])).images
    for i, seed in enumerate([3, 4]):
        alone = pipe(**arguments(ZERO, prompt=["a cat", "the red dog"][i], eta=0.5), generator=generators([seed])).images
        np.testing.assert_allclose(together[3 * i : 3 * i + 3], alone, atol=1e-5)


def test_noise_in_other_units(pair, with_scheduler):
    """Latents of schedulers such as Euler's are larger than those of variance 1 for which the formula is. The reference uses it all the same, and the
    frames behind the first get noise for one level and are denoised from another; with SD 1.5 it fails, as timesteps are no whole numbers.
    """
    reference, pipe = with_scheduler(pair(ZERO), "EulerDiscreteScheduler")
    with pytest.raises(TypeError, match="slice indices"):
        reference(**arguments(ZERO), generator=generators(0))
    assert np.isfinite(pipe(**arguments(ZERO), generator=generators(0)).images).all()
    scheduler = darkroom.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(50)
    times, run = scheduler.timesteps[[5, 2]], type("Run", (), {})
    run.scheduler, run.inputs = scheduler, type("Inputs", (), {"generator": generators(0)})
    before, after = (float(scheduler.sigmas[i]) for i in (5, 2))
    (noisy,) = ZeroShotVideo.renoised(run, [before * tensor(1, 4, 1, 128, 128)], times)  # pure noise of one level becomes that of the other
    assert abs(float(noisy.std()) / after - 1) < 0.02 and after / before > 1.2


def test_noise_in_other_units_with_sdxl(pair, with_scheduler):
    """It does not fail there, but only the first frame, which attends to itself alone, is right."""
    theirs, ours = (
        p(**arguments(ZERO_XL), generator=generators(0)).images for p in with_scheduler(pair(ZERO_XL), "EulerDiscreteScheduler")
    )
    np.testing.assert_allclose(ours[0], theirs[0], atol=TOLERANCE)
    assert np.abs(ours[1:] - theirs[1:]).max() > 0.01


def test_rescaled_guidance_with_sdxl(pair):
    """The reference's call has the argument and does not read it."""
    reference, pipe = pair(ZERO_XL)
    theirs = [reference(**arguments(ZERO_XL, guidance_rescale=scale), generator=generators(0)).images for scale in (0.0, 0.7)]
    ours = [pipe(**arguments(ZERO_XL, guidance_rescale=scale), generator=generators(0)).images for scale in (0.0, 0.7)]
    assert np.array_equal(*theirs) and np.abs(ours[0] - ours[1]).max() > 0.001


def test_without_guidance_zero_shot(pair):
    """The reference fails: it joins embeddings that it did not encode."""
    reference, pipe = pair(ZERO)
    with pytest.raises(TypeError):
        reference(**arguments(ZERO, guidance_scale=1.0), generator=generators(0))
    one = pipe(**arguments(ZERO, guidance_scale=1.0), generator=generators(0)).images
    np.testing.assert_allclose(pipe(**arguments(ZERO, guidance=CFG(1.0)), generator=generators(0)).images, one, atol=1e-6)
    np.testing.assert_allclose(pipe(**arguments(ZERO, guidance=CFG(1.0001)), generator=generators(0)).images, one, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("term", [PAG, SAG, SLG, NAG])
def test_guidance(pair, name, term):
    """The whole catalogue is for them: a term without weight changes nothing, one with weight does, and to each of several videos what it does to
    it alone."""
    pipe, options = pair(name)[1], {SLG: {"layers": "mid_block", "start": 0.0, "stop": 1.0}}.get(term, {})
    plain, off, on = (
        np.asarray(pipe(**arguments(name, guidance=guidance), generator=generators(0))[0])
        for guidance in (CFG(4.0), CFG(4.0, terms=[term(0.0, **options)]), CFG(4.0, terms=[term(3.0, **options)]))
    )
    np.testing.assert_array_equal(off, plain)
    assert np.isfinite(on).all() and np.abs(on - plain).max() > 1e-4
    texts = {"prompt": ["a cat", "the red dog"], "negative_prompt": ["red", "the cat"]}
    call = arguments(name, guidance=CFG(4.0, terms=[term(3.0, **options)]))
    together = np.split(pipe(**call | texts, generator=generators([3, 4]))[0], 2)
    for i, seed in enumerate([3, 4]):
        alone = pipe(**call | {n: words[i] for n, words in texts.items()}, generator=generators([seed]))[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_picture_prompts(pair, name):
    """IP-Adapters, which the reference has for PIA alone of these: a picture for each of several videos."""
    pipe = type(pair(name)[1]).from_pipe(pair(name)[1])
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(ip_adapters.adapter(pipe.unet), image_encoder_folder=None)
    embeds, call = tensor(2, 1, ip_adapters.POOLED), arguments(name)
    rows = [torch.cat([torch.zeros_like(embeds), embeds])]
    together = np.split(
        pipe(**{**call, "prompt": ["a cat", "the red dog"]}, ip_adapter_image_embeds=rows, generator=generators([3, 4]))[0], 2
    )
    for i, seed in enumerate([3, 4]):
        own = [torch.cat([torch.zeros_like(embeds[:1]), embeds[i : i + 1]])]
        with_picture = pipe(**{**call, "prompt": ["a cat", "the red dog"][i]}, ip_adapter_image_embeds=own, generator=generators([seed]))[0]
        np.testing.assert_allclose(together[i], with_picture, atol=1e-5)
    pipe.unload_ip_adapter()
    assert np.abs(pipe(**{**call, "prompt": "the red dog"}, generator=generators([4]))[0] - with_picture).max() > 0.01


def test_attention_across_frames():
    """Keys and values are those of each video's first frame, at the named sites; a layer that guidance skips is skipped there, too."""
    q, k, v = tensor(3, 6, 2, 5, 4).unbind()  # two videos of three frames
    for attend, video in ((sdpa, slice(0, 3)), (Rows([sdpa, sdpa]), slice(3, 6))):
        out = family.across_frames(attend, 3, frozenset({"here"}))(q, k, v, site="here")
        first = (x[video][:1].expand(3, -1, -1, -1) for x in (k, v))
        torch.testing.assert_close(out[video], sdpa(q[video], *first), atol=1e-6, rtol=0)
    assert torch.equal(family.across_frames(sdpa, 3, frozenset({"here"}))(q, k, v, site="there"), sdpa(q, k, v))
    assert resolve(family.across_frames(nothing, 3, frozenset({"here"})), "here") is nothing


@pytest.mark.parametrize("call", [
    {"t0": 4, "t1": 2}, {"t1": 6, "num_inference_steps": 6}, {"frame_ids": [0, 1]}, {"prompt": None}, {"video_length": 0},
    {"latents": tensor(2, 4, 16, 16)}, {"output_type": "gif"},
], ids=str)  # fmt: skip
def test_bad_calls(pair, call):
    with pytest.raises(InputError, match=next(iter(call))):
        pair(ZERO)[1](**arguments(ZERO, **call))


def test_schedulers_that_add_no_noise_so(pair, with_scheduler):
    pipe = pair(ZERO)[1]
    kept = pipe.scheduler
    pipe.scheduler = darkroom.FlowMatchEulerDiscreteScheduler()
    try:
        with pytest.raises(ConfigError, match="scheduler"):
            pipe(**arguments(ZERO))
    finally:
        pipe.scheduler = kept


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_an_interrupted_zero_shot_call(pair, stop_at):
    """It ends with what there is: one frame, before the others are made."""
    count: list[int] = []

    def stop(view, i, t, tensors):
        count.append(i)
        view._interrupt = len(count) == stop_at
        return tensors

    frames = pair(ZERO)[1](**arguments(ZERO, callback_on_step_end=stop), generator=generators(0)).images
    assert len(count) == stop_at and len(frames) == (3 if stop_at > 3 else 1)
