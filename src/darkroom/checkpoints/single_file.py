"""Whole checkpoints, or single networks, in one file of the original layout: what `from_single_file` and `save_single_file` do."""

from __future__ import annotations
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
import torch
from torch import nn
from ..errors import CheckpointError, InputError, MissingDependencyError
from ..models.base import Model
from .files import PathLike, inside, open_regular
from .hub import HUB_OPTIONS, locate
from .index import INDEX_NAME, ModelIndex, component_class, without_collector
from .layouts import FAMILIES, NETWORKS, PLACES, WHOLE
from .models import check_dtype, load_component
from .original import SingleFile
from .plan import parse_weight_name
from .write_original import save_single_file

if TYPE_CHECKING:
    from ..pipeline import DiffusionPipeline

__all__ = ["load_single_file", "load_text_encoders", "open_single_file", "save_single_file"]

DType = torch.dtype | str | Mapping[str, torch.dtype] | None
YAML_LIMIT = 2**20  # bytes
_OPTIONS = ("config", "subfolder", "original_config", "prediction_type", "extract_ema", "device", "disable_mmap", "progress", *HUB_OPTIONS)
_MEANINGLESS = frozenset("low_cpu_mem_usage mirror resume_download offload_state_dict use_safetensors".split())
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_REFERENCE = re.compile(r"(?:(https?://[^/]+)/)?([\w.-]+/[\w.-]+)/(?:(?:blob|resolve)/([^/]+)/)?([^?]+)(?:\?.*)?", re.ASCII)


def _find(path: PathLike, hub: dict[str, Any]) -> Path:
    """A local file, or one of a hub repository: "org/name/file.safetensors", or its address there."""
    text, local = os.fspath(path), Path(path)
    if local.is_dir():
        raise CheckpointError("A folder, not a file.", where=local, fix="Load it with from_pretrained.")
    if os.path.lexists(local):
        return local
    match = _REFERENCE.fullmatch(text)
    if match is None or not match[4].endswith(_SUFFIXES):
        raise CheckpointError("There is no such file.", where=text, expected="a file, or org/name/file.safetensors on the hub")
    site, repo, revision, name = match.groups()
    if site is not None:
        from huggingface_hub import constants

        if urlsplit(site).netloc not in {urlsplit(url).netloc for url in (constants.ENDPOINT, constants._HF_DEFAULT_ENDPOINT)}:
            raise InputError("Not an address of the hub.", where=site, fix="Fetch the file yourself and pass its path.")
    found = inside(locate(repo, files=[name], **{**hub, **({"revision": revision} if revision else {})}), name)
    if not found.is_file():
        raise CheckpointError("There is no such file, neither here nor in the repository.", where=repo, expected=name)
    return found


def _yaml(config: PathLike | Mapping[str, Any]) -> Mapping[str, Any]:
    """The training code's configuration, given as a mapping or as a YAML file."""
    if isinstance(config, Mapping):
        return config
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError("YAML files need PyYAML.", where="original_config", fix="pip install pyyaml") from None
    with open_regular(Path(config)) as file:
        text = file.read(YAML_LIMIT + 1)
    try:
        content = yaml.safe_load(text) if len(text) <= YAML_LIMIT else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError("Not valid YAML.", where=config, got=type(error).__name__) from None
    if not isinstance(content, dict):
        raise CheckpointError("Not a configuration.", where=config, expected=f"a YAML mapping of at most {YAML_LIMIT} bytes")
    return content


def _is_light(name: str) -> bool:
    return not name.endswith(_SUFFIXES) and parse_weight_name(name.rpartition("/")[2]) is None


def open_single_file(
    path: PathLike,
    *,
    config: PathLike | Mapping[str, Any] | None = None,
    subfolder: str | None = None,
    original_config: PathLike | Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
    extract_ema: bool = False,
    device: torch.device | str = "cpu",
    disable_mmap: bool = False,
    progress: Callable[[int], object] | None = None,
    **hub: Any,
) -> SingleFile:
    """A file, ready for its components to be loaded; nothing but headers is read.

    Args:
        path: a local file, "org/name/file.safetensors", or its address on the hub.
        config: a folder or hub id in the folder layout, of which all but the weights is used; for one network also a mapping. Without it everything
            is inferred from the file, and nothing is fetched.
        subfolder: where in `config` a network's configuration lies.
        original_config: the training code's YAML file or its contents, see `SingleFile`, as for the other options.
        hub: `HUB_OPTIONS`.
    Raises:
        CheckpointError: the file, or a configuration, is missing or cannot be read.
    """
    if config is not None and not isinstance(config, Mapping):
        light = lambda names, _: list(filter(_is_light, names))  # noqa: E731
        config = locate(config, files=[INDEX_NAME, "config.json"], choose=light, subfolder=subfolder, **hub)
    original = None if original_config is None else _yaml(original_config)
    options: dict[str, Any] = {"prediction_type": prediction_type, "extract_ema": extract_ema, "device": device}
    options |= {"disable_mmap": disable_mmap, "progress": progress}
    return SingleFile(_find(path, hub), config=config, original_config=original, **options)


def _dtype(dtype: DType, component: str) -> torch.dtype | None:
    """float32 where nothing is said; None, which is what is stored, for "auto"."""
    chosen = dtype.get(component, dtype.get("default")) if isinstance(dtype, Mapping) else dtype
    if chosen == "auto":
        return None
    check_dtype(chosen, f"dtype for {component}")
    return torch.float32 if chosen is None else chosen  # type: ignore[return-value]


def load_text_encoders(path: PathLike, *, dtype: DType = None, **options: Any) -> dict[str, Any]:
    """The text encoders of a file by component: `text_encoder` (CLIPTextModel), `text_encoder_2` (CLIPTextModelWithProjection).

    `dtype` as for `load_single_file`, `options` as for `open_single_file`. Raises CheckpointError if the file holds none.
    """
    file = open_single_file(path, **options)
    if not file.texts:
        raise file.lacks("text encoder")
    return {name: file.text_encoder(name, dtype=_dtype(dtype, name)) for name in file.texts}


@without_collector()
def load_single_file(cls: Any, path: PathLike, *, dtype: DType = None, **given: Any) -> Any:
    """What `from_single_file` does: a pipeline, or a network of a class in NETWORKS, out of a file in the original layout.

    Args:
        cls: DiffusionPipeline for the class that the file asks for, one of its subclasses, or a network's class.
        path: a local file, "org/name/file.safetensors", or its address on the hub.
        dtype: of the networks: one, one per component with "default" for the rest, or "auto" for what is stored; float32 if not given.
        given: options of `open_single_file`; of a pipeline its own options, and components to use instead of the file's; of a network keys of its
            configuration to override.
    Returns:
        The pipeline or network, on `device` (the CPU), in eval mode. A safety checker is never in such a file.
    Raises:
        CheckpointError: the file cannot be used; says what it seems to be. InputError: an option without meaning.
    """
    file = open_single_file(path, **{name: given.pop(name) for name in _OPTIONS if name in given})
    given = {name: value for name, value in given.items() if name not in _MEANINGLESS}
    if not issubclass(cls, Model):
        return _pipeline(cls, file, dtype, given)
    if cls.__name__ not in NETWORKS:
        raise InputError("No original layout of this class is known.", where=cls.__name__, expected=", ".join(NETWORKS))
    if unknown := sorted(given.keys() - set(cls.Config.names())):
        raise InputError("No such option.", where=f"{cls.__name__}.from_single_file", got=", ".join(unknown))
    component = NETWORKS[cls.__name__]
    return file.network(component, dtype=_dtype(dtype, component), **given)


def _class_of(file: SingleFile, index: ModelIndex | None) -> Any:
    """The pipeline class that `config` names, or that belongs to the file's family and input channels."""
    from .._public import NAMES as PUBLIC

    family = FAMILIES[file.family]
    name = family.pipelines.get(file.channels or 0) if index is None else index.class_name
    if not isinstance(name, str) or name not in PUBLIC:
        got = f"{family.title}, {file.channels} input channels" + (f": {name}" if isinstance(name, str) else "")
        fix = "Its networks load one by one: UNet2DConditionModel.from_single_file, AutoencoderKL.from_single_file."
        raise CheckpointError("The file needs a pipeline that darkroom does not have.", where=file.path, got=got, fix=fix)
    return component_class("_class_name", "darkroom", name)


def _pipeline(cls: type[DiffusionPipeline], file: SingleFile, dtype: DType, given: dict[str, Any]) -> DiffusionPipeline:
    from ..pipeline import DiffusionPipeline

    if isinstance(file.config, Mapping):
        raise InputError("A pipeline has several configurations.", where="config", got="a mapping", expected="a folder or hub id")
    if not file.unet and given.get("unet") is None:
        raise file.lacks("UNet")
    index = None if file.config is None else ModelIndex.read(file.config)
    cls = _class_of(file, index) if cls is DiffusionPipeline else cls
    names, optional, defaults, _ = cls.declared()
    cls._check_names(sorted(given))
    family = FAMILIES[file.family]
    if foreign := sorted(file.texts.keys() - set(names)):
        got, fits = f"{foreign[0]}, which a {cls.__name__} does not have", family.pipelines[4]
        raise CheckpointError(f"The file is a checkpoint of {family.title}.", where=file.path, got=got, expected=fits)
    makers = {name: make for name in names if name not in given and (make := _maker(file, index, name, dtype))}
    if missing := [n for n in names if n not in makers and given.get(n) is None and n not in optional]:
        what, got = f"Components are missing: the file is a checkpoint of {family.title}.", ", ".join(sorted(makers)) or "none"
        fix = "Pass them as keyword arguments, or use the class that fits the file."
        raise CheckpointError(what, where=f"{cls.__name__} from {file.path}", got=got, expected=", ".join(missing), fix=fix)
    values = {name: makers[name]() if name in makers else given.get(name) for name in names}
    known = {**defaults, **family.options, **(index.options if index else {}), **given}
    pipe = cls(**values, **{name: known[name] for name in defaults})
    pipe.config.update(_name_or_path=os.fspath(file.path))
    return pipe


def _maker(file: SingleFile, index: ModelIndex | None, name: str, dtype: DType) -> Callable[[], Any] | None:
    """What makes a component of a pipeline: out of the file, out of the folder with configurations, or from what is known of the family."""
    if name in WHOLE or (name in PLACES and file.part(name)):
        return lambda: file.network(name, dtype=_dtype(dtype, name))
    if name in file.texts:
        return lambda: file.text_encoder(name, dtype=_dtype(dtype, name))
    entry = index and index.components.get(name)
    if entry and isinstance(file.config, Path) and (folder := file.config / name).is_dir():
        cls = component_class(name, *entry)
        return None if issubclass(cls, nn.Module) else lambda: load_component(name, cls, folder)
    if name == "scheduler":
        return file.scheduler
    encoder = name.replace("tokenizer", "text_encoder")
    return (lambda: file.tokenizer(encoder)) if encoder in file.texts else None
