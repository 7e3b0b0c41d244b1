"""Several ControlNets as one, whose residuals are added."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
from torch import Tensor
from .controlnet import ControlNetModel, ControlNetOutput
from .controlnet_union import ControlNetUnionModel
from .several import Several

__all__ = ["MultiControlNetModel", "MultiControlNetUnionModel"]


def added(results: Sequence[tuple[Sequence[Tensor], Tensor]], return_dict: bool) -> Any:
    """The sums of residuals."""
    downs, mids = zip(*results)
    down, mid = [sum(parts[1:], parts[0]) for parts in zip(*downs)], sum(mids[1:], mids[0])
    return ControlNetOutput(down, mid) if return_dict else (down, mid)


class MultiControlNetModel(Several):
    """ControlNets that look at a picture each. Those of scale 0 are not run, unless all are."""

    part = ControlNetModel

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor | None, controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float], *args: Any, return_dict: bool = True, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Like `ControlNetModel`, with one picture and one scale for each network."""
        shared, each = (sample, timestep, encoder_hidden_states), [*zip(controlnet_cond, conditioning_scale, self.nets, strict=True)]
        used = [one for one in each if one[1] != 0] or each
        return added([net(*shared, image, scale, *args, return_dict=False, **kwargs) for image, scale, net in used], return_dict)


class MultiControlNetUnionModel(Several):
    """Union ControlNets that look at pictures of their own each. One of scale 0 is not run."""

    part = ControlNetUnionModel

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor | None, controlnet_cond: Sequence[Sequence[Tensor]],
        control_type: Sequence[Tensor], control_type_idx: Sequence[Sequence[int]], conditioning_scale: Sequence[float], *args: Any,
        return_dict: bool = True, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Like `ControlNetUnionModel`, with lists of what each network receives."""
        each = zip(controlnet_cond, control_type, control_type_idx, conditioning_scale, self.nets, strict=True)
        kwargs |= {"from_multi": True, "return_dict": False}
        results = [
            net(sample, timestep, encoder_hidden_states, images, kinds, ids, scale, *args, **kwargs)
            for images, kinds, ids, scale, net in each
            if scale != 0
        ]
        return added(results, return_dict) if results else (None, None)
