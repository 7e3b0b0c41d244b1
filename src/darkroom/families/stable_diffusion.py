"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
import torch
from torch import Tensor
from ..adapters.ip_adapter import IPAdapters
from ..adapters.textual_inversion import TextualInversion
from ..core.codec import ScaledCodec
from ..core.guidance import PAG, SAG, InstructCFG
from ..core.inputs import field
from ..core.tasks import Image2Image, Inpaint, Text2Image
from ..core.types import Branch, Conditioning, Run
from ..errors import InputError
from ..family import CallInputs, Family, ImagePipelineOutput
from .clip import encode_text, guidance_embedding, prompt_list
from .prompt_weights import windows_for

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
    from ..models.autoencoder_kl import AutoencoderKL
    from ..models.safety_checker import StableDiffusionSafetyChecker
    from ..models.unet_2d_condition import UNet2DConditionModel
    from ..schedulers.base import Scheduler

__all__ = [
    "Checked", "Edited", "LatentText", "LatentUNet", "PromptInputs", "PromptedUNet", "StableDiffusion", "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline", "StableDiffusionPAGImg2ImgPipeline", "StableDiffusionPAGInpaintPipeline",
    "StableDiffusionPAGPipeline", "StableDiffusionPipeline", "StableDiffusionPipelineOutput", "StableDiffusionSAGPipeline",
    "TextInputs",
]  # fmt: skip

logger = logging.getLogger("darkroom")


@dataclass
class StableDiffusionPipelineOutput(ImagePipelineOutput):
    """See `ImagePipelineOutput`."""


@dataclass(kw_only=True)
class TextInputs(CallInputs):
    """Arguments of everything that is made from a prompt."""

    prompt: str | list[str] | None = field("What to picture; a list makes pictures for each.")
    negative_prompt: str | list[str] | None = field("What to keep out of the picture.")
    guidance_scale: float = field("Weight of the prompt; 1 or less switches guidance off.", 7.5)
    guidance_rescale: float = field("Counters overexposure by strong guidance.", 0.0, minimum=0, maximum=1)
    timesteps: list[int] | None = field("A schedule of one's own: training timesteps, falling.")
    sigmas: list[float] | None = field("A schedule of one's own: noise levels, falling.")
    eta: float = field("Noise added in DDIM steps: 0 is deterministic, 1 is DDPM.", 0.0, minimum=0, maximum=1)
    prompt_embeds: Tensor | None = field("Encoded prompts, (B, M, d), in place of `prompt`.")
    negative_prompt_embeds: Tensor | None = field("Encoded negative prompts, of the same shape.")
    ip_adapter_image: Any = field("A picture for the IP-Adapter that is loaded; a list has one, or a list of some, for each adapter.")
    ip_adapter_image_embeds: list[Any] | None = field("Encoded pictures, (rows, pictures, ...) for each IP-Adapter, negative half first.")
    cross_attention_kwargs: dict[str, Any] | None = field(
        'Options of attention layers; "scale" weighs LoRA layers, "ip_adapter_masks" says where pictures count.'
    )
    prompt_syntax: str = field('"weighted" reads "(word:1.3)" and prompts of any length.', "plain", choices=("plain", "weighted"))
    clip_skip: int | None = field("How many of the text encoder's last layers to skip.", None, minimum=0, integer=True)


@dataclass(kw_only=True)
class PromptInputs(TextInputs):
    num_images_per_prompt: int = field("Pictures for each prompt.", 1, minimum=1, integer=True)


_PROMPT = "timesteps sigmas guidance_scale negative_prompt num_images_per_prompt eta generator"
_EMBEDS = "prompt_embeds negative_prompt_embeds ip_adapter_image ip_adapter_image_embeds output_type return_dict"
_END = "clip_skip callback_on_step_end callback_on_step_end_tensor_inputs"
_RESCALED = f"cross_attention_kwargs guidance_rescale {_END}"
_INPAINT = "prompt image mask_image masked_image_latents height width padding_mask_crop strength num_inference_steps"


class LatentUNet(Family):
    """A UNet over latents, whatever it is conditioned on."""

    codec = ScaledCodec("vae")
    size_step = 8
    middle_site = "mid_block.attentions.0.transformer_blocks.0.attn1"

    if TYPE_CHECKING:
        unet: Any

    @property
    def denoiser(self) -> Any:
        return self.unet

    @property
    def guidance_distilled(self) -> bool:
        """Whether guidance is distilled into the network: there is no negative branch then."""
        return self.unet.config.time_cond_proj_dim is not None

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU in this pipeline's UNet, see `UNet.enable_freeu`. For SD 1.x 0.9, 0.2, 1.5, 1.6 are usual, for SDXL 0.6, 0.4, 1.1, 1.2."""
        self.denoiser.enable_freeu(s1, s2, b1, b2)

    def disable_freeu(self) -> None:
        """The UNet as it was."""
        self.denoiser.disable_freeu()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Join projections to queries, keys and values in the UNet, the VAE or both, see `Model.fuse_qkv_projections`."""
        for network in [*[self.denoiser] * unet, *[self.components["vae"]] * vae]:
            network.fuse_qkv_projections()

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Projections as they were."""
        for network in [*[self.denoiser] * unet, *[self.components["vae"]] * vae]:
            network.unfuse_qkv_projections()

    def conditions(self, branch: Branch) -> dict[str, Any]:
        """The arguments of the denoiser, and of a control beside it, that say what to picture."""
        return {"encoder_hidden_states": branch.cond["context"]}

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        options = {"cross_attention_kwargs": getattr(run.inputs, "cross_attention_kwargs", None)}
        options["timestep_cond"] = branch.cond.get("timestep_cond")
        return self.unet(x, t, **self.conditions(branch), **options, attend=branch.attend, **self.residuals(x, t, branch, run)).sample

    def step_options(self, run: Run) -> dict[str, Any]:
        return {"eta": run.inputs.eta, "generator": run.inputs.generator}


class Edited(LatentUNet):
    """A mixin: the denoiser sees the latents of a picture beside its own, and guidance is by both text and picture (Brooks et al. 2023)."""

    def guidance(self, inputs: Any) -> Any:
        return InstructCFG(max(inputs.guidance_scale, 0.0), inputs.image_guidance_scale, inputs.guidance_rescale)

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        return super().denoise_once(torch.cat([x, branch.cond["image_latents"]], 1), t, branch, run)  # (B, 2C, H, W)


class PromptedUNet(IPAdapters, TextualInversion, LatentUNet):
    """What Stable Diffusion and its successors share: such a network, conditioned on prompts through CLIP text encoders."""

    prompts: ClassVar[tuple[str, ...]] = ("prompt", "negative_prompt")  # arguments; embeddings take the place of each
    public: ClassVar[Mapping[str, tuple[str, ...]]] = {"prompt_embeds": ("context", "negative_prompt_embeds")}  # see `named_tensors`
    inputs = PromptInputs
    callback_tensors = ("latents", "prompt_embeds", "negative_prompt_embeds")

    def check(self, inputs: Any) -> None:
        for name in self.prompts:
            embeds = name.removesuffix("_2") + "_embeds"
            if getattr(inputs, name) is not None and getattr(inputs, embeds) is not None:
                raise InputError("The same thing is given twice.", where=f"{name}, {embeds}", expected="one of the two")
        embeds, other, width = inputs.prompt_embeds, inputs.negative_prompt_embeds, self.unet.config.cross_attention_dim
        if embeds is not None and (embeds.ndim != 3 or (isinstance(width, int) and embeds.shape[2] != width)):
            expected = f"(B, tokens, {width})"
            raise InputError("Embeddings of another shape.", where="prompt_embeds", got=tuple(embeds.shape), expected=expected)
        if embeds is not None and other is not None and embeds.shape != other.shape:
            got, expected = tuple(other.shape), tuple(embeds.shape)
            raise InputError("The embeddings differ in shape.", where="negative_prompt_embeds", got=got, expected=expected)
        for name in self.prompts[1:]:
            if (texts := getattr(inputs, name)) is not None and not isinstance(texts, str):
                prompts = self.count(inputs) // self.many(inputs)
                if (got := len(prompt_list(texts, name))) != prompts:
                    what, expected = f"There must be one {name.replace('_', ' ')} per prompt.", f"{prompts} of them, or one string for all"
                    raise InputError(what, where=name, got=got, expected=expected)
        self.check_ip_adapter(inputs)

    def many(self, inputs: Any) -> int:
        """How many results there are for each prompt."""
        return inputs.num_images_per_prompt  # type: ignore[no-any-return]

    def count(self, inputs: Any) -> int:
        embeds = inputs.prompt_embeds
        return (len(prompt_list(inputs.prompt, "prompt")) if embeds is None else embeds.shape[0]) * self.many(inputs)

    @staticmethod
    def windows(read: Sequence[tuple[Any, Sequence[Any]]], embeds: Tensor | None) -> int:
        """How many windows of tokens all these prompts of these tokenizers fit into, or as many as given embeddings have."""
        if embeds is not None:
            return embeds.shape[1] // read[0][0].model_max_length
        return max(windows_for(words, prompt_list(p, "prompt")) for words, prompts in read for p in prompts if p is not None)

    def conditioning(self, inputs: Any, positive: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None) -> Conditioning:
        """The branches with these conditions. A network into which guidance is distilled is told the scale."""
        attend, context = self.unet.attend, positive["context"]
        if self.guidance_distilled:
            scales = torch.full((context.shape[0],), inputs.guidance_scale - 1.0)
            positive = {**positive, "timestep_cond": guidance_embedding(scales, self.unet.config.time_cond_proj_dim).to(context)}
        return Conditioning(Branch(positive, attend), None if negative is None else Branch(negative, attend))

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        """Beside the latents: each condition, negative rows first, and the negative rows alone, by the names in `public`."""
        branches = [b for b in (run.cond.negative, run.cond.positive) if b is not None]
        tensors = {name: torch.cat([b.cond[key] for b in branches]) for name, (key, *_) in self.public.items()}
        if run.cond.negative is not None:
            tensors |= {alone: run.cond.negative.cond[key] for key, *names in self.public.values() for alone in names}
        return {**super().named_tensors(run), **tensors}

    def replace_tensors(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        super().replace_tensors(run, tensors)
        for name in self.public.keys() & tensors.keys():
            *other, positive = tensors[name].split(run.rows)  # negative rows come first, if they are still there
            cond, key = run.cond, self.public[name][0]
            negative = cond.negative and cond.negative.with_cond(**{key: other[0] if other else cond.negative.cond[key]})
            run.cond = Conditioning(cond.positive.with_cond(**{key: positive}), negative)


class LatentText(PromptedUNet):
    """A UNet over 4-channel latents, conditioned on the states of a CLIP text encoder (Rombach et al. 2022)."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Scheduler

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | list[str] | None, device: torch.device | str | None = None, num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True, negative_prompt: str | list[str] | None = None, prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None, lora_scale: float | None = None, clip_skip: int | None = None,
        prompt_syntax: str = "plain",
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Prompts as text states (B, M, d), each row repeated per picture, and those of the negative prompts (None without guidance)."""
        device = device or self.device
        dtype = self.text_encoder.dtype if self.text_encoder is not None else self.unet.dtype
        windows = self.windows([(self.tokenizer, (prompt, negative_prompt))], prompt_embeds) if prompt_syntax == "weighted" else 0
        if prompt_embeds is None:
            prompts = prompt_list(prompt, "prompt")
            options = {"device": device, "clip_skip": clip_skip, "windows": windows, "lora_scale": lora_scale}
            prompt_embeds = encode_text(self.tokenizer, self.text_encoder, prompts, **options)
        rows = prompt_embeds.shape[0]
        prompt_embeds = prompt_embeds.to(device, dtype).repeat_interleave(num_images_per_prompt, 0)
        if not do_classifier_free_guidance:
            return prompt_embeds, None
        if negative_prompt_embeds is None:
            texts = prompt_list("" if negative_prompt is None else negative_prompt, "negative_prompt")
            texts = texts * rows if len(texts) == 1 else texts
            # layers are never skipped here: checkpoints are used so
            options = {"device": device, "warn": False, "windows": windows, "lora_scale": lora_scale}
            negative_prompt_embeds = encode_text(self.tokenizer, self.text_encoder, texts, **options)
        return prompt_embeds, negative_prompt_embeds.to(device, dtype).repeat_interleave(num_images_per_prompt, 0)

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        names = "prompt negative_prompt prompt_embeds negative_prompt_embeds clip_skip prompt_syntax"
        given = {name: getattr(inputs, name) for name in names.split()} | {"num_images_per_prompt": self.many(inputs)}
        positive, negative = self.encode_prompt(**given, do_classifier_free_guidance=needs_negative)
        return self.conditioning(inputs, {"context": positive}, None if negative is None else {"context": negative})


class Checked(Family):
    """A mixin: the pictures go past a safety checker, if there is one."""

    safety_checker: StableDiffusionSafetyChecker | None
    feature_extractor: CLIPImageProcessor | None
    options: ClassVar[Mapping[str, Any]] = {"requires_safety_checker": True}
    Output = StableDiffusionPipelineOutput

    def __init__(self, *args: Any, **values: Any):
        super().__init__(*args, **values)
        if self.safety_checker is not None and self.feature_extractor is None:
            what, fix = "The safety checker lacks its feature extractor.", "Pass one, or go without a checker: safety_checker=None."
            raise InputError(what, where="feature_extractor", expected="a CLIPImageProcessor", fix=fix)
        if self.safety_checker is None and self.requires_safety_checker:
            logger.warning(
                f"{type(self).__name__} runs without its safety checker (safety_checker=None): its results are unfiltered. Keep to the "
                "model's licence, and think twice before showing them to the public. requires_safety_checker=False silences this."
            )

    @property
    def screen(self) -> tuple[Any, Any] | None:
        own = None if self.safety_checker is None else (self.safety_checker, self.feature_extractor)
        return super().screen or own

    def attach_safety_checker(self, checker: Any, feature_extractor: Any = None) -> None:
        super().attach_safety_checker(checker, feature_extractor)
        if checker is None:
            self.register_modules(safety_checker=None)

    def decode(self, run: Run) -> dict[str, Any]:
        return {"images": None, "nsfw_content_detected": None} | super().decode(run)

    def run_safety_checker(self, image: Tensor, device: Any, dtype: torch.dtype) -> tuple[Tensor, list[bool] | None]:
        """`screened`, as older programs call it."""
        return self.screened(image)


class StableDiffusion(Checked, LatentText):
    """Stable Diffusion 1.x and 2.x, the base of its pipelines."""

    image_encoder: CLIPVisionModelWithProjection | None
    family = "stable-diffusion"
    tasks = {"mask_image": Inpaint(strength=1.0), "image": Image2Image(strength=0.8)}
    arguments = {
        "text2image": f"prompt height width num_inference_steps {_PROMPT} latents {_EMBEDS} {_RESCALED}",
        "image2image": f"prompt image strength num_inference_steps {_PROMPT} {_EMBEDS} cross_attention_kwargs {_END}",
        "inpaint": f"{_INPAINT} {_PROMPT} latents {_EMBEDS} cross_attention_kwargs {_END}",
    }


class StableDiffusionPipeline(StableDiffusion):
    """Text to image. Given an `image`, image to image; given a `mask_image` too, inpainting."""

    task = Text2Image()


class StableDiffusionImg2ImgPipeline(StableDiffusion):
    """Image to image, guided by text."""

    task = Image2Image(strength=0.8)


class StableDiffusionInpaintPipeline(StableDiffusion):
    """Fill in the masked part of an image, guided by text."""

    task = Inpaint(strength=1.0)


class StableDiffusionSAGPipeline(StableDiffusion):
    """Text to image with self-attention guidance (Hong et al. 2023)."""

    task = Text2Image()
    terms = (SAG,)
    arguments = {
        "text2image": "prompt height width num_inference_steps guidance_scale sag_scale negative_prompt num_images_per_prompt eta "
        f"generator latents {_EMBEDS} callback callback_steps cross_attention_kwargs clip_skip"
    }


class StableDiffusionPAGPipeline(StableDiffusion):
    """Text to image with perturbed-attention guidance (Ahn et al. 2024)."""

    task = Text2Image()
    terms = (PAG,)


class StableDiffusionPAGImg2ImgPipeline(StableDiffusion):
    """Image to image with perturbed-attention guidance."""

    task = Image2Image(strength=0.8)
    terms = (PAG,)


class StableDiffusionPAGInpaintPipeline(StableDiffusion):
    """Inpainting with perturbed-attention guidance."""

    task = Inpaint(strength=0.9999)
    terms = (PAG,)
    arguments = {"inpaint": f"{_INPAINT} {_PROMPT} latents {_EMBEDS} {_RESCALED} pag_scale pag_adaptive_scale"}
