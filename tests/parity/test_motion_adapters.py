"""AnimateDiff with a motion LoRA, a LoRA for pictures, and an IP-Adapter, beside the reference."""

from __future__ import annotations
from typing import Any
import numpy as np
import pytest
import torch
from families import ip_adapters, motion, tiny
from families.side_by_side import both, compare, generators, picture
from torch import Tensor
import darkroom

CALL: dict[str, Any] = {"prompt": "the cat", "num_inference_steps": 3, "output_type": "np", "num_frames": 4, "height": 32, "width": 32}


@pytest.fixture
def pipes(tmp_path):
    return both("AnimateDiffPipeline", motion.animatediff(tmp_path / "checkpoint"))


def lora(unet: Any, where: str) -> dict[str, Tensor]:
    """Layers of rank 4 for the projections whose names contain `where`."""
    g, state = torch.Generator().manual_seed(0), {}
    for name, layer in unet.named_modules():
        if where in name and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            state[f"unet.{name}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=g) * 0.3
            state[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=g) * 0.3
    assert state
    return state


def test_a_motion_lora(pipes):
    plain, state = compare(pipes, CALL, 1), lora(pipes[1].unet, "motion_modules")
    for pipe in pipes:
        pipe.load_lora_weights(dict(state), adapter_name="zoom")
        pipe.set_adapters(["zoom"], [0.75])
    assert np.abs(compare(pipes, CALL, 1) - plain).max() > 0.01
    other = darkroom.AnimateDiffVideoToVideoPipeline.from_pipe(pipes[1])
    pipes[1].unload_lora_weights()
    assert np.array_equal(pipes[1](**CALL, generator=generators(1)).frames, plain)
    assert other.get_active_adapters() == ["zoom"]


def test_a_lora_for_pictures_goes_along(pipes, tmp_path):
    pictures = darkroom.StableDiffusionPipeline.from_pretrained(tiny.sd(tmp_path / "sd"), requires_safety_checker=False)
    pictures.load_lora_weights(lora(pictures.unet, "attentions"), adapter_name="style")
    film = darkroom.AnimateDiffPipeline.from_pipe(pictures, motion_adapter=pipes[1].motion_adapter)
    assert film.get_active_adapters() == ["style"]
    styled = film(**CALL, generator=generators(1)).frames
    film.disable_lora()
    assert np.abs(film(**CALL, generator=generators(1)).frames - styled).max() > 0.01
    assert pictures.get_active_adapters() == ["style"]


@pytest.mark.parametrize("kind", ["base", "plus"])
@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, {"prompt": ["a cat", "the red dog"]}], ids=["guided", "unguided", "two"])
def test_a_picture_as_a_prompt(pipes, tmp_path, kind, changes):
    folder = ip_adapters.write(tmp_path / "ip", ip_adapters.adapter(pipes[1].unet, kind))
    for pipe in pipes:
        pipe.load_ip_adapter(folder, subfolder="models", weight_name="ip-adapter.safetensors")
        pipe.set_ip_adapter_scale(0.6)
    compare(pipes, CALL | changes | {"ip_adapter_image": picture(5, 64)}, 1)
