"""Reading with bounds: the path rule, regular files, JSON."""

from __future__ import annotations
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from ..errors import CheckpointError, InputError

__all__ = [
    "PathLike",
    "check_links",
    "check_outward_links",
    "inside",
    "is_safe",
    "listing",
    "open_regular",
    "parse_bytes",
    "parse_json",
    "read_json",
    "size_of",
]

PathLike = str | os.PathLike[str]
JSON_LIMIT = 64 * 2**20  # bytes
JSON_DEPTH = 100
_UNSAFE = re.compile(r'[\x00-\x1f\\:*?"<>|]')  # backslashes and drive letters, also where they would be legal


def is_safe(name: object) -> bool:
    """Whether a name out of a file is a relative path below its folder, on any system: no "..", drive or backslash, no part that begins with "__"
    or ends in a dot or space."""
    if not isinstance(name, str) or not 0 < len(name) <= 1000 or name.startswith("/") or _UNSAFE.search(name):
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and not any(part.startswith("__") or part != part.rstrip(". ") for part in parts)  # Windows reads "..  " as ".."


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name that came out of a file. Raises CheckpointError if the name `is_safe` not."""
    if not is_safe(name):
        expected = "a relative path inside the folder"
        raise CheckpointError("A file name that is not allowed.", where=folder, got=repr(name)[:100], expected=expected)
    return folder / name


def check_links(root: Path, paths: Iterable[Path]) -> None:
    """Raises CheckpointError, which names the file, if one of `paths` (relative to `root`, or absolute) really lies outside of it.

    In the hub's cache, where `root` is `<repository>/snapshots/<commit>`, links into `<repository>/blobs` are what the files are made of.
    """
    real = Path(os.path.realpath(root))
    allowed = [real, real.parents[1] / "blobs"] if real.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", real.name) else [real]
    for path in paths:
        target = Path(os.path.realpath(root / path))
        if not any(target.is_relative_to(folder) for folder in allowed):
            fix = "Copy the file to where the link is, or allow links with follow_links=True."
            raise CheckpointError("A file that lies outside of the checkpoint.", where=root / path, got=f"a link to {target}", fix=fix)


def check_outward_links(root: Path) -> None:
    """`check_links` for every link in `root` and in the folders in it, before any file there is opened."""
    folders = [root, *(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())]
    check_links(root, [path for folder in folders for path in folder.iterdir() if path.is_symlink()])


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; anything else (a pipe, a device, a folder) is refused, without blocking on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        what = "A file is missing." if isinstance(error, FileNotFoundError) else "A file cannot be opened."
        fix = "Check the path and the folder's name; if they are right, fetch or save the checkpoint again."
        raise CheckpointError(what, where=path, got=getattr(error, "strerror", None) or str(error), fix=fix) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError("Not a regular file.", where=path, expected="a file, not a folder, pipe or device")
    return os.fdopen(descriptor, "rb")


def size_of(path: Path) -> int:
    """The bytes of a regular file, -1 of what is none or is gone: others may rename or remove what has just been listed."""
    try:
        info = path.stat()
    except (OSError, ValueError):
        return -1
    return info.st_size if stat.S_ISREG(info.st_mode) else -1


def parse_json(text: bytes, where: object, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None) -> dict[str, Any]:
    """A JSON object out of UTF-8 text, with or without a byte-order mark; `pairs` makes the dictionaries.

    Raises CheckpointError if the text is not UTF-8, not JSON, not an object, or nested too deep.
    """
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # wrong bytes, wrong syntax, a number of thousands of digits
        raise CheckpointError("Not valid JSON.", where=where, got=str(error)[:200], expected="a JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise CheckpointError("Not a JSON object.", where=where, got=type(value).__name__, expected="{...}")
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    if level:
        raise CheckpointError("JSON that is nested too deep.", where=where, expected=f"at most {JSON_DEPTH} levels")
    return value


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a file, see `parse_json`. Raises CheckpointError too if the file is missing or longer than `limit` bytes."""
    with open_regular(path) as file:
        text = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)  # a buffer of that size is taken at once
    if len(text) > limit:
        raise CheckpointError("A JSON file that is too long.", where=path, expected=f"at most {limit} bytes")
    return parse_json(text, path)


def listing(folder: Path) -> list[str]:
    """The names of what lies directly in a folder and is no folder, sorted: also of links to nowhere, which are then refused by name."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError as error:
        raise CheckpointError("A folder cannot be read.", where=folder, got=error.strerror) from None


def parse_bytes(size: int | str, where: str) -> int:
    """A number of bytes: 10, "500MB" (decimal), "2GiB" (binary). `where` is the argument's name, for the InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", size, re.IGNORECASE) if isinstance(size, str) else None
    if match:
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise InputError("Not a size.", where=where, got=size, expected='a number of bytes, or such as "10GB"')
    return size
