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

__all__ = ["BACKENDS", "Attend", "Patch", "attention_weights", "backend", "by_rows", "eager", "resolve", "sdpa"]

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


def by_rows(attends: Sequence[Attend], rows: int) -> Attend:
    """One function for a batch of branches of `rows` rows, each with its own attention. Neighbours with the same at a layer are computed together."""
    if all(a is attends[0] for a in attends):
        return attends[0]

    def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
        groups = [(function, rows * len(list(same))) for function, same in groupby(resolve(a, site) for a in attends)]
        functions, sizes = zip(*groups)
        if len(functions) == 1:
            return functions[0](q, k, v, mask=mask, site=site)
        masks = mask.split(sizes) if mask is not None and mask.shape[0] == q.shape[0] else [mask] * len(sizes)
        parts = zip(functions, q.split(sizes), k.split(sizes), v.split(sizes), masks, strict=True)
        return torch.cat([fn(q, k, v, mask=m, site=site) for fn, q, k, v, m in parts])

    return attend
