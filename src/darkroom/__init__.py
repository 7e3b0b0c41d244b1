"""darkroom: run open diffusion models from their checkpoints. Names are imported on first use: `import darkroom` costs next to nothing."""

from ._public import NAMES, lazy

__version__ = "0.1.0"
__all__ = sorted(NAMES)  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy(__name__, NAMES)
