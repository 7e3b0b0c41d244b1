"""Whole pipelines: from a folder with `model_index.json` to an object, and back."""

from __future__ import annotations
import inspect
import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from tqdm.auto import tqdm
from .._public import NAMES
from ..config import FORMAT_VERSION
from ..errors import CheckpointError, DarkroomError, InputError
from .atomic import save_folder_atomic
from .files import PathLike, check_links, check_outward_links, inside
from .hub import HUB_OPTIONS, check_source, fetch_pipeline, listing_of, locate, newer_commit, push_folder
from .index import INDEX_NAME, ModelIndex, check_kind, component_class, without_collector
from .locks import read_whole
from .models import DType, check_dtype, component_errors, load_component, open_weights, size_of, stays_mapped
from .placement import plan_devices
from .plan import pipeline_variants
from .remote_code import PREFIX, custom_file, load_custom_class
from .weights import Weights, workers

if TYPE_CHECKING:
    from ..pipeline import DiffusionPipeline

__all__ = ["load_pipeline", "save_pipeline", "variants_of"]

logger = logging.getLogger("darkroom")
# what older programs pass and what has no meaning here
_IGNORED = frozenset(
    "low_cpu_mem_usage offload_folder offload_state_dict mirror resume_download output_loading_info use_onnx provider sess_options "
    "provider_options load_connected_pipeline".split()  # connected pipelines load with every class that has some
)


def variants_of(source: PathLike, **hub: Any) -> dict[str, list[str]]:
    """What `DiffusionPipeline.available_variants` gives: variant -> components."""
    names = list(listing_of(source, **hub).sizes)
    return pipeline_variants(names, ModelIndex.read(locate(source, files=[INDEX_NAME], **hub)))


def _custom_pipeline(name: str, folder: Path, trust: bool, hub: Mapping[str, Any]) -> type[DiffusionPipeline]:
    """The class that `custom_pipeline` asks for: a .py file, one in the checkpoint, a folder with pipeline.py, or a hub repository with one."""
    from ..pipeline import DiffusionPipeline

    path = custom_file(name, folder)
    if path is None and name.count("/") == 1:
        path = locate(name, files=["pipeline.py"] if trust else [], **hub) / "pipeline.py"
    if path is None:
        expected = "a .py file, a folder or hub repository with pipeline.py, or the name of a .py file in the checkpoint"
        raise InputError("No such custom pipeline.", where="custom_pipeline", got=name, expected=expected)
    return load_custom_class(path, base=DiffusionPipeline, trust_remote_code=trust)


def _pipeline_class(index: ModelIndex, folder: Path, trust: bool) -> type[DiffusionPipeline]:
    """The class that the checkpoint names."""
    from ..pipeline import DiffusionPipeline

    where, name = f"{folder / INDEX_NAME}, _class_name", index.class_name
    if isinstance(name, list) and len(name) == 2 and all(isinstance(part, str) for part in name):
        return load_custom_class(inside(folder, f"{name[0]}.py"), class_name=name[1], base=DiffusionPipeline, trust_remote_code=trust)
    if not isinstance(name, str):
        raise CheckpointError("The checkpoint names no pipeline class.", where=where, got=name, expected="the name of a darkroom pipeline")
    try:
        cls = component_class("_class_name", "diffusers", name)
    except DarkroomError:
        fix = "Load it with the pipeline class of darkroom that fits its components."
        raise CheckpointError("A pipeline of a class that darkroom does not know.", where=where, got=name, fix=fix) from None
    if not issubclass(cls, DiffusionPipeline) or not cls.declared().components:
        raise CheckpointError("Not a class of pipelines that run.", where=where, got=name)
    return cls


def load_pipeline(cls: type[DiffusionPipeline], source: PathLike, given: Mapping[str, Any], **options: Any) -> DiffusionPipeline:
    """What `DiffusionPipeline.from_pretrained` does, for the class it was called on."""
    given = dict(given)
    hub = {name: given.pop(name) for name in HUB_OPTIONS if name in given}
    if given.pop("check_for_updates", False):
        _tell_of_updates(source, hub)
    if not given.pop("follow_links", True):
        options["follow_links"] = False
    names = ("trust_remote_code", "custom_pipeline", "device_map", "max_memory", "disable_mmap", "strict")
    options |= {name: given.pop(name) for name in (*names, "custom_revision") if name in given}
    options["given"] = {n: v for n, v in given.items() if n not in _IGNORED}
    root = check_source(source)
    return read_whole(root, lambda _: _load(cls, source, hub, **options))


def _tell_of_updates(source: PathLike, hub: Mapping[str, Any]) -> None:
    try:
        if newer := newer_commit(source, **hub):
            logger.warning("%s: the hub has a newer commit, %s", os.fspath(source), newer)
    except DarkroomError as error:  # a question beside the load, which goes on
        logger.warning("%s: no word of updates: %s", os.fspath(source), error.what)


@without_collector()
def _load(
    cls: type[DiffusionPipeline],
    source: PathLike,
    hub: dict[str, Any],
    *,
    given: dict[str, Any],
    dtype: Any = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    trust_remote_code: bool = False,
    custom_pipeline: str | None = None,
    custom_revision: str | None = None,
    device_map: Any = None,
    max_memory: Mapping[Any, int | str] | None = None,
    disable_mmap: bool = False,
    follow_links: bool = True,
    strict: bool = True,
) -> DiffusionPipeline:
    from ..pipeline import DiffusionPipeline

    trust = trust_remote_code is True
    if not follow_links and Path(source).is_dir():
        check_outward_links(Path(source))
    choice: dict[str, Any] = {"variant": variant, "use_safetensors": use_safetensors, "trust_remote_code": trust}
    folder, index, plan = fetch_pipeline(source, passed=given.keys(), dtype=dtype, custom_pipeline=custom_pipeline, **choice, **hub)
    if not follow_links:
        check_links(folder, [folder / name for name in plan.files])
    if custom_pipeline is not None:
        cls = _custom_pipeline(custom_pipeline, folder, trust, {**hub, "revision": custom_revision})
    elif cls is DiffusionPipeline:
        cls = _pipeline_class(index, folder, trust)
    names, optional, defaults, annotations = cls.declared()
    if cls.connected:
        given = {**_connected(cls, folder, given, dtype, choice, hub), **given}
    cls._check_names(sorted(given))
    values = {n: cls.as_component(n, v) for n, v in given.items() if n in names}
    for name, value in values.items():
        if isinstance(value, (str, bytes, int, float, list, tuple, dict)):
            expected, fix = annotations.get(name) or "a loaded component", "Load it first, such as with AutoModel.from_pretrained."
            raise InputError("Not a component.", where=name, got=value, expected=expected, fix=fix)
    wanted = {n: entry for n in names if n not in values and (entry := index.components.get(n)) is not None}
    if missing := [n for n in names if n not in wanted and values.get(n) is None and n not in optional]:
        fix = "Pass them as keyword arguments, or load the class that the checkpoint names."
        where, got = f"{cls.__name__} from {folder / INDEX_NAME}", ", ".join(sorted(wanted)) or "none"
        raise CheckpointError("Components are missing.", where=where, got=got, expected=", ".join(missing), fix=fix)
    dtypes: dict[str, DType] = {n: dtype.get(n, dtype.get("default")) if isinstance(dtype, Mapping) else dtype for n in wanted}
    for name, chosen in dtypes.items():
        check_dtype(chosen, f"torch_dtype for {name}")
    classes = {}  # in this thread: imports do not like company
    for name, (library, class_name) in wanted.items():
        if name in plan.code and (trust or class_name not in NAMES):
            classes[name] = load_custom_class(folder / plan.code[name], class_name=class_name, base=object, trust_remote_code=trust)
        else:
            classes[name] = component_class(name, library, class_name)
        check_kind(name, classes[name], annotations.get(name, ""))
    folders = {n: folder if n in plan.flat else folder / n for n in wanted}  # in the root, if there is just one network
    weights: dict[str, Weights] = {}
    for name in (n for n in wanted if n in plan.weights):
        with component_errors(name, classes[name], folders[name]):
            weights[name] = open_weights(folders[name], plan.weights[name])
    sizes = {name: size_of(opened, dtypes[name]) for name, opened in weights.items()}
    for name, owner in plan.further.items():
        if owner in sizes:
            sizes[owner] += size_of(open_weights(folder / name, plan.weights[name]), dtypes[owner])
    devices = plan_devices(sizes, "cpu" if device_map is None else device_map, max_memory)
    lock = threading.Lock()
    total = sum(size for name, size in sizes.items() if devices[name].type != "meta")
    # where nothing is read, networks are built side by side only in name: Python builds one at a time, and threads cost
    mapped = not disable_mmap and all(stays_mapped(opened, dtypes[name], devices[name]) for name, opened in weights.items())
    with (
        tqdm(total=total, desc="Loading", unit="B", unit_scale=True, leave=False) as bar,
        ThreadPoolExecutor(max_workers=1 if mapped else workers()) as pool,
    ):

        def progress(done: int) -> None:
            with lock:
                bar.update(done)

        def load(name: str) -> Any:
            options: dict[str, Any] = {"dtype": dtypes[name], "device": devices.get(name, "cpu"), "strict": strict}
            options |= {"disable_mmap": disable_mmap, "progress": progress, "variant": variant, "use_safetensors": use_safetensors}
            return load_component(name, classes[name], folders[name], weights.get(name), **options)

        jobs = {name: pool.submit(load, name) for name in wanted}
        try:
            values |= {name: job.result() for name, job in jobs.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    kept = {n: v for n, v in index.options.items() if n not in names and n not in defaults and not n.startswith("_")}
    pipe = cls(**{n: values.get(n) for n in names}, **{n: given.get(n, index.options.get(n, value)) for n, value in defaults.items()})
    pipe.config.update(kept, _name_or_path=os.fspath(source))
    if device_map is not None:
        pipe._place(devices)
    return pipe


def _connected(
    cls: type[DiffusionPipeline], folder: Path, given: Mapping[str, Any], dtype: Any, choice: Mapping[str, Any], hub: dict[str, Any]
) -> dict[str, Any]:
    """The components of the pipelines that the checkpoint's card names, as `prior_scheduler` and so on."""
    from huggingface_hub import ModelCard
    from ..pipeline import DiffusionPipeline

    card, found = folder / "README.md", dict[str, Any]()
    for part in cls.connected:
        ids = getattr(ModelCard.load(card).data, part, None) if card.is_file() else None
        name = ids[0] if isinstance(ids, list) and ids else ids
        if not isinstance(name, str):
            raise CheckpointError("The card names no connected pipeline.", where=card, expected=f"{part}: [a hub id]")
        own = {n.removeprefix(f"{part}_"): v for n, v in given.items() if n.startswith(f"{part}_")}
        pipe = DiffusionPipeline.from_pretrained(name, dtype=dtype, **choice, **{**hub, "revision": None}, **own)
        found |= {f"{part}_{n}": component for n, component in pipe.components.items()}
    return found


def save_pipeline(
    pipe: DiffusionPipeline, folder: PathLike, *, push_to_hub: bool = False, hub: Mapping[str, Any] = {}, **options: Any
) -> None:
    """What `DiffusionPipeline.save_pretrained` does. Each component gets those options that its own `save_pretrained` names."""
    content = {k: list(v) if isinstance(v, tuple) else v for k, v in pipe.config.items() if not k.startswith("_")}
    with save_folder_atomic(folder) as target:
        for name, component in sorted(pipe.components.items()):
            component = getattr(component, "_orig_mod", component)
            if hasattr(component, "save_pretrained"):
                takes = inspect.signature(component.save_pretrained).parameters
                component.save_pretrained(target / name, **{k: v for k, v in options.items() if k in takes and v is not None})
                if (own := type(component).__module__).startswith(PREFIX):  # code that came with a checkpoint goes with its component
                    source = Path(str(sys.modules[own].__file__))
                    (target / name / source.name).write_bytes(source.read_bytes())
            elif component is not None:
                logger.warning(f"{name}: a {type(component).__name__} cannot be saved; it is left out of the checkpoint")
                content[name] = [None, None]
        content |= {"_class_name": type(pipe).__name__, "_diffusers_version": FORMAT_VERSION}
        (target / INDEX_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if push_to_hub:
        push_folder(folder, **{"repo_id": Path(folder).name, **hub})
