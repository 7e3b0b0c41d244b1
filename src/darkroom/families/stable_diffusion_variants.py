"""Neighbours of Stable Diffusion: the same networks, with other things to start from."""

from __future__ import annotations
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
import torch
from torch import Tensor
from ..core.inputs import field
from ..core.media import image_to_tensor, tensor_to_images
from ..core.tasks import Depth2Image, Edit, LatentUpscale, Panorama, Text2Image, Upscale, Variation
from ..core.tasks.conditioned import seen_latents
from ..core.tasks.image2image import GoOn
from ..core.tasks.views import Box, boxes_of, by_views
from ..core.types import Branch, Conditioning, Run
from ..errors import InputError
from ..family import CallInputs
from .clip import prompt_list, tokenize
from .stable_diffusion import Checked, Edited, LatentText, LatentUNet, PromptInputs, StableDiffusion, StableDiffusionPipelineOutput
from .stable_diffusion_xl import UpcastCodec

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection, DPTForDepthEstimation, DPTImageProcessor
    from ..models.autoencoder_kl import AutoencoderKL
    from ..models.unet_2d_condition import UNet2DConditionModel
    from ..schedulers.base import Scheduler
    from ..schedulers.ddpm import DDPMScheduler

__all__ = [
    "LatentConsistencyModelImg2ImgPipeline", "LatentConsistencyModelPipeline", "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionImageVariationPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionLatentUpscalePipeline",
    "StableDiffusionPanoramaPipeline", "StableDiffusionUpscalePipeline",
]  # fmt: skip

_END = "callback_on_step_end callback_on_step_end_tensor_inputs"
_EMBEDS = "prompt_embeds negative_prompt_embeds"
_OUT = "output_type return_dict"
_ADAPTER = "ip_adapter_image ip_adapter_image_embeds"


class StableDiffusionDepth2ImgPipeline(LatentText):
    """Image to image that keeps the depth of the picture, guided by text (Stable Diffusion 2.0)."""

    depth_estimator: DPTForDepthEstimation
    feature_extractor: DPTImageProcessor
    family = "stable-diffusion-depth2img"
    task = Depth2Image(strength=0.8)
    size_step = 1
    arguments = {
        "depth2image": "prompt image depth_map strength num_inference_steps guidance_scale negative_prompt num_images_per_prompt eta "
        f"generator {_EMBEDS} {_OUT} cross_attention_kwargs clip_skip {_END}"
    }

    @torch.no_grad()
    def estimate_depth(self, image: Any) -> Tensor:
        """The inverse depth of pictures, (b, h, w) at the estimator's own size."""
        single = not isinstance(image, (list, tuple)) and getattr(image, "ndim", 3) == 3
        seen = self.feature_extractor(images=[image] if single else list(image), return_tensors="pt").pixel_values
        network = self.depth_estimator
        # its batch norms do not compute in half precision
        with torch.autocast(self.device.type, network.dtype, enabled=network.dtype != torch.float32):
            return network(seen.to(self.device, network.dtype)).predicted_depth

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        """Callbacks see the depth as they see the prompts: once for each branch."""
        found = super().named_tensors(run)
        return {**found, "depth_mask": found["depth_mask"].repeat(1 if run.cond.negative is None else 2, 1, 1, 1)}

    def replace_tensors(self, run: Run, tensors: Any) -> None:
        own = {"depth_mask": tensors["depth_mask"][-run.rows :]} if "depth_mask" in tensors else {}
        super().replace_tensors(run, {**tensors, **own})


class StableDiffusionUpscalePipeline(LatentText):
    """A picture at four times its size, guided by text (Stable Diffusion 2.0). Its latents have the size of the small picture."""

    low_res_scheduler: DDPMScheduler
    safety_checker: Any | None
    feature_extractor: CLIPImageProcessor | None
    watermarker: Any | None
    options = {"max_noise_level": 350}
    family = "stable-diffusion-upscale"
    codec = UpcastCodec("vae", 0.08333)  # first checkpoints lack it in their configurations
    task = Upscale()
    size_step = 1
    defaults = {"num_inference_steps": 75, "guidance_scale": 9.0}
    arguments = {
        "upscale": "prompt image num_inference_steps guidance_scale noise_level negative_prompt num_images_per_prompt eta generator "
        f"latents {_EMBEDS} {_OUT} callback callback_steps cross_attention_kwargs clip_skip"
    }
    Output = StableDiffusionPipelineOutput

    def check(self, inputs: Any) -> None:
        super().check(inputs)
        if inputs.noise_level > self.max_noise_level:
            expected = f"at most {self.max_noise_level}, max_noise_level"
            raise InputError("More noise than the denoiser knows.", where="noise_level", got=inputs.noise_level, expected=expected)

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        cond = super().encode(inputs, needs_negative)
        level = torch.full((self.count(inputs),), inputs.noise_level, device=self.device)
        return Conditioning(*(b and b.with_cond(class_labels=level) for b in (cond.positive, cond.negative)))

    def conditions(self, branch: Branch) -> dict[str, Any]:
        return {**super().conditions(branch), "class_labels": branch.cond["class_labels"]}

    def decode(self, run: Run) -> dict[str, Any]:
        return {"images": None, "nsfw_content_detected": None} | super().decode(run)

    def screened(self, pixels: Tensor) -> tuple[Tensor, list[bool] | None]:
        """By this checkpoint's own checker, an older kind: it takes and gives [-1, 1], and blackens to 0. An attached one comes after it."""
        if self.safety_checker is None or self.feature_extractor is None:
            return super().screened(pixels)
        seen = self.feature_extractor(tensor_to_images(pixels), return_tensors="pt").pixel_values.to(pixels)
        checked, flagged, _ = self.safety_checker(images=pixels, clip_input=seen)
        pixels, also = super().screened(torch.stack([p * 2 - 1 if bad else p for p, bad in zip(checked, flagged)]))
        return pixels, [a or b for a, b in zip(flagged, also or flagged)]

    def to_images(self, pixels: Tensor, run: Run) -> Any:
        images = super().to_images(pixels, run)
        marked = run.inputs.output_type == "pil" and self.watermarker is not None
        return self.watermarker.apply_watermark(images) if marked else images


@dataclass(kw_only=True)
class PooledInputs(PromptInputs):
    pooled_prompt_embeds: Tensor | None = field("Pooled embeddings of the prompts, (B, d), which go with `prompt_embeds`.")
    negative_pooled_prompt_embeds: Tensor | None = field("Pooled embeddings of the negative prompts.")


class StableDiffusionLatentUpscalePipeline(LatentText):
    """Latents, or a picture, at twice the size (Katherine Crowson's upscaler). The network is preconditioned as Karras et al. 2022 do it."""

    family = "stable-diffusion-latent-upscale"
    guidance_distilled = False  # type: ignore[assignment]  # what such networks are told beside the timestep is no scale
    inputs = PooledInputs
    task = LatentUpscale()
    size_step = 1
    defaults = {"num_inference_steps": 75, "guidance_scale": 9.0}
    arguments = {
        "upscale": f"prompt image num_inference_steps guidance_scale negative_prompt generator latents {_EMBEDS} pooled_prompt_embeds "
        f"negative_pooled_prompt_embeds {_OUT} callback callback_steps"
    }

    def check(self, inputs: Any) -> None:
        super().check(inputs)
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            pooled = name.replace("prompt", "pooled_prompt")
            if getattr(inputs, name) is not None and getattr(inputs, pooled) is None:
                raise InputError("Embeddings without their pooled form.", where=pooled, expected=f"those of {name}")
        for name, only in (("clip_skip", None), ("prompt_syntax", "plain")):
            if (got := getattr(inputs, name)) != only:
                raise InputError("This upscaler reads prompts in one way.", where=name, got=got, expected=only)

    def _states(self, prompts: list[str], device: Any) -> tuple[Tensor, Tensor]:
        """The encoder's last states before its final norm, (b, M, d), and the pooled ones, (b, d)."""
        out = self.text_encoder(tokenize(self.tokenizer, prompts).input_ids.to(device), output_hidden_states=True)
        return out.hidden_states[-1], out.pooler_output

    @torch.no_grad()
    def encode_prompt(  # type: ignore[override]
        self, prompt: str | list[str] | None, device: torch.device | str | None = None, do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None, prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None, negative_pooled_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
        """Text states (b, M, d) of the prompts and of the negative prompts (None without guidance), and the pooled ones (b, d) of both."""
        device = device or self.device
        if prompt_embeds is None or pooled_prompt_embeds is None:
            prompt_embeds, pooled_prompt_embeds = self._states(prompt_list(prompt, "prompt"), device)
        if do_classifier_free_guidance and (negative_prompt_embeds is None or negative_pooled_prompt_embeds is None):
            texts = prompt_list("" if negative_prompt is None else negative_prompt, "negative_prompt")
            texts = texts * prompt_embeds.shape[0] if len(texts) == 1 else texts
            negative_prompt_embeds, negative_pooled_prompt_embeds = self._states(texts, device)
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        names = "negative_prompt prompt_embeds negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds"
        rows = self.count(inputs) // inputs.num_images_per_prompt
        prompt = inputs.prompt if inputs.guidance_scale != 0 or inputs.prompt is None else [""] * rows  # no text at scale 0
        given = {name: getattr(inputs, name) for name in names.split()}
        *states, pooled, other = self.encode_prompt(prompt, do_classifier_free_guidance=needs_negative, **given)

        def branch(context: Tensor, pooled: Tensor) -> Branch:
            context, pooled = (c.to(self.device, self.unet.dtype) for c in (context, pooled))
            level = pooled.new_tensor([1.0] * 64 + [0.0] * 64).expand(pooled.shape[0], -1)  # cosine and sine of no noise
            cond = {"context": context, "timestep_cond": torch.cat([level, pooled], 1)}  # (b, M, d) and (b, 128 + d)
            return Branch({n: c.repeat_interleave(inputs.num_images_per_prompt, 0) for n, c in cond.items()}, self.unet.attend)

        return Conditioning(branch(states[0], pooled), branch(states[1], other) if needs_negative else None)

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        """x0 = c_skip x + c_out F(c_in x; ln(sigma) / 4) (Karras et al. 2022, eq. 7 and table 1); the network's last channel is not used."""
        sigma = run.scheduler.sigmas[run.index].to(x)
        c_in = run.scheduler.scale_model_input(sigma, t) / sigma
        pred = super().denoise_once(x, sigma.log() * 0.25, branch, run)[:, :-1]
        return x[:, : pred.shape[1]] / c_in / (sigma**2 + 1) + sigma * c_in * pred


@dataclass(kw_only=True)
class VariationInputs(CallInputs):
    guidance_scale: float = field("Weight of the picture; 1 or less switches guidance off.", 7.5)
    num_images_per_prompt: int = field("Results for each picture.", 1, minimum=1, integer=True)
    eta: float = field("Noise added in DDIM steps: 0 is deterministic, 1 is DDPM.", 0.0, minimum=0, maximum=1)


class PicturedUNet(LatentUNet):
    """Conditioned on a CLIP embedding of a picture, one token."""

    vae: AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection
    unet: UNet2DConditionModel
    scheduler: Scheduler
    inputs = VariationInputs

    def count(self, inputs: Any) -> int:
        image = inputs.image
        many = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
        return (len(image) if many else 1) * inputs.num_images_per_prompt

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        image, network = inputs.image, self.image_encoder
        if not isinstance(image, Tensor):
            image = self.feature_extractor(images=image, return_tensors="pt").pixel_values
        image = image if image.ndim == 4 else image[None]
        context = network(image.to(self.device, network.dtype)).image_embeds[:, None]  # (b, 1, d)
        context = context.repeat_interleave(inputs.num_images_per_prompt, 0)
        branches = [Branch({"context": c}, self.unet.attend) for c in (context, torch.zeros_like(context))]
        return Conditioning(branches[0], branches[1] if needs_negative else None)


class StableDiffusionImageVariationPipeline(Checked, PicturedUNet):
    """Variations of a picture (Lambda Labs): Stable Diffusion that was tuned to CLIP embeddings of pictures. A tensor is what the encoder takes."""

    feature_extractor: CLIPImageProcessor
    family = "stable-diffusion-image-variation"
    task = Variation()
    arguments = {
        "variation": "image height width num_inference_steps guidance_scale num_images_per_prompt eta generator latents "
        f"{_OUT} callback callback_steps"
    }


class StableDiffusionInstructPix2PixPipeline(Edited, StableDiffusion):
    """Edit a picture as the text says."""

    family = "stable-diffusion-instruct-pix2pix"
    task = Edit()
    tasks = {}
    size_step = 1
    callback_tensors = ("latents", "prompt_embeds", "image_latents")
    defaults = {"num_inference_steps": 100}
    arguments = {
        "edit": "prompt image num_inference_steps guidance_scale image_guidance_scale negative_prompt num_images_per_prompt eta generator "
        f"latents {_EMBEDS} {_ADAPTER} {_OUT} {_END} cross_attention_kwargs"
    }

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        cond = super().encode(inputs, needs_negative)
        factor, channels = self.codec.factor(self), self.codec.channels(self)
        image = image_to_tensor(inputs.image, height=inputs.height, width=inputs.width, factor=factor, latent_channels=channels)
        context = cond.positive.cond["context"]
        image = seen_latents(self, image, len(context), context.dtype)
        return Conditioning(*(b and b.with_cond(image_latents=image) for b in (cond.positive, cond.negative)))

    def _triple(self, run: Run, name: str) -> Tensor:
        """A condition as callbacks see it: of text and picture, of the picture alone, of neither."""
        positive, negative = run.cond.positive.cond[name], run.cond.negative
        if negative is None:
            return positive
        last = negative.cond[name]
        return torch.cat([positive, last, torch.zeros_like(last) if name == "image_latents" else last])

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        own = {"prompt_embeds": self._triple(run, "context"), "image_latents": self._triple(run, "image_latents")}
        return {"latents": run.x, **own}

    def replace_tensors(self, run: Run, tensors: Any) -> None:
        run.x = tensors.get("latents", run.x)
        for name, own in (("prompt_embeds", "context"), ("image_latents", "image_latents")):
            if name in tensors:
                positive, *other = tensors[name].split(run.rows)
                negative = run.cond.negative and run.cond.negative.with_cond(**{own: (other or [run.cond.negative.cond[own]])[0]})
                run.cond = replace(run.cond, positive=run.cond.positive.with_cond(**{own: positive}), negative=negative)


@dataclass(kw_only=True)
class ConsistencyInputs(PromptInputs):
    original_inference_steps: int | None = field("Steps that the model was distilled on.", None, minimum=1, integer=True)


def takes_strength(scheduler: Any) -> bool:
    """Whether a scheduler cuts the schedule of image to image by itself."""
    return "strength" in inspect.signature(scheduler.set_timesteps).parameters


class ConsistencyImage2Image(GoOn):
    """Image to image with a scheduler that may cut the schedule by itself."""

    def timesteps(self, pipe: Any, run: Run) -> Tensor:
        return pipe.set_timesteps(run) if takes_strength(run.scheduler) else super().timesteps(pipe, run)


class LatentConsistency(StableDiffusion):
    """A UNet that was distilled to give x0 in one to eight steps, and that is told the guidance scale (Luo et al. 2023)."""

    family = "lcm"
    inputs = ConsistencyInputs
    tasks = {}
    callback_tensors = ("latents", "denoised", "prompt_embeds", "w_embedding")
    defaults = {"num_inference_steps": 4, "guidance_scale": 8.5}
    arguments = {
        "text2image": "prompt height width num_inference_steps original_inference_steps timesteps guidance_scale num_images_per_prompt "
        f"generator latents prompt_embeds {_ADAPTER} {_OUT} cross_attention_kwargs clip_skip {_END}",
        "image2image": "prompt image num_inference_steps strength original_inference_steps timesteps guidance_scale num_images_per_prompt "
        f"generator latents prompt_embeds {_ADAPTER} {_OUT} cross_attention_kwargs clip_skip {_END}",
    }

    def schedule_options(self, run: Run) -> dict[str, Any]:
        strength = getattr(run.inputs, "strength", None) if takes_strength(run.scheduler) else None
        return {"original_inference_steps": run.inputs.original_inference_steps, "strength": strength}

    def result(self, run: Run) -> Tensor:
        """x0 of the last step, without the noise that a step adds."""
        return run.also[0] if run.also else run.x

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        scale = run.cond.positive.cond.get("timestep_cond")
        return {**super().named_tensors(run), "denoised": self.result(run), **({} if scale is None else {"w_embedding": scale})}

    def replace_tensors(self, run: Run, tensors: Any) -> None:
        super().replace_tensors(run, tensors)
        run.also = [tensors["denoised"]] if "denoised" in tensors else run.also
        if "w_embedding" in tensors:
            run.cond = replace(run.cond, positive=run.cond.positive.with_cond(timestep_cond=tensors["w_embedding"]))


class LatentConsistencyModelPipeline(LatentConsistency):
    """Text to image in few steps. Given an `image`, image to image."""

    task = Text2Image()
    tasks = {"image": ConsistencyImage2Image(strength=0.8)}


class LatentConsistencyModelImg2ImgPipeline(LatentConsistency):
    """Image to image in few steps."""

    options = {}
    settings = {"requires_safety_checker": True}  # checkpoints of this class do not keep it

    task = ConsistencyImage2Image(strength=0.8)


class StableDiffusionPanoramaPipeline(StableDiffusion):
    """Wide pictures from views that overlap (MultiDiffusion, Bar-Tal et al. 2023)."""

    family = "stable-diffusion-panorama"
    task = Panorama()
    tasks = {}
    predict = staticmethod(by_views)
    defaults = {"height": 512, "width": 2048}
    arguments = {
        "panorama": "prompt height width num_inference_steps timesteps guidance_scale view_batch_size negative_prompt num_images_per_prompt "
        f"eta generator latents {_EMBEDS} {_ADAPTER} {_OUT} cross_attention_kwargs guidance_rescale circular_padding clip_skip {_END}"
    }

    def get_views(
        self, panorama_height: int, panorama_width: int, window_size: int = 64, stride: int = 8, circular_padding: bool = False
    ) -> list[Box]:
        """The views of a picture of this size in pixels: top, bottom, left and right of each, in latents."""
        factor = self.codec.factor(self)
        return boxes_of(panorama_height // factor, panorama_width // factor, window_size, stride, circular_padding)

    def decode_latents_with_padding(self, latents: Tensor, padding: int = 8) -> Tensor:
        """Pictures (B, 3, fH, fW) in [-1, 1] without a seam between right and left: `padding` latents of the other side go on at each edge."""
        pixels = self.codec.decode(self, torch.cat([latents[..., -padding:], latents, latents[..., :padding]], -1))
        edge = self.codec.factor(self) * padding
        return pixels[..., edge:-edge]

    def pixels(self, run: Run) -> Tensor:
        return self.decode_latents_with_padding(run.x) if run.inputs.circular_padding else super().pixels(run)
