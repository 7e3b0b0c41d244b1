"""What the schedulers of single families share: how options are checked, and how a run begins."""

from __future__ import annotations
from typing import Any, ClassVar
import numpy as np
from torch import Tensor
from .base import Device, Scheduler

__all__ = ["SpecialScheduler", "broad"]


def broad(values: Tensor, like: Tensor) -> Tensor:
    """Values () or (B,), for each row of `like` (B, ...): (1 or B, 1, ...); those of more dimensions get the rest of them."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


class SpecialScheduler(Scheduler):
    """A scheduler whose options in `_bounds` are above these. Before a run it has no timesteps, unless a class gives it some."""

    _bounds: ClassVar[dict[str, float]] = {}

    def _assemble(self, config: Any) -> None:
        Scheduler._assemble(self, config)
        for name, bound in self._bounds.items():
            if not config[name] > bound:
                self._refuse(name, config[name], f"above {bound}")
        self._install(np.empty(0, np.float32), None)

    def _plan(self, steps: int, timesteps: np.ndarray, device: Device = None) -> None:
        """Make this the schedule of a new run of so many steps."""
        self.num_inference_steps = steps
        self._install(timesteps, device)
