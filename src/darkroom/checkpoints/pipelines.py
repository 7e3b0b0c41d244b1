"""Whole pipelines: from a folder with `model_index.json` to an object, and back."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import FORMAT_VERSION
from ..errors import CheckpointError, InputError
from .hub import download_pipeline
from .index import ModelIndex, component_class
from .models import load_component
from .save import save_folder_atomic

if TYPE_CHECKING:
    import torch

    from ..pipeline import DiffusionPipeline

__all__ = ["load_pipeline", "save_pipeline"]

logger = logging.getLogger("darkroom")
_IGNORED = frozenset(
    "low_cpu_mem_usage device_map max_memory offload_folder offload_state_dict mirror resume_download output_loading_info "
    "proxies custom_revision use_onnx provider sess_options provider_options disable_mmap trust_remote_code".split()
)


def _dtype_of(name: str, dtype: torch.dtype | Mapping[str, torch.dtype] | None) -> torch.dtype | None:
    """The dtype for one component; None means the loader's own default, float32."""
    chosen = dtype.get(name, dtype.get("default")) if isinstance(dtype, Mapping) else dtype
    if chosen is not None:
        import torch

        if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
            raise InputError(
                "Networks are loaded in a floating-point dtype.",
                where=f"torch_dtype for {name}",
                got=chosen,
                expected='such as torch.float16, or a dict such as {"unet": torch.float16, "default": torch.float32}',
            )
    return chosen


def load_pipeline(
    cls: type[DiffusionPipeline],
    source: str | os.PathLike[str],
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None,
    variant: str | None,
    use_safetensors: bool | None,
    given: Mapping[str, Any],
    **hub: Any,
) -> DiffusionPipeline:
    """What `DiffusionPipeline.from_pretrained` does, for the class it was called on."""
    from ..pipeline import DiffusionPipeline

    folder = download_pipeline(source, variant=variant, use_safetensors=use_safetensors, skip=set(given), **hub)
    index = ModelIndex.read(folder)
    if cls is DiffusionPipeline:
        cls = _class_named(index, folder)
    names, optional, defaults = cls.component_names(), cls.optional_names(), cls.option_defaults()
    unknown = sorted(set(given) - set(names) - set(defaults) - _IGNORED)
    if unknown:
        raise InputError(
            "No such component or option.", where=f"{cls.__name__}.from_pretrained", got=unknown, expected=list(names)
        )
    values: dict[str, Any] = {n: v for n, v in given.items() if n in names}
    wanted = {n: entry for n in names if n not in values and (entry := index.components.get(n)) is not None}
    missing = [n for n in names if n not in values and n not in wanted and n not in optional]
    missing += [n for n, v in values.items() if v is None and n not in optional]
    if missing:
        raise CheckpointError(
            "Components are missing.",
            where=f"{cls.__name__} from {folder / 'model_index.json'}",
            got=", ".join(sorted(wanted)) or "none",
            expected=", ".join(missing),
            fix="Pass them as keyword arguments, or load the class that the checkpoint names.",
        )
    values |= _load(wanted, folder, dtype=dtype, variant=variant, use_safetensors=use_safetensors)
    options = {n: given.get(n, index.options.get(n, default)) for n, default in defaults.items()}
    pipe = cls(**{n: values.get(n) for n in names}, **options)
    known = {*names, *defaults}
    kept = {n: v for n, v in index.options.items() if n not in known and not n.startswith("_")}
    pipe.config.update(kept)
    pipe.config["_name_or_path"] = os.fspath(source)
    return pipe


def _class_named(index: ModelIndex, folder: Path) -> type[DiffusionPipeline]:
    from ..pipeline import DiffusionPipeline

    name = index.class_name
    where = folder / "model_index.json"
    if not isinstance(name, str):
        raise CheckpointError(
            "The checkpoint asks for a pipeline class of its own code, which is not run.",
            where=f"_class_name in {where}",
            got=name,
            expected="the name of a darkroom pipeline",
        )
    cls = component_class("_class_name", "diffusers", name)
    if not (inspect.isclass(cls) and issubclass(cls, DiffusionPipeline)):
        raise CheckpointError("Not a pipeline class.", where=f"_class_name in {where}", got=name)
    return cls


def _load(
    wanted: Mapping[str, tuple[str, str]],
    folder: Path,
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype] | None,
    variant: str | None,
    use_safetensors: bool | None,
) -> dict[str, Any]:
    """Load components side by side. Classes are found first, in this thread: imports do not like company."""
    from tqdm.auto import tqdm

    classes = {n: component_class(n, *entry) for n, entry in wanted.items()}
    dtypes = {n: _dtype_of(n, dtype) for n in wanted}
    with ThreadPoolExecutor(max_workers=4) as pool, tqdm(total=len(wanted), desc="Loading components", leave=False) as bar:

        def load(name: str) -> Any:
            loaded = load_component(
                name,
                *wanted[name],
                folder,
                dtype=dtypes[name],
                variant=variant,
                use_safetensors=use_safetensors,
                cls=classes[name],
            )
            bar.update()
            return loaded

        jobs = {name: pool.submit(load, name) for name in wanted}
        try:
            return {name: job.result() for name, job in jobs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def save_pipeline(pipe: DiffusionPipeline, folder: str | os.PathLike[str], **options: Any) -> None:
    """What `DiffusionPipeline.save_pretrained` does."""
    import json

    content = {k: list(v) if isinstance(v, tuple) else v for k, v in pipe.config.items() if not k.startswith("_")}
    with save_folder_atomic(Path(folder)) as target:
        for name, component in sorted(pipe.components.items()):
            if component is None:
                continue
            if not hasattr(component, "save_pretrained"):
                logger.warning(f"{name}: a {type(component).__name__} cannot be saved; it is left out of the checkpoint")
                content[name] = [None, None]
                continue
            component = getattr(component, "_orig_mod", component)
            takes = inspect.signature(component.save_pretrained).parameters
            component.save_pretrained(target / name, **_for_library(component, options, takes))
        content |= {"_class_name": type(pipe).__name__, "_diffusers_version": FORMAT_VERSION}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (target / "model_index.json").write_text(text, encoding="utf-8")


def _for_library(component: Any, options: Mapping[str, Any], takes: Mapping[str, Any]) -> dict[str, Any]:
    """The options that this component's `save_pretrained` knows."""
    from ..models.base import Model

    chosen = {k: v for k, v in options.items() if k in takes and v is not None}
    if not isinstance(component, Model) and hasattr(component, "parameters"):
        # transformers networks: its own writer takes these by keyword and has dropped pickles
        chosen = {k: v for k, v in options.items() if k in ("variant", "max_shard_size") and v is not None}
    return chosen
