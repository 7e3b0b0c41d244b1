"""Writing networks: a folder with `config.json` and weights, split where they are large, whole or not at all."""

from __future__ import annotations
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from ..errors import CheckpointError, InputError
from .atomic import save_folder_atomic
from .files import PathLike, parse_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from ..models.base import Model

__all__ = ["save_model", "write_pickled", "write_safetensors"]


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, byte for byte as the format's own writer does. One tensor at a time is copied, and only if it has to be: because it
    is on a device, or not contiguous.

    `metadata` is {"format": "pt"} if not given. Raises OSError.
    """
    import torch
    from .safetensors import DTYPES

    codes = {dtype: (i, code) for i, (code, dtype) in enumerate(DTYPES.items())}
    order = sorted(tensors, key=lambda name: (-codes[tensors[name].dtype][0], name.encode()))  # wider ones first: each is aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name in order:
        t, begin = tensors[name], end
        end += t.nbytes
        header[name] = {"dtype": codes[t.dtype][1], "shape": list(t.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def write_pickled(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a `.bin` file. A tensor that is a part of a larger storage is written without the rest, and none is copied as long as it is on the CPU
    and contiguous. Raises OSError.
    """
    import torch

    state = {}
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        begin = t.storage_offset() * t.itemsize
        state[name] = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()[begin : begin + t.nbytes], 0, t.shape, t.stride())
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch hides the reason
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _shards(state: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """The tensors in groups of at most `limit` bytes; a larger one is alone. A tensor with several names is kept under the first."""
    unique: dict[object, str] = {}
    for name, t in state.items():
        unique.setdefault((t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else name, name)
    groups: list[dict[str, Tensor]] = [{}]
    room = limit
    for name in unique.values():
        if groups[-1] and state[name].nbytes > room:
            groups.append({})
            room = limit
        groups[-1][name] = state[name]
        room -= state[name].nbytes
    return groups


def save_model(
    model: Model, directory: PathLike, *, variant: str | None = None, max_shard_size: int | str = "10GB", safe_serialization: bool = True
) -> None:
    """What `Model.save_pretrained` does. Weights beyond `max_shard_size` are split over files, with an index.

    Raises CheckpointError if the folder cannot be written or the network has no values, InputError for an option without meaning.
    """
    import torch
    from .safetensors import DTYPES

    if variant is not None and not re.fullmatch(r"(?!index$)\w[\w+]*", variant, re.ASCII):
        raise InputError("Not a variant.", where="variant", got=variant, expected='letters, digits and "_", such as "fp16"')
    state = model.state_dict()
    for name, t in state.items():
        if t.is_meta:
            raise CheckpointError("A network without values cannot be saved.", where=type(model).__name__, got='tensors on "meta"')
        if t.layout is not torch.strided or t.is_quantized or t.dtype not in DTYPES.values():
            got = f"{t.dtype}, {t.layout}"
            raise CheckpointError("A tensor that the format cannot hold.", where=f"{type(model).__name__}, {name}", got=got)
    groups = _shards(state, parse_bytes(max_shard_size, "max_shard_size"))
    dot, ext = f".{variant}" if variant else "", "safetensors" if safe_serialization else "bin"
    ends = [f"-{i:05d}-of-{len(groups):05d}" for i in range(1, len(groups) + 1)] if len(groups) > 1 else [""]
    shards = {f"{model.weights_name}{dot}{end}.{ext}": group for end, group in zip(ends, groups, strict=True)}
    with save_folder_atomic(directory) as folder:
        for name, group in shards.items():
            (write_safetensors if safe_serialization else write_pickled)(folder / name, group)
        if len(groups) > 1:
            weight_map = {key: name for name, group in shards.items() for key in group}
            content = {"metadata": {"total_size": sum(t.nbytes for group in groups for t in group.values())}, "weight_map": weight_map}
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (folder / f"{model.weights_name}.{ext}.index{dot}.json").write_text(text, encoding="utf-8")
        (folder / "config.json").write_text(model.to_json(), encoding="utf-8")
