"""Checkpoints that come with the package."""

from pathlib import Path

__all__ = ["EMOJI", "EMOJI_CONTROLNET", "EMOJI_LORA", "EMOJI_MOTION", "SUITED"]

EMOJI = str(Path(__file__).parent / "emoji")  # 64 x 64 pictures of emoji, in the layout of Stable Diffusion
EMOJI_CONTROLNET = EMOJI + "-controlnet"  # draws them inside a silhouette
EMOJI_LORA = EMOJI + "-lora"  # draws them in blue, as on tiles of Delft
EMOJI_MOTION = EMOJI + "-motion"  # turns their colours once around, in eight frames
SUITED = {"num_inference_steps": 25, "guidance_scale": 2.5}  # what its pictures are best with
