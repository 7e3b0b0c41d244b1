"""What the schedulers of single families share: how options are declared and checked, and how a run begins."""

from __future__ import annotations
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar, Literal, get_origin
import numpy as np
from torch import Tensor
from ..config import Config
from .base import LARGEST_TABLE, Device, Scheduler, Timestep

__all__ = ["SpecialScheduler", "Untabled", "broad", "settings"]


@dataclass(frozen=True, eq=False, repr=False)
class Untabled(Config):
    """The configuration of a scheduler without a table of timesteps: a run may have as many steps as the largest table."""

    num_train_timesteps: ClassVar[int] = LARGEST_TABLE

    def __getitem__(self, name: str) -> Any:
        return LARGEST_TABLE if name == "num_train_timesteps" and name not in self.extra else super().__getitem__(name)


def settings(**defaults: Any) -> type[Config]:
    """The configuration of these options, in this order; without num_train_timesteps it is `Untabled`. A tuple lists the choices, the default
    first, or is a type and the default; a type alone is for an option that must be given.
    """
    fields: list[Any] = []
    for name, value in defaults.items():
        if isinstance(value, tuple):
            fields.append((name, Literal.__getitem__(value), value[0]) if isinstance(value[0], str) else (name, *value))
        else:
            fields.append((name, value) if isinstance(value, type) or get_origin(value) else (name, type(value), value))
    base = Config if "num_train_timesteps" in defaults else Untabled
    return make_dataclass("Config", fields, bases=(base,), frozen=True, eq=False, repr=False)


def broad(values: Tensor, like: Tensor) -> Tensor:
    """Values () or (B,), for each row of `like` (B, ...): (1 or B, 1, ...); those of more dimensions get the rest of them."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


class SpecialScheduler(Scheduler):
    """A scheduler whose options are `settings`, those in `_bounds` above them. Before a run it has no timesteps, unless a class gives it some."""

    _bounds: ClassVar[dict[str, float]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__:  # where pickle finds the class, and what errors call it
            cls.Config.__module__ = cls.__module__
            cls.Config.__name__ = cls.Config.__qualname__ = f"{cls.__qualname__}.Config"

    def _assemble(self, config: Any) -> None:
        Scheduler._assemble(self, config)
        for name, bound in self._bounds.items():
            if not config[name] > bound:
                self._refuse(name, config[name], f"above {bound}")
        self._install(np.empty(0, np.float32), None)

    def _ensure(self, holds: object, what: str, where: str, got: object, expected: object) -> None:
        """Raise InputError unless this holds."""
        if not holds:
            raise self._error(what, where, got, expected)

    def _plan(self, steps: int, timesteps: np.ndarray, device: Device = None) -> None:
        """Make this the schedule of a new run of so many steps."""
        self.num_inference_steps = steps
        self._install(timesteps, device)

    def _no_position(self, timestep: Timestep) -> None:
        """Raise InputError for a whole number, nearly always a position taken for a timestep."""
        if not timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, int):
            raise self._error("An integer is no timestep of this scheduler.", "step, timestep", timestep, "an item of timesteps, floats")
