"""How things are measured: interleaved rounds, paired ratios, fresh processes, the facts of the machine."""

from __future__ import annotations
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

__all__ = ["LIBRARIES", "ROOT", "Options", "Row", "clock", "fresh", "interleave", "machine", "share"]

Options = argparse.Namespace  # quick, device, threads
ROOT = Path(__file__).parent.parent
LIBRARIES = ("darkroom", "diffusers")


@dataclass
class Row:
    """One line of the table: samples of ours and of the reference, in the order of the rounds.

    `limit` bounds the ratio ours / theirs, or, with `absolute`, our own median in `unit`.
    """

    what: str
    ours: Sequence[float]
    theirs: Sequence[float] | None = None
    unit: str = "s"
    limit: float | None = None
    absolute: bool = False
    note: str = ""

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Median and middle half of the rounds' ratios; None where there is nothing to divide by."""
        if not self.theirs or min(self.theirs) <= 0:
            return None
        ratios = [a / b for a, b in zip(self.ours, self.theirs, strict=True)]
        low, mid, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return mid, low, high

    @property
    def met(self) -> bool | None:
        value = median(self.ours) if self.absolute else self.ratio and self.ratio[0]
        return None if self.limit is None or value is None else value <= self.limit

    def cells(self) -> list[str]:
        target = "" if self.limit is None else f"≤ {self.limit:g} {self.unit if self.absolute else 'x'}"
        ratio = "{:.3f} ({:.3f} to {:.3f})".format(*self.ratio) if self.ratio else ""
        values = [f"{median(v):.4g} {self.unit}" if v else "" for v in (self.ours, self.theirs)]
        return [self.what, *values, ratio, target, {None: "", True: "yes", False: "**no**"}[self.met], self.note]


def interleave(
    candidates: Mapping[str, Callable[[], float]], rounds: int, budget: float = float("inf"), warm_up: bool = True
) -> dict[str, list[float]]:
    """Each candidate's values, one per round; every second round runs backwards. Past `budget` seconds no round beyond the third begins."""
    if warm_up:
        for run in candidates.values():
            run()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    began = time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - began > budget:
            break
        for name in list(candidates)[:: -1 if i % 2 else 1]:
            samples[name].append(candidates[name]())
    return samples


def clock(run: Callable[[], Any], device: str = "cpu") -> Callable[[], float]:
    """A candidate: the seconds that `run` takes, work queued on the device included."""
    import torch

    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def timed() -> float:
        wait()
        began = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - began

    return timed


def share(samples: Sequence[float], parts: int) -> list[float]:
    """The samples in milliseconds, for one of `parts` equal parts."""
    return [1e3 * s / parts for s in samples]


def fresh(arguments: Sequence[str], options: Options) -> tuple[float, float, str]:
    """Run Python in a new process. Seconds from start to end, peak memory in MB, the last line it printed.

    Raises:
        RuntimeError: the process failed; holds the end of what it said.
    """
    paths = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=err, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if child.returncode:
            raise RuntimeError(f"{' '.join(arguments)[:200]} ended with {child.returncode}: {err.read()[-800:]}")
        return seconds, usage.ru_maxrss / 1024, (out.read().splitlines() or [""])[-1]


def machine(options: Options) -> dict[str, Any]:
    """The facts that figures depend on. Read before anything is run: it includes the load at the start."""
    load = os.getloadavg()[0]
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
    facts = {"cpu": found[1] if found else "unknown", "cores": os.cpu_count(), "threads": options.threads, "device": options.device}
    if options.device.startswith("cuda"):
        import torch

        facts["gpu"] = torch.cuda.get_device_name(options.device)
    facts |= {name: version(name) for name in ("torch", "transformers", "diffusers")}
    return facts | {"python": sys.version.split()[0], "load at start": load, "idle": load < 0.3}
