"""Folders that are written whole or not at all: beside their target, put in its place by one exchange."""

from __future__ import annotations
import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from ..errors import CheckpointError
from .files import PathLike
from .locks import DEBRIS, beside, claim, left, pin, recover, release
from .plan import parse_weight_name

__all__ = ["save_folder_atomic", "write_text_atomic"]

DAY = 86400  # seconds after which a leftover is one, where no lock can tell
_AT_CWD, _EXCHANGE = -100, 2  # of renameat2
_NO_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR)  # of file systems that sync files only
_FIXES = {
    errno.ENOSPC: "Free some space: the old checkpoint and the new one both need room until the new one is whole.",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "The folder and the one that holds it must be open to writing: choose another."
    ),
    errno.EBUSY: "The folder cannot be renamed, as if a disk were mounted on it: choose a new folder inside it.",
}
_filling: set[Path] = set()  # temporary folders of this process: what is saved inside one is synced with it


def _refused(path: Path, error: OSError) -> CheckpointError:
    got, fix = error.strerror or str(error), _FIXES.get(error.errno or 0)
    return CheckpointError("The checkpoint cannot be written here.", where=path, got=got, fix=fix)


def _os_error(error: Exception) -> OSError | None:
    """The operating system's error behind an exception; safetensors and tokenizers have it in their text."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return error if isinstance(error, OSError) else OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise


def _sync_files(folder: Path, done: set[Path]) -> None:
    """Sync all files below a folder that are not `done`."""
    for top, _, names in os.walk(folder):
        for path in (Path(top, name) for name in names):
            if path not in done and path.is_file() and not path.is_symlink():
                _sync(path)
                done.add(path)


def _nested(path: Path) -> bool:
    return not _filling.isdisjoint((path, *path.parents))


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if path.is_dir():
        for folder, names, _ in os.walk(path):  # read-only folders are in the way
            for name in (".", *names):
                if not os.path.islink(inner := os.path.join(folder, name)):
                    with contextlib.suppress(OSError):
                        os.chmod(inner, 0o700)
        shutil.rmtree(path, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what saves that were killed have left beside `path`."""
    for kind in ("saving", "replaced"):
        for found in left(path, kind):
            with contextlib.suppress(OSError), claim(found) as dead:
                info = found.stat()
                old = time.time() - max(info.st_mtime, info.st_ctime) > DAY
                if (old if dead is None or not found.is_dir() else dead) and (kind == "saving" or os.path.lexists(path)):
                    _remove(found) if found.is_dir() else found.unlink()


def write_text_atomic(path: PathLike, text: str) -> None:
    """Write a UTF-8 text file; at any moment the path holds the old text or the new one. Raises CheckpointError where it may not."""
    path = Path(os.path.abspath(path))
    part, durable = beside(path, "saving"), not _nested(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            _sweep(path)
        try:
            part.write_text(text, encoding="utf-8", newline="\n")
            if durable:
                _sync(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        if not durable:
            raise
        raise _refused(path, error) from None


def _exchange(new: Path, target: Path) -> None:
    """Put `new` in the place of the folder `target`; afterwards `new` is the old one."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if exchange is not None and exchange(_AT_CWD, os.fsencode(new), _AT_CWD, os.fsencode(target), _EXCHANGE) == 0:
        return
    kept = beside(target, "replaced")
    os.utime(target)  # where there are no locks, its age says that it is no leftover
    target.rename(kept)  # from here to the next line, `recover` is what keeps the promise
    try:
        new.rename(target)
    except BaseException:
        try:
            kept.rename(target)
        except OSError:  # another save was faster: it has put its own there, or has put this one back
            if target.exists():
                _remove(kept)
        raise
    kept.rename(new)


def _link(source: str | Path, copy: str | Path) -> None:
    try:
        os.link(source, copy, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, copy, follow_symlinks=False)


def _carry_over(old: Path, new: Path, carried: list[Path], written_anew: bool = False) -> None:
    """Give the new folder the files of the old one that it does not replace, as hard links where possible; `carried` gets what was made.

    Weights of the same name and variant are replaced whole, whatever their number of shards and format. A component's folder that was written
    anew keeps of the old one only weights of other variants.
    """
    replaced = {(w.stem, w.variant) for name in os.listdir(new) if (w := parse_weight_name(name))}
    for source in old.iterdir():
        copy, weight = new / source.name, parse_weight_name(source.name)
        folder = source.is_dir() and not source.is_symlink()
        if os.path.lexists(copy):
            if folder and copy.is_dir():
                _carry_over(source, copy, carried, written_anew=True)
            continue
        if ((weight.stem, weight.variant) in replaced if weight else written_anew) or DEBRIS.fullmatch(source.name):
            continue
        carried.append(copy)
        if folder:
            copy.mkdir()
            _carry_over(source, copy, carried)
            shutil.copystat(source, copy)
        else:
            _link(source, copy)


def _read_only(folder: Path) -> bool:
    """Whether a folder that stays where it is may not be written: one that another save takes away can be."""
    with contextlib.suppress(OSError):
        info = folder.stat()
        closed = not (info.st_mode & 0o222 and os.access(folder, os.W_OK))
        return closed and os.path.samestat(info, folder.stat())
    return False


def _working_folder(within: Path) -> Path | None:
    with contextlib.suppress(OSError):
        here = Path.cwd()
        return here if here.is_relative_to(within) else None
    return None


def _publish(new: Path, target: Path, durable: bool) -> None:
    """Put the folder `new` at `target`, with what it carries over. If there was one, it is at `new` afterwards."""
    synced: set[Path] = set()
    if durable:
        _sync_files(new, synced)  # what takes long goes before the lock
    for last in (*[False] * 9, True):
        held, carried = None, list[Path]()
        try:
            if exists := recover(target).exists():
                held = pin(target, exclusive=True) if durable else None
                _carry_over(target, new, carried)
            if durable:
                _sync_files(new, synced)
                for folder, _, _ in os.walk(new, topdown=False):
                    _sync_folder(Path(folder))
            if exists:
                here = _working_folder(target)
                _exchange(new, target)
                if here is not None:
                    with contextlib.suppress(OSError):  # it was not carried over
                        os.chdir(here)
            else:
                new.rename(target)
            return
        except OSError as error:
            if last or error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):  # another save came or went meanwhile
                raise
            for path in reversed(carried):
                with contextlib.suppress(OSError):
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        finally:
            release(held)


def _temporary(target: Path, durable: bool) -> tuple[Path, int | None]:
    """A new folder beside `target`, with its owner and mode, and the lock that keeps `_sweep` away from it."""
    while True:
        temporary = beside(target, "saving")
        temporary.mkdir()
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked
            lock = pin(temporary, exclusive=True) if durable else None
            if target.is_dir():
                info = target.stat()
                for owner in ((-1, info.st_gid), (info.st_uid, -1)):
                    with contextlib.suppress(OSError, AttributeError):
                        os.chown(temporary, *owner)
                temporary.chmod(stat.S_IMODE(info.st_mode) | stat.S_IRWXU)
            return temporary, lock


@contextlib.contextmanager
def save_folder_atomic(target: PathLike) -> Iterator[Path]:
    """A temporary folder beside `target` to write a checkpoint in; on success it takes the target's place at once.

    A crash at any moment leaves the old checkpoint or the new one, an exception the old one. Files that the new one does not replace stay, such as
    other variants. Inside the temporary folder of another save it is a part of that one. A target that somebody is `reading` is replaced when they
    have finished, or after PATIENCE. Raises CheckpointError if the target is a file, or it or its parent may not be written.
    """
    target, temporary, lock, durable = Path(target), None, None, True
    try:
        try:
            target = recover(target).resolve()
        except (ValueError, RuntimeError) as error:  # a null character, links in a circle
            raise CheckpointError("No path.", where=repr(target), got=str(error)) from None
        durable = not _nested(target)
        if target in _filling:
            yield target
            return
        if not target.name or (target.exists() and not target.is_dir()):
            raise CheckpointError("Not a folder that can be replaced.", where=target, fix="Choose another name.")
        if target.is_dir() and _read_only(target):
            raise PermissionError(errno.EACCES, "a read-only folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            _sweep(target)
        temporary, lock = _temporary(target, durable)
        _filling.add(temporary)
        yield temporary
        _publish(temporary, target, durable)
        if durable:
            with contextlib.suppress(OSError):  # it is in place
                _sync_folder(target.parent)
    except Exception as error:
        if isinstance(error, CheckpointError) or not durable or (found := _os_error(error)) is None:
            raise
        raise _refused(target, found) from None
    finally:
        release(lock)
        if temporary is not None:
            _filling.discard(temporary)
            _remove(temporary)
