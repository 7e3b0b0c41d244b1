"""Blocks of NCSN++ that carry a small copy of the picture down and up beside the features (Song et al. 2021)."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from .attention import Conditions, SelfAttention
from .resnet import FirResample2D, Level, ResnetBlock2D

__all__ = ["SkipDownBlock", "SkipUpBlock", "quarter"]


def quarter(channels: int) -> int:
    """Groups of a norm where the configuration gives none: four channels each, 32 at most."""
    return min(channels // 4, 32)


def fir_level(level: Level) -> Level:
    """What such blocks decide by themselves."""
    return replace(level, resample="fir", resnet_skip_time_act=False, resnet_out_scale_factor=2**0.5, attention_groups=32)


class SkipDownBlock(nn.Module):
    """Residual blocks, each with its attention, then half the resolution, to which the smoothed, halved picture is added."""

    picture, reads_context = True, False

    def __init__(self, attention: type[SelfAttention] | None, level: Level):
        super().__init__()
        own, width = fir_level(level), level.channels
        widths = [level.channels_in] + [width] * (level.layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock2D(own, a, groups=(quarter(a), quarter(width))) for a in widths)
        self.attentions = nn.ModuleList(attention(own) for _ in widths if attention)
        self.resnet_down = None
        if level.resample:
            self.resnet_down = ResnetBlock2D(own, width, "down", groups=(quarter(width), quarter(width)))
            self.smooth, self.skip_conv = FirResample2D("down"), nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor, cond: Conditions, picture: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """The output, what the way up will receive, and the picture (B, 3, H, W) at half the size."""
        skips = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, cond.temb)
            x = x if attention is None else attention(x, cond)
            skips.append(x)
        if self.resnet_down is not None:
            picture = self.smooth(picture)  # (B, 3, H/2, W/2)
            x = self.skip_conv(picture) + self.resnet_down(x, cond.temb)  # (B, C, H/2, W/2)
            skips.append(x)
        return x, skips, picture


class SkipUpBlock(nn.Module):
    """Residual blocks over the input and skip connections; its part is added to the picture, which grows. One attention, after all else."""

    picture, reads_context = True, False

    def __init__(self, attention: type[SelfAttention] | None, level: Level):
        super().__init__()
        own, width = fir_level(level), level.channels
        below = [level.channels_in, *[width] * (level.layers - 1)]
        pairs = zip(below, [*[width] * (level.layers - 1), level.skip_channels])
        # with attention, only the skip connection's channels are quartered: the checkpoints were trained so
        sizes = [(a + b, min(a + b // 4, 32) if attention else quarter(a + b)) for a, b in pairs]
        self.resnets = nn.ModuleList(ResnetBlock2D(own, wide, groups=(groups, quarter(width))) for wide, groups in sizes)
        self.attentions = nn.ModuleList([attention(own)] if attention else [])
        self.smooth, self.resnet_up = FirResample2D("up"), None
        if level.resample:
            self.resnet_up = ResnetBlock2D(own, width, "up", groups=(quarter(width), quarter(width)))
            self.skip_norm = nn.GroupNorm(quarter(width), width, eps=level.norm_eps)
            self.skip_conv = nn.Conv2d(width, 3, 3, padding=1)

    def forward(
        self, x: Tensor, cond: Conditions, skips: Sequence[Tensor], size: Sequence[int] | None = None, picture: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the picture at twice the size, whatever `size` says."""
        for resnet, skip in zip(self.resnets, reversed(skips)):
            x = resnet(torch.cat([x, skip], 1), cond.temb)
        for attention in self.attentions:
            x = attention(x, cond)
        picture = None if picture is None else self.smooth(picture)
        if self.resnet_up is not None:
            own = self.skip_conv(F.silu(self.skip_norm(x)))  # (B, 3, H, W)
            picture = own if picture is None else picture + own
            x = self.resnet_up(x, cond.temb)  # (B, C, 2H, 2W)
        return x, picture
