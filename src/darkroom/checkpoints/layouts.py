"""The original layout of latent diffusion, which keeps a whole checkpoint in one file: where each network lies, what its tensors are called, and
what else is known of the families. Names are tables of modules, ours -> original, which reading and writing share."""

from __future__ import annotations
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from ..errors import ConfigError

__all__ = [
    "ANCHORS", "CONVOLUTIONS", "EULER", "FAMILIES", "FUSED", "IGNORED", "MOST", "NAMES", "NETWORKS", "PLACES", "PUBLISHED_STEPS",
    "QUERY_KEY_VALUE", "SCHEDULE", "SEEMS", "SINUSOIDS", "TEXTS", "WHOLE", "Family", "Place", "TextPlace", "count", "parents",
]  # fmt: skip

MOST = 100  # blocks, or layers, of a kind that a file may have

# ---- names

UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "class_embedding": "label_emb",
    "class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1", "conv_norm_out": "out.0", "conv_out": "out.2",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0", "controlnet_mid_block": "middle_block_out.0",
}  # fmt: skip
UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
VAE_SIDE = {
    "conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out", "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.0.conv_shortcut": "mid.block_1.nin_shortcut", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm", "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k", "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}  # fmt: skip
OPENCLIP = {
    "embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final", "text_projection.weight": "text_projection",
}  # fmt: skip
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1", "self_attn.in_proj_weight": "attn.in_proj_weight", "self_attn.in_proj_bias": "attn.in_proj_bias",
    "self_attn.out_proj": "attn.out_proj", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip

MOTION = {"attn": "attention_blocks", "norm": "norms"}  # which are numbered from 1 here, from 0 there
SINUSOIDS = "attention_blocks.0.pos_encoder"


def parents(names: Iterable[str]) -> set[str]:
    """The modules that these tensors are in, at every depth."""
    return {name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)}


def count(tree: set[str], module: str) -> int:
    """How many children a module has that are numbered from 0 on. Raises ConfigError if it is more than any network has."""
    number = 0
    while f"{module}.{number}" in tree:
        number += 1
    if number > MOST:
        raise ConfigError("More blocks than a network of this kind has.", where=module, got=number, expected=f"at most {MOST}")
    return number


def _originals(names: Iterable[str], modules: Mapping[str, str]) -> dict[str, str]:
    """Original name -> ours, by the longest prefix of ours in the table. Names that the table does not cover are left out."""
    found = {}
    for name in names:
        module = name
        while module not in modules and "." in module:
            module = module.rpartition(".")[0]
        if module in modules:
            found[modules[module] + name[len(module) :]] = name
    return found


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """Original -> ours, of a UNet or a ControlNet. Input and output blocks are numbered through all levels; a resampling counts on the way down
    only. A ControlNet's layers for its picture have activations between them, which count too."""
    tree, modules = parents(names), dict(UNET)

    def add(resnet: str, original: str) -> None:
        modules.update({f"{resnet}.{ours}": f"{original}.{theirs}" for ours, theirs in UNET_RESNET.items()})

    def level(block: str, original: str, number: int) -> int:
        for i in range(count(tree, f"{block}.resnets")):
            add(f"{block}.resnets.{i}", f"{original}.{number + i}.0")
            modules[f"{block}.attentions.{i}"] = f"{original}.{number + i}.1"
        return number + count(tree, f"{block}.resnets")

    number = 1
    for i in range(count(tree, "down_blocks")):
        number = level(f"down_blocks.{i}", "input_blocks", number)
        modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    add("mid_block.resnets.0", "middle_block.0")
    add("mid_block.resnets.1", f"middle_block.{2 if 'mid_block.attentions' in tree else 1}")
    number = 0
    for i in range(count(tree, "up_blocks")):
        block = f"up_blocks.{i}"
        number = level(block, "output_blocks", number)
        modules[f"{block}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{2 if f'{block}.attentions' in tree else 1}.conv"
    for i in range(count(tree, "controlnet_down_blocks")):
        modules[f"controlnet_down_blocks.{i}"] = f"zero_convs.{i}.0"
    hints = count(tree, "controlnet_cond_embedding.blocks")
    for i, name in enumerate([*(f"blocks.{i}" for i in range(hints)), "conv_out"]):
        modules[f"controlnet_cond_embedding.{name}"] = f"input_hint_block.{2 * i + 2}"
    return _originals(names, modules)


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Original -> ours. The decoder's levels are numbered from the image on, against the order in which they run."""
    tree = parents(names)
    modules = VAE | {f"{side}.{ours}": f"{side}.{theirs}" for side in ("encoder", "decoder") for ours, theirs in VAE_SIDE.items()}
    for side, way in (("encoder", "down"), ("decoder", "up")):
        levels = count(tree, f"{side}.{way}_blocks")
        for level in range(levels):
            block, original = f"{side}.{way}_blocks.{level}", f"{side}.{way}.{level if way == 'down' else levels - 1 - level}"
            modules[f"{block}.{way}samplers.0.conv"] = f"{original}.{way}sample.conv"
            for i in range(count(tree, f"{block}.resnets")):
                modules[f"{block}.resnets.{i}"] = f"{original}.block.{i}"
                modules[f"{block}.resnets.{i}.conv_shortcut"] = f"{original}.block.{i}.nin_shortcut"
    return _originals(names, modules)


def clip_names(names: Iterable[str]) -> dict[str, str]:
    """Original -> ours: the names are transformers' own, which has put "text_model." in front of them or not."""
    return {name.removeprefix("text_model."): name for name in names}


def openclip_names(names: Iterable[str]) -> dict[str, str]:
    """Original -> ours, with the queries, keys and values of a layer as one `self_attn.in_proj_weight` and `_bias`, as they are there."""
    bare = clip_names(re.sub(r"\.[qkv]_proj\.", ".in_proj_", name) for name in names)
    modules = dict(OPENCLIP)
    for i in range(count(parents(bare), "encoder.layers")):
        modules |= {f"encoder.layers.{i}.{ours}": f"transformer.resblocks.{i}.{theirs}" for ours, theirs in OPENCLIP_LAYER.items()}
    return {original: bare[name] for original, name in _originals(bare, modules).items()}


def motion_names(names: Iterable[str]) -> dict[str, str]:
    """Original -> ours, of motion modules and of what has them: they alone are called otherwise."""

    def original(name: str) -> str:
        if not (match := re.fullmatch(r"(.*\bmotion_modules\.\d+)\.(.*)", name)):
            return name
        inner = re.sub(r"\.(attn|norm)([12])\.", lambda m: f".{MOTION[m[1]]}.{int(m[2]) - 1}.", match[2])
        return f"{match[1]}.temporal_transformer.{inner.replace('.norm3.', '.ff_norm.').replace('.pos_embed.', f'.{SINUSOIDS}.')}"

    return {original(name): name for name in names}


NAMES: dict[str, Callable[[Iterable[str]], dict[str, str]]] = {
    "unet": unet_names, "vae": vae_names, "controlnet": unet_names, "motion_adapter": motion_names, "sparse_controlnet": motion_names,
    "clip": clip_names, "openclip": openclip_names,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a network lies: a tensor that it always has, its prefixes, how its names begin where there is no prefix, its prefix in a file of its own,
    and tensors that are not read."""

    anchor: str
    prefixes: tuple[str, ...]
    roots: tuple[str, ...]
    alone: str = ""
    unread: re.Pattern[str] | None = None


NETWORKS = {  # our classes that such files hold
    "UNet2DConditionModel": "unet", "AutoencoderKL": "vae", "ControlNetModel": "controlnet", "MotionAdapter": "motion_adapter",
    "SparseControlNetModel": "sparse_controlnet",
}  # fmt: skip
WHOLE = ("unet", "vae")  # what a file of a whole checkpoint always holds
_UNET = ("input_blocks.", "middle_block.", "time_embed.", "label_emb.")
_TEMPORAL = ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", ("", "module."))
_FRAMES = r".*\.pos_encoder\.pe"  # sinusoids, which the layers make themselves
PLACES = {
    "unet": Place("out.2.weight", ("model.diffusion_model.", "diffusion_model.", ""), (*_UNET, "output_blocks.", "out."),
                  "model.diffusion_model."),
    "vae": Place("decoder.mid.block_1.norm1.weight", ("first_stage_model.", "vae.", ""), ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")),
    "controlnet": Place("zero_convs.0.0.weight", ("control_model.", ""), (*_UNET, "zero_convs.", "middle_block_out.", "input_hint_block."),
                        "control_model."),
    "motion_adapter": Place(*_TEMPORAL, ("down_blocks.", "mid_block.", "up_blocks.", "conv_in."),
                            unread=re.compile(rf"{_FRAMES}|(?!conv_in\.|.*\bmotion_modules\.).*")),
    "sparse_controlnet": Place(*_TEMPORAL, ("down_blocks.", "mid_block.", "conv_in.", "time_embedding.", "controlnet_"),
                               unread=re.compile(_FRAMES)),
}  # fmt: skip
# of text encoders: what no network here reads. OpenCLIP's own are trained with an image encoder, and count positions
IGNORED = re.compile(r"embeddings\.position_ids|logit_scale|text_projection|transformer\.resblocks\.\d+\..*")
FUSED = re.compile(r"in_proj_(weight|bias)$")  # the name of what there is one tensor for, ours with QUERY_KEY_VALUE for three
QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
CONVOLUTIONS = re.compile(r"\.mid\.attn_1\.(q|k|v|proj_out)\.weight$")  # linear layers here, 1x1 convolutions there
PUBLISHED_STEPS = {  # training steps of the published files of the second family, which tell what they predict
    "875000": "epsilon", "220000": "epsilon", "110000": "v_prediction", "140000": "v_prediction",
}  # fmt: skip
SEEMS = [  # (pattern of a name, what a file with such a name seems to be), the most telling first
    (r"lora_(unet|te|up|down|A|B)|\.lora\.|_lora\.(up|down)\.|\.hada_w|\.lokr_w|\.dora_scale", "a LoRA: add it to a loaded pipeline"),
    (r"control_model\.|input_hint_block|zero_convs|controlnet_|^controlnet", "a ControlNet: load it with ControlNetModel.from_single_file"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter: add it to a loaded pipeline"),
    (r"motion_modules\.\d+\.temporal_transformer", "a motion module: load it with MotionAdapter.from_single_file"),
    (r"time_stack|time_mixer|time_mix_conv", "a video model"),
    (r"^(emb_params|string_to_param|clip_[gl])", "a textual inversion: add it to a loaded pipeline"),
    (r"joint_blocks\.|double_blocks\.|single_blocks\.|x_embedder", "a diffusion transformer, whose original layout is not read"),
    (r"^(unet\.|vae\.)?(down_blocks|up_blocks|(en|de)coder\.(down|up)_blocks)\.",
     "one network in the folder layout: put it beside its config.json and use from_pretrained"),
    (r"^(text_model|transformer\.resblocks|resblocks)\.", "a text encoder alone"),
    (r"^model_ema\.|^(optimizer|param_groups)", "a training state"),
]  # fmt: skip

# ---- what differs between the families


@dataclass(frozen=True)
class TextPlace:
    """A text encoder: the component it becomes, where it lies, how its names are ("clip", "openclip"), what its shapes do not tell."""

    component: str
    prefix: str
    names: str
    class_name: str = "CLIPTextModel"
    layers: int = MOST  # those beyond are never run
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """What tensors do not tell. `pipelines` are by the UNet's input channels; sizes are those of training, in latents."""

    title: str
    pipelines: Mapping[int, str]
    scheduler: str
    size: int
    scaling_factor: float = 0.18215
    head_dim: int | None = 64  # None: 8 heads everywhere
    options: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline


_XL = ("StableDiffusionXLPipeline", "StableDiffusionXLInpaintPipeline", "StableDiffusionXLInstructPix2PixPipeline")
FAMILIES = {
    "v1": Family(
        "Stable Diffusion 1", {4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline", 8: "StableDiffusionInstructPix2PixPipeline"},
        "PNDMScheduler", 64, head_dim=None,
    ),
    "v2": Family(
        "Stable Diffusion 2",
        {4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline", 5: "StableDiffusionDepth2ImgPipeline",
         7: "StableDiffusionUpscalePipeline"}, "PNDMScheduler", 64,
    ),
    "xl": Family("SDXL", {4: _XL[0], 9: _XL[1], 8: _XL[2]}, "EulerDiscreteScheduler", 128, 0.13025),
    "refiner": Family(
        "the SDXL refiner", {4: "StableDiffusionXLImg2ImgPipeline", 9: _XL[1]}, "EulerDiscreteScheduler", 128, 0.13025,
        options={"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
}  # fmt: skip
_CLIP_L, _OPENCLIP = {"hidden_act": "quick_gelu", "projection_dim": 768}, {"hidden_act": "gelu"}
_SECOND = ("text_encoder_2", "openclip", "CLIPTextModelWithProjection", MOST, _OPENCLIP)
TEXTS: dict[str, list[TextPlace]] = {  # the first place of a component is where it is written
    "v1": [TextPlace("text_encoder", f"cond_stage_model.transformer.{inner}", "clip", options=_CLIP_L) for inner in ("text_model.", "")],
    "v2": [TextPlace("text_encoder", "cond_stage_model.model.", "openclip", layers=23, options=_OPENCLIP | {"projection_dim": 512})],
    "xl": [
        TextPlace("text_encoder", "conditioner.embedders.0.transformer.text_model.", "clip", options=_CLIP_L),
        TextPlace(_SECOND[0], "conditioner.embedders.1.model.", *_SECOND[1:]),
    ],
    "refiner": [TextPlace(_SECOND[0], "conditioner.embedders.0.model.", *_SECOND[1:])],
}
ANCHORS = {"clip": "embeddings.token_embedding.weight", "openclip": "token_embedding.weight"}
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "trained_betas": None,
    "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip
EULER = {"interpolation_type": "linear", "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False}
