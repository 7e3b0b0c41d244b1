"""Which files, and reading them with bounds: the path rule, JSON, and the choice of weight files from a listing."""

from __future__ import annotations
import json
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple
from ..errors import CheckpointError

__all__ = ["PathLike", "Plan", "WeightName", "available_variants", "component_files", "inside", "is_safe", "listing", "open_regular",
           "parse_weight_name", "pipeline_files", "plan", "read_json", "weight_paths"]  # fmt: skip

PathLike = str | os.PathLike[str]
JSON_LIMIT, JSON_DEPTH = 64 * 2**20, 100  # bytes, levels
# from the root, up, a part that begins with "__"; characters, also backslashes and drives, that some system gives a meaning
_UNSAFE = re.compile(r'^/|(?:^|/)(?:\.\.(?:/|$)|__)|[\x00-\x1f\\:*?"<>|]')
_NAME = r"(?!index\b)[\w+-]+?"
_STEM = r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"  # transformers calls the weights of a "model" "pytorch_model" when they are pickled
_WEIGHT = re.compile(rf"{_STEM}(?:\.(?P<new>{_NAME}))?(?:-(?P<shard>\d{{5}}-of-\d{{5}}))?(?:\.(?P<old>{_NAME}))?\.(?P<ext>safetensors|bin)")
_INDEX = re.compile(rf"{_STEM}\.(?P<ext>safetensors|bin)(?:\.(?P<old>{_NAME}))?\.(?P<shard>index)(?:\.(?P<new>{_NAME}))?\.json")
_HEAVY = tuple(f".{e}" for e in "safetensors bin msgpack onnx onnx_data pb h5 ckpt pt pth gguf flashpack ot tflite npz pkl".split())
_TEXT = (".json", ".txt", ".model", ".jinja")  # with the README, what is needed of a pipeline's root


def is_safe(name: object) -> bool:
    """Whether a name out of a file is a relative path below its folder: no "..", drive or backslash, no part that begins with "__"."""
    return isinstance(name, str) and len(name) <= 1000 and not _UNSAFE.search(name) and PurePosixPath(name) != PurePosixPath()


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name that came out of a file. Raises CheckpointError if the name `is_safe` not."""
    if not is_safe(name):
        raise CheckpointError("A file name that is not allowed.", where=folder, got=repr(name)[:100], expected="a relative path inside it")
    return folder / name


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; anything else (a pipe, a device, a folder) is refused, without blocking on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        what = "A file is missing." if isinstance(error, FileNotFoundError) else "A file cannot be opened."
        fix = "Check the path and the folder's name; if they are right, fetch or save the checkpoint again."
        raise CheckpointError(what, where=path, got=getattr(error, "strerror", None) or str(error), fix=fix) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError("Not a regular file.", where=path, expected="a file, not a folder, pipe or device")
    return os.fdopen(descriptor, "rb")


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a file of UTF-8 text, with or without a byte-order mark. Raises CheckpointError if the file is missing, longer than
    `limit` bytes, not UTF-8, not JSON, not an object, or nested too deep.
    """
    with open_regular(path) as file:
        text = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)  # a buffer of that size is taken at once
    if len(text) > limit:
        raise CheckpointError("A JSON file that is too long.", where=path, expected=f"at most {limit} bytes")
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # wrong bytes, wrong syntax, a number of thousands of digits
        raise CheckpointError("Not valid JSON.", where=path, got=str(error), expected="a JSON object in UTF-8") from None
    if not isinstance(value, dict):
        raise CheckpointError("Not a JSON object.", where=path, got=type(value).__name__, expected="{...}")
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
    if level:
        raise CheckpointError("JSON that is nested too deep.", where=path, expected=f"at most {JSON_DEPTH} levels")
    return value


def listing(folder: Path) -> list[str]:
    """The names of the files directly in a folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise CheckpointError("A folder cannot be read.", where=folder, got=error.strerror) from None


class WeightName(NamedTuple):
    """What the name of a weight file says."""

    stem: str  # "diffusion_pytorch_model", or "model" for transformers
    variant: str | None
    ext: str  # "safetensors" or "bin"
    shard: str | None  # such as "00001-of-00002", or "index"
    legacy: bool  # the older spelling of a variant


class Plan(NamedTuple):
    """The weight files of one component, as names relative to its folder."""

    files: list[str]
    index: str | None  # type: ignore[assignment]
    format: str  # "safetensors" or "bin"


def parse_weight_name(name: str) -> WeightName | None:
    """The parts of a weight file's or index's name, None for any other file. The spellings of variants: `x.fp16-00001-of-00002.safetensors` with
    `x.safetensors.index.fp16.json`, and the older `x-00001-of-00002.fp16.safetensors` with `x.safetensors.fp16.index.json`.
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
    """Choose the weight files of one component from the names in its folder. `use_safetensors` True takes nothing else, False takes `.bin` files,
    None safetensors if there are any; `where` is for messages. Raises CheckpointError if there are no such files, with the variants that exist, or
    if a shard is missing.
    """
    named = {name: w for name in sorted(names) if (w := parse_weight_name(name))}
    stem = min((w.stem for w in named.values()), default="model")  # what diffusers writes goes before what transformers writes
    # the newer spelling comes later, and so replaces the older
    named = {name: w for name, w in sorted(named.items(), key=lambda item: not item[1].legacy) if w.stem == stem}
    formats = {True: ("safetensors",), False: ("bin",), None: ("safetensors", "bin")}[use_safetensors]
    for ext in formats:
        shards = {w.shard: name for name, w in named.items() if w.ext == ext and w.variant == variant}
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
    variants = ", ".join(sorted({w.variant or "none (leave variant out)" for w in named.values() if w.shard != "index"}))
    if variant is not None and named:
        raise CheckpointError("These weights do not come in this variant.", where=where, got=f"variant={variant!r}", expected=variants)
    if named and {w.ext for w in named.values()}.isdisjoint(formats):
        fix = "Leave use_safetensors out to read what there is."
        raise CheckpointError(f"There are no weights in {formats[0]} format.", where=where, got=", ".join(named), fix=fix)
    fix = f"Pass variant= one of: {variants}." if variants else "Fetch or save the checkpoint again."
    raise CheckpointError("There are no weights.", where=where, got=", ".join(sorted(names)[:10]) or "no files", fix=fix)


def component_files(names: Collection[str], where: object = "weights", **choice: Any) -> list[str]:
    """Of the files of one component's folder, those that are needed to load it. `choice`: what `plan` takes."""
    needed = [name for name in names if not name.endswith(_HEAVY) and not parse_weight_name(name.rsplit("/", 1)[-1])]
    if weights := [name for name in names if parse_weight_name(name)]:
        files, index, _ = plan(weights, where=where, **choice)
        needed += [*files, index] if index else files
    return needed


def pipeline_files(paths: Collection[str], components: Collection[str], *, variant: str | None = None, **choice: Any) -> list[str]:
    """Of the files of a pipeline's folder, relative to it and with "/", those that are needed to load these components.
    A component without files of the variant falls back to the plain ones, as long as one component has it. One without a folder of its own has
    its files in the root. `choice` is `use_safetensors`. Raises CheckpointError if there is no plan for a component, or none has the variant.
    """
    root = [path for path in paths if "/" not in path]
    needed = [path for path in root if path == "README.md" or (path.endswith(_TEXT) and not parse_weight_name(path))]
    found: set[str] = set()
    for name in components:
        prefix = f"{name}/" if any(path.startswith(name + "/") for path in paths) else ""
        within = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)] if prefix else root
        found.update(own := available_variants(within))
        chosen = component_files(within, name, variant=variant if variant in own else None, **choice)
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
