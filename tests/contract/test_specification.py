"""The samples of the specification that concern these pipelines, on a local checkpoint of the same layout."""

from __future__ import annotations
import json
import numpy as np
import pytest
import torch
from families import tiny
from PIL import Image
from darkroom import (
    AutoencoderKL,
    AutoModel,
    CheckpointError,
    DiffusionPipeline,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
)
from darkroom.utils import load_image


@pytest.fixture(scope="module")
def repo_id(tmp_path_factory):
    return str(tiny.sd(tmp_path_factory.mktemp("stable-diffusion-v1-5"), safety_checker=True, scheduler="PNDMScheduler"))


def test_load_and_give_a_picture(repo_id, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(repo_id, use_safetensors=True)
    assert type(pipeline) is StableDiffusionPipeline
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "start.png")
    init_image = load_image(str(tmp_path / "start.png"))
    image = pipeline(
        "Astronaut in a jungle, cold color palette, muted colors, detailed, 8k", image=init_image, num_inference_steps=4
    ).images[0]
    assert image.size == (32, 32)
    assert type(StableDiffusionImg2ImgPipeline.from_pretrained(repo_id, use_safetensors=True)) is StableDiffusionImg2ImgPipeline


def test_replace_models(repo_id):
    scheduler = HeunDiscreteScheduler.from_pretrained(repo_id, subfolder="scheduler")
    vae = AutoModel.from_pretrained(repo_id, subfolder="vae", torch_dtype=torch.float16, use_safetensors=True)
    assert type(vae) is AutoencoderKL and vae.dtype == torch.float16
    pipeline = StableDiffusionPipeline.from_pretrained(
        repo_id, scheduler=scheduler, vae=vae, torch_dtype=torch.float16, use_safetensors=True
    )
    assert pipeline.vae is vae and pipeline.scheduler is scheduler and pipeline.dtype == torch.float16
    assert HeunDiscreteScheduler in pipeline.scheduler.compatibles


def test_reuse_a_pipeline(repo_id):
    pipe_sd = DiffusionPipeline.from_pretrained(repo_id)
    pipe_sag = StableDiffusionSAGPipeline.from_pipe(pipe_sd)
    generator = torch.Generator(device="cpu").manual_seed(33)
    out_sag = pipe_sag(
        prompt="bear eats pizza",
        negative_prompt="wrong white balance, dark, sketches,worst quality,low quality",
        num_inference_steps=5,
        generator=generator,
        guidance_scale=1.0,
        sag_scale=0.75,
    ).images[0]
    assert np.asarray(out_sag).std() > 0
    assert next(pipe_sag.unet.parameters()) is next(pipe_sd.unet.parameters())


def test_go_without_the_safety_checker(repo_id):
    pipeline = DiffusionPipeline.from_pretrained(repo_id, safety_checker=None, use_safetensors=True)
    assert pipeline.safety_checker is None
    assert pipeline("a bear", num_inference_steps=2).nsfw_content_detected is None


def test_variants(repo_id, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(repo_id, safety_checker=None)
    folder = tmp_path / "stable-diffusion-v1-5"
    pipeline.save_pretrained(folder, variant="fp16")
    pipeline.save_pretrained(folder, variant="non_ema")
    with pytest.raises(CheckpointError, match="fp16") as caught:
        DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16, use_safetensors=True)
    assert "non_ema" in str(caught.value)
    loaded = DiffusionPipeline.from_pretrained(folder, variant="fp16", torch_dtype=torch.float16, use_safetensors=True)
    assert loaded.unet.dtype == torch.float16
    DiffusionPipeline.from_pretrained(folder, variant="non_ema", use_safetensors=True)
    pipeline.save_pretrained(folder)
    DiffusionPipeline.from_pretrained(folder)
    names = {f.name for f in (folder / "unet").iterdir()}
    assert {f"diffusion_pytorch_model{v}.safetensors" for v in ("", ".fp16", ".non_ema")} <= names


def test_print_and_folder_layout(repo_id, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(repo_id, use_safetensors=True)
    name, text = repr(pipeline).split(" ", 1)
    assert name == "StableDiffusionPipeline"
    listed = json.loads(text)
    assert listed["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert listed["scheduler"] == ["diffusers", "PNDMScheduler"] and listed["tokenizer"] == ["transformers", "CLIPTokenizer"]
    pipeline.save_pretrained(tmp_path / "mine")
    kept = json.loads((tmp_path / "mine" / "model_index.json").read_text())
    assert kept == {k: v for k, v in listed.items() if k != "_name_or_path"}
    for component in ("feature_extractor", "safety_checker", "scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        assert (tmp_path / "mine" / component).is_dir()
