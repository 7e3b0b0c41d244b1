"""Bad input ends in a typed error that names what, where, found, expected or what to do, before anything runs."""

from __future__ import annotations
import json
import shutil
import numpy as np
import pytest
import torch
from families import tiny
from PIL import Image
import darkroom
from darkroom import CheckpointError, DiffusionPipeline, InputError, StableDiffusionPipeline


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    return DiffusionPipeline.from_pretrained(tiny_sd)


@pytest.fixture(scope="module")
def image_pipe(pipe):
    return darkroom.StableDiffusionImg2ImgPipeline.from_pipe(pipe)


@pytest.fixture(scope="module")
def paint_pipe(pipe):
    return darkroom.StableDiffusionInpaintPipeline.from_pipe(pipe)


def parts(error: Exception) -> str:
    """The message, checked to be whole: what, where, and found or expected or the fix."""
    text = str(error)
    assert "where:" in text and ("got:" in text or "expected:" in text or "fix:" in text) and len(text) < 2000
    return text


WHITE = Image.new("RGB", (32, 32), "white")
CALLS = {
    "prompt of another type": (dict(prompt=3), "prompt"),
    "list with a number": (dict(prompt=["a", 3]), "prompt"),
    "no prompt": (dict(prompt=None), "nothing to picture"),
    "empty list": (dict(prompt=[]), "prompt"),
    "prompt and embeddings": (dict(prompt="a", prompt_embeds=torch.zeros(1, 16, 32)), "prompt_embeds"),
    "embeddings of another width": (dict(prompt=None, prompt_embeds=torch.zeros(1, 16, 31)), "prompt_embeds"),
    "embeddings that differ": (
        dict(prompt=None, prompt_embeds=torch.zeros(2, 16, 32), negative_prompt_embeds=torch.zeros(1, 16, 32)),
        "negative_prompt_embeds",
    ),
    "negative list of another length": (dict(prompt=["a", "b"], negative_prompt=["c"] * 3), "negative_prompt"),
    "negative of another type": (dict(prompt="a", negative_prompt=5), "negative_prompt"),
    "height": (dict(prompt="a", height=30, width=32), "height"),
    "width as text": (dict(prompt="a", width="32"), "width"),
    "no steps": (dict(prompt="a", num_inference_steps=0), "num_inference_steps"),
    "negative steps": (dict(prompt="a", num_inference_steps=-3), "num_inference_steps"),
    "steps and a half": (dict(prompt="a", num_inference_steps=2.5), "num_inference_steps"),
    "more steps than training": (dict(prompt="a", num_inference_steps=1001), "num_inference_steps"),
    "guidance that is no number": (dict(prompt="a", guidance_scale=float("nan")), "guidance_scale"),
    "infinite guidance": (dict(prompt="a", guidance_scale=float("inf")), "guidance_scale"),
    "guidance as text": (dict(prompt="a", guidance_scale="7"), "guidance_scale"),
    "rescale beyond 1": (dict(prompt="a", guidance_rescale=1.5), "guidance_rescale"),
    "no pictures": (dict(prompt="a", num_images_per_prompt=0), "num_images_per_prompt"),
    "generators of another number": (dict(prompt=["a", "b"], generator=[torch.Generator()]), "generator"),
    "latents of another shape": (dict(prompt="a", latents=torch.zeros(1, 4, 8, 8)), "latents"),
    "output of another type": (dict(prompt="a", output_type="jpeg"), "output_type"),
    "unknown argument": (dict(prompt="a", stepz=3), "stepz"),
    "unknown tensor": (dict(prompt="a", callback_on_step_end_tensor_inputs=["noise"]), "noise"),
    "both schedules": (dict(prompt="a", timesteps=[1], sigmas=[1.0]), "sigmas"),
    "schedule this scheduler has not": (dict(prompt="a", sigmas=[1.0, 0.5]), "sigmas"),
    "layers beyond the encoder": (dict(prompt="a", clip_skip=40), "clip_skip"),
    "adapter that is not there": (dict(prompt="a", ip_adapter_image=WHITE), "ip_adapter_image"),
}


@pytest.mark.parametrize("arguments, named", CALLS.values(), ids=CALLS)
def test_text_to_image(pipe, arguments, named):
    with pytest.raises(InputError) as caught:
        pipe(**{"num_inference_steps": 2, **arguments})
    assert named in parts(caught.value)


IMAGES = {
    "no picture": (dict(image=None), "image"),
    "picture of another type": (dict(image=3), "image"),
    "empty list": (dict(image=[]), "image"),
    "not a number": (dict(image=torch.full((1, 3, 32, 32), float("nan"))), "image"),
    "two channels": (dict(image=np.zeros((1, 32, 32, 2), np.float32)), "image"),
    "three pictures for two prompts": (dict(prompt=["a", "b"], image=[WHITE] * 3), "image"),
    "strength above 1": (dict(image=WHITE, strength=1.1), "strength"),
    "strength below 0": (dict(image=WHITE, strength=-0.1), "strength"),
    "strength that leaves no step": (dict(image=WHITE, strength=0.0), "strength"),
}


@pytest.mark.parametrize("arguments, named", IMAGES.values(), ids=IMAGES)
def test_image_to_image(image_pipe, arguments, named):
    with pytest.raises(InputError) as caught:
        image_pipe(**{"prompt": "a", "num_inference_steps": 3, **arguments})
    assert named in parts(caught.value)


MASKS = {
    "no mask": (dict(image=WHITE), "mask_image"),
    "mask of another size": (dict(image=WHITE, mask_image=Image.new("L", (64, 32))), "mask_image"),
    "tensor mask of another size": (dict(image=torch.rand(1, 3, 32, 32), mask_image=torch.zeros(1, 1, 16, 16)), "mask_image"),
    "crop of an array": (
        dict(image=np.zeros((32, 32, 3), np.float32), mask_image=np.zeros((32, 32), np.float32), padding_mask_crop=2),
        "image",
    ),
    "crop without a mask": (dict(image=WHITE, mask_image=Image.new("L", (32, 32)), padding_mask_crop=2), "mask_image"),
    "crop to an array": (dict(image=WHITE, mask_image=Image.new("L", (32, 32), 255), padding_mask_crop=2, output_type="np"), "output_type"),
}


@pytest.mark.parametrize("arguments, named", MASKS.values(), ids=MASKS)
def test_inpainting(paint_pipe, arguments, named):
    with pytest.raises(InputError) as caught:
        paint_pipe(**{"prompt": "a", "num_inference_steps": 3, **arguments})
    assert named in parts(caught.value)


# ---- checkpoints


@pytest.fixture
def broken(tiny_sd, tmp_path):
    """A copy of a good checkpoint, to be spoiled."""
    return shutil.copytree(tiny_sd, tmp_path / "broken")


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SPOILS = {
    "no index": (lambda d: (d / "model_index.json").unlink(), "model_index.json"),
    "index that is no JSON": (lambda d: (d / "model_index.json").write_text("{"), "model_index.json"),
    "unknown pipeline": (lambda d: edit(d / "model_index.json", _class_name="NoSuchPipeline"), "NoSuchPipeline"),
    "class that is no pipeline": (lambda d: edit(d / "model_index.json", _class_name="AutoencoderKL"), "AutoencoderKL"),
    "unknown component class": (lambda d: edit(d / "model_index.json", unet=["diffusers", "NoSuchUNet"]), "unet"),
    "unknown library": (lambda d: edit(d / "model_index.json", unet=["antigravity", "UNet"]), "unet"),
    "component not listed": (lambda d: edit(d / "model_index.json", unet=...), "unet"),
    "component folder gone": (lambda d: shutil.rmtree(d / "vae"), "vae"),
    "text encoder gone": (lambda d: shutil.rmtree(d / "text_encoder"), "text_encoder"),
    "tokenizer gone": (lambda d: shutil.rmtree(d / "tokenizer"), "tokenizer"),
    "scheduler gone": (lambda d: shutil.rmtree(d / "scheduler"), "scheduler"),
    "weights gone": (lambda d: (d / WEIGHTS).unlink(), "unet"),
    "weights cut": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-100]), WEIGHTS.split("/")[1]),
    "encoder weights cut": (
        lambda d: (d / "text_encoder/model.safetensors").write_bytes((d / "text_encoder/model.safetensors").read_bytes()[:-9]),
        "text_encoder",
    ),
    "weights empty": (lambda d: (d / WEIGHTS).write_bytes(b""), "unet"),
    "another shape": (lambda d: edit(d / "unet/config.json", cross_attention_dim=48), "unet"),
    "another depth": (lambda d: edit(d / "unet/config.json", layers_per_block=2), "unet"),
    "impossible scheduler": (lambda d: edit(d / "scheduler/scheduler_config.json", num_train_timesteps=-1), "num_train_timesteps"),
    "impossible width": (lambda d: edit(d / "unet/config.json", in_channels=1_000_000_000), "unet"),
}


@pytest.mark.parametrize("spoil, named", SPOILS.values(), ids=SPOILS)
def test_checkpoints(broken, spoil, named):
    spoil(broken)
    with pytest.raises((CheckpointError, darkroom.ConfigError)) as caught:
        DiffusionPipeline.from_pretrained(broken)
    assert named in parts(caught.value)


def test_a_path_that_is_not_there(tmp_path):
    for source in (tmp_path / "nowhere", "./no/such/folder", "a/b/c"):
        with pytest.raises(CheckpointError) as caught:
            DiffusionPipeline.from_pretrained(source)
        parts(caught.value)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (dict(torch_dtype="float16"), "torch_dtype"),
        (dict(torch_dtype=torch.int8), "torch_dtype"),
        (dict(unett=None), "unett"),
        (dict(unet=None), "unet"),
    ],
    ids=str,
)
def test_arguments_of_from_pretrained(tiny_sd, arguments, named):
    with pytest.raises((CheckpointError, InputError)) as caught:
        StableDiffusionPipeline.from_pretrained(tiny_sd, **arguments)
    assert named in parts(caught.value)


def test_from_pipe_without_what_it_needs(tiny_ddpm):
    with pytest.raises(InputError, match="vae"):
        StableDiffusionPipeline.from_pipe(darkroom.DDPMPipeline.from_pretrained(tiny_ddpm))


def test_a_checker_without_its_extractor(tmp_path):
    path = tiny.sd(tmp_path, safety_checker=True)
    with pytest.raises(InputError, match="feature_extractor"):
        StableDiffusionPipeline.from_pretrained(path, feature_extractor=None)


def test_going_without_the_checker_is_said_once(tmp_path, caplog):
    path = tiny.sd(tmp_path, safety_checker=True)
    with caplog.at_level("WARNING", logger="darkroom"):
        pipe = StableDiffusionPipeline.from_pretrained(path, safety_checker=None)
    assert [r for r in caplog.records if "safety checker" in r.message] and pipe.safety_checker is None
    caplog.clear()
    StableDiffusionPipeline.from_pretrained(path, safety_checker=None, requires_safety_checker=False)
    assert not caplog.records
