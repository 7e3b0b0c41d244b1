"""Each pipeline beside the reference, on checkpoints that the reference wrote: the same array within 1e-4 in [0, 1]."""

from __future__ import annotations
from functools import cache
from pathlib import Path
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import tiny
from families.side_by_side import TOLERANCE, both, compare, generators, mask, picture
import darkroom

STEPS = 5


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Checkpoints by their options, each written once."""

    @cache
    def write(**options: Any) -> Path:
        return tiny.sd(tmp_path_factory.mktemp("sd"), **options)

    return write


@pytest.fixture(scope="session")
def pair(checkpoint):
    """The same pipeline from both libraries."""

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        return both(name, checkpoint(**options), requires_safety_checker=False)

    return load


PICTURES = {
    "Img2Img": lambda: {"image": picture(), "strength": 0.6},
    "Inpaint": lambda: {"image": picture(), "mask_image": mask(), "strength": 1.0},
}


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    extra = next((make() for key, make in PICTURES.items() if key in name), {})
    return {"prompt": "the cat and the dog", "num_inference_steps": STEPS, "output_type": "np", **extra, **changes}


SD = "StableDiffusion{}Pipeline".format
PROMPTED = [SD(s) for s in ("", "Img2Img", "Inpaint", "SAG", "PAG", "PAGImg2Img", "PAGInpaint")]
UNCONDITIONAL = ["DDPMPipeline", "DDIMPipeline"]
NAMES = [*PROMPTED, *UNCONDITIONAL]

CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without guidance": {"guidance_scale": 1.0},
    "negative": {"negative_prompt": "red"},
    "two prompts": {"prompt": ["a cat", "the red dog"], "negative_prompt": ["red", ""]},
    "two pictures": {"num_images_per_prompt": 2},
    "clip skip": {"clip_skip": 1},
    "eta": {"eta": 0.7},
}


@pytest.mark.parametrize("name", PROMPTED)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls(pair, name, call):
    compare(pair(name), arguments(name, **call))


@pytest.mark.parametrize("name", PROMPTED)
def test_a_list_of_generators(pair, name):
    compare(pair(name), arguments(name, prompt=["a cat", "the red dog"]), seed=[4, 5])


@pytest.mark.parametrize("name", PROMPTED)
def test_v_prediction(pair, name):
    compare(pair(name, prediction_type="v_prediction"), arguments(name))


SCHEDULERS = """DDPM PNDM EulerDiscrete EulerAncestralDiscrete HeunDiscrete LMSDiscrete DPMSolverMultistep DDIM""".split()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", [n for n in PROMPTED if "SAG" not in n])
def test_schedulers(pair, name, scheduler):
    compare(pair(name, scheduler=f"{scheduler}Scheduler"), arguments(name))


@pytest.mark.parametrize("scheduler", ["DDPM", "PNDM", "DPMSolverMultistep"])
def test_self_attention_guidance_with_integer_timesteps(pair, scheduler):
    compare(pair(SD("SAG"), scheduler=f"{scheduler}Scheduler"), arguments("SAG"))


CONFIGURED = {
    "karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "trailing": ("EulerDiscrete", {"timestep_spacing": "trailing"}),
    "zero terminal signal": ("DDIM", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
}


@pytest.mark.parametrize("scheduler, options", CONFIGURED.values(), ids=CONFIGURED)
def test_a_scheduler_from_config(pair, scheduler, options):
    pipes = pair(SD(""), prediction_type="v_prediction")
    kept = [p.scheduler for p in pipes]
    try:
        for pipe, library in zip(pipes, (diffusers, darkroom), strict=True):
            pipe.scheduler = getattr(library, f"{scheduler}Scheduler").from_config(pipe.scheduler.config, **options)
        compare(pipes, arguments("", guidance_rescale=0.7))
    finally:
        for pipe, scheduler in zip(pipes, kept, strict=True):
            pipe.scheduler = scheduler


@pytest.mark.parametrize("name", [SD("Inpaint"), SD("PAGInpaint")])
@pytest.mark.parametrize("call", [{}, {"strength": 0.5}, {"guidance_scale": 1.0}], ids=str)
def test_nine_channels(pair, name, call):
    compare(pair(name, in_channels=9), arguments(name, **call))


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("seed", [1, [1, 2]], ids=str)
def test_inpainting_draws_in_the_same_order(pair, channels, scheduler, strength, seed):
    call = arguments("Inpaint", strength=strength, num_images_per_prompt=2)
    compare(pair(SD("Inpaint"), in_channels=channels, scheduler=scheduler), call, seed)


@pytest.mark.parametrize("channels", [4, 9])
def test_masked_image_latents(pair, channels):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(8))
    compare(pair(SD("Inpaint"), in_channels=channels), arguments("Inpaint", masked_image_latents=latents))


@pytest.mark.parametrize("padding", [0, 4, 30])
def test_padding_mask_crop(pair, padding):
    call = arguments("Inpaint", padding_mask_crop=padding, output_type="pil", strength=0.8)
    theirs, ours = (p(**call, generator=generators(0)).images for p in pair(SD("Inpaint")))
    for a, b in zip(ours, theirs, strict=True):
        difference = np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16))
        assert a.size == b.size and difference.max() <= 1


@pytest.mark.parametrize("kind", ["numpy", "tensor", "list", "latents"])
def test_pictures_in_other_forms(pair, kind):
    array = np.asarray(picture(), np.float32) / 255
    image = {
        "numpy": array[None],
        "tensor": torch.from_numpy(array).permute(2, 0, 1)[None],
        "list": [picture(1), picture(2)],
        "latents": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
    }[kind]
    prompt = ["a cat", "a dog"] if kind == "list" else "a cat"
    compare(pair(SD("Img2Img")), arguments("Img2Img", image=image, prompt=prompt))


def test_latents_and_embeddings_passed_in(pair):
    g = torch.Generator().manual_seed(5)
    embeds, other = torch.randn(2, 1, 16, 32, generator=g)
    call = arguments("", prompt=None, prompt_embeds=embeds, negative_prompt_embeds=other)
    compare(pair(SD("")), {**call, "latents": torch.randn(1, 4, 16, 16, generator=g)})


@pytest.mark.parametrize("custom", [{"timesteps": [900, 600, 300, 10]}, {"sigmas": [12.0, 5.0, 1.0, 0.2]}], ids=str)
def test_a_schedule_of_ones_own(pair, custom):
    call = arguments("", **custom)
    compare(pair(SD(""), scheduler="EulerDiscreteScheduler"), call)


def test_another_size(pair):
    compare(pair(SD("")), arguments("", height=24, width=40))


def test_guidance_that_is_distilled_into_the_network(pair):
    compare(pair(SD(""), time_cond_proj_dim=16), arguments("", guidance_scale=6.0))


def test_adaptive_perturbed_attention(pair):
    compare(pair(SD("PAG")), arguments("", pag_scale=2.0, pag_adaptive_scale=0.003))


@pytest.mark.parametrize("layers", [["down"], ["mid", "up"], "down_blocks.0"], ids=str)
def test_perturbed_attention_layers(checkpoint, layers):
    pipes = tuple(
        lib.StableDiffusionPAGPipeline.from_pretrained(checkpoint(), requires_safety_checker=False, pag_applied_layers=layers)
        for lib in (diffusers, darkroom)
    )
    compare(pipes, arguments("", pag_scale=3.0))


@pytest.mark.parametrize("output_type", ["pil", "pt", "latent"])
def test_output_types(pair, output_type):
    theirs, ours = (p(**arguments("", output_type=output_type), generator=generators(0)).images for p in pair(SD("")))
    if output_type == "pil":
        assert np.array_equal(np.asarray(ours[0]), np.asarray(theirs[0]))
    else:
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), atol=TOLERANCE, rtol=1e-5)


def test_tuples(pair):
    theirs, ours = (p(**arguments(""), generator=generators(0), return_dict=False) for p in pair(SD("")))
    np.testing.assert_allclose(ours[0], theirs[0], atol=TOLERANCE)
    assert ours[1] is theirs[1] is None


def test_callbacks_see_and_replace_the_same_tensors(pair):
    seen: dict[str, list[Any]] = {"diffusers": [], "darkroom": []}

    def follow(pipe, step, timestep, tensors):
        record = seen[type(pipe).__module__.split(".")[0]]
        record.append((step, int(timestep), tensors["latents"].clone(), tensors["prompt_embeds"].shape))
        if step == 2:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        tensors["latents"] = tensors["latents"] * 0.99
        return tensors

    names = ["latents", "prompt_embeds"]
    call = arguments("", callback_on_step_end=follow, callback_on_step_end_tensor_inputs=names)
    compare(pair(SD("")), call)
    for ours, theirs in zip(*seen.values(), strict=True):
        assert ours[:2] == theirs[:2] and ours[3] == theirs[3]
        torch.testing.assert_close(ours[2], theirs[2], atol=TOLERANCE, rtol=1e-4)


def test_the_safety_checker_decides_alike(checkpoint):
    path = checkpoint(safety_checker=True)
    pipes = tuple(lib.StableDiffusionPipeline.from_pretrained(path) for lib in (diffusers, darkroom))
    for threshold, flagged in ((-2.0, True), (2.0, False)):
        for pipe in pipes:
            pipe.safety_checker.concept_embeds_weights.data.fill_(threshold)
            pipe.safety_checker.special_care_embeds_weights.data.fill_(2.0)
        outs = [p(**arguments(""), generator=generators(0)) for p in pipes]
        assert outs[0].nsfw_content_detected == outs[1].nsfw_content_detected == [flagged]
        np.testing.assert_allclose(outs[1].images, outs[0].images, atol=TOLERANCE)
        assert (outs[1].images.max() == 0) == flagged


@pytest.mark.parametrize("name", UNCONDITIONAL)
@pytest.mark.parametrize("call", [{}, {"batch_size": 3}], ids=str)
@pytest.mark.parametrize("seed", [0, [0, 1, 2]], ids=str)
def test_unconditional(tiny_ddpm, name, call, seed):
    if isinstance(seed, list) != (call.get("batch_size", 1) == 3):
        call = {**call, "batch_size": 3 if isinstance(seed, list) else 2}
    pipes = tuple(getattr(lib, name).from_pretrained(tiny_ddpm) for lib in (diffusers, darkroom))
    compare(pipes, {**call, "num_inference_steps": STEPS, "output_type": "np"}, seed)


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.5, "use_clipped_model_output": True}], ids=str)
def test_ddim_options(tiny_ddpm, options):
    pipes = tuple(lib.DDIMPipeline.from_pretrained(tiny_ddpm) for lib in (diffusers, darkroom))
    compare(pipes, {**options, "num_inference_steps": STEPS, "output_type": "np"})
