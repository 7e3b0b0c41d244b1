"""What goes with the bundled checkpoint does what it is for, and loads into the reference too."""

from __future__ import annotations
import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw
from darkroom import AnimateDiffPipeline, ControlNetModel, MotionAdapter, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from darkroom.assets import EMOJI, EMOJI_CONTROLNET, EMOJI_LORA, EMOJI_MOTION

SEED = torch.Generator().manual_seed


def test_the_controlnet_steers_place_and_size():
    hint = Image.new("L", (64, 64))
    ImageDraw.Draw(hint).ellipse((4, 20, 42, 58), fill=255)
    wanted = np.asarray(hint) > 127
    pipe = StableDiffusionControlNetPipeline.from_pretrained(EMOJI, controlnet=ControlNetModel.from_pretrained(EMOJI_CONTROLNET))

    def overlap(scale: float) -> float:
        """Intersection over union of the wanted and the made silhouette."""
        options = {"num_inference_steps": 8, "guidance_scale": 2.5, "controlnet_conditioning_scale": scale, "generator": SEED(0)}
        made = np.asarray(pipe("red apple", image=hint, **options).images[0]).min(2) < 225
        return float((made & wanted).sum() / (made | wanted).sum())

    with_it, without = overlap(1.0), overlap(0.0)
    assert with_it > 0.8 > 0.6 > without, (with_it, without)


def test_the_reference_reads_the_controlnet():
    theirs, ours = diffusers.ControlNetModel.from_pretrained(EMOJI_CONTROLNET), ControlNetModel.from_pretrained(EMOJI_CONTROLNET)
    inputs = (torch.randn(2, 4, 16, 16, generator=SEED(0)), torch.tensor([500, 20]), torch.randn(2, 77, 128, generator=SEED(1)))
    hint = torch.rand(2, 3, 64, 64, generator=SEED(2))
    with torch.no_grad():
        want, made = theirs(*inputs, hint, return_dict=False), ours(*inputs, hint, return_dict=False)
    for a, b in zip([*want[0], want[1]], [*made[0], made[1]], strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


def test_the_lora_paints_in_blue_and_leaves_its_parent_alone():
    pipe = StableDiffusionPipeline.from_pretrained(EMOJI)
    styled = StableDiffusionPipeline.from_pipe(pipe)
    assert styled.load_lora_weights(EMOJI_LORA).counts["unet"] == (156, 156)

    def colour(pipe: StableDiffusionPipeline) -> np.ndarray:
        """The mean of what is not paper."""
        made = np.asarray(pipe("automobile", num_inference_steps=8, guidance_scale=2.5, generator=SEED(0)).images[0], float)
        return made[made.min(2) < 225].mean(0)

    red, _, blue = colour(styled)
    assert blue > red + 60
    red, _, blue = colour(pipe)
    assert red > blue + 60


def test_the_reference_reads_the_lora():
    theirs, ours = (
        diffusers.StableDiffusionPipeline.from_pretrained(EMOJI, dtype=torch.float32),
        StableDiffusionPipeline.from_pretrained(EMOJI),
    )
    inputs = (torch.randn(2, 4, 16, 16, generator=SEED(0)), torch.tensor([500, 20]), torch.randn(2, 77, 128, generator=SEED(1)))
    with torch.no_grad():
        plain = ours.unet(*inputs).sample
        theirs.load_lora_weights(EMOJI_LORA)
        ours.load_lora_weights(EMOJI_LORA)
        want, made = theirs.unet(*inputs).sample, ours.unet(*inputs).sample
    assert (want - plain).abs().max() > 0.1
    torch.testing.assert_close(made, want, atol=1e-3, rtol=1e-3)


def test_the_motion_adapter_turns_hues_once_around():
    pipe = AnimateDiffPipeline.from_pretrained(EMOJI, motion_adapter=MotionAdapter.from_pretrained(EMOJI_MOTION))
    frames = pipe("red heart", num_frames=8, num_inference_steps=8, guidance_scale=2.5, generator=SEED(0), output_type="np").frames[0]
    ink = [frame[frame.min(2) < 0.8].mean(0) for frame in frames]  # what is not paper
    assert [int(colour.argmax()) for colour in (ink[0], ink[3], ink[5])] == [0, 1, 2]  # red, green, blue


def test_the_reference_reads_the_motion_adapter():
    theirs = diffusers.MotionAdapter.from_pretrained(EMOJI_MOTION).state_dict()
    ours = MotionAdapter.from_pretrained(EMOJI_MOTION).state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
