"""UNet2DConditionModel beside the reference: the same tensors and numbers for the configurations in use."""

from __future__ import annotations
import inspect
import logging
import pytest
import torch
from families.side_by_side import networks
from darkroom.core.attention import eager, sdpa
from darkroom.errors import ConfigError, InputError
from darkroom.models.layers.attention import Conditions
from darkroom.models.unet_2d_condition import UNet2DConditionModel

diffusers = pytest.importorskip("diffusers")

TWO = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
TINY = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    **TWO,
}
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}
THREE = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
UPSCALER = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
    "up_block_types": ("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
    "mid_block_type": None,
    "layers_per_block": 2,
    "norm_num_groups": None,
    "time_embedding_type": "fourier",
    "time_embedding_dim": 64,
    "timestep_post_act": "gelu",
    "act_fn": "gelu",
    "time_cond_proj_dim": 6,
    "attention_head_dim": 16,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "in_channels": 5,
    "resnet_time_scale_shift": "ada_group",
}
SDXL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 6, "projection_class_embeddings_input_dim": 44}
CONFIGS: dict[str, dict] = {
    "plain": {},
    "three levels": THREE | {"layers_per_block": (1, 2, 1), "attention_head_dim": (2, 4, 8), "downsample_padding": 0},
    "sd2": {"use_linear_projection": True, "upcast_attention": True, "attention_head_dim": (2, 4)},
    "sdxl": THREE | SDXL | {"transformer_layers_per_block": (1, 2, 3), "use_linear_projection": True},
    "nested depth": THREE
    | {"transformer_layers_per_block": ((1,), (2,), (3,)), "reverse_transformer_layers_per_block": ((1, 2), (2, 1), (1, 1))},
    "two layers": {"transformer_layers_per_block": 2, "layers_per_block": 2},
    "lcm": {"time_cond_proj_dim": 6},
    "inpaint": {"in_channels": 9, "sample_size": 8},
    "fixed upscaler": {"num_class_embeds": 10, "in_channels": 7},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "class projection": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "class simple projection": {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 10},
    "class concat": {"class_embed_type": "timestep", "class_embeddings_concat": True},
    "text": {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
    "text from wide states": {"addition_embed_type": "text", "addition_embed_type_num_heads": 2, "encoder_hid_dim": 20},
    "text_proj": {"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"},
    "kandinsky 2.1": {"addition_embed_type": "text_image", "encoder_hid_dim": 20, "encoder_hid_dim_type": "text_image_proj"},
    "kandinsky 2.2": {"addition_embed_type": "image", "encoder_hid_dim": 20, "encoder_hid_dim_type": "image_proj"},
    "kandinsky 2.2 hint": {
        "addition_embed_type": "image_hint",
        "encoder_hid_dim": 20,
        "encoder_hid_dim_type": "image_proj",
        "in_channels": 8,
    },
    "only cross": {"only_cross_attention": True},
    "only cross somewhere": {"only_cross_attention": (True, False)},
    "simple": SIMPLE | {"resnet_skip_time_act": True, "resnet_out_scale_factor": 1.4, "resnet_time_scale_shift": "scale_shift"},
    "simple only cross": SIMPLE | {"only_cross_attention": True, "cross_attention_norm": "layer_norm", "cross_attention_dim": 32},
    "simple mid only cross": SIMPLE | {"mid_block_only_cross_attention": True},
    "simple group norm": SIMPLE | {"cross_attention_norm": "group_norm", "cross_attention_dim": 64, "attention_head_dim": (4, 8)},
    "simple mid in a plain net": {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_skip_time_act": True},
    "mid without attention": {"mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 1.3},
    "no mid": {"mid_block_type": None},
    "self attention": {
        "down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": (4, 8),
    },
    "old names of blocks": {"down_block_types": ("UNetResCrossAttnDownBlock2D", "UNetResDownBlock2D")},
    "mid scale": {"mid_block_scale_factor": 1.41},
    "fourier": {"time_embedding_type": "fourier", "time_embedding_dim": 24},
    "time width": {"time_embedding_dim": 24, "time_embedding_act_fn": "silu", "timestep_post_act": "mish"},
    "sines first": {"flip_sin_to_cos": False, "freq_shift": 1},
    "kernels": {"conv_in_kernel": 5, "conv_out_kernel": 1, "center_input_sample": True},
    "activation": {"act_fn": "gelu", "dropout": 0.1, "norm_eps": 1e-3, "out_channels": 6},
    "latent upscaler": UPSCALER,
}
SIZES = {"latent upscaler": (16, 24)}  # its filters reflect at the border and need two pixels


def pair(**options):
    return networks(diffusers.UNet2DConditionModel, UNet2DConditionModel, TINY | options, apart=True)


def inputs(batch: int = 2, size: tuple[int, int] = (8, 8), **options):
    c = UNet2DConditionModel.Config(**(TINY | options))
    g = torch.Generator().manual_seed(1)
    rand = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
    channels = c.in_channels - (4 if c.addition_embed_type == "image_hint" else 0)
    out = {
        "sample": rand(batch, channels, *size),
        "timestep": torch.tensor([7.0, 541.0])[:batch],
        "encoder_hidden_states": rand(batch, 5, c.encoder_hid_dim or c.cross_attention_dim),
    }
    if c.time_embedding_type == "fourier":
        out["timestep"] = torch.tensor([0.3, -0.9])
    if c.time_cond_proj_dim:
        out["timestep_cond"] = rand(batch, c.time_cond_proj_dim)
    width = c.time_embedding_dim or c.block_out_channels[0] * 4
    classes = {
        None: torch.tensor([3, 9]) if c.num_class_embeds else None,
        "timestep": torch.tensor([20, 700]),
        "identity": rand(batch, width),
    }
    out["class_labels"] = classes.get(c.class_embed_type, rand(batch, 10))
    pooled = rand(batch, 8)
    out["added_cond_kwargs"] = {
        None: {},
        "text": {},
        "text_time": {"text_embeds": pooled, "time_ids": rand(batch, 6) * 100},
        "text_image": {"text_embeds": rand(batch, 12), "image_embeds": rand(batch, 12)},
        "image": {"image_embeds": rand(batch, 20)},
        "image_hint": {"image_embeds": rand(batch, 20), "hint": rand(batch, 3, 8 * size[0], 8 * size[1])},
    }[c.addition_embed_type]
    return out


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert theirs.abs().mean() > 1e-2  # not a comparison of zeros


def test_every_key_order_and_default_is_the_references():
    theirs = inspect.signature(diffusers.UNet2DConditionModel).parameters
    ours = inspect.signature(UNet2DConditionModel).parameters
    assert [(n, p.default) for n, p in ours.items()] == [(n, p.default) for n, p in theirs.items()]
    grid = {key for options in CONFIGS.values() for key in options} | set(TINY)
    untested = set(ours) - grid
    assert untested == {"attention_type", "dual_cross_attention", "num_attention_heads"}  # each has its own test


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_same_numbers(name):
    options = CONFIGS[name]
    reference, ours = pair(**options)
    arguments = inputs(size=SIZES.get(name, (8, 8)), **options)
    assert_same(ours(**arguments).sample, reference(**arguments).sample)


@pytest.mark.parametrize("size", [(9, 13), (8, 7), (5, 5)])
@torch.no_grad()
def test_sizes_that_two_does_not_divide(size):
    reference, ours = pair(**THREE)
    arguments = inputs(size=size, **THREE)
    assert_same(ours(**arguments).sample, reference(**arguments).sample)


@torch.no_grad()
def test_odd_sizes_where_the_reference_fails():
    _, ours = pair(**SIMPLE)
    assert ours(**inputs(size=(7, 9), **SIMPLE)).sample.shape == (2, 4, 7, 9)


@pytest.mark.parametrize("options", [{}, SIMPLE, SIMPLE | {"only_cross_attention": True}], ids=["plain", "simple", "only cross"])
@torch.no_grad()
def test_masks_of_the_context(options):
    reference, ours = pair(**options)
    arguments = inputs(**options)
    plain = ours(**arguments).sample
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 0]])
    masked = ours(**arguments, encoder_attention_mask=mask).sample
    assert not torch.allclose(masked, plain, atol=1e-3)
    if options.get("only_cross_attention") is None:  # the reference pads this mask beyond the keys that there are
        assert_same(masked, reference(**arguments, encoder_attention_mask=mask).sample)
    else:
        short = arguments | {"encoder_hidden_states": arguments["encoder_hidden_states"][1:, :4]}
        short = {k: v[1:] if isinstance(v, torch.Tensor) and len(v) == 2 else v for k, v in short.items()}
        assert_same(masked[1:], ours(**short).sample)
    if options:  # unCLIP's way
        assert_same(ours(**arguments, attention_mask=mask).sample, masked)


@torch.no_grad()
def test_masks_of_self_attention():
    options = {"mid_block_type": None}
    reference, ours = pair(**options)
    arguments = inputs(**options)
    keep = (torch.rand(2, 64, generator=torch.Generator().manual_seed(3)) > 0.3).long()
    rows = (torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(4)) > 0.3).long()
    for mask in (keep, rows):
        expected = reference(**arguments, attention_mask=mask).sample
        assert_same(ours(**arguments, attention_mask=mask).sample, expected)
        assert not torch.allclose(ours(**arguments).sample, expected, atol=1e-3)


@torch.no_grad()
def test_residuals_of_a_controlnet():
    reference, ours = pair(**THREE)
    arguments = inputs(**THREE)
    shapes = [(16, 8, 8)] * 2 + [(16, 4, 4)] + [(32, 4, 4)] + [(32, 2, 2)] * 2
    down = [torch.randn(2, *s) for s in shapes]
    extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": torch.randn(2, 32, 2, 2)}
    assert_same(ours(**arguments, **extra).sample, reference(**arguments, **extra).sample)
    with pytest.raises(InputError, match="down_block_additional_residuals"):
        ours(**arguments, **extra | {"down_block_additional_residuals": down[:-1]})


@pytest.mark.parametrize("key", ["down_intrablock_additional_residuals", "down_block_additional_residuals"])
@pytest.mark.parametrize("middle", [False, True])
@torch.no_grad()
def test_residuals_of_an_adapter(key, middle):
    options = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    reference, ours = pair(**options)
    arguments = inputs(**options)
    given = [torch.randn(2, 16, 4, 4), torch.randn(2, 32, 4, 4)] + [torch.randn(2, 32, 4, 4)] * middle
    mine = list(given)
    result = ours(**arguments, **{key: mine}).sample
    assert len(mine) == len(given)  # the caller's list is the caller's
    assert_same(result, reference(**arguments, **{key: list(given)}).sample)
    if key.startswith("down_intra"):  # without a middle there is no ControlNet
        assert_same(ours(**arguments, **{key: given}, down_block_additional_residuals=given[:1]).sample, result)


@torch.no_grad()
def test_timesteps_in_every_form():
    reference, ours = pair()
    arguments = inputs()
    for t in (500, 3.5, torch.tensor(7), torch.tensor([9]), torch.tensor([9, 10]), torch.tensor(2.5)):
        arguments["timestep"] = t
        assert_same(ours(**arguments).sample, reference(**arguments).sample)


@torch.no_grad()
def test_batch_equals_rows():
    _, ours = pair()
    arguments = inputs()
    whole = ours(**arguments).sample
    rows = [ours(arguments["sample"][i : i + 1], arguments["timestep"][i], arguments["encoder_hidden_states"][i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(torch.cat([r.sample for r in rows]), whole, rtol=1e-4, atol=1e-5)


def test_training_agrees_with_the_reference_and_with_checkpointing():
    reference, ours = pair()
    arguments = inputs()
    grads = []
    for net in (reference, ours, ours):
        net.train()
        net.zero_grad()
        net(**arguments).sample.square().mean().backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
        ours.enable_gradient_checkpointing()
    ours.disable_gradient_checkpointing()
    for name, grad in grads[0].items():
        assert grad is not None and grad.abs().sum() > 0, name
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(grads[2][name], grads[1][name], rtol=1e-5, atol=1e-6)


def test_sites_are_the_dotted_names_of_the_layers():
    net = UNet2DConditionModel(**TINY)
    sites = {m.site for m in net.modules() if hasattr(m, "site")}
    assert "mid_block.attentions.0.transformer_blocks.0.attn1" in sites
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2" in sites
    assert len(sites) == 2 * (1 + 1 + 2)


@pytest.mark.parametrize("name", ["plain", "simple", "self attention", "latent upscaler"])
@torch.no_grad()
def test_attend_reaches_every_layer(name):
    options = CONFIGS[name]
    _, ours = pair(**options)
    arguments = inputs(size=SIZES.get(name, (8, 8)), **options)
    seen = []

    def watch(q, k, v, *, mask=None, site=""):
        assert q.ndim == k.ndim == v.ndim == 4
        seen.append(site)
        return eager(q, k, v, mask=mask, site=site)

    plain = ours(**arguments).sample
    size = plain.abs().max() if name in SIZES else 1  # the upscaler's numbers are in the tens
    assert_same(ours(**arguments, attend=watch).sample / size, plain / size)
    layers = {name for name, m in ours.named_modules() if hasattr(m, "site")}
    assert set(seen) == layers and len(seen) == len(layers)
    zero = ours(**arguments, attend=lambda q, k, v, *, mask=None, site="": torch.zeros_like(q)).sample
    assert not torch.allclose(zero, plain, atol=1e-3)
    ours.set_attention_backend(watch)
    seen.clear()
    ours(**arguments)
    assert set(seen) == layers
    ours.set_attention_backend("native")
    assert ours.attend is sdpa


@torch.no_grad()
def test_dual_attention_mixes_two_transformers():
    reference = diffusers.UNet2DConditionModel(**TINY, dual_cross_attention=True)
    ours = UNet2DConditionModel(**TINY, dual_cross_attention=True)
    assert set(ours.state_dict()) == set(reference.state_dict())
    ours.load_state_dict(reference.state_dict())
    # the reference's whole network cannot be called so: its blocks pass a mask that the layer does not take
    x, context = torch.randn(2, 16, 4, 4), torch.randn(2, 77 + 257, 12)
    mine = ours.down_blocks[0].attentions[0](x, Conditions(torch.zeros(2, 64), context))
    assert_same(mine, reference.down_blocks[0].attentions[0](x, encoder_hidden_states=context).sample)
    assert ours(torch.randn(2, 4, 8, 8), 3, context).sample.shape == (2, 4, 8, 8)
    with pytest.raises(InputError, match="334"):
        ours(torch.randn(2, 4, 8, 8), 3, context[:, :77])


@pytest.mark.parametrize("name", ["kandinsky 2.1", "kandinsky 2.2 hint", "latent upscaler"])
def test_a_call_for_inspection_has_the_shapes_that_the_network_takes(name):
    ours = UNet2DConditionModel(**(TINY | CONFIGS[name]))
    assert ours.sample_call(2, 16, 16).sample.shape == (2, 4, 16, 16)


def test_num_attention_heads_is_the_number_of_heads():
    net = UNet2DConditionModel(**TINY, num_attention_heads=8)
    assert net.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 8
    assert UNet2DConditionModel(**TINY).mid_block.attentions[0].transformer_blocks[0].attn1.heads == 4


def test_keys_of_other_programs_are_kept_and_do_not_disturb():
    net = UNet2DConditionModel.from_config({**TINY, "layers": 7, "heads": 9, "_class_name": "UNet2DConditionModel"})
    assert net.config.layers == 7 and len(net.mid_block.resnets) == 2


def test_outputs():
    net, arguments = UNet2DConditionModel(**TINY), inputs()
    out = net(**arguments)
    assert out.sample is out[0] is out["sample"]
    (sample,) = net(**arguments, return_dict=False)
    torch.testing.assert_close(sample, out.sample)


def test_half_precision_keeps_its_dtype():
    net = UNet2DConditionModel(**TINY, upcast_attention=True).to(torch.bfloat16)
    sample, context = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 5, 12).bfloat16()
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    for attend in (sdpa, eager):
        assert net(sample, 5, context, encoder_attention_mask=mask, attend=attend).sample.dtype is torch.bfloat16


def test_unknown_attention_options_are_named_once(caplog):
    net, arguments = UNet2DConditionModel(**TINY), inputs()
    with caplog.at_level(logging.WARNING, logger="darkroom"):
        net(**arguments, cross_attention_kwargs={"scale": 0.5})
        assert not caplog.records
        net(**arguments, cross_attention_kwargs={"scale": 0.5, "sclae": 1})
    assert [r.getMessage() for r in caplog.records] == ["cross_attention_kwargs that nothing reads: sclae"]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("down_block_types", {"down_block_types": ("CrossAttnDownBlock", "DownBlock2D")}),
        ("up_block_types", {"up_block_types": ("UpBlock2D", "DownBlock2D")}),
        ("down_block_types", {"down_block_types": ("DownBlock2D",)}),
        ("up_block_types", {"up_block_types": ("UpBlock2D",) * 3}),
        ("down_block_types", {"down_block_types": ("SkipDownBlock2D", "DownBlock2D")}),
        ("down_block_types", {"cross_attention_dim": None}),
        ("mid_block_type", {"mid_block_type": "MidBlock"}),
        ("encoder_hid_dim", {"addition_embed_type": "image"}),
        ("attention_head_dim", {"attention_head_dim": (2, 2, 2)}),
        ("layers_per_block", {"layers_per_block": (1,)}),
        ("only_cross_attention", {"only_cross_attention": (True,)}),
        ("cross_attention_dim", {"cross_attention_dim": (8, 8, 8)}),
        ("transformer_layers_per_block", {"transformer_layers_per_block": (1, 2, 3)}),
        ("reverse_transformer_layers_per_block", {"transformer_layers_per_block": ((1,), (2,))}),
        ("time_embedding_type", {"time_embedding_type": "learned"}),
        ("time_embedding_dim", {"time_embedding_type": "fourier", "time_embedding_dim": 5}),
        ("encoder_hid_dim_type", {"encoder_hid_dim_type": "sound", "encoder_hid_dim": 3}),
        ("encoder_hid_dim", {"encoder_hid_dim_type": "text_proj"}),
        ("class_embed_type", {"class_embed_type": "table"}),
        ("projection_class_embeddings_input_dim", {"class_embed_type": "projection"}),
        ("addition_embed_type", {"addition_embed_type": "sound"}),
        ("projection_class_embeddings_input_dim", {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}),
        ("addition_time_embed_dim", {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 8}),
        ("act_fn", {"act_fn": "tanhh"}),
        ("norm_num_groups", {"norm_num_groups": 5}),
        ("resnet_time_scale_shift", {"resnet_time_scale_shift": "spatial"}),
        ("cross_attention_norm", SIMPLE | {"cross_attention_norm": "batch"}),
        ("attention_type", {"attention_type": "open"}),
    ],
)
def test_options_that_mean_nothing(field, options):
    with pytest.raises(ConfigError) as caught:
        UNet2DConditionModel(**(TINY | options))
    assert field in str(caught.value.where)


@pytest.mark.parametrize(
    ("field", "options", "changes"),
    [
        ("sample", {}, {"sample": torch.zeros(2, 3, 8, 8)}),
        ("sample", {}, {"sample": torch.zeros(4, 8, 8)}),
        ("encoder_hidden_states", {}, {"encoder_hidden_states": torch.zeros(2, 5, 13)}),
        ("encoder_hidden_states", {}, {"encoder_hidden_states": None}),
        ("encoder_hidden_states", CONFIGS["text_proj"], {"encoder_hidden_states": torch.zeros(2, 5, 13)}),
        ("encoder_hidden_states", CONFIGS["text"], {"encoder_hidden_states": torch.zeros(2, 5, 13)}),
        ("encoder_attention_mask", {}, {"encoder_attention_mask": torch.ones(2, 4)}),
        ("timestep_cond", {}, {"timestep_cond": torch.zeros(2, 6)}),
        ("class_labels", CONFIGS["class timestep"], {"class_labels": None}),
        ("added_cond_kwargs", CONFIGS["sdxl"], {"added_cond_kwargs": None}),
        ("added_cond_kwargs", CONFIGS["kandinsky 2.2"], {"added_cond_kwargs": {}}),
        ("added_cond_kwargs", CONFIGS["kandinsky 2.2 hint"], {"added_cond_kwargs": {"image_embeds": torch.zeros(2, 20)}}),
        ("added_cond_kwargs", CONFIGS["kandinsky 2.1"], {"added_cond_kwargs": None}),
        ("added_cond_kwargs", CONFIGS["sdxl"], {"added_cond_kwargs": {"text_embeds": torch.zeros(2, 8)}}),
        ("time_ids", CONFIGS["sdxl"], {"added_cond_kwargs": {"text_embeds": torch.zeros(2, 8), "time_ids": torch.zeros(2, 5)}}),
    ],
)
def test_arguments_that_do_not_fit(field, options, changes):
    net = UNet2DConditionModel(**(TINY | options))
    with pytest.raises(InputError) as caught:
        net(**(inputs(**options) | changes))
    assert field in str(caught.value.where)


def test_building_on_meta_takes_no_memory():
    with torch.device("meta"):
        net = UNet2DConditionModel(cross_attention_dim=768)
    assert net.num_parameters() == 859_520_964  # Stable Diffusion 1.5
    assert all(t.is_meta for t in net.state_dict().values())
    assert not list(net.buffers())


@pytest.mark.slow
@torch.no_grad()
def test_stable_diffusion_width():
    with torch.device("meta"):
        reference = diffusers.UNet2DConditionModel(cross_attention_dim=768).eval()
        ours = UNet2DConditionModel(cross_attention_dim=768).eval()
    shapes = {name: t.shape for name, t in reference.state_dict().items()}
    noise, weights = torch.rand(30_000_000) * 0.04 - 0.02, {}
    for i, (name, shape) in enumerate(shapes.items()):  # views of one tensor: 860 million numbers take minutes to draw
        weights[name] = torch.rand(shape) if len(shape) == 1 else noise[i : i + shape.numel()].view(shape)
    reference.load_state_dict(weights, assign=True)
    ours.load_state_dict(weights, assign=True)
    arguments = torch.randn(1, 4, 16, 16), 321, torch.randn(1, 77, 768)
    a, b = ours(*arguments).sample, reference(*arguments).sample
    assert (a - b).norm() / b.norm() < 1e-3
