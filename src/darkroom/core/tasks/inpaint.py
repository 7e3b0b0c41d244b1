"""Fill in the masked part of a picture."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor
from ...errors import ConfigError, InputError
from ..inputs import Inputs, field
from ..media import crop_region, image_size, image_to_tensor, mask_to_tensor, overlay
from ..random import randn
from ..types import Run
from .image2image import Image2ImageInputs, encode_image, first, from_strength
from .text2image import Text2Image, latent_size, repeat_to

__all__ = ["Inpaint"]


@dataclass(kw_only=True)
class InpaintInputs(Image2ImageInputs):
    mask_image: Any = field("Where to paint: white is filled in, black stays. PIL, numpy or tensor in [0, 1].")
    masked_image_latents: Tensor | None = field("Latents of the picture without the masked part, (B, C, H, W).")
    padding_mask_crop: int | None = field(
        "Work on the mask's surroundings only, this wide, and paste the result back.", None, unit="pixels", minimum=0
    )


class Inpaint(Text2Image):
    """Paint into a mask: with a denoiser that sees mask and picture as extra channels, or by blending after each step.
    Random numbers: the codec's sample of the picture (if it is needed), the noise, the codec's sample of the masked picture.
    """

    name = "inpaint"
    pictures = ("image", "mask_image")
    tensors = ("mask", "masked_image_latents")
    inputs: type[Inputs] = InpaintInputs

    def check(self, pipe: Any, inputs: Any, rows: int) -> None:
        super().check(pipe, inputs, rows)
        if inputs.padding_mask_crop is not None:
            from PIL.Image import Image

            for name in self.pictures:
                if not isinstance(value := getattr(inputs, name), Image):
                    raise InputError("Cropping needs a PIL picture.", where=name, got=type(value).__name__, expected="PIL.Image.Image")
            if inputs.output_type != "pil":
                raise InputError("Cropping gives PIL pictures.", where="output_type", got=inputs.output_type, expected="pil")
        picture, mask = image_size(inputs.image), image_size(inputs.mask_image, "mask_image")
        latents = isinstance(inputs.image, Tensor) and inputs.image.shape[-3:-2] == (pipe.codec.channels(pipe),)
        if picture != mask and not latents:
            got, expected = (f"{width} x {height} pixels (width x height)" for width, height in (mask, picture))
            raise InputError("The mask has another size than the picture.", where="mask_image", got=got, expected=expected)

    def start(self, pipe: Any, run: Run) -> None:
        inputs, codec = run.inputs, pipe.codec
        factor, channels = codec.factor(pipe), codec.channels(pipe)
        extra = pipe.denoiser.config.in_channels - channels
        if extra not in (0, channels + 1):
            expected = f"{channels}, or {2 * channels + 1} for picture and mask"
            raise ConfigError("This denoiser cannot paint into a mask.", where="in_channels", got=extra + channels, expected=expected)
        run.timesteps = from_strength(pipe, run, inputs.strength)
        height, width = (side * factor for side in latent_size(pipe, inputs))
        pad = inputs.padding_mask_crop
        crop = None if pad is None else crop_region(inputs.mask_image, width, height, pad)
        fit = dict(height=height, width=width, factor=factor, crop=crop, resize_mode="fill" if crop else "default")
        image = image_to_tensor(inputs.image, latent_channels=channels, **fit)
        pixel_mask = mask_to_tensor(inputs.mask_image, **fit)  # (b, 1, 8H, 8W)
        whole, resumed = inputs.strength == 1.0, getattr(inputs, "denoising_start", None) is not None
        if extra == 0 or resumed or (not whole and inputs.latents is None):
            run.tensors["image_latents"] = encode_image(pipe, run, image, "image")
        run.tensors["noise"] = noise = self.noise(pipe, run)
        if resumed:
            run.x = run.tensors["image_latents"]
        elif whole or inputs.latents is not None:
            run.x = noise * run.scheduler.init_noise_sigma
        else:
            run.x = run.scheduler.add_noise(run.tensors["image_latents"], noise, run.timesteps[:1].repeat(run.rows))
        mask = F.interpolate(pixel_mask, run.x.shape[-2:]).to(pipe.device, pipe.run_dtype(run))
        run.tensors["mask"] = repeat_to(mask, run.rows, "mask_image")
        masked = inputs.masked_image_latents
        if masked is None and image.shape[1] == 3:
            masked = image * (pixel_mask < 0.5)  # (b, 3, 8H, 8W)
        if extra and masked is None:
            expected = f"(b, {channels}, H, W), because `image` is given as latents"
            raise InputError("Latents of the masked picture are missing.", where="masked_image_latents", expected=expected)
        if extra:
            run.tensors["masked_image_latents"] = encode_image(pipe, run, masked, "masked_image_latents")
        elif masked is not None and masked.shape[1] == 3:
            # blending has no use for this sample, but the draw moves the generator for all that follows
            shape = (masked.shape[0], *noise.shape[1:])
            randn(shape, generator=first(inputs.generator, shape[0]), device=noise.device, dtype=noise.dtype)

    def model_input(self, x: Tensor, run: Run) -> Tensor:
        if "masked_image_latents" not in run.tensors:
            return x
        return torch.cat([x, run.tensors["mask"], run.tensors["masked_image_latents"]], 1)  # (B, 2C + 1, H, W)

    def after_step(self, pipe: Any, run: Run) -> None:
        if "masked_image_latents" in run.tensors:
            return
        kept = run.tensors["image_latents"]
        if run.index < len(run.timesteps) - 1:
            kept = run.scheduler.add_noise(kept, run.tensors["noise"], run.timesteps[run.index + 1 : run.index + 2])
        mask = run.tensors["mask"]
        run.x = (1 - mask) * kept + mask * run.x

    def finish(self, images: Any, run: Run) -> Any:
        inputs = run.inputs
        if inputs.padding_mask_crop is None:
            return images
        width, height = images[0].size
        box = crop_region(inputs.mask_image, width, height, inputs.padding_mask_crop)
        return [overlay(inputs.mask_image, inputs.image, image, box) for image in images]
