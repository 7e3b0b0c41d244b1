"""The neighbours of Stable Diffusion beside the reference, on checkpoints that the reference wrote: the same array within 1e-4 in [0, 1]."""

from __future__ import annotations
import inspect
from functools import cache
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import tiny
from families.side_by_side import TOLERANCE, both, compare, generators, picture, tensor
from PIL import Image
import darkroom
from darkroom import ConfigError, InputError
from darkroom.core.tasks.views import boxes_of

STEPS = 4
SD = "StableDiffusion{}Pipeline".format
DEPTH, UPSCALE, LATENT, VARIATION, EDIT = map(SD, ("Depth2Img", "Upscale", "LatentUpscale", "ImageVariation", "InstructPix2Pix"))
NAMES = [*tiny.NEIGHBOURS]
LCM, LCM_IMAGE, PANORAMA = "LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline", SD("Panorama")


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The same pipeline from both libraries."""

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        path = tiny.neighbour(tmp_path_factory.mktemp(name), name, **options)
        return both(name, path)

    return load


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "np"}
    made |= {"prompt": "the cat and the dog"} if name != VARIATION else {}
    made |= {"image": picture()} if name not in (LCM, PANORAMA) else {}
    made |= {"height": 32, "width": 32} if name == PANORAMA else {}
    return {**made, **changes}


@pytest.mark.parametrize("name", NAMES)
def test_the_call_with_defaults(pair, name):
    compare(pair(name), arguments(name))


@pytest.mark.parametrize("name", NAMES)
def test_without_guidance(pair, name):
    compare(pair(name), arguments(name, guidance_scale=1.0))


@pytest.mark.parametrize("name", [n for n in NAMES if n != DEPTH])  # the reference's depths are NaN then
def test_half_precision(name, tmp_path):
    pipes = both(name, tiny.neighbour(tmp_path, name), torch_dtype=torch.float16)
    theirs, ours = (np.asarray(pipe(**arguments(name), generator=generators(0))[0]) for pipe in pipes)
    assert pipes[1].vae.dtype == torch.float16 and ours.shape == theirs.shape and theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-2, rtol=0)  # a few steps of numbers with 11 bits


CALLS: dict[str, dict[str, Any]] = {
    "negative": {"negative_prompt": "red"},
    "two prompts": {"prompt": ["a cat", "the red dog"], "negative_prompt": ["red", ""], "image": [picture(1), picture(2)]},
    "two pictures": {"num_images_per_prompt": 2},
    "clip skip": {"clip_skip": 1},
    "eta": {"eta": 0.7},
    "latents": {"latents": tensor(1, 4, 16, 16)},
    "size": {"height": 24, "width": 40},
}


def taken(name: str, call: dict[str, Any]) -> dict[str, Any]:
    """The part of a call that the class takes."""
    known = inspect.signature(getattr(diffusers, name).__call__).parameters
    return {n: v for n, v in call.items() if n in known}


# the reference mixes up the rows of several panoramas: see below
TESTED = [(n, c) for n in NAMES for c in CALLS if taken(n, CALLS[c]) and not (n == PANORAMA and c.startswith("two"))]


@pytest.mark.parametrize(("name", "call"), TESTED)
def test_calls(pair, name, call):
    own = taken(name, CALLS[call])
    if "latents" in own and name in (UPSCALE, LATENT):
        own["latents"] = tensor(1, 4, 32, 32)
    compare(pair(name), arguments(name, **own))


@pytest.mark.parametrize("name", [n for n in tiny.NEIGHBOURS if n not in (PANORAMA, UPSCALE, LATENT, VARIATION)])
def test_a_list_of_generators(pair, name):
    compare(pair(name), arguments(name, prompt=["a cat", "the red dog"]), seed=[4, 5])


def test_a_list_of_generators_with_pictures(pair):
    compare(pair(UPSCALE), arguments(UPSCALE, prompt=["a cat", "the red dog"], image=[picture(1), picture(2)]), seed=[4, 5])
    compare(pair(LATENT), arguments(LATENT, prompt=["a cat", "the red dog"], image=[picture(1), picture(2)]), seed=[4, 5])
    compare(pair(VARIATION), arguments(VARIATION, image=[picture(1), picture(2)]), seed=[4, 5])
    compare(pair(PANORAMA), arguments(PANORAMA), seed=[4])


SCHEDULERS = "PNDM EulerDiscrete EulerAncestralDiscrete HeunDiscrete DPMSolverMultistep".split()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", [DEPTH, UPSCALE, VARIATION, EDIT, PANORAMA])
def test_schedulers(pair, name, scheduler):
    compare(pair(name, scheduler=f"{scheduler}Scheduler"), arguments(name))


@pytest.mark.parametrize("name", [n for n in tiny.NEIGHBOURS if n not in (VARIATION, LATENT)])
def test_embeddings(pair, name):
    embeds, other = tensor(2, 1, 16, 32)
    known = taken(name, {"prompt_embeds": embeds, "negative_prompt_embeds": other})
    compare(pair(name), arguments(name, prompt=None, **known))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output_type", ["pil", "pt", "latent"])
def test_output_types(pair, name, output_type):
    theirs, ours = (p(**arguments(name, output_type=output_type), generator=generators(0)).images for p in pair(name))
    if output_type == "pil":
        assert np.abs(np.asarray(ours[0], np.int16) - np.asarray(theirs[0], np.int16)).max() <= 1
    else:
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_tuples_have_as_many_parts(pair, name):
    theirs, ours = (p(**arguments(name), generator=generators(0), return_dict=False) for p in pair(name))
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours[0], theirs[0], atol=TOLERANCE)


CALLBACKS = {
    DEPTH: ("latents", "prompt_embeds", "depth_mask"),
    EDIT: ("latents", "prompt_embeds", "image_latents"),
    LCM: ("latents", "denoised", "prompt_embeds", "w_embedding"),
    LCM_IMAGE: ("latents", "denoised", "prompt_embeds", "w_embedding"),
    PANORAMA: ("latents", "prompt_embeds"),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_see_and_replace_the_same_tensors(pair, name):
    seen: dict[str, list[Any]] = {"diffusers": [], "darkroom": []}

    def follow(pipe, step, timestep, tensors):
        record = seen[type(pipe).__module__.split(".")[0]]
        record.append((step, int(timestep), {n: t.clone() for n, t in tensors.items()}))
        return {n: t * 0.99 for n, t in tensors.items()}

    call = arguments(name, callback_on_step_end=follow, callback_on_step_end_tensor_inputs=list(CALLBACKS[name]))
    compare(pair(name), call)
    for ours, theirs in zip(*seen.values(), strict=True):
        assert ours[:2] == theirs[:2]
        for n in CALLBACKS[name]:
            torch.testing.assert_close(ours[2][n], theirs[2][n], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("name", [UPSCALE, LATENT, VARIATION])
def test_older_callbacks(pair, name):
    seen: list[list[Any]] = [[], []]
    for pipe, record in zip(pair(name), seen, strict=True):
        follow = lambda step, t, latents, record=record: record.append((step, float(t), latents.clone()))  # noqa: E731
        pipe(**arguments(name), generator=generators(0), callback=follow, callback_steps=2)
    assert len(seen[0]) == 2
    for theirs, ours in zip(*seen, strict=True):
        assert ours[:2] == pytest.approx(theirs[:2])
        torch.testing.assert_close(ours[2], theirs[2], atol=TOLERANCE, rtol=1e-4)


# ---- depth


DEPTHS: dict[str, dict[str, Any]] = {
    "half": {"strength": 0.5},
    "whole": {"strength": 1.0},
    "map": {"depth_map": tensor(1, 20, 12)},
    "odd size": {"depth_map": tensor(1, 20, 12), "image": picture(2, (37, 30))},
}


@pytest.mark.parametrize("call", DEPTHS)
def test_depth(pair, call):
    compare(pair(DEPTH), arguments(DEPTH, **DEPTHS[call]))


def test_depth_of_latents_and_flat_depth(pair):
    pipe = pair(DEPTH)[1]
    start = tensor(1, 4, 16, 16)
    images = pipe(**arguments(DEPTH, image=start, depth_map=torch.ones(1, 8, 8)), generator=generators(0)).images
    assert np.isfinite(images).all() and images.shape == (1, 32, 32, 3)  # the reference gives NaN for a flat depth and rejects latents


def test_depth_of_another_form_of_picture(pair):
    array = torch.from_numpy(np.asarray(picture(), np.float32) / 255).permute(2, 0, 1)[None]
    compare(pair(DEPTH), arguments(DEPTH, image=array))


def test_dynamic_guidance_with_depth(pair):
    def stop_guidance(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
            tensors = {n: t.chunk(2)[-1] for n, t in tensors.items()}
        return tensors

    names = ["prompt_embeds", "depth_mask"]
    compare(pair(DEPTH), arguments(DEPTH, callback_on_step_end=stop_guidance, callback_on_step_end_tensor_inputs=names))


# ---- upscalers


UPSCALES: dict[str, dict[str, Any]] = {
    "clean": {"noise_level": 0},
    "noisy": {"noise_level": 300},
    "odd size": {"image": picture(2, (37, 30))},
}


@pytest.mark.parametrize("call", UPSCALES)
def test_upscale(pair, call):
    compare(pair(UPSCALE), arguments(UPSCALE, **UPSCALES[call]))


def test_upscaling_shares_no_scaling_factor_with_others(pair):
    theirs, ours = pair(UPSCALE)
    assert theirs.vae.config.scaling_factor == 0.08333  # written over the checkpoint's
    own = getattr(darkroom, UPSCALE)(**{**ours.components, "vae": pair(PANORAMA)[1].vae})
    before = own.vae.config.scaling_factor
    assert before != 0.08333
    latents = ours(**arguments(UPSCALE, output_type="latent"), generator=generators(0)).images
    pixels = own(**arguments(UPSCALE, output_type="pt"), generator=generators(0)).images
    torch.testing.assert_close(pixels, (own.vae.decode(latents / 0.08333).sample / 2 + 0.5).clip(0, 1))
    assert own.vae.config.scaling_factor == before


class Checker:
    """As the older checker: flags every second picture and blackens it to 0."""

    def __call__(self, images: Any, clip_input: Any) -> Any:
        flagged = [i % 2 == 0 for i in range(len(images))]
        images = torch.stack([torch.zeros_like(p) if bad else p for p, bad in zip(images, flagged, strict=True)])
        return images, flagged, [False] * len(images)


class Watermarker:
    def apply_watermark(self, images: list[Image.Image]) -> list[Image.Image]:
        return [Image.eval(image, lambda v: 255 - v) for image in images]


def test_checker_and_watermark_of_the_upscaler(pair):
    from transformers import CLIPImageProcessor

    results = []
    for library, pipe in zip((diffusers, darkroom), pair(UPSCALE), strict=True):
        parts = dict(safety_checker=Checker(), feature_extractor=CLIPImageProcessor(), watermarker=Watermarker())
        own = getattr(library, UPSCALE)(**{**pipe.components, **parts})
        own.set_progress_bar_config(disable=True)
        call = arguments(UPSCALE, num_images_per_prompt=2)
        results.append([own(**{**call, "output_type": kind}, generator=generators(0)) for kind in ("np", "pil")])
    for theirs, ours in zip(*results, strict=True):
        assert ours.nsfw_content_detected == theirs.nsfw_content_detected == [True, False]
        a, b = (np.asarray([np.asarray(i, np.float32) for i in out.images]) for out in (ours, theirs))
        np.testing.assert_allclose(a, b, atol=TOLERANCE if a.max() <= 1 else 1)
    assert (results[1][0].images[0] == 0).all() and (np.asarray(results[1][1].images[0]) == 255).all()


def test_latent_upscale_of_latents_and_without_text(pair):
    compare(pair(LATENT), arguments(LATENT, image=tensor(1, 4, 12, 16)))
    compare(pair(LATENT), arguments(LATENT, guidance_scale=0))
    compare(pair(LATENT, scheduler="HeunDiscreteScheduler"), arguments(LATENT))


def test_latent_upscale_with_embeddings(pair):
    context, other = tensor(2, 1, 16, 32)
    pooled, negative = tensor(2, 1, 32, seed=6)
    embeds = {"prompt_embeds": context, "negative_prompt_embeds": other, "pooled_prompt_embeds": pooled}
    compare(pair(LATENT), arguments(LATENT, prompt=None, **embeds, negative_pooled_prompt_embeds=negative))


@pytest.mark.parametrize("name", [UPSCALE, LATENT])
def test_several_pictures_for_a_prompt_equal_single_ones(pair, name):
    pipe = pair(name)[1]
    both = pipe(**arguments(name, num_images_per_prompt=2), generator=generators([3, 4])).images
    for i, seed in enumerate((3, 4)):
        np.testing.assert_allclose(both[i], pipe(**arguments(name), generator=generators([seed])).images[0], atol=1e-5)


# ---- variation


def test_a_tensor_is_what_the_image_encoder_takes(pair):
    compare(pair(VARIATION), arguments(VARIATION, image=tensor(2, 3, 32, 32)))


# ---- instructions


@pytest.mark.parametrize("scales", [(7.5, 0.9), (1.0, 1.5), (3.0, 1.0), (0.5, 2.0)], ids=str)
def test_two_scales(pair, scales):
    compare(pair(EDIT), arguments(EDIT, guidance_scale=scales[0], image_guidance_scale=scales[1]))


def test_an_edited_picture_as_latents(pair):
    compare(pair(EDIT), arguments(EDIT, image=tensor(1, 4, 12, 20)))


def test_scales_that_change_on_the_way(pair):
    def follow(pipe, step, timestep, tensors):
        pipe._image_guidance_scale = 1.2 + step
        return tensors

    compare(pair(EDIT), arguments(EDIT, callback_on_step_end=follow))


def test_guidance_by_two_scales_as_a_value(pair):
    pipe = pair(EDIT)[1]
    call = arguments(EDIT)
    named = pipe(**call, guidance_scale=5.0, image_guidance_scale=1.2, generator=generators(0)).images
    assert np.array_equal(named, pipe(**call, guidance=darkroom.InstructCFG(5.0, 1.2), generator=generators(0)).images)
    text_only = pipe(**call, guidance=darkroom.CFG(5.0), generator=generators(0)).images
    assert np.isfinite(text_only).all() and not np.array_equal(named, text_only)


# ---- latent consistency


@pytest.mark.parametrize("name", [LCM, LCM_IMAGE])
@pytest.mark.parametrize("call", [{"original_inference_steps": 30}, {"timesteps": [899, 599, 299]}, {"guidance_scale": 3.0}], ids=str)
def test_consistency(pair, name, call):
    compare(pair(name), arguments(name, **call))


def test_a_picture_switches_the_task_of_a_consistency_model(pair):
    both = [pair(name)[1](**arguments(LCM_IMAGE), generator=generators(0)).images for name in (LCM, LCM_IMAGE)]
    assert np.array_equal(*both)


def test_another_scheduler_does_not_know_the_original_steps(pair):
    pipe = darkroom.LatentConsistencyModelPipeline.from_pipe(pair(LCM)[1])
    pipe.scheduler = darkroom.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.isfinite(pipe(**arguments(LCM)).images).all()
    assert np.isfinite(pipe(**arguments(LCM_IMAGE)).images).all()
    with pytest.raises(InputError, match="original_inference_steps"):
        pipe(**arguments(LCM, original_inference_steps=30))


# ---- panorama

WIDE = {"vae_levels": 4}  # the reference counts its views as if one latent were always 8 pixels
VIEWS = {"height": 64, "width": 8 * 80}


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"view_batch_size": 2},
        {"circular_padding": True, "view_batch_size": 4},
        {"eta": 0.8, "view_batch_size": 2},
        {"guidance_scale": 1.0},
        {"width": 8 * 75},
    ],
    ids=str,
)
def test_views(pair, call):
    compare(pair(PANORAMA, **WIDE), arguments(PANORAMA, **{**VIEWS, **call, "num_inference_steps": 2, "output_type": "latent"}))


def test_rescaled_guidance_of_a_panorama_has_an_effect(pair):
    """Not so in the reference, which takes the argument and leaves it."""
    theirs, ours = pair(PANORAMA)
    call = arguments(PANORAMA, output_type="np")
    plain = compare((theirs, ours), call)
    results = [p(**call, guidance_rescale=0.7, generator=generators(0)).images for p in (theirs, ours)]
    assert np.array_equal(results[0], theirs(**call, generator=generators(0)).images)
    named = darkroom.StableDiffusionPipeline.from_pipe(ours)(**call, guidance_rescale=0.7, generator=generators(0)).images
    np.testing.assert_allclose(results[1], named, atol=1e-5)  # one view is the whole picture
    assert not np.allclose(results[1], plain, atol=1e-3)


@pytest.mark.parametrize("circular", [False, True])
def test_panorama_in_pixels(pair, circular):
    compare(pair(PANORAMA, **WIDE), arguments(PANORAMA, **VIEWS, num_inference_steps=1, circular_padding=circular))


@pytest.mark.parametrize("scheduler", ["PNDM", "EulerAncestralDiscrete", "DPMSolverMultistep", "HeunDiscrete"])
def test_views_have_schedulers_of_their_own(pair, scheduler):
    call = arguments(PANORAMA, **VIEWS, num_inference_steps=3, output_type="latent", view_batch_size=2)
    compare(pair(PANORAMA, scheduler=f"{scheduler}Scheduler", **WIDE), call)


def test_several_panoramas_equal_single_ones(pair):
    """Not so in the reference, which pairs the rows of one prompt with the texts of another."""
    pipe = pair(PANORAMA, **WIDE)[1]
    call = arguments(PANORAMA, **VIEWS, num_inference_steps=2, output_type="latent", view_batch_size=2, eta=1.0)
    prompts = ["a cat", "the red dog"]
    both = pipe(**{**call, "prompt": prompts}, generator=generators([3, 4])).images
    for i, seed in enumerate((3, 4)):
        single = pipe(**{**call, "prompt": prompts[i]}, generator=generators([seed])).images[0]
        torch.testing.assert_close(both[i], single, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(512, 2048), (512, 512), (256, 600), (1024, 800)], ids=str)
@pytest.mark.parametrize("circular", [False, True])
def test_where_the_views_are(pair, size, circular):
    theirs, ours = pair(PANORAMA, **WIDE)
    assert ours.get_views(*size, circular_padding=circular) == theirs.get_views(*size, circular_padding=circular)
    assert boxes_of(32, 32) == [(0, 64, 0, 64)]


# ---- bad input

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "depth, no picture": (DEPTH, {"image": None}, "image"),
    "depth, no step": (DEPTH, {"strength": 0.0}, "strength"),
    "depth, maps": (DEPTH, {"depth_map": torch.rand(3, 8, 8), "num_images_per_prompt": 2}, "depth_map"),
    "upscale, no picture": (UPSCALE, {"image": None}, "image"),
    "upscale, noise": (UPSCALE, {"noise_level": 351}, "noise_level"),
    "upscale, latents": (UPSCALE, {"latents": torch.zeros(1, 4, 16, 16)}, "latents"),
    "latent, pooled": (LATENT, {"prompt": None, "prompt_embeds": torch.zeros(1, 16, 32)}, "pooled_prompt_embeds"),
    "latent, twice": (LATENT, {"prompt_embeds": torch.zeros(1, 16, 32)}, "prompt, prompt_embeds"),
    "latent, layers": (LATENT, {"clip_skip": 1}, "clip_skip"),
    "latent, weights": (LATENT, {"prompt_syntax": "weighted"}, "prompt_syntax"),
    "variation, none": (VARIATION, {"image": None}, "image"),
    "edit, none": (EDIT, {"image": None}, "image"),
    "edit, adapter": (EDIT, {"ip_adapter_image": picture()}, "ip_adapter_image"),
    "edit, tensors": (EDIT, {"callback_on_step_end_tensor_inputs": ["mask"]}, "callback_on_step_end_tensor_inputs"),
    "consistency, steps": (LCM, {"num_inference_steps": 60}, "num_inference_steps"),
    "panorama, views": (PANORAMA, {"view_batch_size": 0}, "view_batch_size"),
    "panorama, size": (PANORAMA, {"width": 35}, "width"),
}


@pytest.mark.parametrize(("name", "changes", "where"), BAD.values(), ids=BAD)
def test_bad_input(pair, name, changes, where):
    pipe = pair(name)[1]
    with pytest.raises(InputError) as caught:
        pipe(**arguments(name, **changes))
    assert where in str(caught.value)


def test_a_picture_is_a_required_argument(pair):
    with pytest.raises(InputError, match="image"):
        pair(VARIATION)[1](num_inference_steps=2)


@pytest.mark.parametrize("name", [DEPTH, UPSCALE, LATENT])
def test_a_denoiser_without_room_for_the_picture(pair, name):
    plain = pair(PANORAMA)[1]
    pipe = getattr(darkroom, name)(**{**pair(name)[1].components, "unet": plain.unet})
    with pytest.raises(ConfigError, match="in_channels"):
        pipe(**arguments(name))
