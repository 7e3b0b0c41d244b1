"""Weights out of files and into a module: headers are checked before memory is taken, tensors are mapped or cast in a stream."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, DarkroomError
from .files import open_regular, parse_json

__all__ = ["Entry", "Weights", "load_weights", "read_header"]

logger = logging.getLogger("darkroom")
HEADER_LIMIT = 100_000_000  # bytes, the bound of the format
CHUNK = 64 * 2**20  # bytes of file that one thread maps at a time
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32,
    "F32": torch.float32, "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `nbytes` bytes at `offset`, counted from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def _counts(value: object) -> tuple[int, ...] | None:
    """A list of integers that fit in 63 bits, None for anything else."""
    fits = isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)
    return tuple(value) if fits else None  # type: ignore[arg-type]


def _entry(spec: Any) -> Entry | None:
    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"} or not isinstance(spec["dtype"], str):
        return None
    dtype, shape, span = _DTYPES.get(spec["dtype"]), _counts(spec["shape"]), _counts(spec["data_offsets"])
    if dtype is None or shape is None or span is None or len(span) != 2 or span[0] > span[1]:
        return None
    return Entry(dtype, shape, span[0], span[1] - span[0])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("twice")
    return found


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, by name, with every byte of the file accounted for.

    Raises:
        CheckpointError: the header is too long, not JSON or names a tensor twice; a dtype is unknown; a shape and its bytes disagree; the
            tensors leave a gap, overlap, or end elsewhere than the file.
    """

    def refuse(what: str, **details: Any) -> CheckpointError:
        fix = "The file is damaged or was not downloaded whole: fetch it again."
        return CheckpointError(what, where=path, fix=fix, **details)

    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
            raise refuse("Not a safetensors file.", got=f"a header of {length} bytes in a file of {size}")
        text = file.read(length)
    if not text.startswith(b"{") or len(text) != length:
        raise refuse("Not a safetensors file.", got="a header that does not begin with {")
    header = parse_json(text, path, object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse("A safetensors header whose metadata are not text.")
    entries = {}
    for name, spec in header.items():
        entry = _entry(spec)
        if entry is None:
            raise refuse("A tensor whose header entry cannot be read.", got=name[:100])
        if math.prod(entry.shape) * entry.dtype.itemsize != entry.nbytes:
            raise refuse("A tensor whose shape and bytes disagree.", got=f"{name[:100]}: {entry.shape} in {entry.nbytes} bytes")
        entries[name] = entry
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            raise refuse("Tensors that overlap or leave a gap.", got=f"{name[:100]} at {entry.offset}", expected=end)
        end += entry.nbytes
    if end != size - 8 - length:
        raise refuse("A safetensors file of the wrong length.", got=f"{size - 8 - length} bytes of data", expected=end)
    return entries


class Weights:
    """Tensors of several files by name: `entries` from the headers, `read` for the data."""

    def __init__(self, files: Iterable[Path]):  # reads headers only
        self.entries: dict[str, Entry] = {}
        self.files: dict[str, Path] = {}
        self._unpickled: dict[str, Tensor] = {}
        for path in files:
            entries = read_header(path) if path.suffix == ".safetensors" else self._unpickle(path)
            doubled = self.entries.keys() & entries.keys()
            if doubled:
                raise CheckpointError("A tensor that two files hold.", where=path, got=min(doubled)[:100])
            self.entries |= entries
            self.files |= dict.fromkeys(entries, path)

    def _unpickle(self, path: Path) -> dict[str, Entry]:
        if os.environ.get("DARKROOM_SAFETENSORS_ONLY", "0") not in ("", "0"):
            raise CheckpointError("A pickled file, where only safetensors are allowed.", where=path)
        logger.warning("%s is a pickle: it is read with restrictions; safetensors files are faster and safer", path)
        open_regular(path).close()
        zipped = zipfile.is_zipfile(path)
        try:
            if zipped:
                with zipfile.ZipFile(path) as archive:
                    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                        raise CheckpointError("A pickled file with compressed members.", where=path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                "A pickled file that cannot be read with restrictions.",
                where=path,
                got=type(error).__name__,
                fix="Convert it to safetensors.",
            ) from None
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
        if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
            raise CheckpointError("A pickled file that holds no tensors by name.", where=path, got=type(content).__name__)
        tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
        for name, t in tensors.items():
            if t.is_sparse or t.is_quantized or t.numel() * t.itemsize > t.untyped_storage().nbytes():
                raise CheckpointError("A tensor that the file does not hold whole.", where=path, got=name[:100])
        self._unpickled |= tensors
        return {name: Entry(t.dtype, tuple(t.shape), 0, t.numel() * t.itemsize) for name, t in tensors.items()}

    def chunks(self, names: Iterable[str]) -> list[list[str]]:
        """The names in the order of the files, cut where a file or CHUNK bytes end."""
        order = sorted(names, key=lambda name: (str(self.files[name]), self.entries[name].offset))
        groups: list[list[str]] = []
        room = 0
        for name in order:
            if not groups or room <= 0 or self.files[groups[-1][-1]] != self.files[name]:
                groups.append([])
                room = CHUNK
            groups[-1].append(name)
            room -= self.entries[name].nbytes
        return groups

    def read(self, names: list[str], convert: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Tensors of one file, each passed through `convert`. Bytes that `convert` copied are unmapped at return."""
        path = self.files[names[0]]
        if path.suffix != ".safetensors":
            return {name: convert(name, self._unpickled.pop(name)) for name in names}
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                tensors = {}
                for name in names:
                    tensor = file.get_tensor(name)
                    if tensor.data_ptr() % tensor.itemsize:  # the format does not align tensors
                        tensor = tensor.clone()
                    tensors[name] = convert(name, tensor)
                return tensors
        except (SafetensorError, OSError) as error:
            raise CheckpointError("A weight file that cannot be read.", where=path, got=str(error)) from None


def _slots(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Where each tensor of the state lives: name -> all places that hold this very tensor (several where weights are tied)."""
    owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
    names: dict[str, Tensor] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for home, skipped in ((owner._parameters, ()), (owner._buffers, owner._non_persistent_buffers_set)):
            for leaf, tensor in home.items():
                if tensor is not None and leaf not in skipped:
                    places = owners.setdefault(id(tensor), [])
                    if not any(h is home and n == leaf for h, n in places):
                        places.append((home, leaf))
                    names[f"{prefix}.{leaf}" if prefix else leaf] = tensor
    return {name: owners[id(tensor)] for name, tensor in names.items()}


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(name[:80] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def load_weights(
    module: nn.Module,
    files: Iterable[Path] | Weights,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_in_float32: Iterable[str] = (),
    rename: Callable[[str], str] = lambda name: name,
    strict: bool = True,
    where: object = "model",
) -> None:
    """Give a module, built on "meta" or not, the tensors of its files.

    Names and shapes are compared by the headers first. A tensor that already has its final dtype stays mapped to the file; the others are cast in
    chunks by several threads. A non-persistent buffer is in no file: build it with an explicit `device="cpu"`.

    Args:
        dtype: of floating-point tensors; None keeps the file's.
        keep_in_float32: parts of dotted names that become float32 whatever `dtype` is.
        rename: the module's name of a tensor that the file calls otherwise.
        strict: False leaves tensors that the files lack as they are, if they are not on "meta".
        where: the component, for messages.
    Raises:
        CheckpointError: tensors are missing, two have one name, or one has another shape or kind than the module's.
    """
    weights = files if isinstance(files, Weights) else Weights(files)
    slots = _slots(module)
    state = {name: places[0][0][places[0][1]] for name, places in slots.items()}
    sources: dict[str, str] = {}
    for name in weights.entries:
        target = rename(name)
        if target in sources:
            raise CheckpointError("Two tensors of one name.", where=where, got=f"{sources[target][:80]}, {name[:80]}")
        sources[target] = name
    wanted, extra = slots.keys() & sources.keys(), sources.keys() - slots.keys()
    held = {(id(home), leaf) for name in wanted for home, leaf in slots[name]}
    missing = [name for name, places in slots.items() if not any((id(home), leaf) in held for home, leaf in places)]
    if missing and (strict or any(state[name].is_meta for name in missing)):
        fix = f"The files have other names: {_some(extra)}" if extra else "Fetch the files again, or correct the configuration."
        raise CheckpointError(f"{len(missing)} tensors are not in the weight files.", where=where, got=_some(missing), fix=fix)
    for target in sorted(wanted):
        entry, own = weights.entries[sources[target]], state[target]
        if _without_ones(entry.shape) != _without_ones(own.shape):
            expected = f"{tuple(own.shape)}, by the configuration"
            raise CheckpointError("A tensor of another shape.", where=f"{where}: {target}", got=entry.shape, expected=expected)
        if (entry.dtype.is_floating_point, entry.dtype.is_complex) != (own.dtype.is_floating_point, own.dtype.is_complex):
            raise CheckpointError("A tensor of another kind.", where=f"{where}: {target}", got=entry.dtype, expected=own.dtype)
    if extra:
        logger.warning("%s: %d tensors of the weight files belong to nothing: %s", where, len(extra), _some(extra))
    targets = {sources[target]: target for target in wanted}
    full = frozenset(keep_in_float32)

    def convert(name: str, tensor: Tensor) -> Tensor:
        target = targets[name]
        if tensor.is_floating_point():
            final = torch.float32 if full.intersection(target.split(".")) else dtype or tensor.dtype
            tensor = tensor.to(device).to(final)
        else:
            tensor = tensor.to(device)
        return tensor.reshape(state[target].shape)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for tensors in pool.map(lambda names: weights.read(names, convert), weights.chunks(targets)):
            for name, tensor in tensors.items():
                target = targets[name]
                old = state[target]
                if isinstance(old, nn.Parameter):
                    tensor = nn.Parameter(tensor, requires_grad=old.requires_grad and tensor.is_floating_point())
                for home, leaf in slots[target]:
                    home[leaf] = tensor
    _settle(module, device, where)


def _settle(module: nn.Module, device: torch.device | str, where: object) -> None:
    """Move what no file holds to the device; nothing may be left on "meta"."""
    for prefix, owner in module.named_modules():
        homes: Mapping[str, Any] = owner._parameters | owner._buffers
        for leaf, tensor in homes.items():
            if tensor is not None and tensor.is_meta:
                raise DarkroomError(
                    "A tensor that no file holds was left without values.",
                    where=f"{where}: {prefix}.{leaf}",
                    fix='Build non-persistent buffers with an explicit device="cpu".',
                )
        for leaf, tensor in owner._buffers.items():
            if tensor is not None:
                owner._buffers[leaf] = tensor.to(device)
