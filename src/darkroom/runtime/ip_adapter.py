"""Attention to pictures beside the prompt (IP-Adapter, Ye et al. 2023), and where in the result each picture counts."""

from __future__ import annotations
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor
from ..core.attention import Attend
from ..core.media import hint_to_tensor, image_size, mask_to_tensor
from ..errors import InputError

__all__ = ["Decoupled", "IPAdapterMaskProcessor", "ImagePrompts"]

Scale = float | tuple[float, ...]  # of an adapter at a layer; with masks perhaps one for each picture


class IPAdapterMaskProcessor:
    """Masks that say where in the result a picture counts.
    Args:
        do_resize: round sides down to multiples of `vae_scale_factor`, where no size is given.
        do_normalize: scale [0, 1] to [-1, 1].
        do_binarize: values from 0.5 are 1, others 0; else gray stays gray.
    """

    def __init__(self, do_resize: bool = True, vae_scale_factor: int = 8, do_normalize: bool = False, do_binarize: bool = True):
        self.factor = vae_scale_factor if do_resize else 1
        self.do_normalize, self.do_binarize = do_normalize, do_binarize

    def preprocess(self, image: Any, height: int | None = None, width: int | None = None) -> Tensor:
        """PIL images, arrays or tensors, white where the picture counts, as (n, 1, H, W) of 0 and 1. InputError for what is no mask."""
        own_width, own_height = image_size(image, "mask")
        height, width = (side - side % self.factor for side in (height or own_height, width or own_width))
        if self.do_binarize:
            masks = mask_to_tensor(image, height=height, width=width, factor=1, where="mask")
        else:
            masks = hint_to_tensor(image, channels=1, height=height, width=width, where="mask")
        return 2 * masks - 1 if self.do_normalize else masks

    @staticmethod
    def downsample(mask: Tensor, batch_size: int, num_queries: int, value_embed_dim: int) -> Tensor:
        """A mask (1, H, W) for queries: (batch_size, num_queries, value_embed_dim)."""
        weights = per_query(mask[None], num_queries)  # (1, N)
        return weights[:, :, None].expand(-1, -1, value_embed_dim).repeat(batch_size if len(weights) < batch_size else 1, 1, 1)


def per_query(masks: Tensor, queries: int) -> Tensor:
    """Masks (1, n, H, W) as weights of the pixels of a feature map, (n, N), whose size follows from N and their aspect."""
    ratio = masks.shape[3] / masks.shape[2]
    height = max(int(math.sqrt(queries / ratio)), 1)
    height += queries % height != 0
    weights = F.interpolate(masks, size=(height, max(queries // height, 1)), mode="bicubic")[0].flatten(1)
    if weights.shape[1] != queries:
        warnings.warn("A mask and the result differ in aspect: make masks of the result's size.", UserWarning, stacklevel=2)
    return F.pad(weights, (0, max(queries - weights.shape[1], 0)))[:, :queries]


@dataclass(eq=False)
class ImagePrompts:
    """The pictures of one run: for each adapter its tokens (S, R, n, T, C), its scale at every layer, and its masks (1, n, H, W) or None.
    S are the branches of guidance that differ, negative first, R is 1 or the number of results. Keys and values are made once, at the first step.
    `inside`: a denoiser has several rows for one result, frames for example, beside each other; else whole batches come one after another.
    """

    adapters: Sequence[Any]
    tokens: Sequence[Tensor]
    scales: Sequence[Mapping[str, Scale]]
    masks: Sequence[Tensor | None]
    inside: bool = False
    made: dict[Any, Any] = field(default_factory=dict)

    def keys_and_values(self, i: int, site: str, sides: tuple[int, ...], q: Tensor) -> tuple[Tensor, Tensor]:
        """Of adapter `i` at a layer, for queries (B, h, N, d) of these branches: 2 x (B, h, n T, d)."""
        if (i, site) not in self.made:
            self.made[i, site] = self.adapters[i].keys_and_values(site, self.tokens[i].flatten(2, 3))  # 2 x (S, R, n T, h d)
        if (key := (i, site, sides, q.shape[0])) not in self.made:
            rows = q.shape[0] // len(sides)
            self.made[key] = tuple(self._rows(x, sides, rows, q) for x in self.made[i, site])
        return self.made[key]  # type: ignore[no-any-return]

    def _rows(self, x: Tensor, sides: tuple[int, ...], rows: int, q: Tensor) -> Tensor:
        x = x[list(sides)].to(q).unflatten(-1, (q.shape[1], -1)).transpose(2, 3)  # (s, R, h, n T, d)
        times = rows // x.shape[1]
        return (x.repeat_interleave(times, 1) if self.inside else x.repeat(1, times, 1, 1, 1)).flatten(0, 1)

    def weights(self, i: int, q: Tensor) -> Tensor:
        """The masks of adapter `i` for queries (B, h, N, d): (n, N, 1)."""
        if (key := (i, "mask", q.shape[2])) not in self.made:
            self.made[key] = per_query(self.masks[i].float(), q.shape[2])[:, :, None].to(q)  # type: ignore[union-attr]
        return self.made[key]  # type: ignore[no-any-return]

    def add(self, out: Tensor, q: Tensor, site: str, sides: tuple[int, ...], attend: Attend) -> Tensor:
        """What attention gives, (B, h, N, d), with the attention of the same queries to the pictures."""
        for i, scales in enumerate(self.scales):
            scale = scales[site]
            if not (any(scale) if isinstance(scale, tuple) else scale):
                continue
            k, v = self.keys_and_values(i, site, sides, q)
            if self.masks[i] is None:
                out = torch.add(out, attend(q, k, v, site=site), alpha=scale[0] if isinstance(scale, tuple) else scale)
                continue
            pictures = self.tokens[i].shape[2]
            each = zip(k.chunk(pictures, 2), v.chunk(pictures, 2), self.weights(i, q))
            for (own_k, own_v, mask), weight in zip(each, scale if isinstance(scale, tuple) else (scale,) * pictures):
                out = torch.add(out, attend(q, own_k, own_v, site=site) * mask, alpha=weight)
        return out


@dataclass(frozen=True, eq=False)
class Decoupled:
    """Attention to the prompt by `base`, plus scale x attention to pictures (Ye et al. 2023, eq. 5), for the branches `sides` of a run."""

    prompts: ImagePrompts
    sides: tuple[int, ...]
    base: Attend

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
        return self.prompts.add(self.base(q, k, v, mask=mask, site=site), q, site, self.sides, self.base)

    @property
    def together(self) -> object:
        return self.prompts, self.base

    def join(self, others: Sequence[Decoupled]) -> Decoupled:
        return replace(self, sides=tuple(side for other in others for side in other.sides))


def check_masks(masks: Any, counts: Sequence[int], scales: Sequence[Mapping[str, Scale]]) -> list[Tensor | None]:
    """One tensor (1, n, H, W) or None for each adapter, whose numbers of pictures are `counts`, from what a caller gives. InputError else."""
    if isinstance(masks, Tensor):  # an older form: (adapters, 1, H, W)
        masks = [mask[None] for mask in masks]
    where, given = "cross_attention_kwargs: ip_adapter_masks", [None] * len(counts) if masks is None else masks
    if not isinstance(given, (list, tuple)) or len(given) != len(counts):
        got = len(given) if isinstance(given, (list, tuple)) else type(given).__name__
        raise InputError("There must be one entry per IP-Adapter.", where=where, got=got, expected=f"a list of {len(counts)}")
    for mask, count, scale in zip(given, counts, scales):
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[:2] != (1, count)):
            kind, fix = getattr(mask, "shape", type(mask).__name__), "[IPAdapterMaskProcessor().preprocess(pictures).reshape(1, -1, H, W)]"
            raise InputError("A mask does not fit its pictures.", where=where, got=kind, expected=f"(1, {count}, H, W)", fix=fix)
        lists = {len(s) for s in scale.values() if isinstance(s, tuple)}
        if lists - {count if mask is not None else 1}:
            expected = f"{count}, one per picture" if mask is not None else "a number: without masks all pictures have the same"
            raise InputError("Not one scale per picture.", where="set_ip_adapter_scale", got=max(lists), expected=expected)
    return list(given)
