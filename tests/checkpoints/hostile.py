"""A corpus of damaged and hostile checkpoints: what is done to a good one, and what has to happen when it is loaded.

`GROUPS` holds the cases; `CONTROLS` are loaders that misbehave,
for the harness in test_hostile.py to catch. Each case gets a copy of its own, in an
area with a folder `outside` that nothing may read. A payload that runs creates the sentinel.
"""

from __future__ import annotations
import functools
import importlib
import io
import json
import operator
import os
import pickle
import re
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CANARY", "CONTROLS", "GROUPS", "TOKEN", "Case"]

Damage = Callable[[Path, Path], object]  # (the checkpoint's folder, the sentinel)
CANARY = "canary-7f3a51"  # stands in the contents of files: no message may show it
TOKEN = "hf_canarytokenofthetests"
STEM = "diffusion_pytorch_model"
INDEX, UNET, VAE, TEXT = "model_index.json", f"unet/{STEM}.safetensors", f"vae/{STEM}.safetensors", "text_encoder/model.safetensors"
BIN, TEXT_BIN = f"unet/{STEM}.bin", "text_encoder/pytorch_model.bin"
WEIGHTS = (UNET, VAE, TEXT)
CONFIGS = ("unet/config.json", "vae/config.json", "text_encoder/config.json")
SCHEDULER = "scheduler/scheduler_config.json"
CUT_DOWN = "vocab.json", "merges.txt"  # all that a tokenizer of the older layout has
NAN, INFINITY = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """One damaged checkpoint.

    `must` is "load", "refuse", or "either" where the layout leaves it open and only safety counts. A refusal's message has all of `says`, a load logs
    `warns`, satisfies `check`, gives the weights and tokens of the undamaged checkpoint if `same`, and runs one step if `step`.
    """

    name: str
    damage: Damage
    must: str
    says: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)  # of from_pretrained
    base: str = "sd"
    cls: str = "DiffusionPipeline"
    folder: str = "model"  # its name
    source: Callable[[Path], Any] = str  # what is passed to from_pretrained, from the folder
    inside: bool = False  # the folder is the current directory, and Python looks there for modules
    env: dict[str, str] = field(default_factory=dict)
    outside: bool = False  # files outside the folder may be read
    warns: str = ""
    same: bool = True
    step: bool = False
    check: Callable[[Any], bool] | None = None
    naive: Callable[[Path], object] | None = None  # instead of from_pretrained
    caught: str = ""  # of a control: what the harness has to report


def load(name: str, damage: Damage, **more: Any) -> Case:
    return Case(name, damage, "load", **more)


def refuse(name: str, damage: Damage, *says: str, **more: Any) -> Case:
    return Case(name, damage, "refuse", says, **more)


def either(name: str, damage: Damage, **more: Any) -> Case:
    return Case(name, damage, "either", same=False, **more)


# Damages. Names are relative to the folder, with "/".


def nothing(folder: Path, sentinel: Path) -> None: ...


def both(*damages: Damage) -> Damage:
    return lambda folder, sentinel: [damage(folder, sentinel) for damage in damages]


def put(name: str, content: bytes | str) -> Damage:
    """A file with this content, in the place of what was there."""

    def damage(folder: Path, sentinel: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def script(*names: str) -> Damage:
    """Python files that create the sentinel when they are run or imported."""
    return lambda folder, sentinel: [put(name, f"open({str(sentinel)!r}, 'w').close()\n{INNOCENT}")(folder, sentinel) for name in names]


INNOCENT = "class Evil:\n    def __init__(self, *a, **k): pass\n    from_pretrained = classmethod(lambda cls, *a, **k: cls())\n"


def change(name: str, to: Callable[[bytes], bytes]) -> Damage:
    return lambda folder, sentinel: (folder / name).write_bytes(to((folder / name).read_bytes()))


def cut(name: str, size: int | float) -> Damage:
    """Keep this many bytes; negative: all but; between 0 and 1: this part."""
    return change(name, lambda data: data[: size if isinstance(size, int) else int(size * len(data))])


def drop(*names: str) -> Damage:
    return lambda folder, sentinel: [shutil.rmtree(p) if (p := folder / name).is_dir() else p.unlink() for name in names]


def move(name: str, to: str) -> Damage:
    def damage(folder: Path, sentinel: Path) -> None:
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(folder / to)

    return damage


def copy(name: str, to: str) -> Damage:
    def damage(folder: Path, sentinel: Path) -> None:
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, folder / to)

    return damage


def link(name: str, to: str) -> Damage:
    """A link to `to` (relative to the folder that the link is in), where there was something or not."""

    def damage(folder: Path, sentinel: Path) -> None:
        if os.path.lexists(folder / name):
            drop(name)(folder, sentinel)
        (folder / name).symlink_to(to)

    return damage


def lead_outside(name: str) -> Damage:
    """Move something out of the folder and leave a link."""
    up = "../" * (name.count("/") + 1) + f"outside/{Path(name).name}"
    return both(move(name, f"../outside/{Path(name).name}"), link(name, up))


def edit(name: str, values: Any = None, without: Iterable[str] = (), **more: Any) -> Damage:
    """Keys of a JSON file."""

    def damage(folder: Path, sentinel: Path) -> None:
        content = {**json.loads((folder / name).read_text()), **(values or {}), **more}
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if k not in without}))

    return damage


def of_length(name: str, size: int) -> Damage:
    """A sparse file."""

    def damage(folder: Path, sentinel: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        with open(folder / name, "ab") as file:
            file.truncate(size)

    return damage


def special(name: str, make: Callable[[Path], object]) -> Damage:
    """Something that is no file in the place of one."""

    def damage(folder: Path, sentinel: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def bind(path: Path) -> None:
    """A socket in the file system; its name is short, because that is all that fits."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": bind,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
}


def swap(fields: str) -> Callable[[bytes], bytes]:
    """Replace text by text: "a -> b"."""
    old, new = (part.encode() for part in fields.split(" -> "))
    return lambda data: data.replace(old, new)


DEEP = "[" * 200_000
DEEP_OBJECT = '{"a":' * 100_000 + "1" + "}" * 100_000
HTML = f"<!DOCTYPE html><html><head><title>{CANARY}</title></head><body>Sign in</body></html>\n"
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{CANARY.encode().hex():0<64}\nsize 3438354725\n"


def bad_json(name: str, *says: str) -> list[Case]:
    """What no JSON file of a checkpoint may be."""
    says = says or (name.split("/")[0], name.split("/")[-1])
    return [
        refuse(f"{name} is not JSON", put(name, '{"a": ' + CANARY), *says),
        refuse(f"{name} is empty", put(name, ""), *says),
        refuse(f"{name} is a list", put(name, f'["{CANARY}"]'), *says),
        refuse(f"{name} is null", put(name, "null"), *says),
        refuse(f"{name} is a page", put(name, HTML), *says),
        refuse(f"{name} is missing", drop(name), *says[:1]),
        refuse(f"{name} is deep", put(name, DEEP), *says),
        refuse(f"{name} has a deep value", put(name, DEEP_OBJECT), *says),
        refuse(f"{name} is UTF-16", change(name, lambda data: data.decode().encode("utf-16")), *says),
        refuse(f"{name} is not UTF-8", change(name, lambda data: data.replace(b"{", b'{"\xff\xfe": 1,', 1)), *says),
        refuse(f"{name} has a number of 10000 digits", change(name, lambda data: b'{"n": 1' + b"0" * 9999 + b"," + data[1:]), *says),
        refuse(f"{name} has 65 MB", change(name, lambda data: data + b" " * 65 * 2**20), *says),
        refuse(f"{name} is a pipe", special(name, os.mkfifo), *says),
        refuse(f"{name} is /dev/zero", special(name, SPECIAL["a link to /dev/zero"]), *says),
    ]


def good_json(name: str) -> list[Case]:
    return [
        load(f"{name} has a byte-order mark", change(name, lambda data: b"\xef\xbb\xbf" + data), step=name == INDEX),
        load(f"{name} has line ends of Windows", change(name, lambda data: data.replace(b"\n", b"\r\n"))),
    ]


# Pickles, and the archives that they are in


class Call:
    """Pickled, it is the call of a function; a call can be the argument of a call, or what is called."""

    def __init__(self, function: Any, *args: Any):
        self.parts = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts

    def __call__(self) -> None: ...


def body(value: Any, protocol: int = 2) -> bytes:
    """What makes `value`, without the beginning and the end of a pickle."""
    return pickle.dumps(value, protocol)[2:-1]


def named(module: str, name: str, *args: Any) -> bytes:
    """The call of a function by these very names."""
    return f"c{module}\n{name}\n".encode() + body(args) + b"R"


def touch(sentinel: Path) -> str:
    return f"touch '{sentinel}'"


def beside(sentinel: Path, name: str, content: bytes | str) -> str:
    """A file for a payload to find, outside the folder."""
    path = sentinel.parent / "outside" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def local_hub(sentinel: Path) -> str:
    return str(Path(beside(sentinel, "hub/hubconf.py", opening(sentinel))).parent)


def opening(sentinel: Path) -> str:
    return f"open({str(sentinel)!r}, 'w').close()"


def lazily(module: str, name: str) -> Callable[..., Any]:
    return operator.attrgetter(name)(importlib.import_module(module))


def program(sentinel: Path) -> bytes:
    return b"\x80\x02" + named("os", "system", touch(sentinel)) + b"."


PAYLOADS: dict[str, Callable[[Path], bytes]] = {  # each leaves one object on the stack
    "os.system": lambda s: named("os", "system", touch(s)),
    "posix.system": lambda s: body(Call(os.system, touch(s))),
    "eval": lambda s: body(Call(eval, opening(s))),
    "exec": lambda s: body(Call(exec, opening(s))),
    "__builtin__.eval": lambda s: named("__builtin__", "eval", opening(s)),
    "Popen": lambda s: body(Call(subprocess.check_call, ["touch", str(s)])),
    "check_output": lambda s: body(Call(subprocess.check_output, ["touch", str(s)])),
    "partial": lambda s: body(Call(functools.partial(os.system, touch(s)))),
    "methodcaller": lambda s: body(Call(operator.methodcaller("touch"), s)),
    "attrgetter of import_module": lambda s: body(Call(Call(operator.attrgetter("system"), Call(importlib.import_module, "os")), touch(s))),
    "getattr of import_module": lambda s: body(Call(Call(getattr, Call(importlib.import_module, "os"), "system"), touch(s))),
    "attrgetter from a module that is allowed": lambda s: body(
        Call(Call(operator.attrgetter("os.system"), Call(importlib.import_module, "torch.serialization")), touch(s))
    ),
    "__import__": lambda s: body(Call(Call(getattr, Call(__import__, "os"), "system"), touch(s))),
    "run_path": lambda s: body(Call(runpy.run_path, beside(s, "evil.py", opening(s)))),
    "Path.touch": lambda s: body(Call(Path.touch, s)),
    "open": lambda s: named("io", "open", str(s), "w"),
    "shutil.copy": lambda s: body(Call(shutil.copy, beside(s, "evil.py", ""), str(s))),
    "map": lambda s: body(Call(list, Call(map, os.system, [touch(s)]))),
    "pickle.loads": lambda s: body(Call(pickle.loads, program(s))),
    "torch.load": lambda s: body(Call(functools.partial(lazily("torch", "load"), beside(s, "evil.pt", program(s)), weights_only=False))),
    "torch.storage._load_from_bytes": lambda s: body(Call(lazily("torch.storage", "_load_from_bytes"), program(s))),
    "torch.hub.load": lambda s: body(
        Call(functools.partial(lazily("torch.hub", "load"), local_hub(s), "evil", source="local", trust_repo=True))
    ),
    "torch.utils.collect_env.run": lambda s: body(Call(lazily("torch.utils.collect_env", "run"), touch(s))),
    "torch.jit execWrapper": lambda s: body(Call(lazily("torch.jit.unsupported_tensor_ops", "execWrapper"), opening(s), {}, {})),
    "numpy runstring": lambda s: body(Call(lazily("numpy.testing._private.utils", "runstring"), opening(s), {})),
    "numpy.load": lambda s: body(Call(functools.partial(lazily("numpy", "load"), beside(s, "evil.npy", program(s)), allow_pickle=True))),
    "cProfile.run": lambda s: body(Call(lazily("profile", "run"), opening(s))),
    "timeit": lambda s: body(Call(lazily("timeit", "timeit"), opening(s), "pass", time.perf_counter, 1)),
    "code.interact": lambda s: body(Call(Call(getattr, Call(lazily("code", "InteractiveInterpreter")), "runsource"), opening(s))),
    "protocol 4": lambda s: b"\x8c\x02os\x8c\x06system\x93" + body((touch(s),)) + b"R",
    "protocol 4, by way of a module that is allowed": lambda s: (
        b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93" + body((touch(s),)) + b"R"
    ),
    "the opcode INST": lambda s: b"(" + body(touch(s)) + b"ios\nsystem\n",
    "the opcode OBJ": lambda s: b"(cos\nsystem\n" + body(touch(s)) + b"o",
    "hidden in a tensor's hooks": lambda s: b"(" + named("os", "system", touch(s)) + b"l",
    "in the state of an object": lambda s: b"ccollections\nOrderedDict\n)R" + b"}" + body("a") + named("os", "system", touch(s)) + b"sb",
    "a class of its own": lambda s: named("__builtin__", "exec", "class E:\n def __setstate__(self, s): " + opening(s) + "\nE().__setstate__(0)"),
}  # fmt: skip
QUIET = {  # nothing runs, but no reader may follow: (opcodes that leave one object)
    "an extension code": b"\x82\x01",
    "an extension of four bytes": b"\x84\xff\xff\xff\x7f",
    "a persistent id that is text": b"X\x03\0\0\0abcQ",
    "a persistent id by name": b"P../../outside/canary.txt\n",
    "a persistent id that is a function": b"cos\nsystem\nQ",
    "a storage that is a function": b"(X\x07\0\0\0storagecos\nsystem\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ",
    "a nested global": b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93",
    "the globals of a function": b"\x80\x04\x8c\x0ctorch._utils\x8c\x22_rebuild_tensor_v2.__globals__.keys\x93)R",
    "a function that is not called": b"cos\nsystem\n",
    "a class of the library": b"cdarkroom.cli\nmain\n",
    "a module": b"ctorch\nhub\n",
    "an instance by NEWOBJ": b"csubprocess\nPopen\n)\x81",
    "an instance by NEWOBJ_EX": b"csubprocess\nPopen\n)}\x92",
    "a text of 2^62 bytes": b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "bytes of 2^60": b"\x8e" + struct.pack("<Q", 2**60) + b"abc",
    "a bytearray of 2^60": b"\x96" + struct.pack("<Q", 2**60) + b"abc",
    "a text of 4 GB": b"X\xff\xff\xff\xff" + b"abc",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7f" + b"abc",
    "a number of 10^7 digits": b"I" + b"9" * 10**7 + b"\n",
    "a frame of 2^62": b"\x95" + struct.pack("<Q", 2**62) + b"N",
    "a memo entry of 2^31": b"Nr\xff\xff\xff\x7f",
    "lists that double": b"]q\0" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)),
    "texts that double": body("x" * 100)
    + b"q\0"
    + b"".join(b"c_operator\nadd\nh" + bytes([i]) + b"h" + bytes([i]) + b"\x86Rq" + bytes([i + 1]) for i in range(60)),
    "10^6 lists in each other": b"]" * 10**6 + b"a" * (10**6 - 1),
    "tuples 10^6 deep": b")" + b"\x85" * 10**6,
    "numbers behind the end": b"h\xff",
    "an empty stack": b"0000",
    "a mark that is missing": b"t",
}  # fmt: skip


def zipped(path: Path, members: Iterable[tuple[Any, ...]], comment: bytes = b"", end: Callable[[bytes], bytes] = bytes) -> None:
    """Write a zip archive of (name, data, {fields of its headers}) with nothing checked: method, size, packed, crc, flags, at."""
    out, directory, count = io.BytesIO(), b"", 0
    for name, data, *rest in members:
        given = rest[0] if rest else {}
        name = name.encode() if isinstance(name, str) else name
        method, crc = given.get("method", 0), given.get("crc", zlib.crc32(data) if len(data) < 10**7 else 0)
        packed, size = given.get("packed", len(data)), given.get("size", len(data))
        common = struct.pack("<HHHHHIIIHH", 20, given.get("flags", 0), method, 0, 0x21, crc, packed, size, len(name), 0)
        at = given.get("at", out.tell())
        directory += b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, given.get("mode", 0) << 16, at) + name
        out.write(b"PK\3\4" + common + name + data)
        count += 1
    begin = out.tell()
    tail = directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), begin, len(comment)) + comment
    path.write_bytes(out.getvalue() + end(tail))


def tensors_of(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, not mapped: the file may be written over."""
    from safetensors.torch import load

    return load(path.read_bytes())


def saved(source: Path, path: Path, zip_file: bool = True, change_state: Callable[[dict[str, Any]], Any] = lambda state: state) -> None:
    """The tensors of a safetensors file as torch.save writes them."""
    import torch

    torch.save(change_state(tensors_of(source)), path, _use_new_zipfile_serialization=zip_file)


def pickled(
    name: str = BIN, to: Callable[[dict[str, Any]], Any] = lambda state: state, zip_file: bool = True, keep: bool = False
) -> Damage:
    """`.bin` weights in the place of the safetensors ones (`keep`: beside them)."""
    source = f"{name[:-4].replace('pytorch_model', 'model') if 'text_encoder' in name else name[:-4]}.safetensors"

    def damage(folder: Path, sentinel: Path) -> None:
        saved(folder / source, folder / name, zip_file, to)
        if not keep:
            (folder / source).unlink()

    return damage


def all_pickled(folder: Path, sentinel: Path) -> None:
    """`.bin` weights beside the safetensors ones of every component."""
    for name in (BIN, VAE.replace(".safetensors", ".bin"), TEXT_BIN):
        pickled(name, keep=True)(folder, sentinel)


def members(path: Path) -> list[tuple[Any, ...]]:
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def archive(to: Callable[[list[tuple[Any, ...]], Path], list[tuple[Any, ...]] | None], name: str = BIN, **more: Any) -> Damage:
    """Good `.bin` weights whose members are changed."""

    def damage(folder: Path, sentinel: Path) -> None:
        pickled(name)(folder, sentinel)
        zipped(folder / name, to(members(folder / name), sentinel), **more)

    return damage


def with_pickle(to: Callable[[bytes], bytes]) -> Callable[[list[tuple[Any, ...]], Path], list[tuple[Any, ...]]]:
    return lambda found, sentinel: [(n, to(d) if n.endswith("/data.pkl") else d) for n, d in found]


def first(opcodes: bytes) -> Callable[[bytes], bytes]:
    """Put opcodes that leave one object before those of a pickle, and drop the object: the rest is as good as before."""
    return lambda data: data[:2] + opcodes + b"0" + data[2:]


def payload(name: str, kind: str, keep: bool = False) -> Damage:
    """Weights of torch.save that are good but for what runs first."""

    def damage(folder: Path, sentinel: Path) -> None:
        spare = folder / "unet/spare.bin"
        saved(folder / UNET if "text" not in name else folder / TEXT, spare)
        found = with_pickle(first(PAYLOADS[kind](sentinel)))(members(spare), sentinel)
        spare.unlink()
        if not keep:
            (folder / name.replace(".bin", ".safetensors").replace("/pytorch_model", "/model")).unlink()
        zipped(folder / name, found)

    return damage


def alone(name: str, opcodes: Callable[[Path], bytes]) -> Damage:
    """A bare pickle, as the older files begin with one."""
    return both(drop(name.replace(".bin", ".safetensors")), lambda folder, s: put(name, b"\x80\x02" + opcodes(s) + b".")(folder, s))


class Storage:
    """A storage as a pickle refers to it."""

    def __init__(self, key: Any, numel: Any, kind: str = "FloatStorage", location: str = "cpu"):
        self.key, self.numel, self.kind, self.location = key, numel, kind, location


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        kind = importlib.import_module("torch").__dict__.get(value.kind, value.kind)
        return "storage", kind, value.key, value.location, value.numel


def rebuilt(storage: Storage, offset: Any, size: Any, stride: Any, *rest: Any, function: str = "_rebuild_tensor_v2") -> Call:
    return Call(lazily("torch._utils", function), storage, offset, size, stride, *(rest or (False, OrderedDict())))


def crafted(tensor: Call, data: bytes = b"\0" * 4, name: str = "conv_in.weight", key: str = "0", **fields: Any) -> Damage:
    """Weights of one tensor, as the pickle describes it, over these bytes."""

    def damage(folder: Path, sentinel: Path) -> None:
        (folder / UNET).unlink()
        out = io.BytesIO()
        _Pickler(out, 2).dump({name: tensor})
        zipped(
            folder / BIN,
            [
                ("archive/data.pkl", out.getvalue()),
                ("archive/byteorder", b"little"),
                (f"archive/data/{key}", data, fields),
                ("archive/version", b"3\n"),
            ],
        )

    return damage


def bomb(size: int) -> tuple[bytes, int]:
    """Zeros, deflated a thousandfold, made in no time: (compressed, how many bytes it is)."""
    step, packer = 2**20, zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(b"\0" * step) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // step) + zlib.compressobj(9, zlib.DEFLATED, -15).flush(), size // step * step


def deflated(data: bytes) -> tuple[bytes, dict[str, Any]]:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    return packed, {"method": 8, "size": len(data), "crc": zlib.crc32(data)}


def member(pattern: str, to: Callable[[str, bytes], tuple[Any, ...]]) -> Callable[[list[tuple[Any, ...]], Path], list[tuple[Any, ...]]]:
    return lambda found, sentinel: [to(n, d) if re.search(pattern, n) else (n, d) for n, d in found]


def exploding(n: str, d: bytes) -> tuple[Any, ...]:
    data, size = bomb(3 * 2**30)
    return n, data, {"method": 8, "size": size}


def legacy(path: Path, sentinel: Path) -> None:
    """The older format: a magic number, a version, the system, then the pickle that runs."""
    parts = [
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}},
    ]
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + program(sentinel) + pickle.dumps([], 2))


def nested(path: Path, sentinel: Path) -> None:
    zipped(path.with_name("inner.bin"), [("archive/data.pkl", program(sentinel)), ("archive/version", b"3\n")])
    zipped(path, [("archive.zip", path.with_name("inner.bin").read_bytes())])
    path.with_name("inner.bin").unlink()


# A: safetensors


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def header(
    to: Callable[[dict[str, Any]], Any], name: str = UNET, length: int | None = None, data: Callable[[bytes], bytes] = bytes
) -> Damage:
    """A safetensors file whose header is replaced by what `to` makes of it (None: what it changed in place), over the same data."""

    def rewrite(content: bytes) -> bytes:
        head, rest = split(content)
        new = to(head)
        return join(head if new is None else new, data(rest), length)

    return change(name, rewrite)


def entry(values: Any = None, name: str = UNET, **more: Any) -> Damage:
    """Fields of one tensor's entry; a function gets the entry and gives the fields."""

    def to(head: dict[str, Any]) -> None:
        one = head[sorted(head)[1]]  # the first is the metadata
        one |= {**(values(one) if callable(values) else values or {}), **more}

    return header(to, name)


def text(to: Callable[[str], str]) -> Damage:
    """The header as text: for what a dictionary cannot hold."""
    return header(lambda head: to(json.dumps(head, separators=(",", ":"))).encode())


def tensors(to: Callable[[dict[str, Any]], Any], name: str = UNET) -> Damage:
    """The file written again with other tensors, well formed."""

    def damage(folder: Path, sentinel: Path) -> None:
        from safetensors.torch import save_file

        state = tensors_of(folder / name)
        save_file(to(state) or state, folder / name, metadata={"format": "pt"})

    return damage


def both_ends(e: dict[str, Any]) -> list[int]:
    return list(e["data_offsets"])


def neighbours(head: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted((e for name, e in head.items() if name != "__metadata__"), key=lambda e: e["data_offsets"])


def of_file(name: str) -> tuple[str, str]:
    return name.split("/")[0], name.split("/")[1]


IN_UNET = of_file(UNET)
DAMAGED_EVERYWHERE: dict[str, Callable[[str], Damage]] = {
    "is empty": lambda f: put(f, b""),
    "is cut in the length": lambda f: cut(f, 4),
    "is cut in the header": lambda f: cut(f, 100),
    "is cut in the middle": lambda f: cut(f, 0.5),
    "lacks its last byte": lambda f: cut(f, -1),
    "has a byte too many": lambda f: change(f, lambda data: data + b"\0"),
    "is a page": lambda f: put(f, HTML),
    "is a pointer of git-lfs": lambda f: put(f, LFS),
    "has a header that is a list": lambda f: header(lambda head: [head], f),
    "has tensors over each other": lambda f: header(
        lambda head: neighbours(head)[1].update(data_offsets=both_ends(neighbours(head)[0])), f
    ),
    "has a dtype that is none": lambda f: entry(dtype="F31", name=f),
    "has metadata that are no text": lambda f: header(lambda head: head.update(__metadata__={"format": 1}), f),
    "is a pickle": lambda f: payload(f, "os.system"),
}


def renamed(state: dict[str, Any]) -> None:
    state["renamed.weight"] = state.pop("conv_in.weight")


def missing(state: dict[str, Any]) -> None:
    for name in [name for name in state if name.endswith("bias")]:
        del state[name]


def as_float16(state: dict[str, Any]) -> dict[str, Any]:
    return {name: t.half() for name, t in state.items()}


def with_nan(state: dict[str, Any]) -> None:
    state["conv_in.weight"][:] = NAN


TENSOR = ("unet", "conv_in.weight")
SAFETENSORS = [
    *(refuse(f"{f} {what}", damage(f), *of_file(f)) for f in WEIGHTS for what, damage in DAMAGED_EVERYWHERE.items()),
    *(refuse(f"{f} is {what}", special(f, SPECIAL[what]), f.split("/")[0]) for f in WEIGHTS for what in ("a folder", "a pipe")),
    *(refuse(f"cut to {n} bytes", cut(UNET, n), *IN_UNET) for n in (1, 7, 8, 9, 10, -8, -4096, 0.1, 0.9)),
    refuse("cut where the header ends", change(UNET, lambda data: data[: 8 + int.from_bytes(data[:8], "little")]), *IN_UNET),
    refuse("cut one byte before the header ends", change(UNET, lambda data: data[: 7 + int.from_bytes(data[:8], "little")]), *IN_UNET),
    refuse("cut one byte after the header", change(UNET, lambda data: data[: 9 + int.from_bytes(data[:8], "little")]), *IN_UNET),
    refuse("4096 bytes too many", change(UNET, lambda data: data + b"\0" * 4096), *IN_UNET),
    refuse("the file twice", change(UNET, lambda data: data * 2), *IN_UNET),
    *(
        refuse(f"a header of {n} bytes", header(lambda head: None, length=n), *IN_UNET)
        for n in (0, 1, 2, 2**31, 2**32, 2**62, 2**63, 2**64 - 1)
    ),
    refuse("a header as long as the file", change(UNET, lambda data: struct.pack("<Q", len(data)) + data[8:]), *IN_UNET),
    refuse("a header of all that is left", change(UNET, lambda data: struct.pack("<Q", len(data) - 8) + data[8:]), *IN_UNET),
    refuse(
        "a header one byte too long",
        change(UNET, lambda data: struct.pack("<Q", int.from_bytes(data[:8], "little") + 1) + data[8:]),
        *IN_UNET,
    ),
    refuse(
        "a header eight bytes too short",
        change(UNET, lambda data: struct.pack("<Q", int.from_bytes(data[:8], "little") - 8) + data[8:]),
        *IN_UNET,
    ),
    refuse("a length in the other byte order", change(UNET, lambda data: data[:8][::-1] + data[8:]), *IN_UNET),
    refuse(
        "a header of 10 GB, in a sparse file", both(put(UNET, struct.pack("<Q", 10**10) + b"{"), of_length(UNET, 10**10 + 100)), *IN_UNET
    ),
    refuse(
        "a header of 101 MB",
        both(put(UNET, struct.pack("<Q", 101 * 10**6) + b"{}" + b" " * 1000), of_length(UNET, 101 * 10**6 + 8)),
        *IN_UNET,
    ),
    refuse("a header that is not JSON", text(lambda t: t.replace(":", "=")), *IN_UNET),
    refuse("a header that is a number", header(lambda head: b"12345678"), *IN_UNET),
    refuse("a header that is null", header(lambda head: b"null    "), *IN_UNET),
    refuse("a header that is text", header(lambda head: b'"' + CANARY.encode() + b'"'), *IN_UNET),
    refuse("a header that begins with a space", text(lambda t: " " + t), *IN_UNET),
    refuse("a header with a byte-order mark", text(lambda t: "\ufeff" + t), *IN_UNET),
    refuse("a header with single quotes", text(lambda t: t.replace('"', "'")), *IN_UNET),
    refuse("a header with a comment", text(lambda t: "{/* a */" + t[1:]), *IN_UNET),
    refuse("a header with a comma too many", text(lambda t: t[:-1] + ",}"), *IN_UNET),
    refuse("a header and more behind it", text(lambda t: t + "{}"), *IN_UNET),
    refuse("a header that is not UTF-8", header(lambda head: json.dumps(head).encode().replace(b"conv_in", b"conv\xff\xfe\xfd")), *IN_UNET),
    refuse("a header in UTF-16", header(lambda head: json.dumps(head).encode("utf-16")), *IN_UNET),
    refuse("a header of zeros", header(lambda head: b"\0" * 4096), *IN_UNET),
    refuse("a header 200000 lists deep", header(lambda head: DEEP.encode()), *IN_UNET),
    refuse("a header 100000 objects deep", header(lambda head: DEEP_OBJECT.encode()), *IN_UNET),
    refuse("metadata 100000 deep", text(lambda t: '{"__metadata__":{"a":' + DEEP_OBJECT + "}," + t[1:]), *IN_UNET),
    refuse("a shape 100000 deep", entry(lambda e: {"shape": json.loads("[" * 900 + "]" * 900)}), *IN_UNET),
    refuse("a header without tensors, and data", header(lambda head: {}), *IN_UNET),
    refuse("a header without tensors or data", header(lambda head: {}, data=lambda data: b""), "unet"),
    refuse(
        "the same name twice",
        text(lambda t: '{"conv_in.weight":' + t[t.index('"conv_in.weight":') + 17 :].split("}")[0] + "}," + t[1:]),
        *IN_UNET,
    ),
    refuse("the metadata twice", text(lambda t: '{"__metadata__":{"format":"pt"},' + t[1:]), *IN_UNET),
    *(
        refuse(f"metadata: {v!r}", header(lambda head, v=v: head.update(__metadata__=v)), *IN_UNET)
        for v in (["pt"], "pt", 1, {"a": {}}, {"a": None})
    ),
    *(refuse(f"a tensor that is {v!r}", header(lambda head, v=v: head.update(x=v)), *IN_UNET) for v in (None, 1, "F32", [], {})),
    *(
        refuse(f"dtype {v!r}", entry(dtype=v), *IN_UNET)
        for v in ("f32", "float32", "F128", "", "O", "os.system", None, 32, ["F32"], "F64", "F16", "U8")
    ),
    *(
        refuse(f"shape {v!r}"[:60], entry(shape=v), *IN_UNET)
        for v in (
            [-16],
            [-4, -4],
            [16.0],
            ["16"],
            [True] * 16,
            [None],
            "16",
            16,
            None,
            {},
            [2**62, 2**62],
            [2**64],
            [2**32, 2**32],
            [10**30],
            [0],
            [],
            [1e308],
            [-1],
            [NAN],
        )
    ),
    refuse("a shape of 100000 dimensions", entry(lambda e: {"shape": [1] * 100_000 + e["shape"]}), "unet"),
    *(
        refuse(f"offsets {v!r}"[:60], entry(data_offsets=v), *IN_UNET)
        for v in (
            [-64, 0],
            [0, -64],
            [0.0, 64.0],
            ["0", "64"],
            [0],
            [0, 64, 128],
            [],
            None,
            "0,64",
            [2**64, 2**64 + 64],
            [False, True],
            [2**63, 2**63 + 64],
            [0, 10**30],
        )
    ),
    refuse("offsets in reverse", entry(lambda e: {"data_offsets": both_ends(e)[::-1]}), *IN_UNET),
    refuse("a tensor behind the end", entry(lambda e: {"data_offsets": [v + 10**6 for v in both_ends(e)]}), *IN_UNET),
    refuse(
        "a tensor that goes beyond the end",
        header(
            lambda head: neighbours(head)[-1].update(
                shape=[10**6], data_offsets=[neighbours(head)[-1]["data_offsets"][0], neighbours(head)[-1]["data_offsets"][0] + 4 * 10**6]
            )
        ),
        *IN_UNET,
    ),
    refuse(
        "a gap before the first tensor",
        header(
            lambda head: [e.update(data_offsets=[v + 8 for v in both_ends(e)]) for e in neighbours(head)] and None,
            data=lambda data: b"\0" * 8 + data,
        ),
        *IN_UNET,
    ),
    refuse(
        "a gap between tensors",
        header(
            lambda head: [e.update(data_offsets=[v + 8 for v in both_ends(e)]) for e in neighbours(head)[5:]] and None,
            data=lambda data: data + b"\0" * 8,
        ),
        *IN_UNET,
    ),
    refuse(
        "all tensors are the same bytes",
        header(lambda head: [e.update(data_offsets=[0, e["data_offsets"][1] - e["data_offsets"][0]]) for e in neighbours(head)] and None),
        *IN_UNET,
    ),
    refuse(
        "a tensor inside another one",
        header(lambda head: head.update(x={"dtype": "F32", "shape": [4], "data_offsets": [16, 32]})),
        *IN_UNET,
    ),
    refuse("an entry without offsets", header(lambda head: head["conv_in.weight"].pop("data_offsets") and None), *IN_UNET),
    refuse("an entry without a shape", header(lambda head: head["conv_in.weight"].pop("shape") and None), *IN_UNET),
    either("an entry with a further key", entry(evil="os.system")),
    refuse("a missing tensor", tensors(lambda s: s.pop("conv_in.weight") is None or None), *TENSOR),
    refuse("half of the tensors are missing", tensors(missing), "unet"),
    refuse("a renamed tensor", tensors(renamed), *TENSOR),
    refuse("all tensors under another prefix", tensors(lambda s: {"model." + n: t for n, t in s.items()}), "unet"),
    refuse("another component's weights", copy(VAE, UNET), "unet"),
    refuse(
        "a transposed tensor",
        tensors(lambda s: s.update({"time_embedding.linear_1.weight": s["time_embedding.linear_1.weight"].T.contiguous()})),
        "unet",
        "time_embedding.linear_1.weight",
    ),
    refuse("a flattened tensor", tensors(lambda s: s.update({"conv_in.weight": s["conv_in.weight"].flatten()})), *TENSOR),
    refuse("a scalar in the place of a tensor", tensors(lambda s: s.update({"conv_in.weight": s["conv_in.weight"].sum()})), *TENSOR),
    refuse("an empty tensor in the place of one", tensors(lambda s: s.update({"conv_in.weight": s["conv_in.weight"][:0]})), *TENSOR),
    refuse("a tensor of whole numbers", tensors(lambda s: s.update({"conv_in.weight": s["conv_in.weight"].long()})), *TENSOR),
    refuse("a tensor of switches", tensors(lambda s: s.update({"conv_in.weight": s["conv_in.weight"] > 0})), *TENSOR),
    refuse("a complex tensor", tensors(lambda s: s.update({"conv_in.weight": s["conv_in.weight"] + 1j})), *TENSOR),
    refuse(
        "a transposed tensor of the text encoder",
        tensors(lambda s: {n: t.T.contiguous() if n.endswith("fc1.weight") else t for n, t in s.items()}, TEXT),
        "text_encoder",
        "fc1.weight",
    ),
    refuse(
        "a missing tensor of the text encoder",
        tensors(lambda s: {n: t for n, t in s.items() if not n.endswith("fc1.weight")}, TEXT),
        "text_encoder",
        "fc1.weight",
    ),
    refuse(
        "a whole number in the text encoder",
        tensors(lambda s: {n: t.long() if n.endswith("fc1.weight") else t for n, t in s.items()}, TEXT),
        "text_encoder",
        "fc1.weight",
    ),
    *(
        refuse(f"the unet's weights are {what}", special(UNET, make), "unet")
        for what, make in SPECIAL.items()
        if what not in ("a folder", "a pipe")
    ),
    refuse("a zip archive", both(put(UNET, b""), lambda folder, s: zipped(folder / UNET, [("a", b"b")])), *IN_UNET),
    refuse("a gzip file", change(UNET, lambda data: b"\x1f\x8b\x08" + zlib.compress(data)), *IN_UNET),
    refuse("an older file of torch.save", lambda folder, s: saved(folder / UNET, folder / UNET, zip_file=False), *IN_UNET),
    refuse("a file of torch.save", lambda folder, s: saved(folder / UNET, folder / UNET), *IN_UNET),
    refuse("no weights at all", drop(UNET), "unet"),
    refuse("no folder of the component", drop("unet"), "unet"),
    load("padded with spaces", header(lambda head: json.dumps(head).encode() + b" " * 1000), step=True),
    load(
        "not padded",
        change(
            UNET,
            lambda data: (lambda h, d: struct.pack("<Q", len(h)) + h + d)(
                json.dumps(split(data)[0], separators=(", ", ":")).encode(), split(data)[1]
            ),
        ),
        step=True,
    ),
    load("no metadata", header(lambda head: head.pop("__metadata__") and None)),
    load("the entries in another order", header(lambda head: dict(sorted(head.items(), reverse=True)))),
    load("much metadata", header(lambda head: head["__metadata__"].update({f"k{i}": "v" * 100 for i in range(5000)}))),
    load("an extra tensor", tensors(lambda s: s.update(stray=s["conv_in.weight"] + 1)), warns="stray"),
    load("an extra tensor without elements", tensors(lambda s: s.update(stray=s["conv_in.weight"][:0].clone())), warns="stray"),
    load("an extra tensor without dimensions", tensors(lambda s: s.update(stray=s["conv_in.weight"].sum())), warns="stray"),
    load("half precision", tensors(as_float16), same=False, step=True),
    load("weights that are not numbers", tensors(with_nan), same=False, warns="unet"),
]


# B: shards


def edit_index(folder: Path, shard: str) -> None:
    path = folder / f"{UNET}.index.json"
    content = json.loads(path.read_text())
    naming(shard)(content)
    path.write_text(json.dumps(content))


def sharded(
    name: str = UNET,
    of: int = 2,
    index: Callable[[dict[str, Any]], Any] = lambda i: None,
    placed: Callable[[list[dict[str, Any]]], Any] = lambda s: None,
) -> Damage:
    """The weights split over files. `placed` may move tensors between them once the index is made; `index` changes or replaces it."""

    def damage(folder: Path, sentinel: Path) -> None:
        from safetensors.torch import save_file

        state, stem = tensors_of(folder / name), name.removesuffix(".safetensors")
        (folder / name).unlink()
        names = [f"{Path(stem).name}-{i + 1:05d}-of-{of:05d}.safetensors" for i in range(of)]
        groups = [{n: t for n, t in list(state.items())[i::of]} for i in range(of)]
        content: Any = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}}
        content["weight_map"] = {n: names[i] for i, group in enumerate(groups) for n in group}
        placed(groups)
        for shard, group in zip(names, groups):
            save_file(group, (folder / name).with_name(shard), metadata={"format": "pt"})
        new = index(content)
        content = content if new is None else new
        (folder / f"{name}.index.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return damage


def naming(shard: Any) -> Callable[[dict[str, Any]], None]:
    """An index that names this file for all that is in the second shard."""
    return lambda i: i.update(weight_map={n: shard if "00002-of" in f else f for n, f in i["weight_map"].items()})


SECOND = f"{STEM}-00002-of-00002.safetensors"
AN_INDEX = ("unet", "index.json")
ODD_SHARDS = {
    "above the folder": f"../{SECOND}", "of another component": f"../vae/{STEM}.safetensors", "above, by a detour": f"x/../../{SECOND}",
    "with a backslash": f"..\\{SECOND}",
    "with a drive": f"C:{SECOND}", "of Windows": f"C:\\{SECOND}", "on a server of Windows": f"\\\\host\\{SECOND}",
    "as an address": f"https://example.com/{SECOND}",
    "in a subfolder": f"sub/{SECOND}", "that is empty": "", "that is a dot": ".", "that is two dots": "..",
    "with a zero byte": f"{SECOND}\0", "with a new line": f"{SECOND}\n",
    "with a star": "*.safetensors", "that is the configuration": "config.json", "that is a pickle": "x.bin",
    "of 100000 characters": "x" * 100_000, "from home": f"~/{SECOND}",
}  # fmt: skip
SHARDS = [
    load("two shards", sharded(), step=True),
    load("nine shards of the text encoder", sharded(TEXT, 9), step=True),
    *(
        refuse(
            f"a shard of {f[:4]} {what}",
            both(sharded(f, index=naming(n.replace(STEM, Path(f).stem))), copy(f"{f[:-12]}-00002-of-00002.safetensors", f"../{SECOND}")),
            f.split("/")[0],
        )
        for f in (UNET, TEXT)
        for what, n in ODD_SHARDS.items()
    ),
    refuse(
        "a shard by its absolute path",
        both(sharded(), move(f"unet/{SECOND}", f"../outside/{SECOND}"), lambda f, s: edit_index(f, str(f.parent / "outside" / SECOND))),
        "unet",
    ),
    refuse(
        "a shard above the folder that is there",
        both(sharded(index=naming(f"../../outside/{SECOND}")), move(f"unet/{SECOND}", f"../outside/{SECOND}")),
        "unet",
    ),
    *(
        refuse(f"a weight_map that is {v!r}"[:60], sharded(index=lambda i, v=v: i.update(weight_map=v)), *AN_INDEX)
        for v in (
            [],
            {},
            None,
            "x",
            5,
            ["a", "b"],
            {"conv_in.weight": 5},
            {"conv_in.weight": None},
            {"conv_in.weight": {}},
            {"conv_in.weight": [SECOND]},
        )
    ),
    refuse("an index without weight_map", sharded(index=lambda i: i.pop("weight_map") and None), *AN_INDEX),
    refuse("an index that is not JSON", sharded(index=lambda i: b'{"weight_map": ' + CANARY.encode()), *AN_INDEX),
    refuse("an index that is a list", sharded(index=lambda i: [i]), *AN_INDEX),
    refuse("an index that is empty", sharded(index=lambda i: b""), *AN_INDEX),
    refuse("an index that is deep", sharded(index=lambda i: DEEP_OBJECT.encode()), *AN_INDEX),
    refuse("an index of 65 MB", sharded(index=lambda i: json.dumps(i).encode() + b" " * 65 * 2**20), *AN_INDEX),
    refuse("an index of the text encoder that is a list", sharded(TEXT, index=lambda i: [i]), "text_encoder", "index.json"),
    refuse("an index of the text encoder without a map", sharded(TEXT, index=lambda i: {}), "text_encoder", "index.json"),
    either("an index that is a pipe", both(sharded(), special(f"{UNET}.index.json", os.mkfifo))),
    refuse("the second shard is not there", both(sharded(), drop(f"unet/{SECOND}")), "unet", "00002-of-00002"),
    refuse(
        "only the second shard is there", both(sharded(of=3), drop(*(f"unet/{STEM}-0000{i}-of-00003.safetensors" for i in (1, 3)))), "unet"
    ),
    refuse(
        "a shard of the text encoder is not there",
        both(sharded(TEXT), drop("text_encoder/model-00002-of-00002.safetensors")),
        "text_encoder",
        "00002-of-00002",
    ),
    refuse("only the index is there", both(sharded(), drop(f"unet/{SECOND}", f"unet/{SECOND.replace('2-of', '1-of')}")), "unet"),
    refuse("a shard is cut", both(sharded(), cut(f"unet/{SECOND}", 0.7)), "unet", SECOND),
    refuse("a shard is a page", both(sharded(), put(f"unet/{SECOND}", HTML)), "unet", SECOND),
    refuse("a shard is a pointer of git-lfs", both(sharded(), put(f"unet/{SECOND}", LFS)), "unet", SECOND),
    refuse(
        "a shard of the text encoder is cut",
        both(sharded(TEXT), cut("text_encoder/model-00002-of-00002.safetensors", -1)),
        "text_encoder",
        "00002-of-00002",
    ),
    refuse(
        "the index knows one shard of two",
        sharded(index=lambda i: i.update(weight_map={n: f for n, f in i["weight_map"].items() if f != SECOND})),
        "unet",
    ),
    refuse(
        "a tensor is in another shard than the index says",
        sharded(placed=lambda g: g[1].update({(n := next(iter(g[0]))): g[0].pop(n)})),
        "unet",
    ),
    refuse("all tensors are in other shards than the index says", sharded(placed=lambda g: g.reverse()), "unet"),
    refuse("a tensor of the index is in no shard", sharded(placed=lambda g: g[0].pop(next(iter(g[0]))) is None), "unet"),
    refuse("a tensor is in both shards", sharded(placed=lambda g: g[1].update(list(g[0].items())[:1])), "unet"),
    refuse(
        "a tensor of the text encoder is in both shards",
        sharded(TEXT, placed=lambda g: g[1].update({n: t + 1 for n, t in list(g[0].items())[:1]})),
        "text_encoder",
    ),
    refuse("the index lacks a tensor", sharded(index=lambda i: i["weight_map"].popitem() and None), "unet"),
    refuse("both shards are one file", sharded(index=naming(SECOND.replace("2-of", "1-of"))), "unet"),
    refuse("weights of one shard in two formats", both(sharded(), move(f"unet/{SECOND}", f"unet/{SECOND[:-12]}.bin")), "unet"),
    load("a wrong total_size", sharded(index=lambda i: i.update(metadata={"total_size": 5}))),
    load("a total_size that is absurd", sharded(index=lambda i: i.update(metadata={"total_size": 10**30}))),
    load("no metadata in the index", sharded(index=lambda i: i.pop("metadata") and None)),
    load("metadata that are null", sharded(index=lambda i: i.update(metadata=None))),
    load("an index with a byte-order mark", sharded(index=lambda i: b"\xef\xbb\xbf" + json.dumps(i).encode())),
    load("an index of the text encoder without metadata", sharded(TEXT, index=lambda i: i.pop("metadata") and None)),
    load("whole weights beside the shards", both(copy(UNET, "unet/x"), sharded(), move("unet/x", UNET))),
    load("shards without an index", both(sharded(), drop(f"{UNET}.index.json"))),
]


# C: model_index.json

LIBRARIES = (
    ("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("builtins", "exec"), ("sys", "exit"),
    ("importlib", "import_module"),
    ("torch", "load"), ("torch", "Tensor"), ("torch.nn", "Linear"), ("torch.hub", "load"), ("http.server", "HTTPServer"),
    ("wsgiref.simple_server", "WSGIServer"),
    ("../x", "Evil"), ("a.b.c", "Evil"), ("evil", "Evil"), (".", "Evil"), ("", "Evil"), ("__main__", "Evil"), ("unet/evil", "Evil"),
    ("transformers.utils", "logging"),
    ("transformers.pipelines", "pipeline"), ("darkroom.cli", "main"), ("darkroom.checkpoints.save", "save_model"),
    ("diffusers.utils", "logging"), ("numpy", "load"),
    ("onnxruntime.training", "ORTModule"), ("pathlib", "Path"), ("x" * 10_000, "Evil"), ("evil\0", "Evil"), ("evil\n", "Evil"),
)  # fmt: skip
CLASSES = (
    ("transformers", "system"), ("transformers", "eval"), ("transformers", "pipeline"), ("transformers", "AutoModel"),
    ("transformers", "AutoTokenizer"),
    ("transformers", "PreTrainedModel"), ("transformers", "Trainer"), ("transformers", "TrainingArguments"),
    ("transformers", "CLIPConfig"), ("transformers", "torch"),
    ("transformers", "__init__"), ("transformers", "__dict__"), ("transformers", "utils.logging"), ("transformers", ""),
    ("transformers", "CLIPTokenizer"),
    ("transformers", "CLIPTextModel"), ("diffusers", "system"), ("diffusers", "eval"), ("diffusers", "torch"),
    ("diffusers", "DiffusionPipeline"),
    ("diffusers", "StableDiffusionPipeline"), ("diffusers", "AutoPipelineForText2Image"),
    ("diffusers", "NoSuchModel"), ("diffusers", "__class__"),
    ("diffusers", "DDIMScheduler"), ("diffusers", "AutoencoderKL"), ("diffusers", "X" * 100_000), ("darkroom", "CheckpointError"),
    ("stable_diffusion", "Evil"),
)  # fmt: skip
NAMES = ("../x", "a/b", "/etc", "..", ".", "__class__", "__init__", "__dict__", "", "x" * 1000, "a\0b", "a\nb", "a\\b", "C:x", " ", "1st")
PAIR = ["diffusers", "UNet2DConditionModel"]
INDEXES = [
    *bad_json(INDEX, INDEX),
    *good_json(INDEX),
    *(
        refuse(
            f"{lib[:40]!r}, {c[:40]!r}", both(edit(INDEX, unet=[lib, c]), script("evil.py", "unet/evil.py", "../x.py")), "unet", inside=True
        )
        for lib, c in LIBRARIES
    ),
    *(refuse(f"{lib!r}, {c[:40]!r}", edit(INDEX, unet=[lib, c]), "unet") for lib, c in CLASSES),
    either("'diffusers', 'AutoModel'", edit(INDEX, unet=["diffusers", "AutoModel"])),
    refuse("a scheduler of os", edit(INDEX, scheduler=["os", "system"]), "scheduler"),
    refuse("a tokenizer of subprocess", edit(INDEX, tokenizer=["subprocess", "Popen"]), "tokenizer"),
    refuse("a text encoder of builtins", edit(INDEX, text_encoder=["builtins", "eval"]), "text_encoder"),
    refuse(
        "a safety checker of evil",
        both(edit(INDEX, safety_checker=["evil", "Evil"]), script("safety_checker/evil.py", "evil.py")),
        "safety_checker",
        inside=True,
    ),
    *(refuse(f"a component called {n[:20]!r}", edit(INDEX, {n: PAIR}), INDEX) for n in NAMES),
    refuse(
        "a network in the place of the scheduler",
        both(drop("scheduler"), copy("unet", "scheduler"), edit(INDEX, scheduler=PAIR)),
        "scheduler",
    ),
    refuse(
        "a network in the place of the tokenizer",
        both(drop("tokenizer"), copy("text_encoder", "tokenizer"), edit(INDEX, tokenizer=["transformers", "CLIPTextModel"])),
        "tokenizer",
    ),
    refuse(
        "a scheduler in the place of the unet",
        both(drop("unet"), copy("scheduler", "unet"), edit(INDEX, unet=["diffusers", "DDIMScheduler"])),
        "unet",
    ),
    refuse(
        "a tokenizer in the place of the unet",
        both(drop("unet"), copy("tokenizer", "unet"), edit(INDEX, unet=["transformers", "CLIPTokenizer"])),
        "unet",
    ),
    refuse(
        "a vae in the place of the unet", both(drop("unet"), copy("vae", "unet"), edit(INDEX, unet=["diffusers", "AutoencoderKL"])), "unet"
    ),
    refuse(
        "a text encoder in the place of the vae",
        both(drop("vae"), copy("text_encoder", "vae"), edit(INDEX, vae=["transformers", "CLIPTextModel"])),
        "vae",
    ),
    *(
        refuse(f"the unet is {v!r}"[:60], edit(INDEX, unet=v), "unet")
        for v in (
            {"library": "diffusers"},
            "UNet2DConditionModel",
            5,
            True,
            None,
            [],
            ["diffusers"],
            [*PAIR, "os"],
            [None, None],
            [None, "X"],
            ["X", None],
            [1, 2],
            [PAIR, PAIR],
            [{}, {}],
            ["diffusers", 5],
        )
    ),
    refuse("no unet", edit(INDEX, without=["unet"]), "unet"),
    refuse("no components", put(INDEX, '{"_class_name": "StableDiffusionPipeline"}'), "unet"),
    refuse("an empty object", put(INDEX, "{}"), INDEX),
    refuse("no _class_name", edit(INDEX, without=["_class_name"]), INDEX),
    *(
        refuse(f"_class_name {v!r}"[:60], both(edit(INDEX, _class_name=v), script("evil.py", "pipeline.py", "../x.py")), INDEX, inside=True)
        for v in (
            None,
            5,
            True,
            "",
            {},
            [],
            ["evil"],
            ["evil", "Evil", "x"],
            [["evil"], "Evil"],
            "NoSuchPipeline",
            "os.system",
            "evil.Evil",
            "../x",
            "DiffusionPipeline",
            "UNet2DConditionModel",
            "CheckpointError",
            "AutoPipelineForText2Image",
            "__class__",
            "FlashPack",
            "X" * 1_000_000,
        )
    ),
    *(
        refuse(f"_class_name {v!r}", both(edit(INDEX, _class_name=v), script("evil.py", "pipeline.py", "../x.py")), says, inside=True)
        for v, says in (
            (["evil", "Evil"], "evil.py"),
            (["pipeline", "Evil"], "pipeline.py"),
            (["../x", "Evil"], "../x"),
            (["/etc/x", "Evil"], "/etc/x"),
        )
    ),
    refuse(
        "code of its own, and trust forbidden",
        both(edit(INDEX, _class_name=["pipeline", "Evil"]), script("pipeline.py")),
        options={"trust_remote_code": True},
        env={"DARKROOM_DISABLE_REMOTE_CODE": "1"},
    ),
    refuse("custom_pipeline without trust", script("pipeline.py", "evil.py"), options={"custom_pipeline": "evil.py"}, inside=True),
    refuse("custom_pipeline of the folder without trust", script("pipeline.py"), options={"custom_pipeline": "pipeline"}, inside=True),
    load(
        "code of its own, and a class of ours asked for",
        both(edit(INDEX, _class_name=["pipeline", "Evil"]), script("pipeline.py")),
        cls="StableDiffusionPipeline",
        inside=True,
    ),
    load("trust, and nothing to trust", nothing, options={"trust_remote_code": True}),
    load(
        "trust, and stray files",
        script("pipeline.py", "unet/unet.py", "evil.py", "None.py"),
        options={"trust_remote_code": True},
        inside=True,
    ),
    load("an unknown component", both(edit(INDEX, spare=PAIR), copy("unet", "spare"))),
    load("an unknown component that is not there", edit(INDEX, spare=PAIR)),
    either("an unknown component of os", both(edit(INDEX, spare=["os", "system"]), script("evil.py"))),
    either("an unknown component of a library that is not loaded", edit(INDEX, spare=["wsgiref", "Evil"])),
    either("10000 unknown components", edit(INDEX, {f"c{i}": PAIR for i in range(10_000)})),
    load(
        "an unknown component called like a method",
        both(edit(INDEX, to=PAIR, save_pretrained=PAIR)),
        check=lambda pipe: callable(pipe.to) and callable(pipe.save_pretrained),
    ),
    load("an unknown option", edit(INDEX, my_option=[1, 2, 3]), check=lambda pipe: list(pipe.config["my_option"]) == [1, 2, 3]),
    load("an option called like a method", edit(INDEX, to=1, from_pretrained=True), check=lambda pipe: callable(pipe.to)),
    load("100000 options", edit(INDEX, {f"o{i}": i for i in range(100_000)})),
    load("a key for later", edit(INDEX, _evil=["os", "system"], _module="evil", _name_or_path="../../outside", _ignore_files=["../x", 5])),
    load("_name_or_path outside", edit(INDEX, _name_or_path="/etc/passwd")),
    load("a prefix that the layout knows", edit(INDEX, unet=["diffusers", "FlashPackUNet2DConditionModel"])),
    load("an older name of transformers", edit(INDEX, feature_extractor=[None, None], requires_safety_checker=None)),
    refuse("a folder with a README alone", lambda folder, s: [shutil.rmtree(folder), put("README.md", CANARY)(folder, s)], INDEX),
    refuse("an empty folder", lambda folder, s: [shutil.rmtree(folder), folder.mkdir()], INDEX),
]


# D: the configurations of networks


def field_cases(name: str, values: dict[str, tuple[Any, ...]]) -> list[Case]:
    """Values that are refused, one at a time."""
    component = name.split("/")[0]
    return [refuse(f"{component}: {key}={short(value)}", edit(name, {key: value}), component) for key, vs in values.items() for value in vs]


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:25]}... ({len(text)})"


NUMBERS = (-16, 0, 10**9, 4.5, "x", NAN, INFINITY, None, True, [4], {}, 10**30)
TEXTS = ("evil", "os.system", "__import__", "", 5, [], {}, ["silu"])
UNET_VALUES = {
    "in_channels": NUMBERS,
    "out_channels": (-4, 0, 10**9, "x", NAN),
    "block_out_channels": ([], [-16, 32], [0, 0], [16.5, 32], ["16", "32"], [NAN, 32], [10**9, 32], [INFINITY, 32],
        [16] * 10**6, 16, "16", None, [[16], [32]], [16], [32, 16]),
    "layers_per_block": (-1, 0, 10**7, 10**12, "x", NAN, [1], [10**7, 1], 1.5),
    "down_block_types": ([], ["evil", "evil"], ["os.system"] * 2, "CrossAttnDownBlock2D", [5, 5], None, ["DownBlock2D"] * 10**5, ["DownBlock2D"]),
    "up_block_types": (["evil", "evil"], [], None),
    "mid_block_type": ("evil", "os.system", 5),
    "norm_num_groups": (0, -1, 7, 10**9, "x", 1.5),
    "attention_head_dim": (0, -4, 10**9, "x", NAN, [], [4] * 10**6),
    "cross_attention_dim": (-1, 0, 10**9, "x", NAN, 10**12),
    "act_fn": TEXTS,
    "transformer_layers_per_block": (10**7, -1, "x"),
    "norm_eps": (NAN, INFINITY, "x", -1),
    "conv_in_kernel": (10**6, 0, -3, "x"),
    "num_class_embeds": (10**12, "x"),
    "time_embedding_type": ("evil", 5),
    "class_embed_type": ("evil",),
    "addition_embed_type": ("evil",),
    "freq_shift": ("x", NAN),
    "sample_size": ("x", NAN, {}),
    "flip_sin_to_cos": ("x",),
}  # fmt: skip
VAE_VALUES = {
    "scaling_factor": (NAN, INFINITY, -INFINITY, "x", None, 0, [0.18], {}, True),
    "latent_channels": (-4, 0, 10**9, "x", NAN),
    "block_out_channels": ([], [-16, 32], [10**9, 32], [16] * 10**6, "x"),
    "layers_per_block": (10**7, -1, "x"),
    "norm_num_groups": (0, 7, "x"),
    "down_block_types": (["evil", "evil"], [], 5),
    "up_block_types": (["evil", "evil"],),
    "act_fn": ("evil", 5),
    "in_channels": (10**9, -3, NAN),
    "out_channels": (10**9, 0),
    "shift_factor": (NAN, "x"),
}  # fmt: skip
TEXT_VALUES = {
    "hidden_size": (10**9, -32, 0, "x", NAN, 32.5, 33, None, [32]),
    "num_hidden_layers": (10**7, -1, "x", NAN, 1.5, 4),
    "vocab_size": (10**12, -1, 0, "x", NAN, 10**9),
    "intermediate_size": (10**9, -1, 0, "x"),
    "num_attention_heads": (0, 3, -1, 10**9, "x"),
    "max_position_embeddings": (10**9, -1, 0, "x"),
    "hidden_act": ("evil", "os.system", "__import__", 5),
    "layer_norm_eps": (NAN, "x"),
}  # fmt: skip
EVIL_MAP = {"AutoModel": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil", "CLIPTextModel": "evil.Evil"}
CONFIGURATIONS = [
    *(case for name in CONFIGS for case in bad_json(name)),
    *(case for name in CONFIGS for case in good_json(name)),
    *field_cases("unet/config.json", UNET_VALUES),
    *field_cases("vae/config.json", VAE_VALUES),
    *field_cases("text_encoder/config.json", TEXT_VALUES),
    *(
        either(f"{name}: {k}={v!r}", edit(name, {k: v}))
        for name in CONFIGS[:2]
        for k, v in [
            ("_class_name", "AutoModel"),
            ("_class_name", "os.system"),
            ("_class_name", 5),
            ("_use_default_values", 5),
            ("_use_default_values", [[1]]),
        ]
    ),
    refuse("the unet's configuration is the vae's", copy("vae/config.json", "unet/config.json"), "unet"),
    refuse("the vae's configuration is the text encoder's", copy("text_encoder/config.json", "vae/config.json"), "vae"),
    refuse("the text encoder's configuration is the unet's", copy("unet/config.json", "text_encoder/config.json"), "text_encoder"),
    refuse("an empty configuration of the unet", put("unet/config.json", "{}"), "unet"),
    refuse("an empty configuration of the text encoder", put("text_encoder/config.json", "{}"), "text_encoder"),
    refuse(
        "the defaults instead of what the unet has",
        edit("unet/config.json", _use_default_values=["block_out_channels", "cross_attention_dim"]),
        "unet",
    ),
    *(
        load(
            f"{name}: auto_map",
            both(edit(name, auto_map=EVIL_MAP), script(f"{name.split('/')[0]}/evil.py", "evil.py")),
            inside=True,
            step=True,
        )
        for name in CONFIGS
    ),
    load("auto_map to another repository", edit("text_encoder/config.json", auto_map={"AutoModel": "evil/repo--evil.Evil"})),
    *(
        either(f"text encoder: model_type {v!r}", edit("text_encoder/config.json", model_type=v))
        for v in ("bert", "evil", "os.system", 5, None, "../x")
    ),
    *(
        either(f"text encoder: {k}={v!r}", edit("text_encoder/config.json", {k: v}))
        for k in ("dtype", "torch_dtype")
        for v in ("load", "evil", 5, "int64", "hub.load")
    ),
    *(
        either(f"text encoder: {k}={v!r}", edit("text_encoder/config.json", {k: v}))
        for k, v in [
            ("attn_implementation", "evil/kernel"),
            ("_attn_implementation", "evil/kernel"),
            ("_attn_implementation_internal", "evil/kernel"),
            ("attn_implementation", "evil/kernel:os"),
            ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
            ("quantization_config", {"quant_method": "evil"}),
            ("quantization_config", 5),
            ("base_model_name_or_path", "../../outside"),
            ("_name_or_path", "../../outside"),
            ("architectures", ["evil"]),
            ("architectures", 5),
            ("tie_word_embeddings", "x"),
            ("device_map", "evil"),
            ("from_pretrained", "x"),
            ("forward", "x"),
            ("pruned_heads", {"0": [10**9]}),
            ("output_attentions", True),
            ("return_dict", False),
            ("torchscript", True),
        ]
    ),
    either(
        "adapter_config.json that leads outside",
        both(
            copy("text_encoder", "../outside/base"),
            put(
                "text_encoder/adapter_config.json",
                json.dumps(
                    {
                        "base_model_name_or_path": "../outside/base",
                        "peft_type": "LORA",
                        "auto_mapping": {"parent_library": "evil", "base_model_class": "Evil"},
                    }
                ),
            ),
            script("evil.py"),
        ),
        inside=True,
    ),
    either(
        "generation_config.json with code",
        put("text_encoder/generation_config.json", '{"custom_generate": "evil", "trust_remote_code": true}'),
    ),
    load("an unknown option of the unet", edit("unet/config.json", my_option={"a": [1]}), warns="my_option"),
    load(
        "options of the unet called like methods",
        edit("unet/config.json", forward=1, state_dict=2, config=3, __call__=4),
        check=lambda pipe: callable(pipe.unet.forward) and callable(pipe.unet.state_dict),
    ),
    load("an unknown option of the text encoder", edit("text_encoder/config.json", my_option={"a": [1]})),
    load(
        "a version of the far future",
        both(edit("unet/config.json", _diffusers_version="99.0"), edit("text_encoder/config.json", transformers_version="99.0")),
    ),
]


# E: schedulers

SCHEDULER_VALUES = {
    "num_train_timesteps": (0, -1, 10**12, "x", NAN, INFINITY, True, None, 1000.5, [1000], 10**30),
    "beta_start": (NAN, INFINITY, "x", -1, 2, None, True, [0.1], 10**300),
    "beta_end": (NAN, -INFINITY, "x", -1, 2, {}),
    "beta_schedule": ("evil", "os.system", "", None, 5, []),
    "prediction_type": ("evil", "", None, 5, []),
    "trained_betas": ([0.1] * 2 * 10**6, [NAN] * 1000, [INFINITY] * 1000, ["x"] * 1000, [-1] * 1000, [2] * 1000, "x", 5, {}, [[0.1]], []),
    "timestep_spacing": ("evil", 5, None),
    "steps_offset": ("x", NAN, 10**12, -(10**12), None),
    "clip_sample": ("x", 5),
    "clip_sample_range": (NAN, "x", -INFINITY),
    "set_alpha_to_one": ("x",),
    "thresholding": ("x", []),
    "dynamic_thresholding_ratio": (NAN, "x"),
    "sample_max_value": (NAN, "x"),
    "rescale_betas_zero_snr": ("x",),
}
SCHEDULERS = [
    *bad_json(SCHEDULER, "scheduler"),
    *good_json(SCHEDULER),
    *field_cases(SCHEDULER, SCHEDULER_VALUES),
    refuse("an unknown scheduler class", edit(INDEX, scheduler=["diffusers", "NoSuchScheduler"]), "scheduler"),
    refuse("the scheduler's folder is missing", drop("scheduler"), "scheduler"),
    refuse("the scheduler's folder is a file", both(drop("scheduler"), put("scheduler", CANARY)), "scheduler"),
    either("a configuration of an unknown class", edit(SCHEDULER, _class_name="os.system")),
    either("_use_default_values is a number", edit(SCHEDULER, _use_default_values=5)),
    either("_use_default_values holds lists", edit(SCHEDULER, _use_default_values=[[1]])),
    *(
        load(f"the index says {c}", both(edit(INDEX, scheduler=["diffusers", c]), edit(SCHEDULER, skip_prk_steps=True)), step=True)
        for c in ("EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
    ),
    load(
        "the configuration is of another class",
        edit(SCHEDULER, _class_name="EulerDiscreteScheduler"),
        step=True,
        check=lambda pipe: type(pipe.scheduler).__name__ == "DDIMScheduler",
    ),
    load(
        "keys of other classes",
        edit(SCHEDULER, skip_prk_steps=True, use_karras_sigmas=False, evil="os.system", step="x"),
        check=lambda pipe: callable(pipe.scheduler.step),
    ),
    load("few keys", put(SCHEDULER, '{"_class_name": "DDIMScheduler"}'), step=True),
    load("trained betas", edit(SCHEDULER, trained_betas=[0.01] * 1000), step=True),
    *(
        refuse(f"ddpm: {k}={short(v)}", edit(SCHEDULER, {k: v}), "scheduler", base="ddpm")
        for k, v in [
            ("num_train_timesteps", 0),
            ("num_train_timesteps", 10**12),
            ("beta_start", NAN),
            ("prediction_type", "evil"),
            ("variance_type", "evil"),
            ("beta_schedule", "evil"),
        ]
    ),
]


# F: tokenizers

OLD = drop("tokenizer/tokenizer.json")  # the layout of vocab.json and merges.txt alone
TOK, TOK_CONFIG = "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"


def old(damage: Damage) -> Damage:
    return both(OLD, damage)


JINJA = (
    "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if 'wrap_close' in c.__name__ %}"
    "{{ c.__init__.__globals__['system']('touch SENTINEL') }}{% endif %}{% endfor %}"
)


def jinja(*names: str) -> Damage:
    """A chat template that runs a command where templates are not sandboxed."""

    def damage(folder: Path, sentinel: Path) -> None:
        for name in names:
            template = JINJA.replace("SENTINEL", str(sentinel))
            if name.endswith(".json"):
                edit(name, chat_template=template)(folder, sentinel)
            else:
                put(name, template)(folder, sentinel)

    return damage


TOKENIZERS = [
    load("vocab.json and merges.txt alone", OLD, step=True),
    load("tokenizer.json alone", drop("tokenizer/vocab.json", "tokenizer/merges.txt")),
    load("no tokenizer_config.json", both(drop(TOK_CONFIG)), same=False),
    *(
        refuse(f"vocab.json is {what}", old(put("tokenizer/vocab.json", c)), "tokenizer")
        for what, c in {
            "not JSON": '{"a": ' + CANARY,
            "empty": "",
            "a list": "[1]",
            "null": "null",
            "deep": DEEP,
            "a deep object": DEEP_OBJECT,
            "a page": HTML,
            "an empty object": "{}",
            "text to text": '{"a": "b"}',
            "negative": '{"a": -1}',
            "of fractions": '{"a": 1.5}',
            "huge": '{"a": 10000000000000000000000000000}',
            "binary": b"\xff\xfe\0\0" * 1000,
        }.items()
    ),
    refuse("vocab.json is UTF-16", old(change("tokenizer/vocab.json", lambda data: data.decode().encode("utf-16"))), "tokenizer"),
    refuse("vocab.json of 300 MB", old(of_length("tokenizer/vocab.json", 300 * 2**20)), "tokenizer"),
    refuse("vocab.json is missing", old(drop("tokenizer/vocab.json")), "tokenizer", "vocab.json"),
    refuse("merges.txt is missing", old(drop("tokenizer/merges.txt")), "tokenizer", "merges.txt"),
    refuse("vocab.json is a pipe", old(special("tokenizer/vocab.json", os.mkfifo)), "tokenizer"),
    refuse("merges.txt is a pipe", old(special("tokenizer/merges.txt", os.mkfifo)), "tokenizer"),
    refuse("vocab.json is /dev/zero", old(special("tokenizer/vocab.json", SPECIAL["a link to /dev/zero"])), "tokenizer"),
    refuse("merges.txt is /dev/zero", old(special("tokenizer/merges.txt", SPECIAL["a link to /dev/zero"])), "tokenizer"),
    refuse("merges.txt is binary", old(put("tokenizer/merges.txt", b"\xff\xfe\0\x80" * 1000)), "tokenizer"),
    refuse("merges.txt has tokens that there are not", old(put("tokenizer/merges.txt", "#version: 0.2\nnot there\n")), "tokenizer"),
    refuse("merges.txt has a line of 50 MB", old(put("tokenizer/merges.txt", "#version: 0.2\n" + "x" * 50 * 2**20 + "\n")), "tokenizer"),
    refuse("merges.txt has lines of three words", old(put("tokenizer/merges.txt", "#version: 0.2\nt h e\n")), "tokenizer"),
    refuse("merges.txt is a page", old(put("tokenizer/merges.txt", HTML)), "tokenizer"),
    *(
        refuse(f"tokenizer.json is {what}", put(TOK, c), "tokenizer")
        for what, c in {
            "not JSON": '{"a": ' + CANARY,
            "empty": "",
            "a list": "[]",
            "an empty object": "{}",
            "null": "null",
            "deep": DEEP,
            "a deep object": DEEP_OBJECT,
            "a page": HTML,
            "binary": b"\xff\xfe\0" * 1000,
        }.items()
    ),
    either("tokenizer.json is a pipe", special(TOK, os.mkfifo)),
    either("tokenizer.json is /dev/zero", special(TOK, SPECIAL["a link to /dev/zero"])),
    refuse("tokenizer.json of 2 GB", of_length(TOK, 2**31), "tokenizer"),
    refuse("tokenizer.json with a model that is none", edit(TOK, model={"type": "Evil", "vocab": {}}), "tokenizer"),
    refuse("tokenizer.json without a model", edit(TOK, without=["model"]), "tokenizer"),
    *(
        refuse(f"tokenizer_config.json is {what}", put(TOK_CONFIG, c), "tokenizer")
        for what, c in {
            "not JSON": '{"a": ' + CANARY,
            "empty": "",
            "a list": "[]",
            "null": "null",
            "deep": DEEP,
            "a deep object": DEEP_OBJECT,
            "a page": HTML,
        }.items()
    ),
    either("tokenizer_config.json is a pipe", special(TOK_CONFIG, os.mkfifo)),
    either("tokenizer_config.json is /dev/zero", special(TOK_CONFIG, SPECIAL["a link to /dev/zero"])),
    refuse("no files at all", both(drop("tokenizer"), lambda f, s: (f / "tokenizer").mkdir()), "tokenizer"),
    refuse("the tokenizer's folder is missing", drop("tokenizer"), "tokenizer"),
    *(
        refuse(f"{k}={short(v)}", edit(TOK_CONFIG, {k: v}), "tokenizer")
        for k, v in [
            ("added_tokens_decoder", {"x": {"content": "x"}}),
            ("added_tokens_decoder", {"1": 5}),
            ("added_tokens_decoder", 5),
            ("unk_token", 5),
            ("unk_token", {"__type": "AddedToken", "content": 5}),
            ("model_max_length", "x"),
            ("model_max_length", -1),
            ("model_max_length", 0),
            ("model_max_length", NAN),
        ]
    ),
    *(
        either(f"{k}={short(v)}", edit(TOK_CONFIG, {k: v}))
        for k, v in [
            ("added_tokens_decoder", {"-1": {"content": "x"}}),
            ("added_tokens_decoder", {"99999999999": {"content": "x"}}),
            ("added_tokens_decoder", {str(i): {"content": f"t{i}"} for i in range(10**4)}),
            ("unk_token", "x" * 10**6),
            ("padding_side", "evil"),
            ("clean_up_tokenization_spaces", "x"),
            ("backend", "evil"),
            ("backend", "../x"),
            ("processor_class", "os.system"),
            ("slow_tokenizer_class", "evil"),
            ("config_class", "evil"),
            ("init_inputs", ["/etc/passwd"]),
            ("special_tokens_map_file", "../../outside/canary.txt"),
            ("extra_special_tokens", {"forward": "x"}),
        ]
    ),
    *(
        load(f"tokenizer_class {v!r}", both(edit(TOK_CONFIG, tokenizer_class=v), script("tokenizer/evil.py", "evil.py")), inside=True)
        for v in ("evil.Evil", "os.system", "NoSuchTokenizer", "../x", None)
    ),
    load(
        "auto_map with code",
        both(edit(TOK_CONFIG, auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}), script("tokenizer/evil.py", "evil.py")),
        inside=True,
    ),
    load("auto_map to another repository", edit(TOK_CONFIG, auto_map={"AutoTokenizer": ["evil/repo--evil.Evil", None]})),
    load("a chat template with code", jinja(TOK_CONFIG, "tokenizer/chat_template.jinja", "chat_template.jinja"), step=True),
    load("chat templates in a folder", jinja("tokenizer/additional_chat_templates/evil.jinja")),
    load("model_max_length 10^30", edit(TOK_CONFIG, model_max_length=10**30)),
    *(
        either(
            f"{what} leads outside",
            both(
                copy(TOK, "../outside/tokenizer.json"),
                damage,
                edit(
                    TOK_CONFIG,
                    {
                        k: "../outside/tokenizer.json"
                        for k in ("tokenizer_file", "vocab_file", "merges_file", "name_or_path", "fast_tokenizer_files")
                    },
                ),
            ),
        )
        for what, damage in {"tokenizer_file": nothing, "tokenizer_file without one of its own": OLD}.items()
    ),
    either(
        "special_tokens_map.json is odd",
        put("tokenizer/special_tokens_map.json", '{"unk_token": {"content": 5}, "additional_special_tokens": [[1]]}'),
    ),
    either("added_tokens.json is odd", old(put("tokenizer/added_tokens.json", '{"x": -5, "y": 99999999999}'))),
]


# G: pickles


SHAPE, STRIDE = (16, 4, 3, 3), (36, 9, 3, 1)
IN_BIN = of_file(BIN)
ONE = Storage("0", 1)
LARGE = Storage("0", 576)
DATA = b"\0" * 2304
CRAFTED: dict[str, Damage] = {
    "one value for all, by strides": crafted(rebuilt(ONE, 0, SHAPE, (0, 0, 0, 0))),
    "10^12 values out of one": crafted(rebuilt(ONE, 0, (10**6, 10**6), (0, 0))),
    "2^62 x 2^62 values out of none": crafted(rebuilt(Storage("0", 0), 0, (2**62, 2**62), (0, 0)), b""),
    "an offset behind the end": crafted(rebuilt(LARGE, 10**6, SHAPE, STRIDE), DATA),
    "an offset of 2^62": crafted(rebuilt(LARGE, 2**62, SHAPE, STRIDE), DATA),
    "a negative offset": crafted(rebuilt(LARGE, -4, SHAPE, STRIDE), DATA),
    "negative strides": crafted(rebuilt(LARGE, 575, SHAPE, (-36, -9, -3, -1)), DATA),
    "strides that go too far": crafted(rebuilt(LARGE, 0, SHAPE, (3600, 9, 3, 1)), DATA),
    "a negative shape": crafted(rebuilt(LARGE, 0, (-16, 4, 3, 3), STRIDE), DATA),
    "a shape of fractions": crafted(rebuilt(LARGE, 0, (16.0, 4.0, 3.0, 3.0), STRIDE), DATA),
    "a shape of text": crafted(rebuilt(LARGE, 0, "abcd", STRIDE), DATA),
    "a shape of 10^5 dimensions": crafted(rebuilt(LARGE, 0, (1,) * 10**5, (1,) * 10**5), DATA),
    "fewer strides than dimensions": crafted(rebuilt(LARGE, 0, SHAPE, (1,)), DATA),
    "a storage larger than its member": crafted(rebuilt(Storage("0", 576), 0, SHAPE, STRIDE)),
    "a storage of 2^60": crafted(rebuilt(Storage("0", 2**60), 0, SHAPE, STRIDE)),
    "a storage of -1": crafted(rebuilt(Storage("0", -1), 0, SHAPE, STRIDE)),
    "a storage of text": crafted(rebuilt(Storage("0", "many"), 0, SHAPE, STRIDE)),
    "a storage that is not there": crafted(rebuilt(Storage("1", 576), 0, SHAPE, STRIDE), DATA),
    "a storage above the archive": crafted(rebuilt(Storage("../../outside/canary.txt", 576), 0, SHAPE, STRIDE), DATA),
    "a storage by an absolute path": crafted(rebuilt(Storage("/etc/passwd", 576), 0, SHAPE, STRIDE), DATA, key="/etc/passwd"),
    "a storage whose name is a number": crafted(rebuilt(Storage(0, 576), 0, SHAPE, STRIDE), DATA[:100]),
    "a storage of an odd kind": crafted(rebuilt(Storage("0", 576, kind="os.system"), 0, SHAPE, STRIDE), DATA),
    "a storage of numbers that are none": crafted(rebuilt(Storage("0", 576, kind="QInt8Storage"), 0, SHAPE, STRIDE), DATA),
    "a tensor that is a list": crafted(Call(list, [1, 2, 3])),
    "a sparse tensor": crafted(Call(lazily("torch._utils", "_rebuild_sparse_tensor"), 0, (1, 2, 3))),
    "a tensor of another class": crafted(Call(lazily("torch._tensor", "_rebuild_from_type_v2"), Call(getattr, 1, "real"), int, (), {})),
    "hooks that are functions": crafted(rebuilt(LARGE, 0, SHAPE, STRIDE, False, OrderedDict({0: print})), DATA),
    "a deflated storage": crafted(rebuilt(LARGE, 0, SHAPE, STRIDE), deflated(DATA)[0], **deflated(DATA)[1]),
}  # fmt: skip
PICKLES = [
    *(refuse(f"payload: {kind}", payload(BIN, kind), *IN_BIN) for kind in PAYLOADS),
    *(
        refuse(f"bare payload: {kind}", alone(BIN, PAYLOADS[kind]), *IN_BIN)
        for kind in ("os.system", "exec", "protocol 4", "the opcode INST", "partial", "torch.load")
    ),
    *(
        refuse(f"text encoder: payload: {kind}", payload(TEXT_BIN, kind), *of_file(TEXT_BIN))
        for kind in ("os.system", "eval", "partial", "protocol 4", "torch.storage._load_from_bytes", "torch.load")
    ),
    *(refuse(f"pickle: {what}", archive(with_pickle(first(opcodes))), *IN_BIN) for what, opcodes in QUIET.items()),
    *(
        refuse(f"bare pickle: {what}", alone(BIN, lambda s, opcodes=opcodes: opcodes), *IN_BIN)
        for what, opcodes in list(QUIET.items())[::4]
    ),
    *(refuse(f"crafted: {what}", damage, "unet") for what, damage in CRAFTED.items()),
    refuse("a payload in a second pickle", archive(lambda m, s: [*m, (m[0][0], program(s))]), *IN_BIN),
    refuse("a payload in the first of two pickles", archive(lambda m, s: [(m[0][0], program(s)), *m]), *IN_BIN),
    refuse(
        "a payload behind the end of the pickle",
        both(pickled(zip_file=False), lambda f, s: change(BIN, lambda d: program(s) + d)(f, s)),
        *IN_BIN,
    ),
    refuse("a payload in the older format", both(drop(UNET), lambda f, s: legacy(f / BIN, s)), *IN_BIN),
    refuse("a payload inside a zip inside a zip", both(drop(UNET), lambda f, s: nested(f / BIN, s)), *IN_BIN),
    refuse("a deflated pickle", archive(member("data.pkl", lambda n, d: (n, *deflated(d)))), *IN_BIN),
    refuse("deflated storages", archive(member("/data/", lambda n, d: (n, *deflated(d)))), *IN_BIN),
    refuse("a pickle that is a bomb", archive(member("data.pkl", exploding)), *IN_BIN),
    refuse("a storage that is a bomb", archive(member("/data/0$", exploding)), *IN_BIN),
    refuse("a stray member that is a bomb", archive(lambda m, s: [*m, exploding("archive/x", b"")]), *IN_BIN),
    refuse("stored by name, a bomb by its directory", archive(member("/data/0$", lambda n, d: (n, d, {"size": 3 * 2**30}))), *IN_BIN),
    refuse(
        "a stored member of 4 GB in a small file",
        archive(member("/data/0$", lambda n, d: (n, d, {"size": 2**32 - 2, "packed": 2**32 - 2}))),
        *IN_BIN,
    ),
    refuse(
        "a pickle of 4 GB in a small file",
        archive(member("data.pkl", lambda n, d: (n, d, {"size": 2**32 - 2, "packed": 2**32 - 2}))),
        *IN_BIN,
    ),
    refuse("members over each other", archive(member("/data/", lambda n, d: (n, d, {"at": 0}))), *IN_BIN),
    refuse("a member behind the end", archive(member("/data/1$", lambda n, d: (n, d, {"at": 2**31}))), *IN_BIN),
    refuse("an encrypted member", archive(member("data.pkl", lambda n, d: (n, d, {"flags": 1}))), *IN_BIN),
    refuse("an unknown method of compression", archive(member("/data/1$", lambda n, d: (n, d, {"method": 99}))), *IN_BIN),
    refuse("a wrong checksum of the pickle", archive(member("data.pkl", lambda n, d: (n, d, {"crc": 1}))), *IN_BIN),
    either("a wrong checksum of a storage", archive(member("/data/1$", lambda n, d: (n, d, {"crc": 1})))),
    *(
        either(f"a stray member {n!r}", archive(lambda m, s, n=n: [*m, (n, CANARY.encode())]))
        for n in ("../../evil", "/tmp/evil", "archive/../../evil", "..\\evil", "C:\\evil", "archive/\0evil")
    ),
    either("a stray member that is a link", archive(lambda m, s: [*m, ("archive/data/link", b"/etc/passwd", {"mode": 0o120777})])),
    refuse("no pickle in the archive", archive(lambda m, s: [(n, d) for n, d in m if "data.pkl" not in n]), *IN_BIN),
    refuse("a storage is not in the archive", archive(lambda m, s: [(n, d) for n, d in m if not n.endswith("/data/0")]), "unet"),
    refuse("a storage is cut", archive(member("/data/0$", lambda n, d: (n, d[:-4]))), "unet"),
    refuse("an archive without members", archive(lambda m, s: []), *IN_BIN),
    refuse(
        "a zip directory that lies about its place", archive(lambda m, s: m, end=lambda tail: tail[:-6] + b"\xff\xff\xff\x7f\0\0"), *IN_BIN
    ),
    either(
        "an archive of TorchScript",
        archive(
            lambda m, s: [
                *m,
                ("archive/constants.pkl", program(s)),
                ("archive/code/__torch__.py", opening(s).encode()),
                ("archive/code/__torch__.py.debug_pkl", program(s)),
            ]
        ),
    ),
    *(refuse(f"a .bin cut to {n}", both(pickled(), cut(BIN, n)), *IN_BIN) for n in (0, 2, 4, 100, 0.5, 0.99, -1)),
    refuse("a .bin of text", both(drop(UNET), put(BIN, CANARY * 100)), *IN_BIN),
    refuse("a .bin that is a page", both(drop(UNET), put(BIN, HTML)), *IN_BIN),
    refuse("a .bin that is a pointer of git-lfs", both(drop(UNET), put(BIN, LFS)), *IN_BIN),
    refuse("a .bin that is a folder", both(drop(UNET), special(BIN, Path.mkdir)), "unet"),
    refuse("a .bin that is a pipe", both(drop(UNET), special(BIN, os.mkfifo)), "unet"),
    refuse("a .bin that is /dev/zero", both(drop(UNET), special(BIN, SPECIAL["a link to /dev/zero"])), "unet"),
    refuse("a .bin of 20 GB of nothing", both(drop(UNET), of_length(BIN, 20 * 2**30)), *IN_BIN),
    refuse("numbers as names", pickled(to=lambda s: dict(enumerate(s.values()))), *IN_BIN),
    refuse("a list of tensors", pickled(to=lambda s: list(s.values())), *IN_BIN),
    refuse("one tensor", pickled(to=lambda s: s["conv_in.weight"]), *IN_BIN),
    refuse("no tensors", pickled(to=lambda s: {}), "unet"),
    refuse("text in the place of tensors", pickled(to=lambda s: dict.fromkeys(s, CANARY)), "unet"),
    refuse("a number in the place of a tensor", pickled(to=lambda s: {**s, "conv_in.weight": 5}), *TENSOR),
    refuse("a tensor is missing in a .bin", pickled(to=lambda s: {n: t for n, t in s.items() if n != "conv_in.weight"}), *TENSOR),
    refuse("a tensor of another shape in a .bin", pickled(to=lambda s: {**s, "conv_in.weight": s["conv_in.weight"][:8].clone()}), *TENSOR),
    refuse("a sparse tensor in a .bin", pickled(to=lambda s: {**s, "conv_in.weight": s["conv_in.weight"].to_sparse()}), "unet"),
    refuse("a tensor on meta in a .bin", pickled(to=lambda s: {**s, "conv_in.weight": s["conv_in.weight"].to("meta")}), "unet"),
    refuse(
        "a missing tensor of the text encoder in a .bin",
        pickled(TEXT_BIN, to=lambda s: {n: t for n, t in s.items() if not n.endswith("fc1.weight")}),
        "text_encoder",
        "fc1.weight",
    ),
    refuse("a broken file beside a good .bin", both(pickled(keep=True), cut(UNET, 0.5)), *IN_UNET),
    refuse("an empty file beside a good .bin", both(pickled(keep=True), put(UNET, b"")), *IN_UNET),
    refuse("a page beside a good .bin", both(pickled(keep=True), put(UNET, HTML)), *IN_UNET),
    refuse("a pipe beside a good .bin", both(pickled(keep=True), special(UNET, os.mkfifo)), *IN_UNET),
    refuse("a link to nothing beside a good .bin", both(pickled(keep=True), special(UNET, SPECIAL["a link to nothing"])), "unet"),
    refuse(
        "a missing tensor beside a good .bin", both(pickled(keep=True), tensors(lambda s: s.pop("conv_in.weight") is None or None)), *TENSOR
    ),
    refuse("a missing shard beside a good .bin", both(pickled(keep=True), sharded(), drop(f"unet/{SECOND}")), "unet", "00002-of-00002"),
    refuse("a broken file of the text encoder beside a good .bin", both(pickled(TEXT_BIN, keep=True), cut(TEXT, 0.5)), *of_file(TEXT)),
    refuse("a .bin alone, asked for safetensors", pickled(), "unet", options={"use_safetensors": True}),
    refuse("a .bin alone, by the environment", pickled(), "unet", env={"DARKROOM_SAFETENSORS_ONLY": "1"}),
    refuse(
        "a .bin asked for, by the environment",
        all_pickled,
        "DARKROOM_SAFETENSORS_ONLY",
        options={"use_safetensors": False},
        env={"DARKROOM_SAFETENSORS_ONLY": "1"},
    ),
    refuse("a .bin of the text encoder, asked for safetensors", pickled(TEXT_BIN), "text_encoder", options={"use_safetensors": True}),
    refuse("a .bin of the text encoder, by the environment", pickled(TEXT_BIN), "text_encoder", env={"DARKROOM_SAFETENSORS_ONLY": "1"}),
    refuse(
        "a payload that was asked for", both(all_pickled, payload(BIN, "os.system", keep=True)), *IN_BIN, options={"use_safetensors": False}
    ),
    refuse(
        "a payload in a variant",
        both(all_pickled, payload(BIN, "os.system", keep=True), move(BIN, f"unet/{STEM}.fp16.bin")),
        *of_file(f"unet/{STEM}.fp16.bin"),
        options={"variant": "fp16", "use_safetensors": False},
    ),
    load(
        "a payload beside good weights",
        both(
            payload(BIN, "os.system", keep=True),
            lambda f, s: [
                put(n, program(s))(f, s)
                for n in (
                    "optimizer.bin",
                    "scheduler.bin",
                    "random_states_0.pkl",
                    "unet/training_args.bin",
                    "unet/x.ckpt",
                    "unet/x.pt",
                    "model.ckpt",
                )
            ],
        ),
        step=True,
    ),
    load("a .bin alone", pickled(), warns="pickle", step=True),
    load("a .bin of the text encoder alone", pickled(TEXT_BIN), warns="pickle", step=True),
    load("a .bin under state_dict", pickled(to=lambda s: {"state_dict": s}), warns="pickle"),
    load("a .bin with an extra tensor", pickled(to=lambda s: {**s, "stray": s["conv_in.weight"].clone()}), warns="stray"),
    load("a .bin asked for", all_pickled, options={"use_safetensors": False}, warns="pickle", step=True),
    load("a .bin of half precision", pickled(to=as_float16), same=False, warns="pickle"),
    either("a .bin in the older format", pickled(zip_file=False)),
    either("safetensors called .bin", move(UNET, BIN)),
    either("a .bin of views of one storage", pickled(to=lambda s: {**s, "conv_in.bias": s["conv_in.weight"].flatten()[:16]})),
]


# H: paths

STRICT = {"follow_links": False}
SNAPSHOT = f"models--org--name/snapshots/{0x5EED:040x}"
ODD_FOLDERS = (
    "with spaces", "Größe", "模型", "[brackets]", "{braces}", "{0}", "100%s", "%(name)s", "star*", "question?", "it's", 'quo"te', "-rf",
    "--help", "n" * 200, "a.b.c", "x.safetensors", "#hash", "$HOME",
    "~", "new\nline", "tab\t", "back\\slash", ".hidden", "model.tmp-0123abcd", "semi;colon", "&amp", "(1)", "\u202egnp", "+", "=", "@main",
    "a--b", "...", "unet.fp16",
)  # fmt: skip
STRAY = (
    "None.py", "__init__.py", "unet.py", "torch.py", "diffusers.py", "pipeline.py", "StableDiffusionPipeline.py", "sitecustomize.py",
    "conftest.py", "setup.py", "unet/__init__.py", "unet/unet.py",
    "unet/UNet2DConditionModel.py", "unet/diffusers.py", "scheduler/scheduler.py", "tokenizer/CLIPTokenizer.py",
    "tokenizer/transformers.py", "text_encoder/modeling_clip.py", "hubconf.py",
)  # fmt: skip
HIDDEN = (".DS_Store", "._model_index.json", "unet/._config.json", f"unet/._{STEM}.safetensors", "unet/.DS_Store", "Thumbs.db", "desktop.ini",
    ".gitattributes", ".git/config", "unet/config.json~",
    f"unet/{STEM} (1).safetensors", f"unet/{STEM}.safetensors.incomplete", "unet/.ipynb_checkpoints/config-checkpoint.json",
    ".cache/huggingface/x.lock", "text_encoder/._model.safetensors",
    "unet/notes.txt", "tokenizer/.DS_Store", "scheduler/._scheduler_config.json", "unet/x.safetensors", "lora.safetensors",
    "v1-5-pruned.ckpt", "text_encoder/flax_model.msgpack")  # fmt: skip


def read_only(folder: Path, sentinel: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def hub_cache(folder: Path, sentinel: Path) -> None:
    """The layout of the hub's cache: files are links to blobs."""
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir()
    for i, path in enumerate([path for path in folder.rglob("*") if path.is_file()]):
        path.rename(blobs / str(i))
        path.symlink_to(os.path.relpath(blobs / str(i), path.parent))


PATHS = [
    load("as it is", nothing, step=True),
    load("as it is, strictly", nothing, options=STRICT, step=True),
    load("an unconditional pipeline", nothing, base="ddpm", step=True),
    *(load(f"a folder called {n[:20]!r}", nothing, folder=n) for n in ODD_FOLDERS),
    refuse("damage in a folder with a long name", cut(UNET, 0.5), *IN_UNET, folder="n" * 200),
    refuse("damage in a folder with braces and percents", cut(UNET, 0.5), *IN_UNET, folder="{0}%s{x!r}"),
    *(
        load(f"{name} is a link to outside", lead_outside(name), outside=True)
        for name in ("vae", "unet", "tokenizer", "scheduler", UNET, TEXT, "unet/config.json", INDEX)
    ),
    *(
        refuse(f"{name} is a link to outside, strictly", lead_outside(name), name.split("/")[0], options=STRICT)
        for name in (
            "vae",
            "unet",
            "text_encoder",
            "tokenizer",
            "scheduler",
            UNET,
            TEXT,
            "unet/config.json",
            "text_encoder/config.json",
            "tokenizer/vocab.json",
            "tokenizer/tokenizer.json",
            SCHEDULER,
            INDEX,
        )
    ),
    refuse("a shard is a link to outside, strictly", both(sharded(), lead_outside(f"unet/{SECOND}")), "unet", options=STRICT),
    refuse("an index is a link to outside, strictly", both(sharded(), lead_outside(f"{UNET}.index.json")), "unet", options=STRICT),
    refuse(
        "a link over a link to outside, strictly", both(lead_outside("vae"), move("vae", "hop"), link("vae", "hop")), "vae", options=STRICT
    ),
    refuse(
        "an absolute link to outside, strictly",
        both(move("vae", "../outside/vae"), lambda f, s: (f / "vae").symlink_to(f.parent / "outside/vae")),
        "vae",
        options=STRICT,
    ),
    refuse(
        "a network with a link to outside, strictly",
        lead_outside(UNET),
        "safetensors",
        options={"subfolder": "unet", **STRICT},
        cls="UNet2DConditionModel",
    ),
    load("a link that stays inside", both(move("vae", "real"), link("vae", "real"))),
    load("a link that stays inside, strictly", both(move("vae", "real"), link("vae", "real")), options=STRICT),
    load("the folder is a link", lambda f, s: [f.rename(f.parent / "real"), f.symlink_to("real")]),
    load("the cache of the hub", hub_cache, folder=SNAPSHOT, step=True),
    load("the cache of the hub, strictly", hub_cache, folder=SNAPSHOT, options=STRICT),
    *(
        refuse(f"{name} is a link to itself", link(name, Path(name).name), name.split("/")[0])
        for name in ("unet", "unet/config.json", "scheduler", "tokenizer")
    ),
    *(
        refuse(f"{name} is a link to nothing", link(name, "nowhere"), name.split("/")[0])
        for name in ("vae", UNET, "text_encoder/config.json", SCHEDULER)
    ),
    refuse("two links to each other", both(link("unet", "there"), link("there", "unet")), "unet"),
    refuse("the unet is a link to the folder itself", link("unet", "."), "unet"),
    refuse("the unet is a link to /", link("unet", "/"), "unet"),
    refuse("the unet is a link to /proc/self", link("unet", "/proc/self"), "unet"),
    refuse("the unet is a file", both(drop("unet"), put("unet", CANARY)), "unet"),
    refuse("the unet is a pipe", both(drop("unet"), special("unet", os.mkfifo)), "unet"),
    load("a loop of links beside the rest", both(link("loop", "loop"), link("unet/self", "."), link("up", ".."))),
    load("a read-only folder", read_only, step=True),
    load("stray Python files", script(*STRAY), step=True),
    load("stray Python files, in the current directory", script(*STRAY), inside=True, step=True),
    load("stray Python files, and the current directory as the source", script(*STRAY), inside=True, source=lambda folder: "."),
    load("modules without a file ending", both(*(put(n, "x") for n in ("evil.so", "unet/evil.pyc", "None.pyc", "x.pth")))),
    load("files of Macs, Windows and editors", both(*(put(n, CANARY) for n in HIDDEN)), step=True),
    load(
        "a pipe and a socket beside the rest",
        both(special("pipe", os.mkfifo), special("unet/pipe", os.mkfifo), special("tokenizer/sock", bind)),
    ),
    load("10000 files beside the rest", lambda f, s: [(f / "unet" / f"{i}.txt").touch() for i in range(10_000)]),
    load("folders 200 deep beside the rest", lambda f, s: (f / "/".join(["d"] * 200)).mkdir(parents=True)),
    load(
        "leavings of a save that was killed",
        lambda f, s: [
            *(shutil.copytree(f, f.with_name(name)) for name in (f"{f.name}.tmp-0123abcd", f".{f.name}.saving-0123abcd")),
            *(
                put(name, CANARY)(f, s)
                for name in (f"{UNET}.tmp-0123abcd", f"unet/.{STEM}.safetensors.saving-0123abcd", ".unet.saving-0123abcd/x")
            ),
        ],
    ),
    load("a name that is not UTF-8 beside the rest", lambda f, s: Path(os.fsdecode(os.fsencode(f) + b"/\xff\xfe.txt")).touch()),
]


# I: arguments

LONG = "x" * 10_000
ARGUMENTS = [
    *(
        refuse(f"variant={v[:20]!r}", nothing, options={"variant": v})
        for v in ("../x", "index", "fp16/..", "fp16\0", "*", "fp16\\..", LONG, "/etc/passwd", "fp16", "safetensors")
    ),
    *(refuse(f"variant={v!r}", nothing, options={"variant": v}) for v in (5, True, ["fp16"], b"fp16")),
    either("variant=''", nothing, options={"variant": ""}),
    *(refuse(f"use_safetensors={v!r}", nothing, "use_safetensors", options={"use_safetensors": v}) for v in ("yes", [], 2)),
    *(
        refuse(f"subfolder={v[:20]!r}", copy("unet", "../outside/unet"), options={"subfolder": v}, cls="UNet2DConditionModel")
        for v in (
            "../outside/unet",
            "unet/../../outside/unet",
            "/etc",
            "\\..",
            "nowhere",
            "unet\0",
            LONG,
            "C:",
            "unet/config.json",
            "__pycache__",
            "~",
        )
    ),
    *(refuse(f"subfolder={v!r}", nothing, options={"subfolder": v}, cls="UNet2DConditionModel") for v in (5, ["unet"], b"unet")),
    load("subfolder='unet/'", nothing, options={"subfolder": "unet/"}, cls="UNet2DConditionModel"),
    *(
        refuse(f"source={str(v)[:30]!r}", nothing, source=lambda folder, v=v: v)
        for v in (
            "",
            "a/b/c",
            "a/../b",
            "../../etc",
            "https://example.com/org/name",
            "http://127.0.0.1/x",
            "file:///etc",
            "ftp://x/y",
            "//host/share",
            "\\\\host\\share",
            "a--b/c",
            "org/name.git",
            "x\0y",
            LONG,
            "org/" + LONG,
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/fd/0",
            "no-such-model",
            "org/name",
            "org/name@main",
            " ",
            "~",
            ".",
            "-",
            "%00",
            "org/na me",
            5,
            None,
            b"model",
            [],
            {},
            1.5,
            True,
        )
    ),
    refuse("source is model_index.json", nothing, source=lambda folder: str(folder / INDEX)),
    refuse("source is a weight file", nothing, source=lambda folder: str(folder / UNET)),
    refuse("source is a pipe", special("pipe", os.mkfifo), source=lambda folder: str(folder / "pipe")),
    refuse("source is a component", nothing, INDEX, source=lambda folder: str(folder / "unet")),
    refuse("source is below a file", nothing, source=lambda folder: str(folder / INDEX / "x")),
    refuse("source='..'", nothing, source=lambda folder: "..", outside=True),
    load("the current directory as the source", nothing, source=lambda folder: ".", inside=True),
    load("source is a Path", nothing, source=lambda folder: folder, step=True),
    load("source ends with a slash", nothing, source=lambda folder: f"{folder}/"),
    load("source by a detour", nothing, source=lambda folder: f"{folder}/unet/../../{folder.name}"),
    *(
        refuse(f"torch_dtype={v}", nothing, "dtype", options={"torch_dtype": v})
        for v in ("dtype:int64", "dtype:bool", "dtype:quint8", "dtype:uint8", "abc", "os.system", 5, True)
    ),
    *(
        refuse(f"dtype={v}", nothing, "dtype", options={"dtype": v})
        for v in ({"unet": "dtype:int64"}, {"default": "abc"}, [1], {"unet": 5})
    ),
    load("torch_dtype=bfloat16", nothing, options={"torch_dtype": "dtype:bfloat16"}, same=False),
    refuse("an unknown keyword", nothing, "evil", options={"evil": 1}),
    refuse("an unknown keyword like a component's name", nothing, "unett", options={"unett": None}),
    *(refuse(f"unet={v!r}", nothing, "unet", options={"unet": v}) for v in ("runwayml/x", 5, None, [], {})),
    refuse("device_map is odd", nothing, "device_map", options={"device_map": "evil"}),
    load("without a safety checker", nothing, options={"safety_checker": None}),
    load("local files only", nothing, options={"local_files_only": True}),
    load("a token that a folder does not need", nothing, options={"token": TOKEN}),
    refuse("a token and an id that is not there", nothing, "org/name", options={"token": TOKEN}, source=lambda folder: "org/name"),
    refuse("a revision that is a path", nothing, "revision", options={"revision": "../../x"}, source=lambda folder: "org/name"),
    load("a revision of a folder", nothing, options={"revision": "../../x"}),
    *(
        refuse(f"AutoModel of {v!r}", edit("unet/config.json", _class_name=v), options={"subfolder": "unet"}, cls="AutoModel")
        for v in ("os.system", "evil", "DDIMScheduler", "StableDiffusionPipeline", 5, None, [], "AutoModel")
    ),
    refuse("a network of another class", nothing, options={"subfolder": "text_encoder"}, cls="UNet2DConditionModel"),
    refuse("a scheduler out of a network's folder", nothing, options={"subfolder": "unet"}, cls="DDIMScheduler"),
    load("a scheduler out of its folder", nothing, options={"subfolder": "scheduler"}, cls="DDIMScheduler", same=False),
    load("another pipeline class", nothing, cls="StableDiffusionImg2ImgPipeline"),
    refuse("a pipeline class that needs more", nothing, "text_encoder", cls="StableDiffusionPipeline", base="ddpm"),
]

DDPM = [
    *(refuse(f"{what}", damage(UNET), *IN_UNET, base="ddpm") for what, damage in DAMAGED_EVERYWHERE.items()),
    *(
        refuse(f"block_out_channels={v!r}", edit("unet/config.json", block_out_channels=v), "unet", base="ddpm")
        for v in ([], [-16, 32], [10**9, 32])
    ),
    refuse("no weights", drop(UNET), "unet", base="ddpm"),
    refuse("a missing tensor", tensors(lambda s: s.pop("conv_in.weight") is None or None), *TENSOR, base="ddpm"),
    refuse("a payload", payload(BIN, "os.system"), *IN_BIN, base="ddpm"),
    load("a .bin", pickled(), base="ddpm", warns="pickle", step=True),
    load("shards", sharded(), base="ddpm", step=True),
    load(
        "its network in the root",
        lambda f, s: [p.rename(f / p.name) for p in list((f / "unet").iterdir())] and (f / "unet").rmdir(),
        base="ddpm",
        step=True,
    ),
]

GROUPS: dict[str, list[Case]] = {
    "safetensors": SAFETENSORS,
    "shards": SHARDS,
    "indexes": INDEXES,
    "configurations": CONFIGURATIONS,
    "schedulers": SCHEDULERS,
    "tokenizers": TOKENIZERS,
    "pickles": PICKLES,
    "paths": PATHS,
    "arguments": ARGUMENTS,
    "ddpm": DDPM,
}


# Controls: loaders that do what no loader may, and what the harness has to say


def unpickle(folder: Path) -> None:
    import torch

    torch.load(folder / BIN, weights_only=False)


def import_from(name: str) -> Callable[[Path], object]:
    return lambda folder: runpy.run_path(str(folder / name))


def render(folder: Path) -> None:
    import jinja2

    jinja2.Template(json.loads((folder / TOK_CONFIG).read_text())["chat_template"]).render()


def fill(folder: Path) -> None:
    bytearray(2_000_000_000)


def connect(folder: Path) -> None:
    with socket.socket() as client:
        client.connect_ex(("127.0.0.1", 9))


def control(name: str, damage: Damage, naive: Callable[[Path], object], caught: str, **more: Any) -> Case:
    return Case(name, damage, more.pop("must", "either"), naive=naive, caught=caught, **more)


def raise_secret(folder: Path) -> None:
    raise ValueError((folder / "secret").read_text())


CONTROLS = [
    *(control(f"payload: {kind}", payload(BIN, kind), unpickle, "code ran") for kind in PAYLOADS),
    control("a stray file is imported", script("unet/evil.py"), import_from("unet/evil.py"), "code ran"),
    control("a chat template is rendered", jinja(TOK_CONFIG), render, "code ran"),
    control("code of the folder is compiled and run", put("x.py", "pass"), import_from("x.py"), "code of the folder"),
    control("a process is started", nothing, lambda folder: subprocess.run(["true"], check=True), "process"),
    control("a connection is made", nothing, connect, "network"),
    control("a file is left inside", nothing, lambda folder: (folder / "unet/x").touch(), "left behind"),
    control("a file is left beside", nothing, lambda folder: (folder.parent / "x").touch(), "left behind"),
    control("a file is changed", nothing, lambda folder: (folder / UNET).write_bytes(b""), "changed"),
    control("a file is removed", nothing, lambda folder: (folder / UNET).unlink(), "removed"),
    control("a file outside is read", nothing, lambda folder: (folder.parent / "outside/canary.txt").read_text(), "outside"),
    control("a bait is imported", nothing, lambda folder: importlib.import_module("wsgiref.simple_server"), "import"),
    control("more memory than there is", nothing, fill, "memory"),
    control("more time than there is", nothing, lambda folder: time.sleep(60), "seconds"),
    control("a crash", nothing, lambda folder: os.abort(), "signal"),
    control("an error of another type", nothing, lambda folder: {}["x"], "KeyError", must="refuse"),
    control("an error that quotes", put("secret", CANARY), raise_secret, "quotes", must="refuse"),
    control("an error that is long", put("secret", "x" * 5000), raise_secret, "characters", must="refuse"),
    control("no error", nothing, lambda folder: None, "loaded", must="refuse"),
    control("an error where there is none", nothing, lambda folder: sys.exit(1), "SystemExit", must="load"),
]
