# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from collections.abc import Callable
from torch import Generator
from ..core.types import Guidance
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ..core.types import Branch, Run
from ..family import CallInputs, Family
from ..models.unet_2d import UNet2DModel
from ..schedulers.base import Scheduler
@dataclass(kw_only=True)
class BatchInputs(CallInputs):
    batch_size: int = ...
@dataclass(kw_only=True)
class DDIMInputs(BatchInputs):
    eta: float = ...
    use_clipped_model_output: bool | None = ...
class Unconditional(Family):
    unet: UNet2DModel
    scheduler: Scheduler

    @property
    def denoiser(self) -> Any:
        ...

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        ...
class DDPMPipeline(Unconditional):

    def __call__(self, batch_size: int=1, generator: Generator | list[Generator] | None=None, num_inference_steps: int=1000, output_type: str='pil', return_dict: bool=True, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., callback: Callable[..., None] | None=None, callback_steps: int=1, height: int | None=None, width: int | None=None, latents: Tensor | None=None) -> Any:
        ...
class DDIMPipeline(Unconditional):

    def __init__(self, unet: UNet2DModel, scheduler: Scheduler):
        ...

    def step_options(self, run: Run) -> dict[str, Any]:
        ...

    def __call__(self, batch_size: int=1, generator: Generator | list[Generator] | None=None, eta: float=0.0, num_inference_steps: int=50, use_clipped_model_output: bool | None=None, output_type: str='pil', return_dict: bool=True, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., callback: Callable[..., None] | None=None, callback_steps: int=1, height: int | None=None, width: int | None=None, latents: Tensor | None=None) -> Any:
        ...
class RePaintPipeline(Unconditional):

    def count(self, inputs: Any) -> int:
        ...

    def step_options(self, run: Run) -> dict[str, Any]:
        ...

    def __call__(self, image: Any, mask_image: Any, num_inference_steps: int=250, eta: float=0.0, jump_length: int=10, jump_n_sample: int=10, generator: Generator | list[Generator] | None=None, output_type: str='pil', return_dict: bool=True, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., callback: Callable[..., None] | None=None, callback_steps: int=1, latents: Tensor | None=None) -> Any:
        ...
