"""Writing checkpoints: whole or not at all. A folder is written beside its target and put in its place by one exchange."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, InputError
from .files import parse_weight_name

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.base import Model

__all__ = ["recover", "save_folder_atomic", "save_model", "write_safetensors", "write_text_atomic"]

_EXCHANGE = 2  # renameat2's RENAME_EXCHANGE
_open_folders: set[Path] = set()  # temporary folders that this process is writing: what is saved inside one need not be atomic by itself


def _refused(path: Path, error: OSError) -> CheckpointError:
    fix = "Choose a folder that you may write to." if isinstance(error, PermissionError) else None
    return CheckpointError("The checkpoint cannot be written here.", where=path, got=error.strerror or str(error), fix=fix)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file; at any moment the path holds the old text or the new one. Raises CheckpointError where it may not."""
    path = Path(path)
    part = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        _sync(part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _refused(path, error) from None


def recover(target: Path) -> Path:
    """`target`, put back first if a save on a system without exchange died between its two renames."""
    kept = sorted(target.parent.glob(_glob(target, "old"))) if target.name and not os.path.lexists(target) else []
    if kept:
        with contextlib.suppress(OSError):  # someone else was faster, or the disk is read-only
            kept[0].rename(target)
    return target


def _glob(target: Path, kind: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", target.name) + f".{kind}-*"


def _exchange(new: Path, target: Path) -> None:
    """Put `new` in the place of the folder `target`; afterwards `new` is the old one."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        renameat2 = None
    at_cwd = -100
    if renameat2 is not None and renameat2(at_cwd, os.fsencode(new), at_cwd, os.fsencode(target), _EXCHANGE) == 0:
        return
    kept = target.with_name(f"{target.name}.old-{secrets.token_hex(4)}")
    target.rename(kept)
    try:
        new.rename(target)
    except OSError:
        kept.rename(target)
        raise
    kept.rename(new)


def _carry_over(old: Path, new: Path, written_anew: bool = False) -> None:
    """Give the new folder the files of the old one that it does not replace, as hard links where possible.

    Weights of the same name and variant are replaced whole, whatever their number of shards and format. A component's folder that was written
    anew keeps of the old one only weights of other variants.
    """
    sets = {parsed.whole for entry in os.scandir(new) if (parsed := parse_weight_name(entry.name))}
    for entry in os.scandir(old):
        source, copy = Path(entry.path), new / entry.name
        parsed = parse_weight_name(entry.name)
        if os.path.lexists(copy):
            if entry.is_dir(follow_symlinks=False) and copy.is_dir():
                _carry_over(source, copy, written_anew=True)
        elif (parsed and parsed.whole in sets) or (written_anew and not parsed) or _is_debris(entry.name):
            continue
        elif entry.is_symlink():
            copy.symlink_to(os.readlink(source))
        elif entry.is_dir():
            copy.mkdir()
            _carry_over(source, copy)
        elif entry.is_file():
            try:
                os.link(source, copy)
            except OSError:
                shutil.copy2(source, copy)


def _is_debris(name: str) -> bool:
    return re.search(r"\.(tmp|old)-[0-9a-f]{8}$", name) is not None


def _lock(folder: Path) -> int | None:
    """A lock on a folder that dies with the process; None if another one holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(target: Path) -> None:
    """Remove what saves that were killed have left beside the target."""
    kinds = ("tmp", "old") if target.exists() else ("tmp",)
    for debris in (found for kind in kinds for found in target.parent.glob(_glob(target, kind))):
        if _is_debris(debris.name) and debris.is_dir() and not debris.is_symlink() and (lock := _lock(debris)) is not None:
            shutil.rmtree(debris, ignore_errors=True)
            os.close(lock)


@contextlib.contextmanager
def save_folder_atomic(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `target` to write a checkpoint in; on success it takes the target's place at once.

    A crash at any moment leaves the old checkpoint or the new one; an exception leaves the old one. Files that the new checkpoint does not replace
    stay, such as other variants. Inside a folder of another `save_folder_atomic` of this process it is that folder's subfolder.

    Raises:
        CheckpointError: the target is a file, or it or its parent may not be written.
    """
    target = recover(Path(target)).resolve()
    if _open_folders.intersection((target, *target.parents)):
        target.mkdir(parents=True, exist_ok=True)
        yield target
        return
    if target.exists() and not target.is_dir():
        raise CheckpointError("Not a folder.", where=target, fix="Choose another name.")
    if target.is_dir() and (not target.stat().st_mode & 0o222 or not os.access(target, os.W_OK)):
        raise CheckpointError("The checkpoint cannot be written here.", where=target, got="a read-only folder")
    temporary, lock = target.with_name(f"{target.name}.tmp-{secrets.token_hex(4)}"), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary.mkdir()
        lock = _lock(temporary)
        _open_folders.add(temporary)
        yield temporary
        if target.is_dir():
            _carry_over(target, temporary)
            shutil.copymode(target, temporary)
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                if os.path.isfile(path := Path(folder, name)):
                    _sync(path)
            _sync(Path(folder))
        if target.is_dir():
            _exchange(temporary, target)
        else:
            temporary.rename(target)
        _sync(target.parent)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise _refused(target, error) from None
    finally:
        _open_folders.discard(temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, one at a time: no second copy of all of them is made. Wider dtypes come first, so that each is aligned."""
    import torch

    from .weights import DTYPE_NAMES

    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.itemsize
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            flat.view(torch.uint8).numpy().tofile(file)


def _bytes(size: int | str) -> int:
    """A number of bytes: 10, "500MB" (decimal), "2GiB" (binary)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", size, re.IGNORECASE) if isinstance(size, str) else None
    if match:
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise InputError("Not a size.", where="max_shard_size", got=size, expected='a number of bytes, or such as "10GB"')
    return size


def _shards(state: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """The tensors in groups of at most `limit` bytes; a larger one is alone. A tensor with several names is kept under the first."""
    seen: set[tuple[Any, ...]] = set()
    groups: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in state.items():
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        if identity in seen:
            continue
        seen.add(identity)
        nbytes = tensor.numel() * tensor.itemsize
        if groups[-1] and nbytes > room:
            groups.append({})
            room = limit
        groups[-1][name] = tensor
        room -= nbytes
    return groups


def save_model(
    model: Model,
    directory: str | os.PathLike[str],
    *,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    safe_serialization: bool = True,
) -> None:
    """Write `config.json` and the weights of a network into a folder, whole or not at all.

    Args:
        variant: goes into the names: `diffusion_pytorch_model.fp16.safetensors`.
        max_shard_size: weights beyond it are split over files, with an index.
        safe_serialization: False writes pickles (`.bin`).
    Raises:
        CheckpointError: the folder cannot be written, or the network has no values.
        InputError: an option has no meaning.
    """
    import torch

    if variant is not None and not re.fullmatch(r"(?!index$)\w[\w+]*", variant, re.ASCII):
        raise InputError("Not a variant.", where="variant", got=variant, expected='letters, digits and "_", such as "fp16"')
    state = dict(model.state_dict())
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError("A network without values cannot be saved.", where=type(model).__name__, got='tensors on "meta"')
    groups = _shards(state, _bytes(max_shard_size))
    stem, ext = model.weights_name, "safetensors" if safe_serialization else "bin"
    named = f"{stem}.{variant}" if variant else stem
    names = [f"{named}-{i:05d}-of-{len(groups):05d}.{ext}" for i in range(1, len(groups) + 1)] if len(groups) > 1 else [f"{named}.{ext}"]
    with save_folder_atomic(directory) as folder:
        for name, group in zip(names, groups, strict=True):
            if safe_serialization:
                write_safetensors(folder / name, group)
            else:
                torch.save({key: tensor.detach().cpu().clone() for key, tensor in group.items()}, folder / name)
        if len(groups) > 1:
            total = sum(t.numel() * t.itemsize for group in groups for t in group.values())
            content = {
                "metadata": {"total_size": total},
                "weight_map": {key: name for name, group in zip(names, groups, strict=True) for key in group},
            }
            index = f"{stem}.{ext}.index.{variant}.json" if variant else f"{stem}.{ext}.index.json"
            write_text_atomic(folder / index, json.dumps(content, indent=2, sort_keys=True) + "\n")
        write_text_atomic(folder / "config.json", model.to_json())
