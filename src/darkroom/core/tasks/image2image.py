"""From a picture and noise to another picture (SDEdit, Meng et al. 2021)."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ...errors import InputError
from ..inputs import Inputs, field
from ..media import image_to_tensor
from ..random import randn
from ..types import Run
from .text2image import SizeInputs, Text2Image, repeat_to

__all__ = ["Image2Image"]


@dataclass(kw_only=True)
class Image2ImageInputs(SizeInputs):
    image: Any = field("The picture to start from: PIL, numpy (H, W, C) or tensor (C, H, W) in [0, 1], or a list.")
    strength: float = field("Share of the noise that is added: 0 keeps the picture, 1 ignores it.", 0.8, minimum=0, maximum=1)


def from_strength(pipe: Any, run: Run, strength: float) -> Tensor:
    """The part of the schedule that remains when noising starts at `strength`: timesteps (steps,)."""
    pipe.set_timesteps(run)
    steps, kept = run.steps, min(int(run.steps * strength), run.steps)
    if kept < 1:
        got, expected = f"{strength} with {steps} steps", f"a strength of at least {1 / steps:.3g}"
        raise InputError("No step remains.", where="strength", got=got, expected=expected, fix="Raise strength or num_inference_steps.")
    begin = (steps - kept) * run.scheduler.order
    run.scheduler.set_begin_index(begin)
    return run.scheduler.timesteps[begin:]


def first(generator: Any, count: int) -> Any:
    """The first `count` of a list of generators, or the one generator (or None) for all."""
    return generator[:count] if isinstance(generator, (list, tuple)) else generator


def encode_image(pipe: Any, run: Run, image: Tensor, where: str) -> Tensor:
    """Latents of a picture (b, 3, 8H, 8W), repeated over the run's rows; latents pass: (B, C, H, W)."""
    image = image.to(pipe.device, pipe.run_dtype(run))
    if image.shape[1] != pipe.codec.channels(pipe) or image.shape[1] == 3:
        image = pipe.codec.encode(pipe, image, first(run.inputs.generator, image.shape[0]))
    return repeat_to(image, run.rows, where)


class Image2Image(Text2Image):
    """Start from a picture with `strength` of the noise. Random numbers: the codec's sample, then the noise."""

    name = "image2image"
    pictures = ("image",)
    inputs: type[Inputs] = Image2ImageInputs

    def read(self, pipe: Any, run: Run) -> Tensor:
        """The pictures (b, 3, fH, fW) in [-1, 1], or latents (b, C, H, W)."""
        inputs, factor, channels = run.inputs, max(pipe.codec.factor(pipe), pipe.size_step), pipe.codec.channels(pipe)
        return image_to_tensor(inputs.image, height=inputs.height, width=inputs.width, factor=factor, latent_channels=channels)

    def timesteps(self, pipe: Any, run: Run) -> Tensor:
        """What remains of the schedule: (steps,)."""
        return from_strength(pipe, run, run.inputs.strength)

    def start(self, pipe: Any, run: Run) -> None:
        inputs, image = run.inputs, self.read(pipe, run)
        run.timesteps = self.timesteps(pipe, run)
        if isinstance(inputs.generator, (list, tuple)):
            image = repeat_to(image, run.rows, "image")  # each generator draws a sample of its own
        clean = encode_image(pipe, run, image, "image")
        noise = randn(clean.shape, inputs.generator, clean.device, clean.dtype) if inputs.latents is None else inputs.latents.to(clean)
        run.x = run.scheduler.add_noise(clean, noise, run.timesteps[:1].repeat(run.rows))
