"""Schedulers: one file per algorithm. Classes are imported on first use."""

from importlib import import_module
from typing import Any
from .._public import NAMES

_HOMES = {name: module.removeprefix("schedulers.") for name, module in NAMES.items() if module.startswith("schedulers.")}
_HOMES |= dict.fromkeys(("KarrasScheduler", "Scheduler", "SchedulerOutput"), "base")
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
