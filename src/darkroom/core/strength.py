"""How much LoRA layers count in the calls of this thread, a factor beside the weight that each adapter has."""

from __future__ import annotations
import threading
from collections.abc import Mapping
from typing import Any
from ..errors import InputError

__all__ = ["THREAD", "adapters_at", "scale_in"]


class _Thread(threading.local):
    def __init__(self) -> None:
        self.scale = 1.0


THREAD = _Thread()  # read by layers; torch.compile follows a thread's attribute, as it does not follow a context variable


class adapters_at:  # a function in all but name: torch.compile traces this kind of context manager
    """Inside, adapters of layers count by this factor; None changes nothing. Other threads do not see it."""

    def __init__(self, scale: float | None):
        self.scale = scale

    def __enter__(self) -> None:
        self.before = THREAD.scale
        if self.scale is not None:
            THREAD.scale = self.scale

    def __exit__(self, *_: Any) -> None:
        THREAD.scale = self.before


def scale_in(options: Mapping[str, Any] | None) -> float | None:
    """The scale that the options of attention layers ask for."""
    scale = None if options is None else options.get("scale")
    if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float))):
        raise InputError("Not a scale of adapters.", where='cross_attention_kwargs["scale"]', got=scale, expected="a number")
    return scale
