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
from ..types import Conditioning, Step
from .common import Addend, Scale, map_size, signal_and_noise

__all__ = ["SAG", "SAGInputs", "gaussian_blur"]


@dataclass(kw_only=True)
class SAGInputs(Inputs):
    sag_scale: float = field("Weight of self-attention guidance; 0 switches it off.", 0.75, minimum=0)


def gaussian_blur(x: Tensor, size: int = 9, sigma: float = 1.0) -> Tensor:
    """Blur (B, C, H, W) with a Gaussian of `size` pixels, reflecting at the border."""
    taps = torch.exp(-0.5 * (torch.linspace(-(size - 1) / 2, (size - 1) / 2, size) / sigma) ** 2)
    taps = (taps / taps.sum()).to(x)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, size, size)
    return F.conv2d(F.pad(x, [size // 2] * 4, mode="reflect"), kernel, groups=x.shape[1])


class SAG(Addend):
    """scale (base - degraded), where the degraded prediction has the salient regions of x0 blurred (Hong et al. 2023, eq. 16 and 25).
    For detail, also without a prompt; 0.5 to 1. Each step costs one more prediction.
    What is salient is read off the self-attention in the middle of the denoiser: tokens that receive more than their share.
    The base is the unconditional prediction where there is one. The blur needs latents of at least 5 x 5. `scale` is 0 or more; 0 costs nothing.
    `start` and `stop` are the part of the run, in [0, 1]; a `start` above 0 leaves out the step on which it falls.
    """

    Inputs = SAGInputs
    settings: dict[str, Any] = {}

    def __init__(self, scale: Scale = 0.75, *, start: float = 0.0, stop: float = 1.0):
        super().__init__(scale, start, stop)
        self.sites = frozenset[str]()
        self.received: Tensor | None = None  # attention that each token received in this step, averaged over heads: (B, N)

    @classmethod
    def from_inputs(cls, inputs: Any) -> SAG | None:
        return cls(inputs.sag_scale) if inputs.sag_scale > 0 else None

    def _recorded(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
        weights = attention_weights(q, k, mask)  # (B, h, N, N)
        self.received = weights.mean(1).sum(1)
        return weights @ v

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        self.sites = frozenset({pipe.middle_site})
        return cond

    def wrap(self, step: Step) -> Conditioning:
        cond, self.received = step.cond, None
        watched = cond.base.with_attention(Patch(cond.base.attend, self.sites, self._recorded))
        return Conditioning(watched) if cond.negative is None else Conditioning(cond.positive, watched)

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Sequence[Tensor]) -> Tensor:
        if self.received is None:
            return base.new_zeros(())
        alpha, sigma = signal_and_noise(step, base, "SAG")
        x0, eps = step.run.scheduler.x0_and_eps(step.x, base, alpha, sigma)
        size = map_size(step, self.received.shape[-1])  # the middle of the denoiser is smaller than the latents
        mask = F.interpolate((self.received > 1).to(x0.dtype).reshape(-1, 1, *size), x0.shape[-2:])
        mask = mask.reshape(len(x0), 1, *x0.shape[2:])  # (B, 1, H, W), of videos (B, 1, F, H, W)
        blurred = gaussian_blur(x0.reshape(-1, 1, *x0.shape[-2:])).reshape(x0.shape) * mask + x0 * (1 - mask)
        (degraded,) = step.predict([step.cond.base], alpha * blurred + sigma * eps)
        return self.weight(step) * (base - degraded)
