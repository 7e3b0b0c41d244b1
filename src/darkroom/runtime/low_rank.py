"""Changes of one layer's weight that cost little: what each adds to the weight, and to the layer's output while the weight stays as it is."""

from __future__ import annotations
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, cast
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["OFT", "Delta", "Difference", "LoHa", "LoKr", "LowRank", "weight_shape"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the axes of their kernel


class Delta:
    """What an adapter does to one layer: tensors, and how they make a change of the weight.
    The weight's change is `dense` times `scale`. `dora_scale` (Liu et al. 2024, DoRA, eq. 5) holds norms that the changed weight's rows (a shape
    of (out, 1, ...), or (out,)) or columns (1, in, ...) are brought to. `bias` is added to the layer's, at `scale * gain`.
    `alpha` None makes `gain` 1.
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
    def turns(self) -> bool:
        """Whether the change depends on the weight."""
        return self.dora_scale is not None

    @property
    def gain(self) -> float:
        """What the change is multiplied by at scale 1: alpha over the rank."""
        return 1.0 if self.alpha is None else self.alpha / (self.rank or 1)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by role."""
        found = {f.name: getattr(self, f.name) for f in fields(cast(Any, self)) if f.init}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same change with its tensors on another device, in another dtype."""
        return replace(cast(Any, self), **{name: tensor.to(device, dtype) for name, tensor in self.tensors().items()})

    def dense(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The change of a weight of `shape` at scale 1, before norms (DoRA) are kept, on the device and in the dtype of `like`."""
        raise TypeError(f"{type(self).__name__} is no change of a weight")

    def changed(self, weight: Tensor, scale: float, base: Tensor) -> Tensor:
        """The weight with this change; `base` is the layer's own, which norms are taken from. All in float32 or float64."""
        step = self.dense(base.shape, base) * scale
        return weight + step if self.dora_scale is None else self._ratio(base + step) * (weight + step)

    def weight(self, base: Tensor) -> Tensor:
        """What is added to the base weight at scale 1, of its shape, in float32 unless the base is float64."""
        wide = _wide(base)
        return self.changed(wide, 1.0, wide) - wide if self.turns else self.dense(wide.shape, wide)

    def merged(self, weight: Tensor, bias: Tensor | None, scale: float, base: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the fused layer, in the dtypes given; of a layer without a bias that gains one, in the weight's.
        `base` is the layer's own weight, if `weight` has other adapters in it already.
        """
        wide = _wide(weight)
        new = self.changed(wide, scale, wide if base is None else _wide(base)).to(weight.dtype)
        if self.bias is None:
            return new, bias
        step = _wide(self.bias).to(weight.device) * (scale * self.gain)
        return new, step.to(weight.dtype) if bias is None else (_wide(bias) + step).to(bias.dtype)

    def add(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float, before: Sequence[tuple[Delta, float]] = ()) -> Tensor:
        """The output of `layer` with this change, of the shape and dtype of `out`: its output for the input `x`, or what other adapters made of
        it, which may be written into where no gradients are kept. `scale` may be a tensor, too. `before` are those others with their scales,
        which rotations (OFT) and norms of columns turn, too. Only DoRA and rotations of columns read the layer's weight.
        """
        if self.dora_scale is None:
            made = self.increase(layer, x, out, scale)
        elif self.dora_scale.ndim > 1 and self.dora_scale.shape[0] == 1:  # columns: the input is scaled
            made = self._add_dense(layer, x, out, scale, before)
        else:
            base = _wide(cast(Tensor, layer.weight))
            ratio = _along(layer, self._ratio(base + self.dense(base.shape, base) * scale).to(out.dtype), out)
            own = 0 if layer.bias is None else _along(layer, cast(Tensor, layer.bias), out).to(out.dtype)
            made = self.increase(layer, x, out - own, scale) * ratio + own
        return made if self.bias is None else (made + _along(layer, self.bias, out) * (scale * self.gain)).to(out.dtype)

    def increase(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float) -> Tensor:
        """`out` plus what the change of the weight, without norms and bias, makes of `x`."""
        return (out + _apply(layer, x, self.dense(cast(Any, weight_shape(layer)), x) * scale)).to(out.dtype)

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
    def gain(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def dense(self, shape: Sequence[int], like: Tensor) -> Tensor:
        down, up = self.down.to(like), self.up.to(like).flatten(1)  # (r, in, ...), (out, r)
        if self.mid is not None:
            down = torch.einsum("ij...,jn->in...", self.mid.to(like), down.flatten(1))  # (r, in, *kernel)
        return (up @ down.flatten(1) * self.gain).view(tuple(shape))

    def increase(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float) -> Tensor:
        net: Any = layer
        if getattr(net, "groups", 1) != 1:
            return super().increase(layer, x, out, scale)
        x = x.to(self.down.dtype)
        fresh = not torch.is_grad_enabled() and out.is_contiguous() and out.dtype == x.dtype
        if self.down.ndim == 2:
            inner = F.linear(x, self.down) if self.mid is None else F.linear(F.linear(x, self.down), self.mid)
            inner = (inner * (scale * self.gain)).reshape(-1, self.rank)  # (N, r)
            rows = out.reshape(-1, out.shape[-1])
            if fresh:
                return rows.addmm_(inner, self.up.t()).view(out.shape)
            return torch.addmm(rows.to(inner.dtype), inner, self.up.t()).view(out.shape).to(out.dtype)
        point = CONVOLUTIONS[self.down.ndim - 2]
        inner = net._conv_forward(x, self.down, None) if self.mid is None else net._conv_forward(point(x, self.down), self.mid, None)
        inner = inner * (scale * self.gain)  # (B, r, ...)
        if fresh and out.ndim == self.down.ndim:
            up = self.up.flatten(1).expand(len(out), -1, -1)
            return out.flatten(2).baddbmm_(up, inner.flatten(2)).view(out.shape)
        return (out + point(inner, self.up)).to(out.dtype)


@dataclass(frozen=True, eq=False)
class LoHa(Delta):
    """Hyeon-Woo et al. 2022, FedPara, prop. 1: the elementwise product of two products, `w1_a @ w1_b` and `w2_a @ w2_b` of shapes (out, r) and
    (r, in kernel), times alpha / r. With cores `t1` and `t2` (r, r, *kernel) (prop. 3) the others are (r, out) and (r, in).
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float | None = None
    t1: Tensor | None = None
    t2: Tensor | None = None
    dora_scale: Tensor | None = None
    bias: Tensor | None = None
    kind: ClassVar[str] = "loha"

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def dense(self, shape: Sequence[int], like: Tensor) -> Tensor:
        sides = ((self.w1_a, self.w1_b, self.t1), (self.w2_a, self.w2_b, self.t2))
        first, second = (_product(a.to(like), b.to(like), core).reshape(shape) for a, b, core in sides)
        return first * second * self.gain


@dataclass(frozen=True, eq=False)
class LoKr(Delta):
    """Yeh et al. 2024, LyCORIS, sec. 3.2: the Kronecker product of `w1` (a, c) and `w2` (b, d, *kernel), where out = a b and in = c d. Either may
    be a product of rank r instead, `w1_a @ w1_b` and `w2_a @ w2_b`, the latter with a core `t2` (r, r, *kernel), too. Times alpha / r, or alpha
    where neither has a rank.
    """

    w1: Tensor | None = None
    w2: Tensor | None = None
    alpha: float | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    dora_scale: Tensor | None = None
    bias: Tensor | None = None
    kind: ClassVar[str] = "lokr"

    @property
    def rank(self) -> int:
        return next((part.shape[0] for part in (self.w1_b, self.w2_b) if part is not None), 0)

    def factors(self, shape: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """(a, c) and (b, d, *kernel) for a weight of `shape`, in the dtype of `like`."""

        def side(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
            return _product(cast(Tensor, a).to(like), cast(Tensor, b).to(like), core) if whole is None else whole.to(like)

        first, second = side(self.w1, self.w1_a, self.w1_b, None), side(self.w2, self.w2_a, self.w2_b, self.t2)
        return first, second.reshape(shape[0] // first.shape[0], shape[1] // first.shape[1], *shape[2:])

    def dense(self, shape: Sequence[int], like: Tensor) -> Tensor:
        first, second = self.factors(shape, like)
        whole = torch.einsum("ac,bd...->abcd...", first, second)
        return whole.reshape(shape) * self.gain

    def increase(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float) -> Tensor:
        net: Any = layer
        if hasattr(net, "in_features"):
            first, second = self.factors(cast(Any, weight_shape(net)), x)
            x = x.unflatten(-1, (first.shape[1], -1))  # (..., c, d)
            return (out + (first * (scale * self.gain) @ (x @ second.t())).flatten(-2)).to(out.dtype)
        return super().increase(layer, x, out, scale)


@dataclass(frozen=True, eq=False)
class Difference(Delta):
    """A change of the whole weight, of its shape, of the bias, or of both."""

    change: Tensor | None = None
    bias: Tensor | None = None
    alpha: float | None = None
    dora_scale: Tensor | None = None
    kind: ClassVar[str] = "diff"

    def dense(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return like.new_zeros(tuple(shape)) if self.change is None else self.change.to(like).reshape(shape)

    def increase(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float) -> Tensor:
        return out if self.change is None else super().increase(layer, x, out, scale)


@dataclass(frozen=True, eq=False)
class OFT(Delta):
    """Qiu et al. 2023: the weight is turned by orthogonal matrices, one for each of equal groups of its rows or columns.

    `blocks` are, by `form`: "skew", (groups, n, n), whose antisymmetric part Q = B - B^T gives R = (I + Q)(I - Q)^-1 (Cayley), with alpha out as
    the most that the norm of Q may be; "blocks", (groups, n, n), the matrices themselves, both turning rows, W' = R^T W; "in", (groups or 1,
    n(n-1)/2), the upper triangle of Q, R = (I - Q)(I + Q)^-1, turning columns, W' = W R^T, or with `terms` PEFT's series instead of that. Rows may
    be multiplied by `rescale`. A scale s turns by I + s (R - I).
    """

    blocks: Tensor
    alpha: float | None = None
    rescale: Tensor | None = None
    form: str = "skew"
    terms: int = 0
    dora_scale: Tensor | None = None
    bias: Tensor | None = None
    rotation: Tensor = field(init=False)
    kind: ClassVar[str] = "oft"
    turns: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", _rotation(_wide(self.blocks), self.form, self.alpha, self.terms))

    def _parts(self, like: Tensor, scale: float) -> tuple[Tensor, Tensor | None]:
        """Rotations (groups, n, n) and factors of rows (out,), None for none, at a scale."""
        turn = self.rotation.to(like)
        one = torch.eye(turn.shape[-1], dtype=like.dtype, device=like.device)
        factor = None if self.rescale is None else 1 + scale * (self.rescale.to(like).flatten() - 1)
        return one + scale * (turn - one), factor

    def changed(self, weight: Tensor, scale: float, base: Tensor) -> Tensor:
        turn, factor = self._parts(weight, scale)
        flat = weight.flatten(1)  # (out, in kernel)
        if self.form == "in":
            groups = flat.unflatten(1, (-1, turn.shape[-1]))
            made = (groups.transpose(0, 1) @ turn.mT).transpose(0, 1).flatten(1)
        else:
            made = (turn.mT @ flat.unflatten(0, (-1, turn.shape[-1]))).flatten(0, 1)
        return (made if factor is None else made * factor[:, None]).view(weight.shape)

    def add(self, layer: nn.Module, x: Tensor, out: Tensor, scale: float, before: Sequence[tuple[Delta, float]] = ()) -> Tensor:
        if self.form == "in":
            return self._add_dense(layer, x, out, scale, before)
        turn, factor = self._parts(out, scale)
        own = 0 if layer.bias is None else _along(layer, cast(Tensor, layer.bias), out).to(out.dtype)
        axis = -1 if not hasattr(layer, "kernel_size") else -1 - len(cast(Any, layer).kernel_size)
        made = (out - own).movedim(axis, -1)
        made = (made.unflatten(-1, (-1, 1, turn.shape[-1])) @ turn).flatten(-3)
        return (made if factor is None else made * factor).movedim(-1, axis) + own


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """(out, r) times (r, in), or around a core (r, r, *kernel) of (r, out) and (r, in): (out, in, *kernel)."""
    return a @ b if core is None else torch.einsum("ij...,ip,jq->pq...", core.to(a), a, b)


def _rotation(blocks: Tensor, form: str, alpha: float | None, terms: int) -> Tensor:
    """(groups, n, n), see OFT."""
    if form == "blocks":
        return blocks
    if form == "skew":
        q = blocks - blocks.mT
        norm = torch.linalg.vector_norm(q)
        if alpha and norm > (most := alpha * blocks.shape[0] * blocks.shape[1]):
            q = q * (most / norm)
    else:
        size = (1 + math.isqrt(1 + 8 * blocks.shape[1])) // 2
        q = blocks.new_zeros(len(blocks), size, size)
        q[:, *torch.triu_indices(size, size, 1)] = blocks
        q = q - q.mT
    one = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    if form == "skew":
        return torch.linalg.solve(one - q, one + q, left=False)
    if not terms:
        return torch.linalg.solve(one + q, one - q, left=False)
    # (I + Q)(I - Q)^-1 = I + 2 Q + 2 Q^2 + ...: the other sign of Q, and half of the last power, as PEFT has it
    last, made, power = max(terms - 1, 3) if terms > 2 else terms - 1, one.expand_as(q), q
    for i in range(1, last + 1):
        made = made + power * (1 if i == last and terms > 2 else 2)
        power = power @ q
    return made


def weight_shape(layer: nn.Module) -> tuple[int, ...] | None:
    """The shape of a layer's weight, which may be stored in another (quantised) one; None if this is no layer that adapters change."""
    own = layer.__dict__  # asking a module for what it lacks is slow
    if "kernel_size" in own and not own.get("transposed", True):
        return (own["out_channels"], own["in_channels"] // own["groups"], *own["kernel_size"])
    if "in_features" in own and "out_features" in own:
        return own["out_features"], own["in_features"]
    weight = layer.weight if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)) else None
    return None if weight is None else tuple(weight.shape)


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
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    if isinstance(layer, nn.GroupNorm):
        turned = x.transpose(1, 2) if x.ndim == 3 else x
        made = F.group_norm(turned, layer.num_groups, weight, bias, layer.eps)
        return made.transpose(1, 2) if x.ndim == 3 else made
    return F.linear(x, weight, bias)
