"""Locks on folders that die with their process, and reading: what is loaded is of the old checkpoint or of the new one, never a mixture."""

from __future__ import annotations
import contextlib
import errno
import glob
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from ..errors import CheckpointError
from .files import PathLike

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["Replaced", "read_whole", "reading", "recover"]

logger = logging.getLogger("darkroom")
T = TypeVar("T")
PATIENCE = 60.0  # seconds that readers and savers wait for each other
DEBRIS = re.compile(r"\..+\.(saving|replaced)-[0-9a-f]{8}")  # hidden, and no name that a person gives to a backup


class Replaced(CheckpointError):
    """A checkpoint was replaced while it was read: what was read may be of the old one and of the new one. Read again."""


def beside(path: Path, kind: str) -> Path:
    """A name for what is on its way to the place of `path` ("saving"), or was there ("replaced")."""
    return path.with_name(f".{path.name}.{kind}-{secrets.token_hex(4)}")


def left(path: Path, kind: str) -> list[Path]:
    """What saves have left beside `path`, or are at work on; the oldest first."""
    found = []
    for entry in path.parent.glob(f".{glob.escape(path.name)}.{kind}-*"):
        if DEBRIS.fullmatch(entry.name) and not entry.is_symlink():
            with contextlib.suppress(OSError):  # gone
                found.append((entry.stat().st_ctime_ns, entry))
    return [entry for _, entry in sorted(found)]


def lock(descriptor: int, exclusive: bool) -> bool | None:
    """Take a lock that dies with the process. None where there are none: Windows, some network file systems."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN) else None
    return True


def release(descriptor: int | None) -> None:
    if descriptor is not None:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if the process has forked
        os.close(descriptor)


def pin(path: Path, exclusive: bool) -> int | None:
    """A descriptor of the folder that is at `path` now, locked, or not if PATIENCE ran out or there are no locks here.

    None for a folder that cannot be opened; FileNotFoundError if there is none.
    """
    end, pause = time.monotonic() + PATIENCE, 0.0005  # seconds
    while True:
        try:
            descriptor = os.open(recover(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its writer
        except FileNotFoundError:
            raise
        except OSError:
            return None
        try:
            got = lock(descriptor, exclusive)
            patient = time.monotonic() < end
            if os.path.samestat(os.fstat(descriptor), os.stat(path)) and not (got is False and patient):
                if got is False:
                    logger.warning("%s: another process has held it for %.0f s; going on without the lock", path, PATIENCE)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(pause)
        pause = min(1.05 * pause, 0.02)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool | None]:
    """Whether a leftover is of a dead process; if so, nobody else gets it until the end. None where that cannot be known."""
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield None if descriptor is None else lock(descriptor, exclusive=True)
    finally:
        release(descriptor)


def recover(target: Path) -> Path:
    """`target`, put back first if a save on a system without exchange died between its two renames. A living one gets time to end."""
    end = time.monotonic() + 2
    with contextlib.suppress(OSError, ValueError):  # someone else was faster, the disk is read-only, or it is no path at all
        place = Path(os.path.realpath(target))
        while place.name and not os.path.lexists(place) and (kept := left(place, "replaced")):
            with claim(kept[-1]) as dead:
                if dead or time.monotonic() > end:
                    kept[-1].rename(place)
                    break
            time.sleep(0.001)
    return target


def _identity(place: Path | int) -> tuple[int, int] | None:
    try:
        info = os.stat(place if isinstance(place, int) else recover(place))
    except (OSError, ValueError):
        return None
    return info.st_dev, info.st_ino


@contextlib.contextmanager
def reading(folder: PathLike) -> Iterator[Path]:
    """Read a checkpoint's folder (or file) as it is at one moment, while others save over it.

    A save waits until the last reader of the target has finished. Where locks do nothing, and where a save has lost its patience, the end of the
    block notices that the folder is another one now: it raises Replaced, also in place of an error of the block. Tensors that are mapped from the
    files stay what they are, whatever replaces the files. A folder that does not exist is not held.
    """
    folder, descriptor = Path(folder), None
    with contextlib.suppress(OSError, ValueError):
        descriptor = pin(folder, exclusive=False)
    before = _identity(folder if descriptor is None else descriptor)

    def replaced() -> bool:
        return before is not None and (now := _identity(folder)) is not None and now != before

    try:
        yield folder
    except Exception as error:
        if replaced():
            raise Replaced("The checkpoint was replaced while it was read.", where=folder, fix="Read it again.") from error
        raise
    else:
        if replaced():
            raise Replaced("The checkpoint was replaced while it was read.", where=folder, fix="Read it again.")
    finally:
        release(descriptor)


def read_whole(folder: PathLike, load: Callable[[Path], T]) -> T:
    """`load(folder)`, again if the folder was replaced meanwhile: the result is of the old checkpoint or of the new one. See `reading`.

    Raises Replaced if that never ends, and what `load` raises.
    """
    end, tries = time.monotonic() + PATIENCE, 0
    while True:
        tries += 1
        try:
            with reading(folder) as path:
                return load(path)
        except Replaced:
            if tries >= 3 and time.monotonic() > end:
                raise
