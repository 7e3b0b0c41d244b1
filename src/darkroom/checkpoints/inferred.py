"""What a file in the original layout tells of configurations: by the shapes of its tensors, its family, and the training code's YAML."""

from __future__ import annotations
from collections.abc import Iterable, Mapping
from typing import Any
from ..errors import ConfigError
from .layouts import ANCHORS, EULER, FAMILIES, MOST, SCHEDULE, SINUSOIDS, TEXTS, TextPlace, count, parents

__all__ = ["CONFIGS", "Shapes", "family_of", "original_options", "scheduler_config", "text_config"]

Shapes = Mapping[str, tuple[int, ...]]  # original name, without the network's prefix -> shape
LONGEST = 65536  # tokens of a text
Told = tuple[dict[str, Any], dict[str, Any]]  # what the shapes tell, what the family adds


def family_of(names: Iterable[str], unet: Shapes | None) -> str:
    """The key in FAMILIES: by the text encoders' places, or else by the UNet's context and added conditions."""
    names = set(names)
    for key in ("xl", "refiner", "v2", "v1"):
        if any(place.prefix + ANCHORS[place.names] in names for place in TEXTS[key] if place.component != "text_encoder" or key[0] == "v"):
            return key
    context = next((shape[1] for name, shape in (unet or {}).items() if name.endswith("attn2.to_k.weight") and len(shape) == 2), 768)
    added = unet is not None and "label_emb.0.0.weight" in unet
    return {(True, 2048): "xl", (True, 1280): "refiner"}.get((added, context), "v1" if context == 768 and not added else "v2")


def _way_down(shapes: Shapes, family: str, prediction_type: str) -> Told:
    """(what the shapes tell, what the family adds) of what a UNet and its ControlNet share."""
    tree = parents(shapes)
    levels: list[list[str]] = [[]]
    for number in range(1, count(tree, "input_blocks")):
        if f"input_blocks.{number}.0.op" in tree:
            levels.append([])
        else:
            levels[-1].append(f"input_blocks.{number}")
    widths = tuple(shapes[f"{level[0]}.0.in_layers.2.weight"][0] for level in levels)
    depths = [count(tree, f"{level[0]}.1.transformer_blocks") for level in levels]
    middle = count(tree, "middle_block.1.transformer_blocks")
    known = {depth for depth in (*depths, middle) if depth}
    each = tuple(depth or (middle if level is levels[-1] else 0) or 1 for level, depth in zip(levels, depths))
    attends = [bool(depth) for depth in depths]
    seen: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "transformer_layers_per_block": known.pop() if len(known) == 1 else each,
    }
    seen |= _context(shapes)
    if "label_emb.weight" in shapes:
        seen["num_class_embeds"] = shapes["label_emb.weight"][0]
    elif "label_emb.0.0.weight" in shapes:
        added = ("addition_embed_type", "text_time") if family in ("xl", "refiner") else ("class_embed_type", "projection")
        seen |= {added[0]: added[1], "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1]}
    made, v = FAMILIES[family], family == "v2" and prediction_type == "v_prediction"
    eight = made.head_dim is None or "num_class_embeds" in seen
    assumed: dict[str, Any] = {"upcast_attention": v}
    assumed["attention_head_dim"] = 8 if eight else tuple(max(1, width // (made.head_dim or 1)) for width in widths)
    if seen.get("addition_embed_type"):
        assumed["addition_time_embed_dim"] = 256
    return seen, assumed


def _context(shapes: Shapes) -> dict[str, Any]:
    """What the first attention to the text tells, nothing where there is none."""
    name = next((name for name in shapes if name.endswith("transformer_blocks.0.attn2.to_k.weight")), None)
    if name is None:
        return {}
    linear = len(shapes[name.partition("transformer_blocks")[0] + "proj_in.weight"]) == 2
    return {"cross_attention_dim": shapes[name][1], "use_linear_projection": linear}


def unet_config(shapes: Shapes, family: str, prediction_type: str = "epsilon") -> Told:
    """(what the shapes tell, what the family adds) of a UNet's configuration. KeyError or IndexError where it is no such UNet."""
    seen, assumed = _way_down(shapes, family, prediction_type)
    seen["out_channels"] = shapes["out.2.weight"][0]
    seen["up_block_types"] = tuple(name.replace("Down", "Up") for name in reversed(seen["down_block_types"]))
    return seen, assumed | {"sample_size": _size(family, prediction_type)}


def controlnet_config(shapes: Shapes, family: str, prediction_type: str = "epsilon") -> Told:
    """(what the shapes tell, what the family adds) of a ControlNet's configuration. KeyError or IndexError where it is none."""
    seen, assumed = _way_down(shapes, family, prediction_type)
    layers = range(2, MOST, 2)  # of its picture, after the first; the last one goes to the latents' width
    widths = [shapes[name][0] for i in layers if (name := f"input_hint_block.{i}.weight") in shapes]
    first, channels = shapes["input_hint_block.0.weight"][:2]
    seen |= {"conditioning_channels": channels, "conditioning_embedding_out_channels": (first, *widths[1:-1:2])}
    return seen, assumed


def _motion(shapes: Shapes, *blocks: str) -> tuple[tuple[int, ...], Any, Any, int]:
    """Widths, layers and depths of the motion modules of these blocks, and the frames that the first one knows."""
    tree, modules = parents(shapes), [f"{block}.motion_modules.0.temporal_transformer" for block in blocks]
    widths = tuple(shapes[f"{module}.norm.weight"][0] for module in modules)
    layers, depths = (_one([count(tree, name) for name in names]) for names in (
        [f"{block}.motion_modules" for block in blocks], [f"{module}.transformer_blocks" for module in modules]
    ))  # fmt: skip
    return widths, layers, depths, shapes[f"{modules[0]}.transformer_blocks.0.{SINUSOIDS}.pe"][1]


def motion_adapter_config(shapes: Shapes, family: str, prediction_type: str = "epsilon") -> Told:
    """(what the shapes tell, nothing) of the configuration of motion modules. KeyError or IndexError where there are none."""
    tree, frames = parents(shapes), "motion_max_seq_length"
    fields = ("block_out_channels", "motion_layers_per_block", "motion_transformer_layers_per_block", frames)
    seen = dict(zip(fields, _motion(shapes, *(f"down_blocks.{i}" for i in range(count(tree, "down_blocks"))))))
    seen["conv_in_channels"] = shapes["conv_in.weight"][1] if "conv_in.weight" in shapes else None
    seen["use_motion_mid_block"] = "mid_block.motion_modules.0" in tree
    if seen["use_motion_mid_block"]:
        _, layers, depths, _ = _motion(shapes, "mid_block")
        seen |= {"motion_mid_block_layers_per_block": layers, "motion_transformer_layers_per_mid_block": depths}
    return seen, {}


def sparse_controlnet_config(shapes: Shapes, family: str, prediction_type: str = "epsilon") -> Told:
    """(what the shapes tell, what is assumed) of a ControlNet with motion modules, whose other tensors are called as in folders."""
    tree = parents(shapes)
    blocks = [f"down_blocks.{i}" for i in range(count(tree, "down_blocks"))]
    widths, _, across, frames = _motion(shapes, *blocks)
    attends = [f"{block}.attentions" in tree for block in blocks]
    depths = [count(tree, f"{block}.attentions.0.transformer_blocks") for block, a in zip(blocks, attends) if a]
    simple = "controlnet_cond_embedding.weight" in shapes
    picture = "controlnet_cond_embedding" if simple else "controlnet_cond_embedding.conv_in"
    seen = {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": widths,
        "layers_per_block": count(tree, "down_blocks.0.resnets"),
        "down_block_types": tuple("CrossAttnDownBlockMotion" if a else "DownBlockMotion" for a in attends),
        "transformer_layers_per_block": _one(depths) if depths else 1,
        "temporal_transformer_layers_per_block": across,
        "motion_max_seq_length": frames,
        "use_simplified_condition_embedding": simple,
    }
    seen |= _context(shapes)
    if not simple:
        layers = ["conv_in", *(f"blocks.{i}" for i in range(1, count(tree, "controlnet_cond_embedding.blocks"), 2))]
        seen["conditioning_embedding_out_channels"] = tuple(shapes[f"controlnet_cond_embedding.{name}.weight"][0] for name in layers)
    return seen, {"conditioning_channels": shapes[f"{picture}.weight"][1] - 1}  # one more says which frames have a picture


def _one(values: list[int]) -> int | tuple[int, ...]:
    """One number where all are the same, as configurations have it."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def _size(family: str, prediction_type: str) -> int:
    """The width and height of training, in latents."""
    return 96 if family == "v2" and prediction_type == "v_prediction" else FAMILIES[family].size


def vae_config(shapes: Shapes, family: str, prediction_type: str = "epsilon") -> Told:
    """(what the shapes tell, what the family adds) of an autoencoder's configuration. KeyError or IndexError where it is none."""
    tree = parents(shapes)
    levels = range(count(tree, "encoder.down"))
    seen = {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in levels),
        "layers_per_block": count(tree, "encoder.down.0.block"),
        "down_block_types": ("DownEncoderBlock2D",) * len(levels),
        "up_block_types": ("UpDecoderBlock2D",) * len(levels),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in shapes,
    }
    return seen, {"sample_size": 8 * _size(family, prediction_type), "scaling_factor": FAMILIES[family].scaling_factor}


CONFIGS = {  # by the keys of PLACES
    "unet": unet_config, "vae": vae_config, "controlnet": controlnet_config, "motion_adapter": motion_adapter_config,
    "sparse_controlnet": sparse_controlnet_config,
}  # fmt: skip


def text_config(shapes: Shapes, place: TextPlace) -> Told:
    """(what the shapes tell, what the place adds) of a text encoder's configuration. KeyError or IndexError where it is none."""
    tree, original = parents(shapes), place.names == "openclip"
    layer = ("transformer.resblocks", "mlp.c_fc") if original else ("encoder.layers", "mlp.fc1")
    vocabulary, width = shapes[ANCHORS[place.names]]
    positions = shapes["positional_embedding" if original else "embeddings.position_embedding.weight"][0]
    if positions > LONGEST:
        raise ConfigError("A text encoder for texts of no such length.", where="positions", got=positions, expected=f"at most {LONGEST}")
    seen = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": positions,
        "intermediate_size": shapes[f"{layer[0]}.0.{layer[1]}.weight"][0],
        "num_hidden_layers": min(count(tree, layer[0]), place.layers),
    }
    if place.class_name == "CLIPTextModelWithProjection":
        seen["projection_dim"] = shapes["text_projection"][1]
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as published; 2 means that the largest token is the end
    return seen, {"num_attention_heads": max(1, width // 64), **ends, **place.options}


def scheduler_config(family: str, prediction_type: str, changes: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(class, configuration) of the scheduler that a family's checkpoints are published with."""
    kind, options = FAMILIES[family].scheduler, {**SCHEDULE, "prediction_type": prediction_type}
    if kind == "EulerDiscreteScheduler":
        options |= EULER
    elif family == "v2" and prediction_type == "v_prediction":
        kind = "DDIMScheduler"
    return kind, {**options, **changes}


def original_options(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the YAML file of the training code says that tensors do not, by component; the prediction type is the scheduler's."""

    def at(*path: str) -> Any:
        value: Any = content
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    top = ("model", "params")
    inner: Mapping[str, Any] = next((config for key in ("unet_config", "network_config") if (config := at(*top, key, "params"))), {})
    parameterization, scaling = at(*top, "parameterization"), str(at(*top, "denoiser_config", "params", "scaling_config", "target") or "")
    prediction = {"v": "v_prediction", "eps": "epsilon"}.get(str(parameterization))
    prediction = prediction or ("v_prediction" if scaling.endswith(".VScaling") else "epsilon" if scaling.endswith(".EpsScaling") else None)
    heads, head_dim, size = inner.get("num_heads"), inner.get("num_head_channels"), at(*top, "image_size")  # the UNet's own is not true
    if isinstance(head_dim, int) and head_dim > 0:
        width, factors = inner.get("model_channels"), inner.get("channel_mult") or ()
        heads = tuple(width * factor // head_dim for factor in factors) if isinstance(width, int) else None
    own_heads = heads if heads != -1 else None
    return {
        "unet": given(attention_head_dim=own_heads, sample_size=size),
        "controlnet": given(attention_head_dim=own_heads),
        "vae": given(scaling_factor=at(*top, "scale_factor")),
        "scheduler": given(
            prediction_type=prediction,
            beta_start=at(*top, "linear_start"),
            beta_end=at(*top, "linear_end"),
            num_train_timesteps=at(*top, "timesteps"),
        ),
    }
