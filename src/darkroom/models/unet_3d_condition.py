"""The UNet of ModelScope's text to video: after each layer over pictures one across frames (Wang et al. 2023)."""

from __future__ import annotations
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
import torch
from torch import Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from .base import as_batch, choose
from .layers.attention import Conditions, Transformer2D
from .layers.embeddings import TimestepEmbedding, Timesteps
from .layers.motion import MotionTransformer, TemporalConvs, per_frame
from .layers.resnet import Level
from .layers.unet_blocks import Attends, Block, DownBlock, down_levels, middle_block, per_block, up_levels
from .unet_2d import UNet, UNet2DOutput

__all__ = ["UNet3DConditionConfig", "UNet3DConditionModel", "UNet3DConditionOutput"]


class UNet3DConditionOutput(UNet2DOutput):
    """`sample`: the prediction (B, out_channels, F, H, W)."""


@dataclass(frozen=True, eq=False, repr=False)
class UNet3DConditionConfig(Config):
    """The keys of the network's `config.json`. `attention_head_dim` is the number of channels per head, as its name says."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock3D",) * 3, "DownBlock3D")
    up_block_types: tuple[str, ...] = ("UpBlock3D", *("CrossAttnUpBlock3D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1024
    attention_head_dim: int | tuple[int, ...] = 64
    num_attention_heads: int | tuple[int, ...] | None = None
    time_cond_proj_dim: int | None = None


class FilmBlock(Block):
    """A block with convolutions across frames behind each residual block, and attention across frames behind each transformer."""

    after = ("temp_convs", "attentions", "temp_attentions")

    def __init__(self, attention: Attends, level: Level, bare: int = 0):
        super().__init__(attention, level, bare)
        width, groups = level.channels, level.norm_num_groups
        self.temp_convs = nn.ModuleList(TemporalConvs(width, groups) for _ in self.resnets)
        self.temp_attentions = nn.ModuleList(MotionTransformer(width, 1, level.heads, groups, None) for _ in self.attentions)


class FilmDownBlock(FilmBlock, DownBlock): ...


class UNet3DConditionModel(UNet):
    """A UNet over (B, C, F, H, W) that predicts noise or velocity, as its checkpoint was trained.
    Raises ConfigError for an option that has no meaning, or whose length does not fit the number of blocks.
    """

    Config = UNet3DConditionConfig
    Result = UNet3DConditionOutput
    config: UNet3DConditionConfig
    class_embedding = None

    def build(self, c: UNet3DConditionConfig) -> None:
        if c.num_attention_heads is not None:
            what, expected = "This network states the size of its heads.", "None, and attention_head_dim"
            raise ConfigError(what, where="num_attention_heads", got=c.num_attention_heads, expected=expected)
        first, sizes = c.block_out_channels[0], per_block(c, "attention_head_dim")
        self.conv_in = nn.Conv2d(c.in_channels, first, 3, padding=1)
        self.time_proj = Timesteps(first)
        self.time_embedding = TimestepEmbedding(first, 4 * first, c.act_fn, cond_dim=c.time_cond_proj_dim)
        self.transformer_in = MotionTransformer(first, 1, 8, c.norm_num_groups or 0, None, inner=8 * sizes[0])
        options = {"context_dim": c.cross_attention_dim, "use_linear_projection": True}
        heads = tuple(width // size for width, size in zip(c.block_out_channels, sizes))
        levels = down_levels(c, temb_channels=4 * first, heads=heads, **options)

        def blocks(levels: list[Level], make: type[FilmBlock]) -> nn.ModuleList:
            way = levels[0].way.title()
            known = {f"CrossAttn{way}Block3D": Transformer2D, f"{way}Block3D": None}
            field = f"{way.lower()}_block_types"
            return nn.ModuleList(make(choose(field, name, known), level) for name, level in zip(per_block(c, field), levels))

        self.down_blocks = blocks(levels, FilmDownBlock)
        self.mid_block = middle_block(Transformer2D, replace(levels[-1], resnet_out_scale_factor=c.mid_block_scale_factor), make=FilmBlock)
        self.up_blocks = blocks(up_levels(levels), FilmBlock)
        self.conv_norm_out, self.conv_act = nn.GroupNorm(c.norm_num_groups or 0, first, eps=c.norm_eps), nn.SiLU()
        self.conv_out = nn.Conv2d(first, c.out_channels, 3, padding=1)

    def _enter(self, x: Tensor, cond: Conditions) -> Tensor:
        return self.transformer_in(self.conv_in(x), cond)

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """One call for `rows` videos of 16 frames of this size; the values mean nothing."""
        c = self.config
        x = torch.empty(rows, c.in_channels, 16, height, width, dtype=self.dtype)
        cond = None if c.time_cond_proj_dim is None else torch.empty(rows, c.time_cond_proj_dim, dtype=self.dtype)
        return self(x, torch.ones(1), torch.empty(rows, 77, c.cross_attention_dim, dtype=self.dtype), timestep_cond=cond)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None, attention_mask: Tensor | None = None, cross_attention_kwargs: Mapping[str, Any] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None, mid_block_additional_residual: Tensor | None = None, *,
        attend: Attend | None = None,
    ) -> Tensor:  # fmt: skip
        """Predict from noisy frames: (B, in_channels, F, H, W) -> (B, out_channels, F, H, W).
        Args:
            timestep: one for all rows or one for each.
            encoder_hidden_states: the context, (B, M, cross_attention_dim), or (B F, M, cross_attention_dim), one for each frame.
            timestep_cond: (B, time_cond_proj_dim), the embedded guidance scale of distilled networks.
            class_labels, attention_mask, cross_attention_kwargs: accepted; this network reads none of them.
            down_block_additional_residuals, mid_block_additional_residual: of a ControlNet, for each frame: (B F, C, H, W).
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
        Raises InputError for an argument that does not fit the configuration.
        """
        c, context = self.config, encoder_hidden_states
        each = len(sample) * sample.shape[2] if sample.ndim == 5 and len(context) != len(sample) else len(sample)
        for where, x, fits in (
            ("sample", sample, (None, c.in_channels, None, None, None)),
            ("encoder_hidden_states", context, (each, None, c.cross_attention_dim)),
        ):
            if x.ndim != len(fits) or any(n not in (None, m) for n, m in zip(fits, x.shape)):
                expected = ", ".join("any" if n is None else str(n) for n in fits)
                raise InputError("A tensor that does not fit this network.", where=where, got=tuple(x.shape), expected=f"({expected})")
        rows, frames = sample.shape[0], sample.shape[2]
        temb = self.time_embedding(self.time_proj(as_batch(timestep, sample)).to(sample.dtype), timestep_cond)  # (B, E)
        cond = per_frame(Conditions(temb, context, attend=attend or self.attend), rows, frames)
        pictures = sample.transpose(1, 2).flatten(0, 1)  # (BF, C, H, W)
        x = self._through(pictures, cond, (), down_block_additional_residuals, mid_block_additional_residual)
        return x.unflatten(0, (rows, frames)).transpose(1, 2)
