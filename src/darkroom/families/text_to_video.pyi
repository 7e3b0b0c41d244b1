# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from collections.abc import Callable
from torch import Generator
from ..core.types import Guidance
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from torch import Tensor
from ..core.attention import Attend
from ..core.types import Branch, Run
from ..family import Family, ImagePipelineOutput
from .animatediff import AnimateDiff, AnimateDiffPipelineOutput, VideoUNet
from .stable_diffusion import Checked, LatentText, TextInputs
from .stable_diffusion_xl import PromptedXL, XLTextInputs
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from ..models.unet_2d_condition import UNet2DConditionModel
from ..models.unet_3d_condition import UNet3DConditionModel
from ..schedulers.base import Scheduler
@dataclass
class TextToVideoSDPipelineOutput(AnimateDiffPipelineOutput):
    ...
@dataclass
class PIAPipelineOutput(AnimateDiffPipelineOutput):
    ...
@dataclass
class TextToVideoPipelineOutput(ImagePipelineOutput):
    ...
@dataclass
class TextToVideoSDXLPipelineOutput(ImagePipelineOutput):
    ...
@dataclass(kw_only=True)
class FilmInputs(TextInputs):
    num_videos_per_prompt: int = ...
    decode_chunk_size: int | None = ...
@dataclass(kw_only=True)
class XLFilmInputs(FilmInputs, XLTextInputs):
    guidance_scale: float = ...
class TextToVideoSD(VideoUNet, LatentText):
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet3DConditionModel
    scheduler: Scheduler
class TextToVideoSDPipeline(TextToVideoSD):

    def __call__(self, prompt: str | list[str] | None=None, height: int | None=None, width: int | None=None, num_frames: int=16, num_inference_steps: int=50, guidance_scale: float=9.0, negative_prompt: str | list[str] | None=None, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, output_type: str='np', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, prompt_syntax: str='plain', num_videos_per_prompt: int=1, decode_chunk_size: int | None=None) -> Any:
        ...
class VideoToVideoSDPipeline(TextToVideoSD):

    def __call__(self, prompt: str | list[str] | None=None, video: Any=None, strength: float=0.6, num_inference_steps: int=50, guidance_scale: float=15.0, negative_prompt: str | list[str] | None=None, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, output_type: str='np', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, prompt_syntax: str='plain', num_videos_per_prompt: int=1, decode_chunk_size: int | None=None, height: int | None=None, width: int | None=None, enforce_inference_steps: bool=False) -> Any:
        ...
class PIAPipeline(AnimateDiff):

    def __call__(self, image: Any, prompt: str | list[str] | dict[int, str] | None=None, strength: float=1.0, num_frames: int=16, height: int | None=None, width: int | None=None, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | dict[int, str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, motion_scale: int=0, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain', decode_chunk_size: int | None=16) -> Any:
        ...
def pictures(x: Tensor) -> Tensor:
    ...
def across_frames(attend: Attend, frames: int, sites: frozenset[str]) -> Attend:
    ...
class ZeroShot(Family):
    unet: Any

    def many(self, inputs: Any) -> int:
        ...

    def generate(self, inputs: Any) -> Any:
        ...

    def passes(self, run: Run) -> Iterator[None]:
        ...

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        ...

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        ...

    def replace_tensors(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        ...

    def result(self, run: Run) -> Tensor:
        ...

    def pixels(self, run: Run) -> Tensor:
        ...
class TextToVideoZeroPipeline(ZeroShot, Checked, LatentText):
    options: ClassVar[Mapping[str, Any]] = ...
    settings: ClassVar[Mapping[str, Any]] = ...

    def __call__(self, prompt: str | list[str] | None, video_length: int=8, height: int | None=None, width: int | None=None, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, motion_field_strength_x: float=12, motion_field_strength_y: float=12, output_type: str='tensor', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, t0: int=44, t1: int=47, frame_ids: list[int] | None=None, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, cross_attention_kwargs: dict[str, Any] | None=None, prompt_syntax: str='plain', clip_skip: int | None=None, decode_chunk_size: int | None=None) -> Any:
        ...
class TextToVideoZeroSDXLPipeline(ZeroShot, PromptedXL):
    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer: CLIPTokenizer | None
    tokenizer_2: CLIPTokenizer | None
    unet: UNet2DConditionModel
    scheduler: Scheduler
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessor | None

    def __call__(self, prompt: str | list[str] | None, prompt_2: str | list[str] | None=None, video_length: int=8, height: int | None=None, width: int | None=None, num_inference_steps: int=50, denoising_end: float | None=None, guidance_scale: float=7.5, negative_prompt: str | list[str] | None=None, negative_prompt_2: str | list[str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, frame_ids: list[int] | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, pooled_prompt_embeds: Tensor | None=None, negative_pooled_prompt_embeds: Tensor | None=None, latents: Tensor | None=None, motion_field_strength_x: float=12, motion_field_strength_y: float=12, output_type: str='tensor', return_dict: bool=True, callback: Callable[..., None] | None=None, callback_steps: int=1, cross_attention_kwargs: dict[str, Any] | None=None, guidance_rescale: float=0.0, original_size: tuple[int, int] | None=None, crops_coords_top_left: tuple[int, int]=..., target_size: tuple[int, int] | None=None, t0: int=44, t1: int=47, *, guidance: Guidance | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., timesteps: list[int] | None=None, sigmas: list[float] | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, prompt_syntax: str='plain', clip_skip: int | None=None, negative_original_size: tuple[int, int] | None=None, negative_crops_coords_top_left: tuple[int, int]=..., negative_target_size: tuple[int, int] | None=None, decode_chunk_size: int | None=None) -> Any:
        ...
