"""What the schedulers of tokens share: how tokens are drawn, and runs whose timesteps count steps."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, ClassVar
import numpy as np
import torch
from torch import Generator, Tensor
from ..config import Config
from .base import LARGEST_TABLE, Device, Scheduler, Timestep

__all__ = ["TokenScheduler", "Untabled", "draw", "gumbel", "random_tokens", "uniform"]


@dataclass(frozen=True, eq=False, repr=False)
class Untabled(Config):
    """The configuration of a scheduler without a table of timesteps: a run may have as many steps as the largest table."""

    num_train_timesteps: ClassVar[int] = LARGEST_TABLE

    def __getitem__(self, name: str) -> Any:
        return LARGEST_TABLE if name == "num_train_timesteps" and name not in self.extra else super().__getitem__(name)


def uniform(shape: tuple[int, ...], like: Tensor, generator: Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform numbers in [0, 1) on the device of `like`, drawn on the generator's if there is one."""
    return torch.rand(shape, generator=generator, device=generator.device if generator else like.device, dtype=dtype).to(like.device)


def gumbel(u: Tensor, least: float) -> Tensor:
    """Gumbel noise from uniform numbers, limited to at least `least` on the way. Added to logits, its argmax is a draw from their softmax."""
    return -(-u.clamp(min=least).log()).clamp(min=least).log()


def draw(probabilities: Tensor, generator: Generator | None = None) -> Tensor:
    """One token from each row: (..., K) -> int64 (...)."""
    rows = probabilities.flatten(0, -2)
    rows = rows.to(generator.device) if generator else rows
    rows = rows.float() if rows.device.type == "cpu" and rows.dtype != torch.float64 else rows  # multinomial knows no halves there
    return torch.multinomial(rows, 1, generator=generator).to(probabilities.device).view(probabilities.shape[:-1])


def random_tokens(like: Tensor, classes: int, generator: Generator | None = None) -> Tensor:
    """Uniformly random tokens of that many classes, int64, in shape and device of `like`."""
    device = generator.device if generator else like.device
    return torch.randint(classes, like.shape, generator=generator, device=device).to(like.device)


class TokenScheduler(Scheduler):
    """Over tokens (B, N), int64, of which the network gives the logits (B, N, K). A timestep is the number of a step, and the run has no other
    position: steps may be taken again, as block by block.
    """

    kind = "tokens"
    accuracy = "-"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._count(config.num_inference_steps)

    def _count(self, steps: int, device: Device = None) -> None:
        self.num_inference_steps = self._steps(steps)
        self._install(np.arange(self.num_inference_steps), device)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps for each block."""
        self._count(num_inference_steps, device)

    def _step_number(self, timestep: Timestep) -> int:
        number, steps = int(self.number(timestep)), self.num_inference_steps or 0
        if not 0 <= number < steps:
            raise self._error("No step of this run.", "step, timestep", number, f"0 to {steps - 1}")
        return number

    def _sample(self, logits: Tensor, temperature: float, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Tokens at this temperature (0 takes the likeliest), and their probabilities at temperature 1."""
        logits = logits.float()
        if temperature < 0:
            raise self._error("A temperature below 0.", "step, temperature", temperature)
        tokens = draw((logits / temperature).softmax(-1), generator) if temperature else logits.argmax(-1)
        return tokens, logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
