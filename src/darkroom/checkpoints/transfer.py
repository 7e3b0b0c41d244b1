"""Bytes of files into tensors: memory in arenas, pieces read and cast by several threads, staging for devices."""

from __future__ import annotations
import ctypes
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
import torch
from torch import Tensor
from ..errors import CheckpointError, InputError
from .safetensors import DAMAGED, Entry

__all__ = ["Transfer", "allocate", "finite", "on_network", "transfer", "workers"]

PIECE = 2**20  # bytes of file that a thread reads at a time: they stay in the cache of its core until they are cast
RUN = 8 * PIECE  # bytes that it takes in a row: two threads in one huge page would both clear it
STAGE = 16 * 2**20  # bytes that are copied to a device at a time
SMALL = 4 * 2**20  # bytes that are not worth another thread
FEW = 2**17  # bytes up to which tensors are read and cast together with their neighbours
ARENA = 64 * 2**20  # bytes that are allocated at once; what is replaced piece by piece, as by Module.to, is freed in such steps
HUGE = 2 * 2**20  # bytes of a huge page
CLEARED = 2**16  # bytes from which on it pays to ask the kernel
DEAR = 1e-3  # seconds of a processor for a huge page; 0.1e-3 is usual, and 0.5e-3 the price of as many small ones
MADV_HUGEPAGE, MADV_POPULATE_WRITE = 14, 23
_SEEKING = threading.Lock()
NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph")


def workers() -> int:
    """Threads that read weights: HF_PARALLEL_LOADING_WORKERS, or as many as there are processors, up to 8.

    One if HF_ENABLE_PARALLEL_LOADING is NO, 0, OFF or FALSE. Both are read at every call. Raises InputError for what is no such number.
    """
    if os.environ.get("HF_ENABLE_PARALLEL_LOADING", "").upper() in ("NO", "0", "OFF", "FALSE"):
        return 1
    given = os.environ.get("HF_PARALLEL_LOADING_WORKERS", "")
    if not given:
        return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= 256:
        raise InputError("Not a number of threads.", where="HF_PARALLEL_LOADING_WORKERS", got=given, expected="1 to 256")
    return int(given)


def on_network(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a file lies where every page of a mapping would be a request of its own. False where nobody can tell."""
    with suppress(OSError):
        number = os.stat(path).st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        for line in mounts.read_text("utf-8", "surrogateescape").splitlines():
            left, _, right = line.partition(" - ")
            if left.split(" ")[2:3] == [device]:
                return right.startswith(NETWORK)
    return False


def allocate(wanted: Iterable[tuple[torch.Size, torch.dtype]], device: torch.device) -> Iterator[Tensor]:
    """Uninitialised tensors. On the CPU they lie side by side in arenas, each in a storage of its own."""
    group: list[tuple[torch.Size, torch.dtype, int]] = []
    end = 0
    for shape, dtype in wanted:
        nbytes = shape.numel() * dtype.itemsize
        if device.type != "cpu":
            yield torch.empty(shape, dtype=dtype, device=device)
            continue
        if group and end + nbytes > ARENA:
            yield from _arena(group, end)
            group, end = [], 0
        group.append((shape, dtype, end))
        end += -(-nbytes // 64) * 64  # as torch aligns what it allocates
    yield from _arena(group, end)


def _arena(group: list[tuple[torch.Size, torch.dtype, int]], nbytes: int) -> Iterator[Tensor]:
    large = nbytes >= CLEARED  # then it has its huge pages to itself: what is not written to takes no memory
    storage = torch.UntypedStorage(nbytes + (2 * HUGE if large else 0))
    begin = -storage.data_ptr() % HUGE if large else 0
    for shape, dtype, offset in group:
        part = storage[begin + offset : begin + offset + shape.numel() * dtype.itemsize]
        yield torch.empty(0, dtype=dtype, device="cpu").set_(part, 0, shape)  # type: ignore[call-overload]


class _Pages:
    """Has the kernel clear memory just before it is written to, in huge pages as long as they come cheap.

    Page faults cost more than reading and casting, and huge ones a fourth of small ones. But where free memory is in pieces, or a virtual machine's
    host has taken it back, a huge page costs ten times as much: after a few of those the rest is left to small ones.
    """

    def __init__(self) -> None:
        self.patience = 4
        self.advise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None

    def clear(self, target: Tensor) -> None:
        begin, end = target.data_ptr(), target.data_ptr() + target.nbytes
        if self.advise is None or end - begin < CLEARED:
            return
        if self.patience > 0:
            first = begin // HUGE * HUGE
            self.advise(ctypes.c_void_p(first), ctypes.c_size_t(-(-end // HUGE) * HUGE - first), MADV_HUGEPAGE)
        first, began = -(-begin // 4096) * 4096, time.thread_time()
        self.advise(ctypes.c_void_p(first), ctypes.c_size_t(end // 4096 * 4096 - first), MADV_POPULATE_WRITE)
        if time.thread_time() - began > DEAR * (1 + (end - begin) // HUGE):
            self.patience -= 1


@dataclass(frozen=True)
class Transfer:
    """One tensor's way: `entry` of an open file into `target`, which has as many elements, in order, and the final dtype and device."""

    name: str
    path: Path
    file: BinaryIO
    entry: Entry
    target: Tensor

    def read(self, view: memoryview, offset: int = 0) -> None:
        """Fill a buffer with the bytes of the file from `offset` of this tensor."""
        offset += self.entry.offset
        while view:
            try:
                if hasattr(os, "preadv"):
                    count = os.preadv(self.file.fileno(), [view], offset)
                else:
                    with _SEEKING:
                        self.file.seek(offset)
                        count = self.file.readinto(view)  # type: ignore[attr-defined]
            except OSError as error:
                raise CheckpointError("A weight file that cannot be read.", where=self.path, got=error.strerror) from None
            if not count:
                raise CheckpointError("A weight file that became shorter while it was read.", where=self.path, fix=DAMAGED)
            view, offset = view[count:], offset + count

    def in_order(self) -> Tensor:
        """The tensor, flat, as the file has it, where the file has its elements in another order."""
        source = torch.empty(self.entry.span // self.entry.dtype.itemsize, dtype=self.entry.dtype, device="cpu")
        self.read(_bytes(source))
        return source.as_strided(self.entry.shape, self.entry.stride or ()).reshape(-1)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def finite(source: Tensor, cast: Tensor | None = None) -> bool:
    """Whether all values of a tensor, and of what it was cast to, are finite, at the cost of a sum. float8 counts as finite."""
    cast = source if cast is None else cast
    if cast.dtype == torch.float16 and source.itemsize > 2:
        low, high = source.aminmax()
        return bool(low >= -65504 and high <= 65504) or bool(cast.isfinite().all())
    known = source if source.itemsize > 1 else cast
    if not known.is_floating_point() or known.itemsize == 1 or not known.numel():
        return True
    return math.isfinite(known.sum(dtype=torch.float32 if known.itemsize < 4 else None)) or bool(known.isfinite().all())


def _serial() -> None:
    """Keep torch's operations in this thread: its threads under each of ours would only get in each other's way."""
    torch.get_num_threads()  # sets this thread's number, for the first and last time
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).omp_set_num_threads(1)  # of this thread; torch's own function sets everyone's


Run = tuple[Transfer, int, int]  # elements from, to
Batch = list[Transfer]  # neighbours of one dtype, before and after, that are small


def transfer(jobs: Iterable[Transfer], progress: Callable[[int], object] | None = None) -> list[str]:
    """Read and cast tensors. Returns the names of those that hold, or were cast to, values that are not finite.

    Runs are taken in order by `workers()` threads. `progress` is called with the number of bytes of each piece, one call at a time. Raises
    CheckpointError if a file cannot be read or has become shorter.
    """
    jobs = [job for job in jobs if job.entry.nbytes]
    device = jobs[0].target.device if jobs else torch.device("cpu")
    runs = _runs(jobs, device)
    pages = _Pages()
    wrong: dict[str, None] = {}
    lock, count = threading.Lock(), min(workers(), -(-sum(job.entry.nbytes for job in jobs) // SMALL))
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def work() -> None:
        with torch.no_grad():
            for job, nbytes, good in _through_device(runs, device, stream) if stream else _through_cache(runs, pages):
                if not good:
                    wrong[job.name] = None
                if progress is not None:
                    with lock:
                        progress(nbytes)

    if count <= 1:
        work()
    else:
        with ThreadPoolExecutor(count, "darkroom-read", _serial) as pool:
            try:
                for future in [pool.submit(work) for _ in range(count)]:
                    future.result()
            finally:
                runs.clear()  # after an error the others end, too
    if stream:
        floating = [job for job in jobs if job.target.is_floating_point() and job.target.itemsize > 1]
        sums = torch.stack([job.target.sum(dtype=torch.float32) for job in floating]) if floating else torch.empty(0)
        wrong |= {job.name: None for job, good in zip(floating, sums.isfinite().tolist()) if not good}
    return list(wrong)


def _runs(jobs: Iterable[Transfer], device: torch.device) -> deque[Run | Batch]:
    """The work in pieces, each a Run or, on the CPU, a Batch."""
    runs: deque[Run | Batch] = deque()
    batch: Batch = []
    for job in jobs:
        entry, total = job.entry, job.target.numel()
        if device.type == "cpu" and entry.nbytes <= min(FEW, PIECE) and not entry.stride:
            before = batch[-1] if batch else job
            follows = batch and before.entry.offset + before.entry.nbytes == entry.offset and before.path == job.path
            alike = before.entry.dtype == entry.dtype and before.target.dtype == job.target.dtype
            if not (follows and alike) or entry.offset + entry.nbytes - batch[0].entry.offset > PIECE:
                runs.append(batch := [])
            batch.append(job)
            continue
        step = total if entry.stride else (STAGE if device.type == "cuda" else RUN) // entry.dtype.itemsize
        runs.extend((job, begin, min(begin + step, total)) for begin in range(0, total, step))
    return runs


def _taken(runs: deque[Any]) -> Iterator[Any]:
    with suppress(IndexError):
        while True:
            yield runs.popleft()


def _at_once(batch: Batch, view: memoryview, buffer: Tensor) -> Iterator[tuple[Transfer, int, bool]]:
    sizes, first = [job.target.numel() for job in batch], batch[0]
    nbytes = sum(job.entry.nbytes for job in batch)
    first.read(view[:nbytes])
    source = buffer[:nbytes].view(first.entry.dtype)
    made = source.to(first.target.dtype)
    good = finite(source, made)
    for job, read, cast in zip(batch, source.split(sizes), made.split(sizes)):
        job.target.view(-1).copy_(cast)
        yield job, job.entry.nbytes, good or finite(read, cast)


def _through_cache(runs: deque[Run | Batch], pages: _Pages) -> Iterator[tuple[Transfer, int, bool]]:
    buffer = torch.empty(PIECE, dtype=torch.uint8, device="cpu")
    view = _bytes(buffer)
    for run in _taken(runs):
        if isinstance(run, list):
            yield from _at_once(run, view, buffer)
            continue
        job, first, last = run
        kind, here = job.entry.dtype, job.target.device.type == "cpu"
        step = last if job.entry.stride else PIECE // kind.itemsize
        for begin in range(first, last, step):
            target = job.target.view(-1)[begin : min(begin + step, last)]
            nbytes = target.numel() * kind.itemsize
            if here:
                pages.clear(target)
            if job.entry.stride:
                source = job.in_order()
            elif here and kind == target.dtype:
                source = target
                job.read(_bytes(target), begin * kind.itemsize)
            else:
                source = buffer[:nbytes].view(kind)
                job.read(view[:nbytes], begin * kind.itemsize)
            if source is not target:
                target.copy_(source)
            yield job, nbytes, finite(source, target)


def _through_device(runs: deque[Any], device: torch.device, before: torch.cuda.Stream) -> Iterator[tuple[Transfer, int, bool]]:
    """Two pinned buffers in turn: one is filled while the other is copied and cast on the device."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(before)  # the allocator may have given out what is still in use there
    pinned = [torch.empty(STAGE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    with torch.cuda.stream(stream):
        staged = [torch.empty(STAGE, dtype=torch.uint8, device=device) for _ in range(2)]
    done = [torch.cuda.Event(), torch.cuda.Event()]
    for turn, (job, begin, end) in enumerate(_taken(runs)):
        entry, target = job.entry, job.target.view(-1)[begin:end]
        nbytes = (end - begin) * entry.dtype.itemsize
        with torch.cuda.stream(stream):
            if entry.stride:
                target.copy_(job.in_order())
            else:
                slot = turn % 2
                done[slot].synchronize()
                job.read(_bytes(pinned[slot][:nbytes]), begin * entry.dtype.itemsize)
                raw = target.view(torch.uint8) if entry.dtype == target.dtype else staged[slot][:nbytes]
                raw.copy_(pinned[slot][:nbytes], non_blocking=True)
                if entry.dtype != target.dtype:
                    target.copy_(raw.view(entry.dtype))
                done[slot].record(stream)
        yield job, nbytes, True
    stream.synchronize()
