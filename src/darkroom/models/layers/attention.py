"""Attention layers and transformers over feature maps. What happens between queries, keys and values is the caller's `attend`."""

from __future__ import annotations
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ...core.attention import Attend, sdpa, unless_skipped
from ...core.windows import Windows, in_parts
from ...errors import InputError
from ..base import choose
from .resnet import Level

__all__ = [
    "AddedKVAttention", "Attention", "BasicTransformerBlock", "Conditions", "DualTransformer2D", "FeedForward", "SelfAttention",
    "Transformer2D", "rename_attention",
]  # fmt: skip

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_attention(name: str) -> str:
    """The present name of a tensor of self-attention over feature maps, whose layers once had other names."""
    return re.sub(r"(?<=\.)(attentions\.\d+)\.(query|key|value|proj_attn)(?=\.)", lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}", name)


@dataclass(frozen=True, eq=False)
class Conditions:
    """What every block of a UNet receives beside its input, for one call.
    `temb` is the timestep embedding (B, E), `context` (B, M, C); `mask` and `context_mask` are additive biases over the keys of
    self- and cross-attention, broadcastable to (B, heads, N, M). In a network over videos B counts pictures, `frames` of one video
    after another, which layers across frames may go through by `windows`. To save memory, layers over pictures take `at_once` rows at a
    time, those across frames `pixels_at_once`.
    """

    temb: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    context_mask: Tensor | None = None
    attend: Attend = sdpa
    objects: Tensor | None = None  # tokens of things in their places (B, K, C), which gated layers read
    frames: int = 1
    windows: Windows | None = None
    at_once: int | None = None
    pixels_at_once: int | None = None


class TokenGroupNorm(nn.GroupNorm):
    """Group norm of tokens (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Joined:
    """Several projections of one input as one, for as long as they are what they were."""

    sources: tuple[Tensor | None, ...]
    state: tuple[Any, ...]
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layers: Sequence[nn.Module], known: Joined | None) -> Joined | None:
        """`known`, if it is of these layers as they are now, else a new one; None where one is no plain projection, as with an adapter."""
        if not all(type(p) is nn.Linear and not (p._forward_hooks or p._forward_pre_hooks or "forward" in vars(p)) for p in layers):
            return None
        sources = tuple(t for p in layers for t in (p.weight, p.bias))
        state = tuple(None if t is None else (t._version, t.device, t.dtype) for t in sources)
        if known is not None and known.state == state and all(a is b for a, b in zip(known.sources, sources)):
            return known
        weights, biases = sources[::2], sources[1::2]
        bias = None if any(b is None for b in biases) else torch.cat(biases)  # type: ignore[arg-type]
        return cls(sources, state, torch.cat(weights), bias)  # type: ignore[arg-type]


class Attention(nn.Module):
    """Multi-head attention over tokens (B, N, C) (Vaswani et al. 2017).
    Args:
        dim: channels of the input and output; a `norm` comes before all else.
        context_dim: channels of the context; None attends to the input itself.
        heads, dim_head: number of heads and channels per head.
        upcast: compute in float32, unless by the fused kernel, which accumulates in float32 by itself.
        biased: whether the projections to queries, keys and values have a bias; the class's own choice if None.
    """

    biased = False  # the projections to queries, keys and values
    joinable = True  # whether nothing but a projection lies between the input and queries, keys and values
    fused = False  # whether projections of one input are computed as one
    joined: Joined | None = None

    def __init__(
        self, dim: int, context_dim: int | None, heads: int, dim_head: int, upcast: bool = False, norm: nn.Module | None = None, biased:
        bool | None = None,
    ):  # fmt: skip
        super().__init__()
        self.site = ""  # the dotted name in the network, set by the network
        self.heads, self.upcast, self.is_cross_attention = heads, upcast, context_dim is not None
        inner, context_dim, biased = heads * dim_head, context_dim or dim, self.biased if biased is None else biased
        self.group_norm = norm
        self.to_q = nn.Linear(dim, inner, biased)
        self.to_k, self.to_v = nn.Linear(context_dim, inner, biased), nn.Linear(context_dim, inner, biased)
        self.to_out = nn.Sequential(nn.Linear(inner, dim))

    def keys_and_values(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """2 x (B, M, heads dim_head)."""
        return self.to_k(context), self.to_v(context)

    def _tokens(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys and values: (B, N, heads dim_head) and 2 x (B, M, heads dim_head)."""
        if self.fused:
            self.joined = Joined.of((*((self.to_q,) if context is None else ()), self.to_k, self.to_v), self.joined)
            if (one := self.joined) is not None:
                parts = F.linear(x if context is None else context, one.weight, one.bias).chunk(3 if context is None else 2, -1)
                return parts if context is None else (self.to_q(x), *parts)
        return self.to_q(x), *self.keys_and_values(x, x if context is None else context)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, attend: Attend = sdpa) -> Tensor:
        """`mask` is an additive bias over the context, broadcastable to (B, heads, N, M)."""
        x = x if self.group_norm is None else self.group_norm(x)
        tokens = self._tokens(x, context)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in tokens)  # 3 x (B, h, N or M, d)
        if self.upcast and attend is not sdpa:
            mask = None if mask is None else mask.float()
            out = attend(q.float(), k.float(), v.float(), mask=mask, site=self.site).to(q.dtype)
        else:
            out = attend(q, k, v, mask=mask, site=self.site)
        return unless_skipped(self.to_out(out.transpose(1, 2).flatten(2)), attend, self.site)  # (B, N, C)


class SelfAttention(Attention):
    """Attention of a feature map (B, C, H, W) to itself, around a residual."""

    biased = True

    def __init__(self, level: Level):
        dim, groups = level.channels, level.attention_groups
        norm = TokenGroupNorm(groups, dim, eps=level.norm_eps) if groups else None
        super().__init__(dim, None, dim // level.head_dim, level.head_dim, norm=norm)
        self.output_scale_factor = level.resnet_out_scale_factor

    def forward(self, x: Tensor, cond: Conditions, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        out = super().forward(x.flatten(2).transpose(1, 2), context, mask, cond.attend)  # (B, HW, C)
        x = out.transpose(1, 2).reshape(x.shape) + x  # (B, C, H, W)
        return x if self.output_scale_factor == 1 else x / self.output_scale_factor


class AddedKVAttention(SelfAttention):
    """Attention of a feature map to the context and, unless `only_cross`, to itself at once (Nichol et al. 2021, GLIDE)."""

    joinable = False

    def __init__(self, level: Level):
        super().__init__(replace(level, attention_groups=level.norm_num_groups, norm_eps=1e-5, resnet_out_scale_factor=1.0))
        self.is_cross_attention = True
        if level.only_cross:
            self.to_k = self.to_v = None
        dim, context_dim, inner = level.channels, level.context_dim, self.to_q.out_features
        self.add_k_proj, self.add_v_proj = nn.Linear(context_dim, inner), nn.Linear(context_dim, inner)
        norms = {None: nn.Identity, "layer_norm": lambda: nn.LayerNorm(dim), "group_norm": lambda: TokenGroupNorm(32, context_dim)}
        self.norm_cross = choose("cross_attention_norm", level.cross_attention_norm, norms)()

    def keys_and_values(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        context = self.norm_cross(context)
        k, v = self.add_k_proj(context), self.add_v_proj(context)  # 2 x (B, M, h d)
        if self.to_k is not None:
            k, v = torch.cat([k, self.to_k(x)], 1), torch.cat([v, self.to_v(x)], 1)  # 2 x (B, M + N, h d)
        return k, v

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:  # type: ignore[override]
        mask = cond.context_mask if cond.mask is None else cond.mask  # unCLIP gives the context's mask as `attention_mask`
        if mask is not None and self.to_k is not None:
            mask = F.pad(mask, (0, x.shape[-2] * x.shape[-1]))  # the map's own pixels come after the context
        return super().forward(x, cond, cond.context, mask)


FEEDS: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {  # whether one half of the projection gates the other, and by which function
    "geglu": (True, F.gelu),
    "swiglu": (True, F.silu),
    "gelu": (False, F.gelu),
    "gelu-approximate": (False, partial(F.gelu, approximate="tanh")),
    "geglu-approximate": (False, lambda x: x * torch.sigmoid(1.702 * x)),
    "linear-silu": (False, F.silu),
}


class Activated(nn.Module):
    """A projection and its activation; of the gated ones (Shazeer 2020) one half is multiplied by the activation of the other."""

    def __init__(self, dim: int, out_dim: int, activation_fn: str):
        super().__init__()
        self.gated, self.function = choose("activation_fn", activation_fn, FEEDS)
        self.proj = nn.Linear(dim, 2 * out_dim if self.gated else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if not self.gated:
            return self.function(x)
        x, gate = x.chunk(2, -1)
        return x * self.function(gate)


class FeedForward(nn.Sequential):
    """To four times the width with an activation, and back."""

    skippable = True

    def __init__(self, dim: int, activation_fn: str = "geglu", dropout: float = 0.0):
        layers = Activated(dim, 4 * dim, activation_fn), nn.Dropout(dropout), nn.Linear(4 * dim, dim)
        super().__init__(OrderedDict(net=nn.Sequential(*layers)))


class _Placed(Attention):
    """Self-attention that no guidance and no adapter knows: it has no site."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__(dim, None, heads, dim_head)
        del self.site

    def forward(self, x: Tensor, attend: Attend = sdpa) -> Tensor:  # type: ignore[override]
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.to_q, self.to_k, self.to_v))  # 3 x (B, h, N, d)
        return self.to_out(attend(q, k, v).transpose(1, 2).flatten(2))


class GatedAttention(nn.Module):
    """A layer that was added to a trained network: tokens attend to each other and to objects, as far as two gates are open (Li et al. 2023,
    GLIGEN, eq. 8)."""

    def __init__(self, dim: int, level: Level):
        super().__init__()
        self.linear = nn.Linear(level.context_dim or dim, dim)
        self.attn, self.ff = _Placed(dim, level.heads, dim // level.heads), FeedForward(dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.alpha_attn, self.alpha_dense = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, objects: Tensor, attend: Attend) -> Tensor:
        """(B, N, C) and (B, K, context_dim) to (B, N, C)."""
        both = self.norm1(torch.cat([x, self.linear(objects)], 1))
        x = self.alpha_attn.tanh() * self.attn(both, attend)[:, : x.shape[1]] + x
        return self.alpha_dense.tanh() * self.ff(self.norm2(x)) + x


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each after a norm and around a residual.
    `only_cross`: the first attention reads the context too. Of type "gated" a further attention reads objects in between.
    """

    def __init__(self, dim: int, level: Level):
        super().__init__()
        size = {"heads": level.heads, "dim_head": dim // level.heads, "upcast": level.upcast_attention}
        self.only_cross = level.only_cross
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, level.context_dim if level.only_cross else None, **size)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, level.context_dim, **size)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)
        self.fuser = None if level.attention_type == "default" else GatedAttention(dim, level)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        x = self.attn1(self.norm1(x), cond.context if self.only_cross else None, cond.mask, cond.attend) + x  # (B, N, C)
        if self.fuser is not None and cond.objects is not None:
            x = self.fuser(x, cond.objects, cond.attend)
        x = self.attn2(self.norm2(x), cond.context, cond.context_mask, cond.attend) + x
        return self.fed(x, cond)

    def fed(self, x: Tensor, cond: Conditions) -> Tensor:
        """The last of the three."""
        added = in_parts(lambda part: self.ff(self.norm3(part)), cond.at_once, x)
        return unless_skipped(added, cond.attend, self.attn1.site.removesuffix("attn1") + "ff") + x


class Transformer2D(nn.Module):
    """`depth` transformer blocks over the pixels of (B, C, H, W), between projections, around a residual (Rombach et al. 2022).
    With `use_linear_projection` the projections are linear layers over tokens, not 1x1 convolutions, which only changes their shapes.
    """

    def __init__(self, level: Level):
        super().__init__()
        channels, self.linear = level.channels, level.use_linear_projection
        inner = channels // level.heads * level.heads
        self.norm = nn.GroupNorm(level.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if self.linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(inner, level) for _ in range(level.depth))
        self.proj_out = nn.Linear(inner, channels) if self.linear else nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        residual, size = x, x.shape[-2:]
        x = self.norm(x)
        x = self.proj_in(x.flatten(2).transpose(1, 2)) if self.linear else self.proj_in(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        for block in self.transformer_blocks:
            x = block(x, cond)
        if self.linear:
            return self.proj_out(x).transpose(1, 2).unflatten(-1, size) + residual
        return self.proj_out(x.transpose(1, 2).contiguous().unflatten(-1, size)) + residual


class DualTransformer2D(nn.Module):
    """Two transformers, mixed half and half, for a context of 77 text and 257 image tokens (Xu et al. 2022)."""

    LENGTHS = (77, 257)

    def __init__(self, level: Level):
        super().__init__()
        plain = replace(level, depth=1, use_linear_projection=False, only_cross=False, upcast_attention=False, attention_type="default")
        self.transformers = nn.ModuleList(Transformer2D(plain) for _ in self.LENGTHS)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        context, tokens = cond.context, sum(self.LENGTHS)
        if context is None or context.shape[1] != tokens:
            got = None if context is None else tuple(context.shape)
            raise InputError("The context has another length.", where="encoder_hidden_states", got=got, expected=f"(B, {tokens}, C)")
        parts = context.split(self.LENGTHS, 1)  # (B, 77, C) and (B, 257, C)
        # the first part goes through the second transformer: the checkpoints were trained so; masks are not used
        made = [net(x, Conditions(cond.temb, part, attend=cond.attend)) - x for net, part in zip(reversed(self.transformers), parts)]
        return made[0] * 0.5 + made[1] * 0.5 + x
