"""Unconditional diffusion in pixel space."""

from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from torch import Tensor
from ..core.codec import Pixels
from ..core.inputs import field
from ..core.media import image_count
from ..core.tasks import Text2Image
from ..core.tasks.repaint import RePaint
from ..core.types import Branch, Run
from ..family import CallInputs, Family
from ..schedulers.ddim import DDIMScheduler

if TYPE_CHECKING:
    from ..models.unet_2d import UNet2DModel
    from ..schedulers.base import Scheduler

__all__ = ["BatchInputs", "DDIMPipeline", "DDPMPipeline", "RePaintPipeline", "Unconditional"]


@dataclass(kw_only=True)
class BatchInputs(CallInputs):
    batch_size: int = field("Pictures to make.", 1, minimum=1, integer=True)


@dataclass(kw_only=True)
class DDIMInputs(BatchInputs):
    eta: float = field("Noise added in each step: 0 is deterministic, 1 is DDPM.", 0.0, minimum=0, maximum=1)
    use_clipped_model_output: bool | None = field("Derive the direction of a step from the clipped x0.")


class Unconditional(Family):
    """A UNet over pixels, without a condition (Ho et al. 2020)."""

    unet: UNet2DModel
    scheduler: Scheduler
    codec = Pixels()
    inputs = BatchInputs

    @property
    def denoiser(self) -> Any:
        return self.unet

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        return self.unet(x, t, attend=branch.attend).sample


class DDPMPipeline(Unconditional):
    """Ancestral sampling over the steps of training (Ho et al. 2020)."""

    task = Text2Image()
    defaults = {"num_inference_steps": 1000}
    arguments = {"text2image": "batch_size generator num_inference_steps output_type return_dict"}


class DDIMPipeline(Unconditional):
    """Fewer, deterministic steps with the same network (Song et al. 2021). Any scheduler that it is given becomes DDIM."""

    task = Text2Image()
    inputs = DDIMInputs
    arguments = {"text2image": "batch_size generator eta num_inference_steps use_clipped_model_output output_type return_dict"}

    def __init__(self, unet: UNet2DModel, scheduler: Scheduler):
        self.register_modules(unet=unet, scheduler=DDIMScheduler.from_config(scheduler.config))

    def step_options(self, run: Run) -> dict[str, Any]:
        clipped = bool(run.inputs.use_clipped_model_output)
        return {"generator": run.inputs.generator, "eta": run.inputs.eta, "use_clipped_model_output": clipped}


class RePaintPipeline(Unconditional):
    """Inpainting with a network that was not trained for it, by going back and forth in time (Lugmayr et al. 2022)."""

    task = RePaint()
    defaults = {"num_inference_steps": 250}
    arguments = {"repaint": "image mask_image num_inference_steps eta jump_length jump_n_sample generator output_type return_dict"}
    inputs = CallInputs

    def count(self, inputs: Any) -> int:
        return image_count(inputs.image)

    def step_options(self, run: Run) -> dict[str, Any]:
        known = {name: run.tensors[name] for name in ("original_image", "mask")}
        return {**known, "generator": run.inputs.generator}
