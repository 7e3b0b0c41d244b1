"""Pickled weights (.bin, .pt, .ckpt) read as data: zip files and the older kind, with every tensor's place checked."""

from __future__ import annotations
import io
import logging
import math
import mmap
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from torch import Tensor
from ..errors import CheckpointError, DarkroomError
from .files import open_regular
from .safetensors import DAMAGED, Entry, mapped
from .unpickling import Placed, Storage, run_pickle

__all__ = ["pickled_entries", "read_pickled"]

logger = logging.getLogger("darkroom")
PICKLE_LIMIT = 64 * 2**20  # bytes of a file's structure; the numbers of its tensors lie outside
DIRECTORY_LIMIT = 8 * 2**20  # bytes of a zip file's list of members
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that is no zip file


class _Bounded(io.BufferedReader):
    """A file of which no reader takes more than DIRECTORY_LIMIT bytes at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_LIMIT:
            raise ValueError("a list of members that is too long")
        return super().read(DIRECTORY_LIMIT if size is None or size < 0 else size)


def _members(file: BinaryIO) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Where the members of a zip file lie, as (offset, size), and their checksums: stored ones only, of which no two share a byte."""
    size, found = os.fstat(file.fileno()).st_size, {}
    with zipfile.ZipFile(_Bounded(io.FileIO(file.fileno(), closefd=False))) as archive:
        infos = archive.infolist()
    file.seek(0, os.SEEK_END)  # the archive has moved the descriptor under this file's buffer
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 0x41:
            raise ValueError("a member that is compressed or encrypted")
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) < 30 or head[:4] != b"PK\3\4" or head[8:10] != b"\0\0":
            raise ValueError("a member that is not where the list says")
        offset = info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        if info.filename in found:
            raise ValueError("two members of one name")
        found[info.filename] = (offset, info.file_size)
    end = 0
    for offset, length in sorted(found.values()):
        if offset < end or offset + length > size:
            raise ValueError("members that overlap or lie outside of the file")
        end = offset + length
    return found, {info.filename: info.CRC for info in infos}


def _zipped(file: BinaryIO) -> tuple[Any, Callable[[Storage], int]]:
    """The content of a zip file, and where its storages begin."""
    members, checksums = _members(file)
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"{len(roots)} members data.pkl")

    def text(name: str, limit: int) -> bytes:
        offset, size = members[f"{roots[0]}/{name}"]
        if size > limit:
            raise ValueError(f"a member {name} of {size} bytes")
        file.seek(offset)
        found = file.read(size)
        if zlib.crc32(found) != checksums[f"{roots[0]}/{name}"]:
            raise ValueError(f"a member {name} whose checksum is wrong")
        return found

    if f"{roots[0]}/byteorder" in members and text("byteorder", 16) != b"little":
        raise ValueError("numbers whose highest byte comes first")

    def place(storage: Storage) -> int:
        offset, size = members[f"{roots[0]}/data/{storage.key}"]
        if storage.total * storage.dtype.itemsize > size:
            raise ValueError(f"a storage of {size} bytes that has to hold {storage.total} numbers")
        return offset

    return run_pickle(io.BytesIO(text("data.pkl", PICKLE_LIMIT))), place


def _legacy(file: BinaryIO) -> tuple[Any, Callable[[Storage], int]]:
    """The same for a file of torch before 1.6: five pickles, then each storage after its length."""
    size = os.fstat(file.fileno()).st_size
    storages: dict[str, Storage] = {}
    with mmap.mmap(file.fileno(), min(size, PICKLE_LIMIT), access=mmap.ACCESS_READ) as stream:
        magic, version, system = run_pickle(stream), run_pickle(stream), run_pickle(stream)
        if magic != MAGIC or version != 1001 or system["little_endian"] is not True:
            raise ValueError("a file of another kind or machine")
        content, keys = run_pickle(stream, storages), run_pickle(stream)
        end = stream.tell()
    places: dict[str, int] = {}
    for key in keys:
        storage = storages[key]
        file.seek(end)
        if key in places or int.from_bytes(file.read(8), "little") != storage.total:
            raise ValueError("a storage of another length")
        places[key] = end + 8
        end += 8 + storage.total * storage.dtype.itemsize
        if end > size:
            raise ValueError("a file that ends within its storages")
    return content, lambda storage: places[storage.key]


def _in_order(shape: Iterable[int], stride: Iterable[int]) -> bool:
    expected = 1
    for n, step in reversed([*zip(shape, stride)]):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def pickled_entries(file: BinaryIO, where: object, names: Callable[[dict[str, Any]], Mapping[str, Any]] = dict) -> dict[str, Entry]:
    """Where the tensors of an open file lie, by name; see `read_pickled`. Takes no memory for them. `where` is for messages, `names` gives
    what the file holds by name."""
    if os.environ.get("DARKROOM_SAFETENSORS_ONLY", "0").upper() not in ("", "0", "NO", "OFF", "FALSE"):
        fix = "Convert it to safetensors, or unset DARKROOM_SAFETENSORS_ONLY."
        raise CheckpointError("A pickled file, where only safetensors are allowed.", where=where, fix=fix)
    logger.warning("%s is a pickle: it is read with restrictions; safetensors files are faster and safer", where)
    head = file.read(4)
    file.seek(0)
    try:
        content, place = (_zipped if head == b"PK\3\4" else _legacy)(file)
        content = content.get("state_dict", content) if isinstance(content, dict) else content
        found = [(n, v) for n, v in names(content).items() if isinstance(v, Placed)] if isinstance(content, dict) else []
        if not found:
            raise ValueError("no tensors by name")
        places: dict[str, Entry] = {}
        for name, value in found:
            offset = place(value.storage) + value.storage.first * value.storage.dtype.itemsize + value.first * value.dtype.itemsize
            nbytes = math.prod(value.shape) * value.dtype.itemsize
            stride = None if not nbytes or _in_order(value.shape, value.stride) else value.stride
            places[name] = Entry(value.dtype, value.shape, offset, nbytes, stride)
        return places
    except DarkroomError:
        raise
    except Exception as error:  # whatever the parts of a hostile file are when they are not what they should be
        got, fix = (
            str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}",
            f"{DAMAGED} Or convert it to safetensors.",
        )
        raise CheckpointError("A pickled file that cannot be read with restrictions.", where=where, got=got[:200], fix=fix) from None


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, by name, mapped; those of its "state_dict" if it has one. Logs one line.

    Nothing in the file is imported or called: tensors are described by their storages, other objects of training programs are passed over, and
    any other global is refused. Zip members must be stored. Raises CheckpointError for that, for a tensor that its storage does not hold whole,
    for numbers of another byte order, and where DARKROOM_SAFETENSORS_ONLY is set.
    """
    with open_regular(path) as file:
        return mapped(file, pickled_entries(file, path), path)
