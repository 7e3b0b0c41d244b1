"""Every checkpoint of the corpus loads or is refused as it has to be, and nothing else happens.

That is: no code, no traces, no secrets in messages, bounded time and memory.

A process per group loads the library once and forks for every case. The fork has a limit of memory and a deadline; hooks of Python and of the kernel
tell what it did. By hand: python tests/checkpoints/test_hostile.py GROUP [PART OF A NAME].
"""

from __future__ import annotations
import ctypes
import dataclasses
import gc
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any
import pytest
from checkpoints.hostile import CANARY, CONTROLS, GROUPS, TOKEN, Case

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks the kernel which files are opened")

SECONDS, MEMORY, LONGEST = 10, 1_500_000_000, 2000  # of one case: wall time, bytes beyond those of the library, characters of a message
PROCESS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen")
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request", "http.client.connect")
BAIT = ("evil", "wsgiref", "http.server", "None", "pipeline", "unet")  # modules that only a file of the corpus asks for
OUT_OF_MEMORY = re.compile(r"MemoryError|[Cc]an(?:no|')t allocate memory|std::bad_alloc|out of memory")
IN_OPEN, IN_ACCESS, IN_NONBLOCK = 0x20, 0x1, 0o4000


# The fork: load, and say what came of it


@dataclasses.dataclass
class Result:
    outcome: str = ""  # "loaded", or the names of the error's classes
    message: str = ""
    seconds: float = 0.0
    memory: int = 0  # bytes
    log: str = ""
    faults: list[str] = dataclasses.field(default_factory=list)


def listen(area: Path, faults: list[str]) -> None:
    """From here on note processes, connections, imports of bait and code out of the area."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in PROCESS:
            faults.append(f"a process: {event} {args!r}"[:200])
        elif event in NETWORK:
            faults.append(f"the network: {event} {args[1:]!r}"[:200])
        elif event == "import" and str(args[0]).split(".")[0] in BAIT:
            faults.append(f"an import: {args[0]}")
        elif event == "exec" and str(getattr(args[0], "co_filename", "")).startswith(str(area)):
            faults.append(f"code of the folder: {args[0].co_filename}")

    sys.addaudithook(hook)


def differs(pipe: Any, good: Any) -> list[str]:
    """What of a pipeline or network is not as in the undamaged one."""
    from torch import nn

    found = []
    parts = [("", pipe, good)] if isinstance(pipe, nn.Module) else [(n, getattr(pipe, n, None), c) for n, c in good.components.items()]
    for name, part, wanted in parts:
        if isinstance(wanted, nn.Module):
            state, other = dict(part.state_dict()), wanted.state_dict()
            if state.keys() != other.keys() or not all(state[k].dtype == t.dtype and state[k].equal(t) for k, t in other.items()):
                found.append(f"{name}: other weights")
        elif hasattr(wanted, "get_vocab") and part("the red cat").input_ids != wanted("the red cat").input_ids:
            found.append(f"{name}: other tokens")
    return found


def check(case: Case, pipe: Any, good: Any, faults: list[str]) -> None:
    import numpy as np
    from torch import nn

    parts = [pipe] if isinstance(pipe, nn.Module) else [c for c in getattr(pipe, "components", {}).values() if isinstance(c, nn.Module)]
    if empty := [name for part in parts for name, t in part.state_dict().items() if t.is_meta]:
        faults.append(f"tensors without values: {empty[:3]}")
    if case.same:
        good = good.unet if case.cls == "UNet2DConditionModel" else good
        faults += differs(pipe, good)
    if case.check is not None and not case.check(pipe):
        faults.append("the check fails")
    if case.step:
        options = {"output_type": "np", "num_inference_steps": 1} | ({} if case.base == "ddpm" else {"prompt": "the red cat"})
        if not np.isfinite(pipe(**options).images).all():
            faults.append("a picture that is not finite")


def options_of(case: Case) -> dict[str, Any]:
    import torch

    def dtype(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: dtype(v) for k, v in value.items()}
        return getattr(torch, value.removeprefix("dtype:")) if isinstance(value, str) and value.startswith("dtype:") else value

    return {name: dtype(value) if "dtype" in name else value for name, value in case.options.items()}


def attempt(case: Case, folder: Path, area: Path, good: Any) -> Result:
    """Load, in a process of its own."""
    import darkroom

    result, log = Result(), []
    handler = logging.Handler()
    handler.emit = lambda record: log.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("darkroom").addHandler(handler)
    options, cls, source = options_of(case), getattr(darkroom, case.cls), case.source(folder)
    os.environ.update(case.env)
    os.chdir(folder if case.inside else area / "here")
    if case.inside:
        sys.path.insert(0, "")
    status = Path("/proc/self/statm").read_text().split()
    size = int(status[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    result.memory = -int(status[1]) * resource.getpagesize()
    listen(area, result.faults)
    begin = time.monotonic()
    try:
        pipe = case.naive(folder) if case.naive else cls.from_pretrained(source, **options)
        result.outcome = "loaded"
        if case.must == "load":
            check(case, pipe, good, result.faults)
    except BaseException as error:
        result.outcome, result.message = " ".join(c.__name__ for c in type(error).__mro__), str(error)
        chain: Any = error
        while chain is not None:
            if OUT_OF_MEMORY.search(f"{type(chain).__name__}: {chain}"):
                result.faults.append("out of memory")
            chain = chain.__cause__ or chain.__context__
        if "DarkroomError" not in result.outcome:
            result.faults.append("".join(traceback.format_exception(error))[-600:])
    result.seconds, result.log = time.monotonic() - begin, "\n".join(log)
    return result


# The process of a group: a folder for each case, a fork, and what it left


def tree(area: Path) -> dict[str, tuple[Any, ...]]:
    """Everything in the area, links not followed."""
    found = {}
    for folder, folders, names in os.walk(os.fsencode(area)):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            about = os.lstat(path)
            kind = about.st_mode if os.path.isdir(path) else (about.st_mode, about.st_size, about.st_mtime_ns)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(area)))] = (kind, os.readlink(path) if os.path.islink(path) else "")
    return found


class Watch:
    """Whether a file in a folder, or in one below it, is opened or read: the kernel knows, whatever the language of the reader."""

    def __init__(self, folder: Path):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self.libc.inotify_init1(IN_NONBLOCK)
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())):
            if self.descriptor < 0 or self.libc.inotify_add_watch(self.descriptor, os.fsencode(place), IN_OPEN | IN_ACCESS) < 0:
                raise OSError(ctypes.get_errno(), "inotify")

    def names(self) -> set[str]:
        try:
            data = os.read(self.descriptor, 2**16)
        except BlockingIOError:
            data = b""
        os.close(self.descriptor)
        found = set()
        while data:
            length = int.from_bytes(data[12:16], "little")
            found.add(data[16 : 16 + length].rstrip(b"\0").decode(errors="replace"))
            data = data[16 + length :]
        return found


def report(case: Case, result: Result) -> list[str]:
    """What is wrong with a result."""
    faults, refused = list(result.faults), "DarkroomError" in result.outcome
    if case.must == "refuse" and result.outcome == "loaded":
        faults.append("it loaded")
    if result.outcome not in ("", "loaded") and not (refused and case.must != "load"):
        faults.append(f"{result.outcome.split(' ')[0]}: {result.message[:300]}")
    if refused:
        faults += [f"the message does not say {part!r}: {result.message[:300]!r}" for part in case.says if part not in result.message]
    if len(result.message) >= LONGEST:
        faults.append(f"a message of {len(result.message)} characters")
    if CANARY in result.message + result.log or TOKEN in result.message + result.log:
        faults.append(f"a message that quotes: {result.message[:300]!r}")
    if result.outcome == "loaded" and case.must == "load" and case.warns not in result.log:
        faults.append(f"the log does not say {case.warns!r}: {result.log[:200]!r}")
    if result.seconds > SECONDS:
        faults.append(f"{result.seconds:.0f} seconds")
    if result.memory > MEMORY:
        faults.append(f"{result.memory / 1e6:.0f} MB of memory")
    return faults


def run(case: Case, bases: dict[str, Path], good: dict[str, Any], area: Path) -> dict[str, Any]:
    """One case: {"faults": [...], ...}."""
    folder, sentinel = area / case.folder, area / "sentinel"
    for name in ("here", "outside", "tmp"):
        (area / name).mkdir(parents=True)
    (area / "outside/canary.txt").write_text(CANARY)
    shutil.copytree(bases[case.base], folder)
    case.damage(folder, sentinel)
    before, watch, out = tree(area), Watch(area / "outside"), area.with_suffix(".json")
    os.environ["TMPDIR"] = str(area / "tmp")
    limit = SECONDS if case.naive is None else 3
    child = os.fork()
    if child == 0:
        try:
            tempfile.tempdir = None
            result = attempt(case, folder, area, good[case.base])
            out.write_text(json.dumps(dataclasses.asdict(result)))
        finally:
            os._exit(0)
    begin = time.monotonic()
    done, status, usage = 0, 0, None
    while not done and time.monotonic() < begin + limit + 1:
        done, status, usage = os.wait4(child, os.WNOHANG)
        time.sleep(0 if done else 0.002)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    opened = watch.names()
    result = Result(**json.loads(out.read_text())) if out.exists() else Result(faults=["" if not done else f"signal {os.WTERMSIG(status)}"])
    out.unlink(missing_ok=True)
    if result.outcome:
        result.memory += usage.ru_maxrss * 1024  # type: ignore[union-attr]
    if not done:
        result.faults, result.seconds = [f"more than {limit} seconds"], 0
    faults = report(case, result)
    if sentinel.exists():
        faults.append("code ran")
    if not case.outside and opened:
        faults.append(f"read outside: {sorted(opened)}")
    after = tree(area)
    faults += [f"left behind: {name}" for name in sorted(after.keys() - before.keys() - {"sentinel"})][:3]
    faults += [f"removed: {name}" for name in sorted(before.keys() - after.keys())][:3]
    faults += [f"changed: {name}" for name in sorted(before) if after.get(name, before[name]) != before[name]][:3]
    for path in area.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(area)
    return {**dataclasses.asdict(result), "faults": faults}


def serve(group: str, bases: Path, home: Path, part: str = "") -> dict[str, Any]:
    """Run the cases of a group; what they came to, by name."""
    import torch
    import transformers
    from tqdm import tqdm
    import darkroom

    tqdm.monitor_interval = 0  # no thread of its own: a fork has but one
    torch.set_num_threads(1)
    paths = {name: bases / name for name in ("sd", "ddpm")}
    good = {name: darkroom.DiffusionPipeline.from_pretrained(path) for name, path in paths.items()}
    for pipe in good.values():  # what is imported late is imported now
        pipe(**({"prompt": "x"} if "text_encoder" in pipe.components else {}), num_inference_steps=1, output_type="np")
    _ = transformers.AutoModel, darkroom.AutoModel, darkroom.UNet2DConditionModel, *(getattr(darkroom, n) for n in darkroom.__all__)
    gc.freeze()  # a collection in a fork would copy all that it looks at
    gc.disable()
    cases = {"controls": CONTROLS, **GROUPS}[group]
    return {case.name: run(case, paths, good, home / str(i)) for i, case in enumerate(cases) if part in case.name}


def start(group: str, bases: Path, home: Path, part: str = "") -> dict[str, Any]:
    """`serve` in a process whose environment leads to no user's files and no hub."""
    root = Path(__file__).parents[2]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "DARKROOM_", "COVERAGE", "PYTEST"))},
        **dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "HF_HUB_DISABLE_TELEMETRY"), "1"),
        **{"HF_TOKEN": TOKEN, "HF_HOME": str(home / "hf"), "HOME": str(home / "home"), "TOKENIZERS_PARALLELISM": "false"},
        **{"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}"},
    }
    home.mkdir(parents=True, exist_ok=True)
    (home / "home").mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__)), "--serve", group, str(bases), str(home), part]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((home / "results.json").read_text())


@pytest.fixture(scope="module")
def bases(tiny_sd: Path, tiny_ddpm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    (folder / "sd").symlink_to(tiny_sd)
    (folder / "ddpm").symlink_to(tiny_ddpm)
    return folder


@pytest.mark.parametrize("group", GROUPS)
def test_hostile_checkpoints(group: str, bases: Path, tmp_path: Path) -> None:
    results = start(group, bases, tmp_path / "run")
    wrong = {name: result["faults"] for name, result in results.items() if result["faults"]}
    assert len(results) == len(GROUPS[group])
    assert not wrong, f"{len(wrong)} of {len(results)}:\n" + "\n".join(f"  {name}: {'; '.join(faults)}" for name, faults in wrong.items())


def test_the_harness_catches(bases: Path, tmp_path: Path) -> None:
    """Loaders that do what none may: the harness says of each what it did."""
    results = start("controls", bases, tmp_path / "run")
    for case in CONTROLS:
        assert any(case.caught in fault for fault in results[case.name]["faults"]), (case.name, results[case.name])


def test_names_are_unique() -> None:
    for group, cases in GROUPS.items():
        assert len({case.name for case in cases}) == len(cases), group


def by_hand(groups: str, part: str = "") -> None:
    from families import tiny

    with tempfile.TemporaryDirectory() as work:
        tiny.sd(Path(work, "sd"))
        tiny.ddpm(Path(work, "ddpm"))
        for group in groups.split(",") if groups != "all" else GROUPS:
            found = start(group, Path(work), Path(work, "run", group), part)
            wrong = {name: result["faults"] for name, result in found.items() if result["faults"]}
            most = {key: max(result[key] for result in found.values()) for key in ("seconds", "memory")}
            print(
                f"{group}: {len(wrong)} of {len(found)} wrong; at most {most['seconds']:.1f} s, {most['memory'] / 1e6:.0f} MB", flush=True
            )
            for name, faults in wrong.items():
                print(f"  {name}\n      " + "\n      ".join(fault.replace("\n", "\n      ") for fault in faults))


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        group, bases_folder, home, part = sys.argv[2:]
        Path(home, "results.json").write_text(json.dumps(serve(group, Path(bases_folder), Path(home), part)))
    else:
        by_hand(*sys.argv[1:])
