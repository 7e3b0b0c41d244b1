"""UNets that read objects in boxes (GLIGEN) beside the reference."""

from __future__ import annotations
import diffusers
import pytest
import torch
import darkroom
from darkroom.core.guidance.common import matching
from darkroom.errors import ConfigError, InputError

CONFIG = dict(
    block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12, attention_head_dim=4, sample_size=16,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip


def networks(kind: str, **changes):
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**CONFIG, attention_type=kind, **changes).eval()
    for name, p in theirs.named_parameters():
        if "alpha_" in name or "null_" in name:  # gates begin closed, and nothing would be tested
            torch.nn.init.normal_(p)
    ours = darkroom.UNet2DConditionModel.from_config(theirs.config).eval()
    assert sorted(ours.state_dict()) == sorted(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def objects(kind: str, rows: int = 2, count: int = 3) -> dict[str, torch.Tensor]:
    masks = torch.tensor([[1.0, 1, 0], [1, 0, 0]])[:rows, :count]
    boxes = torch.rand(rows, count, 4)
    if kind == "gated":
        return {"boxes": boxes, "masks": masks, "positive_embeddings": torch.randn(rows, count, 12)}
    embeddings = {name: torch.randn(rows, count, 12) for name in ("phrases_embeddings", "image_embeddings")}
    return {"boxes": boxes, "masks": masks, "phrases_masks": masks, "image_masks": 1 - masks, **embeddings}


@pytest.mark.parametrize("changes", [{}, {"use_linear_projection": True, "transformer_layers_per_block": 2}], ids=["plain", "linear"])
@pytest.mark.parametrize("kind", ["gated", "gated-text-image"])
def test_forward(kind, changes):
    theirs, ours = networks(kind, **changes)
    x, context, given = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 12), objects(kind)
    with torch.no_grad():
        without = ours(x, 7, context).sample
        torch.testing.assert_close(without, theirs(x, 7, context).sample, atol=1e-5, rtol=1e-4)
        told = ours(x, 7, context, cross_attention_kwargs={"gligen": given}).sample
        wanted = theirs(x, 7, context, cross_attention_kwargs={"gligen": dict(given)}).sample
        torch.testing.assert_close(told, wanted, atol=1e-5, rtol=1e-4)
    assert (told - without).abs().max() > 1e-3


def test_saved(tmp_path):
    theirs, ours = networks("gated")
    theirs.save_pretrained(tmp_path / "theirs")
    read = darkroom.UNet2DConditionModel.from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(read.state_dict().values(), ours.state_dict().values(), strict=True))
    ours.save_pretrained(tmp_path / "ours")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours")
    assert again.config.attention_type == "gated" and all(torch.equal(p, theirs.state_dict()[n]) for n, p in again.state_dict().items())


def test_guidance_sees_no_further_layers():
    """The added attention has no site: terms that choose layers leave it alone, as in networks without."""
    gated, plain = networks("gated")[1], darkroom.UNet2DConditionModel(**CONFIG)
    sites = [[name for name, m in network.named_modules() if hasattr(m, "site")] for network in (gated, plain)]
    assert sites[0] == sites[1] and matching("attn1", sites[0], "layers")


def test_errors():
    _, ours = networks("gated")
    x, context, given = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 12), objects("gated")
    plain = darkroom.UNet2DConditionModel(**CONFIG)
    for network, wrong in (
        (plain, given),
        (ours, given | {"boxes": given["boxes"][..., :3]}),
        (ours, given | {"positive_embeddings": given["positive_embeddings"][..., :5]}),
        (ours, objects("gated-text-image")),
        (ours, {"boxes": given["boxes"]}),
        (ours, given | {"sounds": given["masks"]}),
    ):
        with pytest.raises(InputError, match="gligen"):
            network(x, 7, context, cross_attention_kwargs={"gligen": wrong})
    with pytest.raises(ConfigError, match="attention_type"):
        darkroom.UNet2DConditionModel(**CONFIG, attention_type="open")
