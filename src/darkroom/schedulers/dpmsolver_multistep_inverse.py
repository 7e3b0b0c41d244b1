"""DPM-Solver from data to noise."""

import math
import numpy as np
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWS, LINSPACE, SIGMAS, Device, Stepped, Timestep, options
from .dpmsolver_multistep import ALGORITHMS, DPMSolverMultistepScheduler

__all__ = ["DPMSolverMultistepInverseScheduler"]


class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver run backwards, which finds the noise of a given picture (edits by inversion; Lu et al. 2022, with ascending `timesteps`).
    The options are those of the forward solver. A flow's run does not ascend, as in the reference: it has no inverse here.
    """

    Config = options(
        solver_order=(2, 1, 3), prediction_type=FLOWS, thresholding=False, dynamic_thresholding_ratio=0.995,
        sample_max_value=1.0, algorithm_type=ALGORITHMS, solver_type=("midpoint", "heun"), lower_order_final=True, euler_at_final=False,
        **SIGMAS, use_flow_sigmas=False, flow_shift=1.0, lambda_min_clipped=-math.inf, variance_type=(None, "learned", "learned_range"),
        timestep_spacing=LINSPACE, steps_offset=0,
    )  # fmt: skip
    kind = "inversion"

    def _assemble(self, config: Config) -> None:  # type: ignore[valid-type]
        super()._assemble(config)
        self._lay_out(self._timesteps.numpy()[::-1].copy(), self.sigmas.numpy()[-2::-1], None, end=self.levels[0])

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:  # type: ignore[override]
        """Lay out a run of `num_inference_steps`, from the data on."""
        steps = self._steps(num_inference_steps)
        self.noisiest_timestep = self._last() - 1
        if self.sigma_schedule is not None and not self.flow:
            timesteps, sigmas = self._scheduled(self.sigma_table[0], self.sigma_table[-1], steps)
            timesteps, end = timesteps.round() if self.sigma_schedule == "karras" else timesteps, sigmas[-1]
        elif self.flow:
            timesteps, sigmas = self._space(steps)
            end = sigmas[-1]
        else:
            timesteps = self._evenly(steps, left_out=0)[::-1]
            sigmas, end = self._sigmas_at(timesteps), self.sigma_table[self.noisiest_timestep]
        first = np.sort(np.unique(timesteps, return_index=True)[1])
        self._lay_out(timesteps[first].astype(np.int64), sigmas, device, end)
        self.num_inference_steps = len(first)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
        variance_noise: Tensor | None = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next, noisier timestep, in the dtype of the sample."""
        index, output = self._remember(model_output, timestep, sample)
        if self.stochastic and variance_noise is None:
            variance_noise = randn(output.shape, generator, output.device, output.dtype)
        return self._result(return_dict, self._update(index, self._order(index), sample, variance_noise if self.stochastic else None))
