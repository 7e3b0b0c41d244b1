"""UNetSpatioTemporalConditionModel and AutoencoderKLTemporalDecoder beside the reference's, on tiny random weights."""

from __future__ import annotations
import inspect
import diffusers
import pytest
import torch
from darkroom import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from darkroom.core.attention import eager
from darkroom.errors import ConfigError, InputError

UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "num_attention_heads": 2,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "sample_size": 8,
    "num_frames": 3,
}
UNETS = {
    "first": UNET,
    "options": UNET
    | {
        "in_channels": 5,
        "out_channels": 2,
        "layers_per_block": (1, 2),
        "num_attention_heads": (2, 4),
        "cross_attention_dim": (12, 12),
        "transformer_layers_per_block": (1, 2),
    },
}
VAE = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2, "sample_size": 16}
VAES = {
    "one layer": VAE,
    "two layers": VAE | {"layers_per_block": 2, "latent_channels": 3, "scaling_factor": 0.5, "force_upcast": False},
    "three layers": VAE | {"layers_per_block": 3, "in_channels": 4, "out_channels": 2},
}


def pair(name, options):
    torch.manual_seed(0)
    made = tuple(getattr(library, name)(**options).eval() for library in (diffusers, __import__("darkroom")))
    for p in made[0].parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    assert set(made[1].state_dict()) == set(made[0].state_dict())
    made[1].load_state_dict(made[0].state_dict())
    return made


@pytest.fixture(params=UNETS, scope="module")
def unets(request):
    return pair("UNetSpatioTemporalConditionModel", UNETS[request.param])


@pytest.fixture(params=VAES, scope="module")
def vaes(request):
    return pair("AutoencoderKLTemporalDecoder", VAES[request.param])


def arguments(network, frames=3, height=8, width=8):
    g, c = torch.Generator().manual_seed(1), network.config
    return {
        "sample": torch.randn(2, frames, c.in_channels, height, width, generator=g),
        "timestep": torch.tensor(1.6),
        "encoder_hidden_states": torch.randn(2, 2, 12, generator=g),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02], [5.0, 20.0, 0.1]]),
    }


def close(got, expected, tolerance=1e-4):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name, configs", [("UNetSpatioTemporalConditionModel", UNETS), ("AutoencoderKLTemporalDecoder", VAES)])
def test_options_are_the_references(name, configs):
    mine = {"UNetSpatioTemporalConditionModel": UNetSpatioTemporalConditionModel}.get(name, AutoencoderKLTemporalDecoder)
    expected = list(inspect.signature(getattr(diffusers, name)).parameters.values())
    got = list(inspect.signature(mine).parameters.values())
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]
    assert {p.name for p in got} == {key for options in configs.values() for key in options}


@torch.no_grad()
@pytest.mark.parametrize("size", [(3, 8, 8), (1, 6, 9), (2, 7, 5)])
def test_the_unet_gives_the_same_numbers(unets, size):
    reference, mine = unets
    expected = reference(**arguments(mine, *size)).sample
    got = mine(**arguments(mine, *size)).sample
    assert got.shape == expected.shape == (2, size[0], mine.config.out_channels, *size[1:]) and expected.std() > 0.1
    close(got, expected)
    close(mine(**arguments(mine, *size), return_dict=False)[0], expected)


def test_gradients_of_the_unet_with_and_without_checkpointing(unets):
    reference, mine = unets
    reference.zero_grad()
    reference(**arguments(mine)).sample.square().mean().backward()
    for switch in (mine.enable_gradient_checkpointing, mine.disable_gradient_checkpointing):
        switch()
        mine.zero_grad()
        mine(**arguments(mine)).sample.square().mean().backward()
        theirs = dict(reference.named_parameters())
        for name, p in mine.named_parameters():
            close(p.grad, theirs[name].grad, 1e-3)


@torch.no_grad()
def test_attend_reaches_every_layer(unets):
    mine, seen = unets[1], []

    def watch(q, k, v, *, mask=None, site=""):
        seen.append(site)
        return eager(q, k, v, mask=mask, site=site)

    close(mine(**arguments(mine), attend=watch).sample, mine(**arguments(mine)).sample)
    assert sorted(seen) == sorted(name for name, m in mine.named_modules() if hasattr(m, "site"))
    assert "mid_block.attentions.0.temporal_transformer_blocks.0.attn1" in seen


def test_the_unet_refuses():
    mine = UNetSpatioTemporalConditionModel(**UNET)
    for where, wrong in (
        ("sample", torch.zeros(2, 8, 8, 8)),
        ("encoder_hidden_states", torch.zeros(2, 1, 5)),
        ("added_time_ids", torch.zeros(2, 4)),
    ):
        with pytest.raises(InputError, match=where):
            mine(**{**arguments(mine), where: wrong})
    with pytest.raises(ConfigError, match="down_block_types"):
        UNetSpatioTemporalConditionModel(**UNET | {"down_block_types": ("DownBlock2D",) * 2})


@torch.no_grad()
def test_the_autoencoder_gives_the_same_numbers(vaes):
    reference, mine = vaes
    x = torch.randn(4, mine.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    expected, got = reference.encode(x).latent_dist, mine.encode(x).latent_dist
    close(got.mean, expected.mean)
    close(got.logvar, expected.logvar)
    z = torch.randn(4, mine.config.latent_channels, 5, 7, generator=torch.Generator().manual_seed(2))
    for frames in (1, 2, 4):
        close(mine.decode(z, num_frames=frames).sample, reference.decode(z, num_frames=frames).sample)
    close(mine.decode(z, 2, return_dict=False)[0], reference.decode(z, num_frames=2).sample)
    call = {"sample_posterior": True, "num_frames": 2}
    close(*(net(x, **call, generator=torch.Generator().manual_seed(3)).sample for net in (mine, reference)))


def test_gradients_of_the_autoencoder(vaes):
    reference, mine = vaes
    x = torch.randn(2, mine.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    for net in vaes:
        net.zero_grad()
        net(x, num_frames=2).sample.square().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, p in mine.named_parameters():
        assert (p.grad is None) == (theirs[name].grad is None), name
        if p.grad is not None:
            close(p.grad, theirs[name].grad, 1e-3)


def test_the_autoencoder_refuses():
    mine = AutoencoderKLTemporalDecoder(**VAE)
    for z, frames in ((torch.zeros(3, 4, 4, 4), 2), (torch.zeros(2, 3, 4, 4), 2), (torch.zeros(2, 4, 4, 4), 0)):
        with pytest.raises(InputError, match="whole videos"):
            mine.decode(z, frames)


@pytest.mark.parametrize("name, options", [("UNetSpatioTemporalConditionModel", UNET), ("AutoencoderKLTemporalDecoder", VAE)])
def test_files_go_both_ways(name, options, tmp_path):
    reference, mine = pair(name, options)
    reference.save_pretrained(tmp_path / "theirs")
    loaded = type(mine).from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), mine.state_dict().values(), strict=True))
    loaded.save_pretrained(tmp_path / "mine")
    type(reference).from_pretrained(tmp_path / "mine")
