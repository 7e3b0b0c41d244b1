"""FreeInit: the noise that a video starts from is made anew from what came out, which evens out its motion (Wu et al. 2023)."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor, fft
from ..errors import InputError
from .random import Generators, randn

__all__ = ["FreeInit"]

METHODS = ("butterworth", "gaussian", "ideal")


@dataclass(frozen=True)
class FreeInit:
    """Several passes: the low frequencies of what came out, noised to the end, join the high ones of fresh noise (eq. 5 to 8).
    Args:
        num_iters: passes, 1 or more.
        use_fast_sampling: the first passes take fewer steps.
        method: the shape of the low-pass filter, of which Butterworth's has an `order`.
        spatial_stop_frequency, temporal_stop_frequency: where it ends, as a share of the highest frequency, in [0, 1].
    Raises InputError for values outside these ranges.
    """

    num_iters: int = 3
    use_fast_sampling: bool = False
    method: str = "butterworth"
    order: int = 4
    spatial_stop_frequency: float = 0.25
    temporal_stop_frequency: float = 0.25

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError("No such choice.", where="method", got=self.method, expected=", ".join(METHODS))
        for where, low, high in (
            ("num_iters", 1, 1000),
            ("order", 1, 1000),
            ("spatial_stop_frequency", 0, 1),
            ("temporal_stop_frequency", 0, 1),
        ):
            if not low <= getattr(self, where) <= high:
                raise InputError("A number out of range.", where=where, got=getattr(self, where), expected=f"from {low} to {high}")

    def steps(self, index: int, steps: int) -> int:
        """How many of `steps` the pass `index` takes."""
        return max(1, int(steps / self.num_iters * (index + 1))) if self.use_fast_sampling else steps

    def low_pass(self, shape: tuple[int, ...]) -> Tensor:
        """What passes of each frequency of (F, H, W), the lowest in the middle."""
        space, time = self.spatial_stop_frequency, self.temporal_stop_frequency
        if not space or not time:
            return torch.zeros(shape)
        t, h, w = (2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in shape)
        d2 = (space / time * t[:, None, None]) ** 2 + h[:, None] ** 2 + w**2
        if self.method == "butterworth":
            return (1 / (1 + (d2 / space**2) ** self.order)).float()
        return (torch.exp(-d2 / (2 * space**2)) if self.method == "gaussian" else (d2 <= 2 * space)).float()

    def restart(self, x: Tensor, noise: Tensor, scheduler: Any, generator: Generators) -> Tensor:
        """Latents to start the next pass from: from those that came out, and the noise of the first pass, (B, C, F, H, W). Random numbers: the
        fresh noise."""
        last = torch.full((len(x),), scheduler.config.num_train_timesteps - 1, device=x.device)
        noisy = scheduler.add_noise(x, noise, last).float()
        dims, share = (-3, -2, -1), self.low_pass(tuple(x.shape[-3:])).to(x.device)
        fresh = randn(x.shape, generator, x.device, torch.float32)
        low, high = (fft.fftshift(fft.fftn(part, dim=dims), dim=dims) for part in (noisy, fresh))
        mixed = fft.ifftshift(low * share + high * (1 - share), dim=dims)
        return fft.ifftn(mixed, dim=dims).real.to(x.dtype)
