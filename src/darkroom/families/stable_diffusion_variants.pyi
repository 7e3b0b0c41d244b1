# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from collections.abc import Callable
from torch import Generator
from ..core.types import Guidance
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..core.tasks.image2image import GoOn
from ..core.tasks.views import Box
from ..core.types import Branch, Conditioning, Run
from ..family import CallInputs
from .stable_diffusion import Checked, Edited, LatentText, LatentUNet, PromptInputs, StableDiffusion
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection, DPTForDepthEstimation, DPTImageProcessor
from ..models.autoencoder_kl import AutoencoderKL
from ..models.unet_2d_condition import UNet2DConditionModel
from ..schedulers.base import Scheduler
from ..schedulers.ddpm import DDPMScheduler
class StableDiffusionDepth2ImgPipeline(LatentText):
    depth_estimator: DPTForDepthEstimation
    feature_extractor: DPTImageProcessor

    @torch.no_grad()
    def estimate_depth(self, image: Any) -> Tensor:
        ...

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        ...

    def replace_tensors(self, run: Run, tensors: Any) -> None:
        ...

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, depth_map: Tensor | None=None, strength: float=0.8, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, prompt_syntax: str='plain', height: int | None=None, width: int | None=None, latents: Tensor | None=None) -> Any:
        ...
class StableDiffusionUpscalePipeline(LatentText):
    low_res_scheduler: DDPMScheduler
    safety_checker: Any | None
    feature_extractor: CLIPImageProcessor | None
    watermarker: Any | None

    def check(self, inputs: Any) -> None:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...

    def conditions(self, branch: Branch) -> dict[str, Any]:
        ...

    def decode(self, run: Run) -> dict[str, Any]:
        ...

    def screened(self, pixels: Tensor) -> tuple[Tensor, list[bool] | None]:
        ...

    def to_images(self, pixels: Tensor, run: Run) -> Any:
        ...

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, num_inference_steps: int=75, guidance_scale: float=9.0, noise_level: int=20, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, output_type: str='pil', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, prompt_syntax: str='plain', height: int | None=None, width: int | None=None) -> Any:
        ...
@dataclass(kw_only=True)
class PooledInputs(PromptInputs):
    pooled_prompt_embeds: Tensor | None = ...
    negative_pooled_prompt_embeds: Tensor | None = ...
class StableDiffusionLatentUpscalePipeline(LatentText):

    def check(self, inputs: Any) -> None:
        ...

    @torch.no_grad()
    def encode_prompt(self, prompt: str | list[str] | None, device: torch.device | str | None=None, do_classifier_free_guidance: bool=True, negative_prompt: str | list[str] | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, pooled_prompt_embeds: Tensor | None=None, negative_pooled_prompt_embeds: Tensor | None=None) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        ...

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, num_inference_steps: int=75, guidance_scale: float=9.0, negative_prompt: str | list[str] | None=None, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, pooled_prompt_embeds: Tensor | None=None, negative_pooled_prompt_embeds: Tensor | None=None, output_type: str='pil', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, eta: float=0.0, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, cross_attention_kwargs: dict[str, Any] | None=None, prompt_syntax: str='plain', clip_skip: int | None=None, num_images_per_prompt: int=1, height: int | None=None, width: int | None=None) -> Any:
        ...
@dataclass(kw_only=True)
class VariationInputs(CallInputs):
    guidance_scale: float = ...
    num_images_per_prompt: int = ...
    eta: float = ...
class PicturedUNet(LatentUNet):
    vae: AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection
    unet: UNet2DConditionModel
    scheduler: Scheduler

    def count(self, inputs: Any) -> int:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...
class StableDiffusionImageVariationPipeline(Checked, PicturedUNet):
    feature_extractor: CLIPImageProcessor

    def __call__(self, image: Any, height: int | None=None, width: int | None=None, num_inference_steps: int=50, guidance_scale: float=7.5, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, output_type: str='pil', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=...) -> Any:
        ...
class StableDiffusionInstructPix2PixPipeline(Edited, StableDiffusion):

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        ...

    def replace_tensors(self, run: Run, tensors: Any) -> None:
        ...

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, num_inference_steps: int=100, guidance_scale: float=7.5, image_guidance_scale: float=1.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., cross_attention_kwargs: dict[str, Any] | None=None, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain', clip_skip: int | None=None, height: int | None=None, width: int | None=None) -> Any:
        ...
@dataclass(kw_only=True)
class ConsistencyInputs(PromptInputs):
    original_inference_steps: int | None = ...
def takes_strength(scheduler: Any) -> bool:
    ...
class ConsistencyImage2Image(GoOn):

    def timesteps(self, pipe: Any, run: Run) -> Tensor:
        ...
class LatentConsistency(StableDiffusion):

    def schedule_options(self, run: Run) -> dict[str, Any]:
        ...

    def result(self, run: Run) -> Tensor:
        ...

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        ...

    def replace_tensors(self, run: Run, tensors: Any) -> None:
        ...
class LatentConsistencyModelPipeline(LatentConsistency):

    def __call__(self, prompt: str | list[str] | None=None, height: int | None=None, width: int | None=None, num_inference_steps: int=4, original_inference_steps: int | None=None, timesteps: list[int] | None=None, guidance_scale: float=8.5, num_images_per_prompt: int=1, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, negative_prompt: str | list[str] | None=None, guidance_rescale: float=0.0, sigmas: list[float] | None=None, eta: float=0.0, negative_prompt_embeds: Tensor | None=None, prompt_syntax: str='plain') -> Any:
        ...
class LatentConsistencyModelImg2ImgPipeline(LatentConsistency):

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, num_inference_steps: int=4, strength: float=0.8, original_inference_steps: int | None=None, timesteps: list[int] | None=None, guidance_scale: float=8.5, num_images_per_prompt: int=1, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, negative_prompt: str | list[str] | None=None, guidance_rescale: float=0.0, sigmas: list[float] | None=None, eta: float=0.0, negative_prompt_embeds: Tensor | None=None, prompt_syntax: str='plain', height: int | None=None, width: int | None=None) -> Any:
        ...
class StableDiffusionPanoramaPipeline(StableDiffusion):

    def get_views(self, panorama_height: int, panorama_width: int, window_size: int=64, stride: int=8, circular_padding: bool=False) -> list[Box]:
        ...

    def decode_latents_with_padding(self, latents: Tensor, padding: int=8) -> Tensor:
        ...

    def pixels(self, run: Run) -> Tensor:
        ...

    def __call__(self, prompt: str | list[str] | None=None, height: int | None=512, width: int | None=2048, num_inference_steps: int=50, timesteps: list[int] | None=None, guidance_scale: float=7.5, view_batch_size: int=1, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, guidance_rescale: float=0.0, circular_padding: bool=False, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, sigmas: list[float] | None=None, prompt_syntax: str='plain') -> Any:
        ...
