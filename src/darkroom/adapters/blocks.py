"""What `{"down": 0.5, "mid": 1.0, "up": {"block_0": [0.0, 1.0, 0.0]}}` says of the parts of a UNet."""

from __future__ import annotations
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from torch import nn
from ..errors import InputError

__all__ = ["by_transformer"]

T = TypeVar("T")


def by_transformer(module: nn.Module, given: Mapping[str, Any], value: Callable[[Any, str], T], default: T, where: str) -> dict[str, T]:
    """A value for each transformer of a UNet, by its dotted name. `given` has a value for down, mid or up, or there one for each block; a value may
    be a list with one for each transformer of the block. `value` reads one, `default` is for what is not named. `where` is for errors.
    Raises InputError for parts that the network does not have, and for lists of another length.
    """
    parts: dict[str, dict[str, list[str]]] = {}  # way -> block -> its transformers
    for way in ("down", "mid", "up"):
        blocks = getattr(module, f"{way}_blocks", ()) if way != "mid" else [getattr(module, "mid_block", None)]
        path = f"{way}_blocks.{{}}.attentions" if way != "mid" else "mid_block.attentions"
        found = {f"block_{i}": (path.format(i), block.attentions) for i, block in enumerate(blocks) if getattr(block, "attentions", None)}
        if found:
            parts[way] = {block: [f"{path}.{j}" for j in range(len(own))] for block, (path, own) in found.items()}
    if unknown := [way for way in given if way not in parts]:
        got, expected = ", ".join(map(str, unknown)), ", ".join(parts) or f"one number: this is a {type(module).__name__}"
        raise InputError("There are no such parts with attention.", where=where, got=got, expected=expected)
    made = {name: default for blocks in parts.values() for names in blocks.values() for name in names}
    for way, of_part in given.items():
        own = of_part if isinstance(of_part, Mapping) and way != "mid" else dict.fromkeys(parts[way], of_part)
        if unknown := [block for block in own if block not in parts[way]]:
            got, expected = ", ".join(map(str, unknown)), ", ".join(parts[way])
            raise InputError("There are no such blocks with attention.", where=f"{where}: {way}", got=got, expected=expected)
        for block, entry in own.items():
            place, names = f"{where}: {way}.{block}", parts[way][block]
            values = list(entry) if isinstance(entry, (list, tuple)) else [entry]
            if len(values) not in (1, len(names)):
                what, expected = "One value, or one for each transformer.", " or ".join(dict.fromkeys(["1", str(len(names))]))
                raise InputError(what, where=place, got=len(values), expected=expected)
            made |= {name: value(each, place) for name, each in zip(names, values * (len(names) // len(values)))}
    return made
