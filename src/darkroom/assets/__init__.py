"""Checkpoints that come with the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EMOJI"]

EMOJI = str(Path(__file__).parent / "emoji")  # 64 x 64 pictures of emoji, in the layout of Stable Diffusion
