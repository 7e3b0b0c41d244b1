"""From noise to a picture. The base of the other tasks too."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ...errors import InputError
from ..inputs import Inputs, field
from ..media import image_size
from ..random import randn
from ..types import Run

__all__ = ["SizeInputs", "Text2Image"]


@dataclass(kw_only=True)
class SizeInputs(Inputs):
    height: int | None = field("Height of the picture.", None, unit="pixels", minimum=1, integer=True)
    width: int | None = field("Width of the picture.", None, unit="pixels", minimum=1, integer=True)
    latents: Tensor | None = field("Noise to start from, (B, C, H, W) in units of standard deviation.")


def latent_size(pipe: Any, inputs: Any) -> tuple[int, int]:
    """Height and width of the latents that the inputs ask for, by default those that the denoiser was trained on."""
    factor, size = pipe.codec.factor(pipe), pipe.denoiser.config.sample_size
    height, width = size if isinstance(size, tuple) else (size, size)
    height, width = inputs.height // factor if inputs.height else height, inputs.width // factor if inputs.width else width
    if height is None or width is None:
        raise InputError("The checkpoint states no size.", where="height, width", expected="both in pixels")
    return height, width


def repeat_to(x: Tensor, rows: int, where: str) -> Tensor:
    """Repeat (b, ...) to (rows, ...), the whole batch in turn."""
    if rows % x.shape[0]:
        got = f"{x.shape[0]} for {rows} results"
        raise InputError("The pictures do not share out over the prompts.", where=where, got=got, expected="a number that divides them")
    return x.repeat(rows // x.shape[0], *[1] * (x.ndim - 1))


class Text2Image:
    """Start from noise. Random numbers: the noise."""

    name = "text2image"
    pictures: tuple[str, ...] = ()  # the arguments that hold pictures
    tensors: tuple[str, ...] = ()  # those of `run.tensors` that callbacks may see
    inputs: type[Inputs] = SizeInputs

    def __init__(self, **defaults: Any):
        self.defaults = defaults

    def check(self, pipe: Any, inputs: Any, rows: int) -> None:
        """Raise InputError for sizes, generators and pictures that cannot be used."""
        factor = max(pipe.codec.factor(pipe), pipe.size_step)
        for name in ("height", "width"):
            if (value := getattr(inputs, name, None)) is not None and value % factor:
                low = max(value // factor, 1) * factor
                expected, fix = f"a multiple of {factor} pixels", f"Use {low} or {low + factor}."
                raise InputError("The size does not divide into latents.", where=name, got=value, expected=expected, fix=fix)
        if isinstance(inputs.generator, (list, tuple)) and len(inputs.generator) != rows:
            got = f"{len(inputs.generator)} generators"
            raise InputError("One generator per picture is needed.", where="generator", got=got, expected=rows)
        for name in self.pictures:
            if getattr(inputs, name) is None:
                raise InputError("A picture is missing.", where=name, expected="PIL, numpy, tensor or list")
            image_size(getattr(inputs, name), name)

    def expected_size(self, pipe: Any, inputs: Any) -> tuple[int, int]:
        """Height and width of the latents that a run with these inputs will have."""
        return latent_size(pipe, inputs)

    def start(self, pipe: Any, run: Run) -> None:
        run.timesteps = pipe.set_timesteps(run)
        run.x = self.noise(pipe, run) * run.scheduler.init_noise_sigma

    def noise(self, pipe: Any, run: Run, size: tuple[int, int] | None = None, frames: tuple[int, ...] = ()) -> Tensor:
        """Standard normal latents, or those that were passed: (B, C, H, W), of videos (B, F, C, H, W). `size` is that of the inputs if not given."""
        shape = (run.rows, *frames, pipe.codec.channels(pipe), *(size or latent_size(pipe, run.inputs)))
        given = run.inputs.latents
        if given is None:
            return randn(shape, generator=run.inputs.generator, device=pipe.device, dtype=pipe.run_dtype(run))
        if tuple(given.shape) != shape:
            raise InputError("Latents of another shape.", where="latents", got=tuple(given.shape), expected=shape)
        return given.to(pipe.device)

    def model_input(self, x: Tensor, run: Run) -> Tensor:
        return x

    def after_step(self, pipe: Any, run: Run) -> None: ...

    def finish(self, images: Any, run: Run) -> Any:
        return images
