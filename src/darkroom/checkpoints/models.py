"""Networks and pipeline components out of their folders."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..config import Configurable
from ..errors import CheckpointError, ConfigError, DarkroomError
from ..models.base import Model
from .files import available_variants, listing, plan, read_json, stem_of, weight_paths
from .hub import locate, model_files
from .index import component_class, is_transformers
from .quiet import quiet_transformers
from .weights import Weights, load_weights

__all__ = ["load_component", "load_model", "model_class"]

logger = logging.getLogger("darkroom")
_MEANINGLESS = ("low_cpu_mem_usage", "proxies", "mirror", "offload_state_dict", "disable_mmap")  # accepted from older programs


# transformers swaps the default dtype and torch.nn.init of the whole process while it builds: networks are built one at a time
_building = threading.RLock()


class _AtMost(TorchFunctionMode):
    """Stops the construction of a network that would have far more tensors than its files: its configuration cannot be right."""

    def __init__(self, count: int, where: object):
        super().__init__()
        self.left, self.where = count, where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= func in (torch.empty, torch.zeros, torch.ones, torch.randn)
        if self.left < 0:
            raise CheckpointError("The configuration describes a network of far more tensors than the weight files hold.", where=self.where)
        return func(*args, **(kwargs or {}))


def load_model(
    cls: type[Model],
    path: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    strict: bool = True,
    **config_overrides: Any,
) -> Any:
    """A network of class `cls` from a folder or hub id, on the CPU, in eval mode; see `Model.from_pretrained`.

    The tensors are compared with the configuration before any memory is taken for them.

    Raises:
        CheckpointError: the folder, its configuration or its weights cannot be used; a tensor is missing or has another shape.
        ConfigError: an override that is no option of the class, or an option without meaning.
    """
    unknown = sorted(set(config_overrides) - set(cls.Config.names()) - set(_MEANINGLESS))
    if unknown:
        raise ConfigError(
            "No such option.", where=f"{cls.__name__}.from_pretrained", got=", ".join(unknown), expected=", ".join(cls.Config.names())
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError("Not a dtype that networks compute in.", where="dtype", got=dtype, expected="such as torch.float16")
    folder = locate(
        path, subfolder=subfolder, files=partial(model_files, variant=variant, use_safetensors=use_safetensors), revision=revision,
        cache_dir=cache_dir, token=token, local_files_only=local_files_only, force_download=force_download,
    )  # fmt: skip
    where = folder / cls.config_name
    config = {**read_json(where), **{k: v for k, v in config_overrides.items() if k not in _MEANINGLESS}}
    if "_class_name" not in config and ("architectures" in config or "model_type" in config):
        raise CheckpointError("The folder holds a model of transformers.", where=where, expected=cls.__name__)
    files = weight_paths(folder, plan(listing(folder), cls.weights_name, variant=variant, use_safetensors=use_safetensors))
    weights = Weights(files)
    try:
        with _building, torch.device("meta"), _AtMost(8 * len(weights.entries) + 1000, where):
            model = cls.from_config(config)
    except DarkroomError:
        raise
    except Exception as error:  # a value of the file that the class cannot use
        raise CheckpointError(
            f"The configuration does not describe a {cls.__name__}.", where=where, got=f"{type(error).__name__}: {error}"
        ) from error
    foreign = sorted(name for name in model.config.extra if not name.startswith("_"))
    if foreign:
        logger.warning("%s: options that %s does not know are kept: %s", where, cls.__name__, ", ".join(foreign)[:300])
    load_weights(
        model,
        weights,
        dtype=dtype or torch.float32,
        keep_in_float32=cls.keep_in_float32,
        rename=cls.rename_key,
        strict=strict,
        where=folder,
    )
    return model.eval()


def model_class(config: dict[str, Any], where: object) -> type:
    """The class that a network's `config.json` names: darkroom's by `_class_name`, or transformers' by its first architecture.

    Raises:
        CheckpointError: it names none, or one that is unknown.
    """
    name, architectures = config.get("_class_name"), config.get("architectures")
    if isinstance(name, str):
        return component_class(str(where), "diffusers", name)
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return component_class(str(where), "transformers", architectures[0])
    raise CheckpointError("A configuration that names no class.", where=where, expected='"_class_name" or "architectures"')


def _transformers_model(cls: Any, folder: Path, dtype: torch.dtype | None, variant: str | None, use_safetensors: bool | None) -> Any:
    stem = stem_of(listing(folder)) or "model"
    chosen = plan(listing(folder), stem, variant=variant, use_safetensors=use_safetensors)
    files = weight_paths(folder, chosen)
    if chosen.format == "safetensors":
        Weights(files)  # the same checks of the headers as for darkroom's own networks
    read_json(folder / "config.json")
    options = {} if dtype is None else {"dtype": dtype}
    with _building, quiet_transformers():
        model, report = cls.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=chosen.format == "safetensors",
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    if report["missing_keys"]:
        missing = sorted(map(str, report["missing_keys"]))
        raise CheckpointError(f"{len(missing)} tensors are not in the weight files.", where=files[0], got=", ".join(missing[:5]))
    if report["unexpected_keys"]:
        logger.info("%s: %d tensors of the weight files belong to nothing", folder, len(report["unexpected_keys"]))
    return model.eval()


def _check_vocabulary(cls: Any, names: list[str]) -> None:
    """transformers makes an empty tokenizer, without a word, where the files of its vocabulary are missing."""
    needed = dict(getattr(cls, "vocab_files_names", None) or {})
    if needed.pop("tokenizer_file", "tokenizer.json") in names:
        return
    missing = sorted(set(needed.values()) - set(names))
    if missing:
        raise CheckpointError("The vocabulary of a tokenizer is missing.", got=", ".join(names) or "no files", expected=", ".join(missing))


def load_component(
    name: str,
    library: str,
    class_name: str,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    cls: type | None = None,
) -> Any:
    """One component of the pipeline in `folder`: a network (on the CPU, in eval mode), scheduler, tokenizer or processor.

    Args:
        library, class_name: the entry of model_index.json.
        dtype: None: float32 for darkroom's networks, what their configuration says for those of transformers.
        variant: the plain weights are taken where the component has none of it.
        cls: instead of the class that the entry names.
    Raises:
        CheckpointError: names the component and the file.
    """
    cls = component_class(name, library, class_name) if cls is None else cls
    root = Path(folder)
    own = root / name if (root / name).is_dir() else root
    names = listing(own)
    variant = variant if variant in available_variants(names) else None
    try:
        if issubclass(cls, Model):
            return load_model(cls, own, dtype=dtype, variant=variant, use_safetensors=use_safetensors)
        if issubclass(cls, Configurable):
            return cls.from_pretrained(own)  # type: ignore[attr-defined]
        if issubclass(cls, importlib.import_module("transformers").PreTrainedModel):
            return _transformers_model(cls, own, dtype, variant, use_safetensors)
        if is_transformers(cls):
            _check_vocabulary(cls, names)
            with quiet_transformers():
                return cls.from_pretrained(own, local_files_only=True)  # type: ignore[attr-defined]
        raise CheckpointError("A class that is no component.", where=own, got=cls.__name__)
    except DarkroomError as error:
        if isinstance(error, CheckpointError):
            where = f"{name}: {error.where or own}"
            raise CheckpointError(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error
        raise CheckpointError(
            f"The component {name} cannot be used: {error.what}", where=own, got=error.got, expected=error.expected
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise CheckpointError(f"The component {name} cannot be loaded as {cls.__name__}.", where=own, got=reason) from error
