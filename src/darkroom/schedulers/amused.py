"""Generation of masked tokens, the most confident first."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any, Literal
import numpy as np
import torch
from torch import Generator, Tensor
from .base import Device, Scheduler, Stepped, Timestep
from .tokens import Untabled, draw, gumbel, uniform

__all__ = ["AmusedScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class AmusedConfig(Untabled):
    """`mask_token_id` is the masked token, `masking_schedule` how the share of masked tokens falls: by a cosine (Chang et al. 2022, sec. 3.3) or
    evenly.
    """

    mask_token_id: int
    masking_schedule: Literal["cosine", "linear"] = "cosine"


class AmusedScheduler(Scheduler):
    """Parallel decoding of masked tokens (MaskGIT: Chang et al. 2022; aMUSEd: Patil et al. 2024). Each step draws every masked token, then masks
    again as many as the schedule says, those with the least log-probability plus noise, whose weight falls over the run as `temperatures`.
    """

    Config = AmusedConfig
    kind = "tokens"
    accuracy = "-"
    paper = "Chang et al. 2022"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._install(np.empty(0, np.int64), None)
        self.temperatures: Any = None

    def set_timesteps(
        self, num_inference_steps: int, temperature: float | tuple[float, float] | list[float] = (2, 0), device: Device = None
    ) -> None:
        """Lay out a run of `num_inference_steps` steps whose noise weighs `temperature`, from the first number to the second, or to 0.01."""
        self.num_inference_steps = self._steps(num_inference_steps)
        self._install(np.arange(self.num_inference_steps)[::-1].copy(), device)
        start, end = temperature if isinstance(temperature, (tuple, list)) else (temperature, 0.01)
        self.temperatures = torch.linspace(start, end, self.num_inference_steps, device=device)

    def _masked_share(self, timestep: Timestep) -> tuple[int, Tensor]:
        """The position of a timestep, and the share of tokens that are masked after it, as a float32 number."""
        self._needs_run()
        place = self.index_for_timestep(timestep)
        done = torch.tensor(place + 1) / len(self._numbers)
        return place, torch.cos(done * math.pi / 2) if self.config.masking_schedule == "cosine" else 1 - done

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, starting_mask_ratio: float = 1.0, generator: Generator | None = None,
        return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """The tokens at the next timestep, and all tokens without masks, from logits (B, N, K) and tokens (B, N), or (B, K, H, W) and (B, H, W).
        `starting_mask_ratio` is the share that was masked when the run began.
        """
        self._needs_run()
        shape, mask = sample.shape, self.config.mask_token_id
        if sample.ndim == 3 and model_output.ndim == 4:
            sample, model_output = sample.flatten(1), model_output.flatten(2).mT
        unknown, probabilities = sample == mask, model_output.softmax(-1)
        x0 = torch.where(unknown, draw(probabilities, generator), sample)
        prev = x0
        if self.number(timestep) > 0:
            place, share = self._masked_share(timestep)
            if sample.shape[1] < 2:
                raise self._error("Too few tokens to mask some and keep some.", "step, sample", tuple(shape), "2 in a row")
            count = (sample.shape[1] * (starting_mask_ratio * share)).floor()
            count = (unknown.sum(-1, keepdim=True) - 1).clamp(max=int(count)).clamp(min=1)  # fewer than before, but one at least
            chosen = probabilities.gather(-1, x0[..., None])[..., 0]
            chosen = torch.where(unknown, chosen, torch.finfo(chosen.dtype).max)  # what was given stays
            noise = gumbel(uniform(chosen.shape, chosen, generator, chosen.dtype), 1e-20)
            confidence = chosen.clamp(min=1e-20).log() + self.temperatures[place].reshape(1, 1) * noise
            prev = torch.where(confidence < confidence.sort(-1).values.gather(1, count), mask, x0)
        return self._result(return_dict, prev.reshape(shape), x0.reshape(shape))

    def add_noise(self, sample: Tensor, timesteps: Timestep, generator: Generator | None = None) -> Tensor:
        """Tokens with a random share masked: that which is masked after the step at this timestep."""
        share = self._masked_share(timesteps)[1]
        return sample.masked_fill(uniform(sample.shape, sample, generator) < share.item(), self.config.mask_token_id)
