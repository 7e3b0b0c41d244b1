"""Stable Diffusion XL with a control: ControlNets, Union ControlNets and T2I-Adapters."""

from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from ..core.control import ControlNets, ControlNetUnions, T2IAdapters
from ..core.guidance import PAG
from ..core.inputs import field
from ..core.tasks import Text2Image
from .controlled import WithAdapter, WithControlNet
from .stable_diffusion_xl import StableDiffusionXL, StableDiffusionXLRefined, XLImage2Image, XLInpaint, XLInputs

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    from ..models.controlnet_union import ControlNetUnionModel
    from ..models.multicontrolnet import MultiControlNetUnionModel
    from ..schedulers.base import Scheduler

__all__ = [
    "ControlledXL", "StableDiffusionXLAdapterPipeline", "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetPAGImg2ImgPipeline", "StableDiffusionXLControlNetPAGPipeline", "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLControlNetUnionImg2ImgPipeline", "StableDiffusionXLControlNetUnionInpaintPipeline",
    "StableDiffusionXLControlNetUnionPipeline", "WithControlNetUnion", "XLAdapterInputs",
]  # fmt: skip

_TEXT = "guidance_scale negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds"
_POOLED, _IP = "pooled_prompt_embeds negative_pooled_prompt_embeds", "ip_adapter_image ip_adapter_image_embeds"
_OUT = "output_type return_dict cross_attention_kwargs controlnet_conditioning_scale"
_WINDOW = "control_guidance_start control_guidance_end"
_SIZES = "original_size crops_coords_top_left target_size"
_NEGATIVE = "negative_original_size negative_crops_coords_top_left negative_target_size"
_SCORES = "aesthetic_score negative_aesthetic_score"
_END = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
_STEPS = "height width num_inference_steps timesteps sigmas denoising_end"


def _text2image(picture: str, guess: str = "guess_mode", mode: str = "") -> str:
    return f"prompt prompt_2 {picture} {_STEPS} {_TEXT} {_POOLED} {_IP} {_OUT} {guess} {_WINDOW} {mode} {_SIZES} {_NEGATIVE} {_END}"


def _image2image(mode: str = "") -> str:
    pictures = "prompt prompt_2 image control_image height width strength num_inference_steps"
    return f"{pictures} {_TEXT} {_POOLED} {_IP} {_OUT} guess_mode {_WINDOW} {mode} {_SIZES} {_NEGATIVE} {_SCORES} {_END}"


def _inpaint(mode: str = "") -> str:
    pictures = "prompt prompt_2 image mask_image control_image height width padding_mask_crop strength num_inference_steps"
    cut = f"{pictures} denoising_start denoising_end"
    return f"{cut} {_TEXT} {_IP} {_POOLED} {_OUT} guess_mode {_WINDOW} {mode} guidance_rescale {_SIZES} {_SCORES} {_END}"


@dataclass(kw_only=True)
class XLAdapterInputs(XLInputs):
    adapter_conditioning_factor: float = field("Share of the steps in which the adapter acts.", 1.0, minimum=0, maximum=1)


class WithControlNetUnion(WithControlNet):
    """A family beside whose denoiser Union ControlNets run."""

    controlnet: ControlNetUnionModel | MultiControlNetUnionModel
    scheduler: Scheduler
    control = ControlNetUnions("control_image")

    @classmethod
    def as_component(cls, name: str, value: Any) -> Any:
        if name != "controlnet" or not isinstance(value, (list, tuple)):
            return value
        from ..models.multicontrolnet import MultiControlNetUnionModel

        return MultiControlNetUnionModel(value)


class ControlledXL(StableDiffusionXL):
    """The components that come last in the constructors."""

    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None


class StableDiffusionXLControlNetPipeline(ControlledXL, WithControlNet, StableDiffusionXL):
    """Text to image, steered by a picture of edges, depth, poses, ... The result has its size."""

    task = Text2Image()
    control = ControlNets("image")
    arguments = {"text2image": _text2image("image")}


class StableDiffusionXLControlNetImg2ImgPipeline(ControlledXL, WithControlNet, StableDiffusionXLRefined):
    """Image to image, guided by text and steered by another picture."""

    task = XLImage2Image(strength=0.8)
    control = ControlNets("control_image")
    defaults = {"controlnet_conditioning_scale": 0.8}
    arguments = {"image2image": _image2image()}


class StableDiffusionXLControlNetInpaintPipeline(ControlledXL, WithControlNet, StableDiffusionXLRefined):
    """Inpainting, guided by text and steered by another picture."""

    task = XLInpaint(strength=0.9999)
    control = ControlNets("control_image")
    arguments = {"inpaint": _inpaint()}


class StableDiffusionXLControlNetPAGPipeline(ControlledXL, WithControlNet, StableDiffusionXL):
    """Text to image, steered by a picture, with perturbed-attention guidance."""

    task = Text2Image()
    control = ControlNets("image")
    terms = (PAG,)
    arguments = {"text2image": f"{_text2image('image', guess='')} pag_scale pag_adaptive_scale"}


class StableDiffusionXLControlNetPAGImg2ImgPipeline(ControlledXL, WithControlNet, StableDiffusionXLRefined):
    """Image to image, steered by another picture, with perturbed-attention guidance."""

    task = XLImage2Image(strength=0.8)
    control = ControlNets("control_image")
    terms = (PAG,)
    defaults = {"controlnet_conditioning_scale": 0.8}
    arguments = {"image2image": f"{_image2image()} pag_scale pag_adaptive_scale"}


class StableDiffusionXLControlNetUnionPipeline(ControlledXL, WithControlNetUnion, StableDiffusionXL):
    """Text to image, steered by pictures of several kinds."""

    task = Text2Image()
    arguments = {"text2image": _text2image("control_image", mode="control_mode")}


class StableDiffusionXLControlNetUnionImg2ImgPipeline(ControlledXL, WithControlNetUnion, StableDiffusionXLRefined):
    """Image to image, steered by pictures of several kinds."""

    task = XLImage2Image(strength=0.8)
    defaults = {"controlnet_conditioning_scale": 0.8}
    arguments = {"image2image": _image2image(mode="control_mode")}


class StableDiffusionXLControlNetUnionInpaintPipeline(ControlledXL, WithControlNetUnion, StableDiffusionXLRefined):
    """Inpainting, steered by pictures of several kinds."""

    task = XLInpaint(strength=0.9999)
    arguments = {"inpaint": _inpaint(mode="control_mode")}


class StableDiffusionXLAdapterPipeline(ControlledXL, WithAdapter, StableDiffusionXL):
    """Text to image, steered by a picture through a T2I-Adapter. The result has its size."""

    settings: ClassVar[Mapping[str, Any]] = {}
    add_watermarker = None  # this pipeline has never marked its pictures
    task = Text2Image()
    control = T2IAdapters("image")
    inputs = XLAdapterInputs
    arguments = {
        "text2image": f"prompt prompt_2 image {_STEPS} {_TEXT} {_POOLED} {_IP} output_type return_dict callback callback_steps "
        f"cross_attention_kwargs guidance_rescale {_SIZES} {_NEGATIVE} adapter_conditioning_scale adapter_conditioning_factor clip_skip"
    }
