# Written by scripts/stubs.py.
# mypy: disable-error-code="override,assignment"
from torch import Generator
from ..core.types import Guidance
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from torch import Tensor
from ..core.types import Branch, Conditioning, Run
from ..core.windows import FreeNoise
from ..outputs import Output
from ..pipeline import DiffusionPipeline
from .controlled import WithControlNet
from .stable_diffusion import LatentText, PromptedUNet, TextInputs
from .stable_diffusion_xl import PromptedXL, UpcastCodec, XLTextInputs
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
from ..models.controlnet import ControlNetModel
from ..models.controlnet_sparsectrl import SparseControlNetModel
from ..models.motion_adapter import MotionAdapter
from ..models.multicontrolnet import MultiControlNetModel
from ..models.unet_2d_condition import UNet2DConditionModel
from ..models.unet_motion_model import UNetMotionModel
from ..schedulers.base import Scheduler
@dataclass
class AnimateDiffPipelineOutput(Output):
    frames: Any
@dataclass(kw_only=True)
class VideoTextInputs(TextInputs):
    prompt: str | list[str] | dict[int, str] | None = ...
    negative_prompt: str | list[str] | dict[int, str] | None = ...
    num_videos_per_prompt: int = ...
    decode_chunk_size: int | None = ...
@dataclass(kw_only=True)
class WholeVideoInputs(VideoTextInputs):
    decode_chunk_size: int | None = ...
@dataclass(kw_only=True)
class XLVideoInputs(XLTextInputs):
    num_videos_per_prompt: int = ...
    decode_chunk_size: int | None = ...
class VideoCodec(UpcastCodec):

    def network(self, pipe: Any, way: str) -> Any:
        ...
class VideoUNet(PromptedUNet):
    frames_inside: ClassVar[bool] = ...
    free_noise: ClassVar[FreeNoise | None] = ...

    def many(self, inputs: Any) -> int:
        ...

    def inherit(self, source: DiffusionPipeline) -> None:
        ...

    def enable_free_init(self, num_iters: int=3, use_fast_sampling: bool=False, method: str='butterworth', order: int=4, spatial_stop_frequency: float=0.25, temporal_stop_frequency: float=0.25) -> None:
        ...

    def disable_free_init(self) -> None:
        ...

    @property
    def free_init_enabled(self) -> bool:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...

    def conditions(self, branch: Branch) -> dict[str, Any]:
        ...

    def passes(self, run: Run) -> Iterator[None]:
        ...

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        ...

    def replace_tensors(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        ...

    def decode(self, run: Run) -> dict[str, Any]:
        ...
class WithMotion(VideoUNet):

    def residuals(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]:
        ...

    def register_modules(self, **components: Any) -> None:
        ...
class AnimateDiff(WithMotion, LatentText):
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    scheduler: Scheduler
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None

    def enable_free_noise(self, context_length: int | None=16, context_stride: int=4, weighting_scheme: str='pyramid', noise_type: str='shuffle_context', prompt_interpolation_callback: Callable[[int, int, Tensor, Tensor], Tensor] | None=None) -> None:
        ...

    def disable_free_noise(self) -> None:
        ...

    @property
    def free_noise_enabled(self) -> bool:
        ...

    def enable_free_noise_split_inference(self, spatial_split_size: int=256, temporal_split_size: int=16) -> None:
        ...

    def check(self, inputs: Any) -> None:
        ...

    def count(self, inputs: Any) -> int:
        ...

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        ...
class AnimateDiffPipeline(AnimateDiff):

    def __call__(self, prompt: str | list[str] | dict[int, str] | None=None, num_frames: int=16, height: int | None=None, width: int | None=None, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | dict[int, str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., decode_chunk_size: int | None=16, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain') -> Any:
        ...
class AnimateDiffPAGPipeline(AnimateDiff):
    settings: ClassVar[Mapping[str, Any]] = ...

    def __call__(self, prompt: str | list[str] | dict[int, str] | None=None, num_frames: int=16, height: int | None=None, width: int | None=None, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | dict[int, str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., decode_chunk_size: int | None=16, pag_scale: float=3.0, pag_adaptive_scale: float=0.0, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain') -> Any:
        ...
class AnimateDiffVideoToVideoPipeline(AnimateDiff):

    def __call__(self, video: Any=None, prompt: str | list[str] | dict[int, str] | None=None, height: int | None=None, width: int | None=None, num_inference_steps: int=50, enforce_inference_steps: bool=False, timesteps: list[int] | None=None, sigmas: list[float] | None=None, guidance_scale: float=7.5, strength: float=0.8, negative_prompt: str | list[str] | dict[int, str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., decode_chunk_size: int | None=16, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, prompt_syntax: str='plain') -> Any:
        ...
class AnimateDiffSteered(WithControlNet, AnimateDiff):
    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    controlnet: ControlNetModel | MultiControlNetModel
    scheduler: Scheduler
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None
class AnimateDiffControlNetPipeline(AnimateDiffSteered):

    def __call__(self, prompt: str | list[str] | dict[int, str] | None=None, num_frames: int=16, height: int | None=None, width: int | None=None, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | dict[int, str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, conditioning_frames: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float | list[float]=1.0, guess_mode: bool=False, control_guidance_start: float | list[float]=0.0, control_guidance_end: float | list[float]=1.0, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., decode_chunk_size: int | None=16, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain') -> Any:
        ...
class AnimateDiffVideoToVideoControlNetPipeline(AnimateDiffSteered):

    def __call__(self, video: Any=None, prompt: str | list[str] | dict[int, str] | None=None, height: int | None=None, width: int | None=None, num_inference_steps: int=50, enforce_inference_steps: bool=False, timesteps: list[int] | None=None, sigmas: list[float] | None=None, guidance_scale: float=7.5, strength: float=0.8, negative_prompt: str | list[str] | dict[int, str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, conditioning_frames: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float | list[float]=1.0, guess_mode: bool=False, control_guidance_start: float | list[float]=0.0, control_guidance_end: float | list[float]=1.0, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., decode_chunk_size: int | None=16, *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, prompt_syntax: str='plain') -> Any:
        ...
class AnimateDiffSparseControlNetPipeline(AnimateDiff):
    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    controlnet: SparseControlNetModel
    scheduler: Scheduler
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None

    def __call__(self, prompt: str | list[str] | dict[int, str] | None=None, height: int | None=None, width: int | None=None, num_frames: int=16, num_inference_steps: int=50, guidance_scale: float=7.5, negative_prompt: str | list[str] | dict[int, str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, conditioning_frames: Any=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, controlnet_conditioning_scale: float=1.0, controlnet_frame_indices: list[int]=..., guess_mode: bool=False, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, guidance_rescale: float=0.0, timesteps: list[int] | None=None, sigmas: list[float] | None=None, prompt_syntax: str='plain', decode_chunk_size: int | None=None) -> Any:
        ...
class AnimateDiffSDXLPipeline(WithMotion, PromptedXL):
    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer: CLIPTokenizer | None
    tokenizer_2: CLIPTokenizer | None
    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    scheduler: Scheduler
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessor | None
    settings: ClassVar[Mapping[str, Any]] = ...

    def __call__(self, prompt: str | list[str] | None=None, prompt_2: str | list[str] | None=None, num_frames: int=16, height: int | None=None, width: int | None=None, num_inference_steps: int=50, timesteps: list[int] | None=None, sigmas: list[float] | None=None, denoising_end: float | None=None, guidance_scale: float=5.0, negative_prompt: str | list[str] | None=None, negative_prompt_2: str | list[str] | None=None, num_videos_per_prompt: int=1, eta: float=0.0, generator: Generator | list[Generator] | None=None, latents: Tensor | None=None, prompt_embeds: Tensor | None=None, negative_prompt_embeds: Tensor | None=None, pooled_prompt_embeds: Tensor | None=None, negative_pooled_prompt_embeds: Tensor | None=None, ip_adapter_image: Any=None, ip_adapter_image_embeds: list[Any] | None=None, output_type: str='pil', return_dict: bool=True, cross_attention_kwargs: dict[str, Any] | None=None, guidance_rescale: float=0.0, original_size: tuple[int, int] | None=None, crops_coords_top_left: tuple[int, int]=..., target_size: tuple[int, int] | None=None, negative_original_size: tuple[int, int] | None=None, negative_crops_coords_top_left: tuple[int, int]=..., negative_target_size: tuple[int, int] | None=None, clip_skip: int | None=None, callback_on_step_end: Callable[..., dict[str, Any]] | None=None, callback_on_step_end_tensor_inputs: list[str]=..., *, guidance: Guidance | None=None, callback: Callable[..., None] | None=None, callback_steps: int=1, prompt_syntax: str='plain', decode_chunk_size: int | None=None) -> Any:
        ...
