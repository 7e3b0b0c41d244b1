"""From a picture and noise to another picture (SDEdit, Meng et al. 2021)."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ...errors import InputError
from ..inputs import Inputs, field
from ..media import image_size, image_to_tensor
from ..random import randn
from ..types import Run
from .text2image import SizeInputs, Text2Image, repeat_to

__all__ = ["GoOn", "Image2Image"]


@dataclass(kw_only=True)
class Image2ImageInputs(SizeInputs):
    image: Any = field("The picture to start from: PIL, numpy (H, W, C) or tensor (C, H, W) in [0, 1], or a list.")
    strength: float = field("Share of the noise that is added: 0 keeps the picture, 1 ignores it.", 0.8, minimum=0, maximum=1)


def cutoff(scheduler: Any, share: float) -> int:
    """The training timestep at which `share` of the way from noise to the picture is done."""
    count = scheduler.config.num_train_timesteps
    return round(count - share * count)


def from_strength(pipe: Any, run: Run, strength: float) -> Tensor:
    """The part of the schedule that remains when noising starts at `strength`, or at a `denoising_start` among the inputs: timesteps (steps,)."""
    timesteps, start = pipe.set_timesteps(run), getattr(run.inputs, "denoising_start", None)
    steps, every = run.steps, run.scheduler.timesteps
    if start is not None and 0 < start < 1:
        kept = int((every < cutoff(run.scheduler, start)).sum())
        kept += run.scheduler.order == 2 and kept % 2 == 0  # both evaluations of a step of second order
        begin, where, got, fix = len(every) - kept, "denoising_start", start, "Begin earlier, or raise num_inference_steps."
    else:
        kept = min(int(steps * strength), steps)
        begin, where, got, fix = (steps - kept) * run.scheduler.order, "strength", strength, "Raise strength or num_inference_steps."
    if kept < 1 or begin >= len(timesteps):
        expected = f"a strength of at least {1 / steps:.3g}" if where == "strength" and kept < 1 else "below denoising_end"
        raise InputError("No step remains.", where=where, got=f"{got} with {steps} steps", expected=expected, fix=fix)
    run.scheduler.set_begin_index(begin)
    return timesteps[begin:]


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

    def expected_size(self, pipe: Any, inputs: Any) -> tuple[int, int]:
        picture, factor = inputs.image, max(pipe.codec.factor(pipe), pipe.size_step)
        width, height = image_size(picture)
        item = picture[0] if isinstance(picture, (list, tuple)) else picture
        if isinstance(item, Tensor) and item.shape[-3:-2] == (pipe.codec.channels(pipe),) and item.shape[-3] != 3:
            return height, width  # latents
        height, width = ((given or own) // factor * factor for given, own in ((inputs.height, height), (inputs.width, width)))
        return height // pipe.codec.factor(pipe), width // pipe.codec.factor(pipe)

    def timesteps(self, pipe: Any, run: Run) -> Tensor:
        """What remains of the schedule: (steps,)."""
        return from_strength(pipe, run, run.inputs.strength)

    def start(self, pipe: Any, run: Run) -> None:
        inputs, factor, channels = run.inputs, max(pipe.codec.factor(pipe), pipe.size_step), pipe.codec.channels(pipe)
        image = image_to_tensor(inputs.image, height=inputs.height, width=inputs.width, factor=factor, latent_channels=channels)
        run.timesteps = self.timesteps(pipe, run)
        if isinstance(inputs.generator, (list, tuple)):
            image = repeat_to(image, run.rows, "image")  # each generator draws a sample of its own
        clean = encode_image(pipe, run, image, "image")
        run.x = self.noised(run, clean)

    def noised(self, run: Run, clean: Tensor) -> Tensor:
        """The latents to start from, from those of the picture, (B, C, H, W)."""
        given = run.inputs.latents
        noise = randn(clean.shape, run.inputs.generator, clean.device, clean.dtype) if given is None else given.to(clean)
        return run.scheduler.add_noise(clean, noise, run.timesteps[:1].repeat(run.rows))


class GoOn(Image2Image):
    """Image to image in which `latents`, if there are any, are the noisy picture to go on from."""

    def start(self, pipe: Any, run: Run) -> None:
        if run.inputs.latents is None:
            return super().start(pipe, run)
        run.timesteps, run.x = self.timesteps(pipe, run), run.inputs.latents.to(pipe.device, pipe.run_dtype(run))
