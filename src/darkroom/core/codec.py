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

    def network(self, pipe: Any, way: str) -> Any:
        """The autoencoder to "encode" or "decode" with. It computes in its own dtype."""
        return getattr(pipe, self.component)

    def encode(self, pipe: Any, pixels: Tensor, generator: Generators) -> Tensor:
        """A sample of the posterior; a list of generators draws one picture each."""
        vae = self.network(pipe, "encode")
        parts = zip(pixels.split(1), generator) if isinstance(generator, (list, tuple)) else [(pixels, generator)]
        z = torch.cat([vae.encode(part.to(vae.dtype)).latent_dist.sample(source) for part, source in parts]).to(pixels.dtype)
        mean, std = self._moments(vae, z)
        return (z - mean) * (self.scale or vae.config.scaling_factor) / std

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        vae = self.network(pipe, "decode")
        latents = latents.to(vae.dtype)
        mean, std = self._moments(vae, latents)
        return vae.decode(latents * std / (self.scale or vae.config.scaling_factor) + mean).sample

    @staticmethod
    def _moments(vae: Any, like: Tensor) -> tuple[Any, Any]:
        """Mean and spread of the latents, of each channel where the configuration lists them."""
        moments = tuple(getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
        if None in moments:
            return getattr(vae.config, "shift_factor", None) or 0, 1
        return tuple(torch.tensor(m).reshape(1, -1, 1, 1).to(like) for m in moments)  # type: ignore[return-value]


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
