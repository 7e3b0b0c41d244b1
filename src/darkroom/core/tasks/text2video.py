"""From noise, or from a video and noise, to a video. Latents are (B, C, F, H, W)."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ...errors import InputError
from ..inputs import Inputs, field
from ..media import image_size, image_to_tensor
from ..random import randn
from ..types import Run
from .image2image import from_strength
from .text2image import SizeInputs, Text2Image, latent_size, repeat_to

__all__ = ["Text2Video", "Video2Video", "videos"]


def videos(value: Any, where: str = "video") -> list[Any]:
    """An input as a list of videos, each a list of pictures, an array (F, H, W, C) or a tensor (F, C, H, W). It may be one of these, a list of
    them, or an array or tensor of five dimensions."""
    if getattr(value, "ndim", 0) == 5:
        return list(value)
    if isinstance(value, (np.ndarray, Tensor)):
        if value.ndim != 4:
            expected = "(F, C, H, W), arrays (F, H, W, C)"
            raise InputError("A video has four dimensions.", where=where, got=tuple(value.shape), expected=expected)
        return [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError("A video is missing.", where=where, got=type(value).__name__, expected="a list of pictures, an array or a tensor")
    first = value[0]
    several = isinstance(first, (list, tuple)) or getattr(first, "ndim", 0) >= 4
    return [one for item in value for one in videos(item, where)] if several else [list(value)]


@dataclass(kw_only=True)
class VideoSizeInputs(SizeInputs):
    num_frames: int = field("Frames of the video.", 16, minimum=1, integer=True)
    latents: Tensor | None = field("Noise to start from, (B, C, F, H, W) in units of standard deviation.")


@dataclass(kw_only=True)
class Video2VideoInputs(SizeInputs):
    video: Any = field(
        "The video to start from: a list of PIL pictures, an array (F, H, W, C) or a tensor (F, C, H, W) in [0, 1], or several."
    )
    strength: float = field("Share of the noise that is added: 0 keeps the video, 1 ignores it.", 0.8, minimum=0, maximum=1)
    enforce_inference_steps: bool = field("Run `num_inference_steps` whatever the strength, not that share of them.", False)
    latents: Tensor | None = field("Noisy latents to go on from in place of a video, (B, C, F, H, W).")


class Text2Video(Text2Image):
    """Start from noise. Random numbers: the noise, then, where frames of it come again, their order."""

    name = "text2video"
    inputs: type[Inputs] = VideoSizeInputs

    def frames(self, pipe: Any, inputs: Any) -> int:
        """How many frames the result has."""
        return inputs.num_frames  # type: ignore[no-any-return]

    def timesteps(self, pipe: Any, run: Run) -> Tensor:
        """The timesteps of one pass: (steps,)."""
        return pipe.set_timesteps(run)  # type: ignore[no-any-return]

    def start(self, pipe: Any, run: Run) -> None:
        run.timesteps = self.timesteps(pipe, run)
        run.x = self.noise(pipe, run) * run.scheduler.init_noise_sigma

    def noise(self, pipe: Any, run: Run, size: tuple[int, int] | None = None, frames: Any = ()) -> Tensor:
        inputs, free, count = run.inputs, pipe.free_noise, self.frames(pipe, run.inputs)
        shape = (run.rows, pipe.codec.channels(pipe), count, *(size or latent_size(pipe, inputs)))
        given = inputs.latents
        if given is None:
            x = randn(shape, generator=inputs.generator, device=pipe.device, dtype=pipe.run_dtype(run))
            return x if free is None else free.noise(x, count, inputs.generator)
        if free is not None and given.shape[2:3] == (free.windows.length,):
            given = free.noise(given, count, inputs.generator)
        if tuple(given.shape) != shape:
            raise InputError("Latents of another shape.", where="latents", got=tuple(given.shape), expected=shape)
        return given.to(pipe.device)


class Video2Video(Text2Video):
    """Start from a video with `strength` of the noise. Random numbers: the codec's samples, video by video, then the noise (B, F, C, H, W)."""

    name = "video2video"
    inputs: type[Inputs] = Video2VideoInputs

    def check(self, pipe: Any, inputs: Any, rows: int) -> None:
        super().check(pipe, inputs, rows)
        if (inputs.video is None) == (inputs.latents is None):
            what = "There is nothing to start from." if inputs.video is None else "The same thing is given twice."
            raise InputError(what, where="video, latents", expected="one of the two")
        for video in [] if inputs.video is None else videos(inputs.video):
            image_size(video, "video")

    def frames(self, pipe: Any, inputs: Any) -> int:
        return len(videos(inputs.video)[0]) if inputs.latents is None else inputs.latents.shape[2]

    def timesteps(self, pipe: Any, run: Run) -> Tensor:
        if not run.inputs.enforce_inference_steps:
            return from_strength(pipe, run, run.inputs.strength)
        steps, strength = run.inputs.num_inference_steps, run.inputs.strength
        if strength <= 0:
            raise InputError("No step remains.", where="strength", got=strength, expected="above 0")
        timesteps = pipe.set_timesteps(run, int(steps / strength))
        run.scheduler.set_begin_index(max(len(timesteps) - steps, 0))
        return timesteps[-steps:]

    def start(self, pipe: Any, run: Run) -> None:
        inputs, dtype = run.inputs, pipe.run_dtype(run)
        run.timesteps = self.timesteps(pipe, run)
        start = run.timesteps[:1].repeat(run.rows)
        height, width = latent_size(pipe, inputs)
        if inputs.latents is not None:
            shape = (run.rows, pipe.codec.channels(pipe), inputs.latents.shape[2], height, width)
            if tuple(inputs.latents.shape) != shape:
                raise InputError("Latents of another shape.", where="latents", got=tuple(inputs.latents.shape), expected=shape)
            run.x = inputs.latents.to(pipe.device, dtype)
            if inputs.enforce_inference_steps:
                run.x = run.scheduler.add_noise(run.x, randn(shape, inputs.generator, pipe.device, dtype), start)
            return
        clean = self.encoded(pipe, run, height, width).to(dtype)  # (B, F, C, H, W)
        noise = randn(clean.shape, inputs.generator, clean.device, dtype)
        run.x = run.scheduler.add_noise(clean, noise, start).transpose(1, 2)

    def encoded(self, pipe: Any, run: Run, height: int, width: int) -> Tensor:
        """Latents of the videos, (B, F, C, H, W), so many frames at a time as `decode_chunk_size` says."""
        inputs, factor = run.inputs, pipe.codec.factor(pipe)
        fit = dict(height=height * factor, width=width * factor, factor=factor, where="video")
        read = [image_to_tensor(video, **fit) for video in videos(inputs.video)]  # type: ignore[arg-type]
        if len({len(video) for video in read}) > 1:
            raise InputError("Videos of different lengths.", where="video", got=[len(video) for video in read])
        pixels, own = torch.stack(read).to(pipe.device, pipe.run_dtype(run)), isinstance(inputs.generator, Sequence)
        if own:
            pixels = repeat_to(pixels, run.rows, "video")  # each generator draws samples of its own
        sources = inputs.generator if own else [inputs.generator] * len(pixels)
        size = getattr(inputs, "decode_chunk_size", None) or pixels.shape[1]
        every = [
            torch.cat([pipe.codec.encode(pipe, part, source) for part in video.split(size)])
            for video, source in zip(pixels, sources, strict=True)
        ]
        return repeat_to(torch.stack(every), run.rows, "video")
