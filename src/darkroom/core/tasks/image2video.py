"""From a picture and noise to the frames of a video."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ..inputs import REQUIRED, Inputs, field
from ..types import Run
from .text2image import SizeInputs, Text2Image

__all__ = ["Image2Video"]


@dataclass(kw_only=True)
class VideoInputs(SizeInputs):
    image: Any = field("The picture that begins to move: PIL, numpy (H, W, C) or tensor (C, H, W) in [0, 1], or a list.", REQUIRED)
    num_frames: int | None = field(
        "Frames of the video; as many as the network was trained on if not given.", None, minimum=1, integer=True
    )


class Image2Video(Text2Image):
    """Start from noise (B, F, C, H, W); the picture is a condition, which the family encodes. Random numbers: those of the conditions, the noise."""

    name = "image2video"
    pictures = ("image",)
    inputs: type[Inputs] = VideoInputs

    def noise(self, pipe: Any, run: Run, size: tuple[int, int] | None = None, frames: tuple[int, ...] = ()) -> Tensor:
        return super().noise(pipe, run, size, (pipe.frames(run.inputs),))
