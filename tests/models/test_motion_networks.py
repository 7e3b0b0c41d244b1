"""Networks over videos beside the reference's, on tiny random weights: motion modules, the UNets that have them, sparse controls."""

from __future__ import annotations
import copy
import inspect
import json
from typing import Any
import diffusers
import pytest
import torch
import darkroom
from darkroom import ConfigError, InputError, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from darkroom.core.attention import eager
from darkroom.core.windows import SCHEMES, Windows, in_parts

SD = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 12, "attention_head_dim": 4, "norm_num_groups": 8,
}  # fmt: skip
SDXL = SD | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2, "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 48,
}  # fmt: skip
MOTION = {
    "block_out_channels": (16, 32), "motion_layers_per_block": 1, "motion_num_attention_heads": 2, "motion_norm_num_groups": 8,
    "motion_max_seq_length": 6,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SD": (SD, MOTION),
    "SDXL": (SDXL, MOTION | {"motion_layers_per_block": 2, "motion_num_attention_heads": (2, 4)}),
    "without a middle": (SD | {"time_cond_proj_dim": 8}, MOTION | {"use_motion_mid_block": False}),
    "deep": (SD, MOTION | {"motion_transformer_layers_per_block": (2, 1), "motion_transformer_layers_per_mid_block": (2,)}),
    "PIA": (SD, MOTION | {"conv_in_channels": 9}),
}
COMPLETE: dict[str, dict[str, Any]] = {  # as its own configuration
    "options": {
        "transformer_layers_per_block": ((1, 2), (1, 1)), "reverse_transformer_layers_per_block": ((1, 1, 2), (2, 1, 1)),
        "temporal_transformer_layers_per_block": ((1, 2), (1, 1)), "reverse_temporal_transformer_layers_per_block": ((1, 1, 2), (2, 1, 1)),
        "layers_per_block": 2, "mid_block_layers": 2, "temporal_transformer_layers_per_mid_block": (1, 2), "num_attention_heads": (2, 4),
        "transformer_layers_per_mid_block": (2, 1), "motion_num_attention_heads": (4, 2), "act_fn": "gelu", "norm_eps": 1e-4,
    },
    "one depth on the way up": {
        "reverse_transformer_layers_per_block": 2, "reverse_temporal_transformer_layers_per_block": 2, "use_motion_mid_block": False,
    },
}  # fmt: skip
PLAIN = {"block_out_channels": (16, 32), "norm_num_groups": 8, "cross_attention_dim": 12, "motion_max_seq_length": 6}
PLAIN |= {
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
}


def pair(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    made = tuple(getattr(library, name)(**options).eval() for library in (diffusers, darkroom))
    for p in made[0].parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    assert set(made[1].state_dict()) == set(made[0].state_dict())
    made[1].load_state_dict(made[0].state_dict())
    return made


def parts(kind: str) -> list[tuple[Any, Any]]:
    """UNet and adapter of both libraries."""
    return [pair(name, options) for name, options in zip(("UNet2DConditionModel", "MotionAdapter"), KINDS[kind], strict=True)]


@pytest.fixture(params=[*KINDS, *COMPLETE], scope="module")
def nets(request):
    if request.param in COMPLETE:
        return pair("UNetMotionModel", PLAIN | COMPLETE[request.param])
    (unet, mine), (adapter, my_adapter) = parts(request.param)
    theirs = diffusers.UNetMotionModel.from_unet2d(unet, copy.deepcopy(adapter))  # which writes into the adapter
    if hasattr(unet, "add_embedding") and request.param == "SDXL":  # which it leaves as it was made: sizes and pooled text mean nothing
        theirs.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    return theirs.eval(), UNetMotionModel.from_unet2d(mine, my_adapter).eval()


def arguments(network: Any, frames: int = 5, height: int = 8, width: int = 8) -> dict[str, Any]:
    g, c = torch.Generator().manual_seed(1), network.config
    made = {
        "sample": torch.randn(2, c.in_channels, frames, height, width, generator=g), "timestep": 11,
        "encoder_hidden_states": torch.randn(2 * frames, 3, 12, generator=g),
    }  # fmt: skip
    if c.addition_embed_type is not None:
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        made["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 16, generator=g), "time_ids": ids}
    if c.time_cond_proj_dim:
        made["timestep_cond"] = torch.randn(2, c.time_cond_proj_dim, generator=g)
    return made


def close(got, expected, tolerance=1e-4):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def randomized(network: Any) -> Any:
    for p in network.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    return network.eval()


@pytest.mark.parametrize("name", ["MotionAdapter", "UNetMotionModel"])
def test_options_are_the_references(name):
    expected, got = ([*inspect.signature(getattr(library, name)).parameters.values()] for library in (diffusers, darkroom))
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]


@pytest.mark.parametrize("frames, size", [(5, (8, 8)), (1, (8, 8)), (6, (7, 10))], ids=str)
@torch.no_grad()
def test_forward(nets, frames, size):
    reference, mine = nets
    call = arguments(mine, frames, *size)
    expected = reference(**call).sample
    assert expected.std() > 0.1
    close(mine(**call).sample, expected)
    close(mine(**call, attend=eager, return_dict=False)[0], expected)


@torch.no_grad()
def test_other_arguments(nets):
    reference, mine = nets
    call = arguments(mine)
    once = call["encoder_hidden_states"][::5]
    call["encoder_hidden_states"] = once.repeat_interleave(5, 0)
    expected = reference(**call).sample
    close(mine(**call | {"encoder_hidden_states": once}).sample, expected)  # one context for all frames of a video
    close(mine(**call, at_once=(3, 20)).sample, expected)
    steps = torch.tensor([11, 500])
    close(mine(**call | {"timestep": steps}).sample, reference(**call | {"timestep": steps}).sample)


@torch.no_grad()
def test_residuals(nets):
    reference, mine = nets
    call, shapes = arguments(mine), []
    hooks = [block.register_forward_pre_hook(lambda m, a: shapes.append([x.shape for x in a[2]])) for block in mine.up_blocks]
    middle = []
    hooks.append(mine.mid_block.register_forward_hook(lambda m, a, out: middle.append(out.shape)))
    mine(**call)
    for hook in hooks:
        hook.remove()
    g = torch.Generator().manual_seed(3)
    down = [torch.randn(shape, generator=g) for group in reversed(shapes) for shape in group]
    more = {"down_block_additional_residuals": down, "mid_block_additional_residual": torch.randn(middle[0], generator=g)}
    close(mine(**call, **more).sample, reference(**call, **more).sample)


def test_gradients(nets):
    reference, mine = nets
    for net in nets:
        net.zero_grad()
        net(**arguments(mine)).sample.square().mean().backward()
    theirs, checked = dict(reference.named_parameters()), 0
    for name, p in mine.named_parameters():
        assert (p.grad is None) == (theirs[name].grad is None), name
        if p.grad is not None:
            close(p.grad, theirs[name].grad, 1e-3)
            checked += p.grad.any().item()
    assert checked > 50
    kept = {name: p.grad.clone() for name, p in mine.named_parameters() if p.grad is not None}
    mine.enable_gradient_checkpointing()
    mine.zero_grad()
    mine(**arguments(mine)).sample.square().mean().backward()
    mine.disable_gradient_checkpointing()
    for name, p in mine.named_parameters():
        if name in kept:
            close(p.grad, kept[name])


def test_the_configuration_is_the_references(nets):
    reference, mine = nets
    theirs = {k: tuple(v) if isinstance(v, list) else v for k, v in reference.config.items() if not k.startswith("_")}
    assert dict(mine.config) == theirs


def test_files_go_both_ways(nets, tmp_path):
    reference, mine = nets
    reference.save_pretrained(tmp_path / "theirs")
    loaded = UNetMotionModel.from_pretrained(tmp_path / "theirs")
    assert loaded.state_dict().keys() == mine.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in mine.state_dict().items())
    mine.save_pretrained(tmp_path / "mine")
    again = diffusers.UNetMotionModel.from_pretrained(tmp_path / "mine")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in mine.state_dict().items())
    call = arguments(mine)
    with torch.no_grad():
        close(UNetMotionModel.from_pretrained(tmp_path / "mine")(**call).sample, mine(**call).sample, 0)
        close(again(**call).sample, mine(**call).sample)


def test_motion_modules_are_saved_alone(nets, tmp_path):
    _, mine = nets
    if mine.config.reverse_temporal_transformer_layers_per_block is not None:
        with pytest.raises(ConfigError, match="one depth for both ways"):
            mine.save_motion_modules(tmp_path / "mine")
        return
    mine.save_motion_modules(tmp_path / "mine")
    adapter = MotionAdapter.from_pretrained(tmp_path / "mine")
    assert set(adapter.state_dict()) == {name for name in mine.state_dict() if "motion_modules" in name}
    diffusers.MotionAdapter.from_pretrained(tmp_path / "mine")
    fresh = UNetMotionModel(**{**mine.config})
    fresh.load_state_dict({name: t for name, t in mine.state_dict().items() if "motion_modules" not in name}, strict=False)
    fresh.load_motion_modules(adapter)
    with torch.no_grad():
        close(fresh(**arguments(mine)).sample, mine(**arguments(mine)).sample, 0)


# ---- from a UNet and an adapter


@pytest.mark.parametrize("kind", ["SD", "SDXL"])
def test_no_weight_is_copied_and_the_sources_stay(kind):
    (_, unet), (_, adapter) = parts(kind)
    x, c = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 12)
    added = {"text_embeds": torch.randn(1, 16), "time_ids": torch.randn(1, 6)}
    with torch.no_grad():
        before = unet(x, 5, c, added_cond_kwargs=added).sample
    names, configs = [[*part.state_dict()] for part in (unet, adapter)], [dict(part.config) for part in (unet, adapter)]
    mine = UNetMotionModel.from_unet2d(unet, adapter)
    theirs = {id(t) for part in (unet, adapter) for t in (*part.parameters(), *part.buffers())}
    assert {id(t) for t in (*mine.parameters(), *mine.buffers())} <= theirs
    sizes = [sum(p.numel() for p in part.parameters()) for part in (mine, unet, adapter)]
    assert sizes[0] == sizes[1] + sizes[2]
    assert names == [[*part.state_dict()] for part in (unet, adapter)] and configs == [dict(part.config) for part in (unet, adapter)]
    assert type(unet) is UNet2DConditionModel and not any("motion" in name for name, _ in unet.named_modules())
    for part in (unet, adapter, mine):
        part.requires_grad_(False)
    mine.down_blocks[0].resnets[0].conv1 = torch.nn.Identity()
    mine.down_blocks[0].motion_modules[0].proj_in = torch.nn.Identity()
    mine.set_attention_backend(lambda q, k, v, **_: 0 * q)
    with torch.no_grad():
        assert torch.equal(unet(x, 5, c, added_cond_kwargs=added).sample, before)
    assert isinstance(adapter.down_blocks[0].motion_modules[0].proj_in, torch.nn.Linear)


def test_sites_are_the_layers_names():
    (_, unet), (_, adapter) = parts("SD")
    mine = UNetMotionModel.from_unet2d(unet, adapter)
    cross = {name for name, m in mine.named_modules() if getattr(m, "is_cross_attention", False)}
    assert all(m.site == name for name, m in mine.named_modules() if hasattr(m, "site"))
    assert all(m.site == name for name, m in unet.named_modules() if hasattr(m, "site"))
    assert cross == {name for name, m in unet.named_modules() if getattr(m, "is_cross_attention", False)} and cross
    assert "mid_block.motion_modules.0.transformer_blocks.0.attn2" in dict(mine.named_modules())


def test_names_are_the_references(nets):
    theirs, mine = ({n for n, m in net.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))} for net in nets)
    assert mine == theirs


def test_an_adapter_of_another_dtype_is_cast():
    (_, unet), (_, adapter) = parts("SD")
    mine = UNetMotionModel.from_unet2d(unet, adapter.half())
    assert {p.dtype for p in mine.parameters()} == {torch.float32} and {p.dtype for p in adapter.parameters()} == {torch.float16}


def test_without_an_adapter_or_weights():
    (_, unet), (_, adapter) = parts("SDXL")
    mine = UNetMotionModel.from_unet2d(unet)
    assert mine.conv_in.weight is unet.conv_in.weight
    assert mine.config.motion_max_seq_length == 32 and mine(**arguments(mine)).sample.shape == (2, 4, 5, 8, 8)
    fresh = UNetMotionModel.from_unet2d(unet, adapter, load_weights=False)
    assert fresh.state_dict().keys() == UNetMotionModel.from_unet2d(unet, adapter).state_dict().keys()
    assert fresh.conv_in.weight is not unet.conv_in.weight


def test_freezing():
    (unet, my_unet), (adapter, my_adapter) = parts("SD")
    theirs, mine = diffusers.UNetMotionModel.from_unet2d(unet, adapter), UNetMotionModel.from_unet2d(my_unet, my_adapter)
    for net in (theirs, mine):
        net.freeze_unet2d_params()
    expected = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert {name for name, p in mine.named_parameters() if p.requires_grad} == expected and expected


def test_an_adapter_that_does_not_fit(tmp_path):
    unet = UNet2DConditionModel(**SD)
    for options in ({"block_out_channels": (16, 64)}, {"block_out_channels": (16, 32, 32)}, {"motion_layers_per_block": 2}):
        with pytest.raises(ConfigError, match="another network"):
            UNetMotionModel.from_unet2d(unet, MotionAdapter(**MOTION | options))
    for options in ({"num_class_embeds": 3}, {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, {"center_input_sample": True}):
        with pytest.raises(ConfigError, match="do not go into"):
            UNetMotionModel.from_unet2d(UNet2DConditionModel(**SD | options), MotionAdapter(**MOTION))


@pytest.mark.parametrize("name, options", [
    ("MotionAdapter", {"motion_num_attention_heads": 3}), ("MotionAdapter", {"motion_norm_num_groups": 7}),
    ("MotionAdapter", {"motion_layers_per_block": (1, 1, 1)}), ("MotionAdapter", {"motion_transformer_layers_per_mid_block": (1, 1)}),
    ("UNetMotionModel", {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}), ("UNetMotionModel", {"addition_embed_type": "text"}),
    ("UNetMotionModel", {"transformer_layers_per_block": ((1, 1), (1, 1))}), ("UNetMotionModel", {"num_attention_heads": (1,)}),
])  # fmt: skip
def test_options_without_a_meaning(name, options):
    with pytest.raises(ConfigError):
        getattr(darkroom, name)(**(MOTION if name == "MotionAdapter" else PLAIN) | options)


@pytest.mark.parametrize("change, match", [
    ({"sample": torch.zeros(2, 4, 8, 8)}, "sample"), ({"sample": torch.zeros(2, 3, 5, 8, 8)}, "sample"),
    ({"encoder_hidden_states": torch.zeros(3, 3, 12)}, "for each frame"), ({"encoder_hidden_states": torch.zeros(2, 3, 13)}, "context"),
    ({"sample": torch.zeros(2, 4, 7, 8, 8), "encoder_hidden_states": torch.zeros(2, 3, 12)}, "enable_free_noise"),
])  # fmt: skip
def test_arguments_that_do_not_fit(change, match):
    (_, unet), (_, adapter) = parts("SD")
    mine = UNetMotionModel.from_unet2d(unet, adapter)
    with pytest.raises(InputError, match=match):
        mine(**arguments(mine) | change)


# ---- windows


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length, stride, frames", [(6, 2, 10), (4, 4, 12), (6, 3, 6), (5, 2, 9)], ids=str)
def test_windows_are_the_references(scheme, length, stride, frames):
    """Where windows cover the video by themselves; in the reference's third scheme an odd length has a weight too many."""
    if scheme == "delayed_reverse_sawtooth" and length % 2:
        assert Windows(length, stride, scheme).weights() == [0.01, 0.01, 3.0, 2.0, 1.0]
        return
    from diffusers.models.attention import FreeNoiseTransformerBlock

    (_, _), (theirs, mine) = parts("SD")
    block = theirs.down_blocks[0].motion_modules[0].transformer_blocks[0]
    options = dict(double_self_attention=True, positional_embeddings="sinusoidal", num_positional_embeddings=6, activation_fn="geglu")
    windowed = FreeNoiseTransformerBlock(16, 2, 8, context_length=length, context_stride=stride, weighting_scheme=scheme, **options)
    windowed.load_state_dict(block.state_dict())
    from darkroom.models.layers.attention import Conditions

    x, ours = torch.randn(7, frames, 16), mine.down_blocks[0].motion_modules[0].transformer_blocks[0]
    with torch.no_grad():
        close(ours(x, Conditions(windows=Windows(length, stride, scheme))), windowed(x))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length, stride, frames", [(6, 4, 13), (4, 1, 6), (3, 2, 8), (8, 3, 8)], ids=str)
def test_windows_average(scheme, length, stride, frames):
    """Weights of each frame add up to 1, also where a last window covers the rest; the reference divides by the weight of another frame there."""
    windows, x = Windows(length, stride, scheme), torch.randn(2, frames, 3)
    close(windows(lambda part: part, x), x)
    seen: list[int] = []
    windows(lambda part: seen.append(part.shape[1]) or part, x)
    assert set(seen) == {length}
    assert {i for start, first in windows.spans(frames) for i in range(first, start + length)} == set(range(frames))


def test_windows_that_cannot_be():
    for options in ({"scheme": "none"}, {"length": 0}, {"stride": 0}, {"length": 2.5}):
        with pytest.raises(InputError):
            Windows(**options)
    with pytest.raises(InputError, match="shorter than a window"):
        Windows(8).spans(7)


def test_in_parts():
    x, y, sizes = torch.randn(7, 2), torch.randn(7, 2), []

    def layer(a, b, c):
        assert c is None
        sizes.append(len(a))
        return a * b

    assert torch.equal(in_parts(layer, 3, x, y, None), x * y) and sizes == [3, 3, 1]
    assert torch.equal(in_parts(layer, None, x, y, None), x * y) and sizes[3:] == [7]


def test_old_configurations_load(tmp_path):
    """Keys that an adapter does not know are kept and written back."""
    adapter = randomized(MotionAdapter(**MOTION))
    adapter.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"motion_mystery": 3}))
    loaded = MotionAdapter.from_pretrained(tmp_path)
    assert loaded.config["motion_mystery"] == 3
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), adapter.state_dict().values(), strict=True))


# ---- the other networks over videos

FILM = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "cross_attention_dim": 12, "attention_head_dim": 4, "norm_num_groups": 8,
}  # fmt: skip
SPARSE = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "cross_attention_dim": 12, "attention_head_dim": 4, "norm_num_groups": 8, "motion_num_attention_heads": 2, "motion_max_seq_length": 6,
}  # fmt: skip
PICTURES = {"use_simplified_condition_embedding": False, "conditioning_channels": 3, "conditioning_embedding_out_channels": (4, 8)}
FILMS = {
    "first": FILM,
    "options": FILM | {"layers_per_block": 2, "act_fn": "gelu", "mid_block_scale_factor": 1.5, "time_cond_proj_dim": 8, "norm_eps": 1e-4},
}
SPARSES = {
    "latents": SPARSE,
    "pictures": SPARSE | PICTURES,
    "options": SPARSE | {
        "layers_per_block": 2, "concat_conditioning_mask": False, "global_pool_conditions": True, "transformer_layers_per_block": (2, 1),
        "transformer_layers_per_mid_block": 2, "motion_num_attention_heads": (2, 4), "num_attention_heads": (2, 8), "downsample_padding": 0,
        "temporal_transformer_layers_per_block": (1, 2), "use_linear_projection": True, "resnet_time_scale_shift": "scale_shift",
        "controlnet_conditioning_channel_order": "bgr", "only_cross_attention": (True, False),
    },
}  # fmt: skip


@pytest.fixture(params=FILMS, scope="module")
def films(request):
    return pair("UNet3DConditionModel", FILMS[request.param])


@pytest.fixture(params=SPARSES, scope="module")
def sparse(request):
    return pair("SparseControlNetModel", SPARSES[request.param])


def frames_of(network: Any, frames: int = 5, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    call = arguments_without_added(frames, *size)
    if getattr(network.config, "time_cond_proj_dim", None):
        call["timestep_cond"] = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    return call


def arguments_without_added(frames: int, height: int, width: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    context = torch.randn(2, 3, 12, generator=g)
    return {"sample": torch.randn(2, 4, frames, height, width, generator=g), "timestep": 11, "encoder_hidden_states": context}


def seen(network: Any, frames: int = 5) -> dict[str, Any]:
    g, c = torch.Generator().manual_seed(4), network.config
    side = 8 if c.use_simplified_condition_embedding else 16
    given = (torch.arange(frames) % 3 == 0).float()[None, None, :, None, None].expand(2, 1, -1, side, side)
    picture = torch.randn(2, c.conditioning_channels, frames, side, side, generator=g) * given
    return {"controlnet_cond": picture, "conditioning_mask": given}


@pytest.mark.parametrize("name", ["UNet3DConditionModel", "SparseControlNetModel"])
def test_options_of_the_others_are_the_references(name):
    expected, got = ([*inspect.signature(getattr(library, name)).parameters.values()] for library in (diffusers, darkroom))
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]


@pytest.mark.parametrize("frames, size", [(5, (8, 8)), (1, (8, 8)), (3, (7, 10))], ids=str)
@torch.no_grad()
def test_a_film(films, frames, size):
    reference, mine = films
    call = frames_of(mine, frames, size)
    expected = reference(**call).sample
    assert expected.std() > 0.1
    close(mine(**call).sample, expected)
    close(mine(**call, attend=eager, return_dict=False)[0], expected)
    names = [{n for n, m in net.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d))} for net in films]
    assert names[0] == names[1]


def test_gradients_of_a_film(films):
    for net in films:
        net.zero_grad()
        net(**frames_of(net)).sample.square().mean().backward()
    theirs = dict(films[0].named_parameters())
    for name, p in films[1].named_parameters():
        assert (p.grad is None) == (theirs[name].grad is None), name
        if p.grad is not None:
            close(p.grad, theirs[name].grad, 1e-3)


@torch.no_grad()
def test_residuals_of_a_film(films):
    reference, mine = films
    widths = [m.conv1.out_channels for block in mine.down_blocks for m in block.resnets]
    layers, g = len(widths) // 2, torch.Generator().manual_seed(3)
    shapes = [(16, 8)] * (1 + layers) + [(16, 4)] + [(32, 4)] * layers
    down = [torch.randn(10, c, n, n, generator=g) for c, n in shapes]
    more = {"down_block_additional_residuals": down, "mid_block_additional_residual": torch.randn(10, 32, 4, 4, generator=g)}
    close(mine(**frames_of(mine), **more).sample, reference(**frames_of(mine), **more).sample)


@pytest.mark.parametrize("changes", [{}, {"conditioning_scale": 0.4}, {"guess_mode": True}, {"return_dict": False}], ids=str)
@torch.no_grad()
def test_sparse_controls(sparse, changes):
    reference, mine = sparse
    call = frames_of(mine) | seen(mine) | changes
    every = call["encoder_hidden_states"].repeat_interleave(5, 0)  # as the reference needs it
    got, expected = mine(**call), reference(**call | {"encoder_hidden_states": every})
    assert type(got).__name__ == type(expected).__name__
    for a, b in zip([*got[0], got[1]], [*expected[0], expected[1]], strict=True):
        close(a, b)
    close(mine(**call | {"encoder_hidden_states": every})[1], expected[1])
    close(mine(**call | {"sample": torch.randn(2, 4, 5, 8, 8)})[1], expected[1])  # it does not look at the noise


@pytest.mark.parametrize("name", ["UNet3DConditionModel", "SparseControlNetModel"])
def test_files_of_the_others_go_both_ways(name, tmp_path):
    reference, mine = pair(name, FILM if "3D" in name else SPARSE)
    reference.save_pretrained(tmp_path / "theirs")
    loaded = type(mine).from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in mine.state_dict().items())
    loaded.save_pretrained(tmp_path / "mine")
    again = type(reference).from_pretrained(tmp_path / "mine")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in mine.state_dict().items())


def test_a_sparse_control_from_a_unet():
    unet = UNet2DConditionModel(**SD)
    mine = darkroom.SparseControlNetModel.from_unet(unet, conditioning_channels=4, conditioning_embedding_out_channels=(4, 8))
    assert torch.equal(mine.conv_in.weight, unet.conv_in.weight) and mine.conv_in.weight is not unet.conv_in.weight
    for key, tensor in unet.down_blocks.state_dict().items():
        assert torch.equal(mine.down_blocks.state_dict()[key], tensor)
    assert mine.config.down_block_types == ("CrossAttnDownBlockMotion", "DownBlockMotion")
    call = frames_of(mine) | seen(mine)
    assert not any(made.any() for made in mine(**call).down_block_res_samples)  # before training it steers nothing


@pytest.mark.parametrize("change, match", [
    ({"sample": torch.zeros(2, 4, 8, 8)}, "sample"), ({"conditioning_mask": None}, "missing"),
    ({"encoder_hidden_states": torch.zeros(3, 3, 12)}, "fit the sample"), ({"controlnet_cond": torch.zeros(2, 3, 5, 8, 8)}, "fit the sample"),
    ({"controlnet_cond": torch.zeros(2, 4, 5, 4, 4), "conditioning_mask": torch.zeros(2, 1, 5, 4, 4)}, "another size"),
])  # fmt: skip
def test_what_a_sparse_control_refuses(change, match):
    mine = darkroom.SparseControlNetModel(**SPARSE)
    with pytest.raises(InputError, match=match):
        mine(**frames_of(mine) | seen(mine) | change)


def test_what_a_film_refuses():
    mine = darkroom.UNet3DConditionModel(**FILM)
    for change in ({"sample": torch.zeros(2, 4, 8, 8)}, {"encoder_hidden_states": torch.zeros(2, 3, 13)}):
        with pytest.raises(InputError, match="does not fit"):
            mine(**frames_of(mine) | change)
    for options in ({"num_attention_heads": 2}, {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock3D")}, {"norm_num_groups": None}):
        with pytest.raises(ConfigError):
            darkroom.UNet3DConditionModel(**FILM | options)
