"""Schedulers for the frames of videos."""

from __future__ import annotations
import copy
import functools
from typing import Any
from torch import Tensor

__all__ = ["FrameSteps"]


class FrameSteps:
    """A scheduler that steps videos (B, C, F, H, W) as (B, F, C, H, W): in this order it draws noise. All else is the given scheduler's."""

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler
        self.step = functools.update_wrapper(functools.partial(self._step), scheduler.step)  # callers look up what it takes

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # not there yet
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def __copy__(self) -> FrameSteps:
        return FrameSteps(copy.copy(self.scheduler))

    def _step(self, pred: Tensor, t: Any, x: Tensor, **options: Any) -> tuple[Any, ...]:
        out = self.scheduler.step(pred.transpose(1, 2), t, x.transpose(1, 2), **options)
        return tuple(part.transpose(1, 2) if isinstance(part, Tensor) else part for part in out)
