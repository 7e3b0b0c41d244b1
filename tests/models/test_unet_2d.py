"""UNet2DModel beside the reference: the same tensors and the same numbers."""

from __future__ import annotations
import inspect
import pytest
import torch
from families.side_by_side import networks
from darkroom.core.attention import eager
from darkroom.errors import ConfigError, InputError
from darkroom.models.unet_2d import UNet2DModel

diffusers = pytest.importorskip("diffusers")

TINY = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SCORE = {  # NCSN++, the attention of skip blocks has norms of 32 groups
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "time_embedding_type": "fourier",
    "mid_block_scale_factor": 1.41421356237,
}
ATTENTION_FIRST = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
CONFIGS: dict[str, dict] = {
    "plain": {},
    "sampled by convolutions": ATTENTION_FIRST | {"downsample_padding": 0, "sample_size": 8},
    "sampled by residual blocks": ATTENTION_FIRST | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "down by residual blocks": ATTENTION_FIRST | {"downsample_type": "resnet"},
    "up by residual blocks": ATTENTION_FIRST | {"upsample_type": "resnet"},
    "residual blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "score": SCORE,
    "score, attention inside": SCORE
    | {
        "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"),
        "layers_per_block": 2,
    },
    "score without groups": SCORE | {"norm_num_groups": None, "act_fn": "mish"},
    "one head": {"attention_head_dim": None},
    "mid without attention": {"add_attention": False},
    "mid groups": {"attn_norm_num_groups": 8, "mid_block_scale_factor": 1.2},
    "no mid": {"mid_block_type": None},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, mid groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "learned timesteps": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "fourier": {"time_embedding_type": "fourier"},
    "sines first": {"flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 24},
    "classes": {"num_class_embeds": 10},
    "class timestep": {"class_embed_type": "timestep"},
    "class identity": {"class_embed_type": "identity"},
    "centered": {"act_fn": "mish", "center_input_sample": True, "in_channels": 5, "out_channels": 2, "norm_eps": 1e-3, "dropout": 0.1},
}


def pair(**options):
    return networks(diffusers.UNet2DModel, UNet2DModel, TINY | options, apart=True)


def inputs(**options):
    c = UNet2DModel.Config(**(TINY | options))
    g = torch.Generator().manual_seed(1)
    classes = {"timestep": torch.tensor([20, 700]), "identity": torch.randn(2, 4 * c.block_out_channels[0], generator=g)}
    return {
        "sample": torch.randn(2, c.in_channels, 8, 8, generator=g),
        "timestep": torch.tensor([0.4, 31.0]) if c.time_embedding_type == "fourier" else torch.tensor([7, 541]),
        "class_labels": classes.get(c.class_embed_type, torch.tensor([3, 9]) if c.num_class_embeds else None),
    }


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert theirs.abs().mean() > 1e-2  # not a comparison of zeros


def test_every_key_order_and_default_is_the_references():
    theirs = inspect.signature(diffusers.UNet2DModel).parameters
    ours = inspect.signature(UNet2DModel).parameters
    assert [(n, p.default) for n, p in ours.items()] == [(n, p.default) for n, p in theirs.items()]
    assert set(ours) == {key for options in CONFIGS.values() for key in options} | set(TINY)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_same_numbers(name):
    reference, ours = pair(**CONFIGS[name])
    arguments = inputs(**CONFIGS[name])
    assert_same(ours(**arguments).sample, reference(**arguments).sample)


@torch.no_grad()
def test_odd_sizes_and_fractions_of_timesteps_where_the_reference_fails():
    reference, ours = pair()
    assert ours(torch.randn(1, 3, 7, 9), 5).sample.shape == (1, 3, 7, 9)
    x = torch.randn(1, 3, 8, 8)
    assert_same(ours(x, 5.5).sample, reference(x, torch.tensor(5.5)).sample)  # given as a number, it cuts the fraction off
    assert not torch.allclose(ours(x, 5.5).sample, ours(x, 5).sample, atol=1e-4)


@torch.no_grad()
def test_attend_reaches_every_layer():
    for options in ({}, ATTENTION_FIRST, SCORE):
        _, ours = pair(**options)
        arguments, seen = inputs(**options), []

        def watch(q, k, v, *, mask=None, site="", seen=seen):
            seen.append(site)
            return eager(q, k, v, mask=mask, site=site)

        assert_same(ours(**arguments, attend=watch).sample, ours(**arguments).sample)
        assert sorted(seen) == sorted(name for name, m in ours.named_modules() if hasattr(m, "site"))
        assert "mid_block.attentions.0" in seen


def test_gradients_reach_every_weight_with_and_without_checkpointing():
    for options in ({}, ATTENTION_FIRST, SCORE):
        reference, ours = pair(**options)
        arguments, grads = inputs(**options), []
        for net in (reference, ours, ours):
            net.zero_grad()
            net(**arguments).sample.square().mean().backward()
            grads.append({n: p.grad for n, p in net.named_parameters() if p.requires_grad})
            ours.enable_gradient_checkpointing()
        for name, grad in ((n, g) for n, g in grads[0].items() if g is not None):  # score networks have weights that nothing uses
            assert_close = torch.testing.assert_close
            assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-5 * max(1, grad.abs().max().item()))
            assert_close(grads[2][name], grads[1][name], rtol=1e-4, atol=1e-6 * max(1, grad.abs().max().item()))


def test_old_names_of_attention_layers():
    net = UNet2DModel(**TINY)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = 0
    for name in net.state_dict():
        for new, former in old.items():
            if f".{new}." in name:
                assert UNet2DModel.rename_key(name.replace(f".{new}.", f".{former}.")) == name
                renamed += 1
        assert UNet2DModel.rename_key(name) == name
    assert renamed == 4 * 8  # 4 layers, weight and bias of each


def test_outputs():
    net, arguments = UNet2DModel(**TINY), inputs()
    out = net(**arguments)
    assert out.sample is out[0] is out["sample"]
    torch.testing.assert_close(net(**arguments, return_dict=False)[0], out.sample)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("down_block_types", {"down_block_types": ("DownBlock2D", "Down")}),
        ("down_block_types", {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}),
        ("up_block_types", {"up_block_types": ("UpBlock2D",)}),
        ("downsample_type", {"downsample_type": "pool"}),
        ("upsample_type", {"upsample_type": "pool"}),
        ("time_embedding_type", {"time_embedding_type": "none"}),
        ("num_train_timesteps", {"time_embedding_type": "learned"}),
        ("class_embed_type", {"class_embed_type": "projection"}),
        ("down_block_types", {"down_block_types": ("KDownBlock2D", "DownBlock2D")}),
        ("norm_num_groups", {"norm_num_groups": 7}),
        ("norm_num_groups", {"norm_num_groups": None}),
    ],
)
def test_options_that_mean_nothing(field, options):
    with pytest.raises(ConfigError) as caught:
        UNet2DModel(**(TINY | options))
    assert field == caught.value.where


def test_arguments_that_do_not_fit():
    with pytest.raises(InputError, match="sample"):
        UNet2DModel(**TINY)(torch.zeros(1, 4, 8, 8), 3)
    with pytest.raises(InputError, match="class_labels"):
        UNet2DModel(**TINY)(torch.zeros(1, 3, 8, 8), 3, class_labels=torch.tensor([1]))
    with pytest.raises(InputError, match="class_labels"):
        UNet2DModel(**TINY, num_class_embeds=4)(torch.zeros(1, 3, 8, 8), 3)
