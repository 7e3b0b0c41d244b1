"""Checkpoints that come with the package."""

from pathlib import Path

__all__ = ["EMOJI", "SUITED"]

EMOJI = str(Path(__file__).parent / "emoji")  # 64 x 64 pictures of emoji, in the layout of Stable Diffusion
SUITED = {"num_inference_steps": 25, "guidance_scale": 2.5}  # what its pictures are best with
