"""The denoising loop, written once. It is a generator: progress, previews, callbacks and interruption live in its caller."""

import inspect
from collections.abc import Iterator
from typing import Any
from torch import Tensor
from .types import Guidance, Run, Step

__all__ = ["denoise"]


def denoise(pipe: Any, run: Run, guidance: Guidance) -> Iterator[Run]:
    """Run the scheduler's steps on `run.x`, yielding after each. `pipe` offers `task`, `predict(pipe, run, t, x, branches)`, `denoise_once`."""
    takes = inspect.signature(run.scheduler.step).parameters
    options = {k: v for k, v in pipe.step_options(run).items() if k in takes}
    for index, t in enumerate(run.timesteps):
        if run.stop:
            return
        run.index = index

        def denoiser(x: Tensor, branches: Any, t: Tensor = t) -> list[Tensor]:
            return type(pipe).predict(pipe, run, t, pipe.task.model_input(x, run), branches)

        pred = guidance(Step(run, t, run.scheduler.scale_model_input(run.x, t), denoiser))
        run.x = run.scheduler.step(pred, t, run.x, **options, return_dict=False)[0]
        pipe.task.after_step(pipe, run)
        yield run
