"""AnimateDiff: Stable Diffusion and SDXL with motion modules, which make videos of their pictures (Guo et al. 2023)."""

from __future__ import annotations
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
import torch
from torch import Tensor
from ..core.codec import ScaledCodec
from ..core.free_init import FreeInit
from ..core.guidance import PAG
from ..core.inputs import field
from ..core.media import tensor_to_videos
from ..core.tasks import Text2Video, Video2Video
from ..core.types import Branch, Conditioning, Run
from ..core.video_control import SparseControls, VideoControlNets
from ..core.windows import FreeNoise, Windows
from ..errors import InputError
from ..outputs import Output
from ..pipeline import DiffusionPipeline
from .controlled import WithControlNet
from .stable_diffusion import LatentText, PromptedUNet, TextInputs
from .stable_diffusion_xl import PromptedXL, UpcastCodec, XLTextInputs

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
    from ..models.controlnet import ControlNetModel
    from ..models.controlnet_sparsectrl import SparseControlNetModel
    from ..models.motion_adapter import MotionAdapter
    from ..models.multicontrolnet import MultiControlNetModel
    from ..models.unet_2d_condition import UNet2DConditionModel
    from ..models.unet_motion_model import UNetMotionModel
    from ..schedulers.base import Scheduler

__all__ = [
    "AnimateDiff", "AnimateDiffControlNetPipeline", "AnimateDiffPAGPipeline", "AnimateDiffPipeline", "AnimateDiffPipelineOutput",
    "AnimateDiffSDXLPipeline", "AnimateDiffSparseControlNetPipeline", "AnimateDiffVideoToVideoControlNetPipeline",
    "AnimateDiffVideoToVideoPipeline", "VideoCodec", "VideoTextInputs", "VideoUNet",
]  # fmt: skip

logger = logging.getLogger("darkroom")


@dataclass
class AnimateDiffPipelineOutput(Output):
    """`frames`: for each video a list of PIL pictures, or an array (B, F, H, W, 3) in [0, 1], a tensor (B, F, 3, H, W) in [0, 1], or latents
    (B, C, F, H, W)."""

    frames: Any


@dataclass(kw_only=True)
class VideoTextInputs(TextInputs):
    prompt: str | list[str] | dict[int, str] | None = field(
        "What to film; a list makes videos for each, FreeNoise takes {frame: prompt}, too."
    )
    negative_prompt: str | list[str] | dict[int, str] | None = field("What to keep out of the video, in the same forms.")
    num_videos_per_prompt: int = field("Videos for each prompt.", 1, minimum=1, integer=True)
    decode_chunk_size: int | None = field("Frames decoded at a time: fewer need less memory.", 16, minimum=1, integer=True)


@dataclass(kw_only=True)
class WholeVideoInputs(VideoTextInputs):
    decode_chunk_size: int | None = field("Frames decoded at a time, all if not given.", None, minimum=1, integer=True)


@dataclass(kw_only=True)
class XLVideoInputs(XLTextInputs):
    num_videos_per_prompt: int = field("Videos for each prompt.", 1, minimum=1, integer=True)
    decode_chunk_size: int | None = field("Frames decoded at a time, all if not given.", None, minimum=1, integer=True)


class VideoCodec(UpcastCodec):
    """Encodes in float32 what overflows in float16; decodes in the network's own dtype, as checkpoints for videos are used."""

    def network(self, pipe: Any, way: str) -> Any:
        return super().network(pipe, way) if way == "encode" else ScaledCodec.network(self, pipe, way)


class VideoUNet(PromptedUNet):
    """A UNet over the latents of videos, (B, C, F, H, W). The context is (B, F, M, d): each frame has a prompt."""

    codec = VideoCodec("vae")
    inputs = VideoTextInputs
    Output = AnimateDiffPipelineOutput
    frames_inside: ClassVar[bool] = True  # layers over pictures have a row for each frame of a video, beside each other
    free_noise: ClassVar[FreeNoise | None] = None  # an object's own, once it is enabled
    _free_init: ClassVar[FreeInit | None] = None
    _at_once: ClassVar[tuple[int, int] | None] = None

    def many(self, inputs: Any) -> int:
        return inputs.num_videos_per_prompt  # type: ignore[no-any-return]

    def inherit(self, source: DiffusionPipeline) -> None:
        super().inherit(source)
        own = ("free_noise", "_free_init", "_at_once")
        self.__dict__.update({name: source.__dict__[name] for name in own if name in source.__dict__})

    def enable_free_init(
        self, num_iters: int = 3, use_fast_sampling: bool = False, method: str = "butterworth", order: int = 4,
        spatial_stop_frequency: float = 0.25, temporal_stop_frequency: float = 0.25,
    ) -> None:  # fmt: skip
        """Make each video in several passes, for more even motion: see `FreeInit`. Raises InputError for values out of range."""
        stops = (spatial_stop_frequency, temporal_stop_frequency)
        self.__dict__["_free_init"] = FreeInit(num_iters, use_fast_sampling, method, order, *stops)

    def disable_free_init(self) -> None:
        self.__dict__.pop("_free_init", None)

    @property
    def free_init_enabled(self) -> bool:
        return self._free_init is not None

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        cond, frames = super().encode(inputs, needs_negative), self.task.frames(self, inputs)

        def framed(branch: Branch) -> Branch:
            return branch.with_cond(context=branch.cond["context"][:, None].expand(-1, frames, -1, -1))  # (B, F, M, d)

        return Conditioning(framed(cond.positive), None if cond.negative is None else framed(cond.negative))

    def conditions(self, branch: Branch) -> dict[str, Any]:
        context = branch.cond["context"]
        flat = branch.with_cond(context=context.flatten(0, 1)) if context.ndim == 4 else branch
        return super().conditions(flat)

    def passes(self, run: Run) -> Iterator[None]:
        init = self._free_init
        if init is None:
            yield
            return
        inputs, noise = run.inputs, run.x
        for index in range(init.num_iters):
            if index:
                if run.stop:
                    return
                run.x = init.restart(run.x, noise, run.scheduler, inputs.generator)
            run.inputs = dataclasses.replace(inputs, num_inference_steps=init.steps(index, inputs.num_inference_steps))
            run.timesteps = self.task.timesteps(self, run)
            yield

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        tensors = super().named_tensors(run)
        shown = {"prompt_embeds": lambda x: x.flatten(0, 1), "negative_prompt_embeds": lambda x: x[:, 0]}  # (2BF, M, d) and (B, M, d)
        return tensors | {name: show(tensors[name]) for name, show in shown.items() if name in tensors}

    def replace_tensors(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        frames = self.task.frames(self, run.inputs)
        super().replace_tensors(run, {n: x.unflatten(0, (-1, frames)) if n == "prompt_embeds" else x for n, x in tensors.items()})

    def decode(self, run: Run) -> dict[str, Any]:
        x, output_type = self.result(run), run.inputs.output_type
        if output_type == "latent":
            return {"frames": x}
        pictures = x.transpose(1, 2).flatten(0, 1)  # (BF, C, H, W)
        size = run.inputs.decode_chunk_size or len(pictures)
        pixels = torch.cat([self.codec.decode(self, part) for part in pictures.split(size)]).float()
        return {"frames": tensor_to_videos(pixels.unflatten(0, (len(x), -1)), output_type)}


class WithMotion(VideoUNet):
    """Such a UNet made of one over pictures and a motion adapter: a pipeline accepts the former and keeps the two together."""

    def residuals(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]:
        windows = None if self.free_noise is None else self.free_noise.windows
        return {**super().residuals(x, t, branch, run), "windows": windows, "at_once": self._at_once}

    def register_modules(self, **components: Any) -> None:
        from ..models.unet_2d_condition import UNet2DConditionModel
        from ..models.unet_motion_model import UNetMotionModel

        if isinstance(unet := components.get("unet"), UNet2DConditionModel):
            adapter = components.get("motion_adapter", self.__dict__.get("motion_adapter"))
            if adapter is None:
                fix = "motion_adapter=MotionAdapter.from_pretrained(...), or to train one, UNetMotionModel.from_unet2d(unet)."
                raise InputError("A network for pictures needs motion modules.", where="motion_adapter", got=None, fix=fix)
            components["unet"] = UNetMotionModel.from_unet2d(unet, adapter)
        super().register_modules(**components)


class AnimateDiff(WithMotion, LatentText):
    """Stable Diffusion with motion modules. `unet` may be one for pictures: it is wrapped, with the adapter, and no weight is copied."""

    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    scheduler: Scheduler
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None
    family = "stable-diffusion"

    def enable_free_noise(
        self, context_length: int | None = 16, context_stride: int = 4, weighting_scheme: str = "pyramid",
        noise_type: str = "shuffle_context", prompt_interpolation_callback: Callable[[int, int, Tensor, Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Make videos longer than the motion modules know, by windows over the frames (see `Windows` and `FreeNoise`); `context_length` None is as
        many frames as they know. Prompts may then be {frame: prompt}. Raises InputError for values out of range.
        """
        known = self.unet.config.motion_max_seq_length
        if (length := context_length or known) > known:
            logger.warning(
                f"context_length={length} is more than the {known} frames that the motion modules know: there is no place for them."
            )
        self.__dict__["free_noise"] = FreeNoise(
            Windows(length, context_stride, weighting_scheme), noise_type, prompt_interpolation_callback
        )

    def disable_free_noise(self) -> None:
        self.__dict__.pop("free_noise", None)

    @property
    def free_noise_enabled(self) -> bool:
        return self.free_noise is not None

    def enable_free_noise_split_inference(self, spatial_split_size: int = 256, temporal_split_size: int = 16) -> None:
        """Save memory: layers over pictures take `temporal_split_size` frames at a time, those across frames `spatial_split_size` pixels. The
        result is the same. Attention itself goes on at once: its fused kernel needs no memory to speak of.
        """
        for where, value in (("spatial_split_size", spatial_split_size), ("temporal_split_size", temporal_split_size)):
            if not isinstance(value, int) or value < 1:
                raise InputError("A number out of range.", where=where, got=value, expected="a whole number, at least 1")
        self.__dict__["_at_once"] = (temporal_split_size, spatial_split_size)

    def check(self, inputs: Any) -> None:
        texts = {name: value for name in self.prompts if isinstance(value := getattr(inputs, name), dict)}
        for name, value in texts.items():
            frames = self.task.frames(self, inputs)
            if self.free_noise is None:
                raise InputError("Prompts by frame need windows.", where=name, fix="Call enable_free_noise() first.")
            whole = value and all(isinstance(k, int) and 0 <= k < frames for k in value) and all(isinstance(v, str) for v in value.values())
            if not whole or 0 not in value:
                raise InputError("Prompts by frame do not fit.", where=name, got=value, expected=f"{{0: text, ...}}, frames below {frames}")
            if inputs.prompt_embeds is not None or inputs.negative_prompt_embeds is not None:
                raise InputError("Prompts by frame and embeddings are given.", where=name, expected="one of the two")
        super().check(dataclasses.replace(inputs, **{name: value.get(0) for name, value in texts.items()}))
        if texts and self.count(inputs) != self.many(inputs):
            raise InputError("Prompts by frame are for one video.", where="prompt", got=self.count(inputs), expected="no list of prompts")

    def count(self, inputs: Any) -> int:
        return self.many(inputs) if isinstance(inputs.prompt, dict) else super().count(inputs)

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        named = {name: getattr(inputs, name) or "" for name in self.prompts}
        if not any(isinstance(texts, dict) for texts in named.values()):
            return super().encode(inputs, needs_negative)
        frames, options = self.task.frames(self, inputs), {"prompt_syntax": inputs.prompt_syntax}
        made: list[Tensor | None] = []
        for name, texts in named.items():
            by_frame = dict(sorted((texts if isinstance(texts, dict) else {0: texts if isinstance(texts, str) else texts[0]}).items()))
            words = [*by_frame.values()]
            if name == "prompt":
                states = self.encode_prompt(words, do_classifier_free_guidance=False, clip_skip=inputs.clip_skip, **options)[0]
            elif needs_negative:
                states = self.encode_prompt([""] * len(words), negative_prompt=words, **options)[1]
            else:
                made.append(None)
                continue
            every = self.free_noise.prompts([*by_frame], states, frames)  # type: ignore[union-attr]
            made.append(every[None].expand(self.many(inputs), -1, -1, -1))  # (B, F, M, d)
        positive, negative = made
        return self.conditioning(inputs, {"context": positive}, None if negative is None else {"context": negative})  # type: ignore[dict-item]


_TEXT = "guidance_scale negative_prompt num_videos_per_prompt eta generator latents prompt_embeds negative_prompt_embeds"
_STRENGTH = "guidance_scale strength negative_prompt num_videos_per_prompt eta generator latents prompt_embeds negative_prompt_embeds"
_IP, _OUT = "ip_adapter_image ip_adapter_image_embeds", "output_type return_dict cross_attention_kwargs"
_END = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
_VIDEO = "video prompt height width num_inference_steps enforce_inference_steps timesteps sigmas"
_STEERED = "controlnet_conditioning_scale guess_mode control_guidance_start control_guidance_end"


class AnimateDiffPipeline(AnimateDiff):
    """Text to video."""

    task = Text2Video()
    arguments = {"text2video": f"prompt num_frames height width num_inference_steps {_TEXT} {_IP} {_OUT} {_END} decode_chunk_size"}


class AnimateDiffPAGPipeline(AnimateDiff):
    """Text to video with perturbed-attention guidance."""

    task = Text2Video()
    terms = (PAG,)
    settings: ClassVar[Mapping[str, Any]] = {"pag_applied_layers": "mid_block.*attn1"}
    arguments = {
        "text2video": f"prompt num_frames height width num_inference_steps {_TEXT} {_IP} {_OUT} {_END} decode_chunk_size pag_scale "
        "pag_adaptive_scale"
    }


class AnimateDiffVideoToVideoPipeline(AnimateDiff):
    """Video to video, guided by text."""

    task = Video2Video()
    arguments = {"video2video": f"{_VIDEO} {_STRENGTH} {_IP} {_OUT} {_END} decode_chunk_size"}


class AnimateDiffSteered(WithControlNet, AnimateDiff):
    """With ControlNets that see a picture for each frame."""

    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    controlnet: ControlNetModel | MultiControlNetModel
    scheduler: Scheduler
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None
    control = VideoControlNets()


class AnimateDiffControlNetPipeline(AnimateDiffSteered):
    """Text to video, steered by a picture for each frame: edges, depth, poses, ..."""

    task = Text2Video()
    arguments = {
        "text2video": f"prompt num_frames height width num_inference_steps {_TEXT} {_IP} conditioning_frames {_OUT} {_STEERED} {_END} "
        "decode_chunk_size"
    }


class AnimateDiffVideoToVideoControlNetPipeline(AnimateDiffSteered):
    """Video to video, guided by text and steered by a picture for each frame."""

    task = Video2Video()
    arguments = {"video2video": f"{_VIDEO} {_STRENGTH} {_IP} conditioning_frames {_OUT} {_STEERED} {_END} decode_chunk_size"}


class AnimateDiffSparseControlNetPipeline(AnimateDiff):
    """Text to video, steered by pictures for some of the frames."""

    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    controlnet: SparseControlNetModel
    scheduler: Scheduler
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None
    task = Text2Video()
    control = SparseControls()
    inputs = WholeVideoInputs
    arguments = {
        "text2video": f"prompt height width num_frames num_inference_steps {_TEXT} {_IP} conditioning_frames {_OUT} "
        f"controlnet_conditioning_scale controlnet_frame_indices guess_mode {_END}"
    }


class AnimateDiffSDXLPipeline(WithMotion, PromptedXL):
    """Text to video with SDXL and motion modules."""

    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer: CLIPTokenizer | None
    tokenizer_2: CLIPTokenizer | None
    unet: UNet2DConditionModel | UNetMotionModel
    motion_adapter: MotionAdapter | None
    scheduler: Scheduler
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessor | None
    settings: ClassVar[Mapping[str, Any]] = {}
    add_watermarker = None
    family = "stable-diffusion-xl"
    codec = UpcastCodec("vae")
    task = Text2Video()
    inputs = XLVideoInputs
    Output = AnimateDiffPipelineOutput
    arguments = {
        "text2video": "prompt prompt_2 num_frames height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
        "negative_prompt negative_prompt_2 num_videos_per_prompt eta generator latents prompt_embeds negative_prompt_embeds "
        f"pooled_prompt_embeds negative_pooled_prompt_embeds {_IP} {_OUT} guidance_rescale original_size crops_coords_top_left target_size "
        f"negative_original_size negative_crops_coords_top_left negative_target_size {_END}"
    }
