"""Tasks whose denoiser sees a picture beside the latents: as further channels, or among its conditions."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor
from ...errors import ConfigError
from ..inputs import REQUIRED, Inputs, field
from ..media import image_to_tensor
from ..random import randn
from ..types import Run
from .image2image import Image2Image, Image2ImageInputs, encode_image
from .text2image import SizeInputs, Text2Image, repeat_to

__all__ = ["Depth2Image", "Edit", "LatentUpscale", "Upscale", "Variation", "check_channels", "seen_latents"]


@dataclass(kw_only=True)
class DepthInputs(Image2ImageInputs):
    depth_map: Tensor | None = field("Inverse depth, (b, H, W) of any size and unit; estimated if not given.")


@dataclass(kw_only=True)
class PictureInputs(SizeInputs):
    image: Any = field("The picture to work on: PIL, numpy (H, W, C) or tensor (C, H, W) in [0, 1], or a list.")


@dataclass(kw_only=True)
class EditInputs(PictureInputs):
    image_guidance_scale: float = field("How closely to keep to the picture; below 1 there is no guidance.", 1.5)


@dataclass(kw_only=True)
class UpscaleInputs(PictureInputs):
    noise_level: int = field("Noise added to the small picture, as a timestep: more invents more.", 20, minimum=0, integer=True)


def check_channels(pipe: Any, extra: int) -> None:
    """Raise ConfigError for a denoiser that does not take `extra` channels beside the latents."""
    channels, found = pipe.codec.channels(pipe), pipe.denoiser.config.in_channels
    if found != channels + extra:
        expected = f"{channels} + {extra}"
        raise ConfigError("This denoiser does not see such a picture.", where="in_channels", got=found, expected=expected)


def seen_latents(pipe: Any, image: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Latents of a picture (b, 3, fH, fW) for a denoiser that sees it, or such latents: (rows, C, H, W). They are the mode, and they are not scaled:
    networks are trained so. Raises ConfigError for a denoiser that sees none.
    """
    image, channels = image.to(pipe.device, dtype), pipe.codec.channels(pipe)
    check_channels(pipe, channels)
    if image.shape[1] != channels:
        vae = pipe.codec.network(pipe, "encode")
        image = vae.encode(image.to(vae.dtype)).latent_dist.mode().to(dtype)
    return repeat_to(image, rows, "image")


class Depth2Image(Image2Image):
    """Start from a picture and keep its depth, which is one further channel. Random numbers: as `Image2Image`."""

    name = "depth2image"
    tensors = ("depth_mask",)
    inputs: type[Inputs] = DepthInputs

    def start(self, pipe: Any, run: Run) -> None:
        check_channels(pipe, 1)
        super().start(pipe, run)
        depth = run.inputs.depth_map
        depth = pipe.estimate_depth(run.inputs.image) if depth is None else depth.to(pipe.device)
        depth = F.interpolate(depth.to(run.x.dtype)[:, None], run.x.shape[-2:], mode="bicubic", align_corners=False)  # (b, 1, H, W)
        low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        depth = 2 * (depth - low) / (high - low).clamp_min(torch.finfo(depth.dtype).tiny) - 1  # a flat depth is all -1
        run.tensors["depth_mask"] = repeat_to(depth, run.rows, "depth_map")

    def model_input(self, x: Tensor, run: Run) -> Tensor:
        return torch.cat([x, run.tensors["depth_mask"]], 1)  # (B, C + 1, H, W)


class Upscale(Text2Image):
    """From noise to a picture whose latents have the size of a small picture's pixels: that picture, made noisy, is three further channels.
    Random numbers: the noise on the small picture, the latents.
    """

    name = "upscale"
    pictures = ("image",)
    inputs: type[Inputs] = UpscaleInputs

    def start(self, pipe: Any, run: Run) -> None:
        run.timesteps = pipe.set_timesteps(run)
        run.tensors["small"] = small = self.small(pipe, run)
        check_channels(pipe, small.shape[1])
        height, width = small.shape[-2:]
        run.x = self.noise(pipe, run, (height, width)) * run.scheduler.init_noise_sigma

    def small(self, pipe: Any, run: Run) -> Tensor:
        """What the denoiser sees: (B, 3, H, W)."""
        inputs, factor = run.inputs, pipe.codec.factor(pipe)
        image = image_to_tensor(inputs.image, height=inputs.height, width=inputs.width, factor=factor, resize_mode="bicubic")
        image = image.to(pipe.device, pipe.run_dtype(run))
        if isinstance(inputs.generator, (list, tuple)):
            image = repeat_to(image, run.rows, "image")  # each generator draws noise of its own
        noise = randn(image.shape, inputs.generator, image.device, image.dtype)
        noisy = pipe.low_res_scheduler.add_noise(image, noise, torch.tensor([inputs.noise_level], device=image.device))
        return repeat_to(noisy, run.rows, "image")

    def model_input(self, x: Tensor, run: Run) -> Tensor:
        return torch.cat([x, run.tensors["small"]], 1)  # (B, C + 3, H, W)


class LatentUpscale(Upscale):
    """From noise to latents of twice the size of others, which, enlarged, are as many further channels. Random numbers: the codec's sample, the
    latents.
    """

    inputs: type[Inputs] = PictureInputs

    def small(self, pipe: Any, run: Run) -> Tensor:
        inputs, factor, channels = run.inputs, pipe.codec.factor(pipe), pipe.codec.channels(pipe)
        fit = dict(height=inputs.height, width=inputs.width, factor=factor, resize_mode="bicubic")
        image = image_to_tensor(inputs.image, latent_channels=channels, **fit)
        if isinstance(inputs.generator, (list, tuple)):
            image = repeat_to(image, run.rows, "image")  # each generator draws a sample of its own
        return F.interpolate(encode_image(pipe, run, image, "image"), scale_factor=2, mode="nearest")  # (B, C, 2H, 2W)


class Edit(Text2Image):
    """From noise to an edited picture: the denoiser sees the picture's latents as further channels; they are among the conditions, of the name
    `image_latents`. Random numbers: the noise.
    """

    name = "edit"
    pictures = ("image",)
    inputs: type[Inputs] = EditInputs

    def start(self, pipe: Any, run: Run) -> None:
        run.timesteps = pipe.set_timesteps(run)
        height, width = run.cond.positive.cond["image_latents"].shape[-2:]
        run.x = self.noise(pipe, run, (height, width)) * run.scheduler.init_noise_sigma


@dataclass(kw_only=True)
class VariationInputs(SizeInputs):
    image: Any = field("The picture to vary: PIL or a list, or a tensor (b, 3, h, w) as the image encoder takes it.", REQUIRED)


class Variation(Text2Image):
    """From noise to another picture of the same things; the picture is the condition. Random numbers: the latents."""

    name = "variation"
    pictures = ("image",)
    inputs: type[Inputs] = VariationInputs
