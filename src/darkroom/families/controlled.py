"""Stable Diffusion with a control: ControlNets and T2I-Adapters. What they do is in `core.control`, for every task and guidance."""

from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from ..core.control import ControlNets, T2IAdapters
from ..core.guidance import PAG
from ..core.tasks import Inpaint, Text2Image
from ..core.tasks.image2image import GoOn
from ..family import Family
from .stable_diffusion import StableDiffusion, StableDiffusionPipelineOutput

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    from ..models.controlnet import ControlNetModel
    from ..models.multicontrolnet import MultiControlNetModel
    from ..models.safety_checker import StableDiffusionSafetyChecker
    from ..models.t2i_adapter import MultiAdapter, T2IAdapter
    from ..schedulers.base import Scheduler

__all__ = [
    "StableDiffusionAdapterPipeline", "StableDiffusionAdapterPipelineOutput", "StableDiffusionControlNet",
    "StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionControlNetInpaintPipeline", "StableDiffusionControlNetPAGInpaintPipeline",
    "StableDiffusionControlNetPAGPipeline", "StableDiffusionControlNetPipeline", "WithAdapter", "WithControlNet",
]  # fmt: skip

_TEXT = "guidance_scale negative_prompt num_images_per_prompt eta generator latents prompt_embeds negative_prompt_embeds"
_OUTPUT = "ip_adapter_image ip_adapter_image_embeds output_type return_dict cross_attention_kwargs controlnet_conditioning_scale"
_WINDOW = "control_guidance_start control_guidance_end clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
_INPAINT = "prompt image mask_image control_image height width padding_mask_crop strength num_inference_steps"


@dataclass
class StableDiffusionAdapterPipelineOutput(StableDiffusionPipelineOutput):
    """The same fields under the name that this pipeline's programs know."""


class WithControlNet(Family):
    """A family beside whose denoiser one or several ControlNets run (Zhang et al. 2023). A list of them becomes one component."""

    controlnet: ControlNetModel | MultiControlNetModel
    scheduler: Scheduler
    tasks = {}  # a picture is for the control, it does not change the task

    @classmethod
    def as_component(cls, name: str, value: Any) -> Any:
        if name != "controlnet" or not isinstance(value, (list, tuple)):
            return value
        from ..models.multicontrolnet import MultiControlNetModel

        return MultiControlNetModel(value)


class WithAdapter(Family):
    """A family into whose denoiser one or several T2I-Adapters reach (Mou et al. 2023). A list of them becomes one component."""

    adapter: T2IAdapter | MultiAdapter
    scheduler: Scheduler
    tasks = {}
    control = T2IAdapters("image")

    @classmethod
    def as_component(cls, name: str, value: Any) -> Any:
        if name != "adapter" or not isinstance(value, (list, tuple)):
            return value
        from ..models.t2i_adapter import MultiAdapter

        return MultiAdapter(value)


class StableDiffusionControlNet(WithControlNet, StableDiffusion):
    """Stable Diffusion with ControlNets."""

    safety_checker: StableDiffusionSafetyChecker | None
    feature_extractor: CLIPImageProcessor | None
    image_encoder: CLIPVisionModelWithProjection | None
    arguments = {
        "text2image": f"prompt image height width num_inference_steps timesteps sigmas {_TEXT} {_OUTPUT} guess_mode {_WINDOW}",
        "image2image": f"prompt image control_image height width strength num_inference_steps {_TEXT} {_OUTPUT} guess_mode {_WINDOW}",
        "inpaint": f"{_INPAINT} {_TEXT} {_OUTPUT} guess_mode {_WINDOW}",
    }


class StableDiffusionControlNetPipeline(StableDiffusionControlNet):
    """Text to image, steered by a picture of edges, depth, poses, ... The result has its size."""

    task = Text2Image()
    control = ControlNets("image")


class StableDiffusionControlNetImg2ImgPipeline(StableDiffusionControlNet):
    """Image to image, guided by text and steered by another picture."""

    task = GoOn(strength=0.8)
    control = ControlNets("control_image")
    defaults = {"controlnet_conditioning_scale": 0.8}


class StableDiffusionControlNetInpaintPipeline(StableDiffusionControlNet):
    """Inpainting, guided by text and steered by another picture."""

    task = Inpaint(strength=1.0)
    control = ControlNets("control_image")
    defaults = {"controlnet_conditioning_scale": 0.5}


class StableDiffusionControlNetPAGPipeline(StableDiffusionControlNet):
    """Text to image, steered by a picture, with perturbed-attention guidance."""

    task = Text2Image()
    control = ControlNets("image")
    terms = (PAG,)


class StableDiffusionControlNetPAGInpaintPipeline(StableDiffusionControlNet):
    """Inpainting, steered by another picture, with perturbed-attention guidance."""

    task = Inpaint(strength=1.0)
    control = ControlNets("control_image")
    terms = (PAG,)
    defaults = {"controlnet_conditioning_scale": 0.5}
    arguments = {"inpaint": f"{_INPAINT} {_TEXT} {_OUTPUT} {_WINDOW} pag_scale pag_adaptive_scale"}


class StableDiffusionAdapterPipeline(WithAdapter, StableDiffusion):
    """Text to image, steered by a picture through a T2I-Adapter. The result has its size."""

    safety_checker: StableDiffusionSafetyChecker | None
    feature_extractor: CLIPImageProcessor | None
    image_encoder: None = None  # no component here
    task = Text2Image()
    arguments = {
        "text2image": f"prompt image height width num_inference_steps timesteps sigmas {_TEXT} output_type return_dict callback "
        "callback_steps cross_attention_kwargs adapter_conditioning_scale clip_skip"
    }
    Output = StableDiffusionAdapterPipelineOutput
