"""FreeU: less of the skip connections' low frequencies, more of the backbone (Si et al. 2023)."""

from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import Tensor

__all__ = ["FreeU"]


@dataclass(frozen=True)
class FreeU:
    """What a block on the way up does to its input and to each skip connection before it joins them: half of the channels of the one are
    scaled by `backbone` (b), the lowest frequencies of the other by `skip` (s)."""

    backbone: float
    skip: float

    def __call__(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and (B, C', H, W)."""
        half, rest = x.tensor_split([x.shape[1] // 2], 1)
        wanted = skip.dtype if skip.dtype == torch.float64 else torch.float32
        waves = torch.fft.fft2(skip.to(wanted))
        low = torch.tensor([0, -1], device=skip.device)  # frequencies 0 and -1 only, without 1: the checkpoints' settings were found so
        mask = waves.real.new_ones(waves.shape[-2:])
        mask[low[:, None], low] = self.skip
        return torch.cat([half * self.backbone, rest], 1), torch.fft.ifft2(waves * mask).real.to(skip.dtype)
