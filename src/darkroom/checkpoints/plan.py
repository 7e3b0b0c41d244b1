"""Which files: the names of weights, and pure functions from a listing to the files that are needed."""

from __future__ import annotations
import fnmatch
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from ..errors import CheckpointError
from .files import inside, listing, read_json

__all__ = ["Plan", "WeightName", "available_variants", "component_files", "parse_weight_name", "pipeline_files", "plan", "weight_paths"]

_NAME = r"(?!index\b)[\w+-]+?"
_STEM = r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"  # transformers calls the weights of a "model" "pytorch_model" when they are pickled
_WEIGHT = re.compile(rf"{_STEM}(?:\.(?P<new>{_NAME}))?(?:-(?P<shard>\d{{5}}-of-\d{{5}}))?(?:\.(?P<old>{_NAME}))?\.(?P<ext>safetensors|bin)")
_INDEX = re.compile(rf"{_STEM}\.(?P<ext>safetensors|bin)(?:\.(?P<old>{_NAME}))?\.(?P<shard>index)(?:\.(?P<new>{_NAME}))?\.json")
_HEAVY = tuple(f".{e}" for e in "safetensors bin msgpack onnx onnx_data pb h5 ckpt pt pth gguf flashpack ot tflite npz pkl".split())
_TEXT = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")  # what is needed of a pipeline's root


class WeightName(NamedTuple):
    """What the name of a weight file says."""

    stem: str  # "diffusion_pytorch_model", or "model" for transformers
    variant: str | None
    ext: str  # "safetensors" or "bin"
    shard: str | None  # such as "00001-of-00002", or "index"
    legacy: bool  # the older spelling of a variant


@dataclass(frozen=True)
class Plan:
    """The weight files of one component, as names relative to its folder."""

    files: list[str]
    index: str | None  # type: ignore[assignment]
    format: str  # "safetensors" or "bin"


def parse_weight_name(name: str) -> WeightName | None:
    """The parts of a weight file's or index's name, None for any other file.

    Both spellings of variants are known: `x.fp16-00001-of-00002.safetensors` with `x.safetensors.index.fp16.json`, and the older
    `x-00001-of-00002.fp16.safetensors` with `x.safetensors.fp16.index.json`.
    """
    match = _WEIGHT.fullmatch(name) or _INDEX.fullmatch(name)
    if match is None or (match["new"] and match["old"]):
        return None
    stem, legacy = match["stem"].replace("pytorch_model", "model"), bool(match["old"] and match["shard"])
    return WeightName(stem, match["new"] or match["old"], match["ext"], match["shard"], legacy)


def available_variants(names: Collection[str]) -> tuple[str, ...]:
    """The variants, such as "fp16", that weight files of this folder come in; the plain files do not count."""
    return tuple(sorted({w.variant for name in names if (w := parse_weight_name(name)) and w.variant and w.shard != "index"}))


def plan(names: Collection[str], *, variant: str | None = None, use_safetensors: bool | None = None, where: object = "weights") -> Plan:
    """Choose the weight files of one component from the names in its folder.

    `use_safetensors` True takes nothing else, False takes `.bin` files, None safetensors if there are any; `where` is for messages. Raises
    CheckpointError if there are no such files, with the variants that exist, or if a shard is missing.
    """
    named = {name: w for name in sorted(names) if (w := parse_weight_name(name))}
    stem = min((w.stem for w in named.values()), default="model")  # what diffusers writes goes before what transformers writes
    named = {name: w for name, w in named.items() if w.stem == stem}
    formats = {True: ("safetensors",), False: ("bin",), None: ("safetensors", "bin")}[use_safetensors]
    for ext in formats:
        own = [(name, w) for name, w in named.items() if w.ext == ext and w.variant == variant]
        shards = {w.shard: name for name, w in sorted(own, key=lambda item: not item[1].legacy)}  # the newer spelling replaces the older
        index, single = shards.pop("index", None), shards.pop(None, None)
        if shards and (index or not single):
            for total in sorted({str(shard)[-5:] for shard in shards}, reverse=True):
                wanted = [f"{i:05d}-of-{total}" for i in range(1, int(total) + 1)]
                if shards.keys() >= set(wanted):
                    return Plan([shards[shard] for shard in wanted], index, ext)
            if not single:
                raise CheckpointError("A shard of the weights is missing.", where=where, got=", ".join(shards.values()))
        if single:
            return Plan([single], None, ext)
    variants = ", ".join(
        [*available_variants(named), *(["none (leave variant out)"] if any(not w.variant for w in named.values()) else [])]
    )
    if variant is not None and named:
        raise CheckpointError("These weights do not come in this variant.", where=where, got=f"variant={variant!r}", expected=variants)
    if named and {w.ext for w in named.values()}.isdisjoint(formats):
        fix = "Leave use_safetensors out to read what there is."
        raise CheckpointError(f"There are no weights in {formats[0]} format.", where=where, got=", ".join(named), fix=fix)
    fix = f"Pass variant= one of: {variants}." if variants else "Fetch or save the checkpoint again."
    raise CheckpointError("There are no weights.", where=where, got=", ".join(sorted(names)[:10]) or "no files", fix=fix)


def component_files(names: Collection[str], **choice: Any) -> list[str]:
    """Of the files of one component's folder, those that are needed to load it. `choice`: what `plan` takes."""
    flat = [name for name in names if "/" not in name]
    needed = [name for name in names if not name.endswith(_HEAVY) and not parse_weight_name(name.rsplit("/", 1)[-1])]
    if any(map(parse_weight_name, flat)):
        weights = plan(flat, **choice)
        needed += [*weights.files, *filter(None, [weights.index])]
    return needed


def pipeline_files(
    paths: Collection[str], components: Collection[str], *, variant: str | None = None, use_safetensors: bool | None = None
) -> list[str]:
    """Of the files of a pipeline's folder, relative to it and with "/", those that are needed to load these components.

    A component without files of the variant falls back to the plain ones, as long as one component has it. One without a folder of its own has
    its files in the root. Raises CheckpointError if there is no plan for a component, or no component has the variant.
    """
    root = [path for path in paths if "/" not in path]
    needed = [path for path in root if any(fnmatch.fnmatch(path, pattern) for pattern in _TEXT) and not parse_weight_name(path)]
    found: set[str] = set()
    for name in components:
        prefix = f"{name}/" if any(path.startswith(name + "/") for path in paths) else ""
        within = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)] if prefix else root
        own = available_variants(within)
        found.update(own)
        chosen = component_files(within, variant=variant if variant in own else None, use_safetensors=use_safetensors, where=name)
        needed += [prefix + file for file in chosen if prefix + file not in needed]
    if variant is not None and variant not in found and any(parse_weight_name(path.rsplit("/", 1)[-1]) for path in needed):
        expected = ", ".join(sorted(found)) or "none (leave variant out)"
        raise CheckpointError("No component comes in this variant.", where="variant", got=variant, expected=expected)
    return needed


def weight_paths(folder: Path, plan: Plan) -> list[Path]:
    """The planned files as paths. Where there is an index, it names the shards: each must be in the plan's folder and exist."""
    if plan.index is None:
        return [folder / name for name in plan.files]
    where = folder / plan.index
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError("An index that names no shards.", where=where, expected='{"weight_map": {tensor name: file name}}')
    paths = [inside(folder, name) for name in sorted(set(weight_map.values()))]
    for path in paths:
        if path.parent != folder or path.suffix != f".{plan.format}":
            expected = f"a .{plan.format} file beside the index"
            raise CheckpointError("A file name that is not allowed.", where=where, got=path.name[:100], expected=expected)
        if not path.is_file():
            raise CheckpointError("A shard of the weights is missing.", where=where, got=listing(folder), expected=path.name)
    return paths
