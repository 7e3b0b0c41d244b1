"""Networks that are handed around in files of their own, with the names of the code that trained them: ControlNets, motion modules, SparseCtrl."""

from __future__ import annotations
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
import diffusers
import pytest
import torch
from checkpoints.test_single_file import CROSS_DOWN, DOWN, original_file, same, same_as, sparse
from diffusers.loaders import single_file_utils as reference
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from darkroom import (
    ControlNetModel,
    DiffusionPipeline,
    MotionAdapter,
    SparseControlNetModel,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from darkroom.checkpoints.layouts import NAMES
from darkroom.checkpoints.single_file import save_single_file
from darkroom.errors import CheckpointError

CONTROLNETS: dict[str, dict[str, Any]] = {  # the published networks, by their config.json
    "v1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "v2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "xl": {
        "block_out_channels": (320, 640, 1280), "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN), "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
ADAPTERS: dict[str, dict[str, Any]] = {
    "v1-5": {"motion_max_seq_length": 24, "use_motion_mid_block": False},
    "v1-5-2": {"motion_max_seq_length": 32, "use_motion_mid_block": True},
    "sdxl": {"block_out_channels": (320, 640, 1280), "motion_max_seq_length": 32, "use_motion_mid_block": False},
}
SPARSE: dict[str, dict[str, Any]] = {
    "rgb": {"use_simplified_condition_embedding": True, "conditioning_channels": 4},
    "scribble": {"use_simplified_condition_embedding": False, "conditioning_channels": 3},
}
SMALL: dict[str, tuple[Any, Any, dict[str, Any]]] = {  # ours, the reference's, the configuration of a small one
    "controlnet": (ControlNetModel, diffusers.ControlNetModel, {
        "block_out_channels": (32, 64), "down_block_types": (CROSS_DOWN, DOWN), "cross_attention_dim": 768, "layers_per_block": 1,
        "conditioning_embedding_out_channels": (8, 16, 24, 40),
    }),
    "motion": (MotionAdapter, diffusers.MotionAdapter, {"block_out_channels": (32, 64), "motion_max_seq_length": 24}),
    "motion without a middle": (MotionAdapter, diffusers.MotionAdapter, {
        "block_out_channels": (32, 64), "motion_layers_per_block": 1, "use_motion_mid_block": False, "conv_in_channels": 9,
    }),
    **{f"sparse {kind}": (SparseControlNetModel, diffusers.SparseControlNetModel, {
        "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "cross_attention_dim": 64, **own,
    }) for kind, own in SPARSE.items()},
}  # fmt: skip


def on_meta(cls: Any, config: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return cls(**config)


def as_trained(state: Mapping[str, Tensor], kind: str, prefix: str = "") -> dict[str, Tensor]:
    """The tensors as the original code saves them: of motion modules with the sinusoids in each attention layer."""
    if kind == "controlnet":
        return {f"{prefix}{theirs}": state[own] for theirs, own in NAMES["controlnet"](list(state)).items()}
    found, layers = {}, 2 if any(".attn2." in name for name in state if "motion_modules" in name) else 1
    for name, tensor in state.items():
        if "motion_modules" in name:
            name = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", name)
            for ours, theirs in (
                ("attn1", "attention_blocks.0"),
                ("attn2", "attention_blocks.1"),
                ("norm1", "norms.0"),
                ("norm2", "norms.1"),
            ):
                name = name.replace(f".{ours}.", f".{theirs}.")
            name = name.replace(".norm3.", ".ff_norm.")
        names = [name.replace("pos_embed", f"attention_blocks.{i}.pos_encoder") for i in range(layers)] if "pos_embed" in name else [name]
        found |= {prefix + name: tensor.clone() for name in names}
    return found


@pytest.mark.parametrize("kind", sorted(CONTROLNETS))
def test_a_published_controlnet(kind: str, tmp_path: Path) -> None:
    theirs = on_meta(diffusers.ControlNetModel, CONTROLNETS[kind])
    state = theirs.state_dict()
    file = as_trained(state, "controlnet", "control_model.")
    assert len(file) == len(state) and "control_model.input_hint_block.14.weight" in file
    converted = reference.convert_controlnet_checkpoint(dict(file), theirs.config)
    passed_over = {name for name in state if name.startswith("add_embedding.")}  # the reference leaves them without values
    assert converted.keys() == state.keys() - passed_over and all(converted[name] is state[name] for name in converted)
    path = sparse(tmp_path / "control.safetensors", {name: (tuple(t.shape), "F16") for name, t in file.items()})
    model = ControlNetModel.from_single_file(path, dtype=torch.float16)
    same_as(model.config, {**CONTROLNETS[kind], "conditioning_embedding_out_channels": (16, 32, 96, 256), "conditioning_channels": 3})
    assert model.dtype == torch.float16 and not model.training
    assert ControlNetModel.from_single_file(path, device="meta", global_pool_conditions=True).config.global_pool_conditions


@pytest.mark.parametrize("kind", sorted(ADAPTERS))
def test_published_motion_modules(kind: str, tmp_path: Path) -> None:
    file = as_trained(on_meta(diffusers.MotionAdapter, ADAPTERS[kind]).state_dict(), "motion")
    path = sparse(tmp_path / "mm.safetensors", {name: (tuple(t.shape), "F16") for name, t in file.items()})
    model = MotionAdapter.from_single_file(path, dtype="auto")
    official = on_meta(diffusers.MotionAdapter, ADAPTERS[kind]).config
    same_as(model.config, {name: value for name, value in official.items() if not name.startswith("_")})
    assert model.dtype == torch.float16


@pytest.mark.parametrize("kind", sorted(SPARSE))
def test_published_sparse_controlnets(kind: str, tmp_path: Path) -> None:
    config = {**SPARSE[kind], "cross_attention_dim": 768}
    file = as_trained(on_meta(diffusers.SparseControlNetModel, config).state_dict(), "sparse")
    path = sparse(tmp_path / "sparse.safetensors", {name: (tuple(t.shape), "F16") for name, t in file.items()})
    ours = SparseControlNetModel.from_single_file(path, device="meta").config
    same_as(ours, {k: v for k, v in on_meta(diffusers.SparseControlNetModel, config).config.items() if k in ours and not k.startswith("_")})


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_values_are_the_references(kind: str, tmp_path: Path) -> None:
    cls, peer, config = SMALL[kind]
    torch.manual_seed(0)
    model = peer(**config)
    for p in model.parameters():
        nn.init.normal_(p)
    model.save_pretrained(tmp_path / "folder")
    prefix = "control_model." if kind == "controlnet" else ""
    file = as_trained(model.state_dict(), kind, prefix)
    save_file(file, tmp_path / "a.safetensors")
    torch.save({"state_dict": file, "epoch": 3}, tmp_path / "a.ckpt")
    save_file({"module." + n if not prefix else n.removeprefix(prefix): t for n, t in file.items()}, tmp_path / "b.safetensors")
    theirs = peer.from_single_file(tmp_path / "a.safetensors", config=str(tmp_path / "folder")).state_dict()
    for name in ("a.safetensors", "a.ckpt", "b.safetensors"):
        ours = cls.from_single_file(tmp_path / name)
        same_as(ours.config, config)
        state = ours.state_dict()
        assert state.keys() == theirs.keys() and all(torch.equal(state[n], theirs[n]) for n in state)
        assert same(ours, cls.from_single_file(tmp_path / name, config=tmp_path / "folder"))
    save_single_file(ours, tmp_path / "c.safetensors")
    again = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(again[name], file[name]) for name in again)
    assert file.keys() - again.keys() == {name for name in file if "attention_blocks.1.pos_encoder" in name}
    back = cls.from_single_file(tmp_path / "c.safetensors")
    assert same(back, ours) and back.config == ours.config


def test_what_no_tensor_tells_is_written_beside_them(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "controlnet": {"global_pool_conditions": True, "attention_head_dim": 4},
        "motion": {"motion_num_attention_heads": 4, "motion_norm_num_groups": 16},
        "sparse rgb": {"concat_conditioning_mask": False, "motion_num_attention_heads": 4},
    }
    for kind, options in changes.items():
        cls, _, config = SMALL[kind]
        net = cls.from_config({**config, **options})
        save_single_file(net, tmp_path / "one.safetensors")
        back = cls.from_single_file(tmp_path / "one.safetensors")
        assert same(back, net) and back.config == net.config


def test_motion_modules_in_a_training_state(tmp_path: Path) -> None:
    """The whole network that was trained, with the prefix of its wrapper: its motion modules are what is taken."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), down_block_types=(CROSS_DOWN, DOWN), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    adapter = diffusers.MotionAdapter(block_out_channels=(32, 64), motion_max_seq_length=24)
    file = {**unet.state_dict(), **as_trained(adapter.state_dict(), "motion")}
    del file["conv_in.weight"], file["conv_in.bias"]
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in file.items()}}, tmp_path / "mm.ckpt")
    ours = MotionAdapter.from_single_file(tmp_path / "mm.ckpt")
    assert all(torch.equal(tensor, adapter.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_places_of_frames_are_no_weights(tmp_path: Path) -> None:
    """The sinusoids of half-precision files are rounded: layers make their own. A folder may lack them."""
    adapter = MotionAdapter.from_config({"block_out_channels": (32, 64), "motion_max_seq_length": 24})
    halves = {name: tensor.half() for name, tensor in as_trained(adapter.state_dict(), "motion").items()}
    save_file(halves, tmp_path / "mm.safetensors")
    ours, exact = MotionAdapter.from_single_file(tmp_path / "mm.safetensors"), adapter.state_dict()
    places = [name for name in exact if name.endswith("pos_embed.pe")]
    assert len(places) == 11 and all(torch.equal(ours.state_dict()[name], exact[name]) for name in places)
    adapter.save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({name: tensor for name, tensor in state.items() if name not in places}, path)
    assert same(MotionAdapter.from_pretrained(tmp_path / "folder"), adapter)
    save_file({name: tensor for name, tensor in state.items() if "norm3" not in name}, path)
    with pytest.raises(CheckpointError, match="norm3"):
        MotionAdapter.from_pretrained(tmp_path / "folder")


def test_a_controlnet_beside_its_unet(tmp_path: Path) -> None:
    """A file of the training code holds the whole checkpoint and the ControlNet; it makes a pipeline by itself."""
    unet = original_file(tmp_path / "v1.safetensors", "v1")
    config = {"block_out_channels": (32, 64), "down_block_types": (DOWN, CROSS_DOWN), "cross_attention_dim": 64, "layers_per_block": 1}
    net = ControlNetModel.from_config(config)
    save_file({**unet, **as_trained(net.state_dict(), "controlnet", "control_model.")}, tmp_path / "both.safetensors")
    pipe = StableDiffusionControlNetPipeline.from_single_file(tmp_path / "both.safetensors")
    assert same(pipe.controlnet, net) and pipe.controlnet.config.cross_attention_dim == 64
    other = StableDiffusionControlNetPipeline.from_single_file(tmp_path / "both.safetensors", controlnet=net)
    assert other.controlnet is net
    with pytest.raises(CheckpointError, match="Components are missing") as caught:
        StableDiffusionControlNetPipeline.from_single_file(tmp_path / "v1.safetensors")
    assert caught.value.expected == "controlnet"
    pipe.save_single_file(tmp_path / "out.safetensors")  # without it: other programs would take the file for a ControlNet
    assert not any(name.startswith("control_model.") for name in load_file(tmp_path / "out.safetensors"))


def test_the_error_says_which_class_reads_the_file(tmp_path: Path) -> None:
    motion = as_trained(diffusers.MotionAdapter(block_out_channels=(32,)).state_dict(), "motion")
    save_file(motion, tmp_path / "mm.safetensors")
    net = ControlNetModel.from_config({**SMALL["controlnet"][2]})
    save_file(as_trained(net.state_dict(), "controlnet", "control_model."), tmp_path / "cn.safetensors")
    for cls, path, fits in (
        (UNet2DConditionModel, "mm.safetensors", "MotionAdapter.from_single_file"),
        (DiffusionPipeline, "cn.safetensors", "ControlNetModel.from_single_file"),
        (ControlNetModel, "mm.safetensors", "MotionAdapter.from_single_file"),
        (MotionAdapter, "cn.safetensors", "ControlNetModel.from_single_file"),
    ):
        with pytest.raises(CheckpointError) as caught:
            cls.from_single_file(tmp_path / path)
        assert fits in caught.value.got
    save_file(as_trained(net.state_dict(), "controlnet"), tmp_path / "bare.safetensors")
    for cls in (UNet2DConditionModel, DiffusionPipeline):  # without a prefix its names are those of a UNet's way down
        with pytest.raises(CheckpointError) as caught:
            cls.from_single_file(tmp_path / "bare.safetensors")
        assert "ControlNetModel.from_single_file" in caught.value.got
    lora = {name.replace("to_q.weight", "processor.to_q_lora.down.weight"): t for name, t in motion.items() if "to_q" in name}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError) as caught:
        MotionAdapter.from_single_file(tmp_path / "lora.safetensors")
    assert "a LoRA" in caught.value.got
    del motion["down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"]
    save_file(motion, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"proj_in\.weight"):
        MotionAdapter.from_single_file(tmp_path / "part.safetensors")


def test_places_for_more_frames_than_there_is_memory(tmp_path: Path) -> None:
    motion = as_trained(diffusers.MotionAdapter(block_out_channels=(32,)).state_dict(), "motion")
    places = {name: torch.zeros(1, 10**9, 0) for name in motion if name.endswith(".pe")}
    save_file({**motion, **places}, tmp_path / "mm.safetensors")
    MotionAdapter.from_config({"block_out_channels": (32,)}).save_pretrained(tmp_path / "folder")
    config = (tmp_path / "folder/config.json").read_text()
    (tmp_path / "folder/config.json").write_text(config.replace('"motion_max_seq_length": 32', '"motion_max_seq_length": 1000000'))
    for load, path in ((MotionAdapter.from_single_file, "mm.safetensors"), (MotionAdapter.from_pretrained, "folder")):
        with pytest.raises(CheckpointError, match="motion_max_seq_length"):
            load(tmp_path / path)
