"""What schedulers' tests walk through: samples, a network, and a comparison of tensors."""

from __future__ import annotations
import torch
from torch import Tensor

__all__ = ["SHAPE", "close", "finite_close", "network", "seeded"]

SHAPE = (2, 3, 4, 4)


def seeded(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """A fixed, smooth stand-in for a denoiser."""
    return 0.7 * torch.tanh(x.float()).to(x.dtype) + 0.2 * torch.sin(torch.arange(x[0].numel()) + float(t) / 300).reshape(x[0].shape).to(x)


def close(mine: Tensor, ref: Tensor, tol: float = 1e-5) -> None:
    """The same tensors but for rounding, relative to the largest value."""
    assert mine.dtype == ref.dtype and mine.shape == ref.shape and mine.device == ref.device
    if not mine.is_floating_point() or not ref.isfinite().all():
        assert torch.equal(mine, ref) or torch.allclose(mine, ref, rtol=tol, equal_nan=True)
        return
    assert ((mine.double() - ref.double()).abs().max() / ref.double().abs().max().clamp(min=1e-3)) < tol


def finite_close(mine: Tensor, ref: Tensor, tol: float = 1e-5) -> None:
    """`close`, and finite."""
    assert ref.isfinite().all()
    close(mine, ref, tol)
