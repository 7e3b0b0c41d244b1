"""The KL autoencoder of Stable Diffusion, SDXL, SD3 and Flux: images <-> latents (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Generator, Tensor, nn

from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from ..outputs import Output
from .base import Model
from .layers.attention import Attention
from .layers.distribution import DiagonalGaussian
from .layers.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from .layers.tiling import tiled

__all__ = ["AutoencoderKL", "AutoencoderKLConfig", "AutoencoderKLOutput", "Decoder", "DecoderOutput", "Encoder"]

EPS = 1e-6  # of every normalisation
DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # with attention or without
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, eq=False, repr=False)
class AutoencoderKLConfig(Config):
    """Keys of the network's `config.json`.

    `scaling_factor`, `shift_factor`, `latents_mean`, `latents_std` and `force_upcast` are for the caller; the network
    does not apply them.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


@dataclass
class AutoencoderKLOutput(Output):
    """`latent_dist`: the posterior over latents, each part (B, latent_channels, H / f, W / f)."""

    latent_dist: DiagonalGaussian


@dataclass
class DecoderOutput(Output):
    """`sample`: images (B, out_channels, H, W), about [-1, 1]."""

    sample: Tensor


class Stage(nn.Module):
    """Residual blocks, attention after the first `attentions` of them, then a change of resolution."""

    def __init__(self, before: int, width: int, config: AutoencoderKLConfig, resnets: int, attentions: int, resample: str):
        super().__init__()
        groups, act_fn = config.norm_num_groups, config.act_fn
        self.resnets = nn.ModuleList(
            ResnetBlock2D(width if i else before, width, groups=groups, eps=EPS, act_fn=act_fn) for i in range(resnets)
        )
        self.attentions = nn.ModuleList(
            Attention(width, None, 1, width, bias=True, norm_num_groups=groups, eps=EPS, residual_connection=True)
            for _ in range(attentions)
        )
        self.downsamplers = nn.ModuleList([Downsample2D(width, padding=0)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample2D(width)] if resample == "up" else [])

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x)
            x = x if attention is None else attention(x, attend=attend)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)  # (B, C, H/2, W/2) or (B, C, 2H, 2W)
        return x


def _middle(config: AutoencoderKLConfig) -> Stage:
    width = config.block_out_channels[-1]
    return Stage(width, width, config, 2, int(config.mid_block_add_attention), "")


def _stages(config: AutoencoderKLConfig, field: str, known: dict[str, bool], layers: int, resample: str) -> nn.ModuleList:
    """One stage for each width, wide ones first when going up; all but the last change the resolution."""
    types, widths = config[field], config.block_out_channels[:: -1 if resample == "up" else 1]
    if len(types) != len(widths) or not set(types) <= set(known):
        raise ConfigError(
            "Blocks that cannot be built.",
            where=f"AutoencoderKL, {field}",
            got=types,
            expected=f"{len(widths)} (one for each of block_out_channels) of: {', '.join(known)}",
        )
    last = len(widths) - 1
    return nn.ModuleList(
        Stage(widths[max(i - 1, 0)], width, config, layers, layers * known[types[i]], resample if i < last else "")
        for i, width in enumerate(widths)
    )


class Encoder(nn.Module):
    """Images (B, C, H, W) to the moments of latents (B, 2 latent_channels, H / f, W / f)."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = _stages(config, "down_block_types", DOWN_BLOCKS, config.layers_per_block, "down")
        self.mid_block = _middle(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x, attend)
        x = self.mid_block(x, attend)  # (B, widths[-1], H / f, W / f)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (B, latent_channels, H / f, W / f) to images (B, C, H, W)."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid_block = _middle(config)
        self.up_blocks = _stages(config, "up_block_types", UP_BLOCKS, config.layers_per_block + 1, "up")
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor, attend: Attend) -> Tensor:
        x = self.mid_block(self.conv_in(z), attend)
        for block in self.up_blocks:
            x = block(x, attend)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))  # (B, C, H, W)


class AutoencoderKL(Model):
    """Images in [-1, 1] to latents and back, at 1 / `scale_factor` of the resolution.

    Attributes:
        use_slicing: one image at a time.
        use_tiling: large images in tiles of `tile_sample_min_size` pixels, large latents in `tile_latent_min_size`.
        tile_overlap_factor: the part of a tile's edge that the next one overlaps.
    """

    Config = AutoencoderKLConfig
    Result = DecoderOutput
    config: AutoencoderKLConfig

    def build(self, config: AutoencoderKLConfig) -> None:
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(c, c, 1) if config.use_post_quant_conv else None
        self.use_slicing = self.use_tiling = False
        size = config.sample_size
        self.tile_sample_min_size = size if isinstance(size, int) else size[0]
        self.tile_latent_min_size = self.tile_sample_min_size // self.scale_factor
        self.tile_overlap_factor = 0.25

    @staticmethod
    def rename_key(name: str) -> str:
        """Attention layers were once called query, key, value and proj_attn."""
        old = r"(?<=\.)(attentions\.\d+)\.(query|key|value|proj_attn)(?=\.)"
        return re.sub(old, lambda found: f"{found[1]}.{OLD_ATTENTION[found[2]]}", name)

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along each edge."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def enable_slicing(self) -> None:
        """Take one image at a time, to save memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self) -> None:
        """Take large images in overlapping tiles, to save memory; the results differ a little."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        self.use_tiling = False

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """The posterior over latents, not scaled, of images (B, in_channels, H, W) in [-1, 1].

        Raises:
            InputError: `x` has another number of dimensions or channels.
        """
        self._check(x, self.config.in_channels, "images")
        posterior = DiagonalGaussian(self._sliced(self._encode, x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: Generator | Sequence[Generator] | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Images (B, out_channels, H, W), about [-1, 1], of latents (B, latent_channels, H / f, W / f) without scaling.

        `generator` is there for decoders that draw; this one does not.

        Raises:
            InputError: `z` has another number of dimensions or channels.
        """
        self._check(z, self.config.latent_channels, "latents")
        images = self._sliced(self._decode, z)
        return DecoderOutput(images) if return_dict else (images,)

    def forward(self, sample: Tensor, sample_posterior: bool = False, *, generator: Generator | None = None) -> Tensor:
        """Encode and decode the posterior's mode, or a draw: (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode()).sample

    def _encode(self, x: Tensor) -> Tensor:
        def moments(x: Tensor) -> Tensor:
            h = self.encoder(x, self.attend)
            return h if self.quant_conv is None else self.quant_conv(h)

        return self._tiled(moments, x, self.tile_sample_min_size, self.tile_latent_min_size)

    def _decode(self, z: Tensor) -> Tensor:
        def images(z: Tensor) -> Tensor:
            return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z), self.attend)

        return self._tiled(images, z, self.tile_latent_min_size, self.tile_sample_min_size)

    def _sliced(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([f(row) for row in x.split(1)]) if self.use_slicing else f(x)

    def _tiled(self, f: Callable[[Tensor], Tensor], x: Tensor, size: int, out_size: int) -> Tensor:
        if not self.use_tiling or max(x.shape[-2:]) <= size:
            return f(x)
        overlap = int(out_size * self.tile_overlap_factor)
        stride = int(size * (1 - self.tile_overlap_factor))
        return tiled(f, x, size=size, stride=stride, overlap=overlap, keep=out_size - overlap)

    @staticmethod
    def _check(x: Tensor, channels: int, what: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            raise InputError(
                f"A tensor that does not hold {what}.",
                where="AutoencoderKL",
                got=tuple(x.shape),
                expected=f"(batch, {channels}, height, width)",
            )
