"""DiffusionPipeline: a set of named components and options, loaded from and saved to a folder with a `model_index.json`."""

from __future__ import annotations
import contextlib
import copy
import functools
import inspect
import json
import logging
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self
import torch
from torch import nn
from .config import FORMAT_VERSION, Configurable
from .errors import InputError

if TYPE_CHECKING:
    from .checkpoints.files import PathLike
    from .checkpoints.inspection import Inspection
    from .checkpoints.placement import DevicePlan
    from .core.types import Run

__all__ = ["DiffusionPipeline"]

logger = logging.getLogger("darkroom")
DType = torch.dtype | str | Mapping[str, torch.dtype] | None


class PipelineConfig(dict[str, Any]):
    """What `model_index.json` says of a pipeline: components as (library, class), options as values."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Declared(NamedTuple):
    """What a pipeline class is made of, in order; `optional` components may be None. Without `annotations` where its own constructor says it."""

    components: tuple[str, ...]
    optional: frozenset[str]
    options: Mapping[str, Any]
    annotations: Mapping[str, str]


class DiffusionPipeline:
    """The base of all pipelines.
    A pipeline names its components by annotations (`unet: UNet2DConditionModel`; `X | None` marks an optional one), or, in a class of your own, by
    the parameters of its `__init__`, which calls `register_modules`. Components are attributes; assigning one updates the configuration.
    """

    options: ClassVar[Mapping[str, Any]] = {}  # values beside the components in model_index.json, with their defaults
    settings: ClassVar[Mapping[str, Any]] = {}  # arguments of the constructor that are not written there
    connected: ClassVar[tuple[str, ...]] = ()  # fields of the checkpoint's card that name further pipelines, whose components join this one

    config_name: ClassVar[str] = "model_index.json"
    config: PipelineConfig
    _progress: Mapping[str, Any]
    _runs: weakref.WeakSet[Run]
    device_plan: DevicePlan | None  # where components are, if `device_map` said so

    def __new__(cls, *args: Any, **values: Any) -> Self:
        self = super().__new__(cls)
        self.__dict__.update(config=PipelineConfig(), _progress={}, _runs=weakref.WeakSet(), device_plan=None)
        return self

    def __init__(self, *args: Any, **values: Any):
        cls = type(self)
        components, optional, options, annotations = cls.declared()
        if not annotations:
            return  # a constructor written by hand registers its components itself
        names = [*components, *options]
        values = {**dict(zip(names, args)), **values}
        cls._check_names([*values, *args[len(names) :]])
        if missing := [n for n in components if n not in values and n not in optional]:
            raise InputError("Components are missing.", where=cls.__name__, got=sorted(values), expected=", ".join(missing))
        self.register_modules(**{n: values.get(n) for n in components})
        self.register_to_config(**{n: values.get(n, default) for n, default in self.options.items()})
        self.__dict__.update({n: values.get(n, default) for n, default in self.settings.items()})

    @classmethod
    def _check_names(cls, given: Iterable[Any]) -> None:
        names = [*cls.declared().components, *cls.declared().options]
        if unknown := [name for name in given if name not in names]:
            raise InputError("No such component or option.", where=cls.__name__, got=unknown, expected=", ".join(names))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        components, optional, options, annotations = cls.declared()
        if annotations:
            defaults: dict[str, Any] = dict.fromkeys(optional) | dict(options)
            names = [*components, *options]
            last = max((i for i, n in enumerate(names) if n not in defaults), default=-1)  # all before it are to be named, may they be None
            make, kind = inspect.Parameter, inspect.Parameter.POSITIONAL_OR_KEYWORD
            parameters = [make(n, kind, default=defaults.get(n) if i > last else make.empty) for i, n in enumerate(names)]
            cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    @classmethod
    @functools.cache
    def declared(cls) -> Declared:
        """What the class is made of: read off a constructor written by hand, else off annotations, `options` and `settings`."""
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        parameters = inspect.signature(cls.__init__).parameters
        if by_hand := {n: p for n, p in parameters.items() if n != "self" and p.kind not in kinds}:
            optional = frozenset(getattr(cls, "_optional_components", ()))
            names = tuple(n for n, p in by_hand.items() if p.default is inspect.Parameter.empty or n in optional)
            return Declared(names, optional, {n: p.default for n, p in by_hand.items() if n not in names}, {})
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            if base is not DiffusionPipeline and issubclass(base, DiffusionPipeline):
                own = base.__dict__.get("__annotations__", {})
                mine = {n: str(a) for n, a in own.items() if not n.startswith("_") and "ClassVar" not in str(a) and str(a) != "None"}
                # what is named again moves behind what is new before it, what is always None is no component any more
                found = {n: a for n, a in found.items() if n not in own} | mine
        optional = frozenset(n for n, a in found.items() if "None" in a or "Optional" in a)
        return Declared(tuple(found), optional, {**cls.options, **cls.settings}, found)

    @classmethod
    def as_component(cls, name: str, value: Any) -> Any:
        """The component that a caller's value stands for, such as one network for a list of them."""
        return value

    def register_modules(self, **components: Any) -> None:
        """Make these objects components of the pipeline, under these names."""
        from .checkpoints.index import library_of

        for name, component in components.items():
            component = self.as_component(name, component)
            self.config[name] = (None, None) if component is None else library_of(type(component))
            self.__dict__[name] = component

    def register_to_config(self, **options: Any) -> None:
        """Store options that belong to the checkpoint, such as `requires_safety_checker`."""
        self.config.update(options)
        self.__dict__.update(options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.components:
            self.register_modules(**{name: value})
        elif name in self.config:
            self.register_to_config(**{name: value})
        else:
            object.__setattr__(self, name, value)

    @property
    def components(self) -> dict[str, Any]:
        """The components by name, None included. `OtherPipeline(**pipe.components)` builds on the same objects."""
        names = (n for n, v in self.config.items() if isinstance(v, tuple) and len(v) == 2 and n not in self.declared().options)
        return {n: self.__dict__[n] for n in names if n in self.__dict__}

    def _modules(self) -> list[nn.Module]:
        return [c for _, c in sorted(self.components.items()) if isinstance(c, nn.Module)]

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes: the device of its networks."""
        places = [p.device for m in self._modules() if (p := next(m.parameters(), None)) is not None]
        return next((d for d in places if d.type not in ("cpu", "meta")), places[0] if places else torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first network by name."""
        return next((d for m in self._modules() if isinstance(d := getattr(m, "dtype", None), torch.dtype)), torch.float32)

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | None = None, silence_dtype_warnings: bool = False) -> Self:
        """Move every network to a device, a dtype or both: `to("cuda")`, `to(torch.float16)`, `to("cuda", torch.float16)`.
        In place; returns the pipeline. Pipelines made from this one share the weights, so they move too.
        """
        for value in args:
            if isinstance(value, torch.dtype) and dtype is None:
                dtype = value
            elif not isinstance(value, torch.dtype) and device is None and value is not None:
                device = value
            elif value is not None:
                raise InputError("A device or dtype is given twice.", where="to", got=args, expected="one device, one dtype")
        if dtype is not None and not dtype.is_floating_point:
            raise InputError("Networks compute in floating point.", where="dtype", got=dtype, expected="such as torch.float16")
        if device is not None and self.device_plan is not None and len(set(self.device_plan.values())) > 1:
            fix = "Call reset_device_map() first."
            raise InputError("The components were placed by device_map.", where="to", got=device, fix=fix)
        for module in self._modules():
            module.to(device=device, dtype=dtype)
        return self

    def __repr__(self) -> str:
        content = {k: list(v) if isinstance(v, tuple) else v for k, v in self.config.items()}
        content |= {"_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION}
        return f"{type(self).__name__} {json.dumps(content, indent=2, sort_keys=True, default=str)}\n"

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: PathLike, *, dtype: DType = None, torch_dtype: DType = None, variant: str | None = None,
        use_safetensors: bool | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Load a pipeline: on `DiffusionPipeline` of the class that the checkpoint names, on a concrete class of that class.
        Args:
            pretrained_model_name_or_path: a folder with `model_index.json`, or a hub id such as "org/name".
            dtype: the dtype of all networks, or one per component with "default" for the rest; "auto" is as stored; float32 where nothing is
                said. `torch_dtype` is its older name.
            variant: which weight files, such as "fp16"; components without such a file use their plain one. "auto" takes what suits `dtype`.
            use_safetensors: True refuses `.bin` files, False reads them; None reads them where there is nothing else.
            kwargs: components to use instead of the checkpoint's (an object, or None to go without an optional one); options of the pipeline;
                `device_map` ("balanced", "auto", a device, or one for each component) with `max_memory`, see `device_plan`;
                `trust_remote_code=True` to run Python files of the checkpoint or of `custom_pipeline` (a .py file, or a folder or hub id that
                has pipeline.py; `custom_revision`); `follow_links=False` to refuse files that are links out of the folder;
                `disable_mmap=True` to read weights instead of mapping them; `strict=False` to allow missing tensors;
                `check_for_updates=True` to be told of a newer commit; `revision`, `cache_dir`, `token`, `local_files_only`,
                `force_download`, `proxies` for the hub.
        Raises:
            CheckpointError: the checkpoint cannot be used; names the component and the file.
        """
        from .checkpoints.pipelines import load_pipeline

        dtype = torch_dtype if dtype is None else dtype
        return load_pipeline(cls, pretrained_model_name_or_path, kwargs, dtype=dtype, variant=variant, use_safetensors=use_safetensors)

    def save_pretrained(
        self, save_directory: PathLike, *, variant: str | None = None, max_shard_size: int | str = "10GB", safe_serialization: bool = True,
        push_to_hub: bool = False, **hub: Any,
    ) -> None:  # fmt: skip
        """Write every component and `model_index.json` into a folder, whole or not at all; other variants that it holds stay.
        `variant` goes into the weight files' names, as in `diffusion_pytorch_model.fp16.safetensors`; weights beyond `max_shard_size` ("10GB" or
        bytes) are split over several files; `safe_serialization=False` writes pickles (`.bin`). `push_to_hub` uploads the folder then, to
        `repo_id` (the folder's name if not given), with the options of `push_to_hub`.
        """
        from .checkpoints.pipelines import save_pipeline

        options = {"variant": variant, "max_shard_size": max_shard_size, "safe_serialization": safe_serialization}
        save_pipeline(self, save_directory, push_to_hub=push_to_hub, hub=hub, **options)

    @classmethod
    def download(cls, pretrained_model_name_or_path: str, *, torch_dtype: DType = None, **kwargs: Any) -> str:
        """Fetch what `from_pretrained` with these options would read, and return the local folder."""
        from .checkpoints.hub import HUB_OPTIONS, fetch_pipeline

        choice = ("variant", "use_safetensors", "trust_remote_code", "custom_pipeline", "dtype", *HUB_OPTIONS)
        options = {"dtype": torch_dtype, **{n: v for n, v in kwargs.items() if n in choice}}
        return str(fetch_pipeline(pretrained_model_name_or_path, passed=kwargs.keys() - set(choice), **options)[0])

    @staticmethod
    def inspect(path: PathLike, **options: Any) -> Inspection:
        """What a checkpoint is made of and what it needs, from configurations and headers alone: see `inspect_checkpoint`."""
        from .checkpoints.inspection import inspect_checkpoint

        return inspect_checkpoint(path, **options)

    @staticmethod
    def available_variants(path: PathLike, **hub: Any) -> dict[str, list[str]]:
        """The variants that a checkpoint comes in, each with its components: `{"fp16": ["unet", "vae"]}`."""
        from .checkpoints.pipelines import variants_of

        return variants_of(path, **hub)

    @classmethod
    def from_single_file(cls, path: PathLike, *, dtype: DType = None, torch_dtype: DType = None, **kwargs: Any) -> Any:
        """Load a pipeline from one file in the original layout of Stable Diffusion 1.x, 2.x or XL (`.safetensors` or `.ckpt`).

        The configuration is read off the tensors. `config` (a folder), `original_config` (YAML) and `prediction_type` override it; further
        arguments are components and options as for `from_pretrained`. Raises CheckpointError for a file of another kind.
        """
        from .checkpoints.single_file import load_single_file

        return load_single_file(cls, path, dtype=torch_dtype if dtype is None else dtype, **kwargs)

    def save_single_file(self, path: PathLike, *, dtype: torch.dtype | None = None) -> None:
        """Write the weights as one file in the original layout, whole or not at all."""
        from .checkpoints.single_file import save_single_file

        save_single_file(self, path, dtype=dtype)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save into a repository of the hub, and return the commit's address.
        `options` are those of `save_pretrained`, and `private`, `token`, `commit_message`, `revision` and `create_pr`.
        """
        from .checkpoints.hub import push_folder

        hub = {name: options.pop(name) for name in ("private", "token", "commit_message", "revision", "create_pr") if name in options}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **options)
            return push_folder(folder, repo_id, **hub)

    @classmethod
    def from_pipe(
        cls, pipeline: DiffusionPipeline, *, dtype: torch.dtype | None = None, torch_dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Self:
        """A pipeline of this class over the weights of another one, with a state of its own.
        Nothing is copied or recast: parameters are the same objects. Layers that are replaced, hooks, schedulers and attention functions of
        the new pipeline leave the source as it is, and the reverse.
        Args:
            pipeline: the source.
            dtype: gives the new pipeline private copies of the weights in that dtype; the source keeps its own.
            kwargs: components and options that replace the source's.
        Raises:
            InputError: a component that this class needs is missing or of the wrong class.
        """
        from .runtime.fork import cast_copy, fork

        if cls is DiffusionPipeline:
            return type(pipeline).from_pipe(pipeline, dtype=dtype, torch_dtype=torch_dtype, **kwargs)  # type: ignore[return-value]
        dtype = torch_dtype if dtype is None else dtype
        components, optional, defaults, annotations = cls.declared()
        values = {n: v for n, v in kwargs.items() if n in components}
        memo: dict[int, nn.Module] = {}
        for name, component in pipeline.components.items():
            if name not in components or name in values:
                continue
            if component is not None and not _fits(component, annotations.get(name, "")):
                logger.warning(f"{name}: a {type(component).__name__} does not fit {cls.__name__}; pass one that does.")
            elif isinstance(component, nn.Module):
                values[name] = fork(component, memo) if dtype is None else cast_copy(component, dtype)
            else:
                values[name] = copy.copy(component) if isinstance(component, Configurable) else component
        if missing := [n for n in components if values.get(n) is None and n not in optional]:
            where, fix = f"{cls.__name__}.from_pipe({type(pipeline).__name__})", "Pass them as keyword arguments."
            got, expected = ", ".join(sorted(values)), ", ".join(missing)
            raise InputError("The source lacks components that this pipeline needs.", where=where, got=got, expected=expected, fix=fix)
        known = {**vars(pipeline), **{n.lstrip("_"): v for n, v in pipeline.config.items()}, **kwargs}
        cls._check_names(kwargs)
        new = cls(**{n: values.get(n) for n in components}, **{n: known.get(n, default) for n, default in defaults.items()})
        # options that only the source's class knows: a later from_pipe back finds them again
        spare = {n.lstrip("_"): v for n, v in pipeline.config.items() if not isinstance(v, tuple) or len(v) != 2}
        new.config.update({"_" + n: v for n, v in spare.items() if n not in new.config})
        new.inherit(pipeline)
        if pipeline.device_plan is not None:
            new._place(pipeline.device_plan)
        return new

    def inherit(self, source: DiffusionPipeline) -> None:
        """Take over what `source` has beside components and options; later changes of one leave the other as it is. `from_pipe` calls this."""
        self.__dict__["_progress"] = dict(source._progress)

    def _place(self, plan: DevicePlan) -> None:
        """Remember where components are; those away from the pipeline's device are called across."""
        from .runtime.align import align

        self.__dict__["device_plan"], home = plan, self.device
        for name, module in self.components.items():
            if isinstance(module, nn.Module) and name in plan and plan[name] not in (home, torch.device("meta")):
                align(module, home)

    @property
    def hf_device_map(self) -> dict[str, str] | None:
        """Component -> device, None without `device_map`."""
        return None if self.device_plan is None else {name: str(device) for name, device in self.device_plan.items()}

    def reset_device_map(self) -> None:
        """Move every component to the CPU and forget where `device_map` had put it."""
        self.__dict__["device_plan"] = None
        self.to("cpu")

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of tqdm for this pipeline's bars; `disable=True` silences them."""
        self.__dict__["_progress"] = dict(options)

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A tqdm bar over `iterable`, or one of `total` steps."""
        from tqdm.auto import tqdm

        if iterable is None and total is None:
            raise InputError("A progress bar needs something to count.", where="progress_bar", expected="iterable or total")
        return tqdm(iterable, total=total, **self._progress)

    @property
    def interrupt(self) -> bool:
        """True while a run has been asked to stop. Assign True, from any thread, to stop all runs after their present step."""
        return any(run.stop for run in self._runs)

    @interrupt.setter
    def interrupt(self, stop: bool) -> None:
        for run in list(self._runs):
            run.stop = bool(stop)

    _interrupt = interrupt

    @contextlib.contextmanager
    def _running(self, run: Run) -> Iterator[Run]:
        self._runs.add(run)
        try:
            yield run
        finally:
            self._runs.discard(run)


def _fits(component: Any, annotation: str) -> bool:
    """Whether an annotation such as "A | B | None" admits a network. Schedulers and objects of other libraries always fit."""
    if not isinstance(component, Configurable) or not isinstance(component, nn.Module) or not annotation:
        return True
    allowed = {part.strip().rsplit(".", 1)[-1] for part in annotation.split("|")}
    return any(base.__name__ in allowed for base in type(component).__mro__)
