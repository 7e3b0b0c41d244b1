"""Tiny checkpoints with random weights, written by the reference: real layouts and real networks of a few hundred kB."""

from __future__ import annotations
import inspect
import json
from pathlib import Path
from typing import Any
import diffusers
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

__all__ = ["ddpm", "neighbour", "sd"]

SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SCHEDULE_OPTIONS = dict(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1)
MERGES = ("t h", "th e</w>", "a n", "an d</w>", "c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>")
TOKENS = 16  # the length of an encoded prompt


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Every byte as a token, at a word's end too, and the merges for a few words."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable]
    letters += [chr(256 + i) for i in range(256 - len(printable))]  # CLIP's stand-ins for bytes that do not print
    tokens = [*letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", "utf-8")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    made.save_pretrained(folder)
    return made


def make_scheduler(name: str, prediction_type: str, **options: Any) -> Any:
    """A scheduler of the reference with Stable Diffusion's schedule, as far as the class has these options."""
    kind = getattr(diffusers, name)
    wanted = {**SCHEDULE, **SCHEDULE_OPTIONS, "prediction_type": prediction_type}
    known = inspect.signature(kind.__init__).parameters
    return kind(**{k: v for k, v in wanted.items() if k in known}, **options)


def sd(
    folder: Path | str,
    *,
    in_channels: int = 4,
    prediction_type: str = "epsilon",
    scheduler: str = "DDIMScheduler",
    safety_checker: bool = False,
    time_cond_proj_dim: int | None = None,
    vae_levels: int = 2,
    seed: int = 0,
    **unet_options: Any,
) -> Path:
    """A Stable Diffusion checkpoint of two levels: pictures of 32 x 32 pixels, latents of (4, 16, 16).

    `in_channels=9` makes an inpainting checkpoint. Further options go to the UNet.
    """
    folder = Path(folder)
    torch.manual_seed(seed)
    words = tokenizer(folder / "tokenizer")
    unet = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 16,
            "in_channels": in_channels,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            "time_cond_proj_dim": time_cond_proj_dim,
            **unet_options,
        }
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, *(16,) * (vae_levels - 2), 32) if vae_levels > 2 else (16, 32),
        down_block_types=("DownEncoderBlock2D",) * vae_levels,
        up_block_types=("UpDecoderBlock2D",) * vae_levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    text = dict(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=TOKENS,
        **ends,
    )
    checker = extractor = None
    if safety_checker:
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, projection_dim=32
        )
        checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=32))
        extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=words,
        scheduler=make_scheduler(scheduler, prediction_type),
        safety_checker=checker,
        feature_extractor=extractor,
        requires_safety_checker=safety_checker,
    )
    pipe.save_pretrained(folder)
    return folder


def ddpm(folder: Path | str, *, scheduler: str = "DDPMScheduler", seed: int = 0) -> Path:
    """An unconditional checkpoint in pixel space: pictures of 16 x 16 pixels."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    kind = {"DDPMScheduler": diffusers.DDPMPipeline, "DDIMScheduler": diffusers.DDIMPipeline}[scheduler]
    kind(unet=unet, scheduler=getattr(diffusers, scheduler)(num_train_timesteps=1000)).save_pretrained(folder)
    return Path(folder)


# ---- neighbours of Stable Diffusion, by the reference's classes: what their networks have of their own
K_BLOCKS = dict(
    in_channels=8,
    out_channels=5,
    block_out_channels=(32, 32),
    down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D"),
    up_block_types=("KCrossAttnUpBlock2D", "KUpBlock2D"),
    mid_block_type=None,
    norm_num_groups=None,
    time_embedding_type="fourier",
    time_embedding_dim=32,
    timestep_post_act="gelu",
    act_fn="gelu",
    attention_head_dim=16,
    conv_in_kernel=1,
    conv_out_kernel=1,
    resnet_time_scale_shift="scale_shift",
    layers_per_block=2,
    time_cond_proj_dim=128 + 32,
)
NEIGHBOURS: dict[str, dict[str, Any]] = {
    "StableDiffusionDepth2ImgPipeline": dict(in_channels=5),
    "StableDiffusionUpscalePipeline": dict(in_channels=7, num_class_embeds=351),
    "StableDiffusionLatentUpscalePipeline": dict(K_BLOCKS, scheduler="EulerDiscreteScheduler", prediction_type="sample"),
    "StableDiffusionImageVariationPipeline": {},
    "StableDiffusionInstructPix2PixPipeline": dict(in_channels=8),
    "LatentConsistencyModelPipeline": dict(time_cond_proj_dim=16, scheduler="LCMScheduler"),
    "LatentConsistencyModelImg2ImgPipeline": dict(time_cond_proj_dim=16, scheduler="LCMScheduler"),
    "StableDiffusionPanoramaPipeline": {},
}


def neighbour(folder: Path | str, name: str, **options: Any) -> Path:
    """A checkpoint of the class `name` of the reference, with the parts of `sd` and its own. Options are those of `sd`."""
    from transformers import CLIPVisionModelWithProjection, DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    folder = Path(folder)
    path = sd(folder / "parts", **{**NEIGHBOURS[name], **options})
    parts = diffusers.StableDiffusionPipeline.from_pretrained(path, requires_safety_checker=False).components
    kind = getattr(diffusers, name)
    takes = inspect.signature(kind.__init__).parameters
    size = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=37)
    own: dict[str, Any] = {}
    if "depth_estimator" in takes:
        depth = DPTConfig(
            **size,
            image_size=32,
            patch_size=8,
            is_hybrid=False,
            neck_hidden_sizes=[16] * 4,
            fusion_hidden_size=16,
            backbone_out_indices=[0, 1, 2, 3],
        )
        own["depth_estimator"] = DPTForDepthEstimation(depth)
        own["feature_extractor"] = DPTImageProcessor(size={"height": 32, "width": 32})
    if "low_res_scheduler" in takes:
        own["low_res_scheduler"] = diffusers.DDPMScheduler()
    if "image_encoder" in takes and takes["image_encoder"].default is inspect.Parameter.empty:
        own["image_encoder"] = CLIPVisionModelWithProjection(CLIPVisionConfig(**size, image_size=32, patch_size=8, projection_dim=32))
        own["feature_extractor"] = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    own |= {"requires_safety_checker": False} if "requires_safety_checker" in takes else {}
    kind(**{n: c for n, c in parts.items() if n in takes} | own).save_pretrained(folder / "whole")
    return folder / "whole"
