"""VQModel beside the reference's, on tiny random weights."""

from __future__ import annotations
import inspect
import diffusers
import pytest
import torch
from families.side_by_side import networks
from darkroom import VQModel
from darkroom.errors import ConfigError, InputError

TINY = {
    "block_out_channels": (8, 12),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "num_vq_embeddings": 24,
    "sample_size": 16,
    "scaling_factor": 0.5,
    "force_upcast": False,
}
CONFIGS = {
    "first": TINY,
    "options": TINY
    | {
        "latent_channels": 4,
        "vq_embed_dim": 5,
        "layers_per_block": 2,
        "act_fn": "mish",
        "mid_block_add_attention": False,
        "in_channels": 1,
    },
    "attention": TINY
    | {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    },
    "spatial": TINY
    | {
        "block_out_channels": (32, 64),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "norm_type": "spatial",
        "latent_channels": 4,
        "out_channels": 2,
    },
    "codebook": TINY | {"lookup_from_codebook": True},
}


def pair(options):
    return networks(diffusers.VQModel, VQModel, options)


@pytest.fixture(params=CONFIGS, scope="module")
def both(request):
    return pair(CONFIGS[request.param])


def close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def pictures(network, *size):
    return torch.randn(2, network.config.in_channels, *size, generator=torch.Generator().manual_seed(1))


def test_options_are_the_references():
    expected = list(inspect.signature(diffusers.VQModel).parameters.values())
    got = list(inspect.signature(VQModel).parameters.values())
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]
    assert {p.name for p in got} == {key for options in CONFIGS.values() for key in options}


@torch.no_grad()
def test_encodes_and_decodes(both):
    reference, mine = both
    z = reference.encode(pictures(mine, 16, 24)).latents
    close(mine.encode(pictures(mine, 16, 24)).latents, z)
    close(mine.encode(pictures(mine, 16, 24), return_dict=False)[0], z)
    expected, got = reference.decode(z), mine.decode(z)
    close(got.sample, expected.sample)
    close(got.commit_loss, expected.commit_loss)
    assert expected.sample.std() > 0.01 and expected.commit_loss > 0
    for a, b in zip(mine.decode(z, return_dict=False), reference.decode(z, return_dict=False), strict=True):
        close(a, b)


@torch.no_grad()
def test_decodes_without_quantising(both):
    reference, mine = both
    shape = (2, 5, 7, reference.quant_conv.out_channels)
    if mine.config.lookup_from_codebook:
        z = torch.randint(24, (2, 35), generator=torch.Generator().manual_seed(2))
    else:
        z = torch.randn(2, shape[3], 5, 7, generator=torch.Generator().manual_seed(2))
    expected, got = (net.decode(z, force_not_quantize=True, shape=shape) for net in both)
    close(got.sample, expected.sample)
    close(got.commit_loss, expected.commit_loss)


def test_reconstructs_and_passes_gradients(both):
    reference, mine = both
    for net in both:
        net.zero_grad()
        out = net(pictures(mine, 8, 8))
        (out.sample.square().mean() + out.commit_loss).backward()
    close(mine(pictures(mine, 8, 8)).sample, reference(pictures(mine, 8, 8)).sample)
    for a, b in zip(mine(pictures(mine, 8, 8), return_dict=False), reference(pictures(mine, 8, 8), return_dict=False), strict=True):
        close(a, b)
    theirs = dict(reference.named_parameters())
    for name, p in mine.named_parameters():
        assert p.grad is not None and (p.grad.any() or name.endswith("to_k.bias")), name
        close(p.grad, theirs[name].grad, 1e-4)


def test_files_go_both_ways(both, tmp_path):
    reference, mine = both
    reference.save_pretrained(tmp_path / "theirs")
    loaded = VQModel.from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), mine.state_dict().values(), strict=True))
    loaded.save_pretrained(tmp_path / "mine")
    again = diffusers.VQModel.from_pretrained(tmp_path / "mine")
    assert {k: v for k, v in again.config.items() if not k.startswith("_")} == {
        k: v for k, v in diffusers.VQModel.from_pretrained(tmp_path / "theirs").config.items() if not k.startswith("_")
    }


def test_refuses():
    with pytest.raises(ConfigError, match="norm_type"):
        VQModel(**TINY, norm_type="batch")
    with pytest.raises(InputError, match="images"):
        pair(TINY)[1].encode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match="latents"):
        pair(TINY)[1].decode(torch.zeros(1, 4, 8, 8))
