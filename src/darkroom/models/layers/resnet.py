"""Residual blocks and resampling of convolutional networks over (B, C, H, W), and the options that blocks are built from."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
import torch.nn.functional as F
from torch import Tensor, nn
from ...errors import ConfigError
from ..base import choose

__all__ = ["FirResample2D", "Level", "Resample2D", "ResnetBlock2D", "Way", "activation"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "swish": nn.SiLU, "mish": nn.Mish, "gelu": nn.GELU, "relu": nn.ReLU}
Way = Literal["down", "up"]


def activation(name: str) -> nn.Module:
    """The activation that a configuration calls `name`."""
    return choose("act_fn", str(name).lower(), ACTIVATIONS)()


@dataclass(frozen=True)
class Level:
    """Widths and options of the blocks at one resolution. Options carry the names of the configuration's keys.
    Args:
        channels: of the block's output; `channels_in` of its input.
        layers: residual blocks.
        resample: how the resolution changes at the end, None where it does not.
        skip_channels: of the last skip connection that a block on the way up receives; 0 where there are none.
        temb_channels: of the timestep embedding, None without one.
        heads: attention heads of transformers; other attentions have `channels // head_dim`.
        depth: transformer blocks for each residual block.
        attention_groups: of the norm in self-attention; None for no norm.
    """

    way: Way
    channels_in: int
    channels: int
    layers: int
    resample: Literal["conv", "resnet", "fir"] | None
    skip_channels: int = 0
    temb_channels: int | None = None
    heads: int = 1
    head_dim: int = 8
    depth: int | tuple[int, ...] = 1
    context_dim: int | None = None
    only_cross: bool = False
    attention_groups: int | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    dropout: float = 0.0
    downsample_padding: int = 1
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    use_linear_projection: bool = False
    upcast_attention: bool = False
    cross_attention_norm: str | None = None
    dual_cross_attention: bool = False
    attention_type: str = "default"


class Resample2D(nn.Module):
    """Nearest-neighbour enlargement by 2 (or to `size`), then a 3x3 convolution; or halving by a strided one.
    Without `use_conv`: enlargement alone, or averaging. `padding=0` pads right and below only (KL autoencoders).
    """

    def __init__(self, channels: int, way: Way, *, use_conv: bool = True, padding: int = 1):
        super().__init__()
        self.way, self.padding = way, padding
        stride, padding = (2, padding) if way == "down" else (1, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding) if use_conv else None

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if self.way == "up":
            x = F.interpolate(x, size=size, scale_factor=None if size else 2.0, mode="nearest")  # (B, C, 2H, 2W)
        elif self.conv is None:
            x = F.avg_pool2d(x, 2)  # (B, C, H/2, W/2)
        elif self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))
        return x if self.conv is None else self.conv(x)


class FirResample2D(nn.Module):
    """Halving or doubling with the binomial filter [1, 3, 3, 1] in both directions (Zhang 2019). `pad` is "constant" (zeros) or "reflect"."""

    def __init__(self, way: Way, pad: str = "constant"):
        super().__init__()
        self.way, self.pad = way, pad

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, C, H, W) to half or twice the size, whatever `size` says."""
        row = x.new_tensor([0.125, 0.375, 0.375, 0.125])
        kernel, groups, x = (row[:, None] * row).expand(x.shape[1], 1, 4, 4), x.shape[1], F.pad(x, (1, 1, 1, 1), self.pad)
        if self.way == "down":
            return F.conv2d(x, kernel, stride=2, groups=groups)  # (B, C, H/2, W/2)
        # of four output pixels one holds the input; the padded border grows too and is cut off again, 3 pixels on each side
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=3, groups=groups)  # (B, C, 2H, 2W)


class ResnetBlock2D(nn.Module):
    """Two normalised convolutions around a residual; the timestep embedding is added, or scales and shifts, in between.
    He et al. 2015; the conditioning is of Ho et al. 2020 ("default") or of Dhariwal & Nichol 2021 ("scale_shift").
    `resample` changes the resolution before the first convolution. `groups` of the two norms are the level's if not given.
    """

    def __init__(self, level: Level, channels_in: int, resample: Way | None = None, groups: tuple[int, int] | None = None):
        super().__init__()
        channels, eps, fir = level.channels, level.norm_eps, resample is not None and level.resample == "fir"
        first, second = groups or (level.norm_num_groups, level.norm_num_groups)
        if not first or not second or channels_in % first or channels % second:
            fits = f"a divisor of {channels_in} and {channels}"
            raise ConfigError("Groups do not fit.", where="norm_num_groups", got=str(first), expected=fits)
        self.scale_shift = choose("resnet_time_scale_shift", level.resnet_time_scale_shift, {"default": False, "scale_shift": True})
        self.output_scale_factor = level.resnet_out_scale_factor
        self.norm1 = nn.GroupNorm(first, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        shifts = channels * (2 if self.scale_shift else 1)
        self.time_emb_proj = nn.Linear(level.temb_channels, shifts) if level.temb_channels else None
        self.norm2 = nn.GroupNorm(second, channels, eps)
        self.dropout = nn.Dropout(level.dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = activation(level.act_fn)
        self.time_act = nn.Identity() if level.resnet_skip_time_act else self.act
        self.resample: nn.Module | None = None
        if resample:
            self.resample = FirResample2D(resample) if fir else Resample2D(channels_in, resample, use_conv=False)
        self.conv_shortcut = nn.Conv2d(channels_in, channels, 1) if fir or channels_in != channels else None

    def forward(self, x: Tensor, temb: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """`size` is that of the output, where an enlarging block does not double the input's."""
        h = self.act(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x, size), self.resample(h, size)  # (B, C, 2H, 2W) or (B, C, H/2, W/2)
        h = self.conv1(h)  # (B, C_out, H, W)
        if self.time_emb_proj is None:
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
