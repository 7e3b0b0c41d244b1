"""A machine for pickles of tensors: some forty opcodes, over plain data. It imports and calls nothing that a file names."""

from __future__ import annotations
import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple
import torch
from .safetensors import DTYPES, RANK_LIMIT

__all__ = ["Placed", "Storage", "run_pickle"]

OPCODE_LIMIT = 1_000_000  # each makes at most one small object; a tensor takes about forty


class Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    total: int  # elements in the file
    first: int = 0  # the elements of a view
    numel: int = 0


class Placed(NamedTuple):
    """A tensor, before it is known where its storage lies in the file."""

    storage: Storage
    dtype: torch.dtype
    first: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Inert:
    """Stands for a global and for whatever is made by calling it. `make` builds the few things that count, of plain data."""

    __slots__ = ("make",)

    def __init__(self, *_: object, make: Callable[..., Any] | None = None):
        self.make = make or _Inert


def _rebuild(
    storage: Any, first: Any, shape: Any, stride: Any, _grad: object = None, _hooks: object = None, dtype: Any = None, _: object = None
) -> Placed:
    dtype = dtype if isinstance(dtype, torch.dtype) else storage.dtype  # what stands in its place may be metadata
    numbers = (first, *shape, *stride)
    if len(shape) != len(stride) or len(shape) > RANK_LIMIT or not all(type(n) is int and 0 <= n < 2**60 for n in numbers):
        raise ValueError("a shape that is impossible")
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**60:
        raise ValueError("a shape that is too large")
    room, numel = storage.numel * storage.dtype.itemsize // dtype.itemsize, math.prod(shape)
    if numel and max(numel, first + 1 + sum((n - 1) * step for n, step in zip(shape, stride))) > room:
        raise ValueError("a tensor that the file does not hold whole")
    return Placed(storage, dtype, first, tuple(shape), tuple(stride))


_STORAGES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64, "Long": torch.int64, "Int": torch.int32,
    "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}  # fmt: skip
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Inert(make=lambda: {}),
    ("torch._utils", "_rebuild_tensor"): _Inert(make=_rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): _Inert(make=lambda *args: _rebuild(*args[:6])),
    ("torch._utils", "_rebuild_tensor_v3"): _Inert(make=_rebuild),
    ("torch._utils", "_rebuild_parameter"): _Inert(make=lambda tensor, *_: tensor),
    ("torch._utils", "_rebuild_parameter_with_state"): _Inert(make=lambda tensor, *_: tensor),
    **{(module, f"{name}Storage"): dtype for name, dtype in _STORAGES.items() for module in ("torch", "torch.cuda", "torch.storage")},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in (*DTYPES.values(), torch.complex128)},
}
_PLAIN = "dict list set frozenset tuple int float complex bool str bytes bytearray object slice range"  # what a type may be named for
_ARRAYS = [f"numpy{c}.multiarray" for c in (".core", "._core")]
_IGNORED = {  # beside the tensors of what trainers write; nothing is imported or made of them
    *((module, name) for module in ("builtins", "__builtin__") for name in _PLAIN.split()),
    *((module, name) for module in _ARRAYS for name in ("scalar", "_reconstruct")),
    *(("numpy", name) for name in "dtype ndarray float16 float32 float64 int32 int64 bool_ str_".split()),
    *(("torch", name) for name in ("Size", "device")),
    *(("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    *(("_codecs", "encode"), ("argparse", "Namespace"), ("collections", "defaultdict"), ("typing", "Any"), ("copyreg", "_reconstructor")),
}
_TRAINERS = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf", "ldm", "sgm", "taming")
_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING".split()
)
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": _Inert,
}  # fmt: skip


def _global(module: str, name: str) -> Any:
    found = _GLOBALS.get((module, name))
    if found is None and ((module, name) in _IGNORED or module.split(".")[0] in _TRAINERS):
        return _Inert()
    if found is None:
        raise ValueError(f"{module[:80]}.{name[:80]}, which weights have no need of")
    return found


def _persistent(pid: Any) -> Storage:
    kind, dtype, key, _, numel, *view = pid
    if (
        kind != "storage"
        or not isinstance(dtype, torch.dtype)
        or not isinstance(key, str)
        or type(numel) is not int
        or not 0 <= numel < 2**60
    ):
        raise ValueError("a storage that is not described")
    if not view or view[0] is None:
        return Storage(key, dtype, numel, 0, numel)
    _, first, size = view[0]
    if not all(type(n) is int and 0 <= n <= numel for n in (first, size)) or first + size > numel:
        raise ValueError("a part of a storage that lies outside of it")
    return Storage(key, dtype, numel, first, size)


def _add(target: Any, items: list[Any]) -> None:
    """SETITEMS: only what has a name counts; nothing else is hashed or compared."""
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                if key in target:
                    raise ValueError("one name twice")
                target[key] = value
    elif not isinstance(target, _Inert):
        raise ValueError("items of something that has none")


def run_pickle(stream: Any, storages: dict[str, Storage] | None = None) -> Any:
    """What the pickle at the position of a stream holds: plain data, `Placed` and `_Inert`. Enters its storages by their keys.

    Raises ValueError, IndexError, KeyError or TypeError for what is none of the known opcodes, globals and calls.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        begin = marks.pop()
        items = stack[begin:]
        del stack[begin:]
        return items

    arg: Any  # of the kind that the opcode says
    for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if count >= OPCODE_LIMIT:
            raise ValueError(f"more than {OPCODE_LIMIT} operations")
        match opcode.name:
            case name if name in _VALUES:
                stack.append(arg)
            case name if name in _MAKERS:
                stack.append(_MAKERS[name]())
            case "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(opcode.name[-1]) :] = [tuple(stack[-int(opcode.name[-1]) :])]
            case "GLOBAL":
                stack.append(_global(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(module + "", name + ""))  # text, or a TypeError
            case "BINPERSID":
                stack.append(storage := _persistent(stack.pop()))
                if storages is not None and storages.setdefault(storage.key, storage)[:3] != storage[:3]:
                    raise ValueError("two storages of one name")
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                if not isinstance(function, _Inert) or not isinstance(args, tuple):
                    raise ValueError("a call of something that is no function")
                stack.append(function.make(*args))
            case "NEWOBJ_EX":
                _, _, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(_Inert())
            case "APPEND" | "APPENDS":
                items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                if isinstance(stack[-1], list):
                    stack[-1].extend(items)
                elif not isinstance(stack[-1], _Inert):
                    raise ValueError("items of something that has none")
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _add(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                _add(stack[-1], items)
            case "ADDITEMS":
                since_mark()
            case "FROZENSET":
                since_mark()
                stack.append(_Inert())
            case "BUILD":  # attributes: no weights are among them
                stack.pop()
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case other:
                raise ValueError(f"the opcode {other}")
    raise ValueError("a pickle without an end")
