"""Long videos through layers that were trained on short ones, and large batches a part at a time."""

from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
import torch
from torch import Tensor
from ..errors import InputError
from .random import Generators

__all__ = ["NOISES", "SCHEMES", "FreeNoise", "Windows", "in_parts"]

NOISES = ("shuffle_context", "repeat_context", "random")
SCHEMES = ("flat", "pyramid", "delayed_reverse_sawtooth")


@dataclass(frozen=True)
class Windows:
    """Overlapping windows over the frames of a video, whose results are averaged with weights (FreeNoise, Qiu et al. 2023, sec. 3.3).
    Windows of `length` frames begin every `stride` frames; one that ends with the video covers what is left over. Weights by `scheme`: all
    the same, growing towards the middle, or growing backwards from the end to the middle with next to none before it.
    Raises InputError for another scheme, and for a length or stride below 1.
    """

    length: int = 16
    stride: int = 4
    scheme: str = "pyramid"

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise InputError("No such choice.", where="weighting_scheme", got=self.scheme, expected=", ".join(SCHEMES))
        for where, value in (("context_length", self.length), ("context_stride", self.stride)):
            if not isinstance(value, int) or value < 1:
                raise InputError("A number out of range.", where=where, got=value, expected="a whole number, at least 1")

    def weights(self) -> list[float]:
        """One for each frame of a window."""
        if self.scheme == "flat":
            return [1.0] * self.length
        half, rising = (self.length + 1) // 2, self.scheme == "pyramid"
        return [(i + 1.0 if rising else 0.01) if i < half - 1 else float(min(self.length - i, half)) for i in range(self.length)]

    def spans(self, frames: int) -> list[tuple[int, int]]:
        """First frame of each window, and the first that counts: only what no other window has seen does in one that covers the rest."""
        if frames < self.length:
            fix = "Make a longer video, or windows shorter."
            raise InputError(
                "The video is shorter than a window.", where="num_frames", got=frames, expected=f"at least {self.length}", fix=fix
            )
        starts = range(0, frames - self.length + 1, self.stride)
        end = starts[-1] + self.length
        return [(start, start) for start in starts] + [(frames - self.length, end)] * (end < frames)

    def __call__(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`layer` over each window of (B, F, C), averaged."""
        every = torch.tensor(self.weights(), device=x.device, dtype=x.dtype)[None, :, None]
        total, counts = torch.zeros_like(x), torch.zeros(1, x.shape[1], 1, device=x.device, dtype=torch.float32)
        for start, first in self.spans(x.shape[1]):
            out, weights = layer(x[:, start : start + self.length])[:, first - start :], every[:, first - start :]
            total[:, first : start + self.length] += out * weights
            counts[:, first : start + self.length] += weights
        return torch.where(counts > 0, total / counts, total).to(x.dtype)  # frames between windows far apart stay zero


def in_parts(layer: Callable[..., Tensor], size: int | None, *inputs: Tensor | None) -> Tensor:
    """`layer` over `size` rows of all inputs at a time, all at once if it is None: the same result in less memory."""
    if size is None or inputs[0] is None or inputs[0].shape[0] <= size:
        return layer(*inputs)
    count = -(-inputs[0].shape[0] // size)
    parts = [[None] * count if x is None else x.split(size) for x in inputs]
    return torch.cat([layer(*part) for part in zip(*parts, strict=True)])


@dataclass(frozen=True)
class FreeNoise:
    """Videos longer than a network was trained on: motion by `windows`, noise whose frames come again, prompts that change on the way
    (Qiu et al. 2023). `noise_type`: "shuffle_context" repeats the frames of the first window, `stride` of them at a time in another order,
    "repeat_context" in the same, "random" is new noise for each frame. `interpolate(start, end, a, b)` gives the prompts, (end - start + 1,
    M, d), from those of two frames, (1, M, d); on a straight line if it is None. Raises InputError for another noise type.
    """

    windows: Windows
    noise_type: str = "shuffle_context"
    interpolate: Callable[[int, int, Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.noise_type not in NOISES:
            raise InputError("No such choice.", where="noise_type", got=self.noise_type, expected=", ".join(NOISES))

    def noise(self, x: Tensor, frames: int, generator: Generators) -> Tensor:
        """Noise for so many frames, from such noise (B, C, n, H, W) of which the first window counts. Random numbers: the orders."""
        length, stride = self.windows.length, self.windows.stride
        if self.noise_type == "random" or frames <= length:
            return x
        if self.noise_type == "repeat_context":
            return x[:, :, torch.arange(frames) % length]
        own = generator if isinstance(generator, (list, tuple)) else [generator]  # one order for all videos, or one for each
        made = []
        for part, source in zip(x.chunk(len(own)), own, strict=True):
            places = torch.arange(frames)
            for i in range(length, frames, stride):
                start = i - length
                order = (
                    start + torch.randperm(min(stride, frames - start), generator=source, device=source.device if source else None).cpu()
                )
                places[i : i + stride] = places[order][: frames - i]
            made.append(part[:, :, places.to(x.device)])
        return torch.cat(made)

    def prompts(self, keys: list[int], states: Tensor, frames: int) -> Tensor:
        """The states (K, M, d) of the prompts of some frames, of which the first is 0, for every frame: (F, M, d)."""
        made = states[-1:].repeat(frames, 1, 1)
        keys, states = ([*keys, frames - 1], torch.cat([states, states[-1:]])) if keys[-1] < frames - 1 else (keys, states)
        for (a, b), first, last in zip(pairwise(keys), states[:-1, None], states[1:, None]):
            if self.interpolate is None:
                share = torch.arange(b - a + 1, device=states.device, dtype=states.dtype)[:, None, None] / (b - a)
                made[a : b + 1] = (1 - share) * first + share * last
            else:
                made[a : b + 1] = self.interpolate(a, b, first, last)
        return made
