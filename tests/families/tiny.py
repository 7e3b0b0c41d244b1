"""Tiny checkpoints with random weights, written by the reference: real layouts and real networks of a few hundred kB."""

from __future__ import annotations
import inspect
import json
from pathlib import Path
from typing import Any
import diffusers
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

__all__ = [
    "KINDS",
    "consistency",
    "ddpm",
    "dit",
    "ldm",
    "ldm_text",
    "neighbour",
    "repaint",
    "sd",
    "sdxl",
    "sdxl_edit",
    "super_resolution",
    "svd",
]

KINDS = {  # pipelines that are none of Stable Diffusion -> the function that writes their checkpoint
    "ConsistencyModelPipeline": "consistency",
    "DDIMPipeline": "ddpm",
    "DDPMPipeline": "ddpm",
    "DiTPipeline": "dit",
    "LDMPipeline": "ldm",
    "LDMSuperResolutionPipeline": "super_resolution",
    "LDMTextToImagePipeline": "ldm_text",
    "RePaintPipeline": "repaint",
    "StableVideoDiffusionPipeline": "svd",
}

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


def sdxl(
    folder: Path | str,
    *,
    in_channels: int = 4,
    refiner: bool = False,
    prediction_type: str = "epsilon",
    scheduler: str = "EulerDiscreteScheduler",
    force_zeros_for_empty_prompt: bool = True,
    seed: int = 0,
    vae_options: dict[str, Any] | None = None,
    **unet_options: Any,
) -> Path:
    """An SDXL checkpoint of the size of `sd`'s; its states are 32 and 24 wide, the pooled prompt 16.

    `in_channels` of 9 is for inpainting, 8 for editing. `refiner` has the second text encoder only, and an aesthetic score. Further options
    go to the UNet.
    """
    folder = Path(folder)
    torch.manual_seed(seed)
    words, words_2 = tokenizer(folder / "tokenizer"), tokenizer(folder / "tokenizer_2")
    words_2.pad_token = "!"
    unet = diffusers.UNet2DConditionModel(
        **{
            "sample_size": 16,
            "in_channels": in_channels,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 24 if refiner else 56,
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 8 * (5 if refiner else 6),
            "norm_num_groups": 8,
            **unet_options,
        }
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=0.13025,
        **(vae_options or {}),
    )
    text = dict(
        vocab_size=len(words),
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        projection_dim=16,
    )
    first = CLIPTextModel(CLIPTextConfig(hidden_size=32, pad_token_id=words.pad_token_id, **text))
    second = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, hidden_act="gelu", pad_token_id=words_2.pad_token_id, **text))
    kinds = {4: "StableDiffusionXLPipeline", 8: "StableDiffusionXLInstructPix2PixPipeline", 9: "StableDiffusionXLInpaintPipeline"}
    kind = getattr(diffusers, "StableDiffusionXLImg2ImgPipeline" if refiner else kinds[in_channels])
    pipe = kind(
        unet=unet,
        vae=vae,
        text_encoder=None if refiner else first,
        text_encoder_2=second,
        tokenizer=None if refiner else words,
        tokenizer_2=words_2,
        scheduler=make_scheduler(scheduler, prediction_type),
        force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        add_watermarker=False,
        **({"requires_aesthetics_score": True} if refiner else {}),
    )
    pipe.save_pretrained(folder)
    return folder


def sdxl_edit(folder: Path | str) -> Path:
    """An SDXL checkpoint that edits pictures."""
    return sdxl(folder, in_channels=8)


UNET = dict(
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=8,
    norm_num_groups=8,
)
VAE = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=8,
    sample_size=32,
)


def written(pipe: Any, folder: Path | str) -> Path:
    pipe.save_pretrained(folder)
    return Path(folder)


def repaint(folder: Path | str, *, seed: int = 0) -> Path:
    """An unconditional checkpoint with the scheduler of RePaint."""
    torch.manual_seed(seed)
    pipe = diffusers.RePaintPipeline(unet=diffusers.UNet2DModel(sample_size=16, **UNET), scheduler=diffusers.RePaintScheduler())
    return written(pipe, folder)


def consistency(folder: Path | str, *, classes: int | None = None, seed: int = 0) -> Path:
    """A consistency model in pixel space: pictures of 16 x 16 pixels, of `classes`."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(sample_size=16, num_class_embeds=classes, resnet_time_scale_shift="scale_shift", **UNET)
    return written(diffusers.ConsistencyModelPipeline(unet=unet, scheduler=diffusers.CMStochasticIterativeScheduler()), folder)


def codebook(channels: int = 3) -> Any:
    """A VQModel whose vectors are as far apart as latents are."""
    vqvae = diffusers.VQModel(num_vq_embeddings=64, latent_channels=channels, **VAE)
    torch.nn.init.normal_(vqvae.quantize.embedding.weight)
    return vqvae


def ldm(folder: Path | str, *, seed: int = 0) -> Path:
    """Unconditional latent diffusion: pictures of 32 x 32 pixels, latents of (3, 16, 16)."""
    torch.manual_seed(seed)
    unet, scheduler = diffusers.UNet2DModel(sample_size=16, **UNET), make_scheduler("DDIMScheduler", "epsilon")
    return written(diffusers.LDMPipeline(vqvae=codebook(), unet=unet, scheduler=scheduler), folder)


def super_resolution(folder: Path | str, *, scheduler: str = "DDIMScheduler", seed: int = 0) -> Path:
    """Pictures of twice the size: the denoiser sees latents of 3 channels and the picture of 3."""
    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(sample_size=16, in_channels=6, out_channels=3, **UNET)
    made = make_scheduler(scheduler, "epsilon")
    return written(diffusers.LDMSuperResolutionPipeline(vqvae=codebook(), unet=unet, scheduler=made), folder)


def ldm_text(folder: Path | str, *, vq: bool = False, seed: int = 0) -> Path:
    """The text to image checkpoint of latent diffusion: pictures of 32 x 32 pixels, latents of (4, 4, 4)."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
    from transformers import BertTokenizer

    folder = Path(folder)
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "and", "red", "a"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    tokens = BertTokenizer(str(folder / "vocab.txt"), model_max_length=77)
    (folder / "vocab.txt").unlink()
    size = dict(d_model=16, encoder_layers=2, encoder_ffn_dim=24, encoder_attention_heads=2, head_dim=8)
    bert = LDMBertModel(LDMBertConfig(vocab_size=len(words), **size)).eval()
    for p in bert.parameters():  # as it is made, all prompts come out alike
        torch.nn.init.normal_(p, std=0.3)
    four = VAE | dict(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    vqvae = (diffusers.VQModel if vq else diffusers.AutoencoderKL)(latent_channels=4, **four)
    blocks = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    unet = diffusers.UNet2DConditionModel(sample_size=4, cross_attention_dim=16, **UNET | blocks | {"attention_head_dim": 4})
    scheduler = make_scheduler("DDIMScheduler", "epsilon")
    pipe = diffusers.LDMTextToImagePipeline(vqvae=vqvae, bert=bert, tokenizer=tokens, unet=unet, scheduler=scheduler)
    return written(pipe, folder)


def dit(folder: Path | str, *, learned_variance: bool = True, words: bool = False, seed: int = 0) -> Path:
    """DiT: pictures of 16 x 16 pixels, latents of (4, 8, 8), 1000 classes. With `words` some of them have names, and the transformer its old one."""
    folder = Path(folder)
    torch.manual_seed(seed)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, out_channels=8 if learned_variance else 4
    )
    vae = diffusers.AutoencoderKL(latent_channels=4, **VAE)
    made = diffusers.DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    written(diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=made), folder)
    if words:
        index, config = folder / "model_index.json", folder / "transformer/config.json"
        names = {"id2label": {"0": "tench, Tinca tinca", "1": "goldfish"}, "transformer": ["diffusers", "Transformer2DModel"]}
        index.write_text(json.dumps(json.loads(index.read_text()) | names))
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Transformer2DModel"}))
    return folder


def svd(folder: Path | str, *, seed: int = 0) -> Path:
    """Stable Video Diffusion: 3 frames of 32 x 32 pixels, latents of (4, 16, 16)."""
    from transformers import CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        cross_attention_dim=16,
        num_attention_heads=(2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        sample_size=16,
        num_frames=3,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=224, patch_size=56, projection_dim=16
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        **SCHEDULE,
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
    )
    parts = {"vae": vae, "image_encoder": CLIPVisionModelWithProjection(vision), "unet": unet, "scheduler": scheduler}
    return written(diffusers.StableVideoDiffusionPipeline(**parts, feature_extractor=CLIPImageProcessor()), folder)


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
