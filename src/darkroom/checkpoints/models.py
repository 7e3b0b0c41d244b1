"""Networks and pipeline components out of their folders."""

from __future__ import annotations
import importlib
import logging
from functools import partial
from pathlib import Path
from typing import Any
import torch
from ..config import Configurable
from ..errors import CheckpointError, ConfigError, DarkroomError, InputError
from ..models.base import Model
from .files import PathLike, available_variants, component_files, listing, plan, read_json, weight_paths
from .hub import HUB_OPTIONS, locate
from .index import building, is_transformers, quiet_transformers
from .weights import Weights, load_weights

__all__ = ["check_dtype", "load_component", "load_model"]

logger = logging.getLogger("darkroom")
_MEANINGLESS = ("low_cpu_mem_usage", "proxies", "mirror", "offload_state_dict", "disable_mmap")  # accepted from older programs


def check_dtype(dtype: object, where: str) -> None:
    """Raises InputError for what is neither None nor a floating-point dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError("Networks are loaded in a floating-point dtype.", where=where, got=dtype, expected="such as torch.float16")


def load_model(cls: type[Model], path: PathLike, *, subfolder: str | None = None, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """A network of class `cls` from a folder or hub id, on the CPU, in eval mode; see `Model.from_pretrained`. The tensors are compared with the
    configuration before any memory is taken for them. Raises CheckpointError if the folder, its configuration or its weights cannot be used,
    ConfigError for an option that is none of the hub's and none of the class, InputError for a dtype.
    """
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    choice = {name: options.pop(name) for name in ("variant", "use_safetensors") if name in options}
    changes = {name: value for name, value in options.items() if name not in _MEANINGLESS}
    names = cls.Config.names()
    if unknown := sorted(changes.keys() - set(names)):
        raise ConfigError("No such option.", where=f"{cls.__name__}.from_pretrained", got=", ".join(unknown), expected=", ".join(names))
    check_dtype(dtype, "dtype")
    folder = locate(path, files=[cls.config_name], choose=partial(component_files, **choice), subfolder=subfolder, **hub)
    where = folder / cls.config_name
    config = {**read_json(where), **changes}
    if "_class_name" not in config and ("architectures" in config or "model_type" in config):
        raise CheckpointError("The folder holds a model of transformers.", where=where, expected=cls.__name__)
    weights = Weights(weight_paths(folder, plan(listing(folder), where=folder, **choice)))
    try:
        with building, torch.device("meta"):
            model = cls.from_config(config)
    except DarkroomError:
        raise
    except Exception as error:  # a value of the file that the class cannot use
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The configuration does not describe a {cls.__name__}.", where=where, got=reason) from error
    if foreign := sorted(name for name in model.config.extra if not name.startswith("_")):
        logger.warning("%s: options that %s does not know are kept: %s", where, cls.__name__, ", ".join(foreign)[:300])
    load_weights(model, weights, dtype=dtype or torch.float32, keep_in_float32=cls.keep_in_float32, rename=cls.rename_key, where=folder)
    return model.eval()


def _transformers_model(cls: Any, folder: Path, dtype: torch.dtype | None, variant: str | None, **choice: Any) -> Any:
    chosen = plan(listing(folder), variant=variant, where=folder, **choice)
    files, safe = weight_paths(folder, chosen), chosen.format == "safetensors"
    if safe:
        Weights(files)  # for the errors, which name the file
    read_json(folder / "config.json")
    options = {"variant": variant, "use_safetensors": safe} | ({} if dtype is None else {"dtype": dtype})
    with quiet_transformers():
        model, report = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    if missing := sorted(map(str, report["missing_keys"])):
        raise CheckpointError(f"{len(missing)} tensors are not in the weight files.", where=files[0], got=", ".join(missing[:5]))
    return model.eval()


def _check_vocabulary(cls: Any, names: list[str]) -> None:
    """transformers makes an empty tokenizer, without a word, where the files of its vocabulary are missing."""
    needed = dict(getattr(cls, "vocab_files_names", None) or {})
    tokenizer = needed.pop("tokenizer_file", "tokenizer.json")
    missing = sorted(set(needed.values()) - set(names))
    if missing and tokenizer not in names:
        raise CheckpointError("The vocabulary of a tokenizer is missing.", got=", ".join(names) or "no files", expected=", ".join(missing))


def load_component(name: str, cls: Any, folder: Path, dtype: torch.dtype | None = None, variant: str | None = None, **choice: Any) -> Any:
    """One component out of its folder: a network (on the CPU, in eval mode), scheduler, tokenizer or processor.
    Without a `dtype` darkroom's networks are float32, those of transformers what their configuration says. The plain weights are taken where there
    are none of the variant. `choice` is `use_safetensors`. Raises CheckpointError, which names the component and the file.
    """
    try:
        names = listing(folder)
        variant = variant if variant in available_variants(names) else None
        if issubclass(cls, Model):
            return load_model(cls, folder, dtype=dtype, variant=variant, **choice)
        if issubclass(cls, Configurable):
            return cls.from_pretrained(folder)
        if issubclass(cls, importlib.import_module("transformers").PreTrainedModel):
            return _transformers_model(cls, folder, dtype, variant, **choice)
        if is_transformers(cls):
            _check_vocabulary(cls, names)
            with quiet_transformers():
                return cls.from_pretrained(folder, local_files_only=True)
        raise CheckpointError("A class that is no component.", where=folder, got=cls.__name__)
    except DarkroomError as error:
        what, where = f"The component {name} cannot be used: {error.what}", error.where or folder
        where = where if isinstance(error, CheckpointError) else f"{where}, in {folder}"
        raise CheckpointError(what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise CheckpointError(f"The component {name} cannot be loaded as {cls.__name__}.", where=folder, got=reason) from error
