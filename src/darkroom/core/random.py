"""Random numbers: the one place where noise is drawn, so that a seed means the same everywhere."""

from collections.abc import Sequence
import torch
from torch import Generator, Tensor
from ..errors import InputError, MissingDependencyError

__all__ = ["BrownianTreeNoiseSampler", "Generators", "randn"]

Generators = Generator | Sequence[Generator] | None


def randn(
    shape: Sequence[int], generator: Generators = None, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Standard normal noise of `shape` (B, ...) on `device` (CPU if not given).
    A list of generators draws row by row, so each row is what its own seed alone would give. A CPU generator draws on the CPU whatever the
    device, so that a seed gives the same noise on every machine.
    Raises InputError for a list whose length is not B, or a generator of a device that the noise cannot come from.
    """
    device = torch.device(device or "cpu")
    generators = [generator] if isinstance(generator, Generator) or generator is None else list(generator)
    if len(generators) not in (1, shape[0]):
        raise InputError("One generator for each row is needed.", where="generator", got=len(generators), expected=f"1 or {shape[0]}")
    origin = device if generators[0] is None or generators[0].device.type == device.type else generators[0].device
    if origin is not device and origin.type != "cpu":
        raise InputError("This generator cannot draw for that device.", where="generator", got=origin, expected=f"cpu or {device}")
    part = (shape[0] // len(generators), *shape[1:])
    return torch.cat([torch.randn(part, generator=g, device=origin, dtype=dtype) for g in generators]).to(device)


class BrownianTreeNoiseSampler:
    """Noise that belongs to a Brownian path in sigma, so that steps over parts of an interval share the noise of a step over all of it: the picture
    of a seed hardly changes with the number of steps (k-diffusion). `seed` is one number, or one for each row; errors name `owner`."""

    def __init__(self, x: Tensor, sigma_min: float, sigma_max: float, seed: int | Sequence[int] | None = None,
                 owner: str = "BrownianTreeNoiseSampler"):  # fmt: skip
        try:
            from torchsde import BrownianInterval
        except ImportError as error:
            raise MissingDependencyError("Brownian trees need torchsde.", where=owner, fix="pip install torchsde") from error
        self.single = seed is None or isinstance(seed, int)
        seeds = [torch.randint(0, 2**63 - 1, []).item()] if seed is None else [seed] if isinstance(seed, int) else list(seed)
        self.ends = torch.as_tensor(sigma_min), torch.as_tensor(sigma_max)
        path = {"tol": 1e-6, "pool_size": 24, "halfway_tree": True, "dtype": x.dtype, "device": x.device}
        self.trees = [BrownianInterval(*self.ends, size=x.shape if self.single else x.shape[1:], entropy=s, **path) for s in seeds]

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Standard normal noise for the step from sigma down to sigma_next, in the shape of x."""
        bottom, top = sigma_next.clamp(*self.ends), sigma.clamp(*self.ends)  # which rounding may exceed
        w = torch.stack([tree(bottom, top) for tree in self.trees]) * -1.0
        return (w[0] if self.single else w) / (sigma_next - sigma).abs().sqrt()
