"""Headers of safetensors files: what is right is read, and whatever the format's own reader refuses is refused."""

from __future__ import annotations
import itertools
import json
import re
import struct
import time
import tracemalloc
from pathlib import Path
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from darkroom.checkpoints.safetensors import DTYPES, Entry, parse_header, read_header
from darkroom.errors import CheckpointError


def whole(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(whole(header, data, length))
    return path


def spec(dtype: str, shape: object, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def f32(*shape: int, begin: int = 0, end: int | None = None) -> dict:
    return spec("F32", list(shape), begin, begin + 4 * torch.Size(shape).numel() if end is None else end)


def test_header(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.zeros(0, 4, dtype=torch.bfloat16), "c": torch.tensor(3)}
    tensors |= {str(d): torch.ones(3).to(d) for d in DTYPES.values() if d != torch.float8_e8m0fnu}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "a": "{,-[]\"'\\"})
    entries, content = read_header(path), path.read_bytes()
    assert entries.keys() == tensors.keys()
    for name, t in tensors.items():
        raw = t.contiguous().flatten().view(torch.uint8).numpy().tobytes() if t.numel() else b""
        begin = entries[name].offset
        assert entries[name] == Entry(t.dtype, tuple(t.shape), begin, t.nbytes) and content[begin : begin + t.nbytes] == raw
    start = 8 + struct.unpack("<Q", content[:8])[0]
    assert parse_header(content[8:start], None, "x") == parse_header(content[8:start], len(content) - start, "x") == entries


def test_what_is_unusual_but_right(tmp_path: Path) -> None:
    right = [
        (whole({}), {}),
        (whole(b'{"a":' + json.dumps(f32(2)).encode() + b"}   \n", bytes(8)), {"a": (2,)}),
        (whole({"__metadata__": None, "a": f32()}, bytes(4)), {"a": ()}),
        (whole({"a,-0 [": f32(1), "\u00e9\n\"'": f32(0, begin=4)}, bytes(4)), {"a,-0 [": (1,), "\u00e9\n\"'": (0,)}),
        (whole({"a": spec("F8_E8M0", [3], 0, 3), "": f32(1, begin=3)}, bytes(7)), {"a": (3,), "": (1,)}),
    ]
    for content, shapes in right:
        (tmp_path / "x.safetensors").write_bytes(content)
        assert {name: e.shape for name, e in read_header(tmp_path / "x.safetensors").items()} == shapes
        assert len(safetensors.deserialize(content)) == len(shapes)


WRONG = {
    "overlap": ({"a": f32(2), "b": f32(2, begin=4)}, 12),
    "gap": ({"a": f32(2), "b": f32(2, begin=12)}, 20),
    "the same bytes twice": ({"a": f32(2), "b": f32(2)}, 8),
    "cut": ({"a": f32(2)}, 7),
    "too long": ({"a": f32(2)}, 9),
    "a shape that disagrees": ({"a": f32(3, end=8)}, 8),
    "a product beyond 64 bits": ({"a": f32(2**40, 2**40, end=8)}, 8),
    "a product of 2**64 + 2": ({"a": spec("U8", [2**32 + 1, 2**32 - 1, 3], 0, 3)}, 3),
    "zero times too much": ({"a": f32(2**62, 2**62, 0, end=0)}, 0),
    "a shape beyond 63 bits": ({"a": f32(2**63, 0, end=0)}, 0),
    "65 sizes": ({"a": spec("U8", [1] * 65, 0, 1)}, 1),
    "a negative size": ({"a": spec("F32", [-2], 0, 8)}, 8),
    "minus zero": (b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', 0),
    "a truth value": ({"a": spec("F32", [True, 2], 0, 8)}, 8),
    "a fraction": ({"a": spec("F32", [2.0], 0, 8)}, 8),
    "not a number": ({"a": spec("F32", [float("nan")], 0, 8)}, 8),
    "a shape of text": ({"a": spec("F32", "2", 0, 8)}, 8),
    "an unknown dtype": ({"a": spec("F31", [2], 0, 8)}, 8),
    "a dtype in lower case": ({"a": spec("f32", [2], 0, 8)}, 8),
    "no text for a dtype": ({"a": spec(["F32"], [2], 0, 8)}, 8),  # type: ignore[arg-type]
    "an end before the beginning": ({"a": spec("F32", [2], 8, 0)}, 8),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, 8),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8),
    "something more": ({"a": {**f32(2), "x": 1}}, 8),
    "no object": ({"a": 3}, 0),
    "metadata of numbers": ({"a": f32(2), "__metadata__": {"x": 1}}, 8),
    "metadata in a list": ({"a": f32(2), "__metadata__": []}, 8),
    "a name twice": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    "half a letter": (b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    "half a letter in the metadata": (b'{"__metadata__":{"a":"\\udc00"}}', 0),
    "a byte-order mark": (b'\xef\xbb\xbf{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1),
    "a list": (b"[]", 0),
    "no end": (b"{", 0),
    "two objects": (b"{}{}", 0),
    "not UTF-8": (b'{"\xff":1}', 0),
    "deep": (b'{"a":' + b"[" * 10**6, 0),
    "long numbers": (b'{"a":' + b"9" * 10**6 + b"}", 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_headers_are_refused(tmp_path: Path, name: str) -> None:
    header, size = WRONG[name]
    path = write(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match="x.safetensors") as error:
        read_header(path)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_packed_dtypes_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "x.safetensors", {"w": spec(dtype, [8], 0, 4 if dtype == "F4" else 6)}, bytes(4 if dtype == "F4" else 6))
    safetensors.deserialize(path.read_bytes())  # the file is right
    with pytest.raises(CheckpointError, match=f"w: {dtype}"):
        read_header(path)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 10**9, 100])
def test_header_length(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError):
        read_header(write(tmp_path / "x.safetensors", {"a": f32(2)}, bytes(8), length=length))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "y.safetensors"
    for content in (b"", b"garbage", b"\x02" + bytes(8), b"<!DOCTYPE html>" * 9):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="y.safetensors"):
            read_header(path)
    path.write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        read_header(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="y.safetensors"):
        read_header(path)


@pytest.mark.parametrize("unit", [b"[],", b'{"":0},', b"{},", b"1000000,", b'"",', b'\\"', b'\\"",'])
def test_long_headers_cost_little(tmp_path: Path, unit: bytes) -> None:
    start = b'{"' if unit.startswith(b"\\") else b'{"a":['
    path = write(tmp_path / "x.safetensors", start + unit * (40_000_000 // len(unit)))
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(CheckpointError):
        read_header(path)
    assert time.perf_counter() - began < 10
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()


WHOLE = save({"a": torch.zeros(2, 3), "bc": torch.ones(2, dtype=torch.float16), "d": torch.ones(())}, {"k": "v"})
STOP = 8 + struct.unpack("<Q", WHOLE[:8])[0]
EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.sampled_from(["put", "insert", "delete"]), st.integers(0, 255)), max_size=3)
TOKENS = st.sampled_from(
    [
        b"-0",
        b"0",
        b"1",
        b"2",
        b"4",
        b"8",
        b"24",
        b"28",
        b"1.0",
        b"1e0",
        b"true",
        b"null",
        b"NaN",
        b"-1",
        b"18446744073709551616",
        b"[]",
        b"{}",
    ]
    + [
        b'"F32"',
        b'"F4"',
        b'"U8"',
        b'"dtype"',
        b'"shape"',
        b'"a"',
        b'"\\u0061"',
        b'"\\ud800"',
        b'"__metadata__"',
        b",",
        b":",
        b"]",
        b"}",
        b" ",
    ]
    + [b"\x00", b"\xff", b"\\", b'"', b"/**/", b"0x1", b"01", b"+1", b"[0,0]", b"[[0]]", b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}']
)


def compare(folder: Path, content: bytes) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    try:
        theirs = {name: tuple(t["shape"]) for name, t in safetensors.deserialize(content)}
    except Exception:
        theirs = None
    try:
        ours = {name: e.shape for name, e in read_header(path).items()}
    except CheckpointError:  # to be stricter is fine
        return
    assert ours == theirs
    spans = sorted((e.offset, e.offset + e.nbytes) for e in read_header(path).values() if e.nbytes)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans)) and (not spans or spans[-1][1] == len(content))


fuzz = settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(edits=EDITS, cut=st.integers(0, 3), honest=st.booleans())
def test_mutated_files_against_the_rust_reader(tmp_path: Path, edits: list, cut: int, honest: bool) -> None:
    content = bytearray(WHOLE[8:] if honest else WHOLE)
    size = STOP - 8 if honest else STOP
    for position, kind, value in edits:
        i = position % max(size, 1)
        content[i : i + (kind != "insert")] = b"" if kind == "delete" else bytes([value])
        size += {"put": 0, "insert": 1, "delete": -1}[kind]
    done = bytes(content[: len(content) - cut])
    compare(tmp_path, struct.pack("<Q", max(size, 0)) + done if honest else done)  # honest: the length is that of the mutated header


@fuzz
@given(edits=st.lists(st.tuples(st.integers(0, 1000), TOKENS), min_size=1, max_size=3))
def test_mutated_tokens_against_the_rust_reader(tmp_path: Path, edits: list) -> None:

    tokens = re.findall(rb'"[^"]*"|\d+|[^"\d]', WHOLE[8:STOP])
    for position, token in edits:
        tokens[position % len(tokens)] = token
    compare(tmp_path, whole(b"".join(tokens), WHOLE[STOP:]))


SIZES = st.one_of(st.integers(0, 4), st.integers(0, 2**65), st.sampled_from([True, None, 2.0, "2", 2**31, 2**32, 2**62, 2**63, 2**64 - 1]))
SPECS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4", "F6_E2M3", "F16 ", "", 3]),
        "shape": st.lists(SIZES, max_size=4),
        "data_offsets": st.one_of(st.tuples(st.integers(0, 64), st.integers(0, 64)).map(sorted), st.lists(SIZES, max_size=3)),
    }
)
VALUES = st.one_of(
    SPECS, st.none(), st.integers(), st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
)


@fuzz
@example(header={"a": spec("U8", [2**32 + 1, 2**32 - 1, 3], 0, 3)}, size=3)
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "\x00", ""]), VALUES, max_size=3), size=st.integers(0, 64))
def test_random_headers_against_the_rust_reader(tmp_path: Path, header: dict, size: int) -> None:
    compare(tmp_path, whole(header, bytes(size)))


@fuzz
@given(
    entries=st.lists(st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=3)), max_size=5), late=st.integers(-1, 1)
)
def test_right_headers_are_read(tmp_path: Path, entries: list, late: int) -> None:
    header, end = {}, 0
    for i, (dtype, shape) in enumerate(entries):
        nbytes = torch.Size(shape).numel() * DTYPES[dtype].itemsize
        header[f"t{i}"] = spec(dtype, shape, end, end + nbytes)
        end += nbytes
    text = json.dumps(header).encode()
    assert {n: (e.dtype, list(e.shape), e.nbytes) for n, e in parse_header(text, end, "x").items()} == {
        f"t{i}": (DTYPES[dtype], shape, torch.Size(shape).numel() * DTYPES[dtype].itemsize) for i, (dtype, shape) in enumerate(entries)
    }
    if late:
        with pytest.raises(CheckpointError):
            parse_header(text, end + late, "x")
    compare(tmp_path, whole(text, bytes(end)))
