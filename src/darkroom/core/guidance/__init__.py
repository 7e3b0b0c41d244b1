"""Guidance: which conditionings are predicted and how the predictions combine. One file each."""

from .cfg import CFG, rescale
from .instruct import InstructCFG
from .pag import PAG
from .sag import SAG

__all__ = ["CFG", "PAG", "SAG", "InstructCFG", "rescale"]
