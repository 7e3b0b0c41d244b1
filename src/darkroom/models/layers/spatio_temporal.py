"""Blocks over the frames of videos (Blattmann et al. 2023): each works on pictures first, then across frames, and mixes the two.

Feature maps are (BF, C, H, W), the F frames of a video one after another. The timestep embedding is (B, F, E), which tells how many there are; it
is (B, F, 0) where there are no timesteps.
"""

from __future__ import annotations
from dataclasses import replace
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from .attention import BasicTransformerBlock, Conditions, FeedForward
from .embeddings import TimestepEmbedding, Timesteps
from .resnet import Level, ResnetBlock2D
from .unet_blocks import Block, DownBlock

__all__ = ["DecoderResnet", "FramesBlock", "FramesDownBlock", "SpatioTemporalTransformer"]


class TimeMixer(nn.Module):
    """w a + (1 - w) b, with the learned share w = sigmoid(mix_factor)."""

    def __init__(self, start: float):
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([start]))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        share = self.mix_factor.sigmoid().to(a.dtype)
        return share * a + (1 - share) * b


class TemporalResnet(nn.Module):
    """A residual block across frames, over (B, C, F, H, W)."""

    def __init__(self, channels: int, temb_channels: int | None, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels, eps)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.time_emb_proj = nn.Linear(temb_channels, channels) if temb_channels else None
        self.norm2 = nn.GroupNorm(32, channels, eps)
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(F.silu(temb)).transpose(1, 2)[..., None, None]  # (B, C, F, 1, 1)
        return x + self.conv2(F.silu(self.norm2(h)))


class SpatioTemporalResnet(nn.Module):
    """A residual block on each frame, mixed with one across frames after it."""

    temporal_eps: float | None = None  # that of the level
    start = 0.5  # of the mixer
    temporal_first = False  # whether the mixer's share is that of the block across frames

    def __init__(self, level: Level, channels_in: int):
        super().__init__()
        self.spatial_res_block = ResnetBlock2D(level, channels_in)
        self.temporal_res_block = TemporalResnet(level.channels, level.temb_channels, self.temporal_eps or level.norm_eps)
        self.time_mixer = TimeMixer(self.start)

    def forward(self, x: Tensor, temb: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        x = self.spatial_res_block(x, temb.flatten(0, 1)).unflatten(0, temb.shape[:2]).transpose(1, 2)  # (B, C, F, H, W)
        both = (x, self.temporal_res_block(x, temb))
        return self.time_mixer(*(both[::-1] if self.temporal_first else both)).transpose(1, 2).flatten(0, 1)


class DecoderResnet(SpatioTemporalResnet):
    """The one of the autoencoder, with other constants."""

    temporal_eps = 1e-5
    start = 0.0
    temporal_first = True


class TemporalTransformerBlock(BasicTransformerBlock):
    """A transformer block over the frames of each pixel, (BN, F, C), with one more feed-forward network in front."""

    def __init__(self, dim: int, level: Level):
        super().__init__(dim, level)
        self.norm_in, self.ff_in = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        return super().forward(self.ff_in(self.norm_in(x)) + x, cond)


class SpatioTemporalTransformer(nn.Module):
    """`depth` times a transformer block over the pixels of each frame, mixed with one over the frames of each pixel, around a residual.
    The context is (BF, M, C); across frames that of the first one counts.
    """

    def __init__(self, level: Level):
        super().__init__()
        channels, inner = level.channels, level.channels // level.heads * level.heads
        depth = level.depth if isinstance(level.depth, int) else level.depth[0]
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(inner, level) for _ in range(depth))
        self.temporal_transformer_blocks = nn.ModuleList(TemporalTransformerBlock(inner, level) for _ in range(depth))
        self.time_proj, self.time_pos_embed = Timesteps(channels), TimestepEmbedding(channels, channels, hidden=4 * channels)
        self.time_mixer = TimeMixer(0.5)
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        (rows, frames), residual, size = cond.temb.shape[:2], x, x.shape[-2:]
        x = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (BF, N, C)
        places = self.time_pos_embed(self.time_proj(torch.arange(frames, device=x.device)).to(x.dtype)).repeat(rows, 1)[
            :, None
        ]  # (BF, 1, C)
        across = replace(cond, context=cond.context[::frames].repeat_interleave(x.shape[1], 0))  # (BN, M, C)
        for block, temporal_block in zip(self.transformer_blocks, self.temporal_transformer_blocks):
            x = block(x, cond)
            y = (x + places).unflatten(0, (rows, frames)).transpose(1, 2).flatten(0, 1)  # (BN, F, C)
            y = temporal_block(y, across).unflatten(0, (rows, -1)).transpose(1, 2).flatten(0, 1)  # (BF, N, C)
            x = self.time_mixer(x, y)
        return self.proj_out(x).transpose(1, 2).unflatten(-1, size) + residual


class FramesBlock(Block):
    Resnet = SpatioTemporalResnet


class FramesDownBlock(DownBlock):
    Resnet = SpatioTemporalResnet
