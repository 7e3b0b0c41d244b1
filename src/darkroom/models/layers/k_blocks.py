"""Blocks of the latent upscaler (k-diffusion): norms conditioned on the timestep, one skip connection per block."""

from __future__ import annotations
from collections.abc import Sequence
from itertools import pairwise, zip_longest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from .attention import Attention, Conditions
from .resnet import FirResample2D, Level, activation

__all__ = ["KAttention", "KDownBlock", "KUpBlock"]


class AdaGroupNorm(nn.Module):
    """Group norm, 32 channels a group, with scale and shift from the timestep embedding (Dhariwal & Nichol 2021)."""

    def __init__(self, level: Level, channels: int, channels_of_groups: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.groups, self.eps = max(1, (channels_of_groups or channels) // 32), eps
        self.linear = nn.Linear(level.temb_channels, 2 * channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        scale, shift = self.linear(temb)[:, :, None, None].chunk(2, 1)  # 2 x (B, C, 1, 1)
        return F.group_norm(x, self.groups, eps=self.eps) * (1 + scale) + shift


class KResnetBlock(nn.Module):
    """Two convolutions around a residual, from `before` over `between` to `after` channels."""

    def __init__(self, level: Level, before: int, between: int, after: int):
        super().__init__()
        self.norm1 = AdaGroupNorm(level, before, eps=level.norm_eps)
        self.conv1 = nn.Conv2d(before, between, 3, padding=1)
        self.norm2 = AdaGroupNorm(level, between, level.channels, level.norm_eps)
        self.dropout = nn.Dropout(level.dropout)
        self.conv2 = nn.Conv2d(between, after, 3, padding=1)
        self.act = activation(level.act_fn)
        self.conv_shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, temb)))
        h = self.conv2(self.dropout(self.act(self.norm2(h, temb))))
        return self.conv_shortcut(x) + h


class MapAttention(Attention):
    """Attention of a feature map (B, C, H, W) to itself, or to a context that is normalised first."""

    biased, joinable = True, False

    def __init__(self, level: Level, dim: int, context_dim: int | None = None):
        super().__init__(dim, context_dim, dim // level.head_dim, level.head_dim)
        self.norm_cross = nn.LayerNorm(context_dim) if context_dim else nn.Identity()

    def keys_and_values(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return super().keys_and_values(x, self.norm_cross(context))

    def on_map(self, x: Tensor, context: Tensor | None, mask: Tensor | None, cond: Conditions) -> Tensor:
        out = self(x.flatten(2).transpose(1, 2), context, mask, cond.attend)  # (B, HW, C)
        return out.transpose(1, 2).reshape(x.shape)


class KAttention(nn.Module):
    """Attention of a feature map to itself, if asked for, and to the context, each around a residual."""

    def __init__(self, level: Level, channels: int, self_attention: bool):
        super().__init__()
        self.attn1 = None
        if self_attention:
            self.norm1, self.attn1 = AdaGroupNorm(level, channels), MapAttention(level, channels)
        self.norm2, self.attn2 = AdaGroupNorm(level, channels), MapAttention(level, channels, level.context_dim)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        if self.attn1 is not None:
            x = self.attn1.on_map(self.norm1(x, cond.temb), None, cond.mask, cond) + x  # (B, C, H, W)
        mask = cond.mask if cond.context_mask is None else cond.context_mask
        return self.attn2.on_map(self.norm2(x, cond.temb), cond.context, mask, cond) + x


class KDownBlock(nn.Module):
    """Residual blocks, each with its attention, then half the resolution, which makes no skip connection."""

    picture = False

    def __init__(self, attention: type | None, level: Level):
        super().__init__()
        self.reads_context = attention is not None
        widths = [level.channels_in] + [level.channels] * level.layers
        self.resnets = nn.ModuleList(KResnetBlock(level, a, b, b) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(KAttention(level, b, not level.resample) for b in widths[1:] if attention)
        self.downsamplers = nn.ModuleList([FirResample2D("down", "reflect")] if level.resample else [])

    def forward(self, x: Tensor, cond: Conditions, residual: Tensor | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """The output, and what the way up will receive."""
        skips: list[Tensor | None] = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, cond.temb)
            x = x if attention is None else attention(x, cond)
            # the way up begins without a skip connection: the checkpoints were trained so
            skips.append(x if self.downsamplers or attention is None else None)
        for down in self.downsamplers:
            x = down(x)  # (B, C, H/2, W/2)
        return (x if residual is None else x + residual), skips


class KUpBlock(nn.Module):
    """Residual blocks over the input and one skip connection, each with its attention, then twice the resolution."""

    picture = False

    def __init__(self, attention: type | None, level: Level):
        super().__init__()
        self.reads_context = attention is not None
        width, last = level.channels, level.skip_channels
        innermost = attention is not None and width == last == level.temb_channels
        widths = [width if innermost else 2 * width] + [width] * (level.layers - 2) + [last]
        self.resnets = nn.ModuleList(KResnetBlock(level, a, width if attention else b, b) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(KAttention(level, b, innermost) for b in widths[1:] if attention)
        self.upsamplers = nn.ModuleList([FirResample2D("up", "reflect")] if level.resample else [])

    def forward(self, x: Tensor, cond: Conditions, skips: Sequence[Tensor | None] = (), size: Sequence[int] | None = None) -> Tensor:
        """Of the skip connections only the last counts. The output has twice the input's size, whatever `size` says."""
        if skips[-1] is not None:
            x = torch.cat([x, skips[-1]], 1)
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, cond.temb)
            x = x if attention is None else attention(x, cond)
        for up in self.upsamplers:
            x = up(x)  # (B, C, 2H, 2W)
        return x
