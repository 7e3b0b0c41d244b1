"""Smoothed energy guidance."""

from __future__ import annotations
import math
from functools import partial
from torch import Tensor
from ..attention import Attend
from ..types import Step
from .common import Scale, check, map_size
from .perturbed import Layers, Perturbation
from .sag import gaussian_blur

__all__ = ["SEG", "blur_tokens"]

INFINITE = 9999.0  # beyond this sigma a blur is a mean


def blur_tokens(q: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Blur the tokens of a map of that height and width, the first of (B, h, N, d), with a Gaussian; those after it stay."""
    count = size[0] * size[1]
    tokens = q[:, :, :count].transpose(2, 3).unflatten(-1, size).flatten(1, 2)  # (B, h d, H, W)
    if sigma > INFINITE:
        tokens = tokens.mean((-2, -1), keepdim=True).expand_as(tokens)
    elif sigma > 0:
        width = math.ceil(6 * sigma)
        widest = min(size) + 1 - min(size) % 2  # what reflection at the border allows
        tokens = gaussian_blur(tokens, min(width + 1 - width % 2, widest), sigma)
    out = q.clone()
    out[:, :, :count] = tokens.flatten(2).unflatten(1, q.shape[1:2] + q.shape[3:]).transpose(2, 3)
    return out


class SEG(Perturbation):
    """scale (cond - smoothed), where the smoothed prediction has blurred queries in some self-attention layers, which flattens the energy of
    attention (Hong 2024). For structure, with fewer side effects than PAG at high scales; 1 to 5.
    Args:
        scale: 0 or more; 0 costs nothing. A number, or a function of the timestep.
        sigma: of the Gaussian blur, in tokens; above 9999 every query becomes the mean of all. 0 changes nothing; 1 to 10 is mild.
        layers: regular expressions for dotted names of self-attention layers, None is the middle of the network.
        start, stop: the part of the run, in [0, 1]; a `start` above 0 leaves out the step on which it falls.
    Raises InputError for values outside these ranges and for a pattern that matches no layer.
    """

    def __init__(self, scale: Scale = 3.0, sigma: float = math.inf, layers: Layers = None, *, start: float = 0.0, stop: float = 1.0):
        super().__init__(scale, layers, start, stop)
        check("SEG.sigma", sigma)
        self.sigma = sigma

    def replacement(self, step: Step, attend: Attend) -> Attend:
        return partial(self._smoothed, step, attend)

    def _smoothed(
        self, step: Step, attend: Attend, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = ""
    ) -> Tensor:
        return attend(blur_tokens(q, map_size(step, q.shape[2]), self.sigma), k, v, mask=mask, site=site)
