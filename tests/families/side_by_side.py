"""Both libraries over one checkpoint: what they are given, and their results compared."""

from __future__ import annotations
from pathlib import Path
from types import ModuleType
from typing import Any
import diffusers
import numpy as np
import torch
from PIL import Image
import darkroom

__all__ = ["TOLERANCE", "both", "compare", "generators", "mask", "networks", "picture", "tensor"]

TOLERANCE = 1e-4  # of results in [0, 1]


def picture(seed: int = 3, size: int | tuple[int, int] = 32, mode: str = "RGB") -> Image.Image:
    """A smooth picture of this width and height."""
    width, height = (size, size) if isinstance(size, int) else size
    waves = np.random.default_rng(seed).uniform(1, 4, (3, 2))
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = [0.5 + 0.5 * np.sin(6.3 * (a * x + b * y)) for a, b in waves]
    return Image.fromarray((np.stack(channels, -1) * 255).astype(np.uint8)).convert(mode)


def mask(inside: int = 255) -> Image.Image:
    """A block of 16 x 16 of 32 x 32 pixels; what is outside it is the opposite."""
    area = np.full((32, 32), 255 - inside, np.uint8)
    area[8:24, 4:20] = inside
    return Image.fromarray(area)


def tensor(*shape: int, seed: int = 5) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(seed: int | list[int]) -> Any:
    """A generator, or one for each seed of a list."""
    return [torch.Generator().manual_seed(s) for s in seed] if isinstance(seed, list) else torch.Generator().manual_seed(seed)


def both(name: str, path: Path, ours: ModuleType = darkroom, **options: Any) -> tuple[Any, Any]:
    """The pipeline of that name as the reference loads it, and as `ours` does."""
    pipes = tuple(getattr(library, name).from_pretrained(path, **options) for library in (diffusers, ours))
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    if encoder := getattr(pipes[0], "text_encoder", None):
        encoder.__dict__.setdefault("text_model", encoder)  # the reference looks there; transformers 5 has no such level
    return pipes


def compare(pipes: tuple[Any, Any], call: dict[str, Any], seed: int | list[int] = 0) -> np.ndarray:
    """Our result, after a look whether the reference's is the same."""
    theirs, ours = (np.asarray(pipe(**call, generator=generators(seed))[0]) for pipe in pipes)
    assert ours.shape == theirs.shape and np.isfinite(theirs).all() and theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
    return ours


def networks(theirs: type, ours: type, options: dict[str, Any], apart: bool = False) -> tuple[Any, Any]:
    """The reference's network and ours with the same weights, none of which is zero or one: near those that it begins with, or `apart`."""
    torch.manual_seed(0)
    reference, mine = theirs(**options).eval(), ours(**options).eval()
    for p in reference.parameters():
        if not apart:
            p.data.add_(torch.randn_like(p), alpha=0.1)
        elif p.ndim > 1:
            torch.nn.init.normal_(p, std=0.15)
        else:
            torch.nn.init.normal_(p, mean=0.3, std=0.3)
    assert set(mine.state_dict()) == set(reference.state_dict())
    mine.load_state_dict(reference.state_dict())
    return reference, mine
