"""Headers of safetensors files, with every byte of the file accounted for. Reading one takes no memory for its tensors."""

from __future__ import annotations
import math
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
import torch
from torch import Tensor
from ..errors import CheckpointError
from .files import open_regular, parse_json

__all__ = ["DTYPES", "HEADER_LIMIT", "Entry", "header_of", "mapped", "metadata_of", "parse_header", "read_header"]

HEADER_LIMIT = 100_000_000  # bytes, the bound of the format
COMMA_LIMIT = 500_000  # outside of strings: about 70000 tensors. It bounds the objects that the parser makes, whatever their kind
QUOTE_LIMIT = 1_000_000
RANK_LIMIT = 64  # of torch
DAMAGED = "The file is damaged or was not downloaded whole: fetch it again."
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive, and matches without an end: linear on any input
DTYPES = {  # as the format orders them: tensors of the last come first in a file
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "I16": torch.int16,
    "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")  # several numbers in a byte: the format knows them, torch cannot compute with them


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: `nbytes` bytes from `offset`, counted from the beginning of the file.

    `stride`, in elements, is given only where the elements do not lie in order without gaps; then they lie within `span` bytes.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    stride: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Bytes from the first to the last element."""
        if self.stride is None or not self.nbytes:
            return self.nbytes
        return (1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride))) * self.dtype.itemsize


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("one name twice in an object")
    return found


def _counts(value: object) -> tuple[int, ...] | None:
    """A list of integers that fit in 63 bits, None for anything else."""
    if not isinstance(value, list):
        return None
    for v in value:
        if type(v) is not int or not 0 <= v < 2**63:
            return None
    return tuple(value)


def _entry(name: str, spec: Any, start: int, where: object) -> Entry:
    def refuse(what: str, got: object, expected: str | None = None, fix: str = DAMAGED) -> CheckpointError:
        return CheckpointError(what, where=where, got=f"{name[:100]}: {got}", expected=expected, fix=fix)

    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"} or not isinstance(spec["dtype"], str):
        raise refuse("A tensor that the header does not describe.", type(spec).__name__, '{"dtype", "shape", "data_offsets"}')
    dtype, shape, span = DTYPES.get(spec["dtype"]), _counts(spec["shape"]), _counts(spec["data_offsets"])
    if spec["dtype"] in _PACKED:
        raise refuse("A dtype that torch cannot compute with.", spec["dtype"], ", ".join(DTYPES), "Convert the file to another dtype.")
    if dtype is None:
        raise refuse("An unknown dtype.", spec["dtype"][:20], ", ".join(DTYPES))
    if shape is None or len(shape) > RANK_LIMIT or span is None or len(span) != 2 or span[0] > span[1]:
        raise refuse("A tensor of an impossible shape or place.", f"{spec['shape']!r:.100} at {spec['data_offsets']!r:.50}")
    # a zero among huge sizes is no way round: the product of the others must fit, too
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**60 or math.prod(shape) * dtype.itemsize != span[1] - span[0]:
        raise refuse("A tensor whose shape and bytes disagree.", f"{spec['dtype']} {shape!r:.100} in {span[1] - span[0]} bytes")
    return Entry(dtype, shape, start + span[0], span[1] - span[0])


def parse_header(text: bytes, data_size: int | None, where: object) -> dict[str, Entry]:
    """The tensors, by name, of a safetensors file whose header is `text` (without the eight bytes of its length).

    `data_size` is the number of bytes that follow the header, None if that is unknown; `where` is for messages. Raises CheckpointError where the
    text is not UTF-8 JSON, holds a name twice, an unknown dtype, or a shape that disagrees with its bytes, or where the tensors overlap, leave a
    gap, or do not fill `data_size` bytes.
    """
    if len(text) > HEADER_LIMIT or not text.startswith(b"{"):
        got = f"a header of {len(text)} bytes that begins with {text[:1]!r}"
        raise CheckpointError("Not a safetensors file.", where=where, got=got, expected="{...}", fix=DAMAGED)
    few = text.count(b'"') - text.count(b'\\"') <= QUOTE_LIMIT
    if not few or (bare := _STRING.sub(b"", text)).count(b",") > COMMA_LIMIT:
        got, expected = f"{len(text)} bytes", f"at most {COMMA_LIMIT} values"
        raise CheckpointError("A safetensors header that describes too much.", where=where, got=got, expected=expected)
    if b"-" in bare:  # Python reads -0 as 0
        raise CheckpointError("A safetensors header with a negative number.", where=where, fix=DAMAGED)
    try:
        header = parse_json(text, where, _unique)
        "".join(header).encode()  # a lone surrogate is no text
        metadata = header.pop("__metadata__", None)
        "".join(part for item in (metadata or {}).items() for part in item).encode()
    except (UnicodeEncodeError, TypeError, AttributeError):
        raise CheckpointError("A safetensors header with names or metadata that are not text.", where=where, fix=DAMAGED) from None
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError("A safetensors header whose metadata are not text.", where=where, got=type(metadata).__name__, fix=DAMAGED)
    start = end = 8 + len(text)
    entries = {name: _entry(name, spec, start, where) for name, spec in header.items()}
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            got = f"{name[:100]} at byte {entry.offset - start}"
            raise CheckpointError("Tensors that overlap or leave a gap.", where=where, got=got, expected=f"byte {end - start}", fix=DAMAGED)
        end += entry.nbytes
    if data_size is not None and end - start != data_size:
        got, expected = f"{data_size} bytes of data", f"{end - start}, by the header"
        raise CheckpointError("A safetensors file of the wrong length.", where=where, got=got, expected=expected, fix=DAMAGED)
    return entries


def header_of(file: BinaryIO, where: object) -> dict[str, Entry]:
    """What `read_header` does, for a file that is open at its beginning."""
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(begin := file.read(8), "little")
    if size < 10 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
        pointer = begin == b"version "  # what git leaves in place of a large file
        got = "a pointer to a file that git has not fetched" if pointer else f"a header of {length} bytes in a file of {size}"
        fix = 'Run "git lfs pull" in the folder.' if pointer else DAMAGED
        raise CheckpointError("Not a safetensors file.", where=where, got=got, fix=fix)
    return parse_header(file.read(length), size - 8 - length, where)


def metadata_of(file: BinaryIO, where: object) -> dict[str, str]:
    """The text beside the tensors of an open file whose header has been read."""
    file.seek(0)
    found: dict[str, str] = parse_json(file.read(int.from_bytes(file.read(8), "little")), where).get("__metadata__", {})
    return found


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, by name, see `parse_header`. Raises CheckpointError too if it is no such file or is cut off."""
    with open_regular(path) as file:
        return header_of(file, path)


def mapped(file: BinaryIO, entries: Mapping[str, Entry], where: object) -> dict[str, Tensor]:
    """Tensors on the CPU that share the file's pages until they are written to, which changes the process's copy only.

    Each has a storage of its own, as if it were alone: it can be saved and copied without the rest of the file. The format does not align tensors:
    those that lie at an address where torch could not read them are copied. `where` is for messages.
    """
    size = max((e.offset + e.span for e in entries.values() if e.nbytes), default=0)
    if size > os.fstat(file.fileno()).st_size:
        raise CheckpointError("A weight file that became shorter while it was read.", where=where, fix=DAMAGED)
    whole = torch.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY), dtype=torch.uint8) if size else torch.empty(0)
    storage, found = whole.untyped_storage(), {}
    for name, entry in entries.items():
        tensor = torch.empty(0, dtype=entry.dtype, device="cpu")
        if not entry.nbytes:
            found[name] = tensor.reshape(entry.shape)
            continue
        part = storage[entry.offset : entry.offset + entry.span]
        part = part.clone() if part.data_ptr() % entry.dtype.itemsize else part
        found[name] = tensor.set_(part, 0, entry.shape, entry.stride or ())  # type: ignore[arg-type]
    return found
