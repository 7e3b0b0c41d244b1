"""LDMBertModel beside the reference's, on tiny random weights."""

from __future__ import annotations
import pytest
import torch
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion as reference_module
from darkroom.errors import InputError
from darkroom.models.ldm_bert import LDMBertConfig, LDMBertModel

TINY = {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "encoder_ffn_dim": 24, "encoder_attention_heads": 2, "head_dim": 4}


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    reference = reference_module.LDMBertModel(reference_module.LDMBertConfig(**TINY)).eval()
    for p in reference.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.2)
    mine = LDMBertModel(LDMBertConfig(**TINY)).eval()
    assert set(mine.state_dict()) == set(reference.state_dict())
    mine.load_state_dict(reference.state_dict())
    return reference, mine


def tokens():
    return torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))


def close(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_options_are_the_references():
    theirs, mine = reference_module.LDMBertConfig(), LDMBertConfig()
    assert mine.to_dict() == theirs.to_dict()
    assert (mine.hidden_size, mine.num_attention_heads, mine.num_hidden_layers) == (1280, 8, 32)
    assert LDMBertConfig(**TINY).to_dict() == reference_module.LDMBertConfig(**TINY).to_dict()


@torch.no_grad()
def test_same_numbers(both):
    reference, mine = both
    expected = reference(tokens(), output_hidden_states=True)
    got = mine(tokens(), output_hidden_states=True)
    close(got.last_hidden_state, expected.last_hidden_state)
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        close(a, b)
    close(mine(tokens(), return_dict=False)[0], expected[0])
    embeds, places = mine.get_input_embeddings()(tokens()), torch.arange(7).flip(0)[None]
    close(mine(inputs_embeds=embeds, position_ids=places)[0], reference(inputs_embeds=embeds, position_ids=places)[0])


@torch.no_grad()
def test_a_mask_hides_tokens(both):
    mine, mask = both[1], torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 2)
    changed = tokens()
    changed[:, 4:] = 3
    close(mine(tokens(), mask)[0][:, :4], mine(changed, mask)[0][:, :4])
    assert not torch.allclose(mine(tokens())[0][:, :4], mine(changed)[0][:, :4])


def test_gradients(both):
    reference, mine = both
    for net in both:
        net.zero_grad()
        net(tokens())[0].square().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, p in mine.named_parameters():
        if not name.startswith("to_logits"):
            close(p.grad, theirs[name].grad)


def test_refuses(both):
    with pytest.raises(InputError, match="input_ids"):
        both[1]()


@torch.no_grad()
def test_files_go_both_ways(both, tmp_path):
    reference, mine = both
    reference.save_pretrained(tmp_path / "theirs")
    loaded = LDMBertModel.from_pretrained(tmp_path / "theirs")
    close(loaded(tokens())[0], mine(tokens())[0])
    loaded.save_pretrained(tmp_path / "mine")
    close(reference_module.LDMBertModel.from_pretrained(tmp_path / "mine")(tokens())[0], mine(tokens())[0])
