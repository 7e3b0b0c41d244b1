"""A second module tree over the same weights."""

from __future__ import annotations
import copy
from typing import TypeVar
import torch
from torch import nn

__all__ = ["cast_copy", "fork"]

M = TypeVar("M", bound=nn.Module)
_HOOKS = tuple(n for n in vars(nn.Module()) if n.startswith(("_forward_", "_backward_")))


def fork(module: M, memo: dict[int, nn.Module] | None = None) -> M:
    """A module tree with the same parameter and buffer objects; structure, hooks and plain attributes are its own.
    Replacing a layer or a parameter, adding a hook or changing an attribute of one tree leaves the other as it is. Moving one to another
    device or dtype moves both: they are the same weights. A module that stands in several places does so in the fork too.
    """
    memo = {} if memo is None else memo
    if id(module) not in memo:
        twin = memo[id(module)] = copy.copy(module)
        state = twin.__dict__
        # the tensors are shared, this dict is not: a parameter replaced in one tree stays there. Buffers are moved by replacing
        # them in their dict, so that dict must be one.
        state["_parameters"] = dict(module._parameters)
        state["_modules"] = {name: child and fork(child, memo) for name, child in module._modules.items()}
        for name in _HOOKS:
            state[name] = type(state[name])()
        state.pop("forward", None)
        state.pop("_output_capturing_hooks_installed", None)  # transformers then installs its own hooks anew
    return memo[id(module)]  # type: ignore[return-value]


def cast_copy(module: M, dtype: torch.dtype) -> M:
    """A fork whose floating-point weights are copies in another dtype; what has it already stays shared."""
    twin = fork(module)
    made: dict[int, nn.Parameter] = {}
    for part in twin.modules():
        for name, p in part._parameters.items():
            if p is not None and p.is_floating_point() and p.dtype != dtype:
                part._parameters[name] = made.setdefault(id(p), nn.Parameter(p.detach().to(dtype), p.requires_grad))
        part.__dict__["_buffers"] = {
            name: b.to(dtype) if b is not None and b.is_floating_point() else b for name, b in part._buffers.items()
        }
    return twin
