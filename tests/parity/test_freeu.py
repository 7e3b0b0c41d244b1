"""FreeU and joined projections: the reference's numbers, private to a pipeline's tree."""

from __future__ import annotations
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu
from families import tiny
import darkroom
from darkroom.errors import InputError
from darkroom.models.layers.freeu import FreeU

SETTING = {"s1": 0.9, "s2": 0.2, "b1": 1.5, "b2": 1.6}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.sd(tmp_path_factory.mktemp("sd"))


def picture(pipe: Any, **options: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(
        pipe("the cat", num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0), **options).images
    )


def ours_of(path: Any) -> Any:
    return darkroom.StableDiffusionPipeline.from_pretrained(path, requires_safety_checker=False)


@pytest.mark.parametrize("size", [(16, 16), (7, 12), (1, 1), (2, 3), (1, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_arithmetic(size, dtype):
    x, skip = torch.randn(2, 5, *size).to(dtype), torch.randn(2, 3, *size).to(dtype)
    for stage in (0, 1):
        theirs = apply_freeu(stage, x.clone(), skip.clone(), **SETTING)
        ours = FreeU(SETTING[f"b{stage + 1}"], SETTING[f"s{stage + 1}"])(x, skip)
        for a, b in zip(theirs, ours):
            assert a.dtype == b.dtype
            torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["StableDiffusion", "StableDiffusionXL"])
def test_pipelines(path, kind, tmp_path_factory):
    source = path if kind == "StableDiffusion" else tiny.sdxl(tmp_path_factory.mktemp("xl"))
    options = {"requires_safety_checker": False} if kind == "StableDiffusion" else {"add_watermarker": False}
    pipes = [getattr(lib, f"{kind}Pipeline").from_pretrained(source, **options) for lib in (diffusers, darkroom)]
    if not hasattr(pipes[0].text_encoder, "text_model"):
        pipes[0].text_encoder.__dict__["text_model"] = pipes[0].text_encoder
    plain = picture(pipes[1])
    for pipe in pipes:
        pipe.enable_freeu(**SETTING)
    theirs, ours = map(picture, pipes)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(ours - plain).max() > 1e-3
    pipes[1].disable_freeu()
    assert np.array_equal(picture(pipes[1]), plain)


def test_other_networks():
    """Four levels, and cross-attention in the two first blocks."""
    torch.manual_seed(0)
    config = dict(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        sample_size=16,
    )
    config["down_block_types"], config["up_block_types"] = ("CrossAttnDownBlock2D",) * 4, ("CrossAttnUpBlock2D",) * 4
    theirs = diffusers.UNet2DConditionModel(**config).eval()
    ours = darkroom.UNet2DConditionModel(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    x, context = torch.randn(2, 4, 16, 24), torch.randn(2, 5, 12)
    with torch.no_grad():
        before = ours(x, 7, context).sample
        for network in (theirs, ours):
            network.enable_freeu(**SETTING)
        torch.testing.assert_close(ours(x, 7, context).sample, theirs(x, 7, context).sample, atol=1e-5, rtol=1e-4)
        ours.enable_freeu(1, 1, 1, 1)
        torch.testing.assert_close(ours(x, 7, context).sample, before, atol=1e-5, rtol=1e-4)
        ours.disable_freeu()
        assert torch.equal(ours(x, 7, context).sample, before)


def test_pipelines_are_apart(path):
    parent = ours_of(path)
    base = picture(parent)
    child = darkroom.StableDiffusionPipeline.from_pipe(parent)
    child.enable_freeu(**SETTING)
    changed = picture(child)
    assert np.array_equal(picture(parent), base) and not np.array_equal(changed, base)
    grandchild = darkroom.StableDiffusionSAGPipeline.from_pipe(child)
    assert np.array_equal(picture(grandchild, sag_scale=0.0), changed)
    child.disable_freeu()
    assert np.array_equal(picture(child), base) and np.array_equal(picture(grandchild, sag_scale=0.0), changed)


@pytest.mark.parametrize("wrong", [{"s1": -0.1}, {"b2": float("nan")}, {"s2": "0.2"}, {"b1": True}], ids=str)
def test_errors(path, wrong):
    pipe = ours_of(path)
    base = picture(pipe)
    with pytest.raises(InputError, match=next(iter(wrong))):
        pipe.enable_freeu(**SETTING | wrong)
    assert np.array_equal(picture(pipe), base)


def test_blocks_of_other_kinds():
    ways = {way: (f"AttnSkip{way}Block2D", f"Skip{way}Block2D") for way in ("Down", "Up")}
    unet = darkroom.UNet2DModel(block_out_channels=(32, 32), down_block_types=ways["Down"], up_block_types=ways["Up"])
    with pytest.raises(InputError, match="SkipUpBlock"):
        unet.enable_freeu(**SETTING)


# ---- joined projections


def test_joined_projections_give_the_same(path):
    pipes = [lib.StableDiffusionPipeline.from_pretrained(path, requires_safety_checker=False) for lib in (diffusers, darkroom)]
    pipes[0].text_encoder.__dict__["text_model"] = pipes[0].text_encoder
    base, ours = picture(pipes[1]), pipes[1]
    weights = {name: p for name, p in ours.unet.named_parameters()}
    for pipe in pipes:
        pipe.fuse_qkv_projections()
    joined = picture(ours)
    np.testing.assert_allclose(joined, picture(pipes[0]), atol=1e-4, rtol=0)
    np.testing.assert_allclose(joined, base, atol=1e-5, rtol=0)
    layers = [m for network in (ours.unet, ours.vae) for m in network.modules() if hasattr(m, "fused")]
    assert layers and all(m.joined is not None for m in layers if m.site and "encoder" not in m.site)
    assert {name: p for name, p in ours.unet.named_parameters()} == weights
    child = darkroom.StableDiffusionPipeline.from_pipe(ours)
    ours.unfuse_qkv_projections()
    assert np.array_equal(picture(ours), base) and all(m.joined is None for m in layers)
    assert np.array_equal(picture(child), joined)


def test_joined_projections_follow_their_layers():
    """Weights that are replaced, changed in place, cast, or that an adapter stands in front of."""
    torch.manual_seed(0)
    layer = darkroom.models.layers.attention.Attention(8, None, 2, 4)
    x = torch.randn(2, 5, 8)

    def same() -> torch.Tensor:
        layer.fused = False
        plain = layer(x)
        layer.fused = True
        torch.testing.assert_close(layer(x), plain, atol=1e-6, rtol=1e-5)
        return plain

    with torch.no_grad():
        before = same()
        known = layer.joined
        same()
        assert layer.joined is known
        layer.to_k.weight.mul_(2)
        changed = same()
        layer.to_v.weight = torch.nn.Parameter(torch.randn(8, 8))
        assert not torch.equal(changed, before) and not torch.equal(same(), changed)
        layer.to(torch.float64)
        x = x.double()
        same()

        class Adapted(torch.nn.Linear):
            def forward(self, x):
                return super().forward(x) + 1

        layer.to_q.__class__ = Adapted
        same()
        assert layer.joined is None


def test_projections_that_cannot_be_joined():
    ways = {"down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")}
    ways["up_block_types"] = ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")
    options = {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 8, "layers_per_block": 1}
    added = darkroom.UNet2DConditionModel(block_out_channels=(32, 64), **options, **ways)
    ways = {"down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"), "up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D")}
    options |= {"mid_block_type": None, "norm_num_groups": None, "resnet_time_scale_shift": "ada_group", "layers_per_block": 2}
    normed = darkroom.UNet2DConditionModel(block_out_channels=(32, 64), **options, **ways)
    ways = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    bare = darkroom.UNet2DModel(block_out_channels=(32,), add_attention=False, **ways)
    for network in (added, normed, bare):
        with pytest.raises(InputError, match="cannot be joined"):
            network.fuse_qkv_projections()
