"""Networks on several devices: what they are called with goes to them, and what they give comes back."""

from __future__ import annotations
from typing import Any
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["align"]


def align(module: nn.Module, home: torch.device) -> None:
    """From now on calls of `module` take their tensors to the device of its weights, and bring the results back to `home`."""

    def moved(values: Any, device: torch.device) -> Any:
        return tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, values)

    def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        place = next(module.parameters()).device
        return moved(args, place), moved(kwargs, place)

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(lambda _, args, out: moved(out, home))
