"""Files out of a hub: each becomes visible when it is whole and right, and an interrupted download is taken up by whoever comes next."""

from __future__ import annotations
import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from ..errors import CheckpointError
from .files import size_of
from .remote import PATIENCE, Remote, Stopped, Transient

__all__ = ["check_digest", "download"]

_HERE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_WRONG = "A downloaded file is not the one that the hub lists: its digest differs."
_PART = re.compile(r"\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.incomplete$")
_OPEN: set[Path] = set()  # the parts that this process writes


def download(
    remote: Remote, url: str, blob: Path, lock: Path, *, size: int, digest: str, fresh: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> None:  # fmt: skip
    """Download a file of known size and digest to `blob`; of several processes one downloads.

    Args:
        lock: the file that huggingface_hub locks for this one.
        digest: SHA-256 of the content, or git's SHA-1 of a blob, in hexadecimal.
        fresh: take neither a file that is there nor what an interrupted download left.
        advance: told the bytes as they come, also negative where some turned out wrong.
    """
    with _turn(lock, blob, remote.stop):
        if not fresh and size_of(blob) == size:
            return advance(size)
        for again in (False, True):
            part = _claim(blob, adopt=not fresh and not again)
            _OPEN.add(part)
            try:
                if _fill(remote, url, part, size, digest, advance):
                    return os.replace(part, blob)
                part.unlink()
                advance(-size)
            except OSError as error:
                if isinstance(error, CheckpointError):
                    raise
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                what = "The disk is full." if full else "A downloaded file cannot be written."
                raise CheckpointError(what, where=blob.parent, got=error.strerror, fix="Make room, or pass another cache_dir=.") from None
            finally:
                _OPEN.discard(part)
                with contextlib.suppress(OSError):  # it is gone already, or is left for whoever comes next
                    if part.stat().st_size:
                        os.replace(part, blob.with_name(f"{blob.name}.incomplete"))
                    else:
                        part.unlink()
    raise CheckpointError(_WRONG, where=remote.where, got=url, expected=digest, fix="Try again later.")


def _fill(remote: Remote, url: str, part: Path, size: int, digest: str, advance: Callable[[int], None]) -> bool:
    """Complete a file of which there may be a beginning. Returns whether its digest is right."""
    with open(part, "r+b" if part.exists() else "w+b", buffering=0) as file:
        have, state = os.fstat(file.fileno()).st_size, _hash(digest, size)
        if have > size:
            file.truncate(have := 0)
        while chunk := file.read(1 << 20):
            state.update(chunk)
        advance(have)

        def restart() -> None:
            nonlocal have, state
            file.seek(0)
            file.truncate()
            advance(-have)
            have, state = 0, _hash(digest, size)

        def read(answer: Any) -> None:
            nonlocal have
            headers = answer.headers
            plain = headers.get("Content-Encoding", "identity") == "identity"
            announced = headers.get("Content-Length", "")
            if "text/html" in headers.get("Content-Type", "") and not url.endswith((".html", ".htm")):
                what = "The hub answered with a web page instead of a file: another server may have answered in its place."
                raise CheckpointError(what, where=remote.where, got=url, fix="Check the connection: a network may want a login.")
            if answer.status_code == 206 and not (plain and headers.get("Content-Range", "").startswith(f"bytes {have}-")):
                restart()
                raise Transient("it answers with another part of the file than the one asked for")
            if answer.status_code == 200 and have:
                restart()  # it ignores ranges
            if plain and announced.isdigit() and int(announced) != size - have:
                raise Transient(f"it announces {announced} bytes of a file where {size - have} are due")
            for chunk in answer.iter_bytes():
                if remote.stop.is_set():
                    raise Stopped
                if have + len(chunk) > size:
                    restart()
                    raise Transient(f"a file is longer than the {size} bytes that are listed")
                file.write(chunk)
                state.update(chunk)
                have += len(chunk)
                advance(len(chunk))
            if have < size:
                raise Transient(f"a file ends after {have} of {size} bytes")

        if have < size:
            remote.ask(url, read, span=lambda: f"bytes={have}-" if have else None, progress=lambda: have)
        os.fsync(file.fileno())
        return state.hexdigest() == digest


def _hash(digest: str, size: int) -> Any:
    """The hash that `digest` is of: SHA-256 of the content, or SHA-1 of git's header and the content."""
    return hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def check_digest(path: Path, where: str) -> None:
    """Compare a file of the cache with the SHA-256 that its blob is named by; other names say nothing. A wrong one is removed."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        with open(blob, "rb") as file:
            right = hashlib.file_digest(file, "sha256").hexdigest() == blob.name
        if not right:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise CheckpointError(_WRONG, where=where, got=path.name, expected=blob.name, fix="Try again later.")


def _abandoned(part: Path) -> bool:
    """Whether nobody writes this part: it was given up, its process has ended, or it has not grown for long."""
    match = _PART.search(part.name)
    if match and match["host"] == _HERE and int(match["pid"]) == os.getpid():
        return part not in _OPEN  # of a process before this one that had its number, as happens in containers
    if match and match["host"] == _HERE and os.name != "nt":  # on Windows os.kill would end the process
        try:
            os.kill(int(match["pid"]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
    elif not match and part.name.count(".") == 1:
        return True
    return time.time() - part.stat().st_mtime > 10 * PATIENCE


def _claim(blob: Path, adopt: bool) -> Path:
    """A name for a part of this file that is this call's alone; with `adopt` the longest abandoned part gets it, the others are removed.

    Two calls never write one part, not even where locks do nothing: a rename has one winner.
    """
    own = blob.with_name(f"{blob.name}.{_HERE}-{os.getpid()}-{secrets.token_hex(4)}.incomplete")
    parts: list[tuple[int, Path]] = []
    for part in blob.parent.glob(f"{blob.name}*.incomplete"):
        with contextlib.suppress(OSError):
            if _abandoned(part):
                parts.append((part.stat().st_size, part))
    for _, part in sorted(parts, reverse=True):
        with contextlib.suppress(OSError):
            if adopt and not own.exists():
                part.rename(own)
            else:
                part.unlink()
    return own


@contextlib.contextmanager
def _turn(path: Path, blob: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the lock that huggingface_hub takes for this file. A holder whose part no longer grows is not waited for."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    with contextlib.ExitStack() as stack:
        moved = time.time()
        while True:
            if stop.is_set():
                raise Stopped
            try:
                stack.enter_context(WeakFileLock(path, timeout=1))
                break
            except Timeout:
                for part in blob.parent.glob(f"{blob.name}*.incomplete"):
                    with contextlib.suppress(OSError):
                        moved = max(moved, part.stat().st_mtime)
                if time.time() - moved > PATIENCE:
                    break
        yield
