"""The few types that every family, task and guidance shares.

Letters in shape comments: B rows of the batch (pictures), C channels, H and W height and width (of latents unless said otherwise), N tokens,
h heads, d channels per head, M tokens of the context.
"""

from __future__ import annotations
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from torch import Tensor
from .attention import Attend, sdpa

__all__ = ["Branch", "Conditioning", "Control", "Guidance", "Run", "Step", "Task", "Term"]


@dataclass(frozen=True, eq=False)
class Branch:
    """One conditioning of the denoiser, and how attention runs for it. Every tensor in `cond` has B rows.
    `network` predicts in place of the pipeline's own denoiser, where it is given.
    """

    cond: Mapping[str, Tensor]
    attend: Attend = sdpa
    network: Any = None

    def with_attention(self, attend: Attend) -> Branch:
        return replace(self, attend=attend)

    def with_cond(self, **tensors: Tensor) -> Branch:
        return replace(self, cond={**self.cond, **tensors})


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the prompt says, and what to steer away from; no `negative` means no classifier-free guidance."""

    positive: Branch
    negative: Branch | None = None

    @property
    def base(self) -> Branch:
        """The branch whose prediction is the starting point of guidance."""
        return self.negative or self.positive


@dataclass(eq=False)
class Run:
    """Everything that belongs to one call. It is local to the call: a pipeline may run in several threads at once."""

    inputs: Any
    rows: int  # B
    cond: Conditioning
    scheduler: Any  # this run's own copy: solver history lives here
    x: Tensor = None  # type: ignore[assignment]  # latents (B, C, H, W), set by Task.start
    timesteps: Tensor = None  # type: ignore[assignment]  # (steps,), set by Task.start
    tensors: dict[str, Any] = field(default_factory=dict)  # what a task and a control keep from start to end, by public name
    also: list[Any] = field(default_factory=list)  # what the last step gave beside the latents, as the scheduler orders it
    steps: int = 0  # of the whole schedule, set with the timesteps
    index: int = 0
    stop: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One evaluation of the guidance: the scaled latents `x` (B, C, H, W) at time `t`, and how to ask the denoiser.
    `cond` is the run's conditioning as it is at this step: terms may have wrapped it, and there is no `negative` where guidance is off.
    """

    run: Run
    t: Tensor
    x: Tensor
    denoiser: Callable[[Tensor, Sequence[Branch]], list[Tensor]]
    cond: Conditioning = None  # type: ignore[assignment]  # set by the guidance

    def predict(self, branches: Sequence[Branch], x: Tensor | None = None) -> list[Tensor]:
        """One prediction per branch, for `x` or other latents of its shape."""
        return self.denoiser(self.x if x is None else x, branches)


class Term(Protocol):
    """An addend to the guided prediction. One object serves one call, so it may keep what it records.
    `prepare` runs once and chooses layers of the denoiser. At each step for which the term is `active`, `wrap` may change the existing branches,
    `branches` are further ones for the same batch, and `push` is the addend, from the predictions of `step.cond.base`, of the positive branch
    and of the further ones. `needs_negative`: the negative prompt is encoded for this term even where no negative branch is.
    """

    needs_negative: bool

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning: ...
    def active(self, step: Step) -> bool: ...
    def wrap(self, step: Step) -> Conditioning: ...
    def branches(self, step: Step) -> Sequence[Branch]: ...
    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Sequence[Tensor]) -> Tensor: ...


class Guidance(Protocol):
    """How several predictions become one. Called once per step."""

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning: ...
    def __call__(self, step: Step) -> Tensor: ...


class Task(Protocol):
    """What a pipeline starts from. One object serves every call of its class, so it keeps nothing: a call's tensors go into `run.tensors`.
    `start` sets `run.x` and `run.timesteps`, and owns the order in which random numbers are drawn.
    """

    inputs: type
    defaults: Mapping[str, Any]

    def start(self, pipe: Any, run: Run) -> None: ...
    def model_input(self, x: Tensor, run: Run) -> Tensor: ...
    def after_step(self, pipe: Any, run: Run) -> None: ...
    def finish(self, images: Any, run: Run) -> Any: ...


class Control(Protocol):
    """A second network, a component of the pipeline, that looks at a picture and steers the denoiser. One object serves every call of its class.
    `name` is what lists call it, `component` that of the pipeline, and `fits` tells whether a network is one of its kind. `fit` gives the inputs
    with the sizes that its picture settles, or raises InputError. `prepare` may mark branches by further conditions. `start` runs after the
    task's and puts what it needs into `run.tensors`; callbacks see those that `tensors` names. `residuals` are further keyword arguments of the
    denoiser for `x` (rows, C, H, W), what it receives for all branches of the batch, whose conditions are in `branch`.
    """

    name: str
    component: str
    Inputs: type
    tensors: tuple[str, ...]

    def fits(self, component: Any) -> bool: ...
    def fit(self, pipe: Any, inputs: Any, rows: int) -> Any: ...
    def prepare(self, pipe: Any, inputs: Any, cond: Conditioning) -> Conditioning: ...
    def start(self, pipe: Any, run: Run) -> None: ...
    def residuals(self, pipe: Any, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]: ...
