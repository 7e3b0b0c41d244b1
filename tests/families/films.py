"""Tiny checkpoints of the other ways from text to video, written by the reference, on those of `tiny`."""

from __future__ import annotations
from pathlib import Path
from typing import Any
import diffusers
import torch
from families import motion, tiny

__all__ = ["pia", "text_to_video", "video_to_video", "zero", "zero_xl"]

KINDS = {  # pipelines -> the function that writes their checkpoint
    "PIAPipeline": "pia",
    "TextToVideoSDPipeline": "text_to_video",
    "TextToVideoZeroPipeline": "zero",
    "TextToVideoZeroSDXLPipeline": "zero_xl",
    "VideoToVideoSDPipeline": "video_to_video",
}
UNET: dict[str, Any] = dict(
    sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
)  # fmt: skip


def parts_of(folder: Path | str, base: str = "sd", **options: Any) -> dict[str, Any]:
    """The components of a picture checkpoint of `tiny`."""
    return diffusers.DiffusionPipeline.from_pretrained(getattr(tiny, base)(folder, **options)).components


def text_to_video(folder: Path | str, name: str = "TextToVideoSDPipeline", **options: Any) -> Path:
    """Text to video: 32 x 32 pixels; layers across frames do something."""
    parts = parts_of(folder, **options)
    torch.manual_seed(7)
    unet = diffusers.UNet3DConditionModel(**UNET).eval()
    for where, p in unet.named_parameters():
        if ".conv4." in where or ("temp_attentions" in where and "proj_out" in where):
            torch.nn.init.normal_(p, std=0.1)
    chosen = {n: parts[n] for n in ("vae", "text_encoder", "tokenizer", "scheduler")}
    getattr(diffusers, name)(**chosen, unet=unet).save_pretrained(folder)
    return Path(folder)


def video_to_video(folder: Path | str, **options: Any) -> Path:
    """The same, saved by the pipeline from video to video."""
    return text_to_video(folder, "VideoToVideoSDPipeline", **options)


def zero(folder: Path | str, **options: Any) -> Path:
    """Text2Video-Zero: a checkpoint of pictures, with or without its safety checker."""
    parts = {n: part for n, part in parts_of(folder, **options).items() if n != "image_encoder"}
    diffusers.TextToVideoZeroPipeline(**parts, requires_safety_checker=parts["safety_checker"] is not None).save_pretrained(folder)
    return Path(folder)


def zero_xl(folder: Path | str, **options: Any) -> Path:
    """The same with SDXL."""
    parts = parts_of(folder, "sdxl", **{"scheduler": "DDIMScheduler", **options})
    diffusers.TextToVideoZeroSDXLPipeline(**parts, add_watermarker=False).save_pretrained(folder)
    return Path(folder)


def pia(folder: Path | str, **options: Any) -> Path:
    """A picture that begins to move: up to 8 frames of 32 x 32 pixels."""
    parts = {n: part for n, part in parts_of(folder, **options).items() if n != "safety_checker"}
    adapter = motion.adapter(conv_in_channels=9)
    torch.manual_seed(8)
    torch.nn.init.normal_(adapter.conv_in.weight, std=0.2)
    diffusers.PIAPipeline(**parts, motion_adapter=adapter).save_pretrained(folder)
    return Path(folder)
