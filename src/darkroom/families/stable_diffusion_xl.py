"""Stable Diffusion XL: base, refiner, inpainting and editing (Podell et al. 2023)."""

from __future__ import annotations
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar
import torch
from torch import Tensor
from ..core.codec import ScaledCodec
from ..core.guidance import PAG
from ..core.inputs import Inputs, field
from ..core.media import image_to_tensor
from ..core.tasks import Edit, Image2Image, Inpaint, Text2Image
from ..core.tasks.conditioned import seen_latents
from ..core.tasks.image2image import Image2ImageInputs, cutoff, from_strength
from ..core.tasks.inpaint import InpaintInputs
from ..core.tasks.text2image import latent_size
from ..core.types import Branch, Conditioning, Run
from ..errors import InputError, MissingDependencyError
from ..family import ImagePipelineOutput
from ..runtime.fork import cast_copy
from .clip import encode_states, prompt_list
from .stable_diffusion import Edited, PromptedUNet, PromptInputs, TextInputs

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection
    from ..models.autoencoder_kl import AutoencoderKL
    from ..models.unet_2d_condition import UNet2DConditionModel
    from ..schedulers.base import Scheduler

__all__ = [
    "PromptedXL", "StableDiffusionXL", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLInstructPix2PixPipeline", "StableDiffusionXLPAGImg2ImgPipeline", "StableDiffusionXLPAGInpaintPipeline",
    "StableDiffusionXLPAGPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLPipelineOutput", "UpcastCodec", "XLTextInputs", "watermark",
]  # fmt: skip

logger = logging.getLogger("darkroom")
WATERMARK = 0b101100111110110010010000011110111011000110011110  # the 48 bits that all pictures of SDXL's own programs carry


@dataclass
class StableDiffusionXLPipelineOutput(ImagePipelineOutput):
    """See `ImagePipelineOutput`."""


@dataclass(kw_only=True)
class XLTextInputs(TextInputs):
    prompt_2: str | list[str] | None = field("What the second text encoder reads in place of `prompt`.")
    negative_prompt_2: str | list[str] | None = field("What the second text encoder reads in place of `negative_prompt`.")
    guidance_scale: float = field("Weight of the prompt; 1 or less switches guidance off.", 5.0)
    pooled_prompt_embeds: Tensor | None = field("Pooled prompts, (B, c), that belong to `prompt_embeds`.")
    negative_pooled_prompt_embeds: Tensor | None = field("Pooled negative prompts, of the same shape.")
    original_size: tuple[int, int] | None = field(
        "Height and width that the picture seems to be scaled from; small ones look blurred.", None, unit="pixels"
    )
    crops_coords_top_left: tuple[int, int] = field("Top and left that seem cropped off; (0, 0) centres the subject.", (0, 0), unit="pixels")
    target_size: tuple[int, int] | None = field("Height and width that the picture is composed for.", None, unit="pixels")
    negative_original_size: tuple[int, int] | None = field(
        "`original_size` to steer away from; needs `negative_target_size`.", None, unit="pixels"
    )
    negative_crops_coords_top_left: tuple[int, int] = field("`crops_coords_top_left` to steer away from.", (0, 0), unit="pixels")
    negative_target_size: tuple[int, int] | None = field(
        "`target_size` to steer away from; needs `negative_original_size`.", None, unit="pixels"
    )
    denoising_end: float | None = field(
        "Share of the schedule after which to stop and leave the rest to a refiner.", None, minimum=0, maximum=1
    )


@dataclass(kw_only=True)
class XLInputs(XLTextInputs, PromptInputs):
    guidance_scale: float = field("Weight of the prompt; 1 or less switches guidance off.", 5.0)


@dataclass(kw_only=True)
class RefinerInputs(Inputs):
    denoising_start: float | None = field(
        "Share of the schedule that is done already: `image` is what came out of it.", None, minimum=0, maximum=1
    )
    aesthetic_score: float = field("How beautiful the picture is to be, about 1 to 10; the refiner reads it.", 6.0)
    negative_aesthetic_score: float = field("The score to steer away from.", 2.5)


@dataclass(kw_only=True)
class XLImage2ImageInputs(Image2ImageInputs, RefinerInputs):
    latents: Tensor | None = field("Noisy latents to start from in place of the picture's, (B, C, H, W).")


@dataclass(kw_only=True)
class XLInpaintInputs(InpaintInputs, RefinerInputs): ...


class XLImage2Image(Image2Image):
    """As `Image2Image`, or on with latents as they are: with `latents`, or with a `denoising_start` for an `image` that holds half-done ones."""

    inputs = XLImage2ImageInputs

    def expected_size(self, pipe: Any, inputs: Any) -> tuple[int, int]:
        return super().expected_size(pipe, inputs) if inputs.latents is None else tuple(inputs.latents.shape[-2:])

    def start(self, pipe: Any, run: Run) -> None:
        given, expected = run.inputs.latents, (run.rows, pipe.codec.channels(pipe), "H", "W")
        if given is None:
            return super().start(pipe, run)
        if given.ndim != 4 or given.shape[:2] != expected[:2]:
            raise InputError("Latents of another shape.", where="latents", got=tuple(given.shape), expected=expected)
        run.timesteps, run.x = from_strength(pipe, run, run.inputs.strength), given.to(pipe.device)

    def noised(self, run: Run, clean: Tensor) -> Tensor:
        return super().noised(run, clean) if run.inputs.denoising_start is None else clean


class XLInpaint(Inpaint):
    """As `Inpaint`; with a `denoising_start` it goes on with an `image` that holds half-done latents."""

    inputs = XLInpaintInputs


class UpcastCodec(ScaledCodec):
    """An autoencoder that overflows in float16 and says so by `force_upcast`: it encodes in float32, and decodes in it what is float16.
    Its weights may belong to other pipelines and to runs in other threads, so they are never recast: a private copy in float32 computes, and
    is dropped after the call; that takes 4 bytes for each parameter, 0.3 GB for SDXL's. (Other threads would see the weights that
    `functional_call` puts into the shared network, and autocast would leave convolutions in half precision.)
    """

    def network(self, pipe: Any, way: str) -> Any:
        vae = super().network(pipe, way)
        full = not vae.config.force_upcast or vae.dtype == torch.float32 or (way == "decode" and vae.dtype != torch.float16)
        return vae if full else cast_copy(vae, torch.float32)


def watermark(pixels: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] with the invisible mark of SDXL's own programs, as float32 on the CPU. A width below 256 is too small."""
    if pixels.shape[-1] < 256:
        return pixels
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", [int(bit) for bit in f"{WATERMARK:b}"])
    bgr = (255 * (pixels / 2 + 0.5)).cpu().float().permute(0, 2, 3, 1).flip(-1).numpy()  # (B, H, W, 3)
    marked = torch.stack([torch.as_tensor(encoder.encode(picture, "dwtDct")) for picture in bgr])
    return (2 * (marked.flip(-1).permute(0, 3, 1, 2) / 255 - 0.5)).clamp(-1, 1)


_TEXT = "negative_prompt negative_prompt_2 num_images_per_prompt eta generator latents"
_EMBEDS = "prompt_embeds negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds"
_OUT, _OPTIONS = "output_type return_dict", "cross_attention_kwargs guidance_rescale"
_SIZES = "original_size crops_coords_top_left target_size"
_NEGATIVE = "negative_original_size negative_crops_coords_top_left negative_target_size"
_END = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
_MIDDLE = f"denoising_end guidance_scale {_TEXT} {_EMBEDS} ip_adapter_image ip_adapter_image_embeds {_OUT} {_OPTIONS} {_SIZES} {_NEGATIVE}"
_REFINED = f"num_inference_steps timesteps sigmas denoising_start {_MIDDLE} aesthetic_score negative_aesthetic_score {_END}"


class PromptedXL(PromptedUNet):
    """What SDXL's pipelines share: two text encoders, of which either may be absent, and sizes among the conditions."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer: CLIPTokenizer | None
    tokenizer_2: CLIPTokenizer | None
    unet: UNet2DConditionModel
    scheduler: Scheduler
    options: ClassVar[Mapping[str, Any]] = {"force_zeros_for_empty_prompt": True}
    settings: ClassVar[Mapping[str, Any]] = {"add_watermarker": None}
    prompts = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
    public = {
        "prompt_embeds": ("context", "negative_prompt_embeds"), "add_text_embeds": ("pooled", "negative_pooled_prompt_embeds"),
        "add_time_ids": ("time_ids", "negative_add_time_ids", "add_neg_time_ids"),
    }  # fmt: skip
    callback_tensors = ("latents", *public, *(name for _, *names in public.values() for name in names))
    codec = UpcastCodec("vae")
    inputs = XLInputs
    Output = StableDiffusionXLPipelineOutput

    def __init__(self, *args: Any, **values: Any):
        super().__init__(*args, **values)
        if self.add_watermarker and importlib.util.find_spec("imwatermark") is None:
            what, fix = "Watermarks need a further package.", "pip install darkroom-diffusion[watermark]"
            raise MissingDependencyError(what, where="add_watermarker", expected="invisible-watermark", fix=fix)

    def check(self, inputs: Any) -> None:
        super().check(inputs)
        for name in ("", "negative_"):
            embeds, pooled = getattr(inputs, f"{name}prompt_embeds"), getattr(inputs, f"{name}pooled_prompt_embeds")
            if embeds is not None and (pooled is None or pooled.ndim != 2 or len(pooled) != len(embeds)):
                got, expected = None if pooled is None else tuple(pooled.shape), f"({len(embeds)}, c): what encode_prompt gives beside them"
                raise InputError("Embeddings need their pooled ones.", where=f"{name}pooled_prompt_embeds", got=got, expected=expected)
        for name in f"{_SIZES} {_NEGATIVE}".split():
            given = getattr(inputs, name)
            pair = isinstance(given, Sequence) and len(given) == 2 and all(isinstance(side, Integral) for side in given)
            if not pair and (given is not None or "crops" in name):
                raise InputError("A size is two whole numbers.", where=name, got=given, expected="(height, width) or (top, left)")

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | list[str] | None, prompt_2: str | list[str] | None = None, device: torch.device | str | None = None,
        num_images_per_prompt: int = 1, do_classifier_free_guidance: bool = True, negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None, prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None, negative_pooled_prompt_embeds: Tensor | None = None, lora_scale: float | None = None,
        clip_skip: int | None = None, prompt_syntax: str = "plain",
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
        """Prompts as states of both encoders side by side, (B, M, d), those of the negative prompts, and both pooled, (B, c). Each row is repeated
        per picture; the negative ones are None without guidance. Where there is no negative prompt, they are zeros if the checkpoint wants that.
        """
        device = device or self.device
        dtype = self.unet.dtype if self.text_encoder_2 is None else self.text_encoder_2.dtype
        read = [(self.tokenizer, (prompt, negative_prompt)), (self.tokenizer_2, (prompt_2 or prompt, negative_prompt_2 or negative_prompt))]
        read = [(words, prompts) for words, prompts in read if words is not None]
        windows = self.windows(read, prompt_embeds) if prompt_syntax == "weighted" else 0
        if prompt_embeds is None:
            options = {"clip_skip": clip_skip or 0, "windows": windows, "lora_scale": lora_scale}
            prompt_embeds, pooled = self._encode([prompt, prompt_2 or prompt], ("prompt", "prompt_2"), device, **options)
            pooled_prompt_embeds = pooled if pooled_prompt_embeds is None else pooled_prompt_embeds
        if pooled_prompt_embeds is None:
            raise InputError("There is no pooled prompt.", where="text_encoder_2", expected="an encoder with a projection, or embeddings")
        rows, length, _ = prompt_embeds.shape
        if not do_classifier_free_guidance:
            negative_prompt_embeds = negative_pooled_prompt_embeds = None
        elif negative_prompt_embeds is None and negative_prompt is None and self.force_zeros_for_empty_prompt:
            if negative_prompt_2 is not None:
                logger.warning("negative_prompt_2 is not read without a negative_prompt: this checkpoint puts zeros in its place.")
            negative_prompt_embeds, negative_pooled_prompt_embeds = torch.zeros_like(prompt_embeds), torch.zeros_like(pooled_prompt_embeds)
        elif negative_prompt_embeds is None:
            negative = negative_prompt or ""
            texts, names = [negative, negative_prompt_2 or negative], ("negative_prompt", "negative_prompt_2")
            # layers are never skipped here: checkpoints are used so
            options = {"rows": rows, "length": length, "warn": False, "windows": windows, "lora_scale": lora_scale}
            negative_prompt_embeds, pooled = self._encode(texts, names, device, **options)
            negative_pooled_prompt_embeds = pooled if negative_pooled_prompt_embeds is None else negative_pooled_prompt_embeds
        found = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        return tuple(x if x is None else x.to(device, dtype).repeat_interleave(num_images_per_prompt, 0) for x in found)  # type: ignore[return-value]

    def _encode(
        self, prompts: Sequence[Any], names: Sequence[str], device: Any, rows: int = 1, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The states of each encoder for its own prompts, side by side, and the first pooled prompt. A lone encoder reads the first prompts."""
        encoders = [(t, e) for t, e in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)) if e is not None]
        if not encoders:
            raise InputError("There is no text encoder.", where="text_encoder", expected="an encoder, or prompt_embeds")
        texts = [prompt_list(prompt, name) for prompt, name in zip(prompts, names)]
        rows = max(rows, *map(len, texts))
        for text, name in zip(texts, names):
            if len(text) not in (1, rows):
                raise InputError(
                    "There are several numbers of prompts.", where=name, got=len(text), expected=f"{rows}, or one string for all"
                )
        lists = [text * rows if len(text) == 1 else text for text in texts]
        found = [encode_states(*pair, text, device=device, **options) for pair, text in zip(encoders, lists)]
        return torch.cat([states for states, _ in found], -1), next((pooled for _, pooled in found if pooled is not None), None)

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        names = f"prompt prompt_2 negative_prompt negative_prompt_2 clip_skip prompt_syntax {_EMBEDS}"
        given = {name: getattr(inputs, name) for name in names.split()} | {"num_images_per_prompt": self.many(inputs)}
        found = self.encode_prompt(**given, do_classifier_free_guidance=needs_negative)
        positive, negative = (
            None
            if context is None
            else {"context": context, "pooled": pooled, "time_ids": context.new_tensor([ids]).repeat(len(context), 1)}
            for context, pooled, ids in zip(found[:2], found[2:], self.time_ids(inputs))
        )
        self._check_width(found[2].shape[1], positive["time_ids"].shape[1])
        return self.conditioning(inputs, positive, negative)

    def _check_width(self, pooled: int, count: int) -> None:
        """Raise InputError if a pooled prompt of this width and that many sizes are not what the network reads."""
        fits, width = self.unet.config.projection_class_embeddings_input_dim, self.unet.config.addition_time_embed_dim
        if self.unet.config.addition_embed_type != "text_time" or pooled + count * width != fits:
            other = f"pipe.register_to_config(requires_aesthetics_score={count == 6})"
            fix = other if width and pooled + (11 - count) * width == fits else "Use the text encoders that belong to this network."
            what, got = "Pooled prompt and sizes do not have the width of this network.", f"{pooled} + {count} x {width}"
            raise InputError(what, where="pooled_prompt_embeds, requires_aesthetics_score", got=got, expected=fits, fix=fix)

    def conditions(self, branch: Branch) -> dict[str, Any]:
        cond = branch.cond
        return {**super().conditions(branch), "added_cond_kwargs": {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}}

    def time_ids(self, inputs: Any) -> tuple[list[float], list[float]]:
        """The sizes among the conditions, and those of the negative branch (Podell et al. 2023, section 2.2)."""
        factor = self.codec.factor(self)
        size = [side * factor for side in self.task.expected_size(self, inputs)]
        original, target, crop = inputs.original_size or size, inputs.target_size or size, inputs.crops_coords_top_left
        away_original, away_target = inputs.negative_original_size, inputs.negative_target_size
        away_crop = inputs.negative_crops_coords_top_left
        if getattr(self, "requires_aesthetics_score", False) and hasattr(inputs, "aesthetic_score"):
            away = [*(away_original or original), *away_crop, inputs.negative_aesthetic_score]
            return [*original, *crop, inputs.aesthetic_score], away
        positive = [*original, *crop, *target]
        if hasattr(inputs, "aesthetic_score"):  # with a picture the negative crop is that of the positive: checkpoints are used so
            return positive, [*(away_original or original), *crop, *(away_target or target)]
        return positive, [*away_original, *away_crop, *away_target] if away_original and away_target else positive

    def set_timesteps(self, run: Run, steps: int | None = None) -> Tensor:
        timesteps, end = super().set_timesteps(run, steps), run.inputs.denoising_end
        if end is None or not 0 < end < 1:
            return timesteps
        if (start := getattr(run.inputs, "denoising_start", None)) is not None and end <= start < 1:
            raise InputError("No step remains.", where="denoising_start", got=start, expected=f"below denoising_end, {end}")
        kept = int((timesteps >= cutoff(run.scheduler, end)).sum())
        if kept < 1:
            raise InputError("No step remains.", where="denoising_end", got=end, fix="End later, or raise num_inference_steps.")
        return timesteps[:kept]

    def to_images(self, pixels: Tensor, run: Run) -> Any:
        return super().to_images(watermark(pixels) if self.add_watermarker else pixels, run)


class StableDiffusionXL(PromptedXL):
    """A UNet over 4-channel latents, conditioned on two CLIP text encoders, their pooled prompt, and sizes (Podell et al. 2023)."""

    family = "stable-diffusion-xl"
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessor | None
    tasks = {"mask_image": XLInpaint(strength=0.9999, guidance_scale=7.5), "image": XLImage2Image(strength=0.3)}
    arguments = {
        "text2image": f"prompt prompt_2 height width num_inference_steps timesteps sigmas {_MIDDLE} {_END}",
        "image2image": f"prompt prompt_2 image strength {_REFINED}",
        "inpaint": f"prompt prompt_2 image mask_image masked_image_latents height width padding_mask_crop strength {_REFINED}",
    }


class StableDiffusionXLRefined(StableDiffusionXL):
    """With an option for checkpoints that read an aesthetic score in place of the target size."""

    options: ClassVar[Mapping[str, Any]] = {"requires_aesthetics_score": False, **PromptedXL.options}


class StableDiffusionXLPipeline(StableDiffusionXL):
    """Text to image. Given an `image`, image to image; given a `mask_image` too, inpainting."""

    task = Text2Image()


class StableDiffusionXLImg2ImgPipeline(StableDiffusionXLRefined):
    """Image to image, guided by text; the refiner."""

    task = XLImage2Image(strength=0.3)


class StableDiffusionXLInpaintPipeline(StableDiffusionXLRefined):
    """Fill in the masked part of an image, guided by text."""

    task = XLInpaint(strength=0.9999, guidance_scale=7.5)


class StableDiffusionXLPAGPipeline(StableDiffusionXL):
    """Text to image with perturbed-attention guidance (Ahn et al. 2024)."""

    task = Text2Image()
    terms = (PAG,)


class StableDiffusionXLPAGImg2ImgPipeline(StableDiffusionXLRefined):
    """Image to image with perturbed-attention guidance."""

    task = XLImage2Image(strength=0.3)
    terms = (PAG,)


class StableDiffusionXLPAGInpaintPipeline(StableDiffusionXLRefined):
    """Inpainting with perturbed-attention guidance."""

    task = XLInpaint(strength=0.9999, guidance_scale=7.5)
    terms = (PAG,)


class StableDiffusionXLInstructPix2PixPipeline(Edited, PromptedXL):
    """Edit a picture by an instruction, with guidance by both (Brooks et al. 2023). A third branch has neither."""

    settings: ClassVar[Mapping[str, Any]] = {**PromptedXL.settings, "is_cosxl_edit": False}
    family = "stable-diffusion-xl-instruct-pix2pix"
    task = Edit(num_inference_steps=100)
    arguments = {
        "edit": "prompt prompt_2 image height width num_inference_steps denoising_end guidance_scale image_guidance_scale "
        f"{_TEXT} {_EMBEDS} {_OUT} callback callback_steps {_OPTIONS} {_SIZES}"
    }

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        cond, factor = super().encode(inputs, needs_negative), self.codec.factor(self)
        height, width = (side * factor for side in latent_size(self, inputs))
        picture = image_to_tensor(inputs.image, height=height, width=width, factor=factor, latent_channels=self.codec.channels(self))
        context = cond.positive.cond["context"]
        picture = seen_latents(self, picture, len(context), context.dtype)
        if picture.shape[2:] != (height // factor, width // factor):
            raise InputError(
                "Latents of another size.", where="image", got=tuple(picture.shape[2:]), expected=(height // factor, width // factor)
            )
        picture = picture * (self.vae.config.scaling_factor if self.is_cosxl_edit else 1)  # of all only CosXL's are scaled
        return Conditioning(*(b and b.with_cond(image_latents=picture) for b in (cond.positive, cond.negative)))
