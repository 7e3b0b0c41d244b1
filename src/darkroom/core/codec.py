"""Between pixels and latents."""

from typing import Any, Protocol
import torch
from torch import Tensor
from .random import Generators

__all__ = ["LatentCodec", "Pixels", "ScaledCodec"]


class LatentCodec(Protocol):
    """Encodes pictures (B, 3, fH, fW) in [-1, 1] to latents (B, C, H, W) and back; f is `factor`, C is `channels`."""

    def factor(self, pipe: Any) -> int: ...
    def channels(self, pipe: Any) -> int: ...
    def encode(self, pipe: Any, pixels: Tensor, generator: Generators) -> Tensor: ...
    def decode(self, pipe: Any, latents: Tensor) -> Tensor: ...


class ScaledCodec:
    """A variational autoencoder whose latents are shifted and scaled to unit variance: z = (sample - shift) scale (Rombach et al. 2022, G).
    `scale` is that of its configuration if not given.
    """

    def __init__(self, component: str = "vae", scale: float | None = None):
        self.component, self.scale = component, scale

    def factor(self, pipe: Any) -> int:
        return 2 ** (len(getattr(pipe, self.component).config.block_out_channels) - 1)

    def channels(self, pipe: Any) -> int:
        return getattr(pipe, self.component).config.latent_channels

    def encode(self, pipe: Any, pixels: Tensor, generator: Generators) -> Tensor:
        """A sample of the posterior; a list of generators draws one picture each."""
        vae = getattr(pipe, self.component)
        parts = zip(pixels.split(1), generator) if isinstance(generator, (list, tuple)) else [(pixels, generator)]
        z = torch.cat([vae.encode(part).latent_dist.sample(source) for part, source in parts])
        return (z - (vae.config.shift_factor or 0)) * (self.scale or vae.config.scaling_factor)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        vae = getattr(pipe, self.component)
        return vae.decode(latents / (self.scale or vae.config.scaling_factor) + (vae.config.shift_factor or 0)).sample


class Pixels:
    """No codec: the denoiser works on pixels."""

    def factor(self, pipe: Any) -> int:
        return 1

    def channels(self, pipe: Any) -> int:
        return pipe.denoiser.config.out_channels

    def encode(self, pipe: Any, pixels: Tensor, generator: Any) -> Tensor:
        return pixels

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        return latents
