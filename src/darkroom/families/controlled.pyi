# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from collections.abc import Callable
from torch import Generator
from ..core.types import Guidance
from torch import Tensor
from dataclasses import dataclass
from typing import Any
from ..family import Family
from .stable_diffusion import StableDiffusion, StableDiffusionPipelineOutput
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from ..models.controlnet import ControlNetModel
from ..models.multicontrolnet import MultiControlNetModel
from ..models.safety_checker import StableDiffusionSafetyChecker
from ..models.t2i_adapter import MultiAdapter, T2IAdapter
from ..schedulers.base import Scheduler
@dataclass
class StableDiffusionAdapterPipelineOutput(StableDiffusionPipelineOutput):
    ...
class WithControlNet(Family):
    controlnet: ControlNetModel | MultiControlNetModel
    scheduler: Scheduler

    @classmethod
    def as_component(cls, name: str, value: Any) -> Any:
        ...
class WithAdapter(Family):
    adapter: T2IAdapter | MultiAdapter
    scheduler: Scheduler

    @classmethod
    def as_component(cls, name: str, value: Any) -> Any:
        ...
class StableDiffusionControlNet(WithControlNet, StableDiffusion):
    safety_checker: StableDiffusionSafetyChecker | None
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None
class StableDiffusionControlNetPipeline(StableDiffusionControlNet):

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, height: int | None=None, width: int | None=None, num_inference_steps: int=50, timesteps: list[int] | None=None, sigmas: list[float] | None=None, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float | list[float]=1.0, guess_mode: bool=False, control_guidance_start: float | list[float]=0.0, control_guidance_end: float | list[float]=1.0, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, prompt_syntax: str='plain') -> Any:
        ...
class StableDiffusionControlNetImg2ImgPipeline(StableDiffusionControlNet):

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, control_image: Any=None, height: int | None=None, width: int | None=None, strength: float=0.8, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float | list[float]=0.8, guess_mode: bool=False, control_guidance_start: float | list[float]=0.0, control_guidance_end: float | list[float]=1.0, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain') -> Any:
        ...
class StableDiffusionControlNetInpaintPipeline(StableDiffusionControlNet):

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, mask_image: Any=None, control_image: Any=None, height: int | None=None, width: int | None=None, padding_mask_crop: int | None=None, strength: float=1.0, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float | list[float]=0.5, guess_mode: bool=False, control_guidance_start: float | list[float]=0.0, control_guidance_end: float | list[float]=1.0, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain', masked_image_latents: Tensor | None=None) -> Any:
        ...
class StableDiffusionControlNetPAGPipeline(StableDiffusionControlNet):

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, height: int | None=None, width: int | None=None, num_inference_steps: int=50, timesteps: list[int] | None=None, sigmas: list[float] | None=None, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float | list[float]=1.0, guess_mode: bool=False, control_guidance_start: float | list[float]=0.0, control_guidance_end: float | list[float]=1.0, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., pag_scale: float=3.0, pag_adaptive_scale: float=0.0, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, prompt_syntax: str='plain') -> Any:
        ...
class StableDiffusionControlNetPAGInpaintPipeline(StableDiffusionControlNet):

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, mask_image: Any=None, control_image: Any=None, height: int | None=None, width: int | None=None, padding_mask_crop: int | None=None, strength: float=1.0, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float | list[float]=0.5, control_guidance_start: float | list[float]=0.0, control_guidance_end: float | list[float]=1.0, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., pag_scale: float=3.0, pag_adaptive_scale: float=0.0, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain', masked_image_latents: Tensor | None=None, guess_mode: bool=False) -> Any:
        ...
class StableDiffusionAdapterPipeline(WithAdapter, StableDiffusion):
    safety_checker: StableDiffusionSafetyChecker | None
    feature_extractor: CLIPImageProcessor | None
    image_encoder: None = ...

    def __call__(self, prompt: str | list[str] | None=None, image: Any=None, height: int | None=None, width: int | None=None, num_inference_steps: int=50, timesteps: list[int] | None=None, sigmas: list[float] | None=None, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_images_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, output_type: str='pil', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, cross_attention_kwargs: dict[str, Any] | None=None, adapter_conditioning_scale: float | list[float]=1.0, clip_skip: int | None=None, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., guidance_rescale: float=0.0, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, prompt_syntax: str='plain') -> Any:
        ...
