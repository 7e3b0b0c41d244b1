"""The safety checker beside the reference's, with concepts planted so that chosen images are flagged."""

from __future__ import annotations
import logging
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as Reference
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig
from darkroom.errors import InputError
from darkroom.models.safety_checker import StableDiffusionSafetyChecker

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
N = 6


def config() -> CLIPConfig:
    return CLIPConfig(text_config=TOWER, vision_config=TOWER | {"image_size": 32, "patch_size": 16}, projection_dim=12)


@pytest.fixture
def both():
    """Both checkers with equal weights, six inputs and their normalised embeddings. Thresholds are out of reach."""
    torch.manual_seed(0)
    reference, mine = Reference(config()).eval(), StableDiffusionSafetyChecker(config()).eval()
    for p in reference.parameters():
        p.data.copy_(torch.randn_like(p))
    reference.concept_embeds_weights.data.fill_(2.0)
    reference.special_care_embeds_weights.data.fill_(2.0)
    mine.load_state_dict(reference.state_dict())
    x = torch.randn(N, 3, 32, 32)
    with torch.no_grad():
        embeds = F.normalize(reference.visual_projection(reference.vision_model(x)[1]))
    return reference, mine, x, embeds


def plant(both, name: str, row: int, embed: torch.Tensor, threshold: float) -> None:
    for checker in both[:2]:
        getattr(checker, name).data[row] = embed
        getattr(checker, f"{name}_weights").data[row] = threshold


def judge(both) -> list[bool]:
    """The decision, which both share."""
    reference, mine, x, _ = both
    expected, flagged = reference(x, list(np.ones((N, 2, 2, 3), np.float32)))
    got, mine_flagged = mine(x, np.ones((N, 2, 2, 3), np.float32))
    assert mine_flagged == flagged
    np.testing.assert_array_equal(got, np.stack(expected))
    return mine_flagged


def test_nothing_is_flagged_below_the_thresholds(both, caplog):
    images = torch.rand(N, 3, 4, 4)
    with caplog.at_level(logging.WARNING, "darkroom"):
        assert judge(both) == [False] * N
        assert both[1](both[2], images)[0] is images
    assert not [r for r in caplog.records if r.name == "darkroom"]


def test_flags_the_planted_image(both, caplog):
    plant(both, "concept_embeds", 3, 5 * both[3][2], 0.999)
    with caplog.at_level(logging.WARNING, "darkroom"):
        assert judge(both) == [i == 2 for i in range(N)]
    (record,) = [r for r in caplog.records if r.name == "darkroom"]
    assert record.message.startswith("Potential NSFW content was detected in one or more images: 1 of 6 are black")


@pytest.mark.parametrize("margin", [-0.02, -0.0101, -0.0099, -0.005, -0.0004, 0.0, 0.0003, 0.0007, 0.02])
@pytest.mark.parametrize("special", [False, True])
def test_thresholds_and_special_concepts(both, margin, special):
    cosine = (both[3][0] @ both[3][1]).item()
    plant(both, "concept_embeds", 16, both[3][1], cosine - margin)
    if special:
        plant(both, "special_care_embeds", 2, both[3][0], 0.99)
    flagged = judge(both)
    assert flagged[1]  # its own embedding
    assert flagged[0] == (round(margin + 0.01 * special, 3) > 0)


def test_random_thresholds(both):
    torch.manual_seed(1)
    seen = []
    for _ in range(40):
        cosines, special = torch.empty(17).uniform_(0.2, 1.2), torch.empty(3).uniform_(0.0, 1.0)
        for checker in both[:2]:
            checker.concept_embeds_weights.data.copy_(cosines)
            checker.special_care_embeds_weights.data.copy_(special)
        seen += judge(both)
    assert 0 < sum(seen) < len(seen)


@pytest.mark.parametrize("kind", ["array", "tensor", "arrays", "tensors"])
def test_kinds_of_images(both, kind):
    plant(both, "concept_embeds", 0, both[3][4], 0.999)
    images = np.ones((N, 2, 2, 3), np.float32)
    if kind.startswith("tensor"):
        images = torch.from_numpy(images)
    given = list(images) if kind.endswith("s") else images
    got, flagged = both[1](both[2], given)
    assert type(got) is type(given) and type(got[0]) is type(given[0]) and got[0].dtype == given[0].dtype
    for i, image in enumerate(got):
        assert (image == (0 if flagged[i] else 1)).all()
    assert flagged == [i == 4 for i in range(N)]
    assert all((image == 1).all() for image in given)


def test_refuses_another_number_of_images(both):
    with pytest.raises(InputError, match="2 images"):
        both[1](both[2], np.ones((2, 4, 4, 3)))


@pytest.mark.parametrize("prefix", ["as saved", "vision_model.vision_model."])
def test_loads_the_references_folder(both, tmp_path, prefix):
    reference = both[0]
    reference.save_pretrained(tmp_path)
    if prefix != "as saved":  # the layout of published checkpoints
        file = tmp_path / "model.safetensors"
        state = {
            prefix + name.split("vision_model.")[-1] if name.startswith("vision_model.") else name: tensor
            for name, tensor in load_file(file).items()
        }
        state[f"{prefix}embeddings.position_ids"] = torch.arange(5)[None]
        save_file(state, file, metadata={"format": "pt"})
    loaded = StableDiffusionSafetyChecker.from_pretrained(tmp_path)
    expected = reference.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
