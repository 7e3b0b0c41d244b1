"""The SDXL pipelines beside the reference, on checkpoints that the reference wrote: the same array within 1e-4 in [0, 1]."""

from __future__ import annotations
import sys
import threading
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl import watermark as their_watermark
from families import tiny
from families.side_by_side import TOLERANCE, both, compare, generators, mask, picture, tensor
import darkroom
from darkroom import CFG, PAG, SAG, ConfigError, DiffusionPipeline, InputError, InstructCFG, MissingDependencyError
from darkroom.families import stable_diffusion_xl

STEPS = 4
XL = "StableDiffusionXL{}Pipeline".format
NAMES = [XL(s) for s in ("", "Img2Img", "Inpaint", "InstructPix2Pix", "PAG", "PAGImg2Img", "PAGInpaint")]
WITH_PICTURE = [XL(s) for s in ("Img2Img", "Inpaint", "PAGImg2Img", "PAGInpaint")]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Checkpoints by their options, each written once."""

    @cache
    def write(**options: Any) -> Path:
        return tiny.sdxl(tmp_path_factory.mktemp("sdxl"), **options)

    return write


@pytest.fixture(scope="session")
def pair(checkpoint):
    """The same pipeline from both libraries."""

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        path = checkpoint(**({"in_channels": 8} if "Pix2Pix" in name else {}), **options)
        return both(name, path, add_watermarker=False)

    return load


PICTURES = {
    "Img2Img": lambda: {"image": picture(), "strength": 0.6},
    "Inpaint": lambda: {"image": picture(), "mask_image": mask(), "strength": 0.8},
    "Pix2Pix": lambda: {"image": picture()},
}


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    extra = next((make() for key, make in PICTURES.items() if key in name), {})
    return {"prompt": "the cat and the dog", "num_inference_steps": STEPS, "output_type": "np", **extra, **changes}


CALLS: dict[str, dict[str, Any]] = {
    "without guidance": {"guidance_scale": 1.0},
    "negative prompts": {"negative_prompt": "red", "negative_prompt_2": "the dog", "prompt_2": "a red cat"},
    "two prompts": {"prompt": ["a cat", "the red dog"], "prompt_2": ["a", "b"], "negative_prompt": ["red", ""], "num_images_per_prompt": 2},
    "options": {"eta": 0.7, "guidance_rescale": 0.6, "cross_attention_kwargs": {"scale": 1.0}},
    "sizes": {"original_size": (40, 60), "crops_coords_top_left": (3, 8), "target_size": (64, 48)},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls(pair, name, call):
    options = {"scheduler": "DDIMScheduler"} if "eta" in call else {}
    compare(pair(name, **options), arguments(name, **call))


@pytest.mark.parametrize("name", [n for n in NAMES if "Pix2Pix" not in n])
def test_arguments_that_editing_lacks(pair, name):
    away = {"negative_original_size": (16, 20), "negative_crops_coords_top_left": (2, 1), "negative_target_size": (24, 32)}
    compare(pair(name, force_zeros_for_empty_prompt=False), arguments(name, **away, crops_coords_top_left=(4, 4), clip_skip=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_list_of_generators(pair, name):
    compare(pair(name), arguments(name, prompt=["a cat", "the red dog"]), seed=[4, 5])


SCHEDULERS = "DDIM EulerAncestralDiscrete Heun DPMSolverMultistep LMSDiscrete PNDM".split()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", [XL(""), XL("Img2Img"), XL("PAGInpaint"), XL("InstructPix2Pix")])
def test_schedulers(pair, name, scheduler):
    scheduler = scheduler.replace("Heun", "HeunDiscrete") + "Scheduler"
    compare(pair(name, scheduler=scheduler), arguments(name))


def test_v_prediction(pair):
    compare(pair(XL(""), prediction_type="v_prediction", scheduler="DDIMScheduler"), arguments(""))


@pytest.mark.parametrize("custom", [{"timesteps": [900, 600, 300, 10]}, {"sigmas": [12.0, 5.0, 1.0, 0.2]}], ids=str)
def test_a_schedule_of_ones_own(pair, custom):
    for name in (XL(""), XL("Img2Img")):
        compare(pair(name), arguments(name, **custom))


@pytest.mark.parametrize("name", [XL(""), XL("Inpaint"), XL("InstructPix2Pix")])
def test_another_size(pair, name):
    compare(pair(name), arguments(name, height=24, width=40))


def test_embeddings_and_latents_passed_in(pair):
    given = {"prompt_embeds": tensor(2, 16, 56), "pooled_prompt_embeds": tensor(2, 16, seed=6)}
    given |= {"negative_prompt_embeds": tensor(2, 16, 56, seed=7), "negative_pooled_prompt_embeds": tensor(2, 16, seed=8)}
    for name in (XL(""), XL("Img2Img"), XL("PAGInpaint"), XL("InstructPix2Pix")):
        compare(pair(name), arguments(name, prompt=None, **given, latents=tensor(2, 4, 16, 16)))
        alone = {k: v for k, v in given.items() if "negative" not in k}
        compare(pair(name, force_zeros_for_empty_prompt=False), arguments(name, prompt=None, **alone, negative_prompt=["red", "a"]))


@pytest.mark.parametrize("options", [{}, {"force_zeros_for_empty_prompt": False}, {"refiner": True}], ids=str)
@pytest.mark.parametrize("negative", [{}, {"negative_prompt": "red"}, {"negative_prompt": "", "negative_prompt_2": "a cat"}], ids=str)
def test_encode_prompt(pair, options, negative):
    pipes = pair(XL("Img2Img" if options.get("refiner") else ""), **options)
    call = {"prompt": ["the cat", "a dog"], "prompt_2": ["red", "the"], "num_images_per_prompt": 2, "clip_skip": 1, **negative}
    if not options.get("refiner"):
        call["negative_prompt_2"] = negative.get("negative_prompt_2")
    for theirs, ours in zip(*(p.encode_prompt(**call, device="cpu", do_classifier_free_guidance=True) for p in pipes), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert pipes[1].encode_prompt("a", do_classifier_free_guidance=False)[1::2] == (None, None)


# ---- the refiner, and the parts of a schedule


@pytest.mark.parametrize("name", [XL("Img2Img"), XL("PAGImg2Img"), XL("Inpaint")])
@pytest.mark.parametrize("call", [{}, {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0, "negative_prompt": "red"}], ids=str)
def test_refiner(pair, name, call):
    pipes = pair(name, refiner=True)
    for pipe in pipes:
        pipe.register_to_config(requires_aesthetics_score=True)
    sizes = {"original_size": (40, 60), "negative_original_size": (20, 30), "negative_crops_coords_top_left": (1, 2)}
    compare(pipes, arguments(name, num_images_per_prompt=2, **sizes, **call))


@pytest.mark.parametrize("scheduler", ["EulerDiscrete", "HeunDiscrete", "DDIM", "DPMSolverMultistep"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_base_and_refiner_share_a_schedule(pair, scheduler, share):
    base, refiner = pair(XL(""), scheduler=f"{scheduler}Scheduler"), pair(XL("Img2Img"), refiner=True, scheduler=f"{scheduler}Scheduler")
    results = []
    for first, second in zip(base, refiner):
        call = {"prompt": "a red cat", "num_inference_steps": 9, "generator": generators(1)}
        half = first(**call, denoising_end=share, output_type="latent").images
        results.append((half, second(**call, denoising_start=share, image=half, output_type="np").images))
    torch.testing.assert_close(results[1][0], results[0][0], atol=TOLERANCE, rtol=1e-4)
    np.testing.assert_allclose(results[1][1], results[0][1], atol=TOLERANCE)


PARTS = [{"denoising_start": 0.4}, {"denoising_start": 0.2, "denoising_end": 0.7}, {"denoising_end": 0.6}, {"denoising_start": 0.0}]


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("name", WITH_PICTURE)
def test_parts_of_a_schedule(pair, name, part):
    call = arguments(name, **part, num_inference_steps=8, image=tensor(1, 4, 16, 16))
    compare(pair(name), {**call, "image": picture()})
    if name != XL("PAGInpaint"):  # the reference breaks there: no latents of the masked picture
        compare(pair(name), call)


def test_a_part_of_a_schedule_with_nine_channels(pair):
    compare(pair(XL("Inpaint"), in_channels=9), arguments("Inpaint", denoising_start=0.4, denoising_end=0.8, num_inference_steps=8))


# ---- inpainting


@pytest.mark.parametrize("name", [XL("Inpaint"), XL("PAGInpaint")])
@pytest.mark.parametrize("call", [{"strength": 1.0}, {"strength": 0.5}, {"guidance_scale": 1.0}], ids=str)
def test_nine_channels(pair, name, call):
    compare(pair(name, in_channels=9), arguments(name, **call))


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("seed", [1, [1, 2]], ids=str)
def test_inpainting_draws_in_the_same_order(pair, channels, strength, seed):
    call = arguments("Inpaint", strength=strength, num_images_per_prompt=2)
    compare(pair(XL("Inpaint"), in_channels=channels, scheduler="EulerAncestralDiscreteScheduler"), call, seed)


@pytest.mark.parametrize("channels", [4, 9])
def test_masked_image_latents(pair, channels):
    compare(pair(XL("Inpaint"), in_channels=channels), arguments("Inpaint", masked_image_latents=tensor(1, 4, 16, 16)))


def test_padding_mask_crop(pair):
    call = arguments("Inpaint", padding_mask_crop=4, output_type="pil")
    theirs, ours = (p(**call, generator=generators(0)).images for p in pair(XL("Inpaint")))
    for a, b in zip(ours, theirs, strict=True):
        assert a.size == b.size and np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() <= 1


# ---- guidance


def test_guidance_that_is_distilled_into_the_network(pair):
    compare(pair(XL(""), time_cond_proj_dim=16), arguments("", guidance_scale=6.0))
    compare(pair(XL("Img2Img"), time_cond_proj_dim=16), arguments("Img2Img", guidance_scale=6.0))


def test_adaptive_perturbed_attention(pair):
    compare(pair(XL("PAG")), arguments("", pag_scale=2.0, pag_adaptive_scale=0.003))


@pytest.mark.parametrize("layers", [["mid", "up"], "down_blocks.1"], ids=str)
def test_perturbed_attention_layers(checkpoint, layers):
    kinds = (lib.StableDiffusionXLPAGPipeline for lib in (diffusers, darkroom))
    compare(tuple(k.from_pretrained(checkpoint(), pag_applied_layers=layers) for k in kinds), arguments("", pag_scale=3.0))


@pytest.mark.parametrize("call", [{"image_guidance_scale": 2.5}, {"image_guidance_scale": 0.9}, {"denoising_end": 0.6}], ids=str)
def test_editing(pair, call):
    name = XL("InstructPix2Pix")
    compare(pair(name), arguments(name, **call))
    compare(pair(name), arguments(name, **call, image=tensor(1, 4, 16, 16), guidance_rescale=0.5))


def test_editing_with_cosxl(checkpoint):
    kinds = (lib.StableDiffusionXLInstructPix2PixPipeline for lib in (diffusers, darkroom))
    compare(tuple(k.from_pretrained(checkpoint(in_channels=8), is_cosxl_edit=True) for k in kinds), arguments("Pix2Pix"))


def test_editing_composes_with_terms(pair):
    pipe, call = pair(XL("InstructPix2Pix"))[1], arguments("Pix2Pix")
    plain = pipe(**call, generator=generators(0)).images
    assert np.array_equal(plain, pipe(**call, generator=generators(0), guidance=InstructCFG(5.0, 1.5)).images)
    images = pipe(**call, generator=generators(0), guidance=InstructCFG(5.0, 1.5, terms=[PAG(3.0)])).images
    assert np.isfinite(images).all() and not np.array_equal(plain, images)


@pytest.mark.parametrize("suffix", ["", "Img2Img", "Inpaint"])
def test_a_composed_call_equals_the_named_class(pair, suffix):
    pipe, call = pair(XL(""))[1], arguments(suffix)
    named = getattr(darkroom, XL(f"PAG{suffix}")).from_pipe(pipe)
    scale = 7.5 if suffix == "Inpaint" else 5.0
    composed = pipe(**call, generator=generators(0), guidance=CFG(scale, terms=[PAG(3.0)])).images
    assert np.array_equal(named(**call, generator=generators(0)).images, composed)
    assert np.isfinite(pipe(**call, generator=generators(0), guidance=CFG(scale, terms=[PAG(3.0), SAG(0.75)])).images).all()


@pytest.mark.parametrize("suffix", ["Img2Img", "Inpaint"])
def test_arguments_switch_the_task(pair, suffix):
    pipe, call = pair(XL(""))[1], arguments(suffix, denoising_end=0.9)
    named = getattr(darkroom, XL(suffix)).from_pipe(pipe)
    assert np.array_equal(pipe(**call, generator=generators(0)).images, named(**call, generator=generators(0)).images)
    assert type(pipe) is darkroom.StableDiffusionXLPipeline


# ---- results and callbacks


@pytest.mark.parametrize("output_type", ["pil", "pt", "latent"])
def test_output_types(pair, output_type):
    theirs, ours = (p(**arguments("", output_type=output_type), generator=generators(0)) for p in pair(XL("")))
    assert type(ours).__name__ == type(theirs).__name__ == "StableDiffusionXLPipelineOutput"
    if output_type == "pil":
        assert np.array_equal(np.asarray(ours.images[0]), np.asarray(theirs.images[0]))
    else:
        torch.testing.assert_close(ours.images, theirs.images, atol=TOLERANCE, rtol=1e-4)


def test_tuples(pair):
    theirs, ours = (p(**arguments(""), generator=generators(0), return_dict=False) for p in pair(XL("")))
    assert type(ours) is tuple and len(ours) == len(theirs) == 1
    np.testing.assert_allclose(ours[0], theirs[0], atol=TOLERANCE)


@pytest.mark.parametrize("name", [XL(""), XL("Img2Img"), XL("Inpaint")])
def test_callbacks_see_and_replace_the_same_tensors(pair, name):
    seen: dict[str, list[Any]] = {"diffusers": [], "darkroom": []}

    def follow(pipe, step, timestep, tensors):
        record = seen[type(pipe).__module__.split(".")[0]]
        record.append((step, int(timestep), {k: v.clone() for k, v in tensors.items()}))
        if step == 1 and name == XL(""):  # the reference's inpainting keeps two rows of the mask
            pipe._guidance_scale = 0.0
            for key in ("prompt_embeds", "add_text_embeds", "add_time_ids"):
                tensors[key] = tensors[key].chunk(2)[-1]
        tensors["latents"] = tensors["latents"] * 0.99
        return tensors

    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    compare(pair(name), arguments(name, callback_on_step_end=follow, callback_on_step_end_tensor_inputs=names))
    for ours, theirs in zip(*seen.values(), strict=True):
        assert ours[:2] == theirs[:2]
        for key in names:
            torch.testing.assert_close(ours[2][key], theirs[2][key], atol=TOLERANCE, rtol=1e-4)


def test_the_older_callback(pair):
    seen: dict[str, list[Any]] = {"diffusers": [], "darkroom": []}
    for library, pipe in zip(seen, pair(XL("InstructPix2Pix"))):
        pipe(
            **arguments("Pix2Pix"), callback=lambda i, t, x, log=seen[library]: log.append((i, int(t), x.clone())), generator=generators(0)
        )
    for ours, theirs in zip(*seen.values(), strict=True):
        assert ours[:2] == theirs[:2]
        torch.testing.assert_close(ours[2], theirs[2], atol=TOLERANCE, rtol=1e-4)


# ---- the autoencoder's precision


def test_statistics_of_latents(tmp_path):
    statistics = {"latents_mean": [-1.6, 1.1, 3.6, 4.6], "latents_std": [9.9, 6.9, 7.6, 8.1]}  # Playground v2.5 has such
    path = tiny.sdxl(tmp_path, vae_options=statistics)
    for name in (XL(""), XL("Img2Img")):
        compare(tuple(getattr(lib, name).from_pretrained(path) for lib in (diffusers, darkroom)), arguments(name))


def test_the_autoencoder_computes_in_float32_and_stays_as_it_is(checkpoint):
    """A decoder whose activations pass float16's largest number, 65504, and come back."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint(), dtype=torch.float16)
    other = darkroom.StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    with torch.no_grad():
        pipe.vae.post_quant_conv.weight.mul_(3e4)
        pipe.vae.encoder.conv_norm_out.weight.mul_(2e3)
        pipe.vae.encoder.conv_out.weight.mul_(500)
        pipe.vae.quant_conv.weight.mul_(1e-5)
    before = {n: p.clone() for n, p in pipe.vae.named_parameters()}
    homes = {n: p.data_ptr() for n, p in pipe.vae.named_parameters()}
    z = tensor(1, 4, 16, 16)
    with torch.no_grad():
        assert not pipe.vae.decode(z.half()).sample.isfinite().all()
        assert not pipe.vae.encode(tensor(1, 3, 32, 32).half()).latent_dist.mode().isfinite().all()
    call = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "pt"}
    made = pipe(**call, generator=generators(0)).images
    again = other(**call, image=made, strength=1.0, generator=generators(0)).images
    for images in (made, again):
        assert images.isfinite().all() and images.dtype == torch.float32
    for vae in (pipe.vae, other.vae):
        for name, p in vae.named_parameters():
            assert p.dtype == torch.float16 and p.data_ptr() == homes[name] and torch.equal(p, before[name])
    half = pipe(**{**call, "output_type": "latent"}, generator=generators(0)).images
    whole = type(pipe.vae).from_config(pipe.vae.config)
    whole.load_state_dict({n: t.float() for n, t in pipe.vae.state_dict().items()})
    with torch.no_grad():
        expected = whole.decode(half.float() / whole.config.scaling_factor).sample
    assert half.dtype == torch.float16 and torch.equal(made, (expected * 0.5 + 0.5).clip(0, 1))
    pipe.vae.config = pipe.vae.config.replace(force_upcast=False)
    assert not pipe(**call, generator=generators(0)).images.isfinite().all()


def test_half_precision_beside_the_reference(checkpoint):
    """The reference recasts its own weights and back; the numbers are the same."""
    pipes = [lib.StableDiffusionXLPipeline.from_pretrained(checkpoint(), torch_dtype=torch.float16) for lib in (diffusers, darkroom)]
    z = tensor(1, 4, 16, 16).half()
    call = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np", "latents": z, "denoising_end": 0.6}
    theirs, ours = (p(**call).images for p in pipes)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)  # of the UNet in float16, whose 11 bits are 5e-4; the decoder's are exact above


def test_threads_share_an_autoencoder_in_half_precision(checkpoint):
    pipe = DiffusionPipeline.from_pretrained(checkpoint(), dtype=torch.float16)
    call = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "np"}
    alone = [pipe(**call, generator=generators(seed)).images for seed in range(3)]
    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda s=s: found.update({s: pipe(**call, generator=generators(s)).images})) for s in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], alone[seed]) for seed in range(3))


def test_an_autoencoder_of_another_dtype(checkpoint):
    pipe = DiffusionPipeline.from_pretrained(checkpoint(), dtype={"default": torch.bfloat16, "vae": torch.float32})
    assert np.isfinite(pipe("a cat", num_inference_steps=2, output_type="np").images).all()


# ---- from_pipe


def test_from_pipe_there_and_back(checkpoint):
    pipe = DiffusionPipeline.from_pretrained(checkpoint())
    weights = [p for c in pipe.components.values() if isinstance(c, torch.nn.Module) for p in c.parameters()]
    before = pipe(**arguments(""), generator=generators(0)).images
    kinds = [getattr(darkroom, name) for name in NAMES if "Pix2Pix" not in name]
    for kind in kinds:
        child = kind.from_pipe(pipe)
        child(**arguments(kind.__name__), generator=generators(1))
        back = type(pipe).from_pipe(child)
        own = [p for c in back.components.values() if isinstance(c, torch.nn.Module) for p in c.parameters()]
        assert all(a is b for a, b in zip(own, weights, strict=True))  # no weight twice
        assert np.array_equal(back(**arguments(""), generator=generators(0)).images, before)
        assert back.config == {**pipe.config, **{k: v for k, v in back.config.items() if k.startswith("_")}}
    assert np.array_equal(pipe(**arguments(""), generator=generators(0)).images, before)


def test_from_pipe_keeps_options(checkpoint):
    refiner = darkroom.StableDiffusionXLImg2ImgPipeline.from_pretrained(checkpoint(refiner=True))
    assert refiner.text_encoder is refiner.tokenizer is None and refiner.requires_aesthetics_score
    painter = darkroom.StableDiffusionXLInpaintPipeline.from_pipe(refiner)
    assert painter.requires_aesthetics_score and painter.text_encoder is None
    base = darkroom.StableDiffusionXLPipeline.from_pipe(refiner)
    assert darkroom.StableDiffusionXLImg2ImgPipeline.from_pipe(base).requires_aesthetics_score


@pytest.mark.parametrize("options", [{}, {"refiner": True}], ids=str)
def test_a_single_file(checkpoint, tmp_path, options):
    pipe = DiffusionPipeline.from_pretrained(checkpoint(**options))
    pipe.save_single_file(tmp_path / "model.safetensors")
    again = DiffusionPipeline.from_single_file(tmp_path / "model.safetensors", config=checkpoint(**options))
    assert type(again) is type(pipe)
    compare((pipe, again), arguments("Img2Img" if options else ""))


# ---- the watermark


class FakeEncoder:
    """Records what it is given, and marks the first colour."""

    def set_watermark(self, kind, bits):
        self.bits = (kind, list(bits))

    def encode(self, image, method):
        assert method == "dwtDct" and self.bits[0] == "bits" and len(self.bits[1]) == 48
        marked = image.copy()
        marked[..., 0] += 10.0 * sum(self.bits[1])
        return marked


def test_watermark(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark", SimpleNamespace(WatermarkEncoder=FakeEncoder, __spec__=SimpleNamespace()))
    monkeypatch.setattr(their_watermark, "WatermarkEncoder", FakeEncoder, raising=False)
    theirs = their_watermark.StableDiffusionXLWatermarker()
    pixels = tensor(2, 3, 256, 256)
    torch.testing.assert_close(stable_diffusion_xl.watermark(pixels), theirs.apply_watermark(pixels))
    assert stable_diffusion_xl.watermark(pixels[..., :255]).equal(pixels[..., :255])
    plain = pair(XL(""))[1]
    marking = type(plain)(**plain.components, add_watermarker=True)
    call = arguments("", num_inference_steps=1, height=256, width=256)
    marked, unmarked = (p(**call, generator=generators(0)).images for p in (marking, plain))
    np.testing.assert_allclose(marked[..., :2], unmarked[..., :2], atol=1e-5)
    assert (marked[..., 2] - unmarked[..., 2]).mean() > 0.1  # OpenCV's first colour is blue
    assert darkroom.StableDiffusionXLImg2ImgPipeline.from_pipe(marking).add_watermarker


def test_a_watermark_without_the_package(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    assert DiffusionPipeline.from_pretrained(checkpoint()).add_watermarker is None
    with pytest.raises(MissingDependencyError, match="watermark") as caught:
        darkroom.StableDiffusionXLPipeline.from_pretrained(checkpoint(), add_watermarker=True)
    assert "darkroom-diffusion[watermark]" in caught.value.fix


# ---- where the reference is wrong


def test_negative_sizes_of_a_batch(pair):
    """The reference puts the sizes of two prompts in the order of one; here a batch is its pictures."""
    pipe = pair(XL(""))[1]
    away = {"negative_original_size": (16, 20), "negative_target_size": (24, 32)}
    z = tensor(2, 4, 16, 16)
    together = pipe(**arguments("", prompt=["a cat", "red"], **away), latents=z).images
    for i, prompt in enumerate(("a cat", "red")):
        alone = compare(pair(XL("")), arguments("", prompt=prompt, **away, latents=z[i : i + 1]))
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


# ---- bad input

BAD = {
    "no pooled prompt": ({"prompt": None, "prompt_embeds": torch.zeros(1, 16, 56)}, "pooled_prompt_embeds"),
    "pooled of another batch": (
        {"prompt": None, "prompt_embeds": torch.zeros(2, 16, 56), "pooled_prompt_embeds": torch.zeros(1, 16)},
        "pooled_prompt_embeds",
    ),
    "no negative pooled prompt": ({"negative_prompt_embeds": torch.zeros(1, 16, 56)}, "negative_pooled_prompt_embeds"),
    "prompt_2 and embeddings": (
        {"prompt": None, "prompt_2": "a", "prompt_embeds": torch.zeros(1, 16, 56), "pooled_prompt_embeds": torch.zeros(1, 16)},
        "prompt_2",
    ),
    "pooled of another width": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 16, 56), "pooled_prompt_embeds": torch.zeros(1, 15)},
        "requires_aesthetics_score",
    ),
    "prompt_2 of another length": ({"prompt_2": ["a", "b"]}, "prompt_2"),
    "prompt_2 of another type": ({"prompt_2": 3}, "prompt_2"),
    "negative_prompt_2 of another length": ({"negative_prompt": "a", "negative_prompt_2": ["a", "b"]}, "negative_prompt_2"),
    "a size of one number": ({"original_size": 32}, "original_size"),
    "a size of three numbers": ({"target_size": (1, 2, 3)}, "target_size"),
    "a crop that is no number": ({"crops_coords_top_left": ("a", "b")}, "crops_coords_top_left"),
    "no crop": ({"crops_coords_top_left": None}, "crops_coords_top_left"),
    "an end beyond 1": ({"denoising_end": 1.5}, "denoising_end"),
    "an end before the first step": ({"denoising_end": 0.0001}, "denoising_end"),
    "layers that are not there": ({"clip_skip": 3}, "clip_skip"),
    "an IP-Adapter": ({"ip_adapter_image": picture()}, "ip_adapter_image"),
}


@pytest.mark.parametrize("call, where", BAD.values(), ids=BAD)
def test_bad_input(pair, call, where):
    with pytest.raises(InputError) as caught:
        pair(XL(""))[1](**arguments("", **call))
    error = caught.value
    assert where in str(error.where) and (error.got, error.expected, error.fix) != (None, None, None)


BAD_PARTS = [
    ({"denoising_start": 0.6, "denoising_end": 0.5}, "denoising_start"),
    ({"denoising_start": 1.2}, "denoising_start"),
    ({"denoising_start": 0.9999}, "denoising_start"),
    ({"strength": 0.1}, "strength"),
    ({"denoising_end": 0.2, "strength": 0.5}, "strength"),
    ({"latents": torch.zeros(2, 4, 16, 16)}, "latents"),
    ({"image": None}, "image"),
]


@pytest.mark.parametrize("call, where", BAD_PARTS, ids=str)
def test_bad_parts(pair, call, where):
    with pytest.raises(InputError) as caught:
        pair(XL("Img2Img"))[1](**arguments("Img2Img", **call))
    assert caught.value.where == where


def test_an_aesthetic_score_that_the_network_does_not_read(pair):
    pipe = darkroom.StableDiffusionXLImg2ImgPipeline.from_pipe(pair(XL("Img2Img"))[1])
    pipe.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(InputError, match="requires_aesthetics_score=False"):
        pipe(**arguments("Img2Img"))


def test_a_network_that_does_not_see_a_picture(checkpoint):
    pipe = darkroom.StableDiffusionXLInstructPix2PixPipeline.from_pretrained(checkpoint())
    with pytest.raises(ConfigError, match="in_channels"):
        pipe(**arguments("Pix2Pix"))


def test_latents_of_another_size_to_edit(pair):
    with pytest.raises(InputError, match="Latents of another size"):
        pair(XL("InstructPix2Pix"))[1](**arguments("Pix2Pix", image=tensor(1, 4, 8, 8)))


def test_numbers_of_prompts(pair):
    with pytest.raises(InputError) as caught:
        pair(XL(""))[1].encode_prompt(["a", "b"], ["a", "b", "c"])
    assert caught.value.where == "prompt" and caught.value.got == 2


def test_no_text_encoder(pair):
    pipe = pair(XL(""))[1]
    bare = type(pipe)(**{**pipe.components, **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))})
    with pytest.raises(InputError, match="no text encoder"):
        bare(**arguments(""))
    given = dict(
        zip(("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"), pipe.encode_prompt("a"))
    )
    expected = pipe(**arguments("", prompt="a"), generator=generators(0)).images
    assert np.array_equal(bare(**arguments("", prompt=None, **given), generator=generators(0)).images, expected)
    first = type(pipe)(**{**pipe.components, "text_encoder_2": None, "tokenizer_2": None})
    with pytest.raises(InputError, match="no pooled prompt"):
        first(**arguments(""))


def test_a_negative_prompt_2_that_nothing_reads_is_told(pair, caplog):
    compare(pair(XL("")), arguments("", negative_prompt_2="red"))
    assert "negative_prompt_2 is not read" in caplog.text
