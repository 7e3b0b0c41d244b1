"""The public names and where each is defined: one static table, read without importing torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["NAMES", "lazy"]

_BY_MODULE = {
    "core.guidance": "CFG InstructCFG PAG SAG",
    "core.tasks": "Depth2Image Edit Image2Image Inpaint LatentUpscale Panorama Text2Image Upscale Variation",
    "errors": "CheckpointError ConfigError DarkroomError InputError MissingDependencyError",
    "families.stable_diffusion": """StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline StableDiffusionPAGImg2ImgPipeline
        StableDiffusionPAGInpaintPipeline StableDiffusionPAGPipeline StableDiffusionPipeline StableDiffusionSAGPipeline""",
    "families.stable_diffusion_variants": """LatentConsistencyModelImg2ImgPipeline LatentConsistencyModelPipeline
        StableDiffusionDepth2ImgPipeline StableDiffusionImageVariationPipeline StableDiffusionInstructPix2PixPipeline
        StableDiffusionLatentUpscalePipeline StableDiffusionPanoramaPipeline StableDiffusionUpscalePipeline""",
    "families.unconditional": "DDIMPipeline DDPMPipeline",
    "family": "Family ImagePipelineOutput",
    "models.auto": "AutoModel",
    "models.autoencoder_kl": "AutoencoderKL",
    "models.unet_2d": "UNet2DModel",
    "models.unet_2d_condition": "UNet2DConditionModel",
    "pipeline": "DiffusionPipeline",
    "runtime.fork": "fork",
    "schedulers.amused": "AmusedScheduler",
    "schedulers.block_refinement": "BlockRefinementScheduler",
    "schedulers.consistency_decoder": "ConsistencyDecoderScheduler",
    "schedulers.consistency_models": "CMStochasticIterativeScheduler",
    "schedulers.cosine_dpmsolver_multistep": "CosineDPMSolverMultistepScheduler",
    "schedulers.ddim": "DDIMInverseScheduler DDIMParallelScheduler DDIMScheduler",
    "schedulers.ddim_cogvideox": "CogVideoXDDIMScheduler CogVideoXDPMScheduler",
    "schedulers.ddpm": "DDPMParallelScheduler DDPMScheduler",
    "schedulers.ddpm_wuerstchen": "DDPMWuerstchenScheduler",
    "schedulers.deis_multistep": "DEISMultistepScheduler",
    "schedulers.discrete_ddim": "DiscreteDDIMScheduler",
    "schedulers.dpmsolver_multistep": "DPMSolverMultistepScheduler",
    "schedulers.dpmsolver_multistep_inverse": "DPMSolverMultistepInverseScheduler",
    "schedulers.dpmsolver_sde": "DPMSolverSDEScheduler",
    "schedulers.dpmsolver_singlestep": "DPMSolverSinglestepScheduler",
    "schedulers.edm_dpmsolver_multistep": "EDMDPMSolverMultistepScheduler",
    "schedulers.edm_euler": "EDMEulerScheduler",
    "schedulers.entropy_bound": "EntropyBoundScheduler",
    "schedulers.er_sde": "ERSDEScheduler",
    "schedulers.euler_ancestral_discrete": "EulerAncestralDiscreteScheduler",
    "schedulers.euler_discrete": "EulerDiscreteScheduler",
    "schedulers.flow_map_euler_discrete": "FlowMapEulerDiscreteScheduler",
    "schedulers.flow_match_euler_discrete": "FlowMatchEulerDiscreteScheduler",
    "schedulers.flow_match_heun_discrete": "FlowMatchHeunDiscreteScheduler",
    "schedulers.flow_match_lcm": "FlowMatchLCMScheduler",
    "schedulers.helios": "HeliosScheduler",
    "schedulers.helios_dmd": "HeliosDMDScheduler",
    "schedulers.heun_discrete": "HeunDiscreteScheduler",
    "schedulers.ipndm": "IPNDMScheduler",
    "schedulers.k_dpm_2_ancestral_discrete": "KDPM2AncestralDiscreteScheduler",
    "schedulers.k_dpm_2_discrete": "KDPM2DiscreteScheduler",
    "schedulers.karras_ve": "KarrasVeScheduler",
    "schedulers.lcm": "LCMScheduler",
    "schedulers.lms_discrete": "LMSDiscreteScheduler",
    "schedulers.ltx_euler_ancestral_rf": "LTXEulerAncestralRFScheduler",
    "schedulers.minimax_h3": "MiniMaxH3Scheduler",
    "schedulers.piflow": "PiflowScheduler",
    "schedulers.pndm": "PNDMScheduler",
    "schedulers.repaint": "RePaintScheduler",
    "schedulers.res_multistep": "RESMultistepScheduler",
    "schedulers.rfd4_proteina": "RFD4ProteinaScheduler",
    "schedulers.sasolver": "SASolverScheduler",
    "schedulers.scm": "SCMScheduler",
    "schedulers.sde_ve": "ScoreSdeVeScheduler",
    "schedulers.sde_vp": "ScoreSdeVpScheduler",
    "schedulers.tcd": "TCDScheduler",
    "schedulers.unclip": "UnCLIPScheduler",
    "schedulers.unipc_multistep": "UniPCMultistepScheduler",
    "schedulers.vq_diffusion": "VQDiffusionScheduler",
    "utils": "load_image make_image_grid",
}

NAMES: dict[str, str] = {name: module for module, names in _BY_MODULE.items() for name in names.split()}


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported on first use: name -> module inside the package."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted(homes)
