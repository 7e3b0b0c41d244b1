"""Transformers over the pixels of a feature map, as UNets use them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.attention import Attend, sdpa
from .attention import Attention

__all__ = ["AddedKVAttention", "BasicTransformerBlock", "Conditions", "DualTransformer2D", "FeedForward", "SelfAttention", "Transformer2D"]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What every block of a UNet receives beside its input, for one call.

    `temb` is the timestep embedding (B, E), `context` (B, M, C); `mask` and `context_mask` are additive biases over
    the keys of self- and cross-attention, broadcastable to (B, heads, N, M).
    """

    temb: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None
    context_mask: Tensor | None = None
    attend: Attend = sdpa


class SelfAttention(Attention):
    """Attention of a feature map to itself."""

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:  # type: ignore[override]
        return super().forward(x, attend=cond.attend)


class AddedKVAttention(Attention):
    """Attention of a feature map to the context and to itself at once (Nichol et al. 2021, GLIDE)."""

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:  # type: ignore[override]
        mask = cond.context_mask if cond.mask is None else cond.mask  # unCLIP gives the context's mask as `attention_mask`
        if mask is not None and self.to_k is not None:
            mask = F.pad(mask, (0, x.shape[-2] * x.shape[-1]))  # the map's own pixels come after the context
        return super().forward(x, cond.context, mask, cond.attend)


class GEGLU(nn.Module):
    """One half of a projection, gated by the GELU of the other (Shazeer 2020)."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each after a norm and around a residual.

    `only_cross_attention`: the first attention reads the context too.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        *,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ):
        super().__init__()
        self.only_cross_attention = only_cross_attention
        first_dim = context_dim if only_cross_attention else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, first_dim, heads, dim_head, upcast_attention=upcast_attention)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, heads, dim_head, upcast_attention=upcast_attention)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        first = cond.context if self.only_cross_attention else None
        x = self.attn1(self.norm1(x), first, cond.mask, cond.attend) + x  # (B, N, C)
        x = self.attn2(self.norm2(x), cond.context, cond.context_mask, cond.attend) + x
        return self.ff(self.norm3(x)) + x


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of (B, C, H, W), between projections, around a residual (Rombach et al. 2022).

    `linear`: the projections are linear layers over tokens, not 1x1 convolutions, which only changes their shapes.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        context_dim: int | None,
        *,
        depth: int = 1,
        groups: int = 32,
        linear: bool = False,
        only_cross_attention: bool = False,
        upcast_attention: bool = False,
    ):
        super().__init__()
        inner, self.linear = heads * dim_head, linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner, heads, dim_head, context_dim, only_cross_attention=only_cross_attention, upcast_attention=upcast_attention
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        residual, (height, width) = x, x.shape[-2:]
        x = self.norm(x)
        if self.linear:
            x = self.proj_in(x.flatten(2).transpose(1, 2))  # (B, HW, C)
        else:
            x = self.proj_in(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        for block in self.transformer_blocks:
            x = block(x, cond)
        if self.linear:
            return self.proj_out(x).transpose(1, 2).unflatten(-1, (height, width)) + residual
        x = x.transpose(1, 2).contiguous().unflatten(-1, (height, width))  # (B, C, H, W)
        return self.proj_out(x) + residual


class DualTransformer2D(nn.Module):
    """Two transformers, mixed half and half, for a context of 77 text and 257 image tokens (Xu et al. 2022)."""

    LENGTHS = (77, 257)

    def __init__(self, channels: int, heads: int, dim_head: int, context_dim: int | None, *, groups: int = 32):
        super().__init__()
        self.transformers = nn.ModuleList(Transformer2D(channels, heads, dim_head, context_dim, groups=groups) for _ in self.LENGTHS)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        text, image = self.LENGTHS
        first, second = cond.context[:, :text], cond.context[:, text : text + image]
        # the first part goes through the second transformer: the checkpoints were trained so; masks are not used
        by_first = self.transformers[1](x, Conditions(cond.temb, first, attend=cond.attend)) - x
        by_second = self.transformers[0](x, Conditions(cond.temb, second, attend=cond.attend)) - x
        return by_first * 0.5 + by_second * 0.5 + x
