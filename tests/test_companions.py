"""What goes with the bundled checkpoint does what it is for, and loads into the reference too."""

from __future__ import annotations
import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from darkroom import ControlNetModel, StableDiffusionControlNetPipeline
from darkroom.assets import EMOJI, EMOJI_CONTROLNET

SEED = torch.Generator().manual_seed


def test_the_controlnet_steers_place_and_colour():
    hint = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(hint).ellipse((4, 4, 40, 40), fill=(40, 90, 230))
    hint = hint.filter(ImageFilter.GaussianBlur(3))
    pipe = StableDiffusionControlNetPipeline.from_pretrained(EMOJI, controlnet=ControlNetModel.from_pretrained(EMOJI_CONTROLNET))
    options = {"num_inference_steps": 8, "guidance_scale": 2.5, "image": hint}

    def distance(scale: float) -> float:
        made = pipe("red apple", controlnet_conditioning_scale=scale, generator=SEED(0), **options).images[0]
        return float(np.abs(np.asarray(made.filter(ImageFilter.GaussianBlur(3)), float) - np.asarray(hint)).mean())

    with_it, without = distance(1.0), distance(0.0)
    assert with_it < 0.3 * without, (with_it, without)


def test_the_reference_reads_the_controlnet():
    theirs, ours = diffusers.ControlNetModel.from_pretrained(EMOJI_CONTROLNET), ControlNetModel.from_pretrained(EMOJI_CONTROLNET)
    inputs = (torch.randn(2, 4, 16, 16, generator=SEED(0)), torch.tensor([500, 20]), torch.randn(2, 77, 128, generator=SEED(1)))
    hint = torch.rand(2, 3, 64, 64, generator=SEED(2))
    with torch.no_grad():
        want, made = theirs(*inputs, hint, return_dict=False), ours(*inputs, hint, return_dict=False)
    for a, b in zip([*want[0], want[1]], [*made[0], made[1]], strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
