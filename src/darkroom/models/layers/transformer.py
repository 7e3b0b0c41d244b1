"""Parts of diffusion transformers: patches with places, and blocks whose norms are modulated by what is known of the picture (Peebles & Xie 2023)."""

from __future__ import annotations
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ...core.attention import Attend
from .attention import Attention, FeedForward
from .embeddings import TimestepEmbedding, Timesteps

__all__ = ["AdaZeroBlock", "PatchEmbed", "TimestepLabelEmbedding", "sincos_2d", "unpatchify"]


def sincos_2d(dim: int, height: int, width: int, base: int, scale: float = 1.0, device: torch.device | None = None) -> Tensor:
    """Sinusoids of the places of a grid, row by row: (height x width, dim) float32, one half of the channels for the column, one for the row.
    Places count as on a grid of `base` by `base` that covers the same picture, divided by `scale`.
    """
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device=device) / (dim / 4))

    def waves(count: int) -> Tensor:
        places = torch.arange(count, dtype=torch.float32, device=device) / (count / base) / scale
        phase = places.double()[:, None] * rates
        return torch.cat([phase.sin(), phase.cos()], -1)  # (count, dim / 2)

    columns, rows = waves(width).expand(height, -1, -1), waves(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1).float()


class PatchEmbed(nn.Module):
    """Patches of a feature map (B, C, H, W) as tokens that know their places: (B, N, dim). `base` is the side in patches at training."""

    def __init__(self, channels: int, dim: int, patch: int, base: int, scale: float = 1.0):
        super().__init__()
        self.base, self.scale, self.patch = base, scale, patch
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # (B, dim, H / patch, W / patch)
        places = sincos_2d(x.shape[1], *x.shape[-2:], self.base, self.scale, x.device)
        return (x.flatten(2).transpose(1, 2) + places).to(x.dtype)


def unpatchify(x: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Tokens (B, height x width, patch x patch x C) as a feature map (B, C, height x patch, width x patch)."""
    x = x.unflatten(-1, (patch, patch, -1)).unflatten(1, (height, width))  # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class LabelEmbedding(nn.Module):
    """A vector for each class and, last, one for none. In training a label is dropped now and then, for classifier-free guidance."""

    def __init__(self, classes: int, dim: int, dropout: float = 0.1):
        super().__init__()
        self.classes, self.dropout = classes, dropout
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        if self.training:
            labels = labels.where(torch.rand(labels.shape, device=labels.device) >= self.dropout, self.classes)
        return self.embedding_table(labels)


class TimestepLabelEmbedding(nn.Module):
    """The sum of a timestep and a class as vectors: (B,) and (B,) to (B, dim)."""

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.time_proj = Timesteps(256, freq_shift=1)
        self.timestep_embedder = TimestepEmbedding(256, dim)
        self.class_embedder = LabelEmbedding(classes, dim)

    def forward(self, timestep: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        return self.timestep_embedder(self.time_proj(timestep).to(dtype)) + self.class_embedder(labels)


class AdaLayerNormZero(nn.Module):
    """A norm that a timestep and a class scale and shift, and five more rows for what follows it (adaLN-Zero)."""

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.emb = TimestepLabelEmbedding(classes, dim)
        self.linear = nn.Linear(dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The normed tokens (B, N, C); gate, shift, scale, gate, 4 x (B, 1, C)."""
        rows = self.linear(F.silu(self.emb(timestep, labels, x.dtype)))[:, None].chunk(6, -1)
        return self.norm(x) * (1 + rows[1]) + rows[0], *rows[2:]


class AdaZeroBlock(nn.Module):
    """Self-attention and a feed-forward network, each after a modulated norm and around a gated residual."""

    def __init__(
        self, dim: int, heads: int, classes: int, *, activation_fn: str, biased: bool, upcast: bool, affine: bool, eps: float, dropout: float
    ):  # fmt: skip
        super().__init__()
        self.norm1 = AdaLayerNormZero(classes, dim)
        self.attn1 = Attention(dim, None, heads, dim // heads, upcast, biased=biased)
        self.norm3 = nn.LayerNorm(dim, eps, affine)
        self.ff, self.dropout = FeedForward(dim, activation_fn, dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor, attend: Attend) -> Tensor:
        h, gate, shift, scale, last_gate = self.norm1(x, timestep, labels)
        x = gate * self.dropout(self.attn1(h, attend=attend)) + x
        return last_gate * self.ff(self.norm3(x) * (1 + scale) + shift) + x
