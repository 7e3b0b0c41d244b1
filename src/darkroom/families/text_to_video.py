"""Videos from text by other ways than AnimateDiff: a UNet over frames (ModelScope), a network for pictures as it is (Text2Video-Zero), and motion
modules that see a picture (PIA)."""

from __future__ import annotations
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
import torch
from torch import Tensor
from ..core.attention import Attend, FirstFrame, Patch, Rows, nothing, resolve
from ..core.inputs import REQUIRED, field
from ..core.tasks.films import Film2Film, Image2Motion, Text2Film
from ..core.tasks.zero_shot import ZeroShotVideo
from ..core.types import Branch, Run
from ..family import Family, ImagePipelineOutput
from .animatediff import AnimateDiff, AnimateDiffPipelineOutput, VideoUNet
from .stable_diffusion import Checked, LatentText, TextInputs
from .stable_diffusion_xl import PromptedXL, XLTextInputs

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
    from ..models.unet_2d_condition import UNet2DConditionModel
    from ..models.unet_3d_condition import UNet3DConditionModel
    from ..schedulers.base import Scheduler

__all__ = [
    "PIAPipeline", "PIAPipelineOutput", "TextToVideoPipelineOutput", "TextToVideoSDPipeline", "TextToVideoSDPipelineOutput",
    "TextToVideoSDXLPipelineOutput", "TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline", "VideoToVideoSDPipeline", "ZeroShot",
]  # fmt: skip


@dataclass
class TextToVideoSDPipelineOutput(AnimateDiffPipelineOutput):
    """See `AnimateDiffPipelineOutput`."""


@dataclass
class PIAPipelineOutput(AnimateDiffPipelineOutput):
    """See `AnimateDiffPipelineOutput`."""


@dataclass
class TextToVideoPipelineOutput(ImagePipelineOutput):
    """See `ImagePipelineOutput`; the pictures are the frames of one video after another."""


@dataclass
class TextToVideoSDXLPipelineOutput(ImagePipelineOutput):
    """See `TextToVideoPipelineOutput`."""


@dataclass(kw_only=True)
class FilmInputs(TextInputs):
    num_videos_per_prompt: int = field("Videos for each prompt.", 1, minimum=1, integer=True)
    decode_chunk_size: int | None = field("Frames decoded at a time, all if not given.", None, minimum=1, integer=True)


@dataclass(kw_only=True)
class XLFilmInputs(FilmInputs, XLTextInputs):
    guidance_scale: float = field("Weight of the prompt; 1 or less switches guidance off.", 7.5)


_EMBEDS = "negative_prompt eta generator latents prompt_embeds negative_prompt_embeds"
_END = "output_type return_dict callback callback_steps cross_attention_kwargs clip_skip"


class TextToVideoSD(VideoUNet, LatentText):
    """ModelScope's text to video and its successors: Stable Diffusion with a UNet over frames (Wang et al. 2023)."""

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet3DConditionModel
    scheduler: Scheduler
    family = "text-to-video"
    inputs = FilmInputs
    Output = TextToVideoSDPipelineOutput


class TextToVideoSDPipeline(TextToVideoSD):
    """Text to video."""

    task = Text2Film(guidance_scale=9.0, output_type="np")
    arguments = {"text2video": f"prompt height width num_frames num_inference_steps guidance_scale {_EMBEDS} {_END}"}


class VideoToVideoSDPipeline(TextToVideoSD):
    """Video to video, guided by text: small videos become larger, and finer."""

    task = Film2Film(strength=0.6, guidance_scale=15.0, output_type="np")
    arguments = {"video2video": f"prompt video strength num_inference_steps guidance_scale {_EMBEDS} {_END}"}


class PIAPipeline(AnimateDiff):
    """A picture begins to move as a text says. The motion adapter is one that widens the first layer of the network to 9 channels."""

    task = Image2Motion()
    Output = PIAPipelineOutput
    arguments = {
        "image2video": "image prompt strength num_frames height width num_inference_steps guidance_scale negative_prompt "
        "num_videos_per_prompt eta generator latents prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds "
        "motion_scale output_type return_dict cross_attention_kwargs clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
    }


def pictures(x: Tensor) -> Tensor:
    """Videos (B, C, F, H, W) as their frames, (B F, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def across_frames(attend: Attend, frames: int, sites: frozenset[str]) -> Attend:
    """`attend` with the keys and values of the first of so many frames at these sites, but those that are skipped."""
    if isinstance(attend, Rows):
        return dataclasses.replace(attend, attends=[across_frames(a, frames, sites) for a in attend.attends])
    return Patch(attend, frozenset(site for site in sites if resolve(attend, site) is not nothing), FirstFrame(attend, frames))


class ZeroShot(Family):
    """A mixin: videos by a network for pictures, whose frames attend to the first (Khachatryan et al. 2023). Latents are (B, C, F, H, W);
    to the caller, and to the denoiser, they are those of so many pictures, (B F, C, H, W)."""

    frames_inside = True

    if TYPE_CHECKING:
        unet: Any

    def many(self, inputs: Any) -> int:
        return inputs.num_videos_per_prompt  # type: ignore[no-any-return]

    def generate(self, inputs: Any) -> Any:
        return super().generate(dataclasses.replace(inputs, output_type="np") if inputs.output_type == "tensor" else inputs)

    def passes(self, run: Run) -> Iterator[None]:
        return self.task.passes(run)  # type: ignore[no-any-return]

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        if (frames := x.shape[2]) > 1:
            every = {name: c.repeat_interleave(frames, 0) for name, c in branch.cond.items()}
            attend = across_frames(branch.attend, frames, frozenset(self.self_attention_sites()))
            branch = branch.with_cond(**every).with_attention(attend)
        return super().denoise_once(pictures(x), t, branch, run).unflatten(0, (-1, frames)).transpose(1, 2)

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        return {**super().named_tensors(run), "latents": pictures(run.x)}

    def replace_tensors(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        super().replace_tensors(run, tensors)
        run.x = run.x if run.x.ndim == 5 else run.x.unflatten(0, (run.rows, -1)).transpose(1, 2)

    def result(self, run: Run) -> Tensor:
        return pictures(run.x)

    def pixels(self, run: Run) -> Tensor:
        x = self.result(run)
        return torch.cat([self.codec.decode(self, part) for part in x.split(run.inputs.decode_chunk_size or len(x))])


_ZERO = "num_videos_per_prompt eta generator"
_MOTION = "motion_field_strength_x motion_field_strength_y output_type return_dict callback callback_steps"


class TextToVideoZeroPipeline(ZeroShot, Checked, LatentText):
    """Text to video with Stable Diffusion as it is."""

    options: ClassVar[Mapping[str, Any]] = {}
    settings: ClassVar[Mapping[str, Any]] = Checked.options
    task = ZeroShotVideo(prompt=REQUIRED)
    inputs = FilmInputs
    Output = TextToVideoPipelineOutput
    arguments = {
        "zero_shot_video": f"prompt video_length height width num_inference_steps guidance_scale negative_prompt {_ZERO} latents {_MOTION} "
        "t0 t1 frame_ids"
    }


class TextToVideoZeroSDXLPipeline(ZeroShot, PromptedXL):
    """Text to video with SDXL as it is."""

    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer: CLIPTokenizer | None
    tokenizer_2: CLIPTokenizer | None
    unet: UNet2DConditionModel
    scheduler: Scheduler
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessor | None
    task = ZeroShotVideo(prompt=REQUIRED)
    inputs = XLFilmInputs
    Output = TextToVideoSDXLPipelineOutput
    arguments = {
        "zero_shot_video": "prompt prompt_2 video_length height width num_inference_steps denoising_end guidance_scale negative_prompt "
        f"negative_prompt_2 {_ZERO} frame_ids prompt_embeds negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds "
        f"latents {_MOTION} cross_attention_kwargs guidance_rescale original_size crops_coords_top_left target_size t0 t1"
    }
