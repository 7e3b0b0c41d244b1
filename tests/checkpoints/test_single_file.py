"""Single files of the original layout: names, configurations, components and pipelines, beside the reference; writing; hostile files."""

from __future__ import annotations
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils as reference
from families import tiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
import darkroom
from darkroom import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from darkroom.assets.clip import END, clip_tokenizer, merges, vocabulary
from darkroom.checkpoints.layouts import FAMILIES, NAMES
from darkroom.checkpoints.single_file import load_single_file, load_text_encoders, open_single_file, save_single_file
from darkroom.errors import CheckpointError, DarkroomError, InputError

# ---- the published networks, by their config.json

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
_ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True, "sample_size": 128}
UNETS: dict[str, dict[str, Any]] = {
    "v1": {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "v1-inpaint": {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768, "in_channels": 9},
    "v2": {
        "sample_size": 96, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True,
        "upcast_attention": True,
    },
    "v2-depth": {
        "sample_size": 64, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True, "in_channels": 5,
    },
    "xl": {
        **_ADDED, "block_out_channels": (320, 640, 1280), "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, UP), "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816,
    },
    "refiner": {
        **_ADDED, "block_out_channels": (384, 768, 1536, 1536), "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP, UP), "attention_head_dim": (6, 12, 24, 24), "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280, "projection_class_embeddings_input_dim": 2560,
    },
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}  # fmt: skip
_ENDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": 49408, "max_position_embeddings": 77}
TEXTS: dict[str, dict[str, Any]] = {
    "L": {
        **_ENDS, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
    "H": {
        **_ENDS, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23, "hidden_act": "gelu",
        "projection_dim": 512,
    },
    "G": {
        **_ENDS, "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}  # fmt: skip
# a published file: the UNet, the text encoders with their prefixes, the number of its tensors
FILES = {
    "v1": ("v1", {"cond_stage_model.transformer.text_model.": "L"}, 1131),
    "v1-inpaint": ("v1-inpaint", {"cond_stage_model.transformer.text_model.": "L"}, 1131),
    "v2": ("v2", {"cond_stage_model.model.": "H"}, 686 + 248 + 294),
    "v2-depth": ("v2-depth", {"cond_stage_model.model.": "H"}, 686 + 248 + 294),
    "xl": ("xl", {"conditioner.embedders.0.transformer.text_model.": "L", "conditioner.embedders.1.model.": "G"}, 2515),
    "refiner": ("refiner", {"conditioner.embedders.0.model.": "G"}, 1220 + 248 + 390),
}
Sizes = dict[str, tuple[tuple[int, ...], str]]  # name -> shape, dtype


def on_meta(cls: Any, config: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return cls(**config)


def openclip_sizes(config: Mapping[str, Any], layers: int) -> dict[str, tuple[int, ...]]:
    """The text half of an OpenCLIP model, as open_clip's own code names it."""
    d, m = config["hidden_size"], config["intermediate_size"]
    layer = {
        "attn.in_proj_weight": (3 * d, d), "attn.in_proj_bias": (3 * d,), "attn.out_proj.weight": (d, d), "attn.out_proj.bias": (d,),
        "ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,), "mlp.c_fc.weight": (m, d), "mlp.c_fc.bias": (m,),
        "mlp.c_proj.weight": (d, m), "mlp.c_proj.bias": (d,),
    }  # fmt: skip
    top = {"positional_embedding": (77, d), "text_projection": (d, d), "logit_scale": (), "token_embedding.weight": (49408, d)}
    ends = {"ln_final.weight": (d,), "ln_final.bias": (d,)}
    return {**top, **ends, **{f"transformer.resblocks.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}}


def published(kind: str, dtype: str = "F16") -> Sizes:
    """The tensors of a published file."""
    unet, texts, count = FILES[kind]
    model = on_meta(diffusers.UNet2DConditionModel, UNETS[unet]).state_dict()
    found: Sizes = {f"model.diffusion_model.{o}": (tuple(model[k].shape), dtype) for o, k in NAMES["unet"](list(model)).items()}
    vae = on_meta(diffusers.AutoencoderKL, VAE).state_dict()
    for original, own in NAMES["vae"](list(vae)).items():
        shape = tuple(vae[own].shape)
        shape += (1, 1) if "attn_1" in original and len(shape) == 2 else ()
        found[f"first_stage_model.{original}"] = (shape, dtype)
    for prefix, name in texts.items():
        if name == "L":
            text = on_meta(CLIPTextModel, {"config": CLIPTextConfig(**TEXTS["L"])}).state_dict()
            found |= {prefix + key: (tuple(t.shape), dtype) for key, t in text.items()}
            found[prefix + "embeddings.position_ids"] = ((1, 77), "I64")
        else:
            sizes = openclip_sizes(TEXTS[name], 24 if name == "H" else 32)
            found |= {prefix + key: (shape, dtype) for key, shape in sizes.items()}
    assert len(found) == count
    return found


def sparse(path: Path, sizes: Sizes, metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of zeros that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end, width = 0, {"F16": 2, "F32": 4, "I64": 8}
    for name, (shape, dtype) in sorted(sizes.items(), key=lambda item: -width[item[1][1]]):
        begin, end = end, end + width[dtype] * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path


@pytest.fixture(scope="session", params=sorted(FILES))
def full_size(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, sparse(tmp_path_factory.mktemp("full") / f"{request.param}.safetensors", published(request.param))


def same_as(config: Mapping[str, Any], official: Mapping[str, Any]) -> None:
    listed = {k: tuple(v) if isinstance(v, list) else v for k, v in official.items()}
    assert {k: config[k] for k in listed} == listed


# ---- names


@pytest.mark.parametrize("kind", sorted(UNETS))
def test_names_of_a_unet_are_the_references(kind: str) -> None:
    ours, theirs = on_meta(UNet2DConditionModel, UNETS[kind]), on_meta(diffusers.UNet2DConditionModel, UNETS[kind])
    state = theirs.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in ours.state_dict().items()}
    names = NAMES["unet"](list(state))
    assert sorted(names.values()) == sorted(state)  # each has one original name
    converted = reference.convert_ldm_unet_checkpoint({f"model.diffusion_model.{o}": state[k] for o, k in names.items()}, theirs.config)
    assert converted.keys() == state.keys()
    assert all(converted[name] is state[name] for name in state)


def test_names_of_an_autoencoder_are_the_references() -> None:
    ours, theirs = on_meta(AutoencoderKL, VAE), on_meta(diffusers.AutoencoderKL, VAE)
    state = theirs.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in ours.state_dict().items()}
    names = NAMES["vae"](list(state))
    assert sorted(names.values()) == sorted(state)
    converted = reference.convert_ldm_vae_checkpoint({f"first_stage_model.{o}": state[k] for o, k in names.items()}, theirs.config)
    assert converted.keys() == state.keys()
    assert all(converted[name] is state[name] for name in state)


@pytest.mark.parametrize(("size", "layers", "cls"), [("H", 24, CLIPTextModel), ("G", 32, CLIPTextModelWithProjection)])
def test_names_of_openclip_are_the_references(size: str, layers: int, cls: Any, tmp_path: Path) -> None:
    prefix = "cond_stage_model.model." if size == "H" else "conditioner.embedders.1.model."
    sizes = {prefix + name: shape for name, shape in openclip_sizes(TEXTS[size], layers).items()}
    wanted = on_meta(cls, {"config": CLIPTextConfig(**TEXTS[size])})
    converted = reference.convert_open_clip_checkpoint(wanted, {n: torch.empty(s, device="meta") for n, s in sizes.items()}, prefix)
    theirs = {n.removeprefix("text_model."): t.shape for n, t in converted.items() if n != "text_projection.weight" or size == "G"}
    path = sparse(tmp_path / "text.safetensors", {n: (s, "F16") for n, s in sizes.items()})
    (model,) = load_text_encoders(path, dtype="auto").values()
    assert type(model) is cls
    assert {n.removeprefix("text_model."): t.shape for n, t in model.state_dict().items()} == theirs
    same_as(model.config.to_dict(), TEXTS[size])


# ---- published files, whole


def test_configurations_are_the_published_ones(full_size: tuple[str, Path]) -> None:
    kind, path = full_size
    unet = load_single_file(UNet2DConditionModel, path, dtype="auto")
    same_as(unet.config, UNETS[kind])
    assert unet.dtype == torch.float16
    assert not unet.training
    vae = load_single_file(AutoencoderKL, path, dtype="auto")
    xl = kind in ("xl", "refiner")
    same_as(vae.config, {**VAE, "scaling_factor": 0.13025 if xl else 0.18215, "sample_size": 8 * UNETS[kind]["sample_size"]})
    encoders = load_text_encoders(path, dtype="auto")
    sizes = list(FILES[kind][1].values())
    assert [(type(e).__name__, e.config.num_hidden_layers) for e in encoders.values()] == [
        ("CLIPTextModel" if size != "G" else "CLIPTextModelWithProjection", TEXTS[size]["num_hidden_layers"]) for size in sizes
    ]
    assert list(encoders) == {"xl": ["text_encoder", "text_encoder_2"], "refiner": ["text_encoder_2"]}.get(kind, ["text_encoder"])
    for encoder, size in zip(encoders.values(), sizes):
        same_as(encoder.config.to_dict(), TEXTS[size])
        assert encoder.dtype == torch.float16


# ---- tiny checkpoints, beside the reference


class TwoEncoders(DiffusionPipeline):
    """What a pipeline of the larger family is made of."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer | None
    tokenizer_2: CLIPTokenizer
    unet: UNet2DConditionModel
    scheduler: Any

    options = {"force_zeros_for_empty_prompt": True, "requires_aesthetics_score": False}


def tiny_text(cls: Any, act: str) -> Any:
    width = 32 if cls is CLIPTextModel else 64  # the reference tells the two encoders of a file by their widths
    sizes = {"hidden_size": width, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 24}
    torch.manual_seed(width)
    return cls(CLIPTextConfig(**sizes, vocab_size=600, max_position_embeddings=16, hidden_act=act, bos_token_id=0, eos_token_id=1)).eval()


def tiny_v2(folder: Path) -> tuple[Any, Any]:
    """(the reference's pipeline, ours) with an OpenCLIP text encoder, linear projections and v-prediction."""
    tiny.sd(folder, use_linear_projection=True, prediction_type="v_prediction")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, text_encoder=tiny_text(CLIPTextModel, "gelu"), safety_checker=None)
    theirs.save_pretrained(folder)
    return theirs, StableDiffusionPipeline.from_pretrained(folder)


def tiny_xl(folder: Path, first: bool = True) -> tuple[Any, Any]:
    """(the reference's pipeline, ours) with two text encoders, or with the second only."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 64), layers_per_block=1, sample_size=16, down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN),
        up_block_types=(CROSS_UP, CROSS_UP, UP), attention_head_dim=(2, 4, 4), transformer_layers_per_block=(1, 2, 3), cross_attention_dim=64,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=72,
    )  # fmt: skip
    words = tiny.tokenizer(folder / "words")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        scaling_factor=0.13025,
    )  # fmt: skip
    parts = {
        "vae": vae, "unet": unet, "text_encoder": tiny_text(CLIPTextModel, "quick_gelu") if first else None, "tokenizer": words if first else None,
        "text_encoder_2": tiny_text(CLIPTextModelWithProjection, "gelu"), "tokenizer_2": words, "scheduler": diffusers.EulerDiscreteScheduler(),
    }  # fmt: skip
    theirs = diffusers.StableDiffusionXLPipeline(**parts)
    theirs.save_pretrained(folder)
    own = {name: cls.from_pretrained(folder, subfolder=name) for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))}
    return theirs, TwoEncoders(**{**parts, **own})


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left)


def networks(pipe: Any) -> dict[str, nn.Module]:
    return {name: c for name, c in pipe.components.items() if isinstance(c, nn.Module)}


KINDS = ("v1", "v2", "xl", "refiner")


@pytest.fixture(scope="session", params=KINDS)
def tiny_pair(request: pytest.FixtureRequest, tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, Path]:
    """(folder, the reference's pipeline, ours, our single file)."""
    kind, folder = request.param, tmp_path_factory.mktemp("pair") / "folder"
    if kind == "v1":
        folder = tiny_sd
        theirs, ours = diffusers.StableDiffusionPipeline.from_pretrained(folder), StableDiffusionPipeline.from_pretrained(folder)
    else:
        theirs, ours = tiny_v2(folder) if kind == "v2" else tiny_xl(folder, first=kind == "xl")
    path = tmp_path_factory.mktemp("single") / f"{kind}.safetensors"
    save_single_file(ours, path)
    return folder, theirs, ours, path


def test_the_reference_reads_what_we_write(tiny_pair: tuple[Path, Any, Any, Path]) -> None:
    folder, theirs, _, path = tiny_pair
    if len(networks(theirs)) == 3 and hasattr(theirs, "text_encoder_2"):
        read = {"text_encoder_2": reference.create_diffusers_clip_model_from_ldm(
            CLIPTextModelWithProjection, load_file(path), "text_encoder_2", config=str(folder), local_files_only=True)}  # fmt: skip
    else:
        read = networks(type(theirs).from_single_file(str(path), config=str(folder), local_files_only=True))
        assert read.keys() == networks(theirs).keys()
    for name, cls in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        read[f"{name} alone"] = cls.from_single_file(str(path), config=str(folder), subfolder=name, local_files_only=True)
    for name, module in read.items():
        assert same(module, getattr(theirs, name.partition(" ")[0])), name


def test_we_read_what_we_write(tiny_pair: tuple[Path, Any, Any, Path]) -> None:
    folder, _, ours, path = tiny_pair
    for config in (None, folder):
        words = {name: c for name, c in ours.components.items() if "tokenizer" in name}
        pipe = load_single_file(type(ours), path, config=config, **words)
        assert networks(pipe).keys() == networks(ours).keys()
        for name, module in networks(pipe).items():
            assert same(module, getattr(ours, name)), name
            assert not module.training
        for name in ("unet", "vae"):
            left, right = (dict(getattr(p, name).config) for p in (pipe, ours))
            assert {k: v for k, v in left.items() if k[0] != "_"} == {k: v for k, v in right.items() if k[0] != "_"}
        assert pipe.config["_name_or_path"] == str(path)
    assert pipe.scheduler.config == type(pipe.scheduler).from_pretrained(folder, subfolder="scheduler").config


def test_pictures_are_those_of_the_folder(tiny_pair: tuple[Path, Any, Any, Path]) -> None:
    folder, theirs, ours, path = tiny_pair
    if not isinstance(ours, StableDiffusionPipeline):
        return
    pipe = load_single_file(DiffusionPipeline, path, config=folder)
    assert type(pipe) is StableDiffusionPipeline
    options = {"num_inference_steps": 3, "output_type": "np", "height": 32, "width": 32}
    pictures = [p("a cat", generator=torch.Generator().manual_seed(0), **options).images for p in (pipe, theirs)]
    assert abs(pictures[0] - pictures[1]).max() < 1e-4


SMALL_UNETS = {
    "v1": {"cross_attention_dim": 64, "attention_head_dim": 8},
    "v2": {"cross_attention_dim": 64, "attention_head_dim": (1, 1), "use_linear_projection": True},
    "xl": {"cross_attention_dim": 128, "attention_head_dim": (1, 1), "use_linear_projection": True, "addition_embed_type": "text_time",
           "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 96, "transformer_layers_per_block": (1, 2)},
}  # fmt: skip


def original_file(path: Path, kind: str, **metadata: str) -> dict[str, Tensor]:
    """A small file with random values whose names and proportions are the published ones."""
    generator = torch.Generator().manual_seed(1)
    blocks = {
        "down_block_types": (DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, UP),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
    }
    unet = on_meta(diffusers.UNet2DConditionModel, {**SMALL_UNETS[kind], **blocks}).state_dict()
    vae = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = on_meta(diffusers.AutoencoderKL, vae).state_dict()
    sizes = {f"model.diffusion_model.{o}": unet[k].shape for o, k in NAMES["unet"](list(unet)).items()}
    for original, own in NAMES["vae"](list(vae)).items():
        linear = "attn_1" in original and vae[own].ndim == 2
        sizes[f"first_stage_model.{original}"] = torch.Size([*vae[own].shape, 1, 1]) if linear else vae[own].shape
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = on_meta(CLIPTextModel, {"config": CLIPTextConfig(**small)}).state_dict()
    clip = {f"text_model.{name}": t.shape for name, t in text.items()} | {"text_model.embeddings.position_ids": torch.Size([1, 77])}
    openclip = openclip_sizes(small, {"v2": 24, "xl": 3}.get(kind, 0))
    places = {
        "v1": {"cond_stage_model.transformer.": clip}, "v2": {"cond_stage_model.model.": openclip},
        "xl": {"conditioner.embedders.0.transformer.": clip, "conditioner.embedders.1.model.": openclip},
    }[kind]  # fmt: skip
    for prefix, names in places.items():
        sizes |= {prefix + name: shape for name, shape in names.items()}
    tensors = {n: torch.randn(shape, generator=generator).half() for n, shape in sizes.items()}
    save_file(tensors, path, metadata=metadata or None)
    return tensors


@pytest.mark.parametrize("kind", ["v1", "v2", "xl"])
def test_original_to_ours_and_back(kind: str, tmp_path: Path) -> None:
    """Every tensor of an original file is written again as it was, but for those that no network reads."""
    before = original_file(tmp_path / "in.safetensors", kind, **{"modelspec.prediction_type": "v"})
    pipe = load_single_file(TwoEncoders if kind == "xl" else DiffusionPipeline, tmp_path / "in.safetensors", dtype="auto")
    save_single_file(pipe, tmp_path / "out.safetensors")
    after = load_file(tmp_path / "out.safetensors")
    lost = {name for name in before.keys() - after.keys() if not name.endswith(("position_ids", "logit_scale"))}
    unread = {n for n in before if ".resblocks.23." in n or n.endswith("text_projection")} if kind == "v2" else set()
    assert lost == unread
    assert after.keys() <= before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.unet.config.attention_head_dim == SMALL_UNETS[kind]["attention_head_dim"]


def test_values_of_openclip_are_the_references(tmp_path: Path) -> None:
    """Queries, keys, values and the projection of an original file, where the reference converts them."""
    before = original_file(tmp_path / "in.safetensors", "xl")
    model = load_text_encoders(tmp_path / "in.safetensors", dtype=torch.float32)["text_encoder_2"]
    wanted = CLIPTextModelWithProjection(model.config)
    text = {name: t for name, t in before.items() if name.startswith("conditioner.embedders.1.")}
    wanted.load_state_dict(reference.convert_open_clip_checkpoint(wanted, text, "conditioner.embedders.1.model."), strict=False)
    assert same(model, wanted.float())
    ids = torch.tensor([[49406, 320, 1125, 49407, 0]])
    assert torch.equal(model(ids).text_embeds, wanted.eval()(ids).text_embeds)


# ---- pipelines, classes and schedulers


def test_a_published_file_becomes_a_pipeline(tmp_path: Path) -> None:
    path = sparse(tmp_path / "v1.safetensors", published("v1"))
    pipe = load_single_file(DiffusionPipeline, path, dtype={"unet": torch.float16, "default": torch.bfloat16, "text_encoder": "auto"})
    assert type(pipe) is StableDiffusionPipeline
    assert (pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (torch.float16, torch.bfloat16, torch.float16)
    assert pipe.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    assert pipe.safety_checker is None
    official = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1,
                "set_alpha_to_one": False, "num_train_timesteps": 1000, "clip_sample": False, "prediction_type": "epsilon"}  # fmt: skip
    same_as(pipe.scheduler.config, official)
    nine = sparse(tmp_path / "nine.safetensors", published("v1-inpaint"))
    assert type(load_single_file(DiffusionPipeline, nine, dtype="auto")) is StableDiffusionInpaintPipeline


def test_what_the_file_lacks_is_brought_or_named(tmp_path: Path) -> None:
    tensors = original_file(tmp_path / "in.safetensors", "v1")
    save_file({n.replace("text_model.", ""): t for n, t in tensors.items()}, tmp_path / "merged.safetensors")
    merged, plain = (load_text_encoders(tmp_path / f"{name}.safetensors")["text_encoder"] for name in ("merged", "in"))
    assert same(merged, plain)
    save_file({n: t for n, t in tensors.items() if not n.startswith("cond")}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="Components are missing") as caught:
        load_single_file(StableDiffusionPipeline, tmp_path / "part.safetensors")
    assert caught.value.expected == "text_encoder, tokenizer"
    whole = load_single_file(StableDiffusionPipeline, tmp_path / "in.safetensors")
    brought = {"text_encoder": whole.text_encoder, "tokenizer": whole.tokenizer, "requires_safety_checker": False}
    pipe = load_single_file(StableDiffusionPipeline, tmp_path / "part.safetensors", **brought)
    assert pipe.text_encoder is whole.text_encoder
    assert pipe.requires_safety_checker is False
    with pytest.raises(InputError, match="No such component"):
        load_single_file(StableDiffusionPipeline, tmp_path / "in.safetensors", nonsense=1)


def test_two_encoders(tmp_path: Path) -> None:
    original_file(tmp_path / "in.safetensors", "xl")
    pipe = load_single_file(TwoEncoders, tmp_path / "in.safetensors")
    assert [pipe.tokenizer.pad_token, pipe.tokenizer_2.pad_token] == [END, "!"]
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    official = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1,
                "interpolation_type": "linear", "use_karras_sigmas": False, "prediction_type": "epsilon", "num_train_timesteps": 1000}  # fmt: skip
    same_as(pipe.scheduler.config, official)
    assert pipe.vae.config.scaling_factor == 0.13025
    with pytest.raises(CheckpointError, match="checkpoint of SDXL") as caught:
        load_single_file(StableDiffusionPipeline, tmp_path / "in.safetensors")
    assert caught.value.expected == "StableDiffusionXLPipeline"


def test_a_pipeline_that_is_not_there(tmp_path: Path) -> None:
    sizes = published("v2")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    sizes[first] = ((320, 6, 3, 3), "F16")
    path = sparse(tmp_path / "six.safetensors", sizes)
    with pytest.raises(CheckpointError, match="a pipeline that darkroom does not have") as caught:
        load_single_file(DiffusionPipeline, path)
    assert "6 input channels" in caught.value.got
    assert load_single_file(UNet2DConditionModel, path, dtype="auto").config.in_channels == 6
    with pytest.raises(InputError, match="several configurations"):
        load_single_file(DiffusionPipeline, path, config={})


def test_every_family_has_a_class_in_the_reference() -> None:
    for family in FAMILIES.values():
        assert hasattr(diffusers, family.scheduler)
        assert all(hasattr(diffusers, name) for name in family.pipelines.values())


V, EPS = "v_prediction", "epsilon"


@pytest.mark.parametrize(
    ("kind", "metadata", "options", "expected"),
    [
        ("v1", {}, {}, EPS),
        ("v1", {"modelspec.prediction_type": "of another kind"}, {}, EPS),
        ("v2", {}, {}, V),
        ("v2", {"global_step": "875000"}, {}, EPS),
        ("v2", {"global_step": "220000"}, {}, EPS),
        ("v2", {"global_step": "110000"}, {}, V),
        ("v2", {"modelspec.predict_key": "epsilon"}, {}, EPS),
        ("v2", {"modelspec.predict_key": "epsilon"}, {"prediction_type": V}, V),
        ("v2", {}, {"prediction_type": EPS}, EPS),
        ("v2", {}, {"original_config": {"model": {"params": {"parameterization": "eps"}}}}, EPS),
        ("v1", {}, {"original_config": {"model": {"params": {"parameterization": "v"}}}}, V),
        ("xl", {"modelspec.prediction_type": "v"}, {}, V),
    ],
)
def test_prediction_type(
    kind: str, metadata: dict[str, str], options: dict[str, Any], expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original_file(tmp_path / "in.safetensors", kind, **metadata)
    file = open_single_file(tmp_path / "in.safetensors", **options)
    scheduler = file.scheduler()
    assert scheduler.config.prediction_type == expected
    second = "DDIMScheduler" if expected == V else "PNDMScheduler"
    assert type(scheduler).__name__ == {"v1": "PNDMScheduler", "v2": second, "xl": "EulerDiscreteScheduler"}[kind]
    assert ("is assumed" in caplog.text) == (kind == "v2" and not metadata and not options)


@pytest.mark.parametrize("kind", ["v2-inpaint", "v2-depth"])
def test_published_networks_with_more_channels_predict_noise(kind: str, tmp_path: Path) -> None:
    sizes = published("v2-depth")
    sizes["model.diffusion_model.input_blocks.0.0.weight"] = ((320, 9 if kind == "v2-inpaint" else 5, 3, 3), "F16")
    file = open_single_file(sparse(tmp_path / "in.safetensors", sizes))
    assert (file.prediction_type, file.family) == (EPS, "v2")
    assert file.scheduler().config.prediction_type == EPS


def test_marks_of_zero_terminal_snr(tmp_path: Path) -> None:
    tensors = original_file(tmp_path / "in.safetensors", "xl")
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "marked.safetensors")
    config = open_single_file(tmp_path / "marked.safetensors").scheduler().config
    assert (config.prediction_type, config.rescale_betas_zero_snr, config.timestep_spacing) == (V, True, "trailing")


def test_original_config(tmp_path: Path) -> None:
    original_file(tmp_path / "in.safetensors", "v1")
    yaml = tmp_path / "v1.yaml"
    yaml.write_text(
        "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    linear_start: 0.001\n    linear_end: 0.02\n"
        "    timesteps: 500\n    image_size: 48\n    scale_factor: 0.5\n    parameterization: v\n    unet_config:\n      params:\n"
        "        image_size: 32 # unused\n        model_channels: 32\n        channel_mult: [1, 2]\n        num_head_channels: 16\n"
    )
    pipe = load_single_file(StableDiffusionPipeline, tmp_path / "in.safetensors", original_config=yaml)
    same_as(pipe.scheduler.config, {"beta_start": 0.001, "beta_end": 0.02, "num_train_timesteps": 500, "prediction_type": V})
    same_as(pipe.unet.config, {"attention_head_dim": (2, 4), "sample_size": 48})
    assert pipe.vae.config.scaling_factor == 0.5
    larger = {"model": {"params": {"network_config": {"params": {"num_head_channels": 32, "model_channels": 32, "channel_mult": [1, 2]}},
              "denoiser_config": {"params": {"scaling_config": {"target": "sgm.modules.diffusionmodules.denoiser_scaling.VScaling"}}}}}}  # fmt: skip
    pipe = load_single_file(StableDiffusionPipeline, tmp_path / "in.safetensors", original_config=larger)
    assert (pipe.unet.config.attention_head_dim, pipe.scheduler.config.prediction_type) == ((1, 2), V)
    (tmp_path / "bad.yaml").write_text("!!python/object/apply:os.system ['touch executed']")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    for bad in (
        tmp_path / "bad.yaml",
        tmp_path / "list.yaml",
        tmp_path / "none.yaml",
        {"model": {"params": {"unet_config": {"params": 3}}}},
    ):
        with pytest.raises(CheckpointError):
            open_single_file(tmp_path / "in.safetensors", original_config=bad)
    assert not Path("executed").exists()


# ---- single networks, options


def test_networks_alone(tmp_path: Path) -> None:
    tensors = original_file(tmp_path / "in.safetensors", "v1")
    whole = {
        name: load_single_file(cls, tmp_path / "in.safetensors") for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
    }
    assert all(m.dtype == torch.float32 for m in whole.values())
    for component, cls, prefix in (("unet", UNet2DConditionModel, "model.diffusion_model."), ("vae", AutoencoderKL, "first_stage_model.")):
        for other in (prefix, {"unet": "diffusion_model.", "vae": "vae."}[component], ""):
            part = {other + n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            save_file({**part, "loss.perceptual_loss.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
            assert same(load_single_file(cls, tmp_path / "part.safetensors"), whole[component]), other
    assert load_single_file(AutoencoderKL, tmp_path / "in.safetensors", scaling_factor=0.13025).config.scaling_factor == 0.13025
    assert load_single_file(AutoencoderKL, tmp_path / "in.safetensors", dtype=torch.bfloat16).dtype == torch.bfloat16
    config = {**whole["unet"].config, "attention_head_dim": 4}
    assert load_single_file(UNet2DConditionModel, tmp_path / "in.safetensors", config=config).config.attention_head_dim == 4
    for wrong, kind in (({"nonsense": 1}, InputError), ({"dtype": torch.int8}, InputError), ({"attention_head_dim": "x"}, DarkroomError),
                        ({"config": {"block_out_channels": (32, 32)}}, DarkroomError), ({"prediction_type": "x"}, InputError)):  # fmt: skip
        with pytest.raises(kind):
            load_single_file(UNet2DConditionModel, tmp_path / "in.safetensors", **wrong)
    with pytest.raises(InputError, match="No original layout"):
        load_single_file(UNet2DModel, tmp_path / "in.safetensors")


def test_a_network_in_the_names_of_the_folder_layout(tiny_sd: Path) -> None:
    for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        path = tiny_sd / name / "diffusion_pytorch_model.safetensors"
        with pytest.raises(CheckpointError, match="folder layout"):
            load_single_file(cls, path)
        for config in ({"config": tiny_sd}, {"config": tiny_sd / name}, {"config": tiny_sd, "subfolder": name}):
            assert same(load_single_file(cls, path, **config), cls.from_pretrained(tiny_sd, subfolder=name))


def test_how_a_file_is_read(tmp_path: Path) -> None:
    tensors, counted = original_file(tmp_path / "in.safetensors", "v1"), []
    path, mapped = tmp_path / "in.safetensors", load_single_file(AutoencoderKL, tmp_path / "in.safetensors", dtype="auto")
    read = load_single_file(AutoencoderKL, path, dtype="auto", disable_mmap=True, progress=counted.append)
    assert same(read, mapped)
    assert sum(counted) == sum(t.nbytes for n, t in tensors.items() if n.startswith("first_stage_model."))
    empty = load_single_file(StableDiffusionPipeline, path, device="meta")
    assert all(p.is_meta for module in networks(empty).values() for p in module.parameters())


def test_averaged_weights(tmp_path: Path) -> None:
    tensors = original_file(tmp_path / "in.safetensors", "v1")
    prefix = "model.diffusion_model."
    average = {"model_ema." + n.removeprefix("model.").replace(".", ""): t + 1 for n, t in tensors.items() if n.startswith(prefix)}
    assert "model_ema.diffusion_modelinput_blocks00weight" in average
    save_file({**tensors, **average}, tmp_path / "both.safetensors")
    plain, ema = (load_single_file(UNet2DConditionModel, tmp_path / "both.safetensors", dtype="auto", extract_ema=e) for e in (False, True))
    assert torch.equal(plain.conv_in.weight, tensors[prefix + "input_blocks.0.0.weight"])
    assert torch.equal(ema.conv_in.weight, tensors[prefix + "input_blocks.0.0.weight"] + 1)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        load_single_file(UNet2DConditionModel, tmp_path / "in.safetensors", extract_ema=True)


def test_a_pickled_file(tmp_path: Path) -> None:
    tensors = original_file(tmp_path / "in.safetensors", "v1")
    torch.save({"state_dict": tensors, "global_step": 470000}, tmp_path / "in.ckpt")
    original_file(tmp_path / "v2.safetensors", "v2")
    for step, expected in ((875000, EPS), (110000, V), (1, V)):
        torch.save({"state_dict": load_file(tmp_path / "v2.safetensors"), "global_step": step}, tmp_path / "v2.ckpt")
        file = open_single_file(tmp_path / "v2.ckpt")
        assert (file.prediction_type, file.guessed) == (expected, step == 1)
    for cls in (UNet2DConditionModel, AutoencoderKL):
        assert same(load_single_file(cls, tmp_path / "in.ckpt"), load_single_file(cls, tmp_path / "in.safetensors"))
    assert same(load_text_encoders(tmp_path / "in.ckpt")["text_encoder"], load_text_encoders(tmp_path / "in.safetensors")["text_encoder"])


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_what_one_tensor_holds_is_taken_apart(suffix: str, tmp_path: Path) -> None:
    """Queries, keys and values are rows of one tensor in the file, also where that is stored transposed; here each has its own bytes."""
    tensors = original_file(tmp_path / "in.safetensors", "xl")
    prefix = "conditioner.embedders.1.model."
    first = prefix + "transformer.resblocks.0.attn.in_proj_weight"
    if suffix == "ckpt":
        torch.save({**tensors, first: tensors[first].T.contiguous().T}, tmp_path / "in.ckpt")
    for dtype in ("auto", torch.float32):
        model = load_text_encoders(tmp_path / f"in.{suffix}", dtype=dtype)["text_encoder_2"]
        attention = model.text_model.encoder.layers[0].self_attn
        for projection, rows in zip((attention.q_proj, attention.k_proj, attention.v_proj), tensors[first].chunk(3)):
            assert torch.equal(projection.weight, rows.to(projection.weight.dtype))
            assert projection.weight.untyped_storage().nbytes() == projection.weight.nbytes
        assert torch.equal(model.text_projection.weight, tensors[prefix + "text_projection"].T.to(model.dtype))
        assert model.text_projection.weight.is_contiguous()
        model.save_pretrained(tmp_path / "folder")
        assert same(CLIPTextModelWithProjection.from_pretrained(tmp_path / "folder", dtype=model.dtype), model)


# ---- where the file lies


def test_a_file_of_the_hub(tmp_path: Path) -> None:
    from huggingface_hub import constants

    commit = "0" * 40
    repo = tmp_path / "cache/models--org--name"
    (repo / "snapshots" / commit / "sub").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    tensors = original_file(repo / "snapshots" / commit / "sub/in.safetensors", "v1")
    hub = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    for name in ("org/name/sub/in.safetensors", f"{constants.ENDPOINT}/org/name/blob/main/sub/in.safetensors?download=true"):
        vae = load_single_file(AutoencoderKL, name, dtype="auto", **hub)
        assert torch.equal(vae.encoder.conv_in.weight, tensors["first_stage_model.encoder.conv_in.weight"])
    with pytest.raises(InputError, match="Not an address of the hub"):
        load_single_file(AutoencoderKL, "https://example.com/org/name/blob/main/in.safetensors", **hub)
    for wrong in (
        "org/name/none.safetensors",
        "org/name/../../in.safetensors",
        "none.safetensors",
        tmp_path / "no.ckpt",
        tmp_path,
        "org/name",
    ):
        with pytest.raises(CheckpointError):
            load_single_file(AutoencoderKL, wrong, **hub)


# ---- files of another kind, and hostile ones


@pytest.mark.parametrize(
    ("name", "seems"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "the folder layout"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "a diffusion transformer"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder alone"),
        ("emb_params", "a textual inversion"),
        ("image_proj.norm.weight", "an IP-Adapter"),
        ("anything.else", "tensors such as anything.else"),
    ],
)
def test_files_of_another_kind(name: str, seems: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(4, 4)}, tmp_path / "other.safetensors")
    networks = (lambda path, cls=cls: load_single_file(cls, path) for cls in (UNet2DConditionModel, AutoencoderKL, DiffusionPipeline))
    for load in (load_text_encoders, *networks):
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / "other.safetensors")
        assert seems in caught.value.got
        assert len(str(caught.value)) < 2000


def test_missing_and_misshapen_tensors(tmp_path: Path) -> None:
    tensors = original_file(tmp_path / "in.safetensors", "xl")
    unet, text = "model.diffusion_model.", "conditioner.embedders.1.model.transformer.resblocks.1."
    changes: list[tuple[Any, str, Tensor | None]] = [
        (UNet2DConditionModel, unet + "middle_block.0.in_layers.2.weight", None),
        (UNet2DConditionModel, unet + "out.2.bias", torch.zeros(9)),
        (UNet2DConditionModel, unet + "input_blocks.0.0.weight", torch.zeros(4)),
        (AutoencoderKL, "first_stage_model.decoder.conv_out.weight", None),
        (TwoEncoders, text + "attn.in_proj_weight", None),
        (TwoEncoders, text + "attn.in_proj_weight", torch.zeros(64, 64)),
        (TwoEncoders, "conditioner.embedders.1.model.positional_embedding", None),
        (TwoEncoders, "conditioner.embedders.1.model.text_projection", torch.zeros(3)),
    ]
    for cls, name, value in changes:
        assert name in tensors
        save_file({n: t for n, t in {**tensors, name: value}.items() if t is not None}, tmp_path / "changed.safetensors")
        with pytest.raises(CheckpointError) as caught:
            load_single_file(cls, tmp_path / "changed.safetensors")
        assert "changed.safetensors" in str(caught.value), name


def test_numbers_out_of_all_proportion(tmp_path: Path) -> None:
    """Empty tensors may have any shape, and a header any number of them: neither costs memory or time."""
    unet = "model.diffusion_model."
    huge = {f"{unet}input_blocks.0.0.weight": ((10**8, 10**6, 0, 3), "F16"), f"{unet}input_blocks.1.0.in_layers.2.weight": ((10**12, 0), "F16"),
            f"{unet}out.2.weight": ((10**12, 0), "F16")}  # fmt: skip
    deep = {f"{unet}input_blocks.{i}.0.in_layers.2.weight": ((32, 0), "F16") for i in range(50_000)}
    deep |= {f"{unet}input_blocks.0.0.weight": ((32, 4, 3, 3), "F16"), f"{unet}out.2.weight": ((4, 32, 3, 3), "F16")}
    layers = {f"cond_stage_model.model.transformer.resblocks.{i}.mlp.c_fc.weight": ((64, 0), "F16") for i in range(50_000)}
    layers |= {
        "cond_stage_model.model.token_embedding.weight": ((9, 64), "F16"),
        "cond_stage_model.model.positional_embedding": ((9, 64), "F16"),
    }
    long = {
        "cond_stage_model.model.token_embedding.weight": ((9, 0), "F16"),
        "cond_stage_model.model.positional_embedding": ((10**12, 0), "F16"),
    }
    long |= {"cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.weight": ((64, 0), "F16")}
    for sizes in (huge, deep, layers, long):
        path = sparse(tmp_path / "hostile.safetensors", sizes)
        for load in (load_text_encoders, lambda path: load_single_file(UNet2DConditionModel, path)):
            with pytest.raises(CheckpointError, match=r"hostile\.safetensors"):
                load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"darkroom.unet": "{"},
        {"darkroom.unet": "[" * 10_000},
        {"darkroom.unet": json.dumps({"norm_num_groups": 7})},
        {"darkroom.unet": json.dumps({"act_fn": "os.system"})},
        {"darkroom.unet": json.dumps({"time_embedding_dim": 10**9})},
        {"darkroom.unet": json.dumps({"norm_num_groups": "many"})},
    ],
)
def test_metadata_are_checked(metadata: dict[str, str], tmp_path: Path) -> None:
    original_file(tmp_path / "in.safetensors", "v1", **metadata)
    with pytest.raises(CheckpointError) as caught:
        load_single_file(UNet2DConditionModel, tmp_path / "in.safetensors")
    assert "in.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 2000


# ---- writing


def test_what_is_written(tiny_sd: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    path = tmp_path / "new/folder/all.safetensors"
    save_single_file(pipe, path, dtype=torch.float16)
    tensors = load_file(path)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert {n.partition(".")[0] for n in tensors} == {"model", "first_stage_model", "cond_stage_model"}
    half = load_single_file(StableDiffusionPipeline, path, tokenizer=pipe.tokenizer)
    assert same(half.unet, UNet2DConditionModel.from_pretrained(tiny_sd, subfolder="unet").half().float())
    save_single_file(pipe.vae, tmp_path / "vae.safetensors")
    assert "encoder.conv_in.weight" in load_file(tmp_path / "vae.safetensors")
    assert same(load_single_file(AutoencoderKL, tmp_path / "vae.safetensors"), pipe.vae)
    save_single_file(pipe.unet, tmp_path / "unet.safetensors")
    assert same(load_single_file(UNet2DConditionModel, tmp_path / "unet.safetensors"), pipe.unet)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "unet.safetensors", "vae.safetensors"]
    save_single_file(half, path)  # over the file that it is mapped from
    assert same(load_single_file(StableDiffusionPipeline, path, tokenizer=pipe.tokenizer).unet, half.unet)


def test_what_cannot_be_written(tiny_sd: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd)
    for thing, path in (
        (pipe, "x.ckpt"),
        (pipe.tokenizer, "x.safetensors"),
        (nn.Linear(2, 2), "x.safetensors"),
        (UNet2DModel, "x.safetensors"),
    ):
        with pytest.raises(InputError):
            save_single_file(thing, tmp_path / path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written here"):
        save_single_file(pipe, tmp_path / "file/x.safetensors")
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written here"):
        save_single_file(pipe.vae, tmp_path / "taken.safetensors")
    with pytest.raises(CheckpointError, match="without values"):
        save_single_file(on_meta(AutoencoderKL, VAE), tmp_path / "x.safetensors")
    odd = UNet2DConditionModel.from_config({**pipe.unet.config, "time_cond_proj_dim": 8})
    with pytest.raises(InputError, match="no names for") as caught:
        save_single_file(odd, tmp_path / "x.safetensors")
    assert caught.value.got == "time_embedding.cond_proj.weight"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.safetensors"]


# ---- the vocabulary


def test_tokenizer(tmp_path: Path) -> None:
    assert (len(merges()), len(vocabulary())) == (48894, 49408)
    for pad, number in ((END, 49407), ("!", 0)):
        words = clip_tokenizer(pad)
        assert (len(words), words.model_max_length, words.pad_token_id) == (49408, 77, number)
        assert words("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        end = [995] if pad == END else [0, 0, 0]  # a padding token in a prompt is taken out of it, as the published tokenizers do
        assert words("hello world!!!").input_ids == [49406, 3306, 1002, *end, 49407]
        assert words("a", padding="max_length").input_ids == [49406, 320, 49407, *[number] * 74]
        words.save_pretrained(tmp_path)
        again = CLIPTokenizer.from_pretrained(tmp_path)
        texts = ["A photo, of  a\tCAT", "ça naïve 3D l'été", "你好 🤗", "don't", ""]
        assert again(texts).input_ids == words(texts).input_ids
        assert again.pad_token == pad


def test_importing_single_files_needs_no_transformers() -> None:
    code = "import sys, darkroom.checkpoints.single_file, darkroom.assets.clip; print('transformers' in sys.modules)"
    source = {**os.environ, "PYTHONPATH": str(Path(darkroom.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=source)
    assert done.stdout.strip() == "False"
