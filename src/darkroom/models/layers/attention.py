"""Attention layers. What happens between queries, keys and values is the caller's `attend`."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ...core.attention import Attend, sdpa
from ...errors import ConfigError

__all__ = ["Attention", "rename_attention"]

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def rename_attention(name: str) -> str:
    """The present name of a tensor of self-attention over feature maps, whose layers once had other names."""
    return re.sub(r"(?<=\.)(attentions\.\d+)\.(query|key|value|proj_attn)(?=\.)", lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}", name)


class Attention(nn.Module):
    """Multi-head attention over (B, N, C) tokens or (B, C, H, W) maps (Vaswani et al. 2017).

    Args:
        query_dim: channels of the input and output.
        cross_attention_dim: channels of the context; None attends to the input itself.
        heads, dim_head: number of heads and channels per head.
        norm_num_groups: group normalisation of the input, None for none.
        cross_attention_norm: "layer_norm" or "group_norm" of the context, None leaves it.
        added_kv_proj_dim: channels of a context that goes before the input's own keys and values (Nichol et al. 2021).
        only_cross_attention: with `added_kv_proj_dim`, attend to that context alone.
        residual_connection: add the input to the output.
        upcast_attention: compute in float32, unless by the fused kernel, which accumulates in float32 by itself.
    """

    def __init__(
        self,
        query_dim: int,
        cross_attention_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        *,
        dropout: float = 0.0,
        bias: bool = False,
        norm_num_groups: int | None = None,
        eps: float = 1e-5,
        cross_attention_norm: str | None = None,
        added_kv_proj_dim: int | None = None,
        only_cross_attention: bool = False,
        residual_connection: bool = False,
        rescale_output_factor: float = 1.0,
        upcast_attention: bool = False,
    ):
        super().__init__()
        self.site = ""  # the dotted name in the network, set by the network
        self.heads, self.residual_connection, self.upcast_attention = heads, residual_connection, upcast_attention
        self.is_cross_attention = cross_attention_dim is not None
        self.rescale_output_factor = rescale_output_factor
        inner, context_dim = heads * dim_head, cross_attention_dim or query_dim
        self.group_norm = nn.GroupNorm(norm_num_groups, query_dim, eps=eps) if norm_num_groups else None
        self.norm_cross: nn.Module | None = None
        if cross_attention_norm == "layer_norm":
            self.norm_cross = nn.LayerNorm(context_dim)
        elif cross_attention_norm == "group_norm":
            self.norm_cross = nn.GroupNorm(32, added_kv_proj_dim or context_dim)
        elif cross_attention_norm is not None:
            raise ConfigError(
                "No norm of that name.", where="cross_attention_norm", got=cross_attention_norm, expected="layer_norm, group_norm or None"
            )
        self.to_q = nn.Linear(query_dim, inner, bias=bias)
        own = not (added_kv_proj_dim and only_cross_attention)
        self.to_k = nn.Linear(context_dim, inner, bias=bias) if own else None
        self.to_v = nn.Linear(context_dim, inner, bias=bias) if own else None
        self.add_k_proj = nn.Linear(added_kv_proj_dim, inner) if added_kv_proj_dim else None
        self.add_v_proj = nn.Linear(added_kv_proj_dim, inner) if added_kv_proj_dim else None
        self.to_out = nn.ModuleList([nn.Linear(inner, query_dim), nn.Dropout(dropout)])

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, attend: Attend = sdpa) -> Tensor:
        """`mask` is an additive bias over the context, broadcastable to (B, heads, N, M)."""
        residual, shape = x, x.shape
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)  # (B, HW, C)
        if self.group_norm is not None:
            x = self.group_norm(x.transpose(1, 2)).transpose(1, 2)
        if context is not None and self.norm_cross is not None:
            if isinstance(self.norm_cross, nn.GroupNorm):
                context = self.norm_cross(context.transpose(1, 2)).transpose(1, 2)
            else:
                context = self.norm_cross(context)
        if self.add_k_proj is not None and self.add_v_proj is not None:
            k, v = self.add_k_proj(context), self.add_v_proj(context)  # 2 x (B, M, h d)
            if self.to_k is not None and self.to_v is not None:
                k, v = torch.cat([k, self.to_k(x)], 1), torch.cat([v, self.to_v(x)], 1)  # 2 x (B, M + N, h d)
        else:
            source = x if context is None else context
            k, v = self.to_k(source), self.to_v(source)
        q = self.to_q(x)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (q, k, v))  # 3 x (B, h, N, d)
        if self.upcast_attention and attend is not sdpa:
            dtype, mask = q.dtype, mask if mask is None else mask.float()
            out = attend(q.float(), k.float(), v.float(), mask=mask, site=self.site).to(dtype)
        else:
            out = attend(q, k, v, mask=mask, site=self.site)
        out = out.transpose(1, 2).flatten(2)  # (B, N, h d)
        out = self.to_out[1](self.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(1, 2).reshape(shape)  # (B, C, H, W)
        if self.residual_connection:
            out = out + residual
        return out if self.rescale_output_factor == 1 else out / self.rescale_output_factor
