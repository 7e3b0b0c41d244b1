# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from collections.abc import Callable
from torch import Generator
from ..core.types import Guidance
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ..core.codec import ScaledCodec
from ..core.guidance import CFG
from ..core.tasks import Text2Image
from ..core.types import Branch, Conditioning, Run
from ..family import CallInputs, Family
from .unconditional import BatchInputs
from transformers import PreTrainedTokenizer
from ..models.autoencoder_kl import AutoencoderKL
from ..models.ldm_bert import LDMBertModel
from ..models.unet_2d import UNet2DModel
from ..models.unet_2d_condition import UNet2DConditionModel
from ..models.vq_model import VQModel
from ..schedulers.base import Scheduler
class Vectors(ScaledCodec):

    def channels(self, pipe: Any) -> int:
        ...
class Unscaled(Vectors):

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        ...
@dataclass(kw_only=True)
class EtaInputs(BatchInputs):
    eta: float = ...
class LDM(Family):

    def step_options(self, run: Run) -> dict[str, Any]:
        ...
class LDMPipeline(LDM):
    vqvae: VQModel
    unet: UNet2DModel
    scheduler: Scheduler

    def __call__(self, batch_size: int=1, generator: Generator | list[Generator] | None=None, eta: float=0.0, num_inference_steps: int=50, output_type: str='pil', return_dict: bool=True, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., callback: Callable[..., None] | None=None, callback_steps: int=1, height: int | None=None, width: int | None=None, latents: Tensor | None=None) -> Any:
        ...
@dataclass(kw_only=True)
class UpscaleInputs(EtaInputs):
    image: Any = ...
    latents: Tensor | None = ...
class Upscale(Text2Image):

    def start(self, pipe: Any, run: Run) -> None:
        ...

    def model_input(self, x: Tensor, run: Run) -> Tensor:
        ...
class LDMSuperResolutionPipeline(LDM):
    vqvae: VQModel
    unet: UNet2DModel
    scheduler: Scheduler

    def count(self, inputs: Any) -> int:
        ...

    def __call__(self, image: Any=None, batch_size: int=1, num_inference_steps: int=100, eta: float=0.0, generator: Generator | list[Generator] | None=None, output_type: str='pil', return_dict: bool=True, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., callback: Callable[..., None] | None=None, callback_steps: int=1, latents: Tensor | None=None) -> Any:
        ...
@dataclass(kw_only=True)
class LDMTextInputs(CallInputs):
    prompt: str | list[str] = ...
    guidance_scale: float = ...
    eta: float = ...
class BothSides(CFG):

    @property
    def needs_negative(self) -> bool:
        ...
class LDMTextToImagePipeline(LDM):
    vqvae: VQModel | AutoencoderKL
    bert: LDMBertModel
    tokenizer: PreTrainedTokenizer
    unet: UNet2DModel | UNet2DConditionModel
    scheduler: Scheduler

    def count(self, inputs: Any) -> int:
        ...

    def guidance(self, inputs: Any) -> Any:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        ...

    def __call__(self, prompt: str | list[str], height: int | None=None, width: int | None=None, num_inference_steps: int=50, guidance_scale: float=1.0, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, output_type: str='pil', return_dict: bool=True, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., callback: Callable[..., None] | None=None, callback_steps: int=1) -> Any:
        ...
