"""Weights out of files and into a module: headers are checked before memory is taken, tensors are mapped or cast in a stream."""

from __future__ import annotations
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from ..errors import CheckpointError, DarkroomError
from .files import open_regular

__all__ = ["Weights", "load_weights", "read_header"]

logger = logging.getLogger("darkroom")
CHUNK = 64 * 2**20  # bytes of file that one thread maps at a time
_DAMAGED = "The file is damaged or was not downloaded whole: fetch it again."
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32,
    "F32": torch.float32, "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name, on "meta". Raises CheckpointError where the format's own reader finds that the header is not at
    most 100 MB of well-formed JSON, a dtype is unknown, a shape disagrees with its bytes, or the tensors do not cover the file without a gap or
    overlap.
    """
    open_regular(path).close()
    try:
        with safe_open(path, framework="np") as file:
            entries = {name: file.get_slice(name) for name in file.keys()}
            return {name: torch.empty(e.get_shape(), dtype=_DTYPES[e.get_dtype()], device="meta") for name, e in entries.items()}
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise CheckpointError("Not a whole safetensors file.", where=path, got=str(error), fix=_DAMAGED) from None


def _unpickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled file, mapped. Nothing in it is executed."""
    open_regular(path).close()
    logger.warning("%s is a pickle: it is read with restrictions; safetensors files are faster and safer", path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        got, fix = type(error).__name__, "Convert it to safetensors."
        raise CheckpointError("A pickled file that cannot be read with restrictions.", where=path, got=got, fix=fix) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError("A pickled file that holds no tensors by name.", where=path, got=type(content).__name__)
    found = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if cut := [name for name, t in found.items() if t.is_sparse or t.is_quantized or t.nbytes > t.untyped_storage().nbytes()]:
        raise CheckpointError("A tensor that the file does not hold whole.", where=path, got=cut[0][:100], fix=_DAMAGED)
    return found


class Weights:
    """Tensors of several files by name: `entries` have their shapes and dtypes, `read` gives the values."""

    def __init__(self, paths: Iterable[Path]):  # reads headers only
        self.entries: dict[str, Tensor] = {}
        self.files: dict[str, Path] = {}
        for path in paths:
            found = read_header(path) if path.suffix == ".safetensors" else _unpickle(path)
            if doubled := self.entries.keys() & found.keys():
                raise CheckpointError("A tensor that two files hold.", where=path, got=min(doubled)[:100], expected="it in one of them")
            self.entries |= found
            self.files |= dict.fromkeys(found, path)

    def chunks(self, names: Iterable[str]) -> list[list[str]]:
        """The names, file by file, cut where a file or CHUNK bytes end."""
        groups: list[list[str]] = []
        room = 0
        for name in sorted(names, key=lambda name: (self.files[name], name)):
            if not groups or room <= 0 or self.files[groups[-1][-1]] != self.files[name]:
                groups, room = [*groups, []], CHUNK
            groups[-1].append(name)
            room -= self.entries[name].nbytes
        return groups

    def read(self, names: list[str], convert: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Tensors of one file, each passed through `convert`. Bytes that `convert` copied are unmapped at return."""
        path = self.files[names[0]]
        if path.suffix != ".safetensors":
            return {name: convert(name, self.entries[name]) for name in names}
        try:
            with safe_open(path, framework="pt") as file:
                mapped = ((name, file.get_tensor(name)) for name in names)
                # the format does not align tensors
                return {name: convert(name, t.clone() if t.data_ptr() % t.itemsize else t) for name, t in mapped}
        except (SafetensorError, OSError) as error:
            raise CheckpointError("A weight file that cannot be read.", where=path, got=str(error), fix=_DAMAGED) from None


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(name[:80] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _without_ones(shape: torch.Size) -> torch.Size:
    while shape and shape[-1] == 1:  # old checkpoints hold linear layers as 1x1 convolutions, and the reverse
        shape = shape[:-1]
    return shape


def load_weights(
    module: nn.Module, weights: Weights, *, dtype: torch.dtype | None = None, keep_in_float32: Collection[str] = (),
    rename: Callable[[str], str] = str, where: object = "model",
) -> None:  # fmt: skip
    """Give a module, built on "meta", the tensors of its files, on the CPU. Names and shapes are compared by the headers first. A tensor that already
    has its final dtype stays mapped to the file; the others are cast in chunks by several threads. A non-persistent buffer is in no file: build it
    with an explicit `device="cpu"`.
    Floating-point tensors become `dtype`, or stay what they are if it is None; those with a part of `keep_in_float32` in their dotted names become
    float32. `rename` gives the module's name of a tensor that the file may call otherwise; `where` is for messages. Raises CheckpointError if
    tensors are missing, two have one name, or one has another shape or kind than the module's.
    """
    state = module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = defaultdict(list)  # the names of one tensor
    for name, own in state.items():
        tied[id(own)].append(name)
    sources: dict[str, str] = {}
    for name in weights.entries:
        if (first := sources.setdefault(rename(name), name)) != name:
            raise CheckpointError("Two tensors of one name.", where=where, got=f"{first[:80]}, {name[:80]}", expected=rename(name))
    extra = sources.keys() - state.keys()
    if missing := [name for name, own in state.items() if sources.keys().isdisjoint(tied[id(own)])]:
        fix = f"The files have other names: {_some(extra)}" if extra else "Fetch the files again, or correct the configuration."
        raise CheckpointError(f"{len(missing)} tensors are not in the weight files.", where=where, got=_some(missing), fix=fix)
    targets = {source: target for target, source in sources.items() if target in state}
    for source, target in sorted(targets.items()):
        entry, own = weights.entries[source], state[target]
        if _without_ones(entry.shape) != _without_ones(own.shape):
            expected = f"{tuple(own.shape)}, by the configuration"
            raise CheckpointError("A tensor of another shape.", where=f"{where}: {target}", got=tuple(entry.shape), expected=expected)
        if (entry.is_floating_point(), entry.is_complex()) != (own.is_floating_point(), own.is_complex()):
            raise CheckpointError("A tensor of another kind.", where=f"{where}: {target}", got=entry.dtype, expected=own.dtype)
    if extra:
        logger.warning("%s: %d tensors of the weight files belong to nothing: %s", where, len(extra), _some(extra))

    def convert(name: str, tensor: Tensor) -> Tensor:
        target = targets[name]
        if tensor.is_floating_point():
            full = not set(target.split(".")).isdisjoint(keep_in_float32)
            tensor = tensor.to(torch.float32 if full else dtype or tensor.dtype)
        return tensor.reshape(state[target].shape)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for tensors in pool.map(lambda names: weights.read(names, convert), weights.chunks(targets)):
            for name, tensor in tensors.items():
                own = state[targets[name]]
                if isinstance(own, nn.Parameter):
                    tensor = nn.Parameter(tensor, requires_grad=own.requires_grad and tensor.is_floating_point())
                for place in tied[id(own)]:
                    owner, _, leaf = place.rpartition(".")
                    setattr(module.get_submodule(owner), leaf, tensor)
    if empty := [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]:
        fix = 'Build non-persistent buffers with an explicit device="cpu".'
        raise DarkroomError("Tensors that no file holds were left without values.", where=where, got=_some(empty), fix=fix)
