"""Saves that are killed: the folder is the old checkpoint or the new one, it loads, and the next save clears what was left."""

from __future__ import annotations
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import pytest
import torch
from darkroom import DiffusionPipeline
from darkroom.checkpoints import atomic
from darkroom.checkpoints.locks import read_whole, recover

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="savers are forks of this process")
EVENTS = frozenset("os.rename os.mkdir os.link os.remove os.rmdir os.chmod os.chown os.utime os.symlink".split())  # and open, to write
Files = dict[str, bytes]


class Saves:
    """Two checkpoints of one pipeline, with other values and other files; children save one over the other."""

    def __init__(self, base: Path, source: Path) -> None:
        self.base, self.target, self.backup = base / "work", base / "work" / "p", base / "backup"
        self.pipes = {kind: DiffusionPipeline.from_pretrained(source) for kind in ("old", "new")}
        with torch.no_grad():
            for parameter in self.pipes["new"].unet.parameters():
                parameter.add_(1)
        scheduler = self.pipes["new"].scheduler
        self.pipes["new"].scheduler = type(scheduler).from_config(scheduler.config, num_train_timesteps=500)
        self.files: dict[str, Files] = {}
        for kind in ("new", "old"):
            shutil.rmtree(self.target, ignore_errors=True)
            self.target.mkdir(parents=True)
            (self.target / "notes.txt").write_text("mine")
            self.save(kind)
            self.files[kind] = self.read()
            assert self.check(load=True) == kind
        assert self.files["old"].keys() != self.files["new"].keys()
        shutil.copytree(self.target, self.backup)

    def save(self, kind: str) -> None:
        self.pipes[kind].save_pretrained(self.target, max_shard_size="10GB" if kind == "old" else "50KB")

    def read(self) -> Files:
        return {p.relative_to(self.target).as_posix(): p.read_bytes() for p in self.target.rglob("*") if not p.is_dir()}

    def check(self, load: bool) -> str:
        """Which checkpoint is there: by every byte, and, where asked, by what it loads as."""
        pipe: Any = read_whole(self.target, DiffusionPipeline.from_pretrained) if load else None
        files = recover(self.target) and self.read()
        (kind,) = (kind for kind in self.files if self.files[kind] == files)
        if load:
            expected = self.pipes[kind].unet.state_dict()
            assert all(torch.equal(value, expected[name]) for name, value in pipe.unet.state_dict().items())
            assert len(pipe.scheduler) == len(self.pipes[kind].scheduler)
        return kind

    def start(self, work: Callable[[], None]) -> int:
        """The id of a process that does `work`."""
        pid = os.fork()
        if pid == 0:
            signal.alarm(120)  # no process is left over
            try:
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        return pid

    def end(self, pid: int, load: bool) -> tuple[str, int]:
        """What is there when the process has ended, and the signal that ended it."""
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status <= 0
        return self.check(load), -status

    def restore(self) -> None:
        """The old checkpoint, and no leftovers."""
        shutil.rmtree(self.base)
        shutil.copytree(self.backup, self.target)

    def finish(self) -> None:
        """A save after all those clears what they have left."""
        self.save("new")
        assert self.check(load=True) == "new" and os.listdir(self.base) == ["p"]


@pytest.mark.parametrize(
    ("source", "step"), [("tiny_ddpm", 5), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("tiny_ddpm", 1), ("tiny_sd", 3)))]
)
@pytest.mark.parametrize("system", ["exchange", "renames"])
def test_killed_at_every_operation(
    tmp_path: Path, source: str, step: int, system: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL before each operation that changes something on the disk, or makes it last."""
    if system == "renames":
        monkeypatch.setattr(atomic, "ctypes", SimpleNamespace(CDLL=lambda *_: None))  # a system without renameat2
    saves = Saves(tmp_path, request.getfixturevalue(source))

    def save_until(left: int) -> None:
        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in EVENTS or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
                count()

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: (count(), function(*args))[1]

        sys.addaudithook(hook)
        for name in ("fsync", "write", "close"):
            setattr(os, name, counted(getattr(os, name)))
        saves.save("new")

    found: list[str] = []
    for n in range(1, 1000, step):
        kind, killed_by = saves.end(saves.start(lambda n=n: save_until(n)), load=n % 10 == 0)
        found.append(kind)
        if not killed_by:
            break
        saves.restore()
        assert killed_by == signal.SIGKILL
    assert not killed_by and found == sorted(found, reverse=True)  # old to a certain operation, then new
    assert found.count("old") * step > 30 and found.count("new") * step > 10


@pytest.mark.parametrize("source", ["tiny_ddpm", "tiny_sd"])
def test_killed_in_the_middle_of_a_file(tmp_path: Path, source: str, request: pytest.FixtureRequest) -> None:
    resource = pytest.importorskip("resource")
    saves = Saves(tmp_path, request.getfixturevalue(source))

    def save(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills who writes beyond the limit
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        saves.save("new")

    for limit in sorted({len(content) - 1 for content in saves.files["new"].values()})[::2]:
        assert saves.end(saves.start(lambda limit=limit: save(limit)), load=False) == ("old", signal.SIGXFSZ)
    saves.finish()  # over the leftovers of them all


@pytest.mark.slow
@pytest.mark.parametrize("source", ["tiny_ddpm", "tiny_sd"])
def test_killed_at_random_moments(tmp_path: Path, source: str, request: pytest.FixtureRequest) -> None:
    saves = Saves(tmp_path, request.getfixturevalue(source))

    def save_on() -> None:
        for n in range(10_000):
            saves.save("old" if n % 2 else "new")

    saves.save("old")
    start = time.perf_counter()
    for content in ("new", "old"):
        saves.save(content)
    duration = (time.perf_counter() - start) / 2
    dice, found = random.Random(0), []
    for n in range(50):
        pid = saves.start(save_on)
        time.sleep(dice.uniform(0.3, 4.3) * duration)
        os.kill(pid, signal.SIGKILL)
        kind, killed_by = saves.end(pid, load=n % 2 == 0)
        found.append(kind)
        assert killed_by == signal.SIGKILL
    assert {"old", "new"} == set(found)
    saves.finish()
