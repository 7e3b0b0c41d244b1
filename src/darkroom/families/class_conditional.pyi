# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from collections.abc import Callable
from torch import Generator
from ..core.types import Guidance
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from torch import Tensor
from ..core.tasks import Text2Image
from ..core.types import Branch, Conditioning, Run
from ..family import CallInputs, Family
from .unconditional import BatchInputs, Unconditional
from ..models.autoencoder_kl import AutoencoderKL
from ..models.dit_transformer_2d import DiTTransformer2DModel
from ..models.unet_2d import UNet2DModel
from ..schedulers.base import Scheduler
from ..schedulers.consistency_models import CMStochasticIterativeScheduler
def labels_of(value: Any, most: int) -> Tensor:
    ...
@dataclass(kw_only=True)
class ConsistencyInputs(BatchInputs):
    class_labels: Tensor | list[int] | int | None = ...
    num_inference_steps: int = ...
    timesteps: list[int] | None = ...
class ClassPicture(Text2Image):

    def start(self, pipe: Any, run: Run) -> None:
        ...
class ConsistencyModelPipeline(Unconditional):
    unet: UNet2DModel
    scheduler: CMStochasticIterativeScheduler

    def check(self, inputs: Any) -> None:
        ...

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        ...

    def __call__(self, batch_size: int=1, class_labels: Tensor | list[int] | int | None=None, num_inference_steps: int=1, timesteps: list[int] | None=None, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, output_type: str='pil', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., height: int | None=None, width: int | None=None) -> Any:
        ...
@dataclass(kw_only=True)
class DiTInputs(CallInputs):
    class_labels: list[int] = ...
    guidance_scale: float = ...
class DiTPipeline(Family):
    transformer: DiTTransformer2DModel
    vae: AutoencoderKL
    scheduler: Scheduler
    settings: ClassVar[Mapping[str, Any]] = ...
    id2label: Mapping[str, str] | None

    def __init__(self, *args: Any, **values: Any):
        ...

    @property
    def labels(self) -> dict[str, int]:
        ...

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        ...

    @property
    def denoiser(self) -> Any:
        ...

    def count(self, inputs: Any) -> int:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        ...

    def __call__(self, class_labels: list[int], guidance_scale: float=4.0, generator: Generator | list[Generator] | None=None, num_inference_steps: int=50, output_type: str='pil', return_dict: bool=True, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., callback: Callable[..., None] | None=None, callback_steps: int=1, height: int | None=None, width: int | None=None, latents: Tensor | None=None) -> Any:
        ...
