"""Which files of a whole pipeline: a pure function from a listing and model_index.json to the files that are needed."""

from __future__ import annotations
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from ..errors import CheckpointError
from .files import inside, is_safe, listing, read_json
from .weight_files import (
    HEAVY,
    Groups,
    Plan,
    WeightName,
    available_variants,
    choose,
    component_files,
    formats_of,
    groups_of,
    is_light,
    parse_weight_name,
    plan,
    some,
    spelled,
    variants_of,
)

if TYPE_CHECKING:
    import torch
    from .index import ModelIndex

__all__ = [
    "PipelinePlan",
    "Plan",
    "WeightName",
    "available_variants",
    "component_files",
    "parse_weight_name",
    "pipeline_variants",
    "plan",
    "plan_pipeline",
    "weight_paths",
]

_ROOT = frozenset(
    "model_index.json README.md config.json scheduler_config.json tokenizer.json tokenizer_config.json preprocessor_config.json "
    "processor_config.json chat_template.jinja generation_config.json".split()
)  # README.md names the prior of a pipeline of two parts
_WEIGHTLESS = ("Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "FeatureExtractor", "Scheduler")  # how such classes' names end
_LIBRARIES = ("diffusers", "darkroom", "transformers")


@dataclass(frozen=True)
class PipelinePlan:
    """The files of a pipeline that are needed, relative to its folder and with "/"."""

    files: tuple[str, ...]  # everything to have, sorted
    weights: Mapping[str, Plan]  # of the components that have weights
    variants: Mapping[str, str | None]  # what was taken for each of them
    notes: tuple[str, ...] = ()  # at most one line: what was taken for which component, where that is no matter of course
    code: Mapping[str, str] = field(
        default_factory=dict
    )  # the Python file that a component, or "_class_name", names, trusted or not; a class
    # that darkroom knows goes before it
    flat: frozenset[str] = frozenset()  # the components without a folder of their own, whose files are in the root
    further: Mapping[str, str] = field(default_factory=dict)  # component among `weights` that is a further network of another -> that one

    def weight_files(self, component: str) -> list[str]:
        """The weight files of a component and their index, relative to the pipeline's folder."""
        prefix, chosen = "" if component in self.flat else f"{component}/", self.weights[component]
        return [prefix + name for name in (*chosen.files, chosen.index) if name]


def _split(paths: Iterable[str], names: Collection[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The files in the root, and those in each named folder, relative to it."""
    root: list[str] = []
    folders: dict[str, list[str]] = {}
    for path in paths:
        folder, slash, rest = path.partition("/")
        if not slash:
            root.append(path)
        elif folder in names:
            folders.setdefault(folder, []).append(rest)
    return sorted(root), folders


def _stem(entry: tuple[str, str] | None) -> str | None:
    return "model" if entry and entry[0] == "transformers" else None


def _weights_by_component(root: list[str], folders: Mapping[str, list[str]], index: ModelIndex) -> dict[str, Groups]:
    """The weights of every component, also of those that the caller brings, by name."""
    entries = {name: entry for name, entry in index.components.items() if entry and not entry[1].endswith(_WEIGHTLESS)}
    in_root = {stem: groups_of(root, stem) for stem in {_stem(entry) for name, entry in entries.items() if name not in folders}}
    found = {name: groups_of(folders[name], _stem(e)) if name in folders else in_root[_stem(e)] for name, e in entries.items()}
    return {name: groups for name, groups in found.items() if groups}


def _by_variant(weights: Mapping[str, Groups]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, groups in weights.items():
        for variant in variants_of(groups):
            found.setdefault(variant, []).append(name)
    return dict(sorted(found.items()))


def pipeline_variants(paths: Collection[str], index: ModelIndex) -> dict[str, list[str]]:
    """The variants that weights of a pipeline come in, each with the components that have it."""
    index = index.with_further({path.partition("/")[0] for path in paths if "/" in path})
    return _by_variant(_weights_by_component(*_split(paths, index.components), index))


def _code(
    root: Collection[str], folders: Mapping[str, list[str]], index: ModelIndex, wanted: Iterable[str], custom: object
) -> dict[str, str]:
    """The Python file that a component names as its library, and the one that the class of the pipeline is in."""
    own, found = index.class_name, {}
    stem = custom if custom is not None else own[0] if isinstance(own, (list, tuple)) and own else None
    if isinstance(stem, str) and re.fullmatch(r"[\w-]+", stem) and f"{stem}.py" in root:
        found["_class_name"] = f"{stem}.py"
    for name in wanted:
        library = (index.components[name] or ("", ""))[0]
        if library not in _LIBRARIES and re.fullmatch(r"[\w-]+", library) and f"{library}.py" in folders.get(name, ()):
            found[name] = f"{name}/{library}.py"
    return found


def _not_there(variant: str, there: Mapping[str, list[str]], plain: bool, use_safetensors: bool | None) -> CheckpointError:
    listed = [f"{v} ({some(names)})" for v, names in there.items()] + ["none (leave variant out)"] * plain
    got = f"variant={variant!r}" + (f" with use_safetensors={use_safetensors}" if use_safetensors is not None else "")
    return CheckpointError("No component comes in this variant.", where="variant", got=got, expected="; ".join(listed))


def _note(variant: str, taken: Mapping[str, str | None]) -> tuple[str, ...]:
    plain = [name for name, v in taken.items() if v is None]
    if variant != "auto":
        has, its = ("has", "its") if len(plain) == 1 else ("have", "their")
        return (f"variant {variant}: {', '.join(plain)} {has} none, {its} plain weights are used",) if plain else ()
    groups = {v: [name for name, own in taken.items() if own == v] for v in sorted({v for v in taken.values() if v})}
    parts = [f"{v} for {', '.join(names)}" for v, names in groups.items()] + [f"plain weights for {', '.join(plain)}"] * bool(plain)
    return (f"variant auto: {'; '.join(parts)}",) if groups else ()


def plan_pipeline(
    paths: Collection[str],
    index: ModelIndex,
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    passed: Collection[str] = (),
    dtype: torch.dtype | str | Mapping[str, torch.dtype | str] | None = None,
    trust_remote_code: bool = False,
    custom_pipeline: str | None = None,
    ignore_files: Collection[object] = (),
) -> PipelinePlan:
    """Choose the files of a pipeline from a listing of its folder or repository.

    Of each component that is neither null in the index nor passed these are: the weights that `plan` chooses, for each component by itself, and
    what else is small in its folder and at most one folder below that. One without a folder of its own has its files in the root. A component
    without the variant takes its plain weights, as long as any component of the pipeline has the variant. The format too is each component's own:
    one without safetensors is read from its `.bin` file and the others from theirs (diffusers takes `.bin` files for all of them then).

    Args:
        paths: names relative to the pipeline's folder, with "/". Those that `is_safe` refuses are left out.
        variant, use_safetensors, dtype: see `plan`; `dtype` may be a mapping from components, with a "default".
        passed: components that the caller brings.
        trust_remote_code: True adds the Python files of the folders that `code` names.
        custom_pipeline: the name of a Python file in the root, without its suffix; what is none is the caller's to fetch.
        ignore_files: the value of "_ignore_files" in model_index.json.

    Raises CheckpointError, which names the component: no weights in a format or variant that may be read, or a shard that is missing. If no
    component has the variant, it lists the variants with their components.
    """
    paths, formats = list(paths), formats_of(use_safetensors, variant)
    ignored = {path for path in ignore_files if isinstance(path, str)}
    index = index.with_further({path.partition("/")[0] for path in paths if "/" in path})
    passed = {*passed, *(folder for folder, owner in index.further.items() if owner in passed)}
    root, folders = _split((path for path in paths if path not in ignored) if ignored else paths, index.components)
    wanted = [name for name, entry in index.components.items() if entry is not None and name not in passed]
    flat = frozenset(name for name in wanted if name not in folders)
    code = _code(set(root), folders, index, wanted, custom_pipeline)
    weights = _weights_by_component(root, folders, index)
    heavy = [name for name in wanted if name in weights]
    if heavy and variant not in (None, "auto") and not any(spelled(variant, variants_of(groups, formats)) for groups in weights.values()):
        plain = any(v is None for name in heavy for v, _, _ in weights[name])
        raise _not_there(variant, _by_variant(weights), plain, use_safetensors)
    files = {name for name in root if name in _ROOT or (flat and is_light(name))}
    plans: dict[str, Plan] = {}
    for name in wanted:
        prefix, names = ("", root) if name in flat else (f"{name}/", folders[name])
        if prefix:
            files.update(prefix + path for path in names if is_light(path))
        if name in weights:
            own = variant if variant is None or variant == "auto" else spelled(variant, variants_of(weights[name], formats))
            cast = dtype.get(name, dtype.get("default")) if isinstance(dtype, Mapping) else dtype
            plans[name] = chosen = choose(weights[name], own, use_safetensors, cast, where=name)
            files.update(prefix + path for path in (*chosen.files, chosen.index) if path)
        elif prefix and name not in code and not (index.components[name] or ("", ""))[1].endswith(_WEIGHTLESS):
            if foreign := sorted(path for path in names if path.endswith(HEAVY)):
                expected = "model.safetensors, diffusion_pytorch_model.safetensors, or their .bin files"
                raise CheckpointError("There are no weights that can be read.", where=name, got=some(foreign), expected=expected)
    if trust_remote_code is True:  # the file that is named may import its neighbours
        for owner in code:
            prefix, names = ("", root) if owner == "_class_name" else (f"{owner}/", folders[owner])
            files |= {prefix + name for name in names if name.endswith(".py") and "/" not in name and is_safe(name)}
    taken = {name: chosen.variant for name, chosen in plans.items()}
    return PipelinePlan(tuple(sorted(files)), plans, taken, _note(variant, taken) if variant else (), code, flat, index.further)


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
    if missing := [path.name[:100] for path in paths if not path.is_file()]:
        got, fix = some(listing(folder)), "Fetch or save the checkpoint again."
        what = f"{len(missing)} of {len(paths)} shards of the weights are missing."
        raise CheckpointError(what, where=where, got=got, expected=some(missing), fix=fix)
    return paths
