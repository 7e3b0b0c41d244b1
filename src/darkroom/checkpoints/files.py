"""Which files, and reading them with bounds: the path rule, JSON, and the choice of weight files from a listing."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..errors import CheckpointError

__all__ = [
    "Plan",
    "WeightName",
    "available_variants",
    "inside",
    "listing",
    "open_regular",
    "parse_json",
    "parse_weight_name",
    "plan",
    "plan_pipeline",
    "read_json",
    "stem_of",
    "weight_paths",
]

JSON_LIMIT = 64 * 2**20  # bytes
JSON_DEPTH = 100
STEMS = ("diffusion_pytorch_model", "model")
_BIN_STEM = {"model": "pytorch_model"}  # what transformers calls the same weights when they are pickled
_UNSAFE = re.compile(r'[\x00-\x1f\\:*?"<>|]')  # backslashes and drive letters, also where they would be legal
_SHARDS = r"-(?P<{0}>\d{{5}}-of-\d{{5}})"
_NAME = r"(?!index\b)[\w+-]+?"
_WEIGHT = re.compile(
    rf"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"
    rf"(?:\.(?P<new>{_NAME})|)(?:{_SHARDS.format('shard')})?(?:\.(?P<old>{_NAME}))?\.(?P<ext>safetensors|bin)"
)
_INDEX = re.compile(
    rf"(?P<stem>diffusion_pytorch_model|pytorch_model|model)\.(?P<ext>safetensors|bin)"
    rf"(?:\.(?P<old>{_NAME}))?\.index(?:\.(?P<new>{_NAME}))?\.json"
)


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name that came out of a file.

    Raises:
        CheckpointError: the name is absolute, climbs out, has a drive letter or backslash, or has a part that begins with two underscores.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    bad = not parts or name.startswith("/") or bool(_UNSAFE.search(name)) or any(p == ".." or p.startswith("__") for p in parts)
    if bad or len(name) > 1000:
        raise CheckpointError(
            "A file name that is not allowed.", where=folder, got=repr(name)[:100], expected="a relative path inside the folder"
        )
    return folder.joinpath(*parts)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; anything else (a pipe, a device, a folder) is refused, without blocking on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise CheckpointError("A file is missing.", where=path) from None
    except (OSError, ValueError) as error:
        raise CheckpointError("A file cannot be opened.", where=path, got=getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError("Not a regular file.", where=path)
    return os.fdopen(descriptor, "rb")


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())]
        if not level:
            return False
    return True


def parse_json(text: bytes, where: object, **options: Any) -> dict[str, Any]:
    """A JSON object out of UTF-8 text, with or without a byte-order mark."""
    try:
        value = json.loads(text.decode("utf-8-sig"), **options)
    except UnicodeDecodeError as error:
        raise CheckpointError("Not UTF-8 text.", where=where, got=f"a wrong byte at position {error.start}") from None
    except json.JSONDecodeError as error:
        raise CheckpointError("Not valid JSON.", where=where, got=f"{error.msg}: line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise CheckpointError("JSON that is nested too deep.", where=where, expected=f"at most {JSON_DEPTH} levels") from None
    except ValueError:  # a number of thousands of digits
        raise CheckpointError("Not valid JSON.", where=where, got="a number that is too long") from None
    if not isinstance(value, dict):
        raise CheckpointError("Not a JSON object.", where=where, got=type(value).__name__, expected="{...}")
    if _too_deep(value):
        raise CheckpointError("JSON that is nested too deep.", where=where, expected=f"at most {JSON_DEPTH} levels")
    return value


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
        CheckpointError: the file is missing, too long, not UTF-8, not JSON, not an object, or nested too deep.
    """
    with open_regular(Path(path)) as file:
        text = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
    if len(text) > limit:
        raise CheckpointError("A JSON file that is too long.", where=path, expected=f"at most {limit} bytes")
    return parse_json(text, path)


@dataclass(frozen=True)
class WeightName:
    """What the name of a weight file says. `shard` is None, or "00001-of-00002"; `legacy` is the older spelling of a variant."""

    stem: str
    variant: str | None
    ext: str
    shard: str | None = None
    legacy: bool = False
    is_index: bool = False

    @property
    def whole(self) -> tuple[str, str | None]:
        """What files of one set of weights have in common, in any format: (stem, variant)."""
        return ("model" if self.stem == "pytorch_model" else self.stem), self.variant


def parse_weight_name(name: str) -> WeightName | None:
    """The parts of a weight file's or index's name, None for any other file.

    Both spellings of variants are known: `x.fp16-00001-of-00002.safetensors` with `x.safetensors.index.fp16.json`, and the older
    `x-00001-of-00002.fp16.safetensors` with `x.safetensors.fp16.index.json`.
    """
    for pattern, is_index in ((_WEIGHT, False), (_INDEX, True)):
        match = pattern.fullmatch(name)
        if match and not (match["new"] and match["old"]):
            shard = None if is_index else match["shard"]
            legacy = match["old"] is not None and (is_index or shard is not None)
            return WeightName(match["stem"], match["new"] or match["old"], match["ext"], shard, legacy, is_index)
    return None


@dataclass(frozen=True)
class Plan:
    """The weight files of one component, as names relative to its folder."""

    files: tuple[str, ...]
    index: str | None
    format: str  # "safetensors" or "bin"
    variant: str | None


def _named(names: Collection[str], stem: str) -> dict[str, WeightName]:
    stems = {"safetensors": stem, "bin": _BIN_STEM.get(stem, stem)}
    parsed = {name: parse_weight_name(name) for name in sorted(names)}
    return {name: w for name, w in parsed.items() if w and w.stem == stems[w.ext]}


def stem_of(names: Collection[str]) -> str | None:
    """The stem of the weights in a folder, None if it has none."""
    return next((stem for stem in STEMS if _named(names, stem)), None)


def available_variants(names: Collection[str], stem: str | None = None) -> tuple[str, ...]:
    """The variants, such as "fp16", that weight files of this folder come in; the plain files do not count."""
    stems = STEMS if stem is None else (stem,)
    return tuple(sorted({w.variant for s in stems for w in _named(names, s).values() if w.variant and not w.is_index}))


def plan(names: Collection[str], stem: str, *, variant: str | None = None, use_safetensors: bool | None = None) -> Plan:
    """Choose the weight files of one component.

    Args:
        names: the files of the component's folder, relative to it.
        stem: "diffusion_pytorch_model", or "model" for transformers.
        variant: such as "fp16". `variant in available_variants(names, stem)` tells beforehand whether there is one.
        use_safetensors: True: nothing else; False: `.bin` files; None: safetensors if there are any.
    Raises:
        CheckpointError: there are no such files, or a shard is missing. It lists the variants that exist.
    """
    named = {name: w for name, w in _named(names, stem).items() if w.variant == variant}
    formats = {True: ("safetensors",), False: ("bin",), None: ("safetensors", "bin")}[use_safetensors]
    for ext in formats:
        index, shards, single = None, {}, None
        for name, w in named.items():  # the newer spelling replaces the older one
            if w.ext != ext:
                continue
            if w.is_index:
                index = name if index is None or not w.legacy else index
            elif w.shard:
                if w.shard not in shards or not w.legacy:
                    shards[w.shard] = name
            else:
                single = name
        if shards and (index or not single):
            counts = {int(shard[-5:]) for shard in shards}
            whole = [n for n in counts if all(f"{i:05d}-of-{n:05d}" in shards for i in range(1, n + 1))]
            if not whole and not single:
                raise CheckpointError(
                    "A shard of the weights is missing.", where=stem, got=", ".join(shards.values()), expected=f"{max(counts)} files"
                )
            if whole:
                chosen = [f"{i:05d}-of-{max(whole):05d}" for i in range(1, max(whole) + 1)]
                return Plan(tuple(shards[s] for s in chosen), index, ext, variant)
        if single:
            return Plan((single,), None, ext, variant)
    variants = available_variants(names, stem)
    others = _named(names, stem)
    if variant is not None and others:
        plain = ["none (leave variant out)"] if any(w.variant is None for w in others.values()) else []
        raise CheckpointError(
            "These weights do not come in this variant.", where=stem, got=f"variant={variant!r}", expected=", ".join([*variants, *plain])
        )
    if others and {w.ext for w in others.values()}.isdisjoint(formats):
        raise CheckpointError(
            f"There are no weights in {formats[0]} format.",
            where=stem,
            got=", ".join(others),
            fix="Leave use_safetensors out to read what there is.",
        )
    hint = f"Pass variant= one of: {', '.join(variants)}." if variants else None
    raise CheckpointError(
        "There are no weights.", where=stem, got=", ".join(sorted(names)[:10]) or "no files", expected=f"{stem}.safetensors", fix=hint
    )


def plan_pipeline(
    paths: Collection[str], components: Collection[str], *, variant: str | None = None, use_safetensors: bool | None = None
) -> dict[str, Plan]:
    """Choose the weight files of every component that has some; the plans' names are relative to the component's folder.

    A component without files of the variant falls back to the plain ones, as long as one component has it.

    Args:
        paths: all files of the pipeline's folder, relative to it, with "/".
        components: the names that are to be loaded.
    Raises:
        CheckpointError: a plan fails, or no component has the variant.
    """
    folders = {name: [p[len(name) + 1 :] for p in paths if p.startswith(name + "/")] for name in components}
    weighted = {name: (names, stem) for name, names in folders.items() if (stem := stem_of(names))}
    found = {v for names, stem in weighted.values() for v in available_variants(names, stem)}
    if variant is not None and weighted and variant not in found:
        raise CheckpointError(
            "No component comes in this variant.",
            where="variant",
            got=variant,
            expected=", ".join(sorted(found)) or "none (leave variant out)",
        )
    plans = {}
    for name, (names, stem) in weighted.items():
        own = variant if variant in available_variants(names, stem) else None
        try:
            plans[name] = plan(names, stem, variant=own, use_safetensors=use_safetensors)
        except CheckpointError as error:
            raise CheckpointError(
                error.what, where=f"{name}/{error.where}", got=error.got, expected=error.expected, fix=error.fix
            ) from None
    return plans


def listing(folder: Path) -> list[str]:
    """The names of the files directly in a folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise CheckpointError("A folder cannot be read.", where=folder, got=error.strerror) from None


def weight_paths(folder: Path, plan: Plan) -> list[Path]:
    """The planned files as paths. Where there is an index, it names the shards: each must be in the plan's folder and exist."""
    if plan.index is None:
        return [folder / name for name in plan.files]
    where = folder / plan.index
    weight_map = read_json(where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError("An index that names no shards.", where=where, expected='{"weight_map": {tensor name: file name}}')
    names = sorted(set(weight_map.values()))
    paths = [inside(folder, name) for name in names]
    for path, name in zip(paths, names, strict=True):
        if path.parent != folder or not name.endswith("." + plan.format):
            raise CheckpointError(
                "A file name that is not allowed.", where=where, got=name[:100], expected=f"a .{plan.format} file beside the index"
            )
        if not path.is_file():
            raise CheckpointError("A shard of the weights is missing.", where=where, got=name)
    return paths
