"""Changes of one layer's weight that cost little: what each adds to the weight, and to the layer's output while the weight stays as it is."""

from __future__ import annotations
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, cast
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Delta", "LowRank"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the axes of their kernel


class Delta:
    """What an adapter does to one layer: tensors, and how they make a change of the weight.
    The weight's change is `dense` times `scale`. `dora_scale` (Liu et al. 2024, DoRA, eq. 5) holds norms that the changed weight's rows (a shape
    of (out, 1, ...), or (out,)) or columns (1, in, ...) are brought to. `bias` is added to the layer's, at `scale * scaling`.
    `alpha` None makes `scaling` 1.
    """

    kind: ClassVar[str]
    alpha: float | None
    dora_scale: Tensor | None
    bias: Tensor | None

    @property
    def rank(self) -> int:
        """The inner dimension, 0 where there is none."""
        return 0

    @property
    def scaling(self) -> float:
        """What the change is multiplied by at scale 1: alpha over the rank."""
        return 1.0 if self.alpha is None else self.alpha / (self.rank or 1)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role."""
        found = {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same change with its tensors on another device, in another dtype."""
        return replace(cast(Any, self), **{name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    def dense(self, like: Tensor) -> Tensor:
        """The change of a weight of the shape, device and dtype of `like` at scale 1, before norms (DoRA) are kept."""
        raise TypeError(f"{type(self).__name__} is no change of a weight")

    def changed(self, weight: Tensor, scale: float, base: Tensor) -> Tensor:
        """The weight with this change; `base` is the layer's own, which norms are taken from. All in float32 or float64."""
        step = self.dense(base) * scale
        return weight + step if self.dora_scale is None else self._ratio(base + step) * (weight + step)

    def weight(self, base: Tensor) -> Tensor:
        """What is added to the base weight at scale 1, of its shape, in float32 unless the base is float64."""
        wide = _wide(base)
        return self.dense(wide) if self.dora_scale is None else self.changed(wide, 1.0, wide) - wide

    def merged(self, weight: Tensor, bias: Tensor | None, scale: float, base: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the fused layer, in the dtypes given; of a layer without a bias that gains one, in the weight's.
        `base` is the layer's own weight, if `weight` has other adapters in it already.
        """
        wide = _wide(weight)
        new = self.changed(wide, scale, wide if base is None else _wide(base)).to(weight.dtype)
        if self.bias is None:
            return new, bias
        step = _wide(self.bias).to(weight.device) * (scale * self.scaling)
        return new, step.to(weight.dtype) if bias is None else (_wide(bias) + step).to(bias.dtype)

    def add(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float, before: Sequence[tuple[Delta, float]] = ()) -> Tensor:
        """The output of `layer` with this change, from `out`, its output for the input `x`, or what other adapters made of it.
        `before` are those others with their scales, which rotations (OFT) and norms of columns turn too. Shapes and dtype of `out`.
        """
        if self.dora_scale is None:
            made = self.increase(layer, x, out, scale)
        elif self.dora_scale.ndim > 1 and self.dora_scale.shape[0] == 1:  # columns: the input is scaled
            made = self._add_dense(layer, x, out, scale, before)
        else:
            base = _wide(cast(Tensor, layer.weight))
            ratio = _along(layer, self._ratio(base + self.dense(base) * scale).to(out.dtype), out)
            own = 0 if layer.bias is None else _along(layer, cast(Tensor, layer.bias), out).to(out.dtype)
            made = self.increase(layer, x, out - own, scale) * ratio + own
        return made if self.bias is None else (made + _along(layer, self.bias, out) * (scale * self.scaling)).to(out.dtype)

    def increase(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float) -> Tensor:
        """`out` plus what the change of the weight, without norms and bias, makes of `x`."""
        change = self.dense(_wide(cast(Tensor, layer.weight))) * scale
        return (out + _apply(layer, x, change.to(x.dtype))).to(out.dtype)

    def _add_dense(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float, before: Sequence[tuple[Delta, float]]) -> Tensor:
        base = weight = _wide(cast(Tensor, layer.weight))
        for other, strength in before:
            weight = other.changed(weight, strength, base)
        step = self.changed(weight, scale, base) - weight
        return (out + _apply(layer, x, step.to(x.dtype))).to(out.dtype)

    def _ratio(self, weight: Tensor) -> Tensor:
        """The norms wanted over those that a weight has, by which it is multiplied."""
        wanted = cast(Tensor, self.dora_scale).to(weight)
        if wanted.ndim == 1:
            wanted = wanted.view(-1, *(1,) * (weight.ndim - 1))
        axes = [axis for axis in range(weight.ndim) if wanted.shape[axis] == 1 and (axis or wanted.numel() != 1)]
        return wanted / torch.linalg.vector_norm(weight, dim=axes, keepdim=True)


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """LoRA (Hu et al. 2021): `up @ down`, of shapes (out, r) and (r, in), times alpha / r, or alpha / sqrt(r) with `rank_stabilized`
    (Kalajdzievski 2023). Of a convolution `down` is (r, in, *kernel) and `up` (out, r, 1, ...); with `mid` (r, r, *kernel) between them
    `down` is (r, in, 1, ...), too.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None
    mid: Tensor | None = None
    dora_scale: Tensor | None = None
    bias: Tensor | None = None
    rank_stabilized: bool = False
    kind: ClassVar[str] = "lora"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scaling(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def padded(self, rank: int) -> LowRank:
        """The same change with zeros up to a larger rank, so that shapes stay as adapters are exchanged."""
        more = rank - self.rank
        rows, columns = [0, 0] * (self.down.ndim - 1) + [0, more], [0, 0] * (self.down.ndim - 2) + [0, more]
        mid = None if self.mid is None else F.pad(self.mid, [*columns, 0, more])
        ratio = rank / self.rank
        alpha = self.scaling * (math.sqrt(rank) if self.rank_stabilized else rank) if ratio != 1 else self.alpha
        return replace(self, down=F.pad(self.down, rows), up=F.pad(self.up, columns), mid=mid, alpha=alpha)

    def dense(self, like: Tensor) -> Tensor:
        down, up = self.down.to(like), self.up.to(like).flatten(1)  # (r, in, ...), (out, r)
        if self.mid is not None:
            down = torch.einsum("ij...,jn->in...", self.mid.to(like), down.flatten(1))  # (r, in, *kernel)
        return (up @ down.flatten(1) * self.scaling).view(like.shape)

    def increase(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float) -> Tensor:
        net: Any = layer
        if isinstance(layer, nn.Embedding) or getattr(net, "groups", 1) != 1:
            return super().increase(layer, x, out, scale)
        x = x.to(self.down.dtype)
        if self.down.ndim == 2:
            inner = F.linear(x, self.down) * (scale * self.scaling)  # (..., r)
            sums = torch.addmm(out.reshape(-1, out.shape[-1]).to(inner.dtype), inner.flatten(0, -2), self.up.t())
            return sums.view(out.shape).to(out.dtype)
        point = CONVOLUTIONS[self.down.ndim - 2]
        inner = net._conv_forward(x, self.down, None) if self.mid is None else net._conv_forward(point(x, self.down), self.mid, None)
        return (out + point(inner * (scale * self.scaling), self.up)).to(out.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _along(layer: nn.Module, values: Tensor, out: Tensor) -> Tensor:
    """One value per output channel, in a shape that broadcasts over the layer's output."""
    maps = isinstance(layer, nn.GroupNorm) and out.ndim > 3
    return values.reshape(-1, *(1,) * (out.ndim - 2 if maps else len(getattr(layer, "kernel_size", ()))))


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a layer like this makes of `x` with another weight and bias. Group norms take tokens (B, N, C) or maps (B, C, ...)."""
    net: Any = layer
    if hasattr(net, "kernel_size"):
        return net._conv_forward(x, weight, bias)
    if isinstance(layer, nn.Embedding):
        return F.embedding(x, weight)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    if isinstance(layer, nn.GroupNorm):
        turned = x.transpose(1, 2) if x.ndim == 3 else x
        made = F.group_norm(turned, layer.num_groups, weight, bias, layer.eps)
        return made.transpose(1, 2) if x.ndim == 3 else made
    return F.linear(x, weight, bias)
