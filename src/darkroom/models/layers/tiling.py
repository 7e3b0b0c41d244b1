"""Large images in overlapping tiles, whose seams are blended."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["blend", "tiled"]


def blend(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    """`after`, with its first `extent` lines along `dim` faded in linearly over the last ones of `before`."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    shape = [1] * after.ndim
    shape[dim] = extent
    w = (torch.arange(extent, dtype=torch.float64) / max(extent, 1)).reshape(shape)  # 0 ... 1 - 1/extent
    fade_in, fade_out = w.to(after), (1 - w).to(after)
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    head, rest = after.split([extent, after.shape[dim] - extent], dim)
    return torch.cat([tail * fade_out + head * fade_in, rest], dim)


def tiled(f: Callable[[Tensor], Tensor], x: Tensor, *, size: int, stride: int, overlap: int, keep: int) -> Tensor:
    """`f` over tiles of a map: (B, C, H, W) -> (B, C', H', W').

    Args:
        f: a network that changes the resolution by one factor.
        size, stride: edge of the tiles, and the distance from one to the next, in pixels of `x`.
        overlap: how many lines are blended, in pixels of the result.
        keep: how much of each tile is kept, in pixels of the result: `stride` times the factor.
    """
    above: list[Tensor] = []
    rows = []
    for top in range(0, x.shape[2], stride):
        row: list[Tensor] = []
        for left in range(0, x.shape[3], stride):
            tile = f(x[:, :, top : top + size, left : left + size])
            if above:
                tile = blend(above[len(row)], tile, overlap, dim=2)
            if row:
                tile = blend(row[-1], tile, overlap, dim=3)
            row.append(tile)
        rows.append(torch.cat([tile[:, :, :keep, :keep] for tile in row], dim=3))
        above = row
    return torch.cat(rows, dim=2)
