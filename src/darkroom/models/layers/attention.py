"""Attention layers and transformers over feature maps. What happens between queries, keys and values is the caller's `attend`."""

from __future__ import annotations
import re
from dataclasses import dataclass
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ...core.attention import Attend, sdpa
from ..base import choose

__all__ = ["AddedKVAttention", "Attention", "Conditions", "SelfAttention", "Transformer2D", "rename_attention"]

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_attention(name: str) -> str:
    """The present name of a tensor of self-attention over feature maps, whose layers once had other names."""
    return re.sub(r"(?<=\.)(attentions\.\d+)\.(query|key|value|proj_attn)(?=\.)", lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}", name)


@dataclass(frozen=True, eq=False)
class Conditions:
    """What every block of a UNet receives beside its input, for one call.

    `temb` is the timestep embedding (B, E), `context` (B, M, C); `mask` and `context_mask` are additive biases over the keys of
    self- and cross-attention, broadcastable to (B, heads, N, M).
    """

    temb: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None
    context_mask: Tensor | None = None
    attend: Attend = sdpa


class TokenGroupNorm(nn.GroupNorm):
    """Group norm of tokens (B, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention over (B, N, C) tokens or (B, C, H, W) maps (Vaswani et al. 2017).

    Args:
        query_dim: channels of the input and output.
        cross_attention_dim: channels of the context; None attends to the input itself.
        heads, dim_head: number of heads and channels per head.
        norm_num_groups: group normalisation of the input, None for none.
        residual_connection: add the input to the output.
        upcast_attention: compute in float32, unless by the fused kernel, which accumulates in float32 by itself.
    """

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None,
        heads: int,
        dim_head: int,
        *,
        bias: bool = False,
        norm_num_groups: int | None = None,
        eps: float = 1e-5,
        residual_connection: bool = False,
        rescale_output_factor: float = 1.0,
        upcast_attention: bool = False,
    ):
        super().__init__()
        self.site = ""  # the dotted name in the network, set by the network
        self.heads, self.residual_connection, self.upcast_attention = heads, residual_connection, upcast_attention
        self.is_cross_attention, self.rescale_output_factor = cross_attention_dim is not None, rescale_output_factor
        inner, context_dim = heads * dim_head, cross_attention_dim or query_dim
        self.group_norm = TokenGroupNorm(norm_num_groups, query_dim, eps=eps) if norm_num_groups else None
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        self.to_k = nn.Linear(context_dim, inner, bias=bias)
        self.to_v = nn.Linear(context_dim, inner, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim))

    def keys_and_values(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """2 x (B, M, heads dim_head)."""
        source = x if context is None else context
        return self.to_k(source), self.to_v(source)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, attend: Attend = sdpa) -> Tensor:
        """`mask` is an additive bias over the context, broadcastable to (B, heads, N, M)."""
        residual, shape = x, x.shape
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        if self.group_norm is not None:
            x = self.group_norm(x)
        tokens = self.to_q(x), *self.keys_and_values(x, context)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in tokens)  # 3 x (B, h, N or M, d)
        if self.upcast_attention and attend is not sdpa:
            mask = None if mask is None else mask.float()
            out = attend(q.float(), k.float(), v.float(), mask=mask, site=self.site).to(q.dtype)
        else:
            out = attend(q, k, v, mask=mask, site=self.site)
        out = self.to_out(out.transpose(1, 2).flatten(2))  # (B, N, C)
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)  # (B, C, H, W)
        if self.residual_connection:
            out = out + residual
        return out if self.rescale_output_factor == 1 else out / self.rescale_output_factor


class SelfAttention(Attention):
    """Attention of a feature map to itself."""

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:  # type: ignore[override]
        return super().forward(x, attend=cond.attend)


class AddedKVAttention(Attention):
    """Attention of a feature map to the context and, unless `only_context`, to itself at once (Nichol et al. 2021, GLIDE)."""

    def __init__(self, dim: int, context_dim: int, heads: int, dim_head: int, only_context: bool, context_norm: str | None, **options: Any):
        super().__init__(dim, dim, heads, dim_head, **options)
        if only_context:
            self.to_k = self.to_v = None
        self.add_k_proj = nn.Linear(context_dim, heads * dim_head)
        self.add_v_proj = nn.Linear(context_dim, heads * dim_head)
        norms = {None: nn.Identity, "layer_norm": lambda: nn.LayerNorm(dim), "group_norm": lambda: TokenGroupNorm(32, context_dim)}
        self.norm_cross = choose("cross_attention_norm", context_norm, norms)()

    def keys_and_values(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        context = self.norm_cross(context)
        k, v = self.add_k_proj(context), self.add_v_proj(context)  # 2 x (B, M, h d)
        if self.to_k is None:
            return k, v
        return torch.cat([k, self.to_k(x)], 1), torch.cat([v, self.to_v(x)], 1)  # 2 x (B, M + N, h d)

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
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward network, each after a norm and around a residual.

    `only_cross_attention`: the first attention reads the context too.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int | None, *, only_cross_attention: bool, upcast_attention: bool):
        super().__init__()
        self.only_cross_attention = only_cross_attention
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, context_dim if only_cross_attention else None, heads, dim_head, upcast_attention=upcast_attention)
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
    `options` are those of the blocks.
    """

    def __init__(self, channels: int, heads: int, context_dim: int | None, *, depth: int, groups: int, linear: bool, **options: bool):
        super().__init__()
        dim_head = channels // heads
        inner, self.linear = heads * dim_head, linear
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        blocks = (BasicTransformerBlock(inner, heads, dim_head, context_dim, **options) for _ in range(depth))
        self.transformer_blocks = nn.ModuleList(blocks)
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
