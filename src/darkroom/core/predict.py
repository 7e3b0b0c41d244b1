"""How the branches of one step reach the denoiser: together in one batch, or one after another."""

from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from .attention import by_rows
from .types import Branch, Run

__all__ = ["batched", "one_call_per_branch"]


def batched(pipe: Any, run: Run, t: Tensor, x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """One call over all branches. Their conditions have the same shapes; rows are ordered branch by branch."""
    if len(branches) == 1:
        return [pipe.denoise_once(x, t, branches[0], run)]
    cond = {name: torch.cat([b.cond[name] for b in branches]) for name in branches[0].cond}
    joint = Branch(cond, by_rows([b.attend for b in branches], x.shape[0]))
    return list(pipe.denoise_once(x.repeat(len(branches), 1, 1, 1), t, joint, run).chunk(len(branches)))


def one_call_per_branch(pipe: Any, run: Run, t: Tensor, x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """One call for each branch: less memory, and conditions may differ in length."""
    return [pipe.denoise_once(x, t, branch, run) for branch in branches]
