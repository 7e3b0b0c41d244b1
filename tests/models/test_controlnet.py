"""ControlNets and T2I-Adapters beside the reference: the same tensors, configurations and numbers; both libraries read what the other writes."""

from __future__ import annotations
import inspect
import os
from typing import Any
import pytest
import torch
import darkroom
from darkroom import ConfigError, ControlNetModel, ControlNetUnionModel, InputError, MultiAdapter, MultiControlNetModel, T2IAdapter
from darkroom.models.multicontrolnet import MultiControlNetUnionModel

diffusers = pytest.importorskip("diffusers")

TINY: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (8, 12),
}
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 6, "projection_class_embeddings_input_dim": 44}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers, four times smaller": {"layers_per_block": 2, "conditioning_embedding_out_channels": (8, 12, 16)},
    "sdxl": SDXL | {"transformer_layers_per_block": (1, 2), "use_linear_projection": True, "attention_head_dim": (2, 4)},
    "heads": {"num_attention_heads": (2, 4), "upcast_attention": True},
    "mid without attention": {"mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 1.3},
    "only cross": {"only_cross_attention": (True, False)},
    "classes": {"num_class_embeds": 10},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "class projection": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "text": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "wide states": {"encoder_hid_dim": 20},
    "bgr": {"controlnet_conditioning_channel_order": "bgr"},
    "pooled": {"global_pool_conditions": True},
    "one channel, nine inputs": {"conditioning_channels": 1, "in_channels": 9},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "downsample_padding": 0, "act_fn": "gelu", "flip_sin_to_cos": False},
}
UNION = SDXL | {"num_control_type": 4, "num_trans_channel": 16, "num_trans_head": 2, "num_proj_channel": 16, "num_trans_layer": 2}


def awake(net: Any) -> Any:
    """Layers that begin as zeros get values, as after training."""
    torch.manual_seed(3)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return net.eval()


def pair(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs = awake(getattr(diffusers, name)(*args, **options))
    ours = getattr(darkroom, name)(*args, **options).eval()
    assert dict(ours.state_dict()).keys() == dict(theirs.state_dict()).keys()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def conditions(net: Any, rows: int = 2) -> dict[str, Any]:
    c, g = net.config, torch.Generator().manual_seed(1)
    given: dict[str, Any] = {"encoder_hidden_states": torch.randn(rows, 5, 12, generator=g)}
    if c.addition_embed_type == "text_time":
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(rows, 1)
        given["added_cond_kwargs"] = {"text_embeds": torch.randn(rows, 8, generator=g), "time_ids": ids}
    labels = {
        "timestep": torch.arange(rows),
        "identity": torch.randn(rows, 64, generator=g),
        "projection": torch.randn(rows, 10, generator=g),
    }
    if c.class_embed_type or c.num_class_embeds:
        given["class_labels"] = labels.get(c.class_embed_type, torch.arange(rows))
    return given


def inputs(net: Any, rows: int = 2, pictures: int = 0) -> dict[str, Any]:
    c, g = net.config, torch.Generator().manual_seed(2)
    side = 8 * 2 ** (len(c.conditioning_embedding_out_channels) - 1)
    hints = [torch.rand(rows, c.conditioning_channels, side, side, generator=g) for _ in range(pictures or 1)]
    sample = torch.randn(rows, c.in_channels, 8, 8, generator=g)
    return {"sample": sample, "timestep": torch.tensor(30), "controlnet_cond": hints if pictures else hints[0], **conditions(net, rows)}


@torch.no_grad()
def compare(theirs: Any, ours: Any, call: dict[str, Any]) -> Any:
    a, b = theirs(**call), ours(**call)
    if hasattr(a, "down_block_res_samples"):
        assert type(a).__name__ == type(b).__name__ and len(b.to_tuple()) == 2
        a, b = ([*out["down_block_res_samples"], out["mid_block_res_sample"]] for out in (a, b))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.std() > 1e-3
        torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-4)
    return b


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("call", [{"conditioning_scale": 0.7}, {"guess_mode": True}], ids=str)
def test_the_same_residuals(options, call):
    theirs, ours = pair("ControlNetModel", **TINY | options)
    expected = {k: v for k, v in theirs.config.items() if not k.startswith("_")} | {
        "encoder_hid_dim_type": ours.config.encoder_hid_dim_type
    }
    assert ours.config == expected
    compare(theirs, ours, inputs(ours) | call)


def test_masks_and_numbers_as_timesteps():
    theirs, ours = pair("ControlNetModel", **TINY | {"only_cross_attention": True, "mid_block_type": "UNetMidBlock2D"})
    mask = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 0]])
    compare(theirs, ours, inputs(ours) | {"timestep": 3, "attention_mask": mask})
    down, mid = ours(**inputs(ours), return_dict=False)
    assert len(down) == 4 and mid.shape == (2, 32, 4, 4)


def test_the_signatures_are_the_reference_s():
    for name in ("ControlNetModel", "ControlNetUnionModel", "T2IAdapter"):
        for method in ("__init__", "forward", "from_unet"):
            if hasattr(getattr(diffusers, name), method):
                theirs = [*inspect.signature(getattr(getattr(diffusers, name), method)).parameters.values()]
                owner = getattr(darkroom, name)
                ours = inspect.signature(owner if method == "__init__" else getattr(owner, method)).parameters
                plain = lambda v: tuple(v) if isinstance(v, list) else v  # noqa: E731
                expected = [(p.name, plain(p.default)) for p in theirs if p.name not in ("self", "return_dict")]
                if name == "ControlNetUnionModel":  # ours takes one option more
                    ours = {n: p for n, p in ours.items() if (method, n) != ("from_unet", "conditioning_channels")}
                got = [(n, p.default) for n, p in ours.items() if n != "self" and p.kind is not p.KEYWORD_ONLY]
                assert dict(got) == dict(expected) and (method == "__init__" or got == expected)


def unet(**options: Any) -> Any:
    torch.manual_seed(4)
    own = {k: v for k, v in TINY.items() if k != "conditioning_embedding_out_channels"}
    return darkroom.UNet2DConditionModel(**own, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **options)


@pytest.mark.parametrize("options", [{}, SDXL, {"num_class_embeds": 4}], ids=["plain", "sdxl", "classes"])
def test_from_a_unet(options):
    ours_unet = unet(**options)
    theirs_unet = diffusers.UNet2DConditionModel.from_config(dict(ours_unet.config))
    theirs_unet.load_state_dict(ours_unet.state_dict())
    theirs = diffusers.ControlNetModel.from_unet(theirs_unet, conditioning_embedding_out_channels=(8, 12))
    ours = ControlNetModel.from_unet(ours_unet, conditioning_embedding_out_channels=(8, 12))
    assert ours.config == {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    state = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        random = name.startswith("controlnet_cond_embedding") and "conv_out" not in name
        assert random or torch.equal(state[name], tensor), name
    with torch.no_grad():
        ours.conv_in.weight.zero_()
    assert ours_unet.conv_in.weight.any()  # a copy
    out = ours(**inputs(ours))
    assert not out.mid_block_res_sample.any() and not any(d.any() for d in out.down_block_res_samples)  # nothing, until it is trained
    empty = ControlNetModel.from_unet(ours_unet, "bgr", (8, 12), load_weights_from_unet=False, conditioning_channels=1)
    assert empty.config.conditioning_channels == 1 and not torch.equal(
        empty.mid_block.resnets[0].conv1.weight, state["mid_block.resnets.0.conv1.weight"]
    )
    union = ControlNetUnionModel.from_unet(unet(**SDXL), conditioning_embedding_out_channels=(8, 12)) if options is SDXL else None
    assert union is None or torch.equal(union.conv_in.weight, unet(**SDXL).conv_in.weight)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_trainable(checkpointing):
    net = ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(8, 12)).train()
    if checkpointing:
        net.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        down, mid = net(**inputs(net), return_dict=False)
        loss = sum((d - 1).square().mean() for d in [*down, mid])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in net.parameters())


def test_gradients_are_the_reference_s():
    theirs, ours = pair("ControlNetModel", **TINY)
    for net in (theirs, ours):
        down, mid = net(**inputs(ours), return_dict=False)
        sum(d.square().sum() for d in [*down, mid]).backward()
    ours_grads = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(ours_grads[name].grad, p.grad, atol=1e-3, rtol=1e-3)


# ---- unions


def kinds(rows: int, used: list[int]) -> torch.Tensor:
    types = torch.zeros(rows, 4)
    types[:, used] = 1
    return types


@pytest.mark.parametrize("used", [[2], [0, 3], [3, 1, 2]], ids=str)
@pytest.mark.parametrize("call", [{}, {"guess_mode": True}, {"from_multi": True, "guess_mode": True}, {"scales": True}], ids=str)
def test_unions(used, call):
    theirs, ours = pair("ControlNetUnionModel", **TINY | UNION)
    call = dict(call)
    scale = [0.3 * (i + 1) for i in range(len(used))] if call.pop("scales", False) else 0.8
    given = inputs(ours, pictures=len(used)) | {"control_type": kinds(2, used), "control_type_idx": used, "conditioning_scale": scale}
    assert ours.config == {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    compare(theirs, ours, given | call)


def test_several_unions():
    nets = [pair("ControlNetUnionModel", **TINY | UNION) for _ in range(2)]
    with torch.no_grad():
        for net in nets[1]:
            net.controlnet_mid_block.weight.mul_(0.5)
    from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel as Theirs

    multis = Theirs([a for a, _ in nets]), MultiControlNetUnionModel([b for _, b in nets])
    given = inputs(nets[0][1], pictures=1)
    given |= {"controlnet_cond": [given["controlnet_cond"]] * 2, "control_type": [kinds(2, [1]), kinds(2, [3])]}
    given |= {"control_type_idx": [[1], [3]], "return_dict": False}
    for scales in ([0.5, 0.7], [0.0, 0.7]):
        (down, mid), (down2, mid2) = (m(**given, conditioning_scale=scales) for m in multis)
        for a, b in zip([*down, mid], [*down2, mid2], strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)
    assert multis[1](**given, conditioning_scale=[0.0, 0.0]) == (None, None)


# ---- several


def test_several_are_added_saved_and_loaded(tmp_path):
    pairs = [pair("ControlNetModel", **TINY | {"conditioning_channels": 1 + i}) for i in range(3)]
    theirs = diffusers.MultiControlNetModel([a for a, _ in pairs])
    ours = MultiControlNetModel([b for _, b in pairs])
    given = [inputs(b) for _, b in pairs]
    call = given[0] | {
        "controlnet_cond": [g["controlnet_cond"] for g in given],
        "conditioning_scale": [0.2, 0.0, 1.5],
        "return_dict": False,
    }
    expected = theirs(**call)

    def same(net: Any) -> None:
        down, mid = net(**call)
        for a, b in zip([*expected[0], expected[1]], [*down, mid], strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)

    same(ours)
    ours.save_pretrained(tmp_path / "controlnet")
    assert sorted(os.listdir(tmp_path)) == ["controlnet", "controlnet_1", "controlnet_2"]
    same(diffusers.MultiControlNetModel.from_pretrained(str(tmp_path / "controlnet")))
    same(MultiControlNetModel.from_pretrained(tmp_path, subfolder="controlnet"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    half = MultiControlNetModel.from_pretrained(tmp_path / "theirs", torch_dtype=torch.float16)
    assert len(half.nets) == 3 and half.dtype == torch.float16
    zeros = ours(**call | {"conditioning_scale": [0.0] * 3})
    assert not zeros[1].any()
    with pytest.raises(darkroom.CheckpointError, match="nowhere"):
        MultiControlNetModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="ControlNetModel"):
        MultiControlNetModel([torch.nn.Linear(1, 1)])


# ---- adapters

ADAPTERS = {
    "full": {"channels": [8, 16, 16], "num_res_blocks": 2},
    "one channel": {"channels": [8, 16], "in_channels": 1, "downscale_factor": 4},
    "xl": {"channels": [8, 16, 24, 24], "adapter_type": "full_adapter_xl"},
    "light": {"channels": [8, 16, 16], "adapter_type": "light_adapter", "num_res_blocks": 3},
}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters(options):
    theirs, ours = pair("T2IAdapter", **{"downscale_factor": 2, **options})
    assert ours.config == {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    assert (ours.downscale_factor, ours.total_downscale_factor) == (theirs.downscale_factor, theirs.total_downscale_factor)
    x = torch.rand(2, ours.config.in_channels, 20, 12)
    for a, b in zip(theirs(x), ours(x), strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5)


def test_several_adapters(tmp_path):
    pairs = [pair("T2IAdapter", channels=[8, 16], num_res_blocks=1, downscale_factor=2) for _ in range(3)]
    for i, nets in enumerate(pairs):
        for net in nets:
            net.adapter.conv_in.bias.data.fill_(i)
    theirs, ours = diffusers.MultiAdapter([a for a, _ in pairs]), MultiAdapter([b for _, b in pairs])
    xs = [torch.rand(1, 3, 16, 16) for _ in range(3)]
    for weights in (None, [0.1, 2.0, 0.7]):
        for a, b in zip(theirs(xs, weights), ours(xs, weights), strict=True):
            torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5)
    theirs.save_pretrained(str(tmp_path / "adapter"))  # the reference calls the third folder adapter_1_2, and does not find it again
    assert sorted(os.listdir(tmp_path)) == ["adapter", "adapter_1", "adapter_1_2"]
    for folder in ("adapter", "mine"):
        again = MultiAdapter.from_pretrained(tmp_path / folder) if folder == "adapter" else None
        if again is None:
            ours.save_pretrained(tmp_path / folder)
            again = MultiAdapter.from_pretrained(tmp_path / folder)
            assert len(diffusers.MultiAdapter.from_pretrained(str(tmp_path / folder)).adapters) == 3
        assert again.num_adapter == 3
        for a, b in zip(ours(xs), again(xs), strict=True):
            torch.testing.assert_close(b, a)


# ---- what cannot be used


def test_configurations_that_mean_nothing():
    for options, named in {
        "controlnet_conditioning_channel_order": (
            {"controlnet_conditioning_channel_order": "gbr"},
            "controlnet_conditioning_channel_order",
        ),
        "mid": ({"mid_block_type": "NoBlock"}, "mid_block_type"),
        "widths": ({"down_block_types": ("DownBlock2D",)}, "down_block_types"),
        "blocks": ({"down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D")}, "down_block_types"),
        "hint": ({"addition_embed_type": "image_hint", "encoder_hid_dim": 8}, "addition_embed_type"),
        "states": ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}, "encoder_hid_dim_type"),
    }.values():
        with pytest.raises(ConfigError, match=named):
            ControlNetModel(**TINY | options)
    with pytest.raises(ConfigError, match="addition_time_embed_dim"):
        ControlNetUnionModel(**TINY)
    with pytest.raises(ConfigError, match="num_trans_channel"):
        ControlNetUnionModel(**TINY | UNION | {"num_trans_channel": 32})
    with pytest.raises(ConfigError, match="adapter_type"):
        T2IAdapter(adapter_type="heavy_adapter")
    adapters = [T2IAdapter(channels=(8, 8), downscale_factor=f, num_res_blocks=1) for f in (2, 4)]
    for wrong in (adapters, adapters[:1], []):
        with pytest.raises(InputError):
            MultiAdapter(wrong)


def test_arguments_that_do_not_fit():
    net = ControlNetModel(**TINY)
    good = inputs(net)
    for changes, named in (
        ({"sample": torch.zeros(2, 9, 8, 8)}, "sample"),
        ({"controlnet_cond": torch.rand(2, 1, 16, 16)}, "controlnet_cond"),
        ({"controlnet_cond": torch.rand(2, 3, 32, 32)}, "controlnet_cond"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 13)}, "encoder_hidden_states"),
        ({"encoder_hidden_states": None}, "encoder_hidden_states"),
    ):
        with pytest.raises(InputError, match=named):
            net(**good | changes)
    union = ControlNetUnionModel(**TINY | UNION)
    good = inputs(union, pictures=1) | {"control_type": kinds(2, [1]), "control_type_idx": [1]}
    for changes in (
        {"control_type_idx": [4]},
        {"control_type_idx": [1, 2]},
        {"control_type": kinds(1, [1])},
        {"conditioning_scale": [1.0, 1.0]},
    ):
        with pytest.raises(InputError):
            union(**good | changes)
    with pytest.raises(InputError, match="multiples of 2"):
        T2IAdapter(channels=(8, 8), downscale_factor=2)(torch.rand(1, 3, 15, 16))
