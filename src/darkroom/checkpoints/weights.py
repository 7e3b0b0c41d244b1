"""Weights out of files and into a module: names and shapes are compared by the headers, then tensors are mapped, or read and cast."""

from __future__ import annotations
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO
import torch
from torch import Tensor, nn
from ..errors import CheckpointError, DarkroomError
from .files import open_regular
from .pickles import pickled_entries
from .safetensors import Entry, header_of, mapped, read_header
from .transfer import Transfer, allocate, finite, on_network, transfer, workers

__all__ = ["Entry", "Weights", "load_weights", "read_header", "workers"]

logger = logging.getLogger("darkroom")
WHOLE = 2**25  # bytes of mapped tensors up to which all their values are looked at
LOOKED_AT = 2**22  # bytes of more that are, the smallest tensors first: looking brings them into memory, and from the disk


class _Files(dict[Path, BinaryIO]):
    """Open files, closed when nobody has them any more: copies of `Weights` share them."""

    def __del__(self) -> None:
        for file in self.values():
            file.close()


class Weights:
    """The tensors of several files by name. Headers are read, and the files stay open: what replaces one of them later does not matter.

    `entries` says where each tensor lies in its file, `files` in which; both may be changed. Raises CheckpointError if a file cannot be read, or two
    hold a tensor of one name.
    """

    def __init__(self, paths: Iterable[Path]):
        self.entries: dict[str, Entry] = {}
        self.files: dict[str, Path] = {}
        self._open = _Files()
        for path in map(Path, paths):
            file = self._open[path] = open_regular(path)
            found = header_of(file, path) if path.suffix == ".safetensors" else pickled_entries(file, path)
            if doubled := self.entries.keys() & found.keys():
                raise CheckpointError("A tensor that two files hold.", where=path, got=min(doubled)[:100], expected="it in one of them")
            self.entries |= found
            self.files |= dict.fromkeys(found, path)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, in the dtypes of the files."""
        return sum(entry.nbytes for entry in self.entries.values())

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The names as their tensors lie in the files, one file after the other."""
        order = {path: i for i, path in enumerate(self._open)}
        return sorted(names, key=lambda name: (order[self.files[name]], self.entries[name].offset))

    def transfer(self, name: str, target: Tensor) -> Transfer:
        """A tensor's way into `target`, for `transfer`."""
        return Transfer(name, self.files[name], self._open[self.files[name]], self.entries[name], target)

    def mapped(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors on the CPU that share the pages of their files; see `safetensors.mapped`."""
        groups: dict[Path, dict[str, Entry]] = defaultdict(dict)
        for name in names:
            groups[self.files[name]][name] = self.entries[name]
        return {name: tensor for path, group in groups.items() for name, tensor in mapped(self._open[path], group, path).items()}


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(name[:80] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _without_ones(shape: Iterable[int]) -> tuple[int, ...]:
    shape = tuple(shape)
    while shape and shape[-1] == 1:  # old checkpoints hold linear layers as 1x1 convolutions, and the reverse
        shape = shape[:-1]
    return shape


def _other_names(missing: Mapping[str, Tensor], extra: Mapping[str, Entry]) -> list[tuple[str, str]]:
    """Pairs of a missing and an extra tensor of the same shape whose names end alike: the file has other names, not other tensors."""
    found: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for name in sorted(extra, reverse=True):
        found[name.rpartition(".")[2], _without_ones(extra[name].shape)].append(name)
    pairs = []
    for name, own in sorted(missing.items()):
        if alike := found[name.rpartition(".")[2], _without_ones(own.shape)]:
            pairs.append((name, alike.pop()))
    return pairs


def _lacking(missing: Mapping[str, Tensor], extra: Mapping[str, Entry], where: object) -> CheckpointError:
    what, got = f"{len(missing)} tensors are not in the weight files.", _some(missing)
    if len(pairs := _other_names(missing, extra)) == len(missing):
        fix = "The same tensors are there under other names: " + ", ".join(f"{b[:80]} for {a[:80]}" for a, b in pairs[:3])
    elif extra:
        fix = f"The files hold others, for another network or of another version: {_some(extra)}"
    else:
        fix = "Fetch the files again, or correct the configuration."
    return CheckpointError(what, where=where, got=got, fix=fix)


def _is_computed(module: nn.Module, name: str) -> bool:
    """Whether a layer makes this tensor itself, so that a file may lack it: it is one of those that the layer's `computed` names."""
    path, _, leaf = name.rpartition(".")
    return leaf in getattr(module.get_submodule(path), "computed", ())


def _initial(module: nn.Module, missing: Collection[str], where: object) -> dict[str, Tensor]:
    """Tensors that no file holds with the values that their layers begin with: what is on "meta" is initialised, on the CPU."""
    values: dict[str, Tensor] = {}
    for path in sorted({name.rpartition(".")[0] for name in missing}):
        owner, prefix = module.get_submodule(path), path + "." if path else ""
        homes: list[dict[str, Tensor | None]] = [owner._parameters, owner._buffers]  # type: ignore[list-item]
        lost = [(home, leaf, t) for home in homes for leaf, t in home.items() if t is not None and prefix + leaf in missing]
        empty = [(home, leaf, t) for home in homes for leaf, t in home.items() if t is not None and t.is_meta]
        if any(t.is_meta for _, _, t in lost):
            reset = getattr(owner, "reset_parameters", None)
            if reset is None:
                got = _some(prefix + leaf for _, leaf, _ in lost)
                raise CheckpointError("Tensors without values, in a layer that cannot make any.", where=where, got=got)
            for home, leaf, t in empty:
                new = torch.empty_like(t, device="cpu")
                home[leaf] = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
            reset()
        values |= {prefix + leaf: home[leaf].detach() for home, leaf, _ in lost}  # type: ignore[union-attr]
        for home, leaf, t in empty:
            home[leaf] = t
    return values


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those that hold values that are not finite, as far as they are looked at."""
    small: dict[torch.dtype, dict[str, Tensor]] = defaultdict(dict)
    total, wrong = sum(tensor.nbytes for tensor in tensors.values()), list[str]()
    left = LOOKED_AT if total > WHOLE else total
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].nbytes):
        if (left := left - tensor.nbytes) < 0:
            break
        if tensor.nbytes < 2**16:
            small[tensor.dtype][name] = tensor
        elif not finite(tensor):
            wrong.append(name)
    for group in small.values():  # one sum for all
        if not finite(torch.cat([tensor.reshape(-1) for tensor in group.values()])):
            wrong += [name for name, tensor in group.items() if not finite(tensor)]
    return wrong


def load_weights(
    module: nn.Module,
    weights: Weights,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_in_float32: Iterable[str] = (),
    rename: Callable[[str], str] = lambda name: name,
    strict: bool = True,
    mmap: bool | None = None,
    progress: Callable[[int], object] | None = None,
    where: object = "model",
) -> None:
    """Give a module, built on "meta", the tensors of its files.

    Names and shapes are compared by the headers first. On the CPU a tensor that already has its final dtype stays mapped to the file; the others
    are read and cast by several threads. A non-persistent buffer is in no file: build it with an explicit `device="cpu"`.

    Args:
        dtype: what floating-point tensors become; None leaves them what they are.
        device: where they go. "meta" compares only.
        keep_in_float32: parts of dotted names; tensors that have one become float32.
        rename: the module's name of a tensor that the file may call otherwise.
        strict: False gives tensors that no file holds the values that their layers begin with, instead of an error. What a layer's `computed`
            names always begins so.
        mmap: False reads mapped tensors, too; None does so where the files lie on a network file system.
        progress: called with the number of bytes read since its last call, from several threads in turn; all calls together give `weights.nbytes`,
            less what the module does not take.
        where: for messages.
    Raises:
        CheckpointError: tensors are missing, two have one name, or one has another shape or kind than the module's.
    """
    device, full, state = torch.device(device), frozenset(keep_in_float32), module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = defaultdict(list)  # the names of one tensor
    for name, own in state.items():
        tied[id(own)].append(name)
    sources: dict[str, str] = {}
    for name in weights.entries:
        target = rename(name)
        if target in sources:
            raise CheckpointError("Two tensors of one name.", where=where, got=f"{sources[target][:80]}, {name[:80]}", expected=target)
        sources[target] = name
    extra = {sources[name]: weights.entries[sources[name]] for name in sources.keys() - state.keys()}
    missing = {name: own for name, own in state.items() if sources.keys().isdisjoint(tied[id(own)])}
    learned = {name: own for name, own in missing.items() if not _is_computed(module, name)}
    if learned and strict:
        raise _lacking(learned, extra, where)
    targets = {source: target for target, source in sources.items() if target in state}
    final: dict[str, torch.dtype] = {}  # by the file's names, as all that follows
    for source, target in sorted(targets.items()):
        entry, own = weights.entries[source], state[target]
        if entry.shape != own.shape and _without_ones(entry.shape) != _without_ones(own.shape):
            expected = f"{tuple(own.shape)}, by the configuration"
            raise CheckpointError("A tensor of another shape.", where=f"{where}: {target}", got=entry.shape, expected=expected)
        if (entry.dtype.is_floating_point, entry.dtype.is_complex) != (own.is_floating_point(), own.is_complex()):
            raise CheckpointError("A tensor of another kind.", where=f"{where}: {target}", got=entry.dtype, expected=own.dtype)
        wanted = torch.float32 if full.intersection(target.split(".")) else dtype
        final[source] = (wanted if entry.dtype.is_floating_point else None) or entry.dtype
    if extra:
        logger.warning("%s: %d tensors of the weight files belong to nothing: %s", where, len(extra), _some(extra))
    if learned:
        logger.warning("%s: %d tensors are in no file and begin anew: %s", where, len(learned), _some(learned))
    fresh = _initial(module, missing, where)

    local = {path: device.type == "cpu" and (not on_network(path) if mmap is None else mmap) for path in set(weights.files.values())}
    names = weights.in_order(targets)
    entries = {name: weights.entries[name] for name in names}
    kept = [name for name, e in entries.items() if local[weights.files[name]] and final[name] == e.dtype and not e.stride]
    tensors = weights.mapped(kept)
    wrong = _not_finite(tensors)
    if progress is not None and kept:
        progress(sum(entries[name].nbytes for name in kept))
    moved = [name for name in names if name not in tensors]
    tensors |= zip(moved, allocate([(state[targets[name]].shape, final[name]) for name in moved], device))
    if device.type != "meta":
        wrong += transfer([weights.transfer(name, tensors[name]) for name in moved], progress)
    if wrong:
        logger.warning("%s: %d tensors hold values that are not finite: %s", where, len(wrong), _some(wrong))

    owners = dict(module.named_modules(remove_duplicate=False))
    given = {targets[name]: tensor for name, tensor in tensors.items()}
    given |= {name: t.reshape(state[name].shape) for name, t in given.items() if t.shape != state[name].shape}
    for name, tensor in fresh.items():
        wanted = torch.float32 if full.intersection(name.split(".")) else dtype
        given[name] = tensor.to(device, wanted if tensor.is_floating_point() else None)
    for name, tensor in given.items():
        own = state[name]
        if isinstance(own, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=own.requires_grad and tensor.is_floating_point())
        for place in tied[id(own)]:
            path, _, leaf = place.rpartition(".")
            owner = owners[path]
            (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = tensor  # type: ignore[assignment]
    if device.type == "meta":
        return
    for owner in owners.values():
        if owner._buffers:
            owner._buffers.update({leaf: t.to(device) for leaf, t in owner._buffers.items() if t is not None and not t.is_meta})
    held = {f"{path}.{leaf}": t for path, o in owners.items() for leaf, t in (*o._parameters.items(), *o._buffers.items()) if t is not None}
    if empty := [name for name, tensor in held.items() if tensor.is_meta]:
        fix = 'Build non-persistent buffers with an explicit device="cpu".'
        raise DarkroomError("Tensors that no file holds were left without values.", where=where, got=_some(empty), fix=fix)
