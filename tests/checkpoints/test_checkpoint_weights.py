"""safetensors headers, and weights into modules."""

from __future__ import annotations
import json
import struct
from pathlib import Path
import pytest
import torch
from checkpoints.toy import Tied, Toy, same, toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import nn
from darkroom.checkpoints import weights as module
from darkroom.checkpoints.weights import Weights, load_weights, read_header
from darkroom.errors import CheckpointError, DarkroomError


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def f32(*shape: int, begin: int = 0, end: int | None = None) -> dict:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, begin + 4 * torch.Size(shape).numel() if end is None else end]}


def test_header(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(0, 4, dtype=torch.bfloat16), "c": torch.tensor(3)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = read_header(tmp_path / "x.safetensors")
    assert {k: (tuple(e.shape), e.dtype, e.nbytes) for k, e in entries.items()} == {
        k: (tuple(t.shape), t.dtype, t.nbytes) for k, t in tensors.items()
    }


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": f32(2), "b": f32(2, begin=4)}, 12),  # overlap
        ({"a": f32(2), "b": f32(2, begin=12)}, 20),  # gap
        ({"a": f32(2), "b": f32(2)}, 8),  # the same bytes twice
        ({"a": f32(2)}, 7),  # cut
        ({"a": f32(2)}, 9),  # too long
        ({"a": f32(3, end=8)}, 8),  # shape and bytes disagree
        ({"a": f32(2**40, 2**40, end=8)}, 8),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": 3}, 0),
        ({"a": f32(2), "__metadata__": {"x": 1}}, 8),
        (b"[]", 0),
        (b"{", 0),
        (b"\xff\xff", 0),
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, header: object, size: int) -> None:
    path = write(tmp_path / "x.safetensors", header, b"\0" * size)
    with pytest.raises(CheckpointError, match="x.safetensors"):
        read_header(path)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 10**9, 100])
def test_header_length(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError):
        read_header(write(tmp_path / "x.safetensors", {"a": f32(2)}, b"\0" * 8, length=length))
    (tmp_path / "y.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "y.safetensors")


WHOLE = save({"a": torch.zeros(2, 3), "b": torch.ones(2, dtype=torch.float16)})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 3))
def test_what_the_rust_reader_refuses_is_refused(tmp_path: Path, position: int, value: int, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    content = bytearray(WHOLE)
    content[position % len(content)] = value
    path.write_bytes(content[: len(content) - cut])
    try:
        with safe_open(path, framework="pt") as file:
            theirs = {k: tuple(file.get_tensor(k).shape) for k in file.keys()}
    except Exception:
        with pytest.raises(CheckpointError):
            read_header(path)
        return
    try:
        assert {k: e.shape for k, e in read_header(path).items()} == theirs
    except CheckpointError:
        pass  # stricter is fine


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


def test_cast_over_several_files_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)
    source, state = toy(layers=5), {}
    state = source.state_dict()
    names = sorted(state)
    files = saved(tmp_path / "a.safetensors", {k: state[k] for k in names[::2]}) + saved(
        tmp_path / "b.safetensors", {k: state[k] for k in names[1::2]}
    )
    target = meta(layers=5)
    load_weights(target, Weights(files), dtype=torch.bfloat16, keep_in_float32=("norm",))
    for name, tensor in target.state_dict().items():
        expected = state[name] if name.startswith("norm") or name == "count" else state[name].bfloat16()
        assert torch.equal(tensor, expected) and tensor.dtype == expected.dtype, name
    assert str(tmp_path) not in Path("/proc/self/maps").read_text() or target.norm.weight.dtype == torch.float32
    target = meta(layers=5)
    load_weights(target, Weights(files))  # None keeps the dtypes of the file
    assert same(source, target)


def test_missing_extra_doubled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = toy().state_dict()
    short = {k: v for k, v in state.items() if "weight" not in k}
    with pytest.raises(CheckpointError, match="unet") as error:
        load_weights(meta(), Weights(saved(tmp_path / "a.safetensors", short)), where="unet")
    assert "4 tensors" in str(error.value) and "blocks.0.weight" in str(error.value)
    load_weights(meta(), Weights(saved(tmp_path / "b.safetensors", {**state, "stray": torch.zeros(1)})), where="unet")
    assert [r.getMessage() for r in caplog.records] == ["unet: 1 tensors of the weight files belong to nothing: stray"]
    with pytest.raises(CheckpointError, match="two files"):
        load_weights(meta(), Weights([tmp_path / "b.safetensors", tmp_path / "a.safetensors"]))
    with pytest.raises(CheckpointError, match="one name"):
        load_weights(
            meta(), Weights(saved(tmp_path / "c.safetensors", {**state, "old_norm.weight": torch.zeros(8)})), rename=Toy.rename_key
        )


def test_shapes_are_compared_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = saved(tmp_path / "a.safetensors", toy().state_dict())
    monkeypatch.setattr(module.Weights, "read", lambda *a: pytest.fail("data were read"))
    with pytest.raises(CheckpointError, match=r"norm\.bias|blocks") as error:
        load_weights(meta(width=2**20), Weights(files))
    assert "(8" in str(error.value)
    state = toy().state_dict()
    state["norm.weight"] = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(CheckpointError, match="kind"):
        load_weights(meta(), Weights(saved(tmp_path / "b.safetensors", state)))


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
    header = {"flag": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "w": f32(2, begin=1)}
    text = json.dumps(header)
    path = write(tmp_path / "x.safetensors", (text + " " * (-len(text) % 8)).encode(), b"\1" + struct.pack("<2f", 1.5, 2.5))
    with torch.device("meta"):
        target = nn.Module()
        target.w = nn.Parameter(torch.zeros(2))
        target.register_buffer("flag", torch.zeros(1, dtype=torch.uint8))
    load_weights(target, Weights([path]))
    assert target.w.tolist() == [1.5, 2.5] and target.w.data_ptr() % 4 == 0


def test_pickles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, path = toy(), tmp_path / "x.bin"
    torch.save(source.state_dict(), path)
    target = meta()
    load_weights(target, Weights([path]), dtype=torch.float32)
    assert same(source, target) and len(caplog.records) == 1


class Payload:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/darkroom-was-here"),))


def test_hostile_pickles(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": Payload()}, path)
    with pytest.raises(CheckpointError, match="x.bin"):
        load_weights(meta(), Weights([path]))
    assert not Path("/tmp/darkroom-was-here").exists()
    torch.save({"w": torch.zeros(1).expand(10**9)}, path)  # four gigabytes out of four bytes
    with pytest.raises(CheckpointError, match="whole"):
        load_weights(meta(), Weights([path]))
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        load_weights(meta(), Weights([path]))
