"""Residual blocks and resampling of convolutional networks over (B, C, H, W)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError

__all__ = ["Downsample2D", "FirDownsample2D", "FirUpsample2D", "ResnetBlock2D", "Upsample2D", "activation"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


def activation(name: str) -> nn.Module:
    """The activation that a configuration calls `name`."""
    if name.lower() not in ACTIVATIONS:
        raise ConfigError("No activation of that name.", where="act_fn", got=name, expected=", ".join(ACTIVATIONS))
    return ACTIVATIONS[name.lower()]()


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement by 2 (or to `size`), then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, out_channels: int | None = None, *, use_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        x = F.interpolate(x, size=size, scale_factor=None if size else 2.0, mode="nearest")  # (B, C, 2H, 2W)
        return x if self.conv is None else self.conv(x)


class Downsample2D(nn.Module):
    """Halving by a strided 3x3 convolution, or by averaging. `padding=0` pads right and below only (KL autoencoders)."""

    def __init__(self, channels: int, out_channels: int | None = None, *, use_conv: bool = True, padding: int = 1):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=padding) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)  # (B, C, H/2, W/2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


def _binomial(x: Tensor) -> Tensor:
    """The filter [1, 3, 3, 1] in both directions with sum 1, for each channel of `x`: (C, 1, 4, 4)."""
    row = x.new_tensor([0.125, 0.375, 0.375, 0.125])
    return (row[:, None] * row).expand(x.shape[1], 1, 4, 4)


class FirDownsample2D(nn.Module):
    """Halving after a binomial filter (Zhang 2019). `pad` is "constant" (zeros) or "reflect"."""

    def __init__(self, pad: str = "constant"):
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), self.pad), _binomial(x), stride=2, groups=x.shape[1])


class FirUpsample2D(nn.Module):
    """Doubling with a binomial filter."""

    def __init__(self, pad: str = "constant"):
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        # the border that the padding adds grows too and is cut off again: 3 pixels on each side
        kernel = 4 * _binomial(x)  # of four output pixels, one holds the input
        return F.conv_transpose2d(F.pad(x, (1, 1, 1, 1), self.pad), kernel, stride=2, padding=3, groups=x.shape[1])


class ResnetBlock2D(nn.Module):
    """Two normalised convolutions around a residual; the timestep embedding is added, or scales and shifts, in between.

    He et al. 2015; the conditioning is of Ho et al. 2020 ("default") or of Dhariwal & Nichol 2021 ("scale_shift").
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        temb_channels: int | None = None,
        groups: int = 32,
        groups_out: int | None = None,
        eps: float = 1e-6,
        act_fn: str = "silu",
        time_embedding_norm: str = "default",
        skip_time_act: bool = False,
        output_scale_factor: float = 1.0,
        dropout: float = 0.0,
        resample: Literal["up", "down"] | nn.Module | None = None,
        conv_shortcut: bool | None = None,
    ):
        super().__init__()
        out_channels = out_channels or in_channels
        if time_embedding_norm not in ("default", "scale_shift"):
            raise ConfigError(
                "Unknown conditioning of residual blocks.",
                where="resnet_time_scale_shift",
                got=time_embedding_norm,
                expected="default or scale_shift",
            )
        self.scale_shift = time_embedding_norm == "scale_shift"
        self.output_scale_factor = output_scale_factor
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        width = out_channels * (2 if self.scale_shift else 1)
        self.time_emb_proj = nn.Linear(temb_channels, width) if temb_channels else None
        self.norm2 = nn.GroupNorm(groups_out or groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.act = activation(act_fn)
        self.time_act = nn.Identity() if skip_time_act else self.act
        if resample == "up":
            self.resample: nn.Module | None = Upsample2D(in_channels, use_conv=False)
        elif resample == "down":
            self.resample = Downsample2D(in_channels, use_conv=False)
        else:
            self.resample = resample
        needs_shortcut = in_channels != out_channels if conv_shortcut is None else conv_shortcut
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if needs_shortcut else None

    def forward(self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """`size` is that of the output, where an enlarging block does not double the input's."""
        h = self.act(self.norm1(x))
        if self.resample is not None:
            sized = {} if size is None else {"size": size}
            x, h = self.resample(x, **sized), self.resample(h, **sized)  # (B, C, 2H, 2W) or (B, C, H/2, W/2)
        h = self.conv1(h)  # (B, C_out, H, W)
        if self.time_emb_proj is None or temb is None:
            h = self.norm2(h)
        else:
            shift = self.time_emb_proj(self.time_act(temb))[:, :, None, None]  # (B, C_out or 2 C_out, 1, 1)
            if self.scale_shift:
                scale, shift = shift.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + shift)
        h = self.conv2(self.dropout(self.act(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        x = x + h
        return x if self.output_scale_factor == 1 else x / self.output_scale_factor
