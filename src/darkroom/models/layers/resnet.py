"""Residual blocks and resampling of convolutional networks over (B, C, H, W)."""

from __future__ import annotations
import torch.nn.functional as F
from torch import Tensor, nn
from ..base import choose

__all__ = ["Downsample2D", "ResnetBlock2D", "Upsample2D", "activation"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}


def activation(name: str) -> nn.Module:
    """The activation that a configuration calls `name`."""
    return choose("act_fn", str(name).lower(), ACTIVATIONS)()


class Upsample2D(nn.Module):
    """Nearest-neighbour enlargement by 2 (or to `size`), then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, *, use_conv: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        x = F.interpolate(x, size=size, scale_factor=None if size else 2.0, mode="nearest")  # (B, C, 2H, 2W)
        return x if self.conv is None else self.conv(x)


class Downsample2D(nn.Module):
    """Halving by a strided 3x3 convolution, or by averaging. `padding=0` pads right and below only (KL autoencoders)."""

    def __init__(self, channels: int, *, use_conv: bool = True, padding: int = 1):
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)  # (B, C, H/2, W/2)
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.padding == 0 else x)


class ResnetBlock2D(nn.Module):
    """Two normalised convolutions around a residual; the timestep embedding is added, or scales and shifts, in between.

    He et al. 2015; the conditioning is of Ho et al. 2020 ("default") or of Dhariwal & Nichol 2021 ("scale_shift").
    `resample`, "up" or "down", changes the resolution before the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        temb_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-6,
        act_fn: str = "silu",
        time_embedding_norm: str = "default",
        skip_time_act: bool = False,
        output_scale_factor: float = 1.0,
        dropout: float = 0.0,
        resample: str | None = None,
    ):
        super().__init__()
        self.scale_shift = choose("resnet_time_scale_shift", time_embedding_norm, {"default": False, "scale_shift": True})
        self.output_scale_factor = output_scale_factor
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels * (2 if self.scale_shift else 1)) if temb_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.act = activation(act_fn)
        self.time_act = nn.Identity() if skip_time_act else self.act
        kinds = {"up": Upsample2D, "down": Downsample2D}
        self.resample = kinds[resample](in_channels, use_conv=False) if resample else None
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

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
        x = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        return x if self.output_scale_factor == 1 else x / self.output_scale_factor
