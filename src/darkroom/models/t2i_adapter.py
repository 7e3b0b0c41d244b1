"""T2I-Adapter: a small network whose feature maps of a picture are added inside a UNet's way down, once for all steps (Mou et al. 2023)."""

from __future__ import annotations
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from torch import Tensor, nn
from ..config import Config
from ..errors import InputError
from .base import Model, choose
from .several import Several

__all__ = ["MultiAdapter", "T2IAdapter", "T2IAdapterConfig"]


@dataclass(frozen=True, eq=False, repr=False)
class T2IAdapterConfig(Config):
    """The keys of the network's `config.json`. `channels` are the widths of the feature maps, `downscale_factor` that of the first one's size
    to the picture's; `adapter_type` is "full_adapter", "full_adapter_xl" (halves the size just once) or "light_adapter".
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = "full_adapter"


class AdapterResnet(nn.Module):
    """Two convolutions around a residual, the second one of `kernel` pixels."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.ReLU()
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.act(self.block1(x))) + x


class AdapterBlock(nn.Module):
    """Residual blocks at one resolution, perhaps half that of the input. A `light` block works at a quarter of its width."""

    def __init__(self, channels_in: int, channels: int, layers: int, down: bool, light: bool):
        super().__init__()
        inner = channels // 4 if light else channels
        self.downsample = nn.AvgPool2d(2, 2, ceil_mode=True) if down else nn.Identity()
        self.in_conv = nn.Conv2d(channels_in, inner, 1) if light or channels_in != channels else nn.Identity()
        self.resnets = nn.Sequential(*(AdapterResnet(inner, 3 if light else 1) for _ in range(layers)))
        self.out_conv = nn.Conv2d(inner, channels, 1) if light else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.resnets(self.in_conv(self.downsample(x))))


class Features(nn.Module):
    """Pixels as channels, then blocks, each of which gives a feature map. `down` says which halve the size."""

    def __init__(self, c: T2IAdapterConfig, down: Callable[[int], bool], light: bool):
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(c.downscale_factor)
        channels = c.in_channels * c.downscale_factor**2
        self.conv_in = nn.Identity() if light else nn.Conv2d(channels, c.channels[0], 3, padding=1)
        widths = [channels, *c.channels, c.channels[-1]] if light else [c.channels[0], *c.channels]
        blocks = [AdapterBlock(a, b, c.num_res_blocks, down(i), light) for i, (a, b) in enumerate(pairwise(widths))]
        self.body = nn.ModuleList(blocks)
        self.total_downscale_factor = c.downscale_factor * 2 ** sum(down(i) for i in range(len(blocks)))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.conv_in(self.unshuffle(x))]
        for block in self.body:
            features.append(block(features[-1]))
        return features[1:]


class T2IAdapter(Model):
    """Feature maps of a picture (B, in_channels, H, W): a list of (B, C, h, w), one for each block of the UNet's way down.
    Raises ConfigError for an option that has no meaning, InputError for a picture that it cannot read.
    """

    Config = T2IAdapterConfig
    config: T2IAdapterConfig

    def build(self, c: T2IAdapterConfig) -> None:
        kinds: dict[str, tuple[Callable[[int], bool], bool]] = {
            "full_adapter": (lambda i: i > 0, False),
            "full_adapter_xl": (lambda i: i == 2, False),
            "light_adapter": (lambda i: i > 0, True),
        }
        self.adapter = Features(c, *choose("adapter_type", c.adapter_type, kinds))

    @property
    def downscale_factor(self) -> int:
        """Height and width of pictures are multiples of this."""
        return self.config.downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        """How much smaller than the picture the last feature map is."""
        return self.adapter.total_downscale_factor

    def __call__(self, x: Tensor) -> list[Tensor]:
        return nn.Module.__call__(self, x)

    def forward(self, x: Tensor) -> list[Tensor]:
        channels, factor = self.config.in_channels, self.downscale_factor
        if x.shape[-3] != channels or x.shape[-2] % factor or x.shape[-1] % factor:
            expected = f"(B, {channels}, H, W), H and W multiples of {factor}"
            raise InputError("The picture does not fit this adapter.", where="x", got=tuple(x.shape), expected=expected)
        return self.adapter(x)


class MultiAdapter(Several):
    """T2I-Adapters that look at a picture each; their feature maps are added. InputError for adapters of different factors, or just one."""

    part = T2IAdapter
    holder = "adapters"

    def __init__(self, adapters: Sequence[Any]):
        super().__init__(adapters)
        factors = {(a.downscale_factor, a.total_downscale_factor) for a in adapters}
        if len(adapters) < 2 or len(factors) > 1:
            got, expected = f"{len(adapters)} adapters, of factors {sorted(factors)}", "two or more of the same"
            raise InputError("These adapters do not go together.", where="MultiAdapter", got=got, expected=expected)

    @property
    def num_adapter(self) -> int:
        return len(self.adapters)

    @property
    def downscale_factor(self) -> int:
        return self.adapters[0].downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        return self.adapters[0].total_downscale_factor

    def forward(self, xs: Sequence[Tensor], adapter_weights: Sequence[float] | None = None) -> list[Tensor]:
        """The weighted sums of what the adapters make of one picture each; without weights, their mean."""
        weights = adapter_weights or [1 / self.num_adapter] * self.num_adapter
        made = [[w * f for f in adapter(x)] for x, w, adapter in zip(xs, weights, self.adapters, strict=True)]
        return [sum(parts[1:], parts[0]) for parts in zip(*made)]
