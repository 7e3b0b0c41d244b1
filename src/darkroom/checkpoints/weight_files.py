"""The weight files of one component: how they are called, and which of them are needed."""

from __future__ import annotations
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from ..errors import CheckpointError, InputError
from .files import is_safe

if TYPE_CHECKING:
    import torch

__all__ = ["Plan", "WeightName", "available_variants", "component_files", "parse_weight_name", "plan"]

Groups = dict[tuple[str | None, str, bool], dict[str | None, str]]  # (variant, format, older spelling) -> shard -> name
_NAME = r"(?!index\b)[\w+-]{1,60}?"
_STEM = r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)"
_WEIGHT = re.compile(
    rf"{_STEM}(?:\.(?P<new>{_NAME}))?(?:-(?P<shard>\d{{5}}-of-\d{{5}}))?(?:\.(?P<old>{_NAME}))?\.(?P<ext>safetensors|bin)", re.A
)
_INDEX = re.compile(rf"{_STEM}\.(?P<ext>safetensors|bin)(?:\.(?P<old>{_NAME}))?\.(?P<shard>index)(?:\.(?P<new>{_NAME}))?\.json", re.A)
_FOREIGN = {("model", "bin"), ("pytorch_model", "safetensors")}  # not what transformers calls its two formats: some other program's
HEAVY = tuple(f".{e}" for e in "safetensors bin msgpack onnx onnx_data data pb h5 ckpt pt pth gguf flashpack ot tflite npz npy pkl".split())
_APART = HEAVY + tuple(f".{e}" for e in "py pyc so dll dylib sh zip tar gz png jpg jpeg gif webp mp4 webm wav mp3 pdf ipynb".split())
_SUITED = {"float16": ("fp16",), "bfloat16": ("bf16", "fp16")}  # the variants for a dtype, the best one first


class WeightName(NamedTuple):
    """What the name of a weight file says."""

    stem: str  # "diffusion_pytorch_model", or "model" for transformers, which calls pickled weights "pytorch_model"
    variant: str | None
    ext: str  # "safetensors" or "bin"
    shard: str | None  # such as "00001-of-00002", or "index"
    legacy: bool  # the older spelling of a variant


@dataclass(frozen=True)
class Plan:
    """The weight files of one component, as names relative to its folder, and the variant that they are."""

    files: list[str]  # of several whole sets of shards all: the index, which is read later, says which one counts
    index: str | None  # type: ignore[assignment]
    format: str  # "safetensors" or "bin"
    variant: str | None = None


def parse_weight_name(name: str) -> WeightName | None:
    """The parts of a weight file's or index's name, None for any other file.

    Both spellings of variants are known: `x.fp16-00001-of-00002.safetensors` with `x.safetensors.index.fp16.json`, and the older
    `x-00001-of-00002.fp16.safetensors` with `x.safetensors.fp16.index.json`.
    """
    pattern = _INDEX if name.endswith(".json") else _WEIGHT if name.endswith((".safetensors", ".bin")) else None
    match = pattern.fullmatch(name) if pattern is not None and len(name) < 256 else None
    if match is None:
        return None
    stem, new, old, shard, ext = match.group("stem", "new", "old", "shard", "ext")
    if (new and old) or (stem, ext) in _FOREIGN:
        return None
    return WeightName("model" if stem == "pytorch_model" else stem, new or old, ext, shard, bool(old and shard))


def groups_of(names: Iterable[str], stem: str | None) -> Groups:
    """The weights of a folder: those called `stem` if there are any, else what diffusers writes, else what transformers writes."""
    named = [(name, w) for name in names if (w := parse_weight_name(name))]
    stems = {w.stem for _, w in named}
    stem = stem if stem in stems else min(stems, default="model")
    groups: Groups = {}
    for name, w in named:
        if w.stem == stem:
            groups.setdefault((w.variant, w.ext, w.legacy), {})[w.shard] = name
    return {key: group for key, group in groups.items() if group.keys() != {"index"}} or groups  # an index alone was left behind


def formats_of(use_safetensors: bool | None, variant: str | None) -> tuple[str, ...]:
    """The formats that may be read, the best one first. InputError for a choice that is none."""
    if variant is not None and not isinstance(variant, str):
        raise InputError("A variant is a name.", where="variant", got=variant, expected='such as "fp16", or "auto"')
    if use_safetensors not in (True, False, None):
        raise InputError("Not a choice of formats.", where="use_safetensors", got=use_safetensors, expected="True, False or None")
    return ("safetensors", "bin") if use_safetensors is None else ("safetensors",) if use_safetensors else ("bin",)


def variants_of(groups: Groups, formats: Collection[str] = ("safetensors", "bin")) -> set[str]:
    return {v for (v, ext, _), group in groups.items() if v and ext in formats and group.keys() != {"index"}}


def spelled(variant: str, among: Collection[str | None]) -> str | None:
    """`variant` as the files spell it: "non-ema" and "non_ema" are one. None if they do not have it."""
    return next((v for v in (variant, variant.replace("-", "_"), variant.replace("_", "-")) if v in among), None)


def some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def available_variants(names: Collection[str], *, stem: str | None = None) -> tuple[str, ...]:
    """The variants, such as "fp16", that weight files of this folder come in; the plain files do not count. `stem` as for `plan`."""
    return tuple(sorted(variants_of(groups_of(names, stem))))


def _choices(groups: Groups, variant: str | None, formats: tuple[str, ...], dtype: Any) -> Iterator[tuple[str | None, str]]:
    """(variant, format), the best one first. "auto" never takes a pickle for its variant's sake."""
    have = {(v, ext) for v, ext, _ in groups}
    if variant != "auto":
        own = None if variant is None else spelled(variant, {v for v, ext in have if ext in formats})
        yield from ((own, ext) for ext in formats if (own or variant is None) and (own, ext) in have)
        return
    for ext in formats:
        there = {v for v, e in have if e == ext}
        suited = [v for v in (*_SUITED.get(str(dtype).removeprefix("torch."), ()), None) if v in there]
        yield from ((v, ext) for v in (suited or (there if len(there) == 1 else ())))


def _whole(group: Mapping[str | None, str], where: object) -> tuple[list[str], str | None]:
    """The single file of one variant, or its shards and their index. Where there is both, diffusers goes by the index, transformers does not."""
    index, single = group.get("index"), group.get(None)
    sets: dict[str, dict[int, str]] = {}
    for shard, name in group.items():
        if shard is not None and shard != "index" and 1 <= int(shard[:5]) <= int(shard[-5:]):
            sets.setdefault(shard[-5:], {})[int(shard[:5])] = name
    whole = [shards for total, shards in sorted(sets.items()) if len(shards) == int(total)]
    if single and (not single.startswith("diffusion") or not index or not whole):
        return [single], None
    if len(whole) > 1 and not index:
        got, expected = "; ".join(some(sorted(s.values()), 1) for s in whole[:5]), "an index that says which one counts, or one set"
        raise CheckpointError("Several sets of shards.", where=where, got=got, expected=expected)
    if whole:
        return sorted(name for shards in whole for name in shards.values()), index
    if not sets:
        raise CheckpointError("The shards of the weights are missing.", where=where, got=some(group.values()))
    shards = max(sets.values(), key=len)
    number, name = min(shards.items())
    total = int(name.partition("-of-")[2][:5])
    missing = [name.replace(f"{number:05d}-of-", f"{i:05d}-of-") for i in range(1, total + 1) if i not in shards]
    got, fix = some(sorted(shards.values())), "Fetch or save the checkpoint again."
    raise CheckpointError(
        f"{len(missing)} of {total} shards of the weights are missing.", where=where, got=got, expected=some(missing), fix=fix
    )


def choose(
    groups: Groups,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    where: object = "weights",
) -> Plan:
    """What `plan` does, for weights in groups."""
    formats = formats_of(use_safetensors, variant)
    for own, ext in _choices(groups, variant, formats, dtype):
        problem: CheckpointError | None = None
        for group in [groups[key] for legacy in (False, True) if (key := (own, ext, legacy)) in groups]:
            try:
                return Plan(*_whole(group, where), ext, own)
            except CheckpointError as error:
                problem = problem or error
        if problem:
            raise problem
    files = sorted(name for group in groups.values() for name in group.values())
    if groups and {ext for _, ext, _ in groups}.isdisjoint(formats):
        fix = "Leave use_safetensors out to read what there is."
        raise CheckpointError(f"There are no weights in {formats[0]} format.", where=where, got=some(files), fix=fix)
    variants = sorted(variants_of(groups, formats))
    if variant not in (None, "auto"):
        expected = some([*variants, *["none (leave variant out)"] * any(v is None and ext in formats for v, ext, _ in groups)], 20)
        raise CheckpointError("These weights do not come in this variant.", where=where, got=f"variant={variant!r}", expected=expected)
    fix = f'Pass variant="auto", or one of: {some(variants, 20)}.'
    raise CheckpointError("There are weights in variants only.", where=where, got=some(files), fix=fix)


def plan(names: Collection[str], *, stem: str | None = None, where: object = "weights", **choice: Any) -> Plan:
    """Choose the weight files of one component from the names in its folder.

    Args:
        stem: the name that is preferred where a folder holds two: "diffusion_pytorch_model", or "model" for what transformers reads.
        where: for messages.
        variant: such as "fp16", spelled in full. "auto" takes what suits `dtype` (fp16 for float16; bf16, else fp16, for bfloat16), else the
            plain weights, else the only variant there is; it never takes a pickle where there is safetensors.
        use_safetensors: True takes nothing else, False takes `.bin` files, None safetensors if there are any.
        dtype: what the weights will be cast to, as a torch.dtype or its name.

    Raises CheckpointError if there are no such files, with the variants that exist, or if a shard is missing. A set of shards that is not whole
    is never replaced by weights of another format or variant.
    """
    if groups := groups_of(sorted(names), stem):
        return choose(groups, where=where, **choice)
    got, fix = some(sorted(names), 10) or "no files", "Fetch or save the checkpoint again."
    raise CheckpointError("There are no weights.", where=where, got=got, fix=fix)


def is_light(path: str) -> bool:
    """Whether a file is fetched without a reason of its own: no weights, code, pictures or hidden file, at most one folder down."""
    if len(path) > 500 or path.count("/") > 1 or path.startswith(".") or "/." in path or path.lower().endswith(_APART):
        return False
    return is_safe(path) and not parse_weight_name(path.rpartition("/")[2])


def component_files(names: Collection[str], **choice: Any) -> list[str]:
    """Of the files of one component's folder, those that are needed to load it. `choice`: what `plan` takes."""
    flat = [name for name in names if "/" not in name]
    needed = [name for name in names if is_light(name)]
    if any(map(parse_weight_name, flat)):
        weights = plan(flat, **choice)
        needed += [*weights.files, *filter(None, [weights.index])]
    return needed
