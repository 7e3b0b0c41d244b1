"""What a file in the original layout tells of configurations: by the shapes of its tensors, its family, and the training code's YAML."""

from __future__ import annotations
from collections.abc import Iterable, Mapping
from typing import Any
from ..errors import ConfigError
from .layouts import ANCHORS, EULER, FAMILIES, SCHEDULE, TEXTS, TextPlace, count, parents

__all__ = ["Shapes", "family_of", "original_options", "scheduler_config", "text_config", "unet_config", "vae_config"]

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


def unet_config(shapes: Shapes, family: str, prediction_type: str = "epsilon") -> Told:
    """(what the shapes tell, what the family adds) of a UNet's configuration. KeyError or IndexError where it is no such UNet."""
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
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D",
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        "transformer_layers_per_block": known.pop() if len(known) == 1 else each,
    }
    if attention := next((name for name in shapes if name.endswith("transformer_blocks.0.attn2.to_k.weight")), None):
        seen["cross_attention_dim"] = shapes[attention][1]
        seen["use_linear_projection"] = len(shapes[attention.partition("transformer_blocks")[0] + "proj_in.weight"]) == 2
    if "label_emb.weight" in shapes:
        seen["num_class_embeds"] = shapes["label_emb.weight"][0]
    elif "label_emb.0.0.weight" in shapes:
        added = ("addition_embed_type", "text_time") if family in ("xl", "refiner") else ("class_embed_type", "projection")
        seen |= {added[0]: added[1], "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1]}
    made, v = FAMILIES[family], family == "v2" and prediction_type == "v_prediction"
    eight = made.head_dim is None or "num_class_embeds" in seen
    assumed: dict[str, Any] = {"sample_size": 96 if v else made.size, "upcast_attention": v}
    assumed["attention_head_dim"] = 8 if eight else tuple(max(1, width // (made.head_dim or 1)) for width in widths)
    if seen.get("addition_embed_type"):
        assumed["addition_time_embed_dim"] = 256
    return seen, assumed


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
    size = 96 if family == "v2" and prediction_type == "v_prediction" else FAMILIES[family].size
    return seen, {"sample_size": 8 * size, "scaling_factor": FAMILIES[family].scaling_factor}


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
    return {
        "unet": given(attention_head_dim=heads if heads != -1 else None, sample_size=size),
        "vae": given(scaling_factor=at(*top, "scale_factor")),
        "scheduler": given(
            prediction_type=prediction,
            beta_start=at(*top, "linear_start"),
            beta_end=at(*top, "linear_end"),
            num_train_timesteps=at(*top, "timesteps"),
        ),
    }
