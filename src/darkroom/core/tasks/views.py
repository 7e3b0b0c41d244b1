"""One picture from many views of its latents (MultiDiffusion, Bar-Tal et al. 2023).

Every view is denoised by itself, by a scheduler with a state of its own; where views overlap, they are averaged after each step. For the loop and
the guidance the views of a step are rows of one batch.
"""

from __future__ import annotations
import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..inputs import Inputs, field
from ..loop import batched
from ..types import Branch, Run
from .text2image import SizeInputs, Text2Image

__all__ = ["Panorama", "Views", "boxes_of", "by_views"]

Box = tuple[int, int, int, int]  # top, bottom, left and right in latents; bottom and right are outside, perhaps of the picture too


def boxes_of(height: int, width: int, window: int = 64, stride: int = 8, circular: bool = False) -> list[Box]:
    """The views of latents of this size, row by row: squares of `window`, `stride` apart. What is shorter than a window has one view.
    `circular`: views go on over the right edge at the left one. Else what is beyond the last whole stride has no view.
    """
    down = (height - window) // stride + 1 if height > window else 1
    across = (width // stride if circular else (width - window) // stride + 1) if width > window else 1
    corners = ((stride * (i // across), stride * (i % across)) for i in range(down * across))
    return [(top, top + window, left, left + window) for top, left in corners]


class Views:
    """A scheduler over views: `scale_model_input` takes the latents (B, C, H, W) apart, rows ordered view by view, `step` steps each `batch` of views
    with the state of its own and puts them together. What no view covers becomes 0. All else is the given scheduler's, whose timesteps are set.
    """

    def __init__(self, scheduler: Any, boxes: Sequence[Box], batch: int = 1, circular: bool = False):
        self.scheduler, self.batch, self.circular = scheduler, batch, circular
        self.groups = [(boxes[i : i + batch], copy.deepcopy(scheduler)) for i in range(0, len(boxes), batch)]
        self.step = functools.update_wrapper(functools.partial(self._step), scheduler.step)  # callers look up what it takes

    def __getattr__(self, name: str) -> Any:
        if name == "scheduler":  # not there yet
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    def _where(self, x: Tensor, box: Box) -> tuple[slice, Tensor]:
        """Rows and columns of a view."""
        top, bottom, left, right = box
        width = x.shape[3]
        return slice(top, bottom), torch.arange(left, min(right, 2 * width if self.circular else width), device=x.device) % width

    def _cut(self, x: Tensor, boxes: Sequence[Box]) -> Tensor:
        return torch.cat([x[:, :, rows].index_select(3, columns) for rows, columns in (self._where(x, box) for box in boxes)])

    def scale_model_input(self, x: Tensor, t: Any) -> Tensor:
        return torch.cat([scheduler.scale_model_input(self._cut(x, boxes), t) for boxes, scheduler in self.groups])  # (views B, C, h, w)

    def _step(self, pred: Tensor, t: Any, x: Tensor, *, generator: Any = None, return_dict: bool = False, **options: Any) -> tuple[Tensor]:
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for (boxes, scheduler), part in zip(self.groups, pred.split(self.batch * x.shape[0]), strict=True):
            if generator is not None:  # one for each picture draws for all views of it
                options["generator"] = [*generator] * len(boxes) if isinstance(generator, (list, tuple)) else generator
            stepped = scheduler.step(part, t, self._cut(x, boxes), **options, return_dict=False)[0]
            for view, box in zip(stepped.chunk(len(boxes)), boxes, strict=True):
                rows, columns = self._where(x, box)
                total[:, :, rows].index_add_(3, columns, view)
                count[:, :, rows].index_add_(3, columns, torch.ones_like(view))
        return (torch.where(count > 0, total / count, total),)


def by_views(pipe: Any, run: Run, t: Tensor, x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    """`batched` for rows of views, as many views at a time as the inputs say: each sees the conditions of its picture."""

    def repeated(branch: Branch, views: int) -> Branch:
        return branch.with_cond(**{name: c.repeat(views, *[1] * (c.ndim - 1)) for name, c in branch.cond.items()})

    parts = x.split(run.inputs.view_batch_size * run.rows)
    preds = [batched(pipe, run, t, part, [repeated(b, part.shape[0] // run.rows) for b in branches]) for part in parts]
    return [torch.cat(own) for own in zip(*preds, strict=True)]


@dataclass(kw_only=True)
class PanoramaInputs(SizeInputs):
    view_batch_size: int = field("Views that are denoised at a time: more are faster and take more memory.", 1, minimum=1, integer=True)
    circular_padding: bool = field("Let the right edge go on at the left one.", False)


class Panorama(Text2Image):
    """From noise to a picture larger than those that the denoiser was trained on. Random numbers: the noise."""

    name = "panorama"
    inputs: type[Inputs] = PanoramaInputs

    def start(self, pipe: Any, run: Run) -> None:
        super().start(pipe, run)
        circular, (height, width) = run.inputs.circular_padding, run.x.shape[-2:]
        boxes = boxes_of(height, width, circular=circular)
        run.scheduler = Views(run.scheduler, boxes, run.inputs.view_batch_size, circular)
