"""Files of adapters: LoRA, IP-Adapter, textual inversion. A folder, a repository of the hub, a file, or tensors that are there already."""

from __future__ import annotations
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from torch import Tensor
from ..errors import CheckpointError, InputError
from .files import PathLike, inside, open_regular, read_json
from .hub import HUB_OPTIONS, check_source, locate
from .pickles import pickled_entries
from .safetensors import header_of, mapped, metadata_of
from .transfer import finite
from .weight_files import formats_of, some

__all__ = ["LORA_NAMES", "Adapter", "flatten", "read_adapter"]

LORA_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
PEFT_CONFIG = "adapter_config.json"  # beside what PEFT writes
DEPTH, MOST = 4, 200_000  # of dictionaries in one another, and names in all
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHERS = ("scheduler", "optimizer", "checkpoint")  # what trainers write beside an adapter


class Adapter(dict[str, Tensor]):
    """Tensors by name; those of a dictionary in a dictionary have both names, with a dot between. `metadata` is the text beside them (of a
    safetensors file its header's, of PEFT the configuration, under "adapter_config.json"), `where` says where they come from."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], where: str):
        super().__init__(tensors)
        self.metadata, self.where = dict(metadata), where


def flatten(content: Mapping[Any, Any]) -> dict[str, Any]:
    """What dictionaries in one another hold, with dotted names. Raises ValueError where they are nested too deep, hold too much, or a name twice."""
    found: dict[str, Any] = {}
    level: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    count = 0
    for _ in range(DEPTH):
        inner: list[tuple[str, Mapping[Any, Any]]] = []
        for prefix, part in level:
            count += len(part)
            if count > MOST:
                raise ValueError(f"more than {MOST} names")
            for key, value in part.items():
                if (name := f"{prefix}{key}") in found:
                    raise ValueError(f"the name {name[:100]} twice")
                if isinstance(value, Mapping):
                    inner.append((f"{name}.", value))
                else:
                    found[name] = value
        level = inner
    if level:
        raise ValueError("dictionaries that are nested too deep")
    return found


def _chosen(
    names: Sequence[str], weight_name: str | None, default_names: Sequence[str], use_safetensors: bool | None, where: object
) -> str:
    """Which of these files is the adapter."""
    suffixes = [s for f in formats_of(use_safetensors, None) for s in ((".safetensors",) if f == "safetensors" else _PICKLES)]
    readable = [n for n in names if n.endswith(tuple(suffixes))]
    if weight_name is not None:
        if weight_name in names and weight_name not in readable:
            raise CheckpointError("A file of a kind that is not to be read.", where=where, got=weight_name, expected=some(suffixes))
        if weight_name not in names:
            raise CheckpointError(
                "There is no such file.", where=where, got=weight_name, expected=some(readable, 10) or "other files: none"
            )
        return weight_name
    if named := next((n for n in default_names if n in readable), None):
        return named
    rest = [n for n in readable if "/" not in n and not any(part in n for part in _OTHERS)]
    for suffix in suffixes:
        if len(alike := [n for n in rest if n.endswith(suffix)]) == 1:
            return alike[0]
        if alike:
            break
    expected, fix = " or ".join(default_names) or "one file of weights", "Say which file it is: weight_name=..."
    what = "Several files could be the adapter." if rest else "There is no adapter."
    raise CheckpointError(what, where=where, got=some(sorted(rest or names), 10) or "no files", expected=expected, fix=fix)


def _noted(content: dict[str, Any], metadata: dict[str, Any]) -> Mapping[str, Any]:
    """The content; its text and numbers go into `metadata`."""
    metadata |= {name: value for name, value in content.items() if isinstance(value, (str, int, float))}
    return content


def _read(path: Path, use_safetensors: bool | None) -> Adapter:
    with open_regular(path) as file:
        if path.suffix == ".safetensors":
            entries, metadata = header_of(file, path), dict[str, Any](metadata_of(file, path))
        elif use_safetensors:
            fix = "Convert it to safetensors, or leave use_safetensors out."
            raise CheckpointError("A pickled file, where only safetensors are allowed.", where=path, fix=fix)
        else:
            metadata = {}
            entries = pickled_entries(file, path, lambda content: _noted(flatten(content), metadata))
        tensors = {name: tensor.clone() for name, tensor in mapped(file, entries, path).items()}  # the file may be written anew meanwhile
    if path.with_name(PEFT_CONFIG).is_file():
        metadata[PEFT_CONFIG] = read_json(path.with_name(PEFT_CONFIG))
    return Adapter(tensors, metadata, str(path))


def read_adapter(
    source: PathLike | Mapping[str, Any], *, weight_name: str | None = None, subfolder: str | None = None,
    default_names: Sequence[str] = LORA_NAMES, use_safetensors: bool | None = None, **hub: Any,
) -> Adapter:  # fmt: skip
    """The tensors of an adapter, on the CPU.
    Args:
        source: a folder, a hub id, a file (`.safetensors`, or a pickle, which is read with restrictions), or a dictionary of tensors, taken as it is.
        weight_name: the file in the folder or repository; else the first of `default_names` that is there, else the only file of weights.
        subfolder: where it lies there.
        use_safetensors: True refuses pickles, False reads only those, None prefers safetensors.
        hub: `HUB_OPTIONS`.
    Raises:
        CheckpointError: no such file, or one that is damaged, hostile, empty, or holds values that are not finite.
    """
    if unknown := sorted(hub.keys() - {*HUB_OPTIONS}):
        expected = f"weight_name, subfolder, use_safetensors, {', '.join(HUB_OPTIONS)}"
        raise InputError("No such option of a file.", where="an adapter", got=", ".join(unknown), expected=expected)
    if isinstance(source, Mapping):
        try:
            content = flatten(source)
        except ValueError as error:
            raise CheckpointError("A dictionary that is no adapter.", where="a dictionary", got=str(error)) from None
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in content.items() if not isinstance(value, Tensor)}
        adapter = Adapter(tensors, getattr(source, "metadata", rest), getattr(source, "where", "a dictionary"))
    else:
        adapter = _read(_find(source, weight_name, subfolder, default_names, use_safetensors, hub), use_safetensors)
    if not adapter:
        raise CheckpointError("There are no tensors.", where=adapter.where, expected="tensors by name")
    if wrong := [name for name, tensor in adapter.items() if not finite(tensor)]:
        fix = "The training that wrote it has failed: use an earlier file of it."
        raise CheckpointError(
            f"{len(wrong)} tensors hold values that are not finite.", where=adapter.where, got=some(sorted(wrong)), fix=fix
        )
    return adapter


def _find(
    source: PathLike,
    weight_name: str | None,
    subfolder: str | None,
    defaults: Sequence[str],
    use_safetensors: bool | None,
    hub: dict[str, Any],
) -> Path:
    formats_of(use_safetensors, None)
    if weight_name is not None and not isinstance(weight_name, str):
        raise InputError("Not the name of a file.", where="weight_name", got=weight_name, expected="a string")
    if check_source(source).is_file():
        if weight_name is not None and Path(source).name != weight_name:
            raise InputError(
                "A file and the name of another.", where="weight_name", got=f"{source}, {weight_name}", expected="one of the two"
            )
        return Path(source)
    found: list[str] = []

    def choose(names: list[str], folder: Path) -> list[str]:
        found[:] = [_chosen(names, weight_name, defaults, use_safetensors, folder)]
        return [*found, *([PEFT_CONFIG] if PEFT_CONFIG in names else [])]

    if weight_name is not None:
        inside(Path(source), weight_name)  # before anything is fetched
    folder = locate(source, files=(), choose=choose, subfolder=subfolder, **hub)
    return inside(folder, found[0])
