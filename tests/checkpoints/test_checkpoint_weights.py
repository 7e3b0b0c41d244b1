"""Weights into modules: exact, checked by the headers first, mapped or cast without more memory than the result."""

from __future__ import annotations
import copy
import gc
import io
import json
import math
import os
import struct
import threading
from pathlib import Path
import pytest
import torch
from checkpoints.toy import Tied, Toy, same, toy
from safetensors.torch import save_file
from torch import nn
from darkroom.checkpoints import transfer
from darkroom.checkpoints.transfer import allocate, finite, on_network, workers
from darkroom.checkpoints.weights import Weights, load_weights
from darkroom.errors import CheckpointError, DarkroomError, InputError


def meta(cls: type = Toy, **options: object) -> nn.Module:
    with torch.device("meta"):
        return cls(**options)


def saved(path: Path, tensors: dict) -> list[Path]:
    save_file(tensors, path)
    return [path]


def test_load_is_exact_and_mapped(tmp_path: Path) -> None:
    source = toy()
    files = saved(tmp_path / "x.safetensors", source.state_dict())
    target = meta()
    load_weights(target, Weights(files), dtype=torch.float32)
    assert same(source, target) and torch.equal(target.table, torch.arange(4.0)) and target.blocks[0].weight.requires_grad
    path, maps = str(files[0]), Path("/proc/self/maps").read_text()
    assert path in maps
    begins = [[int(v, 16) for v in line.split()[0].split("-")] for line in maps.splitlines() if path in line]
    assert all(any(a <= p.data_ptr() < b for a, b in begins) for p in target.parameters())
    before = files[0].read_bytes()
    with torch.no_grad():
        target.blocks[0].weight.add_(1)  # private to the process
    assert files[0].read_bytes() == before


def split(folder: Path, state: dict) -> list[Path]:
    """The tensors in two files, taken in turn."""
    names = sorted(state)
    files = saved(folder / "a.safetensors", {k: state[k] for k in names[::2]})
    return files + saved(folder / "b.safetensors", {k: state[k] for k in names[1::2]})


def maps(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("threads", [1, 3])
def test_cast_over_several_files_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(transfer, "PIECE", 100)
    monkeypatch.setattr(transfer, "RUN", 200)
    monkeypatch.setattr(transfer, "SMALL", 100)
    monkeypatch.setenv("HF_PARALLEL_LOADING_WORKERS", str(threads))
    state = toy(layers=5).state_dict()
    files = split(tmp_path, state)
    target = meta(layers=5)
    load_weights(target, Weights(files), dtype=torch.bfloat16, keep_in_float32=("norm",), mmap=False)
    for name, tensor in target.state_dict().items():
        expected = state[name] if name.startswith("norm") or name == "count" else state[name].bfloat16()
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype, name
    assert not maps(tmp_path)
    target = meta(layers=5)
    load_weights(target, Weights(files))  # None keeps the dtypes of the file
    assert same(toy(layers=5), target) and maps(files[0]) and maps(files[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_cast(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    value = torch.randn(300, 500).to(stored)
    target = nn.Module()
    target.w = nn.Parameter(torch.empty(300, 500, device="meta"))
    load_weights(target, Weights(saved(tmp_path / "x.safetensors", {"w": value})), dtype=dtype, mmap=False)
    assert torch.equal(target.w, value.to(dtype)) and target.w.dtype == dtype and not caplog.records


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_small_neighbours_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    state = {f"w{i:03d}": torch.randn(i % 7 + 1, 40) for i in range(300)} | {"large": torch.randn(400, 400), "whole": torch.arange(5)}
    state["w007"][0, 3], state["w200"][0, 0] = math.nan, 1e6  # the second is none in float16 only
    target, reads, read = nn.Module(), [], transfer.Transfer.read
    for name, value in state.items():
        target.register_buffer(name, torch.empty_like(value, device="meta"))
    monkeypatch.setattr(transfer.Transfer, "read", lambda job, *place: reads.append(job.name) or read(job, *place))
    load_weights(target, Weights(saved(tmp_path / "x.safetensors", state)), dtype=dtype, mmap=False)
    for name, value in state.items():
        expected = value.to(dtype) if value.is_floating_point() else value
        assert torch.equal(target.get_buffer(name).nan_to_num(), expected.nan_to_num()), name
    assert len(reads) < 10
    said = {name for name in state if name in caplog.text}
    assert said == ({"w007", "w200"} if dtype == torch.float16 else {"w007"})


def test_without_positional_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr(transfer, "PIECE", 64)
    monkeypatch.setattr(transfer, "SMALL", 64)
    monkeypatch.setenv("HF_PARALLEL_LOADING_WORKERS", "4")
    target = meta()
    load_weights(target, Weights(split(tmp_path, toy().state_dict())), mmap=False)
    assert same(toy(), target)


def test_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_ENABLE_PARALLEL_LOADING", "HF_PARALLEL_LOADING_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    assert 1 <= workers() <= 8
    monkeypatch.setenv("HF_PARALLEL_LOADING_WORKERS", "13")
    assert workers() == 13
    for word in ("NO", "0", "off", "False"):
        monkeypatch.setenv("HF_ENABLE_PARALLEL_LOADING", word)
        assert workers() == 1
    monkeypatch.setenv("HF_ENABLE_PARALLEL_LOADING", "YES")
    for word in ("0", "-1", "many", "1000", "²"):
        monkeypatch.setenv("HF_PARALLEL_LOADING_WORKERS", word)
        with pytest.raises(InputError, match="HF_PARALLEL_LOADING_WORKERS"):
            workers()


def test_threads_are_used_and_leave_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_PARALLEL_LOADING_WORKERS", "3")
    monkeypatch.setattr(transfer, "SMALL", 1)
    monkeypatch.setattr(transfer, "RUN", 16)
    before, seen = torch.get_num_threads(), set()
    show = lambda _: seen.add((threading.current_thread().name, torch.get_num_threads()))  # noqa: E731
    try:
        torch.set_num_threads(before + 1)
        weights = Weights(saved(tmp_path / "x.safetensors", toy().state_dict()))
        load_weights(meta(), weights, dtype=torch.bfloat16, mmap=False, progress=show)
        assert all(name.startswith("darkroom-read") and n == 1 for name, n in seen) and torch.get_num_threads() == before + 1
        other = threading.Thread(target=lambda: seen.add(("other", torch.get_num_threads())))
        other.start(), other.join()
        assert ("other", before + 1) in seen
    finally:
        torch.set_num_threads(before)


def test_network_file_systems(tmp_path: Path) -> None:
    path, mounts = tmp_path / "x", tmp_path / "mountinfo"
    path.touch()
    device = os.stat(path).st_dev
    line = "36 35 {}:{} / /some\\040where rw,noatime master:1 - {} server:/x rw\n"
    other = line.format(os.major(device) + 1, 0, "nfs4")
    for kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "lustre", "ceph", "ext4", "tmpfs", "overlay"):
        mounts.write_text(other + line.format(os.major(device), os.minor(device), kind))
        assert on_network(path, mounts) is (kind not in ("ext4", "tmpfs", "overlay"))
    mounts.write_text(other)
    assert not on_network(path, mounts) and not on_network(path, tmp_path / "none") and not on_network(tmp_path / "none", mounts)
    assert not on_network(path)


def test_progress_counts_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE", 100)
    weights = Weights(split(tmp_path, toy().state_dict()))
    assert weights.nbytes == sum(t.nbytes for t in toy().state_dict().values())
    for options in ({}, {"mmap": False}, {"dtype": torch.float16}):
        seen: list[int] = []
        load_weights(meta(), weights, progress=seen.append, **options)
        assert sum(seen) == weights.nbytes


def anonymous() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def test_memory_of_a_cast(tmp_path: Path) -> None:
    """What is loaded can be saved, copied and moved by itself, and takes its own size, until it is gone."""
    source = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(40)))  # 160 MB, 80 MB in half precision
    files = saved(tmp_path / "x.safetensors", source.state_dict())
    size = sum(p.nbytes for p in source.parameters()) // 2
    expected = {name: p.half() for name, p in source.state_dict().items()}
    del source
    with torch.device("meta"):
        target = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(40)))
    before, peak = anonymous(), 0

    def watch(_: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous())

    load_weights(target, Weights(files), dtype=torch.float16, progress=watch)
    assert max(peak, anonymous()) - before < 1.1 * size + 8e6 and not maps(files[0])
    assert all(torch.equal(p, expected[name]) for name, p in target.state_dict().items())
    buffer = io.BytesIO()
    torch.save(target[3].weight, buffer)
    assert len(buffer.getvalue()) < 3e6
    twin = copy.deepcopy(target[:2])
    assert torch.equal(twin[1].weight, target[1].weight) and twin[1].weight.untyped_storage().nbytes() == 2 * 2**20
    target[0].share_memory()
    target[1].to(torch.float32)
    with torch.no_grad():
        target[2].weight.add_(1)
    assert torch.equal(target[3].weight, expected["3.weight"]) and torch.equal(target[0].weight, expected["0.weight"])
    del target, twin
    gc.collect()
    assert anonymous() - before < 0.2 * size + 8e6


def test_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "ARENA", 6 * 2**20)
    shapes = [torch.Size(s) for s in ((), (0, 3), (5,), (1000, 1000), (3, 1), (2**22,), (7,), (2**20 + 1,))]
    tensors = list(allocate([(shape, torch.float16) for shape in shapes], torch.device("cpu")))
    assert [t.shape for t in tensors] == shapes and all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:])) and all(a[0] % 64 == 0 for a in spans)  # noqa: RUF007
    for i, tensor in enumerate(tensors):
        tensor.fill_(i)
    assert all((t == i).all() for i, t in enumerate(tensors))


def test_values_that_are_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for value in (torch.nan, torch.inf, -torch.inf):
            tensor = torch.ones(1000, dtype=dtype)
            assert finite(tensor) and finite(tensor * 3e4)
            tensor[77] = value
            assert not finite(tensor)
    assert finite(torch.full((9,), 3e38)) and finite(torch.ones(3, dtype=torch.int64)) and finite(torch.empty(0))
    large = torch.tensor([1.0, 1e6])
    assert not finite(large, large.half()) and finite(large, large.bfloat16())
    state = toy().state_dict()
    state["conv.weight"][3, 4] = torch.nan
    state["norm.bias"][0] = -torch.inf
    weights = Weights(saved(tmp_path / "x.safetensors", state))
    for options in ({}, {"mmap": False}, {"dtype": torch.bfloat16}):
        caplog.clear()
        load_weights(meta(), weights, where="unet", **options)
        assert [r.getMessage() for r in caplog.records] == ["unet: 2 tensors hold values that are not finite: conv.weight, norm.bias"]


def test_small_networks_are_looked_at_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    target, state = nn.Module(), {name: torch.zeros(size) for name, size in {"large": 2**18, "middle": 2**15, "small": 9}.items()}
    for tensor in state.values():
        tensor[5] = math.nan
    weights = Weights(saved(tmp_path / "x.safetensors", state))
    for whole, expected in {2**25: "3 tensors", 1000: "1 tensors"}.items():
        for name, value in state.items():
            target.register_buffer(name, torch.empty_like(value, device="meta"))
        monkeypatch.setattr("darkroom.checkpoints.weights.WHOLE", whole)
        monkeypatch.setattr("darkroom.checkpoints.weights.LOOKED_AT", 1000)
        caplog.clear()
        load_weights(target, weights)
        assert caplog.records[0].getMessage().startswith(f"model: {expected} hold values that are not finite")


def test_missing_extra_doubled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = toy().state_dict()
    short = {k: v for k, v in state.items() if "weight" not in k}
    with pytest.raises(CheckpointError, match="unet") as error:
        load_weights(meta(), Weights(saved(tmp_path / "a.safetensors", short)), where="unet")
    assert "4 tensors" in str(error.value) and "blocks.0.weight" in str(error.value) and "Fetch" in str(error.value)
    load_weights(meta(), Weights(saved(tmp_path / "b.safetensors", {**state, "stray": torch.zeros(1)})), where="unet")
    assert [r.getMessage() for r in caplog.records] == ["unet: 1 tensors of the weight files belong to nothing: stray"]
    with pytest.raises(CheckpointError, match="two files"):
        load_weights(meta(), Weights([tmp_path / "b.safetensors", tmp_path / "a.safetensors"]))
    doubled = saved(tmp_path / "c.safetensors", {**state, "old_norm.weight": torch.zeros(8)})
    with pytest.raises(CheckpointError, match="one name"):
        load_weights(meta(), Weights(doubled), rename=Toy.rename_key)


def test_other_names_are_told_from_other_tensors(tmp_path: Path) -> None:
    state = toy().state_dict()
    with pytest.raises(CheckpointError, match=r"same tensors are there under other names: model\.blocks\.0\.bias for blocks\.0\.bias"):
        load_weights(meta(), Weights(saved(tmp_path / "a.safetensors", {f"model.{k}": v for k, v in state.items()})))
    with pytest.raises(CheckpointError, match="another network"):
        load_weights(meta(), Weights(saved(tmp_path / "b.safetensors", {f"other.{k}": torch.zeros(3) for k in state})))


def test_not_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Missing tensors begin as their layers begin; those beside them in a layer keep the file's values."""
    state = toy().state_dict()
    lost = ("blocks.0.weight", "blocks.1.weight", "blocks.1.bias", "norm.bias", "norm.weight")
    weights = Weights(saved(tmp_path / "a.safetensors", {k: v for k, v in state.items() if k not in lost}))
    target = meta()
    torch.manual_seed(3)
    load_weights(target, weights, dtype=torch.float16, keep_in_float32=("norm",), strict=False, where="unet")
    assert "5 tensors are in no file" in caplog.text and not any(t.is_meta for t in target.state_dict().values())
    assert torch.equal(target.blocks[0].bias, state["blocks.0.bias"].half()) and torch.equal(
        target.conv.weight, state["conv.weight"].half()
    )
    torch.manual_seed(3)
    fresh = [nn.Linear(8, 8), nn.Linear(8, 8)]
    assert all(torch.equal(a.weight, b.weight.half()) and a.weight.requires_grad for a, b in zip(target.blocks, fresh))
    assert torch.equal(target.blocks[1].bias, fresh[1].bias.half()) and target.blocks[1].bias.dtype == torch.float16
    assert torch.equal(target.norm.weight, torch.ones(8)) and torch.equal(target.norm.bias, torch.zeros(8))
    source = toy(seed=5)
    load_weights(source, weights, strict=False)  # with values of its own, a module keeps them
    assert torch.equal(source.blocks[0].weight, toy(seed=5).blocks[0].weight) and torch.equal(source.conv.weight, state["conv.weight"])
    with pytest.raises(CheckpointError, match="count"):
        load_weights(meta(), Weights(saved(tmp_path / "b.safetensors", {k: v for k, v in state.items() if k != "count"})), strict=False)
    tied = meta(Tied)
    load_weights(tied, Weights(saved(tmp_path / "c.safetensors", {"a.bias": torch.zeros(8), "b.bias": torch.zeros(8)})), strict=False)
    assert tied.a.weight is tied.b.weight and not tied.a.weight.is_meta


def test_shapes_are_compared_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = saved(tmp_path / "a.safetensors", toy().state_dict())
    before = anonymous()
    with pytest.raises(CheckpointError, match=r"norm\.bias|blocks") as error:
        load_weights(meta(width=2**20), Weights(files), dtype=torch.float16)  # eight terabytes
    assert "(8" in str(error.value) and anonymous() - before < 50e6
    state = toy().state_dict()
    state["norm.weight"] = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(CheckpointError, match="kind"):
        load_weights(meta(), Weights(saved(tmp_path / "b.safetensors", state)))


def test_files_that_change_between_header_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SMALL", 1)
    monkeypatch.setattr(transfer, "PIECE", 64)
    source = toy()
    files = saved(tmp_path / "a.safetensors", source.state_dict())
    weights, target = Weights(files), meta()
    other = saved(tmp_path / "b.safetensors", {"x": torch.zeros(100)})
    os.replace(other[0], files[0])
    load_weights(target, weights)  # of the file whose header was read
    assert same(source, target)
    files = saved(tmp_path / "c.safetensors", source.state_dict())
    for options in ({}, {"mmap": False}, {"dtype": torch.float16}):
        weights = Weights(saved(files[0], source.state_dict()))
        os.truncate(files[0], files[0].stat().st_size - 200)
        with pytest.raises(CheckpointError, match=r"c\.safetensors"):
            load_weights(meta(), weights, **options)


def test_files_are_closed(tmp_path: Path) -> None:
    files = split(tmp_path, toy().state_dict())
    held = lambda: [link for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in (link := os.path.realpath(fd))]  # noqa: E731
    weights = Weights(files)
    twin = copy.copy(weights)
    del weights
    load_weights(meta(), twin, dtype=torch.float16, mmap=False)
    assert len(held()) == 2
    del twin
    assert not held()


def test_meta_compares_only(tmp_path: Path) -> None:
    target = meta()
    load_weights(target, Weights(saved(tmp_path / "a.safetensors", toy().state_dict())), dtype=torch.float16, device="meta")
    assert target.conv.weight.is_meta and target.conv.weight.dtype == torch.float16
    with pytest.raises(CheckpointError, match="shape"):
        load_weights(meta(width=9), Weights([tmp_path / "a.safetensors"]), device="meta")


def test_odd_names(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ \xff\n\xc3\xa9'"))
    folder.mkdir()
    plain = saved(tmp_path / "x.safetensors", toy().state_dict())[0]
    plain.rename(folder / "x.safetensors")
    target = meta()
    load_weights(target, Weights([folder / "x.safetensors"]))
    assert same(toy(), target)


def test_old_names_and_trailing_ones(tmp_path: Path) -> None:
    source = toy()
    state = source.state_dict()
    state["old_norm.weight"] = state.pop("norm.weight")
    state["conv.weight"] = state["conv.weight"].reshape(8, 8)
    state["blocks.0.weight"] = state["blocks.0.weight"].reshape(8, 8, 1, 1)
    target = meta()
    load_weights(target, Weights(saved(tmp_path / "a.safetensors", state)), rename=Toy.rename_key)
    assert same(source, target)


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    source = Tied()
    state = {k: v for k, v in source.state_dict().items() if k != "b.weight"}
    target = meta(Tied)
    load_weights(target, Weights(saved(tmp_path / "a.safetensors", state)))
    assert target.b.weight is target.a.weight and same(source, target)


def test_nothing_is_left_on_meta(tmp_path: Path) -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(4), persistent=False)
            self.p = nn.Parameter(torch.zeros(1))

    with pytest.raises(DarkroomError, match="table"):
        load_weights(meta(Forgetful), Weights(saved(tmp_path / "a.safetensors", {"p": torch.zeros(1)})))


def test_unaligned_files(tmp_path: Path) -> None:
    flag, w = ({"dtype": d, "shape": [n], "data_offsets": span} for d, n, span in (("U8", 1, [0, 1]), ("F32", 2, [1, 9])))
    text = json.dumps({"flag": flag, "w": w}).encode()
    text, path = text + b" " * (-len(text) % 8), tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" + struct.pack("<2f", 1.5, 2.5))
    with torch.device("meta"):
        target = nn.Module()
        target.w = nn.Parameter(torch.zeros(2))
        target.register_buffer("flag", torch.zeros(1, dtype=torch.uint8))
    load_weights(target, Weights([path]))
    assert target.w.tolist() == [1.5, 2.5] and target.w.data_ptr() % 4 == 0


def test_pickles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, path = toy(), tmp_path / "x.bin"
    state = source.state_dict()
    state["conv.weight"] = state["conv.weight"].transpose(0, 1).contiguous().transpose(0, 1)  # columns first in the file
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        for options in ({}, {"mmap": False}, {"dtype": torch.float64}):
            target = meta()
            caplog.clear()
            load_weights(target, Weights([path]), **options)
            assert len(caplog.records) == 1 and target.conv.weight.is_contiguous()
            assert all(torch.equal(t, state[name].to(t.dtype)) for name, t in target.state_dict().items())
            assert target.blocks[0].weight.dtype == options.get("dtype", torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_on_a_device(tmp_path: Path, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(transfer, "STAGE", 4096)
    monkeypatch.setattr(transfer, "SMALL", 4096)
    source = toy(width=200)
    weights = Weights(split(tmp_path, source.state_dict()))
    for threads in ("1", "4"):
        monkeypatch.setenv("HF_PARALLEL_LOADING_WORKERS", threads)
        target = meta(width=200)
        load_weights(target, weights, dtype=dtype, device="cuda", keep_in_float32=("norm",))
        assert target.table.is_cuda and not caplog.records
        for name, tensor in target.state_dict().items():
            value = source.state_dict()[name]
            wanted = dtype if dtype and value.is_floating_point() and not name.startswith("norm") else value.dtype
            assert tensor.is_cuda and torch.equal(tensor.cpu(), value.to(wanted)), name
