"""Writing checkpoints: whole or not at all. A folder is written beside its target and put in its place by one exchange."""

from __future__ import annotations
import contextlib
import ctypes
import glob
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from ..errors import CheckpointError, InputError
from .files import PathLike, parse_weight_name

if TYPE_CHECKING:
    from torch import Tensor
    from ..models.base import Model

__all__ = ["recover", "save_folder_atomic", "save_model", "write_text_atomic"]

_AT_CWD, _EXCHANGE = -100, 2  # of renameat2
_DEBRIS = re.compile(r"\.(tmp|old)-[0-9a-f]{8}$")


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
    if target.name and not os.path.lexists(target) and (kept := sorted(target.parent.glob(glob.escape(target.name) + ".old-*"))):
        with contextlib.suppress(OSError):  # someone else was faster, or the disk is read-only
            kept[0].rename(target)
    return target


def _exchange(new: Path, target: Path) -> None:
    """Put `new` in the place of the folder `target`; afterwards `new` is the old one."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if exchange is None or exchange(_AT_CWD, os.fsencode(new), _AT_CWD, os.fsencode(target), _EXCHANGE) != 0:
        kept = target.with_name(f"{target.name}.old-{secrets.token_hex(4)}")
        target.rename(kept)  # from here to the next line, `recover` is what keeps the promise
        new.rename(target)
        kept.rename(new)


def _link(source: str | Path, copy: str | Path) -> None:
    try:
        os.link(source, copy, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, copy, follow_symlinks=False)


def _carry_over(old: Path, new: Path, written_anew: bool = False) -> None:
    """Give the new folder the files of the old one that it does not replace, as hard links where possible. Weights of the same name and variant are
    replaced whole, whatever their number of shards and format. A component's folder that was written anew keeps only weights of other variants.
    """
    replaced = {(w.stem, w.variant) for name in os.listdir(new) if (w := parse_weight_name(name))}
    for source in old.iterdir():
        copy, weight = new / source.name, parse_weight_name(source.name)
        folder = source.is_dir() and not source.is_symlink()
        if os.path.lexists(copy):
            if folder and copy.is_dir():
                _carry_over(source, copy, written_anew=True)
        elif ((weight.stem, weight.variant) in replaced if weight else written_anew) or _DEBRIS.search(source.name):
            continue
        elif folder:
            shutil.copytree(source, copy, symlinks=True, copy_function=_link)
        elif source.is_file() or source.is_symlink():
            _link(source, copy)


@contextlib.contextmanager
def save_folder_atomic(target: PathLike) -> Iterator[Path]:
    """A temporary folder beside `target` to write a checkpoint in; on success it takes the target's place at once.
    A crash at any moment leaves the old checkpoint or the new one, an exception the old one. Files that the new one does not replace stay, such as
    other variants. Raises CheckpointError if the target is a file, or it or its parent may not be written.
    """
    target = recover(Path(target)).resolve()
    if target.exists() and not target.is_dir():
        raise CheckpointError("Not a folder.", where=target, fix="Choose another name.")
    temporary = target.with_name(f"{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        if target.is_dir() and not target.stat().st_mode & 0o222:
            raise PermissionError("a read-only folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        for found in target.parent.glob(glob.escape(target.name) + ".*-*"):  # left by saves that were killed; a younger one may be at work
            if _DEBRIS.search(found.name) and found.is_dir() and time.time() - found.stat().st_mtime > 24 * 3600:
                shutil.rmtree(found, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if target.is_dir():
            _carry_over(target, temporary)
            shutil.copymode(target, temporary)
        for folder, _, names in os.walk(temporary, topdown=False):
            for path in (*(Path(folder, name) for name in names), Path(folder)):
                if path.exists():  # not a link to nowhere
                    _sync(path)
        if target.is_dir():
            _exchange(temporary, target)
        else:
            temporary.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise error if isinstance(error, CheckpointError) else _refused(target, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover(target)


def _bytes(size: int | str) -> int:
    """A number of bytes: 10, "500MB" (decimal), "2GiB" (binary)."""
    if isinstance(size, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", size, re.IGNORECASE)):
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise InputError("Not a size.", where="max_shard_size", got=size, expected='a number of bytes, or such as "10GB"')
    return size


def _shards(state: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """The tensors in groups of at most `limit` bytes; a larger one is alone. A tensor with several names is kept under the first."""
    unique: dict[object, str] = {}
    for name, t in state.items():
        unique.setdefault((t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else name, name)
    groups: list[dict[str, Tensor]] = [{}]
    room = limit
    for name in unique.values():
        if groups[-1] and state[name].nbytes > room:
            groups, room = [*groups, {}], limit
        groups[-1][name] = state[name]
        room -= state[name].nbytes
    return groups


def save_model(
    model: Model, directory: PathLike, *, variant: str | None = None, max_shard_size: int | str = "10GB", safe_serialization: bool = True
) -> None:
    """What `Model.save_pretrained` does. Weights beyond `max_shard_size` are split over files, with an index.
    Raises CheckpointError if the folder cannot be written or the network has no values, InputError for an option without meaning.
    """
    import torch
    from safetensors.torch import save_file

    if variant is not None and not re.fullmatch(r"(?!index$)\w[\w+]*", variant, re.ASCII):
        raise InputError("Not a variant.", where="variant", got=variant, expected='letters, digits and "_", such as "fp16"')
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError("A network without values cannot be saved.", where=type(model).__name__, got='tensors on "meta"')
    groups = _shards(state, _bytes(max_shard_size))
    dot, ext = f".{variant}" if variant else "", "safetensors" if safe_serialization else "bin"
    ends = [f"-{i:05d}-of-{len(groups):05d}" for i in range(1, len(groups) + 1)] if len(groups) > 1 else [""]
    shards = {f"{model.weights_name}{dot}{end}.{ext}": group for end, group in zip(ends, groups, strict=True)}
    with save_folder_atomic(directory) as folder:
        for name, group in shards.items():
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
            if safe_serialization:
                save_file(tensors, folder / name, metadata={"format": "pt"})
            else:
                torch.save({key: tensor.clone() for key, tensor in tensors.items()}, folder / name)  # not the storage that a view is of
        if len(groups) > 1:
            weight_map = {key: name for name, group in shards.items() for key in group}
            content = {"metadata": {"total_size": sum(t.nbytes for group in groups for t in group.values())}, "weight_map": weight_map}
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            (folder / f"{model.weights_name}.{ext}.index{dot}.json").write_text(text, encoding="utf-8")
        (folder / "config.json").write_text(model.to_json(), encoding="utf-8")
