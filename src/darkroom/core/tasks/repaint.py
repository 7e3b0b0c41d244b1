"""Fill in the masked part of a picture by resampling (Lugmayr et al. 2022, RePaint)."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ...errors import ConfigError, InputError
from ..inputs import REQUIRED, Inputs, field
from ..media import image_size, mask_to_tensor, pixels_of
from ..types import Run
from .text2image import Text2Image, repeat_to

__all__ = ["RePaint"]


@dataclass(kw_only=True)
class RePaintInputs(Inputs):
    image: Any = field("The picture: PIL or numpy (H, W, C) in [0, 1], or a tensor (B, C, H, W) in [-1, 1].", REQUIRED)
    mask_image: Any = field("What to keep: white stays, black is filled in. A tensor is (B, 1, H, W) in [0, 1].", REQUIRED)
    eta: float = field("Noise added in each step: 0 is DDIM, 1 is DDPM.", 0.0, minimum=0, maximum=1)
    jump_length: int = field("Levels of noise that a jump goes back.", 10, minimum=1, integer=True)
    jump_n_sample: int = field("How often each stretch is walked.", 10, minimum=1, integer=True)
    latents: Tensor | None = field("Noise to start from, (B, C, H, W) in units of standard deviation.")


class RePaint(Text2Image):
    """Start from noise; the scheduler puts the known part in at each step. Random numbers: the noise, then those of the steps and jumps.
    The run's timesteps are those of the steps; the jumps back towards noise follow the step before them.
    """

    name = "repaint"
    pictures = ("image", "mask_image")
    inputs: type[Inputs] = RePaintInputs

    def check(self, pipe: Any, inputs: Any, rows: int) -> None:
        super().check(pipe, inputs, rows)
        if not hasattr(pipe.scheduler, "undo_step"):
            got, fix = type(pipe.scheduler).__name__, "RePaintScheduler.from_config(pipe.scheduler.config)"
            raise ConfigError("This scheduler cannot jump back.", where="scheduler", got=got, expected="a RePaintScheduler", fix=fix)
        if (picture := image_size(inputs.image)) != (mask := image_size(inputs.mask_image, "mask_image")):
            got, expected = (f"{width} x {height} pixels (width x height)" for width, height in (mask, picture))
            raise InputError("The mask has another size than the picture.", where="mask_image", got=got, expected=expected)

    def start(self, pipe: Any, run: Run) -> None:
        inputs, place = run.inputs, {"device": pipe.device, "dtype": pipe.run_dtype(run)}
        image = pixels_of(inputs.image, 8)
        height, width = image.shape[-2:]
        mask = inputs.mask_image
        mask = mask if isinstance(mask, Tensor) and mask.ndim == 4 else mask_to_tensor(mask, height=height, width=width)
        run.tensors |= {"original_image": image.to(**place), "mask": repeat_to(mask, run.rows, "mask_image").to(**place)}
        run.x = self.noise(pipe, run, (height, width))
        run.scheduler.eta = inputs.eta
        run.scheduler.set_timesteps(inputs.num_inference_steps, inputs.jump_length, inputs.jump_n_sample, pipe.device)
        walk = run.scheduler.timesteps
        starts = torch.cat([torch.tensor([0]), (walk.cpu().diff() < 0).nonzero()[:, 0] + 1])  # where the walk goes down
        run.timesteps, run.steps = walk[starts.to(walk.device)], len(starts)
        run.tensors["starts"] = torch.cat([starts, torch.tensor([len(walk)])])

    def after_step(self, pipe: Any, run: Run) -> None:
        start, end = run.tensors["starts"][run.index : run.index + 2].tolist()
        for t in run.scheduler.timesteps[start : end - 1]:  # each level from which the walk goes up
            run.x = run.scheduler.undo_step(run.x, t, run.inputs.generator)
