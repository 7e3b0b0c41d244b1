"""Blocks of the latent upscaler (k-diffusion): norms conditioned on the timestep, one skip connection per block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .resnet import FirDownsample2D, FirUpsample2D, activation
from .transformer import Conditions

if TYPE_CHECKING:
    from .unet_blocks import Kind, Level

__all__ = ["KDownBlock", "KUpBlock"]


def groups_of_32(channels: int) -> int:
    return max(1, channels // 32)


class AdaGroupNorm(nn.Module):
    """Group norm with scale and shift from the timestep embedding (Dhariwal & Nichol 2021)."""

    def __init__(self, temb_channels: int, channels: int, groups: int, eps: float = 1e-5):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.linear = nn.Linear(temb_channels, 2 * channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        scale, shift = self.linear(temb)[:, :, None, None].chunk(2, 1)  # 2 x (B, C, 1, 1)
        return F.group_norm(x, self.groups, eps=self.eps) * (1 + scale) + shift


class KResnetBlock(nn.Module):
    """Two convolutions around a residual, from `before` over `between` to `after` channels."""

    def __init__(self, level: Level, before: int, between: int, after: int):
        super().__init__()
        groups = groups_of_32(before), groups_of_32(level.channels)
        self.norm1 = AdaGroupNorm(level.temb_channels, before, groups[0], level.norm_eps)
        self.conv1 = nn.Conv2d(before, between, 3, padding=1)
        self.norm2 = AdaGroupNorm(level.temb_channels, between, groups[1], level.norm_eps)
        self.dropout = nn.Dropout(level.dropout)
        self.conv2 = nn.Conv2d(between, after, 3, padding=1)
        self.act = activation(level.act_fn)
        self.conv_shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, temb)))
        h = self.conv2(self.dropout(self.act(self.norm2(h, temb))))
        return self.conv_shortcut(x) + h


class KAttention(nn.Module):
    """Attention of a feature map to itself, if asked for, and to the context, each around a residual."""

    def __init__(self, level: Level, channels: int, self_attention: bool):
        super().__init__()
        heads = {"heads": channels // level.head_dim, "dim_head": level.head_dim, "bias": True}
        self.attn1 = None
        if self_attention:
            self.norm1 = AdaGroupNorm(level.temb_channels, channels, groups_of_32(channels))
            self.attn1 = Attention(channels, **heads)
        self.norm2 = AdaGroupNorm(level.temb_channels, channels, groups_of_32(channels))
        self.attn2 = Attention(channels, level.context_dim, **heads, cross_attention_norm="layer_norm")

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        if self.attn1 is not None:
            x = self.attn1(self.norm1(x, cond.temb), None, cond.mask, cond.attend) + x  # (B, C, H, W)
        return self.attn2(self.norm2(x, cond.temb), cond.context, cond.context_mask, cond.attend) + x


class KDownBlock(nn.Module):
    """Residual blocks, each with its attention, then half the resolution, which makes no skip connection."""

    def __init__(self, kind: Kind, level: Level):
        super().__init__()
        widths = [level.channels_in] + [level.channels] * level.layers
        self.resnets = nn.ModuleList(KResnetBlock(level, a, b, b) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList()
        if kind.takes_context:
            self.attentions.extend(KAttention(level, b, not level.resample) for b in widths[1:])
        self.downsamplers = nn.ModuleList([FirDownsample2D("reflect")] if level.resample else [])

    def forward(self, x: Tensor, cond: Conditions, residual: Tensor | None = None) -> tuple[Tensor, list[Tensor | None]]:
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

    def __init__(self, kind: Kind, level: Level):
        super().__init__()
        width, last = level.channels, level.skip_channels
        innermost = kind.takes_context and width == last == level.temb_channels
        widths = [width if innermost else 2 * width] + [width] * (level.layers - 2) + [last]
        self.resnets = nn.ModuleList(KResnetBlock(level, a, width if kind.takes_context else b, b) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList()
        if kind.takes_context:
            self.attentions.extend(KAttention(level, b, innermost) for b in widths[1:])
        self.upsamplers = nn.ModuleList([FirUpsample2D("reflect")] if level.resample else [])

    def forward(self, x: Tensor, skips: list[Tensor | None], cond: Conditions, size: Sequence[int] | None = None) -> Tensor:
        """Of the skip connections only the last counts. The output has twice the input's size, whatever `size` says."""
        if skips[-1] is not None:
            x = torch.cat([x, skips[-1]], 1)
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, cond.temb)
            x = x if attention is None else attention(x, cond)
        for up in self.upsamplers:
            x = up(x)  # (B, C, 2H, 2W)
        return x
