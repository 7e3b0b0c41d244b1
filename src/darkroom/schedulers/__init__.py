"""Schedulers: a file holds one algorithm or a few that are near kin, those of single families by kind. Classes are imported on first use."""

from .._public import NAMES, lazy

_HOMES = {name: module.removeprefix("schedulers.") for name, module in NAMES.items() if module.startswith("schedulers.")}
_HOMES |= dict.fromkeys(("KarrasScheduler", "Scheduler", "SchedulerOutput"), "base")
__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
