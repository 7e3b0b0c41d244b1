"""A video from a network for pictures (Khachatryan et al. 2023, Text2Video-Zero). Latents are (B, C, F, H, W)."""

from __future__ import annotations
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ...errors import ConfigError, InputError
from ..inputs import Inputs, field
from ..random import randn
from ..types import Run
from .frames import FrameSteps
from .text2image import SizeInputs, Text2Image

__all__ = ["ZeroShotVideo", "moved"]

FIELD = 512  # pixels of the side of the picture in which motion is measured


@dataclass(kw_only=True)
class ZeroShotInputs(SizeInputs):
    output_type: str = field('What the frames come as; "tensor" is "np".', "tensor", choices=("tensor", "pil", "np", "pt", "latent"))
    video_length: int = field("Frames of the video.", 8, minimum=1, integer=True)
    motion_field_strength_x: float = field("How far the picture moves left from frame to frame.", 12, unit="pixels of 512")
    motion_field_strength_y: float = field("How far the picture moves up from frame to frame.", 12, unit="pixels of 512")
    t0: int = field("The first frame is moved where so many steps remain after the next.", 44, minimum=0, integer=True)
    t1: int = field("The frames go on from where so many steps remain after the next; more than `t0`.", 47, minimum=1, integer=True)
    frame_ids: list[int] | None = field("The frames' places in a longer video, which say how far they moved; from 0 if not given.")


def moved(x: Tensor, right: float, down: float) -> Tensor:
    """What lies `right` and `down`, in pixels of 512 x 512, of each place of (..., H, W), to the nearest sample, mirrored at the edges. Displacements
    count from a pixel's corner and not from its centre, half a pixel less: Text2Video-Zero's own program does so.
    """
    for dim, shift in ((-2, down), (-1, right)):
        size = x.shape[dim]
        place = torch.arange(size, dtype=torch.float64) + (shift - 0.5) * size / FIELD
        place = (place + 0.5) % (2 * size)  # from the edge; the mirrored map comes again after two sizes
        place = torch.where(place < size, place, 2 * size - place) - 0.5
        x = x.index_select(dim, place.round().clamp(0, size - 1).long().to(x.device))
    return x


class ZeroShotVideo(Text2Image):
    """Start from the noise of one frame. After a few steps it goes on alone for some more; what comes out, moved a little further for each
    frame, and with the noise of these steps again, are the other frames, which go on together with it. Random numbers: the noise of the first
    frame, then that of the others.
    """

    name = "zero_shot_video"
    inputs: type[Inputs] = ZeroShotInputs

    def check(self, pipe: Any, inputs: Any, rows: int) -> None:
        super().check(pipe, inputs, rows)
        if inputs.t0 >= inputs.t1:
            raise InputError("The times are in the wrong order.", where="t0, t1", got=f"{inputs.t0}, {inputs.t1}", expected="t0 < t1")
        places = inputs.frame_ids
        if places is not None and (len(places) != inputs.video_length or not all(isinstance(i, int) for i in places)):
            raise InputError("Each frame has a place.", where="frame_ids", got=places, expected=f"{inputs.video_length} whole numbers")
        if not hasattr(pipe.scheduler, "alphas") or not hasattr(pipe.scheduler, "add_noise"):
            what, got, expected = "Noise is not added again so.", type(pipe.scheduler).__name__, "one of a table of betas: DDIMScheduler"
            raise ConfigError(what, where="scheduler", got=got, expected=expected)

    def start(self, pipe: Any, run: Run) -> None:
        run.timesteps = pipe.set_timesteps(run)
        if (steps := len(run.scheduler.timesteps)) <= run.inputs.t1:
            raise InputError("There are too few steps.", where="t1", got=run.inputs.t1, expected=f"below {steps}, the number of steps")
        run.x = (self.noise(pipe, run) * run.scheduler.init_noise_sigma)[:, :, None]
        run.scheduler = FrameSteps(run.scheduler)

    def passes(self, run: Run) -> Iterator[None]:
        """One frame to T1, from there to T0, and all frames from T1 to the end."""
        inputs, until, every = run.inputs, run.timesteps, run.scheduler.timesteps
        later, sooner = (len(every) - 1 - steps for steps in (inputs.t0, inputs.t1))
        run.timesteps = every[:sooner]
        yield
        first, scheduler = run.x, copy.copy(run.scheduler)
        run.timesteps = every[sooner:later]
        if not run.stop:
            yield
        if run.stop:
            return
        places = inputs.frame_ids or range(inputs.video_length)
        strength = inputs.motion_field_strength_x, inputs.motion_field_strength_y
        others = [moved(run.x, *(by * place for by in strength)) for place in [*places][1:]]
        times = every[[later, sooner]]
        run.x, run.scheduler, run.timesteps = torch.cat([first, *self.renoised(run, others, times)], 2), scheduler, until[sooner:]
        yield

    @staticmethod
    def renoised(run: Run, frames: list[Tensor], times: Tensor) -> list[Tensor]:
        """Frames (B, C, 1, H, W) at the first of two timesteps as they are at the second: sqrt(a) x + sqrt(1 - a) eps in units in which signal and
        noise are of variance 1, where a is the product of the alphas from the first on, without the second itself (eq. 3).
        """
        if not frames:
            return []
        x = torch.cat(frames, 2).transpose(1, 2)  # noise is drawn frame by frame
        one = x.new_ones(1, 1, 1, 1, 1)
        parts = [[run.scheduler.add_noise(share * one, (1 - share) * one, t[None]) for share in (1, 0)] for t in times]
        units = [(alpha**2 + sigma**2) ** 0.5 for alpha, sigma in parts]
        a = run.scheduler.alphas[slice(*times.long().tolist())].prod().to(x)
        noise = randn(x.shape, run.inputs.generator, x.device, x.dtype)
        return [((a.sqrt() * x / units[0] + (1 - a).sqrt() * noise) * units[1]).transpose(1, 2)]
