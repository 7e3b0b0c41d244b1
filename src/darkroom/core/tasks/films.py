"""Videos whose frames a scheduler steps as so many pictures, and videos that begin with a picture. Latents are (B, C, F, H, W)."""

from __future__ import annotations
from dataclasses import dataclass, replace
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor
from ..inputs import REQUIRED, Inputs, field
from ..media import image_size, image_to_tensor
from ..random import randn
from ..types import Run
from .conditioned import check_channels
from .frames import FrameSteps
from .image2image import encode_image, from_strength
from .text2image import repeat_to
from .text2video import Text2Video, Video2Video, Video2VideoInputs, VideoSizeInputs, videos

__all__ = ["Film2Film", "Image2Motion", "Text2Film"]

# what each frame keeps of the picture, by its distance from it; the last holds for all that follow (Zhang et al. 2023, PIA, its own program)
KEPT = (
    (1, 0.9, 0.85, 0.85, 0.85, 0.8),  # little, more and much motion
    (1, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    (1, 0.8, *(0.7,) * 8, 0.6, 0.5, 0.5),
    (1, 0.9, *(0.85,) * 3, *(0.8,) * 7, 0.85, 0.85, 0.9, 1),  # the same, back to the picture at the end of 16 frames
    (1, *(0.8,) * 3, 0.79, 0.78, *(0.75,) * 5, 0.78, 0.79, 0.8, 0.8, 1),
    (1, 0.8, *(0.7,) * 4, 0.6, 0.5, 0.5, 0.6, *(0.7,) * 4, 0.8, 1),
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),  # the same, in another style than the picture's
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),
    (0.5, 0.2),
)


class Text2Film(Text2Video):
    """Start from noise. Random numbers: the noise, then that of the steps, frame by frame."""

    def start(self, pipe: Any, run: Run) -> None:
        super().start(pipe, run)
        run.scheduler = FrameSteps(run.scheduler)


@dataclass(kw_only=True)
class Film2FilmInputs(Video2VideoInputs):
    video: Any = field(
        "The video to start from: PIL pictures, an array (F, H, W, C) or a tensor (F, C, H, W) in [0, 1], latents, or several."
    )


class Film2Film(Video2Video):
    """Start from a video, at its own size, or from its latents (F, C, H, W) as they are. Random numbers: as `Video2Video`, then those of the
    steps, frame by frame."""

    inputs: type[Inputs] = Film2FilmInputs

    @staticmethod
    def are_latents(pipe: Any, video: Any) -> bool:
        channels = pipe.codec.channels(pipe)
        return channels != 3 and isinstance(video, Tensor) and video.shape[-3] == channels

    def start(self, pipe: Any, run: Run) -> None:
        inputs, factor = run.inputs, pipe.codec.factor(pipe)
        if inputs.video is None:
            height, width = (side * factor for side in inputs.latents.shape[-2:])
        else:
            film, step = videos(inputs.video)[0], max(factor, pipe.size_step)
            scale = factor if self.are_latents(pipe, film) else 1
            width, height = (side * scale // step * step for side in image_size(film, "video"))
        run.inputs = replace(inputs, height=inputs.height or height, width=inputs.width or width)
        super().start(pipe, run)
        run.scheduler = FrameSteps(run.scheduler)

    def encoded(self, pipe: Any, run: Run, height: int, width: int) -> Tensor:
        films = videos(run.inputs.video)
        if not all(self.are_latents(pipe, film) for film in films):
            return super().encoded(pipe, run, height, width)
        return repeat_to(torch.stack(films).to(pipe.device), run.rows, "video")


@dataclass(kw_only=True)
class MotionInputs(VideoSizeInputs):
    image: Any = field("The picture that begins to move: PIL, numpy (H, W, C) or tensor (C, H, W) in [0, 1], or a list.", REQUIRED)
    strength: float = field("Share of the noise: 1 starts from noise alone, less from the picture, too.", 1.0, minimum=0, maximum=1)
    motion_scale: int = field(
        "0, 1 or 2: how much moves; 3, 4 or 5: the same in a loop; 6, 7 or 8: in another style than the picture's.", 0, minimum=0,
        maximum=len(KEPT) - 1, integer=True,
    )  # fmt: skip


class Image2Motion(Text2Video):
    """Start from noise, and from a picture if `strength` is below 1. The denoiser sees the picture's latents at each frame, and how much of them is
    to be kept there, as 1 + C further channels (Zhang et al. 2023, PIA). Random numbers: the noise, the codec's sample, with a `strength`
    below 1 further noise.
    """

    name = "image2video"
    pictures = ("image",)
    inputs: type[Inputs] = MotionInputs

    def timesteps(self, pipe: Any, run: Run) -> Tensor:
        return from_strength(pipe, run, run.inputs.strength)

    def start(self, pipe: Any, run: Run) -> None:
        check_channels(pipe, 1 + pipe.codec.channels(pipe))
        super().start(pipe, run)
        inputs, shape = run.inputs, run.x.shape  # (B, C, F, H, W)
        image = image_to_tensor(inputs.image, factor=max(pipe.codec.factor(pipe), pipe.size_step))
        if isinstance(inputs.generator, (list, tuple)):
            image = repeat_to(image, run.rows, "image")  # each generator draws a sample of its own
        picture = F.interpolate(encode_image(pipe, run, image, "image"), shape[-2:])[:, :, None].expand(shape)
        row, frames = KEPT[inputs.motion_scale], shape[2]
        kept = torch.tensor((*row, *row[-1:] * frames)[:frames]).to(picture)[:, None, None]
        run.tensors["seen"] = torch.cat([kept.expand(shape[0], 1, *shape[2:]), picture], 1)  # (B, 1 + C, F, H, W)
        if inputs.strength < 1:
            noise = randn(shape, inputs.generator, run.x.device, run.x.dtype)
            run.x = run.scheduler.add_noise(picture, noise, run.timesteps[:1].repeat(run.rows))
            # passes of FreeInit take as many steps, and over the whole schedule, as noise is made anew in between
            run.inputs = replace(inputs, num_inference_steps=int(inputs.num_inference_steps * inputs.strength), strength=1.0)

    def model_input(self, x: Tensor, run: Run) -> Tensor:
        return torch.cat([x, run.tensors["seen"]], 1)
