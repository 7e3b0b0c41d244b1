"""Random numbers: the one place where noise is drawn, so that a seed means the same everywhere."""

from collections.abc import Sequence
import torch
from torch import Generator, Tensor
from ..errors import InputError

__all__ = ["Generators", "randn"]

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
