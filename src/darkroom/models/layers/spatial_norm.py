"""Blocks whose norms are scaled and shifted by a second feature map: the quantised latents, in the decoder of MoVQ (Zheng et al. 2022)."""

from __future__ import annotations
from dataclasses import replace
from typing import Any
import torch.nn.functional as F
from torch import Tensor, nn
from .attention import Attention, Conditions, SelfAttention
from .resnet import Level, ResnetBlock2D
from .unet_blocks import Block

__all__ = ["SpatialBlock", "SpatialNorm", "SpatialSelfAttention"]


class SpatialNorm(nn.Module):
    """Group norm of (B, C, H, W), times and plus projections of `z` (B, z_channels, h, w), enlarged to the nearest pixel."""

    def __init__(self, channels: int, z_channels: int):
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, eps=1e-6)
        self.conv_y, self.conv_b = nn.Conv2d(z_channels, channels, 1), nn.Conv2d(z_channels, channels, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        z = F.interpolate(z, x.shape[-2:])
        return self.norm_layer(x) * self.conv_y(z) + self.conv_b(z)


class SpatialResnet(ResnetBlock2D):
    """A residual block with such norms. The level's `temb_channels` are those of `z`, which comes in the place of the timestep embedding."""

    def __init__(self, level: Level, channels_in: int):
        super().__init__(replace(level, temb_channels=None), channels_in)
        z: Any = level.temb_channels
        self.norm1, self.norm2 = SpatialNorm(channels_in, z), SpatialNorm(level.channels, z)  # type: ignore[assignment]

    def forward(self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, temb)))
        h = self.conv2(self.dropout(self.act(self.norm2(h, temb))))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class SpatialSelfAttention(SelfAttention):
    """Self-attention of a feature map after such a norm."""

    def __init__(self, level: Level):
        super().__init__(replace(level, attention_groups=None))
        z: Any = level.temb_channels
        self.spatial_norm = SpatialNorm(level.channels, z)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:  # type: ignore[override]
        tokens = self.spatial_norm(x, cond.temb).flatten(2).transpose(1, 2)  # (B, HW, C)
        return Attention.forward(self, tokens, attend=cond.attend).transpose(1, 2).reshape(x.shape) + x


class SpatialBlock(Block):
    Resnet = SpatialResnet
