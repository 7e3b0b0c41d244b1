"""Controls of videos: ControlNets that see a picture for each frame, and sparse ones that see some."""

from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
import torch
from torch import Tensor
from ..errors import InputError
from .control import ControlNets, WindowInputs, among_zeros, numbers
from .inputs import Inputs, field
from .media import hint_to_tensor, image_count, image_size
from .types import Branch, Run

__all__ = ["SparseControls", "VideoControlNets"]


@dataclass(kw_only=True)
class FramesInputs(WindowInputs):
    conditioning_frames: list[Any] | None = field("What to look at: a picture for each frame; several networks take a list of such lists.")


@dataclass(kw_only=True)
class SparseInputs(Inputs):
    conditioning_frames: Any = field("What to look at: pictures for some of the frames, one or a list.")
    controlnet_conditioning_scale: float = field("Weight of the control.", 1.0)
    controlnet_frame_indices: list[int] = field("Which frames the pictures are for, from 0.", [0])
    guess_mode: bool = field("Let the pictures speak where there is no prompt: the control leaves unconditional predictions alone.", False)


def by_frame(branch: Branch, frames: int) -> Branch:
    """Conditions of videos as those of all their frames, one video after another. A context may be for each frame already, (B, F, M, d)."""
    cond = {
        name: x.flatten(0, 1) if name == "context" and x.ndim == 4 else x.repeat_interleave(frames, 0) for name, x in branch.cond.items()
    }
    return Branch(cond)


class VideoControlNets(ControlNets):
    """ControlNets that see a picture for each frame; to them the frames are so many pictures."""

    def __init__(self) -> None:
        super().__init__("conditioning_frames")
        self.Inputs = FramesInputs
        self.tensors = ()

    def fit(self, pipe: Any, inputs: Any, rows: int) -> Any:
        fitted, frames = super().fit(pipe, inputs, rows), pipe.task.frames(pipe, inputs)
        for one in self.pictures(pipe, inputs):
            if (count := image_count(one, self.picture)) != frames:
                raise InputError("There must be a picture for each frame.", where=self.picture, got=count, expected=frames)
        return replace(fitted, height=inputs.height, width=inputs.width)  # the pictures fit the video, not the reverse

    def tensor(self, pipe: Any, run: Run, image: Any, channels: int, dtype: torch.dtype) -> Tensor:
        height, width = (side * pipe.codec.factor(pipe) for side in run.x.shape[-2:])
        return hint_to_tensor(image, channels=channels, where=self.picture, height=height, width=width).to(pipe.device, dtype)

    def rows(self, run: Run, x: Tensor) -> Tensor:
        return x.repeat(run.rows, 1, 1, 1)  # (B F, C, fH, fW)

    def residuals(self, pipe: Any, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]:
        frames = x.shape[2]
        every = replace(run, rows=run.rows * frames)
        return super().residuals(pipe, x.transpose(1, 2).flatten(0, 1), t, by_frame(branch, frames), every)


class SparseControls(ControlNets):
    """A network that sees pictures for some frames and steers all of them (SparseCtrl, Guo et al. 2023). Pictures that it takes as latents are the
    mode of what the codec sees in them."""

    name, kinds = "SparseControlNet", ("SparseControlNetModel",)

    def __init__(self) -> None:
        super().__init__("conditioning_frames")
        self.Inputs = SparseInputs
        self.tensors = ()

    def fit(self, pipe: Any, inputs: Any, rows: int) -> Any:
        numbers(inputs.controlnet_conditioning_scale, 1, "controlnet_conditioning_scale")
        frames, places = pipe.task.frames(pipe, inputs), inputs.controlnet_frame_indices
        image_size(inputs.conditioning_frames, self.picture)
        good = isinstance(places, (list, tuple)) and all(isinstance(i, int) and -frames <= i < frames for i in places)
        if not good or not 0 < len({i % frames for i in places}) == len(places) <= image_count(inputs.conditioning_frames, self.picture):
            expected = f"different frames from 0 to {frames - 1}, at most as many as pictures"
            raise InputError("Pictures without a place.", where="controlnet_frame_indices", got=places, expected=expected)
        return inputs

    def scales(self, pipe: Any, run: Run) -> list[float]:
        return [float(run.inputs.controlnet_conditioning_scale)]

    def start(self, pipe: Any, run: Run) -> None:
        net, inputs, places = self.network(pipe), run.inputs, run.inputs.controlnet_frame_indices
        factor = pipe.codec.factor(pipe)
        height, width = (side * factor for side in run.x.shape[-2:])
        pictures = hint_to_tensor(inputs.conditioning_frames, where=self.picture, height=height, width=width)[: len(places)]
        pictures = pictures.to(pipe.device, net.dtype)
        if net.config.use_simplified_condition_embedding:
            vae = pipe.codec.network(pipe, "encode")
            latents = vae.encode((2 * pictures - 1).to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
            pictures = latents.to(net.dtype)
        seen = pictures.new_zeros(1, pictures.shape[1], run.x.shape[2], *pictures.shape[-2:])
        given = torch.zeros_like(seen[:, :1])
        seen[0, :, places], given[:, :, places] = pictures.transpose(0, 1), 1
        run.tensors[self.picture] = (seen, given)

    def residuals(self, pipe: Any, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]:
        (scale,), steered, frames = self.scales(pipe, run), branch.cond.get(self.mark), x.shape[2]
        if scale == 0 or (steered is not None and not steered.any()):
            return {}
        rows = torch.ones(len(x), dtype=torch.bool) if steered is None else steered
        every = rows.repeat_interleave(frames)
        context = by_frame(branch, frames).cond["context"][every]
        seen, given = (part.expand(int(rows.sum()), -1, -1, -1, -1) for part in run.tensors[self.picture])
        options = {"conditioning_scale": scale, "guess_mode": self.guesses(pipe, run.inputs), "return_dict": False}
        down, mid = self.network(pipe)(x[rows], t, context, seen, conditioning_mask=given, **options)
        if steered is not None:
            down, mid = [among_zeros(d, every) for d in down], among_zeros(mid, every)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
