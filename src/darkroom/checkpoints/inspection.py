"""What a checkpoint is, before anything large is read or fetched: components, variants, sizes, and the memory that a run needs."""

from __future__ import annotations
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from ..errors import CheckpointError, DarkroomError
from ..models.base import Model
from ..models.several import Several
from .files import PathLike, inside, read_json
from .hub import listing_of, locate, read_range
from .index import INDEX_NAME, ModelIndex, component_class
from .models import DType, skeleton
from .placement import gigabytes
from .plan import parse_weight_name, plan_pipeline
from .safetensors import HEADER_LIMIT, Entry, parse_header, read_header

__all__ = ["Inspection", "Part", "inspect_checkpoint"]

FIRST = 2**16  # bytes that are asked for first: most headers are shorter


@dataclass(frozen=True)
class Part:
    """One component."""

    name: str
    library: str
    class_name: str
    known: bool  # whether darkroom or transformers has the class
    parameters: int | None = None  # numbers in its weights; None where it has none, or only pickled ones
    dtypes: dict[str, int] = field(default_factory=dict)  # dtype -> numbers, as stored
    variants: dict[str, int] = field(default_factory=dict)  # variant, "" for the plain weights -> bytes of files
    files: int = 0  # bytes that a load reads
    weights: int = 0  # bytes of the weights in memory
    activations: int | None = None  # bytes at the peak of one call, beside the weights; None: unknown, small or none
    largest: int = 0  # bytes of the largest single tensor


@dataclass(frozen=True)
class Inspection:
    """Sizes are bytes. `memory` is what a device needs by placement policy: all weights on it ("full"), one component at a time ("model"), one layer
    at a time ("sequential"); `height` and `width` are the picture's it was computed for, in pixels, None where no size is known."""

    source: str
    commit: str | None
    class_name: str
    parts: tuple[Part, ...]
    download: int
    dtype: str
    height: int | None
    width: int | None
    memory: dict[str, int]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """The table: component, class, parameters, stored as, variants, in memory."""
        found: list[tuple[str, ...]] = []
        for part in self.parts:
            count = "" if part.parameters is None else f"{part.parameters / 1e6:,.1f} M"
            variants = ", ".join(f"{name or 'plain'} {gigabytes(size)}" for name, size in part.variants.items())
            kind = f"{part.class_name}{'' if part.known else ' (unknown)'}"
            found.append((part.name, kind, count, ", ".join(part.dtypes), variants, gigabytes(part.weights) if part.weights else ""))
        return found

    def __str__(self) -> str:
        size = f" at {self.width}x{self.height}" if self.width and self.height else ""
        lines = [f"{self.source}: {self.class_name}{f', commit {self.commit}' if self.commit else ''}"]
        table = [("component", "class", "parameters", "stored as", "weights", f"in {self.dtype}"), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table)]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
        lines.append(f"to fetch or read: {gigabytes(self.download)}")
        lines += [f"memory{size}, {policy}: {gigabytes(need)}" for policy, need in self.memory.items()]
        return "\n".join([*lines, *self.notes])


class _Peak(TorchDispatchMode):
    """Adds up the tensors that are alive during a call on "meta"."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.live = {t.untyped_storage()._cdata: 0 for t in network.state_dict().values()}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and (key := (storage := t.untyped_storage())._cdata) not in self.live:
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._drop, key)
        return out

    def _drop(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def peak_activations(network: nn.Module, rows: int, height: int, width: int) -> int | None:
    """Bytes of intermediate results at the peak of one call for `rows` samples of this size, found on "meta" without computing.

    Attention counts as memory-efficient. None for a network that does not say what it is called with (`sample_call`).
    """
    if not hasattr(network, "sample_call"):
        return None
    network.attend = lambda q, k, v, **_: torch.empty_like(q)  # type: ignore[assignment]
    with torch.no_grad(), torch.device("meta"), _Peak(network) as peak:
        network.sample_call(rows, height, width)  # type: ignore[operator]
    return peak.most


def _header(
    source: PathLike, folder: Path, name: str, size: int, local: bool, commit: str | None, hub: Mapping[str, Any]
) -> dict[str, Entry]:
    if local:
        return read_header(folder / name)
    options = {**hub, "revision": commit}
    start = read_range(str(source), name, 0, min(FIRST, size), **options)
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise CheckpointError("Not a safetensors file.", where=f"{source}, {name}", got=f"a header of {length} bytes in a file of {size}")
    if len(start) < 8 + length:
        start += read_range(str(source), name, len(start), 8 + length - len(start), **options)
    return parse_header(start[8 : 8 + length], size - 8 - length, f"{source}, {name}")


class _Named:
    """Entries in the place of weights, where only headers were read."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries


def inspect_checkpoint(
    source: PathLike,
    *,
    dtype: DType = None,
    height: int | None = None,
    width: int | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **hub: Any,
) -> Inspection:
    """Look at a pipeline or a single network: a folder or a hub id, of which only configurations and headers are fetched.

    Args:
        dtype: the dtype to compute memory for; None: as stored.
        height, width: of the picture in pixels; None: what the denoiser was trained for.
        variant, use_safetensors: as for `from_pretrained`.
    Raises:
        CheckpointError: as `from_pretrained` does for what the listing, the configurations or the headers show.
    """
    found = listing_of(source, **hub)
    local, sizes = Path(source).is_dir(), found.sizes
    single = INDEX_NAME not in sizes and "config.json" in sizes
    small = [name for name in sizes if name in (INDEX_NAME, "config.json") or (name.endswith("/config.json") and name.count("/") == 1)]
    folder = locate(source, files=small, **({**hub, "revision": found.commit} if not local else hub))
    index = _single(folder) if single else ModelIndex.read(folder).with_further({n.partition("/")[0] for n in sizes if "/" in n})
    plan = plan_pipeline(list(sizes), index, variant=variant, use_safetensors=use_safetensors, dtype=dtype)
    cast = dtype if isinstance(dtype, torch.dtype) else None
    networks: dict[str, nn.Module] = {}
    parts = []
    for name, entry in index.components.items():
        if entry is None:
            continue
        prefix = f"{name}/" if any(path.startswith(f"{name}/") for path in sizes) else ""
        chosen = plan.weights.get(name)
        entries: dict[str, Entry] = {}
        if chosen is not None and chosen.format == "safetensors":
            for file in chosen.files:
                path = inside(folder, prefix + file).relative_to(folder).as_posix()
                entries |= _header(source, folder, path, sizes[path], local, found.commit, hub)
        known, network = _network(name, entry, folder / prefix, entries, cast)
        if network is not None:
            networks[name] = network
        dtypes: dict[str, int] = {}
        for e in entries.values():
            dtypes[str(e.dtype).removeprefix("torch.")] = dtypes.get(str(e.dtype).removeprefix("torch."), 0) + prod(e.shape)
        variants: dict[str, int] = {}
        for path, size in sizes.items():
            w = parse_weight_name(path.removeprefix(prefix)) if path.startswith(prefix) else None
            if w is not None and w.shard != "index" and w.ext == (chosen.format if chosen else "safetensors"):
                variants[w.variant or ""] = variants.get(w.variant or "", 0) + size
        files = sum(sizes[prefix + file] for file in chosen.files) if chosen else 0
        held = [prod(e.shape) * (cast if cast and e.dtype.is_floating_point else e.dtype).itemsize for e in entries.values()]
        count = sum(dtypes.values()) if entries else None
        parts.append(Part(name, *entry, known, count, dtypes, variants, files, sum(held) or files, None, max(held, default=0)))
    height, width, factor = _size(networks, height, width)
    parts = [_with_activations(part, networks.get(part.name), height, width, factor) for part in parts]
    shown = str(dtype).removeprefix("torch.") if cast else "the stored dtype"
    needed = sum(sizes.get(name, 0) for name in plan.files)
    return Inspection(
        str(source), found.commit or None, str(index.class_name), tuple(parts), needed, shown, height, width, _memory(parts), plan.notes
    )


def _single(folder: Path) -> ModelIndex:
    config = read_json(folder / "config.json")
    if isinstance(name := config.get("_class_name"), str):
        return ModelIndex(name, {"model": ("diffusers", name)})
    match config.get("architectures"):
        case [str(name), *_]:
            return ModelIndex(name, {"model": ("transformers", name)})
    raise CheckpointError("A configuration that names no class.", where=folder / "config.json", expected='"_class_name" or "architectures"')


def _network(
    name: str, entry: tuple[str, str], folder: Path, entries: dict[str, Entry], dtype: torch.dtype | None
) -> tuple[bool, nn.Module | None]:
    """Whether the class of a component is known, and the network on "meta" if it is one of darkroom's."""
    try:
        cls = component_class(name, *entry)
    except DarkroomError:
        return False, None
    if not issubclass(cls, Model) or not entries:
        return True, None
    with skeleton(_Named(entries), cls.__name__, folder / cls.config_name):  # type: ignore[arg-type]
        one = cls.part if issubclass(cls, Several) else cls  # the first of several
        network = one.from_config(read_json(folder / cls.config_name))
    stored = max((e.dtype for e in entries.values() if e.dtype.is_floating_point), key=lambda d: d.itemsize, default=torch.float32)
    return True, network.to(dtype or stored)


def _size(networks: Mapping[str, Any], height: int | None, width: int | None) -> tuple[int | None, int | None, int]:
    """The picture's height and width, by default what the denoiser was trained for, in latents, times the codec's factor, and that factor."""
    factor = next((n.scale_factor for n in networks.values() if hasattr(n, "scale_factor")), 1)
    denoisers = (n for n in networks.values() if hasattr(n, "sample_call") and not hasattr(n, "scale_factor"))
    side = next((n.config.sample_size for n in denoisers if isinstance(n.config.sample_size, int)), None)
    return (height, width, factor) if side is None else (height or side * factor, width or side * factor, factor)


def _with_activations(part: Part, network: nn.Module | None, height: int | None, width: int | None, factor: int) -> Part:
    if network is None or height is None or width is None:
        return part
    if hasattr(network, "scale_factor"):
        return replace(part, activations=peak_activations(network, 1, height, width))
    return replace(part, activations=peak_activations(network, 2, height // factor, width // factor))  # guidance doubles the batch


def _memory(parts: list[Part]) -> dict[str, int]:
    peaks = [part.activations or 0 for part in parts]
    return {
        "full": sum(part.weights for part in parts) + max(peaks, default=0),
        "model": max((part.weights + peak for part, peak in zip(parts, peaks)), default=0),
        "sequential": max((part.largest + peak for part, peak in zip(parts, peaks)), default=0),
    }
