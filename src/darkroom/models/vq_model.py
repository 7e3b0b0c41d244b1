"""The autoencoder with a codebook: images <-> vectors out of a table (van den Oord et al. 2017; Esser et al. 2021, VQGAN)."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..config import Config
from ..errors import InputError
from ..outputs import Output
from .autoencoder_kl import DecoderOutput, Half
from .base import Model, choose
from .layers.attention import rename_attention

__all__ = ["VQConfig", "VQEncoderOutput", "VQModel"]


@dataclass(frozen=True, eq=False, repr=False)
class VQConfig(Config):
    """Keys of the network's `config.json`. `norm_type` is "group", or "spatial" for a decoder that sees the latents in each norm.
    `sample_size`, `scaling_factor` and `force_upcast` are for the caller; the network does not apply them.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 3
    sample_size: int = 32
    num_vq_embeddings: int = 256
    norm_num_groups: int = 32
    vq_embed_dim: int | None = None
    scaling_factor: float = 0.18215
    norm_type: str = "group"
    mid_block_add_attention: bool = True
    lookup_from_codebook: bool = False
    force_upcast: bool = False


@dataclass
class VQEncoderOutput(Output):
    """`latents`: (B, vq_embed_dim, H / f, W / f), not yet those of the codebook."""

    latents: Tensor


class Codebook(nn.Module):
    """A table of vectors, (num_vq_embeddings, vq_embed_dim)."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For (B, C, H, W) the nearest vectors, with gradients passed straight to `z`; the commitment loss; the indices (BHW,)."""
        flat = z.permute(0, 2, 3, 1)  # (B, H, W, C)
        indices = torch.cdist(flat.flatten(0, 2), self.embedding.weight).argmin(1)
        nearest = self.get_codebook_entry(indices, flat.shape)
        # a quarter of the weight on the table's side, not on the encoder's as published: all checkpoints were trained so
        loss = F.mse_loss(z, nearest.detach()) + 0.25 * F.mse_loss(nearest, z.detach())
        return z + (nearest - z).detach(), loss, indices

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The vectors of indices, (..., C); with a shape (B, H, W, C) as a map (B, C, H, W)."""
        vectors = self.embedding(indices)
        return vectors if shape is None else vectors.reshape(tuple(shape)).permute(0, 3, 1, 2)


class VQModel(Model):
    """Images in [-1, 1] to latents and, through the nearest vectors of a codebook, back, at 1 / `scale_factor` of the resolution."""

    Config = VQConfig
    Result = DecoderOutput
    config: VQConfig
    rename_key = staticmethod(rename_attention)

    def build(self, c: VQConfig) -> None:
        dim = c.latent_channels if c.vq_embed_dim is None else c.vq_embed_dim
        spatial = choose("norm_type", c.norm_type, {"group": None, "spatial": c.latent_channels})
        self.encoder, self.decoder = Half(c, "down", c.latent_channels), Half(c, "up", c.latent_channels, spatial=spatial)
        self.quant_conv, self.quantize = nn.Conv2d(c.latent_channels, dim, 1), Codebook(c.num_vq_embeddings, dim)
        self.post_quant_conv = nn.Conv2d(dim, c.latent_channels, 1)

    @property
    def scale_factor(self) -> int:
        """Pixels per latent, along each edge."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Latents, not scaled, of images (B, in_channels, H, W) in [-1, 1]. Raises InputError for other shapes."""
        self._check(x, self.config.in_channels, "images")
        z = self.quant_conv(self.encoder(x, self.attend))
        return VQEncoderOutput(z) if return_dict else (z,)

    def decode(
        self, h: Tensor, force_not_quantize: bool = False, return_dict: bool = True, shape: Sequence[int] | None = None
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """Images (B, out_channels, H, W), about [-1, 1], of latents (B, vq_embed_dim, H / f, W / f), and the commitment loss of quantising them.
        With `force_not_quantize` latents are decoded as they are; of a network with `lookup_from_codebook` they are indices then, and `shape`
        (B, H / f, W / f, vq_embed_dim) is their place.
        """
        if force_not_quantize:
            loss = torch.zeros(h.shape[0], device=h.device, dtype=h.dtype)
            z = self.quantize.get_codebook_entry(h, shape) if self.config.lookup_from_codebook else h
        else:
            self._check(h, self.quant_conv.out_channels, "latents")
            z, loss, _ = self.quantize(h)
        images = self.decoder(self.post_quant_conv(z), self.attend, z)
        return DecoderOutput(images, loss) if return_dict else (images, loss)

    def forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Encode and decode: (B, in_channels, H, W) -> (B, out_channels, H, W), and the commitment loss."""
        return self.decode(self.encode(sample).latents, return_dict=False)  # type: ignore[union-attr,return-value]

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """Decode `rows` latents of pictures of this size, in pixels; the values mean nothing."""
        side = self.scale_factor
        return self.decode(torch.empty(rows, self.quant_conv.out_channels, height // side, width // side, dtype=self.dtype))

    @staticmethod
    def _check(x: Tensor, channels: int, what: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            got, fits = tuple(x.shape), f"(batch, {channels}, height, width)"
            raise InputError(f"A tensor that does not hold {what}.", where="VQModel", got=got, expected=fits)
