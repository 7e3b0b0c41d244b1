"""DiTTransformer2DModel beside the reference's, on tiny random weights."""

from __future__ import annotations
import inspect
import json
import diffusers
import pytest
import torch
from families.side_by_side import networks
from darkroom import DiTTransformer2DModel, Transformer2DModel
from darkroom.core.attention import eager
from darkroom.errors import CheckpointError, ConfigError, InputError

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 7,
    "in_channels": 4,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
}
CONFIGS = {
    "first": TINY | {"out_channels": 8, "norm_eps": 1e-3},
    "options": TINY | {"attention_bias": False, "patch_size": 4, "activation_fn": "geglu", "norm_elementwise_affine": True, "dropout": 0.1},
    "patch 1": TINY | {"patch_size": 1, "activation_fn": "gelu", "upcast_attention": True, "in_channels": 3},
    "swiglu": TINY | {"activation_fn": "swiglu"},
    "approximate": TINY | {"activation_fn": "geglu-approximate"},
    "linear": TINY | {"activation_fn": "linear-silu"},
}


def pair(options):
    return networks(diffusers.DiTTransformer2DModel, DiTTransformer2DModel, options)


@pytest.fixture(params=CONFIGS, scope="module")
def both(request):
    return pair(CONFIGS[request.param])


def arguments(network, size=8):
    x = torch.randn(2, network.config.in_channels, size, size, generator=torch.Generator().manual_seed(1))
    return {"hidden_states": x, "timestep": torch.tensor([3, 700]), "class_labels": torch.tensor([5, 7])}


def close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def test_options_are_the_references():
    expected = list(inspect.signature(diffusers.DiTTransformer2DModel).parameters.values())
    got = list(inspect.signature(DiTTransformer2DModel).parameters.values())
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]
    assert {p.name for p in got} == {key for options in CONFIGS.values() for key in options}


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 16])
def test_same_numbers(both, size):
    reference, mine = both
    expected = reference(**arguments(mine, size)).sample
    close(mine(**arguments(mine, size)).sample, expected, 1e-4)
    close(mine(**arguments(mine, size), return_dict=False)[0], expected, 1e-4)
    assert expected.std() > 0.1


@torch.no_grad()
def test_rectangles_where_the_reference_takes_every_picture_for_a_square():
    reference, mine = pair(TINY)
    x = torch.randn(1, 4, 4, 8)
    assert mine(x, 3, torch.tensor([1])).sample.shape == (1, 4, 4, 8)
    assert reference(x, torch.tensor([3]), torch.tensor([1])).sample.shape == (2, 4, 4, 4)


def test_gradients(both):
    reference, mine = both
    for net in both:
        net.zero_grad()
        net(**arguments(mine)).sample.square().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, p in mine.named_parameters():
        close(p.grad, theirs[name].grad, 1e-4)
    assert sum(p.grad.any().item() for p in mine.parameters()) > 0.9 * len(theirs)


def test_training_drops_labels():
    _, mine = pair(TINY)
    embed = mine.transformer_blocks[0].norm1.emb.class_embedder.train()
    torch.manual_seed(0)
    rows = embed(torch.zeros(1000, dtype=torch.int64))
    dropped = (rows == embed.embedding_table.weight[7]).all(1).sum()
    assert 50 < dropped < 150 and ((rows == embed.embedding_table.weight[0]).all(1).sum() + dropped) == 1000


@torch.no_grad()
def test_attend_reaches_every_layer():
    _, mine = pair(TINY)
    seen = []

    def watch(q, k, v, *, mask=None, site=""):
        seen.append(site)
        return eager(q, k, v, mask=mask, site=site)

    close(mine(**arguments(mine), attend=watch).sample, mine(**arguments(mine)).sample)
    assert seen == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]


def test_files_go_both_ways_and_by_the_older_name(both, tmp_path):
    reference, mine = both
    reference.save_pretrained(tmp_path)
    loaded = DiTTransformer2DModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), mine.state_dict().values(), strict=True))
    config = tmp_path / "config.json"
    content = json.loads(config.read_text()) | {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    config.write_text(json.dumps(content))
    old = Transformer2DModel.from_pretrained(tmp_path)
    assert (
        type(old) is DiTTransformer2DModel and type(diffusers.Transformer2DModel.from_pretrained(tmp_path)).__name__ == type(old).__name__
    )
    assert torch.equal(old(**arguments(old)).sample, loaded(**arguments(loaded)).sample)
    config.write_text(json.dumps(content | {"norm_type": "layer_norm"}))
    with pytest.raises(CheckpointError, match="norm_type"):
        Transformer2DModel.from_pretrained(tmp_path)


def test_refuses():
    for options in ({"norm_type": "layer_norm"}, {"num_embeds_ada_norm": None}, {"activation_fn": "sine"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            DiTTransformer2DModel(**TINY | options)
    with pytest.raises(InputError, match="hidden_states"):
        pair(TINY)[1](torch.zeros(1, 4, 7, 8), 1, torch.tensor([0]))
