"""Tiny checkpoints with random weights, written by the reference: real layouts and real networks of a few hundred kB."""

from __future__ import annotations
import inspect
import json
from pathlib import Path
from typing import Any
import diffusers
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

__all__ = ["ddpm", "sd", "sdxl", "sdxl_edit"]

SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SCHEDULE_OPTIONS = dict(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)
MERGES = ("t h", "th e</w>", "a n", "an d</w>", "c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>")
TOKENS = 16  # the length of an encoded prompt


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Every byte as a token, at a word's end too, and the merges for a few words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable]
    letters += [chr(256 + i) for i in range(256 - len(printable))]  # CLIP's stand-ins for bytes that do not print
    tokens = [*letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", "utf-8")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    made.save_pretrained(folder)
    return made


def make_scheduler(name: str, prediction_type: str, **options: Any) -> Any:
    """A scheduler of the reference with Stable Diffusion's schedule, as far as the class has these options."""
    kind = getattr(diffusers, name)
    wanted = {**SCHEDULE, **SCHEDULE_OPTIONS, "prediction_type": prediction_type}
    known = inspect.signature(kind.__init__).parameters
    return kind(**{k: v for k, v in wanted.items() if k in known}, **options)


def sd(
    folder: Path | str,
    *,
    in_channels: int = 4,
    prediction_type: str = "epsilon",
    scheduler: str = "DDIMScheduler",
    safety_checker: bool = False,
    time_cond_proj_dim: int | None = None,
    seed: int = 0,
    **unet_options: Any,
) -> Path:
    """A Stable Diffusion checkpoint of two levels: pictures of 32 x 32 pixels, latents of (4, 16, 16).

    `in_channels=9` makes an inpainting checkpoint. Further options go to the UNet.
    """
    folder = Path(folder)
    torch.manual_seed(seed)
    words = tokenizer(folder / "tokenizer")
    unet = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 16,
            "in_channels": in_channels,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            "time_cond_proj_dim": time_cond_proj_dim,
            **unet_options,
        }
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = dict(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=TOKENS,
        **ends,
    )
    checker = extractor = None
    if safety_checker:
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, projection_dim=32
        )
        checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=32))
        extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=words,
        scheduler=make_scheduler(scheduler, prediction_type),
        safety_checker=checker,
        feature_extractor=extractor,
        requires_safety_checker=safety_checker,
    )
    pipe.save_pretrained(folder)
    return folder


def ddpm(folder: Path | str, *, scheduler: str = "DDPMScheduler", seed: int = 0) -> Path:
    """An unconditional checkpoint in pixel space: pictures of 16 x 16 pixels."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    kind = {"DDPMScheduler": diffusers.DDPMPipeline, "DDIMScheduler": diffusers.DDIMPipeline}[scheduler]
    kind(unet=unet, scheduler=getattr(diffusers, scheduler)(num_train_timesteps=1000)).save_pretrained(folder)
    return Path(folder)


def sdxl(
    folder: Path | str,
    *,
    in_channels: int = 4,
    refiner: bool = False,
    prediction_type: str = "epsilon",
    scheduler: str = "EulerDiscreteScheduler",
    force_zeros_for_empty_prompt: bool = True,
    seed: int = 0,
    vae_options: dict[str, Any] | None = None,
    **unet_options: Any,
) -> Path:
    """An SDXL checkpoint of the size of `sd`'s; its states are 32 and 24 wide, the pooled prompt 16.

    `in_channels` of 9 is for inpainting, 8 for editing. `refiner` has the second text encoder only, and an aesthetic score. Further options
    go to the UNet.
    """
    folder = Path(folder)
    torch.manual_seed(seed)
    words, words_2 = tokenizer(folder / "tokenizer"), tokenizer(folder / "tokenizer_2")
    words_2.pad_token = "!"
    unet = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 16,
            "in_channels": in_channels,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 24 if refiner else 56,
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 8 * (5 if refiner else 6),
            "norm_num_groups": 8,
            **unet_options,
        }
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=0.13025,
        **(vae_options or {}),
    )
    text = dict(
        vocab_size=len(words),
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        projection_dim=16,
    )
    first = CLIPTextModel(CLIPTextConfig(hidden_size=32, pad_token_id=words.pad_token_id, **text))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, hidden_act="gelu", pad_token_id=words_2.pad_token_id, **text))
    kinds = {4: "StableDiffusionXLPipeline", 8: "StableDiffusionXLInstructPix2PixPipeline", 9: "StableDiffusionXLInpaintPipeline"}
    kind = getattr(diffusers, "StableDiffusionXLImg2ImgPipeline" if refiner else kinds[in_channels])
    pipe = kind(
        unet=unet,
        vae=vae,
        text_encoder=None if refiner else first,
        text_encoder_2=second,
        tokenizer=None if refiner else words,
        tokenizer_2=words_2,
        scheduler=make_scheduler(scheduler, prediction_type),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
        **({"requires_aesthetics_score": True} if refiner else {}),
    )
    pipe.save_pretrained(folder)
    return folder


def sdxl_edit(folder: Path | str) -> Path:
    """An SDXL checkpoint that edits pictures."""
    return sdxl(folder, in_channels=8)
