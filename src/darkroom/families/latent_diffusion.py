"""The first latent diffusion models, before Stable Diffusion (Rombach et al. 2022)."""

from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
import torch
from torch import Tensor
from ..core.codec import ScaledCodec
from ..core.guidance import CFG
from ..core.inputs import REQUIRED, field
from ..core.media import image_count, pixels_of
from ..core.tasks import Text2Image
from ..core.tasks.text2image import repeat_to
from ..core.types import Branch, Conditioning, Run
from ..family import CallInputs, Family
from .clip import encode_text, prompt_list
from .unconditional import BatchInputs, Unconditional

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer
    from ..models.autoencoder_kl import AutoencoderKL
    from ..models.ldm_bert import LDMBertModel
    from ..models.unet_2d import UNet2DModel
    from ..models.unet_2d_condition import UNet2DConditionModel
    from ..models.vq_model import VQModel
    from ..schedulers.base import Scheduler

__all__ = ["LDMPipeline", "LDMSuperResolutionPipeline", "LDMTextToImagePipeline"]

TOKENS = 77  # of every prompt


class Vectors(ScaledCodec):
    """Latents that an autoencoder with a codebook decodes: there are as many channels as the denoiser gives."""

    def channels(self, pipe: Any) -> int:
        return pipe.denoiser.config.out_channels


class Unscaled(Vectors):
    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        return pipe.vqvae.decode(latents).sample


@dataclass(kw_only=True)
class EtaInputs(BatchInputs):
    eta: float = field("Noise added in DDIM steps: 0 is deterministic, 1 is DDPM.", 0.0, minimum=0, maximum=1)


class LDM(Family):
    """A UNet over the latents of an autoencoder, most often one with a codebook."""

    codec = Vectors("vqvae")
    inputs = EtaInputs
    denoiser = Unconditional.denoiser
    denoise_once = Unconditional.denoise_once

    def step_options(self, run: Run) -> dict[str, Any]:
        return {"eta": run.inputs.eta, "generator": run.inputs.generator}


class LDMPipeline(LDM):
    """Unconditional pictures, such as faces of 256 x 256 pixels."""

    vqvae: VQModel
    unet: UNet2DModel
    scheduler: Scheduler
    task = Text2Image()
    arguments = {"text2image": "batch_size generator eta num_inference_steps output_type return_dict"}


@dataclass(kw_only=True)
class UpscaleInputs(EtaInputs):
    image: Any = field("The small picture: PIL or numpy (H, W, C) in [0, 1], or a tensor (B, C, H, W) in [-1, 1].")
    latents: Tensor | None = field("Noise to start from, (B, C, H, W) in units of standard deviation.")


class Upscale(Text2Image):
    """Start from noise of the size of the small picture, which the denoiser sees as further channels. Random numbers: the noise."""

    name = "upscale"
    pictures = ("image",)
    inputs = UpscaleInputs

    def start(self, pipe: Any, run: Run) -> None:
        image = pixels_of(run.inputs.image, 32).to(pipe.device, pipe.run_dtype(run))
        run.timesteps = pipe.set_timesteps(run)
        run.x = self.noise(pipe, run, tuple(image.shape[-2:])) * run.scheduler.init_noise_sigma
        run.tensors["image"] = repeat_to(image, run.rows, "image")

    def model_input(self, x: Tensor, run: Run) -> Tensor:
        return torch.cat([x, run.tensors["image"]], 1)  # (B, 2C, H, W)


class LDMSuperResolutionPipeline(LDM):
    """Pictures at four times the resolution."""

    vqvae: VQModel
    unet: UNet2DModel
    scheduler: Scheduler
    codec = Unscaled("vqvae")
    task = Upscale()
    defaults = {"num_inference_steps": 100}
    arguments = {"upscale": "image batch_size num_inference_steps eta generator output_type return_dict"}

    def count(self, inputs: Any) -> int:
        return max(inputs.batch_size, image_count(inputs.image))


@dataclass(kw_only=True)
class LDMTextInputs(CallInputs):
    prompt: str | list[str] = field("What to picture; a list makes pictures for each.", REQUIRED)
    guidance_scale: float = field("Weight of the prompt; 1 switches guidance off.", 1.0)
    eta: float = field("Noise added in DDIM steps: 0 is deterministic, 1 is DDPM.", 0.0, minimum=0, maximum=1)


class BothSides(CFG):
    """CFG at scales below 1, too, which give the prompt less than its own weight."""

    @property
    def needs_negative(self) -> bool:
        return self.scale != 1


class LDMTextToImagePipeline(LDM):
    """Text to image, by a text encoder that was trained along with the denoiser."""

    vqvae: VQModel | AutoencoderKL
    bert: LDMBertModel
    tokenizer: PreTrainedTokenizer
    unet: UNet2DModel | UNet2DConditionModel
    scheduler: Scheduler
    task = Text2Image()
    inputs = LDMTextInputs
    size_step = 8
    arguments = {"text2image": "prompt height width num_inference_steps guidance_scale eta generator latents output_type return_dict"}

    def count(self, inputs: Any) -> int:
        return len(prompt_list(inputs.prompt, "prompt"))

    def guidance(self, inputs: Any) -> Any:
        return BothSides(inputs.guidance_scale)

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        def branch(prompts: list[str]) -> Branch:
            context = encode_text(self.tokenizer, self.bert, prompts, device=self.device, length=TOKENS)
            return Branch({"context": context}, self.unet.attend)

        prompts = prompt_list(inputs.prompt, "prompt")
        return Conditioning(branch(prompts), branch([""] * len(prompts)) if needs_negative else None)

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        return self.unet(x, t, branch.cond["context"], attend=branch.attend).sample
