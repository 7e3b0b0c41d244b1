"""MotionAdapter: the motion modules for a UNet over pictures, which make it one over videos (AnimateDiff, Guo et al. 2023)."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
from torch import Tensor, nn
from ..config import Config
from .base import Model
from .layers.motion import motion_modules
from .layers.unet_blocks import per_block

__all__ = ["MotionAdapter", "MotionAdapterConfig"]


@dataclass(frozen=True, eq=False, repr=False)
class MotionAdapterConfig(Config):
    """The keys of the adapter's `config.json`. Widths and layers are those of the UNet that it is for; `motion_max_seq_length` is the largest
    number of frames that it knows places for; with `conv_in_channels` it has a first convolution too, that sees so many channels (PIA).
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    motion_layers_per_block: int | tuple[int, ...] = 2
    motion_transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1
    motion_mid_block_layers_per_block: int = 1
    motion_transformer_layers_per_mid_block: int | tuple[int, ...] = 1
    motion_num_attention_heads: int | tuple[int, ...] = 8
    motion_norm_num_groups: int = 32
    motion_max_seq_length: int = 32
    use_motion_mid_block: bool = True
    conv_in_channels: int | None = None


class Motion(nn.Module):
    """The motion modules of one block."""

    def __init__(self, modules: nn.ModuleList):
        super().__init__()
        self.motion_modules = modules


class MotionAdapter(Model):
    """Motion modules by block, down, middle and up, as `UNetMotionModel` has them. It computes nothing by itself."""

    Config = MotionAdapterConfig
    config: MotionAdapterConfig

    def build(self, c: MotionAdapterConfig) -> None:
        fields = "block_out_channels motion_layers_per_block motion_transformer_layers_per_block motion_num_attention_heads"
        blocks = [*zip(*(per_block(c, field) for field in fields.split()))]

        def made(width: int, layers: int, depth: Any, heads: Any) -> Motion:
            return Motion(motion_modules(width, layers, depth, heads, c.motion_norm_num_groups, c.motion_max_seq_length))

        self.conv_in = nn.Conv2d(c.conv_in_channels, c.block_out_channels[0], 3, padding=1) if c.conv_in_channels else None
        self.down_blocks = nn.ModuleList(made(*block) for block in blocks)
        self.mid_block = None
        if c.use_motion_mid_block:
            depth = c.motion_transformer_layers_per_mid_block
            self.mid_block = made(blocks[-1][0], c.motion_mid_block_layers_per_block, depth, blocks[-1][-1])
        self.up_blocks = nn.ModuleList(made(width, layers + 1, *rest) for width, layers, *rest in reversed(blocks))

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, as the reference has it: the layers are for a UNet."""

    def forward(self, sample: Tensor) -> None: ...
