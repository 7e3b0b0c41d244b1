"""Guidance: which conditionings are predicted and how the predictions combine. One file each."""

from .cfg import CFG, rescale
from .frames import FrameCFG
from .pag import PAG
from .sag import SAG

__all__ = ["CFG", "PAG", "SAG", "FrameCFG", "rescale"]
