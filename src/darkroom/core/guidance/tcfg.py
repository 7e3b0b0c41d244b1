"""Tangential damping classifier-free guidance."""

from typing import Any
import torch
from torch import Tensor
from ..types import Step
from .cfg import CFG

__all__ = ["TCFG"]


class TCFG(CFG):
    """CFG whose uncond is projected on the first right singular vector of (cond, uncond): what they have in common stays, what leads sideways
    does not (Kwon et al. 2025). For pictures that stay closer to the data at the usual scales; 5 to 10. Arguments as of `CFG`.
    """

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        pair = torch.stack([cond, uncond], 1).flatten(2).float()  # (B, 2, all)
        main = torch.linalg.svd(pair, full_matrices=False).Vh[:, :1]  # (B, 1, all)
        tangent = (pair[:, 1:] @ main.transpose(1, 2)) @ main
        return super().combine(step, tangent.reshape(uncond.shape).to(cond.dtype), cond, scale)
