"""darkroom: run open diffusion models from their checkpoints.

Names are imported on first use, so that `import darkroom` costs next to nothing.
"""

from __future__ import annotations
from importlib import import_module
from typing import Any
from ._public import NAMES

__version__ = "0.1.0"
__all__ = sorted(NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'darkroom' has no attribute {name!r}")
    value = getattr(import_module(f"darkroom.{NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
