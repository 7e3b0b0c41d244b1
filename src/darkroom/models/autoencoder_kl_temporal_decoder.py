"""The autoencoder of Stable Video Diffusion: pictures are encoded one by one and decoded together (Blattmann et al. 2023)."""

from __future__ import annotations
from dataclasses import dataclass, replace
from typing import Any
import torch
from torch import Generator, Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..errors import InputError
from .autoencoder_kl import EPS, AutoencoderKLConfig, AutoencoderKLOutput, DecoderOutput, DiagonalGaussian, Half
from .base import Model
from .layers.attention import Conditions, SelfAttention, rename_attention
from .layers.spatio_temporal import DecoderResnet
from .layers.unet_blocks import Block, down_levels, up_levels

__all__ = ["AutoencoderKLTemporalDecoder", "AutoencoderKLTemporalDecoderConfig"]


@dataclass(frozen=True, eq=False, repr=False)
class AutoencoderKLTemporalDecoderConfig(Config):
    """Keys of the network's `config.json`. `scaling_factor` and `force_upcast` are for the caller; the network does not apply them."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    sample_size: int = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True


class DecoderBlock(Block):
    Resnet = DecoderResnet


class Middle(DecoderBlock):
    """Residual blocks with one attention after the first. Blocks beyond the second are not used, nor is the attention without a second one:
    so the checkpoints were trained."""

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:  # type: ignore[override]
        x = self.resnets[0](x, cond.temb)
        for attention, resnet in zip(self.attentions, self.resnets[1:]):
            x = resnet(attention(x, cond), cond.temb)
        return x


class TemporalDecoder(nn.Module):
    """Latents (BF, latent_channels, H, W) of F frames each to pictures."""

    def __init__(self, c: AutoencoderKLConfig):
        super().__init__()
        levels = down_levels(c, head_dim=c.block_out_channels, norm_eps=EPS)
        self.conv_in = nn.Conv2d(c.latent_channels, levels[-1].channels, 3, padding=1)
        middle = replace(levels[-1], channels_in=levels[-1].channels)
        self.mid_block = Middle(SelfAttention, middle, bare=middle.layers - 1)
        self.up_blocks = nn.ModuleList(DecoderBlock(None, replace(level, skip_channels=0)) for level in up_levels(levels))
        self.conv_norm_out, self.conv_act = nn.GroupNorm(32, c.block_out_channels[0], eps=EPS), nn.SiLU()
        self.conv_out = nn.Conv2d(c.block_out_channels[0], c.out_channels, 3, padding=1)
        self.time_conv_out = nn.Conv3d(c.out_channels, c.out_channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, z: Tensor, frames: int, attend: Attend) -> Tensor:
        rows = z.shape[0] // frames
        x, cond = self.conv_in(z), Conditions(z.new_empty(rows, frames, 0), attend=attend)
        for block in (self.mid_block, *self.up_blocks):
            x = block(x, cond)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return self.time_conv_out(x.unflatten(0, (rows, frames)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)


class AutoencoderKLTemporalDecoder(Model):
    """Images in [-1, 1] to latents, and latents of frames back, at 1 / `scale_factor` of the resolution."""

    Config = AutoencoderKLTemporalDecoderConfig
    Result = DecoderOutput
    config: AutoencoderKLTemporalDecoderConfig
    rename_key = staticmethod(rename_attention)

    def build(self, config: AutoencoderKLTemporalDecoderConfig) -> None:
        shared = [name for name in AutoencoderKLConfig.names() if name in config.names()]
        c = AutoencoderKLConfig(**{name: config[name] for name in shared})
        self.encoder, self.decoder = Half(c, "down"), TemporalDecoder(c)
        self.quant_conv = nn.Conv2d(2 * c.latent_channels, 2 * c.latent_channels, 1)

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along each edge."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """The posterior over latents, not scaled, of images (B, in_channels, H, W) in [-1, 1]."""
        self._check(x, self.config.in_channels, 1)
        posterior = DiagonalGaussian(self.quant_conv(self.encoder(x, self.attend)))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, num_frames: int, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Images (BF, out_channels, H, W), about [-1, 1], of the latents (BF, latent_channels, H / f, W / f) of videos of F = `num_frames`.
        Raises InputError for latents that are not those of whole videos.
        """
        self._check(z, self.config.latent_channels, num_frames)
        images = self.decoder(z, num_frames, self.attend)
        return DecoderOutput(images) if return_dict else (images,)

    def forward(self, sample: Tensor, sample_posterior: bool = False, *, generator: Generator | None = None, num_frames: int = 1) -> Tensor:
        """Encode and decode the posterior's mode, or a draw: (BF, in_channels, H, W) -> (BF, out_channels, H, W)."""
        posterior = self.encode(sample).latent_dist  # type: ignore[union-attr]
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, num_frames).sample  # type: ignore[union-attr]

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """Decode the latents of one video of `rows` frames of this size, in pixels; the values mean nothing."""
        side = self.scale_factor
        return self.decode(torch.empty(rows, self.config.latent_channels, height // side, width // side, dtype=self.dtype), rows)

    @staticmethod
    def _check(x: Tensor, channels: int, frames: int) -> None:
        if x.ndim != 4 or x.shape[1] != channels or frames < 1 or x.shape[0] % frames:
            where, got = "AutoencoderKLTemporalDecoder", f"{tuple(x.shape)} and {frames} frames"
            fits = f"(rows, {channels}, height, width), rows a multiple of the frames"
            raise InputError("A tensor that does not hold whole videos.", where=where, got=got, expected=fits)
