"""darkroom: run open diffusion models from their checkpoints. Names are imported on first use: `import darkroom` costs next to nothing."""

from importlib import import_module
from typing import Any
from ._public import NAMES

__version__ = "0.1.0"
__all__ = sorted(NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'darkroom' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(f"darkroom.{NAMES[name]}"), name))


def __dir__() -> list[str]:
    return __all__
