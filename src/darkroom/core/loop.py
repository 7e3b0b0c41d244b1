"""The denoising loop, written once, and how the branches of a step reach the denoiser: in one batch, or one after another.

The loop is a generator: progress, previews, callbacks and interruption live in its caller.
"""

import inspect
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any
import torch
from torch import Tensor
from .attention import by_rows
from .types import Branch, Guidance, Run, Step

__all__ = ["batched", "denoise", "one_call_per_branch"]


def denoise(pipe: Any, run: Run, guidance: Guidance) -> Iterator[Run]:
    """Run the scheduler's steps on `run.x`, yielding after each. `pipe` offers `task`, `predict(pipe, run, t, x, branches)`, `denoise_once`."""
    takes = inspect.signature(run.scheduler.step).parameters
    options = {k: v for k, v in pipe.step_options(run).items() if k in takes}
    for index, t in enumerate(run.timesteps):
        if run.stop:
            return
        run.index = index

        def denoiser(x: Tensor, branches: Any, t: Tensor = t) -> list[Tensor]:
            x = pipe.task.model_input(x, run)
            preds = []
            for network, same in groupby(branches, lambda branch: branch.network):
                owner = pipe if network is None else pipe.with_denoiser(network)
                preds += type(pipe).predict(owner, run, t, x, list(same))
            return preds

        pred = guidance(Step(run, t, run.scheduler.scale_model_input(run.x, t), denoiser))
        run.x, *run.also = run.scheduler.step(pred, t, run.x, **options, return_dict=False)
        pipe.task.after_step(pipe, run)
        yield run


def batched(pipe: Any, run: Run, t: Tensor, x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """One call over all branches. Their conditions have the same shapes; rows are ordered branch by branch."""
    if len(branches) == 1:
        return [pipe.denoise_once(x, t, branches[0], run)]
    cond = {name: torch.cat([b.cond[name] for b in branches]) for name in branches[0].cond}
    joint = Branch(cond, by_rows([b.attend for b in branches]))
    return list(pipe.denoise_once(x.repeat(len(branches), *[1] * (x.ndim - 1)), t, joint, run).chunk(len(branches)))


def one_call_per_branch(pipe: Any, run: Run, t: Tensor, x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """One call for each branch: less memory, and conditions may differ in length."""
    return [pipe.denoise_once(x, t, branch, run) for branch in branches]
