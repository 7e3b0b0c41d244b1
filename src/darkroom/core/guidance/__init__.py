"""Guidance: which conditionings are predicted and how the predictions combine. One file each."""

from .apg import APG, APGMix
from .autoguidance import AutoGuidance
from .cfg import CFG, rescale
from .cfg_zero_star import CFGZeroStar
from .dynamic_thresholding import DynamicThresholding
from .fdg import FDG
from .frames import FrameCFG
from .instruct import InstructCFG
from .magnitude_aware import MagnitudeAware
from .nag import NAG
from .pag import PAG
from .prompt_fusion import PromptFusion, PromptPart
from .sag import SAG
from .seg import SEG
from .slg import SLG
from .tcfg import TCFG
from .token_merging import TokenMerging

__all__ = [
    "APG", "CFG", "FDG", "NAG", "PAG", "SAG", "SEG", "SLG", "TCFG",
    "APGMix", "AutoGuidance", "CFGZeroStar", "DynamicThresholding", "FrameCFG", "InstructCFG", "MagnitudeAware", "PromptFusion", "PromptPart",
    "TokenMerging", "rescale",
]  # fmt: skip
