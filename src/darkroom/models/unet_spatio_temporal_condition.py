"""The UNet of Stable Video Diffusion, over the frames of a video (Blattmann et al. 2023)."""

from __future__ import annotations
from dataclasses import dataclass, replace
from typing import Any
import torch
from torch import Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..errors import InputError
from .base import as_batch, choose
from .layers.attention import Conditions
from .layers.embeddings import TimestepEmbedding, Timesteps
from .layers.resnet import Level
from .layers.spatio_temporal import FramesBlock, FramesDownBlock, SpatioTemporalTransformer
from .layers.unet_blocks import Block, down_levels, middle_block, per_block, up_levels
from .unet_2d import UNet, UNet2DOutput
from .unet_2d_condition import UNet2DConditionConfig

__all__ = ["UNetSpatioTemporalConditionConfig", "UNetSpatioTemporalConditionModel", "UNetSpatioTemporalConditionOutput"]


class UNetSpatioTemporalConditionOutput(UNet2DOutput):
    """`sample`: the prediction (B, F, out_channels, H, W)."""


@dataclass(frozen=True, eq=False, repr=False)
class UNetSpatioTemporalConditionConfig(Config):
    """The keys of the network's `config.json`. `num_frames` is for the caller; the network takes any number."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 8
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlockSpatioTemporal",) * 3, "DownBlockSpatioTemporal")
    up_block_types: tuple[str, ...] = ("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 768
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int | tuple[int, ...] = 1024
    transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1
    num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20)
    num_frames: int = 25


class UNetSpatioTemporalConditionModel(UNet):
    """A UNet over (B, F, C, H, W) that predicts velocity or noise, as its checkpoint was trained.
    Raises ConfigError for an option that has no meaning, or whose length does not fit the number of blocks.
    """

    Config = UNetSpatioTemporalConditionConfig
    Result = UNetSpatioTemporalConditionOutput
    config: UNetSpatioTemporalConditionConfig

    def build(self, c: UNetSpatioTemporalConditionConfig) -> None:
        first, width = c.block_out_channels[0], 4 * c.block_out_channels[0]
        self.conv_in = nn.Conv2d(c.in_channels, first, 3, padding=1)
        self.time_proj, self.time_embedding = Timesteps(first), TimestepEmbedding(first, width)
        self.add_time_proj = Timesteps(c.addition_time_embed_dim)
        self.add_embedding = TimestepEmbedding(c.projection_class_embeddings_input_dim, width)
        options = {"heads": "num_attention_heads", "context_dim": "cross_attention_dim", "depth": "transformer_layers_per_block"}
        plain = UNet2DConditionConfig(block_out_channels=c.block_out_channels, layers_per_block=c.layers_per_block)
        levels = down_levels(plain, temb_channels=width, **{ours: per_block(c, key) for ours, key in options.items()})

        def blocks(levels: list[Level], make: type[Block]) -> nn.ModuleList:
            way = levels[0].way
            field, made = f"{way}_block_types", []
            known = {f"CrossAttn{way.title()}BlockSpatioTemporal": SpatioTemporalTransformer, f"{way.title()}BlockSpatioTemporal": None}
            for name, level in zip(per_block(c, field), levels):
                attention = choose(field, name, known)
                eps = 1e-5 if way == "down" and attention is None else 1e-6  # the checkpoints were trained so
                made.append(make(attention, replace(level, norm_eps=eps)))  # type: ignore[arg-type]
            return nn.ModuleList(made)

        self.down_blocks = blocks(levels, FramesDownBlock)
        self.mid_block = middle_block(SpatioTemporalTransformer, levels[-1], make=FramesBlock)  # type: ignore[arg-type]
        self.up_blocks = blocks(up_levels(levels), FramesBlock)
        self.conv_norm_out, self.conv_act = nn.GroupNorm(32, first, eps=1e-5), nn.SiLU()
        self.conv_out = nn.Conv2d(first, c.out_channels, 3, padding=1)

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """One call for `rows` videos of this size, with as many frames as the checkpoint says; the values mean nothing."""
        c = self.config
        x = torch.empty(rows, c.num_frames, c.in_channels, height, width, dtype=self.dtype)
        context = torch.empty(rows, 1, per_block(c, "cross_attention_dim")[0], dtype=self.dtype)
        count = c.projection_class_embeddings_input_dim // c.addition_time_embed_dim
        return self(x, torch.ones(1), context, torch.empty(rows, count, dtype=self.dtype))

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, added_time_ids: Tensor, *,
        attend: Attend | None = None,
    ) -> Tensor:  # fmt: skip
        """Predict from noisy frames: (B, F, in_channels, H, W) -> (B, F, out_channels, H, W).
        Args:
            timestep: one for all rows or one for each.
            encoder_hidden_states: the context (B, M, cross_attention_dim).
            added_time_ids: (B, numbers), each embedded as a timestep is: frames per second less 1, motion bucket, noise on the picture.
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
        Raises InputError for an argument that does not fit the configuration.
        """
        context, ids, c = encoder_hidden_states, added_time_ids, self.config
        numbers = c.projection_class_embeddings_input_dim // c.addition_time_embed_dim
        for where, x, fits in (
            ("sample", sample, (None, None, c.in_channels, None, None)),
            ("encoder_hidden_states", context, (len(sample), None, per_block(c, "cross_attention_dim")[0])),
            ("added_time_ids", ids, (len(sample), numbers)),
        ):
            if x.ndim != len(fits) or any(n not in (None, m) for n, m in zip(fits, x.shape)):
                expected = ", ".join("any" if n is None else str(n) for n in fits)
                raise InputError("A tensor that does not fit this network.", where=where, got=tuple(x.shape), expected=f"({expected})")
        rows, frames = sample.shape[:2]
        temb = self.time_embedding(self.time_proj(as_batch(timestep, sample)).to(sample.dtype))
        temb = temb + self.add_embedding(self.add_time_proj(ids.flatten()).reshape(rows, -1).to(temb.dtype))  # (B, E)
        cond = Conditions(temb[:, None].expand(-1, frames, -1), context.repeat_interleave(frames, 0), attend=attend or self.attend)
        return self._through(sample.flatten(0, 1), cond).unflatten(0, (rows, frames))
