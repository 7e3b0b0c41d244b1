"""Normalised attention guidance."""

from __future__ import annotations
from functools import partial
from typing import Any
import torch
from torch import Tensor
from ...errors import InputError
from ..attention import Attend, Patch
from ..types import Branch, Conditioning, Step
from .common import Addend, Scale, check, matching
from .perturbed import Layers

__all__ = ["NAG", "normalized"]


def normalized(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """What attention gives for a token, (B, h, N, d), steered away from what it gives for the negative prompt (Chen et al. 2025):
    scale positive - (scale - 1) negative, held to `tau` times the L1 norm of `positive` (over h and d), and blended with `positive` by `alpha`.
    """
    guided = scale * positive - (scale - 1) * negative
    norm, limit = (x.abs().sum((1, 3), keepdim=True) for x in (guided, positive))
    guided = guided * (tau * limit / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
    return alpha * guided + (1 - alpha) * positive


class NAG(Addend):
    """Guidance inside of cross-attention, where the negative prompt is read beside the prompt (Chen et al. 2025). For negative prompts without a
    negative branch: in few steps, and with networks that have guidance distilled into them (`CFG(1, terms=[NAG(5)])`). With CFG it adds up.
    Args:
        scale: how far away from the negative prompt, 1 or more; 1 or less costs nothing. A number, or a function of the timestep. 3 to 11.
        tau: how much larger than before attention may become, 1 or more; 2.5.
        alpha: the share of what is guided, in [0, 1]; 0.25 to 0.5.
        layers: regular expressions for dotted names of cross-attention layers, None is all.
        start, stop: the part of the run, in [0, 1]; a `start` above 0 leaves out the step on which it falls.
    Raises InputError for values outside these ranges, for a pattern that matches no layer, and for pipelines without cross-attention to a prompt.
    """

    needs_negative = True

    def __init__(
        self, scale: Scale = 5.0, tau: float = 2.5, alpha: float = 0.25, layers: Layers = None, *, start: float = 0.0, stop: float = 1.0
    ):
        super().__init__(scale, start, stop)
        check("NAG.tau", tau, low=1.0)
        check("NAG.alpha", alpha, high=1.0)
        self.tau, self.alpha, self.layers = tau, alpha, layers
        self.negative: Branch | None = None
        self.found: dict[str, Any] = {}  # the chosen layers by name
        self.read: dict[
            str, tuple[Tensor, Tensor]
        ] = {}  # keys and values of the negative prompt at each, (B, h, M, d): the same in all steps

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        self.negative = cond.negative or self.negative
        if self.negative is None or "context" not in self.negative.cond:
            got = f"{type(pipe).__name__} encodes none"
            raise InputError("There is no negative prompt to read.", where="NAG", got=got, expected="a pipeline with prompts")
        modules = {name: m for name, m in pipe.denoiser.named_modules() if getattr(m, "is_cross_attention", False)}
        plain = {name: m for name, m in modules.items() if not hasattr(m, "add_k_proj")}  # those others attend to the picture at once
        sites = matching("." if self.layers is None else self.layers, [*plain], "NAG.layers")
        context = self.negative.cond["context"]
        project = getattr(pipe.denoiser, "encoder_hid_proj", None)
        context = context.reshape(-1, *context.shape[-2:])  # (B, M, C), of videos with one for each frame (BF, M, C)
        self.context = project(context) if isinstance(project, torch.nn.Linear) else context
        self.found, self.read = {site: plain[site] for site in sites}, {}
        return cond

    def active(self, step: Step) -> bool:
        return super().active(step) and self.weight(step) > 1

    def wrap(self, step: Step) -> Conditioning:
        branch = step.cond.positive
        several = getattr(step.x, "ndim", 4) == 5 and len(self.context) == len(step.x)  # frames of a video, with one prompt for all of them
        frames = step.x.shape[2] if several else 1
        guided = partial(self._guided, self.weight(step), frames, branch.attend)
        return Conditioning(branch.with_attention(Patch(branch.attend, frozenset(self.found), guided)), step.cond.negative)

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Any) -> Tensor:
        return cond.new_zeros(())

    def _guided(
        self, scale: float, frames: int, attend: Attend, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = ""
    ) -> Tensor:
        if site not in self.read:
            layer = self.found[site]
            tokens = layer.keys_and_values(context := self.context.to(q.device), context)
            self.read[site] = tuple(x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in tokens)  # type: ignore[assignment]
        every = [x.to(q).repeat_interleave(frames, 0) for x in self.read[site]]
        times = q.shape[0] // every[0].shape[0]  # branches that share this attention are computed together
        other_k, other_v = (x.repeat(times, 1, 1, 1) for x in every)
        return normalized(attend(q, k, v, mask=mask, site=site), attend(q, other_k, other_v, site=site), scale, self.tau, self.alpha)
