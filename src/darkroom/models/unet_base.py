"""What UNets share beside their blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Config
from ..errors import ConfigError, InputError
from .base import Model
from .layers.attention import rename_attention

__all__ = ["UNet", "check_block_types", "one_of", "per_block"]


class UNet(Model):
    """A network of blocks on the way down, in the middle and on the way up."""

    gradient_checkpointing: bool = False
    conv_in: nn.Conv2d

    @staticmethod
    def rename_key(name: str) -> str:
        return rename_attention(name)

    def enable_gradient_checkpointing(self) -> None:
        """Compute what is inside blocks again for gradients, not keep it: less memory, more time (Chen et al. 2016)."""
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = False

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _check(self, sample: Tensor, channels: int) -> None:
        if sample.ndim != 4 or sample.shape[1] != channels:
            shape, fits = tuple(sample.shape), f"(B, {channels}, H, W)"
            raise InputError("The sample does not fit this network.", where="sample", got=shape, expected=fits)


def one_of(field: str, value: object, *allowed: object) -> ConfigError:
    """The error for an option with a value that has no meaning."""
    known = ", ".join(map(str, allowed))
    return ConfigError("This option has no such value.", where=field, got=value, expected=known)


def per_block(config: Config, field: str, count: int) -> tuple:
    """An option with one value per block, or one for all of them."""
    value = config[field]
    if not isinstance(value, tuple):
        return (value,) * count
    if len(value) != count:
        fits = f"{count}, as block_out_channels"
        raise ConfigError("This option has one value per block.", where=field, got=len(value), expected=fits)
    return value


def check_block_types(config: Config, without: str) -> None:
    """As many blocks down and up as there are widths, none named with `without`: the network could not call them."""
    for field in ("down_block_types", "up_block_types"):
        wrong = [name for name in per_block(config, field, len(config.block_out_channels)) if without in name]
        if wrong:
            raise ConfigError("This network has no blocks of that type.", where=field, got=", ".join(wrong))
