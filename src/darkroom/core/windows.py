"""Long videos through layers that were trained on short ones, and large batches a part at a time."""

from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass
import torch
from torch import Tensor
from ..errors import InputError

__all__ = ["SCHEMES", "Windows", "in_parts"]

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
