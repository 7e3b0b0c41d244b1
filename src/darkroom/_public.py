"""The public names and where each is defined: one static table, read without importing torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["NAMES", "Later", "lazy"]

_BY_MODULE = {
    "auto": """AutoPipelineForImage2Image AutoPipelineForImage2Video AutoPipelineForInpainting AutoPipelineForText2Image
        AutoPipelineForText2Video AutoPipelineForVideo2Video pipelines""",
    "core.guidance": """APG APGMix AutoGuidance CFG CFGZeroStar DynamicThresholding FDG InstructCFG MagnitudeAware NAG PAG PromptFusion
        PromptPart SAG SEG SLG TCFG TokenMerging""",
    "core.tasks": "Depth2Image Edit Image2Image Inpaint LatentUpscale Panorama Text2Image Text2Video Upscale Variation Video2Video",
    "errors": "AdapterError CheckpointError ConfigError DarkroomError InputError MissingDependencyError",
    "families.animatediff": """AnimateDiffControlNetPipeline AnimateDiffPAGPipeline AnimateDiffPipeline AnimateDiffSDXLPipeline
        AnimateDiffSparseControlNetPipeline AnimateDiffVideoToVideoControlNetPipeline AnimateDiffVideoToVideoPipeline""",
    "families.class_conditional": "ConsistencyModelPipeline DiTPipeline",
    "families.controlled": """StableDiffusionAdapterPipeline StableDiffusionControlNetImg2ImgPipeline
        StableDiffusionControlNetInpaintPipeline StableDiffusionControlNetPAGInpaintPipeline StableDiffusionControlNetPAGPipeline
        StableDiffusionControlNetPipeline""",
    "families.controlled_xl": """StableDiffusionXLAdapterPipeline StableDiffusionXLControlNetImg2ImgPipeline
        StableDiffusionXLControlNetInpaintPipeline StableDiffusionXLControlNetPAGImg2ImgPipeline StableDiffusionXLControlNetPAGPipeline
        StableDiffusionXLControlNetPipeline StableDiffusionXLControlNetUnionImg2ImgPipeline
        StableDiffusionXLControlNetUnionInpaintPipeline StableDiffusionXLControlNetUnionPipeline""",
    "families.latent_diffusion": "LDMPipeline LDMSuperResolutionPipeline LDMTextToImagePipeline",
    "families.stable_diffusion": """StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline StableDiffusionPAGImg2ImgPipeline
        StableDiffusionPAGInpaintPipeline StableDiffusionPAGPipeline StableDiffusionPipeline StableDiffusionSAGPipeline""",
    "families.stable_diffusion_variants": """LatentConsistencyModelImg2ImgPipeline LatentConsistencyModelPipeline
        StableDiffusionDepth2ImgPipeline StableDiffusionImageVariationPipeline StableDiffusionInstructPix2PixPipeline
        StableDiffusionLatentUpscalePipeline StableDiffusionPanoramaPipeline StableDiffusionUpscalePipeline""",
    "families.stable_diffusion_xl": """StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline
        StableDiffusionXLInstructPix2PixPipeline StableDiffusionXLPAGImg2ImgPipeline StableDiffusionXLPAGInpaintPipeline
        StableDiffusionXLPAGPipeline StableDiffusionXLPipeline""",
    "families.stable_video_diffusion": "StableVideoDiffusionPipeline",
    "families.text_to_video": """PIAPipeline TextToVideoSDPipeline TextToVideoZeroPipeline TextToVideoZeroSDXLPipeline
        VideoToVideoSDPipeline""",
    "families.unconditional": "DDIMPipeline DDPMPipeline RePaintPipeline",
    "family": "Family ImagePipelineOutput",
    "image_processor": "VaeImageProcessor VideoProcessor",
    "models.auto": "AutoModel",
    "models.autoencoder_kl": "AutoencoderKL",
    "models.autoencoder_kl_temporal_decoder": "AutoencoderKLTemporalDecoder",
    "models.controlnet": "ControlNetModel",
    "models.controlnet_sparsectrl": "SparseControlNetModel",
    "models.controlnet_union": "ControlNetUnionModel",
    "models.dit_transformer_2d": "DiTTransformer2DModel Transformer2DModel",
    "models.motion_adapter": "MotionAdapter",
    "models.multicontrolnet": "MultiControlNetModel MultiControlNetUnionModel",
    "models.t2i_adapter": "MultiAdapter T2IAdapter",
    "models.unet_2d": "UNet2DModel",
    "models.unet_2d_condition": "UNet2DConditionModel",
    "models.unet_3d_condition": "UNet3DConditionModel",
    "models.unet_motion_model": "UNetMotionModel",
    "models.unet_spatio_temporal_condition": "UNetSpatioTemporalConditionModel",
    "models.vq_model": "VQModel",
    "pipeline": "DiffusionPipeline",
    "runtime.fork": "fork",
    "runtime.ip_adapter": "IPAdapterMaskProcessor",
    "schedulers.ddim": "DDIMInverseScheduler DDIMParallelScheduler DDIMScheduler",
    "schedulers.ddpm": "DDPMParallelScheduler DDPMScheduler",
    "schedulers.deis_multistep": "DEISMultistepScheduler",
    "schedulers.dpmsolver_multistep": "DPMSolverMultistepInverseScheduler DPMSolverMultistepScheduler",
    "schedulers.dpmsolver_singlestep": "DPMSolverSinglestepScheduler",
    "schedulers.edm": "EDMEulerScheduler",
    "schedulers.edm_dpmsolver": "CosineDPMSolverMultistepScheduler EDMDPMSolverMultistepScheduler",
    "schedulers.euler_discrete": "EulerAncestralDiscreteScheduler EulerDiscreteScheduler",
    "schedulers.flow_match_euler_discrete": "FlowMatchEulerDiscreteScheduler FlowMatchHeunDiscreteScheduler FlowMatchLCMScheduler",
    "schedulers.helios": "HeliosDMDScheduler HeliosScheduler",
    "schedulers.ipndm": "IPNDMScheduler",
    "schedulers.lcm": "LCMScheduler",
    "schedulers.lms_discrete": "LMSDiscreteScheduler",
    "schedulers.pndm": "PNDMScheduler",
    "schedulers.res_multistep": "ERSDEScheduler RESMultistepScheduler",
    "schedulers.special_continuous": """CMStochasticIterativeScheduler ConsistencyDecoderScheduler KarrasVeScheduler SCMScheduler
        ScoreSdeVeScheduler ScoreSdeVpScheduler""",
    "schedulers.special_discrete": "CogVideoXDDIMScheduler CogVideoXDPMScheduler DDPMWuerstchenScheduler RePaintScheduler UnCLIPScheduler",
    "schedulers.special_flow": """FlowMapEulerDiscreteScheduler LTXEulerAncestralRFScheduler MiniMaxH3Scheduler PiflowScheduler
        RFD4ProteinaScheduler""",
    "schedulers.tcd": "TCDScheduler",
    "schedulers.tokens": """AmusedScheduler BlockRefinementScheduler BlockRefinementSchedulerOutput DiscreteDDIMScheduler
        DiscreteDDIMSchedulerOutput EntropyBoundScheduler EntropyBoundSchedulerOutput VQDiffusionScheduler""",
    "schedulers.two_stage": "DPMSolverSDEScheduler HeunDiscreteScheduler KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler",
    "schedulers.unipc_multistep": "SASolverScheduler UniPCMultistepScheduler",
    "utils": "load_image make_image_grid",
    "video": "export_to_gif export_to_video load_video",
}

NAMES: dict[str, str] = {name: module for module, names in _BY_MODULE.items() for name in names.split()}


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported on first use: name -> module inside the package."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted(homes)


class Later(ModuleType):
    """A module, by its full name, that is imported when something of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)
