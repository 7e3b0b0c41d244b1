"""Whole pipelines: from a folder with `model_index.json` to an object, and back."""

from __future__ import annotations
import contextlib
import gc
import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
import torch
from tqdm.auto import tqdm
from ..config import FORMAT_VERSION
from ..errors import CheckpointError
from .files import PathLike
from .hub import HUB_OPTIONS, download_pipeline
from .index import INDEX_NAME, ModelIndex, component_class
from .models import check_dtype, load_component
from .save import save_folder_atomic

if TYPE_CHECKING:
    from ..pipeline import DiffusionPipeline

__all__ = ["load_pipeline", "save_pipeline"]

logger = logging.getLogger("darkroom")
Dtypes = torch.dtype | Mapping[str, torch.dtype] | None
_IGNORED = frozenset(
    "low_cpu_mem_usage device_map max_memory offload_folder offload_state_dict mirror resume_download output_loading_info "
    "proxies custom_revision use_onnx provider sess_options provider_options disable_mmap trust_remote_code".split()
)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """No garbage collection until the end: what is imported and loaded stays, and looking through it takes a fifth of the time of an import."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_without_collector()
def load_pipeline(cls: type[DiffusionPipeline], source: PathLike, given: dict[str, Any], *, dtype: Dtypes, **choice: Any) -> Any:
    """What `DiffusionPipeline.from_pretrained` does, for the class it was called on. `choice` is `variant` and `use_safetensors`."""
    from ..pipeline import DiffusionPipeline

    hub = {name: given.pop(name) for name in HUB_OPTIONS if name in given}
    folder = download_pipeline(source, skip=set(given), choice=choice, **hub)
    index = ModelIndex.read(folder)
    if cls is DiffusionPipeline:
        where, name = f"{folder / INDEX_NAME}, _class_name", index.class_name
        if not isinstance(name, str):
            what = "The checkpoint asks for a pipeline class of its own code, which is not run."
            raise CheckpointError(what, where=where, got=name, expected="the name of a darkroom pipeline")
        if not issubclass(cls := component_class("_class_name", "diffusers", name), DiffusionPipeline):
            raise CheckpointError("Not a pipeline class.", where=where, got=name)
    names, optional, defaults, _ = cls.declared()
    cls._check_names(sorted(given.keys() - _IGNORED))
    values = {n: v for n, v in given.items() if n in names}
    wanted = {n: entry for n in names if n not in values and (entry := index.components.get(n)) is not None}
    if missing := [n for n in names if n not in wanted and values.get(n) is None and n not in optional]:
        fix = "Pass them as keyword arguments, or load the class that the checkpoint names."
        where, got = f"{cls.__name__} from {folder / INDEX_NAME}", ", ".join(sorted(wanted)) or "none"
        raise CheckpointError("Components are missing.", where=where, got=got, expected=", ".join(missing), fix=fix)
    dtypes = {n: dtype.get(n, dtype.get("default")) if isinstance(dtype, Mapping) else dtype for n in wanted}
    for name, chosen in dtypes.items():
        check_dtype(chosen, f"torch_dtype for {name}")
    classes = {n: component_class(n, *entry) for n, entry in wanted.items()}  # in this thread: imports do not like company
    with ThreadPoolExecutor(max_workers=4) as pool, tqdm(total=len(wanted), desc="Loading components", leave=False) as bar:

        def load(name: str) -> Any:
            own = folder / name if (folder / name).is_dir() else folder  # in the root, if there is just one network
            component = load_component(name, classes[name], own, dtype=dtypes[name], **choice)
            bar.update()
            return component

        values |= zip(wanted, pool.map(load, wanted))  # an error in one cancels those that have not begun
    options = {n: given.get(n, index.options.get(n, default)) for n, default in defaults.items()}
    pipe = cls(**{n: values.get(n) for n in names}, **options)
    kept = {n: v for n, v in index.options.items() if n not in names and n not in defaults and not n.startswith("_")}
    pipe.config.update(kept, _name_or_path=os.fspath(source))
    return pipe


def save_pipeline(pipe: DiffusionPipeline, folder: PathLike, **options: Any) -> None:
    """What `DiffusionPipeline.save_pretrained` does. Each component gets those options that its own `save_pretrained` names."""
    content = {k: list(v) if isinstance(v, tuple) else v for k, v in pipe.config.items() if not k.startswith("_")}
    with save_folder_atomic(folder) as target:
        for name, component in sorted(pipe.components.items()):
            component = getattr(component, "_orig_mod", component)
            if hasattr(component, "save_pretrained"):
                takes = inspect.signature(component.save_pretrained).parameters
                component.save_pretrained(target / name, **{k: v for k, v in options.items() if k in takes and v is not None})
            elif component is not None:
                logger.warning(f"{name}: a {type(component).__name__} cannot be saved; it is left out of the checkpoint")
                content[name] = [None, None]
        content |= {"_class_name": type(pipe).__name__, "_diffusers_version": FORMAT_VERSION}
        (target / INDEX_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
