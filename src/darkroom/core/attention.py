"""Attention as an argument: networks call `attend(q, k, v, mask=..., site=...)`, guidance and adapters pass their own.

`q` is (B, heads, N, d), `k` and `v` are (B, heads, M, d), after norms and rotary embedding; `mask` is None or an additive bias that broadcasts to
(B, heads, N, M); `site` is the dotted name of the layer. The result is (B, heads, N, d).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
import torch
import torch.nn.functional as F
from torch import Tensor
from ..errors import InputError

__all__ = [
    "BACKENDS", "Attend", "FirstFrame", "Patch", "Rows", "attention_weights", "backend", "by_rows", "eager", "nothing", "resolve", "sdpa",
    "unless_skipped",
]  # fmt: skip

Attend = Callable[..., Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
    """PyTorch's fused attention, softmax(q kᵀ / √d) v."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d), whole: (B, heads, N, M)."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask).softmax(-1)


def eager(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
    """The textbook form, which keeps the (N, M) matrix in memory."""
    return attention_weights(q, k, mask) @ v


BACKENDS: dict[str, Attend] = {"native": sdpa, "eager": eager}


def backend(choice: str | Attend) -> Attend:
    """The attention function of that name, or the function itself."""
    if callable(choice):
        return choice
    if choice not in BACKENDS:
        raise InputError("No attention backend of that name.", where="attention backend", got=choice, expected=", ".join(BACKENDS))
    return BACKENDS[choice]


@dataclass(frozen=True, eq=False)
class Patch:
    """An attention that differs from `base` at the layers in `sites` only."""

    base: Attend
    sites: frozenset[str]
    replacement: Attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
        return resolve(self, site)(q, k, v, mask=mask, site=site)


def resolve(attend: Attend, site: str) -> Attend:
    """The function that `attend` comes down to at that layer."""
    while isinstance(attend, Patch):
        attend = attend.replacement if site in attend.sites else attend.base
    return attend


@dataclass(frozen=True, eq=False)
class Rows:
    """The attention of a batch of branches, each with its own rows. Neighbours with the same at a layer are computed together, and so are those that
    keep something for each branch and know how: their `together` is equal, and `join` makes one attention of several. A layer may have several rows
    for each of the branch's, such as one for each frame of a video.
    """

    attends: Sequence[Attend]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
        here = [resolve(a, site) for a in self.attends]
        groups = [list(same) for _, same in groupby(here, lambda attend: getattr(attend, "together", attend))]
        functions = [same[0].join(same) if hasattr(same[0], "join") else same[0] for same in groups]
        if len(functions) == 1:
            return functions[0](q, k, v, mask=mask, site=site)
        sizes = [len(same) * (q.shape[0] // len(here)) for same in groups]
        masks = mask.split(sizes) if mask is not None and mask.shape[0] == q.shape[0] else [mask] * len(sizes)
        parts = zip(functions, q.split(sizes), k.split(sizes), v.split(sizes), masks, strict=True)
        return torch.cat([fn(q, k, v, mask=m, site=site) for fn, q, k, v, m in parts])


@dataclass(frozen=True)
class FirstFrame:
    """Attention to the first of `frames` frames in place of each frame itself, so that all show the same things; rows are video by video."""

    base: Attend
    frames: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
        k, v = (x[:: self.frames].repeat_interleave(self.frames, 0) for x in (k, v))
        return self.base(q, k, v, mask=mask, site=site)


def by_rows(attends: Sequence[Attend]) -> Attend:
    """One attention for a batch of branches, which have as many rows each: that of all of them, or `Rows`."""
    return attends[0] if all(a is attends[0] for a in attends) else Rows(attends)


def nothing(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
    """The attention of a layer that is skipped. A `Patch` may name layers of other kinds for it too, see `unless_skipped`."""
    return torch.zeros_like(q)


def unless_skipped(added: Tensor, attend: Attend, site: str) -> Tensor:
    """What the layer `site` adds to its input, (B, ...): zero in the rows for which its attention is `nothing`."""
    attends = attend.attends if isinstance(attend, Rows) else (attend,)
    skipped = [resolve(a, site) is nothing for a in attends]
    if not any(skipped):
        return added
    return torch.cat([torch.zeros_like(part) if skip else part for skip, part in zip(skipped, added.chunk(len(attends)), strict=True)])
