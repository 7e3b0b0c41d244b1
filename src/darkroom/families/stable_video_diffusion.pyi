# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from collections.abc import Callable
from torch import Generator
from ..core.types import Guidance
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ..core.types import Branch, Conditioning, Run
from ..family import CallInputs, Family
from ..outputs import Output
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from ..models.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from ..models.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from ..schedulers.euler_discrete import EulerDiscreteScheduler
@dataclass
class StableVideoDiffusionPipelineOutput(Output):
    frames: Any
@dataclass(kw_only=True)
class SVDInputs(CallInputs):
    sigmas: list[float] | None = ...
    min_guidance_scale: float = ...
    max_guidance_scale: float = ...
    fps: int = ...
    motion_bucket_id: int = ...
    noise_aug_strength: float = ...
    decode_chunk_size: int | None = ...
    num_videos_per_prompt: int = ...
class StableVideoDiffusionPipeline(Family):
    vae: AutoencoderKLTemporalDecoder
    image_encoder: CLIPVisionModelWithProjection
    unet: UNetSpatioTemporalConditionModel
    scheduler: EulerDiscreteScheduler
    feature_extractor: CLIPImageProcessor

    @property
    def denoiser(self) -> Any:
        ...

    def count(self, inputs: Any) -> int:
        ...

    def frames(self, inputs: Any) -> int:
        ...

    def guidance(self, inputs: Any) -> Any:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        ...

    def decode(self, run: Run) -> dict[str, Any]:
        ...

    def generate(self, inputs: Any) -> Any:
        ...

    def __call__(self, image: Any, height: int | None=576, width: int | None=1024, num_frames: int | None=None, num_inference_steps: int=25, sigmas: list[float] | None=None, min_guidance_scale: float=1.0, max_guidance_scale: float=3.0, fps: int=7, motion_bucket_id: int=127, noise_aug_strength: float=0.02, decode_chunk_size: int | None=None, num_videos_per_prompt: int=1, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, output_type: str='pil', callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., return_dict: bool=True, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1) -> Any:
        ...
