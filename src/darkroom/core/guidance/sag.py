"""Self-attention guidance."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor
from ..attention import Patch, attention_weights
from ..inputs import Inputs, field
from ..types import Branch, Conditioning, Step

__all__ = ["SAG", "SAGInputs"]


@dataclass(kw_only=True)
class SAGInputs(Inputs):
    sag_scale: float = field("Weight of self-attention guidance; 0 switches it off.", 0.75, minimum=0)


def gaussian_blur(x: Tensor, size: int = 9, sigma: float = 1.0) -> Tensor:
    """Blur (B, C, H, W) with a Gaussian of `size` pixels, reflecting at the border."""
    taps = torch.exp(-0.5 * (torch.linspace(-(size - 1) / 2, (size - 1) / 2, size) / sigma) ** 2)
    taps = (taps / taps.sum()).to(x)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, size, size)
    return F.conv2d(F.pad(x, [size // 2] * 4, mode="reflect"), kernel, groups=x.shape[1])


class SAG:
    """scale (base - degraded), where the degraded prediction has the salient regions of x0 blurred (Hong et al. 2023, eq. 16 and 25).
    What is salient is read off the self-attention in the middle of the denoiser: tokens that receive more than their share.
    The base is the unconditional prediction where there is one. The blur needs latents of at least 5 x 5. `scale` is 0 or more; 0 costs nothing.
    """

    Inputs = SAGInputs
    settings: dict[str, Any] = {}

    def __init__(self, scale: float = 0.75):
        self.scale = scale
        self.received: Tensor | None = None  # attention that each token received in this step, averaged over heads: (B, N)

    @classmethod
    def from_inputs(cls, inputs: Any) -> SAG | None:
        return cls(inputs.sag_scale) if inputs.sag_scale > 0 else None

    def _recorded(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
        weights = attention_weights(q, k, mask)  # (B, h, N, N)
        self.received = weights.mean(1).sum(1)
        return weights @ v

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        if self.scale <= 0:
            return cond
        watched = cond.base.with_attention(Patch(cond.base.attend, frozenset({pipe.middle_site}), self._recorded))
        return Conditioning(watched) if cond.negative is None else Conditioning(cond.positive, watched)

    def branches(self, cond: Conditioning) -> Sequence[Branch]:
        return ()

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Sequence[Tensor]) -> Tensor:
        if self.scale <= 0 or self.received is None:
            return base.new_zeros(())
        alpha, sigma = step.run.scheduler.signal_and_noise(step.t, base)
        x0, eps = step.run.scheduler.x0_and_eps(step.x, base, alpha, sigma)
        height, width = x0.shape[-2:]  # of the map: the middle of the denoiser is smaller than the latents
        while height * width > self.received.shape[-1]:
            height, width = -(-height // 2), -(-width // 2)
        mask = F.interpolate((self.received > 1).to(x0.dtype).reshape(-1, 1, height, width), x0.shape[-2:])  # (B, 1, H, W)
        blurred = gaussian_blur(x0) * mask + x0 * (1 - mask)
        (degraded,) = step.predict([step.run.cond.base], alpha * blurred + sigma * eps)
        return self.scale * (base - degraded)
