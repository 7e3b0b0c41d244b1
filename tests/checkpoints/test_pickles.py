"""Pickled weights: what torch writes is read as torch reads it, and nothing in a file is ever imported or called."""

from __future__ import annotations
import argparse
import builtins
import codecs
import collections
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from darkroom.checkpoints.pickles import pickled_entries, read_pickled
from darkroom.checkpoints.unpickling import run_pickle
from darkroom.checkpoints.weights import Weights
from darkroom.errors import CheckpointError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
SEEN: list[str] = []
WATCHING = False
CODE = tuple("exec compile import pickle.find_class marshal. os. subprocess. shutil. socket. ctypes. code.".split())


def _watch(event: str, args: tuple) -> None:
    if WATCHING and event.startswith(CODE):
        SEEN.append(f"{event} {args[:1]}")


sys.addaudithook(_watch)  # there is no way to remove one
for codec in ("cp437", "raw_unicode_escape"):  # Python's own, for names in zip files and old text: imported before anything is watched
    codecs.lookup(codec)


@contextmanager
def nothing_runs() -> Iterator[None]:
    global WATCHING
    SEEN.clear()
    WATCHING = True
    try:
        yield
    finally:
        WATCHING = False
    assert not SEEN, SEEN[:5]


def save(path: Path, content: object, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def archive(path: Path, text: bytes, storages: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", text)
        for key, value in (storages or {}).items():
            file.writestr(f"archive/data/{key}", value)
        for name, value in more.items():
            file.writestr(f"archive/{name}", value)
    return path


def tensor(key: str = "0", numel: int = 4, first: int = 0, shape: tuple = (4,), stride: tuple = (1,), kind: str = "FloatStorage") -> bytes:
    """Opcodes of one tensor, with whatever numbers."""

    def number(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + number("storage") + f"ctorch\n{kind}\n".encode() + number(key) + number("cpu") + number(numel) + b"tQ"
    parts = number(first) + number(shape) + number(stride) + b"\x89)"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + parts + b"tR"


def named(*tensors: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(b"X\x01\0\0\0" + bytes([97 + i]) + t for i, t in enumerate(tensors)) + b"u."


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    tensors = {
        "plain": base, "tail": base[2:], "column": base[:, 3], "transposed": base.t(), "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "parameter": nn.Parameter(torch.randn(3)), "ones": torch.randn(4, 1)[::2],
        "flags": torch.tensor([True, False]), "complex": torch.randn(2, dtype=torch.complex64), "again": base,
    }  # fmt: skip
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    return tensors | {str(d): torch.arange(5).to(d) for d in dtypes}


def equal(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) and t.dtype == theirs[n].dtype for n, t in ours.items())


@pytest.mark.parametrize("protocol", [2, 4, 5])
@FORMATS
def test_what_torch_writes(tmp_path: Path, zipped: bool, protocol: int, caplog: pytest.LogCaptureFixture) -> None:
    state = collections.OrderedDict(some_tensors())
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    path = save(tmp_path / "x.bin", state, zipped, protocol)
    with nothing_runs():
        ours = read_pickled(path)
    assert equal(ours, torch.load(path, weights_only=False)) and len(caplog.records) == 1
    assert str(path) in Path("/proc/self/maps").read_text()
    assert all(t.untyped_storage().nbytes() < 400 for t in ours.values())  # each could be saved alone
    before = path.read_bytes()
    ours["plain"].add_(1)
    assert path.read_bytes() == before


def test_dtypes_without_a_storage_class(tmp_path: Path) -> None:
    state = {str(d): torch.ones(8).to(d) for d in (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32)}
    path = save(tmp_path / "x.pt", state)
    ours, theirs = read_pickled(path), torch.load(path, weights_only=True)
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
    assert all(torch.equal(t.view(torch.uint8), theirs[n].view(torch.uint8)) for n, t in ours.items())


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """A class of a training library; gone again when the file is read."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, "pytorch_lightning.callbacks", types.ModuleType("pytorch_lightning.callbacks"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield kind


@FORMATS
def test_a_training_checkpoint(tmp_path: Path, lightning: type, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    state, one = some_tensors(), lightning()
    one.best = {"a": [1, (2, 3)], "b": {4}}
    content = {
        "epoch": 3, "global_step": 10**30, "pytorch-lightning_version": "1.4.2", "state_dict": state,
        "callbacks": {lightning: {"best_model_score": torch.tensor(1.0), "monitor": None, "one": one, (1, lightning): 2.5}},
        "lr_schedulers": [{"last": np.float64(1e-4), "array": np.arange(3), "counts": collections.defaultdict(list, a=[1])}],
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "groups": {"betas": (0.9, 0.99)}}],
        "hyper_parameters": argparse.Namespace(path=Path("x"), size=torch.Size([3]), on=torch.device("cpu"), dtype=torch.float16),
    }  # fmt: skip
    path = save(tmp_path / "x.ckpt", content, zipped)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    with nothing_runs():
        assert equal(read_pickled(path), state)


def test_only_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.bin", {"a": torch.zeros(1)})
    monkeypatch.setenv("DARKROOM_SAFETENSORS_ONLY", "1")
    with pytest.raises(CheckpointError, match="x.bin"):
        read_pickled(path)
    with pytest.raises(CheckpointError, match="DARKROOM_SAFETENSORS_ONLY"):
        Weights([path])
    monkeypatch.setenv("DARKROOM_SAFETENSORS_ONLY", "0")
    assert read_pickled(path).keys() == {"a"}


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Callable, *args: object, state: object = None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple:
        return self.reduced

    def __call__(self) -> None:
        """What another call's first item has to have."""


def payloads(sentinel: str) -> dict[str, tuple[object, bool]]:
    """By name: an object, and whether a naive reader would make the file appear."""
    touch, python = f"touch {sentinel}", f"open({sentinel!r}, 'w')"
    return {
        "os.system": (Call(os.system, touch), True),
        "eval": (Call(eval, python), True),
        "exec": (Call(exec, python), True),
        "open": (Call(open, sentinel, "w"), True),
        "Popen": (Call(subprocess.Popen, ["touch", sentinel]), True),
        "check_output": (Call(subprocess.check_output, ["touch", sentinel]), True),
        "getattr chain": (Call(Call(getattr, Call(__import__, "os"), "system"), touch), True),  # type: ignore[arg-type]
        "partial": (Call(functools.partial(os.system, touch)), True),
        "partial made there": (Call(functools.partial, os.system, touch), False),
        "map": (Call(list, Call(map, os.system, [touch])), True),
        "mkdir": (Call(os.mkdir, sentinel), True),
        "nested torch.load": (Call(torch.load, io.BytesIO(b"")), False),
        "storage from bytes": (Call(torch.storage._load_from_bytes, b"x"), False),
        "a mapping that is called": (Call(collections.OrderedDict, [("a", Call(os.system, touch))]), True),
        "a state": (Call(collections.OrderedDict, state={"__class__": Call(os.system, touch)}), True),
        "runstring": (Call(np.testing._private.utils.runstring, python, {}), True),  # type: ignore[attr-defined]
        "breakpoint": (builtins.breakpoint, False),
        "a module of torch": (nn.Linear(1, 1), False),
        "an optimizer": (torch.optim.SGD, False),
    }


@pytest.mark.parametrize("name", payloads("x"))
@FORMATS
def test_payloads_are_refused(tmp_path: Path, name: str, zipped: bool) -> None:
    sentinel = tmp_path / "sentinel"
    payload, works = payloads(str(sentinel))[name]
    for content in (payload, {"w": torch.zeros(1), "x": payload}, {"state_dict": {"w": torch.zeros(1)}, "x": [payload]}):
        path = save(tmp_path / "x.bin", content, zipped)
        with nothing_runs(), pytest.raises(CheckpointError, match="x.bin") as error:
            read_pickled(path)
        assert not sentinel.exists() and len(str(error.value)) < 2000
    if works:
        try:
            torch.load(path, weights_only=False)
        except Exception as error:  # after it has done its work
            print(error)
        for _ in range(100):
            if not sentinel.exists():
                time.sleep(0.02)  # Popen does not wait
        assert sentinel.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"cos\nsystem\n(X\x04\0\0\0truetR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"(X\x04\0\0\0trueios\nsystem\n.",  # INST
        b"(cos\nsystem\nX\x04\0\0\0trueo.",  # OBJ
        b"ccollections\nOrderedDict\n(X\x04\0\0\0truetR.",
        b"\x80\x04\x8c\x0bcollections\x8c\x18OrderedDict.__init__.x.y\x93)R.",
        b"\x80\x02\x82\x01.",  # an extension's code
        b"X\x01\0\0\0aP0\n.",  # the textual persistent id
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\0\0\0__code__K\x01sb.",  # a state for a function
        b"ctorch._utils\n_rebuild_parameter\n(ccollections\nOrderedDict\nK\x01)tR.",
        b"ctorch\nfloat32\n)R.",
        b"ctorch.float32\n__class__\n.",
        b"K\x01(K\x02K\x03u.",
        b"]K\x01K\x02s.",
        b"}]K\x01s.",
        b"K\x01)R.",
        b"K\x01Q.",
        b"h\x05.",
        b"t.",
        b".",
        b"",
        b"\x80\x02}X\x01\0\0\0aNX\x01\0\0\0aNu.",
        b"I" + b"9" * 10000 + b"\n.",
        b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
        b"N" * 1_000_001 + b".",
    ],
)
def test_odd_opcodes_are_refused(tmp_path: Path, text: bytes) -> None:
    for path in (archive(tmp_path / "x.bin", text), tmp_path / "y.bin"):
        if not path.exists():
            head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
            path.write_bytes(head + text + pickle.dumps([], 2))
        with nothing_runs(), pytest.raises(CheckpointError, match=path.name):
            read_pickled(path)


def test_amplification_costs_nothing(tmp_path: Path) -> None:
    nested = b"\x80\x02}(Kaq\0" + b"".join(b"(h\0h\0tq\0" for _ in range(60)) + b"Nu."  # 2**60 leaves, as a key
    same = named(*[tensor(shape=(4,)) for _ in range(20)])
    began = time.perf_counter()
    for text in (nested, b"(" * 900_000 + b".", b"]" + b"]a" * 400_000 + b"."):
        with pytest.raises(CheckpointError):
            read_pickled(archive(tmp_path / "x.bin", text))
    assert len(read_pickled(archive(tmp_path / "y.bin", same, {"0": bytes(16)}))) == 20
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    "text",
    [
        named(tensor(first=1)),
        named(tensor(first=-1)),
        named(tensor(stride=(2,))),
        named(tensor(stride=(-1,))),
        named(tensor(shape=(-4,))),
        named(tensor(shape=(5,))),
        named(tensor(shape=(10**9,), stride=(0,))),  # four gigabytes out of sixteen bytes
        named(tensor(shape=(2**40, 2**40), stride=(0, 0))),
        named(tensor(shape=(2**40, 2**40, 0), stride=(0, 0, 0))),
        named(tensor(shape=(4, 1), stride=(1,))),
        named(tensor(shape=(1,) * 65, stride=(1,) * 65)),
        named(tensor(shape=(4.0,))),
        named(tensor(shape=(True,))),
        named(tensor(numel=5, shape=(5,))),
        named(tensor(numel=-1)),
        named(tensor(key="1")),
        named(tensor(key="../data.pkl")),
        named(tensor(kind="QUInt8Storage")),
        named(tensor(kind="float32"), b"N", tensor(kind="NoStorage")),
        pickle.dumps({"a": 1}, 2),
        pickle.dumps([1], 2),
        pickle.dumps({"state_dict": 3}, 2),
    ],
)
def test_impossible_tensors_are_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(CheckpointError, match="x.bin"):
        read_pickled(archive(tmp_path / "x.bin", text, {"0": bytes(16)}))
    right = archive(tmp_path / "y.bin", named(tensor(shape=(2, 2), stride=(1, 2))), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert read_pickled(right)["a"].tolist() == [[1, 3], [2, 4]]


def test_zip_files_that_are_not_what_torch_writes(tmp_path: Path) -> None:
    path, text, storages = tmp_path / "x.bin", named(tensor()), {"0": bytes(16)}
    archive(path, text, storages, byteorder=b"little")
    assert read_pickled(path).keys() == {"a"}
    whole = path.read_bytes()

    def refused(what: str = "") -> None:
        with pytest.raises(CheckpointError, match="x.bin") as error:
            read_pickled(path)
        assert what in str(error.value)

    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        archive(path, text, {"0": bytes(10**7)}, method)
        refused("compressed")
    archive(path, text, storages, byteorder=b"big")
    refused("highest")
    archive(path, text)
    refused("data/0")
    archive(path, text + bytes(2**26), storages)
    refused("data.pkl of")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", text), file.writestr("b/data.pkl", text)
    refused("2 members")
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a/data.pkl", text), file.writestr("a/data.pkl", text)
    refused("one name")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", b"x")
    refused("0 members")
    for cut in (1, 30, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[: len(whole) - cut])
        refused()
    second = whole.rindex(b"PK\1\2", 0, whole.rindex(b"PK\1\2"))  # the storage's entry in the list; its data are moved into data.pkl
    path.write_bytes(whole[: second + 42] + struct.pack("<I", 0) + whole[second + 46 :])
    refused("overlap")
    end = whole.rindex(b"PK\5\6")
    path.write_bytes(whole[: end + 12] + struct.pack("<I", 2**31) + whole[end + 16 :])
    refused()
    path.write_bytes(bytes(end) + b"PK\3\4" + bytes(2**24) + whole[end:])
    refused()
    with open(path, "wb") as sparse:  # a list of members of a gigabyte
        sparse.write(b"PK\3\4")
        sparse.seek(2**30)
        sparse.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 2**30 - 100, 50, 0))
    refused("too long")


def test_legacy_files_that_are_not_what_torch_writes(tmp_path: Path) -> None:
    path = save(tmp_path / "x.bin", {"a": torch.arange(4.0), "b": torch.arange(3)}, zipped=False)
    whole = path.read_bytes()
    assert read_pickled(path)["b"].tolist() == [0, 1, 2]
    wrong = [whole[:-1], whole[:100], whole[:-30], b"", b"\x80", b"garbage", whole[20:], whole.replace(b"little_endian", b"little_endiaN")]
    wrong += [whole[: whole.rindex(struct.pack("<Q", n))] + struct.pack("<Q", 2**61) + bytes(64) for n in (3, 4)]
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="x.bin"):
            read_pickled(path)


def test_views_of_old_files(tmp_path: Path) -> None:
    """Before 0.4 a storage could be described as a part of another."""
    parts = tensor(numel=4, shape=(2,)).replace(b"tQ", b"(X\x01\0\0\0vK\x01K\x02ttQ")
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path = tmp_path / "x.bin"
    path.write_bytes(head + named(parts) + pickle.dumps(["0"], 2) + struct.pack("<Q4f", 4, 1, 2, 3, 4))
    assert read_pickled(path)["a"].tolist() == [2, 3]
    path.write_bytes(
        head + named(parts.replace(b"K\x01K\x02tt", b"K\x03K\x02tt")) + pickle.dumps(["0"], 2) + struct.pack("<Q4f", 4, 1, 2, 3, 4)
    )
    with pytest.raises(CheckpointError, match="outside"):
        read_pickled(path)


WORDS = st.sampled_from(
    ["os", "system", "posix", "builtins", "eval", "getattr", "collections", "OrderedDict", "torch._utils", "_rebuild_tensor_v2", "torch"]
    + ["FloatStorage", "_rebuild_parameter", "storage", "cpu", "0", "state_dict", "numpy", "dtype", "_codecs", "encode", "a", "__class__"]
)
OPS = st.one_of(
    st.sampled_from(
        [bytes([c]) for c in b"()]}.NQRtsuae0\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94bdlo12"]
        + [
            b"\x80\x02",
            b"\x95" + bytes(8),
            b"K\x00",
            b"K\x04",
            b"M\x00\x01",
            b"J\xff\xff\xff\xff",
            b"G" + bytes(8),
            b"\x8a\x09" + b"\xff" * 9,
        ]
    ),
    st.builds(lambda c, i: bytes([c, i]), st.sampled_from(list(b"qh")), st.integers(0, 3)),
    WORDS.map(lambda w: b"X" + struct.pack("<I", len(w)) + w.encode()),
    WORDS.map(lambda w: b"\x8c" + bytes([len(w)]) + w.encode()),
    st.builds(lambda op, a, b: op + f"{a}\n{b}\n".encode(), st.sampled_from([b"c", b"i"]), WORDS, WORDS),
    st.sampled_from([tensor(), tensor(shape=(2, 2), stride=(2, 1)), tensor(numel=2), named(tensor())[2:-1], named(tensor())]),
    st.binary(max_size=3),
)
fuzz = settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(path: Path) -> None:
    size = path.stat().st_size
    with nothing_runs(), path.open("rb") as file:
        try:
            entries = pickled_entries(file, path)
        except CheckpointError:
            return
    assert all(e.offset + e.span <= size and e.nbytes <= size for e in entries.values())
    read_pickled(path)


@fuzz
@given(ops=st.lists(OPS, max_size=25))
def test_random_pickles_call_nothing(tmp_path: Path, ops: list[bytes]) -> None:
    check(archive(tmp_path / "x.bin", b"".join(ops) + b".", {"0": bytes(16)}))


@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.one_of(OPS, st.binary(min_size=1, max_size=1)), st.booleans()), max_size=3),
    zipped=st.booleans(),
    cut=st.integers(0, 2),
)
def test_mutated_files_call_nothing(tmp_path: Path, edits: list, zipped: bool, cut: int) -> None:
    buffer = io.BytesIO()
    module = nn.Linear(2, 2)
    torch.save({"state_dict": module.state_dict(), "epoch": 1}, buffer, _use_new_zipfile_serialization=zipped)
    content = bytearray(buffer.getvalue())
    for position, new, insert in edits:
        i = position % len(content)
        content[i : i + (0 if insert else len(new))] = new
    (tmp_path / "x.bin").write_bytes(content[: len(content) - cut])
    check(tmp_path / "x.bin")


def test_a_naive_reader_would_call() -> None:
    """The positive control of the hook."""
    with pytest.raises(AssertionError), nothing_runs():
        pickle.loads(pickle.dumps(Call(os.getenv, "x")))
    with pytest.raises(ValueError, match="os.system"):
        run_pickle(io.BytesIO(b"cos\nsystem\n."))
