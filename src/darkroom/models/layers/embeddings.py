"""Embeddings of timesteps and of the conditions that UNets add to them."""

import math
from collections import OrderedDict
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ...errors import InputError
from .resnet import activation

__all__ = ["GaussianFourierProjection", "TextTimeEmbedding", "TimestepEmbedding", "Timesteps"]


class Timesteps(nn.Module):
    """Sinusoids of a timestep, [sin, cos] or [cos, sin], always float32 (Ho et al. 2020, after Vaswani et al. 2017)."""

    def __init__(self, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0):
        super().__init__()
        self.dim, self.flip_sin_to_cos, self.freq_shift = dim, flip_sin_to_cos, freq_shift

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, dim)."""
        half = self.dim // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - self.freq_shift)
        phase = t[:, None].float() * torch.exp(-math.log(10000) * exponent)  # (B, dim/2)
        waves = (phase.cos(), phase.sin()) if self.flip_sin_to_cos else (phase.sin(), phase.cos())
        return F.pad(torch.cat(waves, -1), (0, self.dim % 2))


class GaussianFourierProjection(nn.Module):
    """Sinusoids of fixed random frequencies, of t or of log t (Tancik et al. 2020; Song et al. 2021)."""

    def __init__(self, size: int, *, scale: float = 1.0, log: bool, flip_sin_to_cos: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * scale, requires_grad=False)
        self.log, self.flip_sin_to_cos = log, flip_sin_to_cos

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, 2 size)."""
        phase = (t.log() if self.log else t)[:, None] * self.weight * 2 * math.pi
        return torch.cat((phase.cos(), phase.sin()) if self.flip_sin_to_cos else (phase.sin(), phase.cos()), -1)


class TimestepEmbedding(nn.Module):
    """Two linear layers over an embedded timestep, `hidden` (else `out_dim`) wide in between, plus a projected condition with `cond_dim`
    (Meng et al. 2023).
    """

    def __init__(
        self, in_dim: int, out_dim: int, act_fn: str = "silu", *, post_act: str | None = None, cond_dim: int | None = None, hidden: int |
        None = None,
    ):  # fmt: skip
        super().__init__()
        hidden = hidden or out_dim
        self.linear_1 = nn.Linear(in_dim, hidden)
        self.cond_proj = nn.Linear(cond_dim, in_dim, bias=False) if cond_dim is not None else None
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(hidden, out_dim)
        self.post_act = activation(post_act) if post_act is not None else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is not None:
            if self.cond_proj is None:
                fix = "Leave it out; only networks whose config sets time_cond_proj_dim take it."
                raise InputError("No such condition.", where="timestep_cond", got=tuple(cond.shape), expected="None", fix=fix)
            x = x + self.cond_proj(cond)
        return self.post_act(self.linear_2(self.act(self.linear_1(x))))


class AttentionPooling(nn.Module):
    """One vector for a sequence: its mean, as a query, attends to itself and to the sequence (DeepFloyd IF)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, dim) / dim**0.5)
        self.k_proj, self.q_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, C)."""
        mean = x.mean(1, keepdim=True) + self.positional_embedding.to(x.dtype)  # (B, 1, C)
        x = torch.cat([mean, x], 1)
        q, k, v = self.q_proj(mean), self.k_proj(x), self.v_proj(x)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (q, k, v))  # (B, h, 1 or N + 1, d)
        return F.scaled_dot_product_attention(q, k, v).flatten(1)


class TextTimeEmbedding(nn.Sequential):
    """Text states (B, N, C) as an addend to the timestep embedding (DeepFloyd IF)."""

    def __init__(self, text_dim: int, out_dim: int, heads: int = 64):
        before, pool = nn.LayerNorm(text_dim), AttentionPooling(text_dim, heads)
        super().__init__(OrderedDict(norm1=before, pool=pool, proj=nn.Linear(text_dim, out_dim), norm2=nn.LayerNorm(out_dim)))
