"""The KL autoencoder of Stable Diffusion, SDXL, SD3 and Flux: images <-> latents (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
import torch
from torch import Generator, Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..core.random import randn
from ..errors import InputError
from ..outputs import Output
from .base import Model, choose
from .layers.attention import Conditions, SelfAttention, rename_attention
from .layers.resnet import Way
from .layers.spatial_norm import SpatialBlock, SpatialNorm, SpatialSelfAttention
from .layers.unet_blocks import Attends, Block, down_levels, middle_block, per_block, up_levels

__all__ = ["AutoencoderKL", "AutoencoderKLConfig", "AutoencoderKLOutput", "DecoderOutput", "DiagonalGaussian"]

Generators = Generator | Sequence[Generator] | None
EPS = 1e-6  # of every normalisation
BLOCKS: dict[Way, dict[str, Attends]] = {
    "down": {"DownEncoderBlock2D": None, "AttnDownEncoderBlock2D": SelfAttention},
    "up": {"UpDecoderBlock2D": None, "AttnUpDecoderBlock2D": SelfAttention},
}


@dataclass(frozen=True, eq=False, repr=False)
class AutoencoderKLConfig(Config):
    """Keys of the network's `config.json`.
    `scaling_factor`, `shift_factor`, `latents_mean`, `latents_std` and `force_upcast` are for the caller; the network does not apply them.
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


class DiagonalGaussian:
    """A normal distribution with independent entries (Kingma & Welling 2013).
    `parameters`, (B, 2C, ...), are the mean and then the logarithm of the variance, which is held within [-30, 20].
    """

    def __init__(self, parameters: Tensor):
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)  # 2 x (B, C, ...)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std, self.var = (0.5 * self.logvar).exp(), self.logvar.exp()

    def sample(self, generator: Generators = None) -> Tensor:
        """One draw, (B, C, ...): mean + std eps. A list has one generator for each row."""
        eps = randn(self.mean.shape, generator, self.parameters.device, self.parameters.dtype)
        return self.mean + self.std * eps

    def mode(self) -> Tensor:
        """The most likely value, which is the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """The divergence from `other`, or from the standard normal, in nats: (B,)."""
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            terms = ((self.mean - other.mean) ** 2 + self.var) / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.flatten(1).sum(1)

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """-log p(sample) in nats, summed over `dims` (all but the first): (B,)."""
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * torch.sum(terms, dim=tuple(dims or range(1, terms.ndim)))


@dataclass
class AutoencoderKLOutput(Output):
    """`latent_dist`: the posterior over latents, each part (B, latent_channels, H / f, W / f)."""

    latent_dist: DiagonalGaussian


@dataclass
class DecoderOutput(Output):
    """`sample`: images (B, out_channels, H, W), about [-1, 1]; `commit_loss`: how far latents were from their codebook, if there is one."""

    sample: Tensor
    commit_loss: Tensor | None = None


class Half(nn.Module):
    """The way down, from images (B, C, H, W) to `encoded` channels (B, encoded, H / f, W / f), or up, from latents to images.
    `encoded` are the moments of latents, mean and variance, if not given. With `spatial` channels of latents every norm sees them.
    """

    def __init__(self, c: Config, way: Way, encoded: int | None = None, spatial: int | None = None):
        super().__init__()
        encoded = encoded or 2 * c.latent_channels
        channels_in, channels_out = (c.in_channels, encoded) if way == "down" else (c.latent_channels, c.out_channels)
        levels = down_levels(c, head_dim=c.block_out_channels, norm_eps=EPS, downsample_padding=0, temb_channels=spatial)
        self.spatial, make = bool(spatial), SpatialBlock if spatial else Block
        middle = levels[-1]
        if way == "up":
            levels = [replace(level, skip_channels=0) for level in up_levels(levels)]
        field = f"{way}_block_types"
        kinds = [choose(field, name, BLOCKS[way]) for name in per_block(c, field)]
        inside: Attends = SelfAttention if c.mid_block_add_attention else None
        if spatial:
            kinds, inside = [kind and SpatialSelfAttention for kind in kinds], inside and SpatialSelfAttention
        self.conv_in = nn.Conv2d(channels_in, levels[0].channels_in, 3, padding=1)
        self.down_blocks = nn.ModuleList(map(make, kinds, levels) if way == "down" else [])
        self.mid_block = middle_block(inside, middle, make=make)
        self.up_blocks = nn.ModuleList(map(make, kinds, levels) if way == "up" else [])
        width = levels[-1].channels
        self.conv_norm_out = SpatialNorm(width, spatial) if spatial else nn.GroupNorm(c.norm_num_groups, width, eps=EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(width, channels_out, 3, padding=1)

    def forward(self, x: Tensor, attend: Attend, z: Tensor | None = None) -> Tensor:
        """`z` are the latents for `spatial` norms."""
        x, cond = self.conv_in(x), Conditions(z if self.spatial else None, attend=attend)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            x = block(x, cond)
        return self.conv_out(self.conv_act(self.conv_norm_out(x, z) if self.spatial else self.conv_norm_out(x)))


def blend(before: Tensor, after: Tensor, extent: int, dim: int) -> Tensor:
    """`after`, with its first `extent` lines along `dim` faded in linearly over the last ones of `before`."""
    extent = min(before.shape[dim], after.shape[dim], extent)
    w = (torch.arange(extent, dtype=torch.float64) / max(extent, 1)).reshape(extent, *[1] * (after.ndim - dim - 1))  # 0 ... 1 - 1/extent
    fade_in, fade_out = w.to(after), (1 - w).to(after)
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    head, rest = after.split([extent, after.shape[dim] - extent], dim)
    return torch.cat([tail * fade_out + head * fade_in, rest], dim)


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
    rename_key = staticmethod(rename_attention)

    def build(self, config: AutoencoderKLConfig) -> None:
        c = config.latent_channels
        self.encoder, self.decoder = Half(config, "down"), Half(config, "up")
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(c, c, 1) if config.use_post_quant_conv else None
        self.use_slicing = self.use_tiling = False
        self.tile_sample_min_size = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
        self.tile_latent_min_size = self.tile_sample_min_size // self.scale_factor
        self.tile_overlap_factor = 0.25

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
        """The posterior over latents, not scaled, of images (B, in_channels, H, W) in [-1, 1]. Raises InputError for other shapes."""
        self._check(x, self.config.in_channels, "images")
        posterior = DiagonalGaussian(self._map(self._moments, x, self.tile_sample_min_size, self.tile_latent_min_size))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Generators = None) -> DecoderOutput | tuple[Tensor]:
        """Images (B, out_channels, H, W), about [-1, 1], of latents (B, latent_channels, H / f, W / f) without scaling.
        `generator` is there for decoders that draw; this one does not. Raises InputError for other numbers of dimensions or channels.
        """
        self._check(z, self.config.latent_channels, "latents")
        images = self._map(self._images, z, self.tile_latent_min_size, self.tile_sample_min_size)
        return DecoderOutput(images) if return_dict else (images,)

    def forward(self, sample: Tensor, sample_posterior: bool = False, *, generator: Generator | None = None) -> Tensor:
        """Encode and decode the posterior's mode, or a draw: (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode()).sample

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """Decode `rows` latents of pictures of this size, in pixels; the values mean nothing."""
        side = self.scale_factor
        return self.decode(torch.empty(rows, self.config.latent_channels, height // side, width // side, dtype=self.dtype))

    def _moments(self, x: Tensor) -> Tensor:
        h = self.encoder(x, self.attend)
        return h if self.quant_conv is None else self.quant_conv(h)

    def _images(self, z: Tensor) -> Tensor:
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z), self.attend)

    def _map(self, f: Callable[[Tensor], Tensor], x: Tensor, size: int, out_size: int) -> Tensor:
        """`f` of all rows or of one at a time, whole or in tiles whose edge is `size` pixels of `x` and `out_size` of the result."""
        if self.use_slicing and len(x) > 1:
            return torch.cat([self._map(f, row, size, out_size) for row in x.split(1)])
        if not self.use_tiling or max(x.shape[-2:]) <= size:
            return f(x)
        stride, overlap = int(size * (1 - self.tile_overlap_factor)), int(out_size * self.tile_overlap_factor)
        rows, above = [], []
        for top in range(0, x.shape[2], stride):
            row = []
            for left in range(0, x.shape[3], stride):
                tile = f(x[:, :, top : top + size, left : left + size])
                if above:
                    tile = blend(above[len(row)], tile, overlap, dim=2)
                if row:
                    tile = blend(row[-1], tile, overlap, dim=3)
                row.append(tile)
            rows.append(torch.cat([tile[:, :, : out_size - overlap, : out_size - overlap] for tile in row], dim=3))
            above = row
        return torch.cat(rows, dim=2)

    @staticmethod
    def _check(x: Tensor, channels: int, what: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            got, fits = tuple(x.shape), f"(batch, {channels}, height, width)"
            raise InputError(f"A tensor that does not hold {what}.", where="AutoencoderKL", got=got, expected=fits)
