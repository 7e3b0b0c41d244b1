"""Networks and pipeline components out of their folders."""

from __future__ import annotations
import importlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from ..config import Configurable
from ..errors import CheckpointError, ConfigError, DarkroomError, InputError
from ..models.base import Model
from ..models.several import Several
from .files import PathLike, check_outward_links, is_safe, listing, read_json
from .hub import HUB_OPTIONS, check_source, locate
from .index import building, is_transformers, quiet_transformers, without_collector
from .locks import read_whole
from .plan import Plan, available_variants, component_files, plan, weight_paths
from .weights import Weights, load_weights

__all__ = [
    "DType",
    "check_dtype",
    "component_errors",
    "load_component",
    "load_model",
    "open_weights",
    "size_of",
    "skeleton",
    "stays_mapped",
]

DType = torch.dtype | str | None  # "auto": as stored
logger = logging.getLogger("darkroom")
_COUNT = re.compile(r"^num_|_(size|dim|layers|heads|embeddings)$")  # names of what there is at least one of
_MEANINGLESS = ("low_cpu_mem_usage", "mirror", "offload_state_dict", "resume_download")  # accepted from older programs
_FACTORIES = frozenset(getattr(torch, name) for name in "empty zeros ones full rand randn arange linspace eye tensor empty_strided".split())
_FILLERS = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_}) | {
    getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")
}


class _Skeleton(TorchFunctionMode):
    """Tensors are made on "meta" and get no values; more than `limit` of them are too many."""

    def __init__(self, limit: int, where: object):
        super().__init__()
        self.left, self.where = limit, where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLERS:
            return args[0] if args else kwargs["tensor"]
        if func in _FACTORIES:
            self.left -= 1
            if self.left < 0:
                what = "The configuration describes a network of far more tensors than the weight files hold."
                raise CheckpointError(what, where=self.where)
            if kwargs.get("device") is None:
                kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def skeleton(weights: Weights, name: str, where: object) -> Iterator[None]:
    """Build the network of these weights inside: on "meta", in no time, however large. Raises CheckpointError if it cannot be built."""
    try:
        with building, _Skeleton(8 * len(weights.entries) + 1000, where):
            yield
    except ConfigError as error:
        what, place = f"The configuration does not describe a {name}.", f"{where}, {error.where}"
        raise CheckpointError(what, where=place, got=error.got, expected=error.expected, fix=error.fix) from error
    except DarkroomError:
        raise
    except Exception as error:  # a value of the file that the class cannot use
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The configuration does not describe a {name}.", where=where, got=reason) from error


def open_weights(folder: Path, chosen: Plan) -> Weights:
    """The planned files, with their headers read. Raises CheckpointError if an index and the files that it names disagree."""
    weights = Weights(weight_paths(folder, chosen))
    if chosen.index is not None:
        said = read_json(folder / chosen.index)["weight_map"]
        lies = {name: path.name for name, path in weights.files.items()}
        if wrong := sorted(name for name in {*said, *lies} if said.get(name) != lies.get(name)):
            got, expected = f"{wrong[0][:100]} in {lies.get(wrong[0])}", f"in {said.get(wrong[0])}, by the index"
            what = f"{len(wrong)} tensors are not where the index says."
            raise CheckpointError(what, where=folder / chosen.index, got=got, expected=expected)
    return weights


def _chosen_weights(folder: Path, config_name: str = "config.json", **choice: Any) -> Weights:
    read_json(folder / config_name)  # if there is none, this is the first thing to say
    return open_weights(folder, plan(listing(folder), where=folder, **choice))


def check_dtype(dtype: object, where: str) -> None:
    """Raises InputError for what is neither None nor "auto" nor a floating-point dtype."""
    if dtype not in (None, "auto") and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        expected = 'such as torch.float16, or "auto" for what is stored'
        raise InputError("Networks are loaded in a floating-point dtype.", where=where, got=dtype, expected=expected)


@without_collector()
def load_model(cls: type[Model], path: PathLike, *, subfolder: str | None = None, **options: Any) -> Any:
    """A network of class `cls` from a folder or hub id, in eval mode; see `Model.from_pretrained` for the options.

    The tensors are compared with the configuration before any memory is taken for them. Raises CheckpointError if the folder, its configuration or
    its weights cannot be used, ConfigError for an option that is none of the hub's and none of the class, InputError for a dtype.
    """
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    choice: dict[str, Any] = {name: options.pop(name) for name in ("variant", "use_safetensors") if name in options}
    reading = {name: options.pop(name) for name in ("dtype", "device", "strict", "disable_mmap", "progress") if name in options}
    changes = {name: value for name, value in options.items() if name not in _MEANINGLESS}
    follow_links = changes.pop("follow_links", True)
    names = cls.Config.names()
    if unknown := sorted(changes.keys() - set(names)):
        raise ConfigError("No such option.", where=f"{cls.__name__}.from_pretrained", got=", ".join(unknown), expected=", ".join(names))
    check_dtype(reading.get("dtype"), "dtype")
    choose = lambda names, folder: component_files(names, where=folder, dtype=reading.get("dtype"), **choice)  # noqa: E731

    def load(_: Path) -> Model:
        folder = locate(path, files=[cls.config_name], choose=choose, subfolder=subfolder, **hub)
        if not follow_links:
            check_outward_links(folder)
        weights = _chosen_weights(folder, cls.config_name, dtype=reading.get("dtype"), **choice)
        return _own_network(cls, folder, weights, changes, **reading)

    held = check_source(path)
    return read_whole(held / subfolder if isinstance(subfolder, str) and is_safe(subfolder) else held, load)


def _own_network(
    cls: type[Model],
    folder: Path,
    weights: Weights,
    changes: Mapping[str, Any] = {},
    *,
    dtype: DType = None,
    device: torch.device | str = "cpu",
    strict: bool = True,
    disable_mmap: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Model:
    where = folder / cls.config_name
    config = {**read_json(where), **changes}
    if "_class_name" not in config and ("architectures" in config or "model_type" in config):
        raise CheckpointError("The folder holds a model of transformers.", where=where, expected=cls.__name__)
    with skeleton(weights, cls.__name__, where):
        model = cls.from_config(config)
    if foreign := sorted(name for name in model.config.extra if not name.startswith("_")):
        logger.warning("%s: options that %s does not know are kept: %s", where, cls.__name__, ", ".join(foreign)[:300])
    if torch.device(device).type != "meta":
        load_weights(
            model,
            weights,
            dtype=None if dtype == "auto" else dtype or torch.float32,  # type: ignore[arg-type]
            device=device,
            keep_in_float32=cls.keep_in_float32,
            rename=cls.rename_key,
            strict=strict,
            mmap=False if disable_mmap else None,
            progress=progress,
            where=folder,
        )
    return model.eval()


def _transformers_network(
    cls: Any,
    folder: Path,
    weights: Weights,
    *,
    dtype: DType = None,
    device: torch.device | str = "cpu",
    disable_mmap: bool = False,
    progress: Callable[[int], None] | None = None,
    **_: Any,
) -> Any:
    where = folder / "config.json"
    content = read_json(where)
    part = content.get(cls.config_class.base_config_key)
    if isinstance(part, dict) and content.get("model_type") != cls.config_class.model_type:
        content = part  # a checkpoint of a larger model, of which this is a part
    _check_numbers(content, where)
    with skeleton(weights, cls.__name__, where), quiet_transformers():
        config = cls.config_class.from_dict(content)
        network = cls(config)
    state, prefix = network.state_dict(keep_vars=True), f"{cls.base_model_prefix}."
    names: dict[str, str] = {}  # the network's, by the files', as far as names tell: transformers renames some
    for name, entry in weights.entries.items():
        target = next((n for n in (name, name.removeprefix(prefix), prefix + name) if n in state), None)
        if target is None:
            continue
        own, names[name] = state[target], target
        if entry.shape != tuple(own.shape) or entry.dtype.is_floating_point != own.is_floating_point():
            got, expected = f"{entry.shape}, {entry.dtype}", f"{tuple(own.shape)}, {'floats' if own.is_floating_point() else own.dtype}"
            raise CheckpointError("A tensor of another shape or kind.", where=f"{weights.files[name]}: {name}", got=got, expected=expected)
    held = sum(t.numel() for t in state.values())
    if held > 2 * (stored := sum(math.prod(e.shape) for e in weights.entries.values())) + 2**26:
        raise CheckpointError(
            "The configuration describes a far larger network than the weight files hold.", where=where, got=held, expected=stored
        )
    if torch.device(device).type == "meta":
        return network.eval()
    floats = [e.dtype for e in weights.entries.values() if e.dtype.is_floating_point]
    if dtype == "auto":  # transformers would take what the configuration says
        dtype = max(floats, key=floats.count, default=None)
    kind: torch.dtype = dtype or config.dtype or next(iter(floats), torch.float32)  # type: ignore[assignment]
    reading: dict[str, Any] = {"device": device, "mmap": False if disable_mmap else None, "progress": progress, "where": folder}
    if _complete(network, state, names) and (full := _kept_in_float32(network, kind)) is not None and _fill_buffers(network, kind):
        for sub in (config, *(getattr(config, key) for key in config.sub_configs)):
            if sub is not None:
                sub.dtype = kind
        weights.entries = {name: weights.entries[name] for name in names}
        load_weights(network, weights, dtype=kind, keep_in_float32=full, rename=names.__getitem__, **reading)
        return network.eval()
    with quiet_transformers():  # given the tensors, mapped by our own readers, it opens no file
        tensors = weights.mapped(weights.entries)
        model, report = cls.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True, dtype=kind)
    if missing := sorted(map(str, report["missing_keys"])):
        raise CheckpointError(f"{len(missing)} tensors are not in the weight files.", where=where, got=", ".join(missing[:5]))
    if progress is not None:
        progress(weights.nbytes)
    return model.eval().to(device)


def _complete(network: Any, state: Mapping[str, Tensor], names: Mapping[str, str]) -> bool:
    """Whether every tensor of a transformers network is in the files once, as it is: else transformers knows how to convert what is there."""
    given = {id(state[target]) for target in names.values()}
    plain = getattr(network.config, "quantization_config", None) is None
    return plain and len(given) == len(names) and all(id(tensor) in given for tensor in state.values())


def _kept_in_float32(network: Any, dtype: torch.dtype) -> set[str] | None:
    """The parts of names that transformers keeps in float32 at a dtype; None if it names them by patterns."""
    kept = {*(network._keep_in_fp32_modules_strict or ())} if dtype in (torch.float16, torch.bfloat16) else set()
    kept |= {*(network._keep_in_fp32_modules or ())} if dtype == torch.float16 else set()
    return kept if all(name.isidentifier() for name in kept) else None


def _fill_buffers(network: Any, dtype: torch.dtype) -> bool:
    """Give a transformers network on "meta" those buffers that are in no file, by its own initialisation. False if that does not make them."""
    found = [
        (m, leaf, b) for m in network.modules() for leaf, b in m._buffers.items() if leaf in m._non_persistent_buffers_set and b is not None
    ]
    if any(b.dtype == torch.bool or (b.is_floating_point() and dtype != torch.float32) for _, _, b in found):
        return False  # floats may be made in the default dtype
    blanks = {}
    for module, leaf, buffer in found:
        blank = math.nan if buffer.is_floating_point() else torch.iinfo(buffer.dtype).min
        blanks[module, leaf] = torch.full_like(buffer, blank, device="cpu")
        module._buffers[leaf] = blanks[module, leaf].clone()
    with building, torch.no_grad():
        for module in {module for module, _, _ in found}:
            network._init_weights(module)
    return all(
        not module._buffers[leaf].equal(blank) and not module._buffers[leaf].isnan().any() for (module, leaf), blank in blanks.items()
    )


def _check_numbers(content: Mapping[str, Any], where: Path) -> None:
    """Raise CheckpointError for a number in a configuration of transformers that none of its networks can have."""
    for name, value in content.items():
        if isinstance(value, dict):
            _check_numbers(value, where)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if (number and not math.isfinite(value)) or (isinstance(value, int) and _COUNT.search(name) and not 0 < value <= 10**9):
            raise CheckpointError("A configuration with a number that has no meaning.", where=where, got=f"{name}: {value}")


def _check_texts(cls: Any, folder: Path, names: list[str]) -> None:
    """Files that transformers reads by itself: JSON within bounds, and a vocabulary, without which it makes an empty tokenizer without a word."""
    for name in names:
        content = read_json(folder / name) if name.endswith(".json") else {}
        length = content.get("model_max_length") if name == "tokenizer_config.json" else None
        if length is not None and not (isinstance(length, (int, float)) and length > 0):
            raise CheckpointError(
                "A tokenizer's longest input is no number of tokens.", where=folder / name, got=f"model_max_length: {length!r}"
            )
    needed = dict(getattr(cls, "vocab_files_names", None) or {})
    tokenizer = needed.pop("tokenizer_file", "tokenizer.json")
    missing = sorted(set(needed.values()) - set(names))
    if missing and tokenizer not in names:
        raise CheckpointError("The vocabulary of a tokenizer is missing.", got=", ".join(names) or "no files", expected=", ".join(missing))


@contextmanager
def component_errors(name: str, cls: type, folder: Path) -> Iterator[None]:
    """Inside, every error becomes a CheckpointError that names the component and the file."""
    try:
        yield
    except DarkroomError as error:
        what, where = f"The component {name} cannot be used: {error.what}", error.where or folder
        where = where if isinstance(error, CheckpointError) else f"{where}, in {folder}"
        raise CheckpointError(what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise CheckpointError(f"The component {name} cannot be loaded as {cls.__name__}.", where=folder, got=reason) from error


def size_of(weights: Weights, dtype: DType) -> int:
    """Bytes of a network's tensors once they are loaded in a dtype."""
    cast = dtype if isinstance(dtype, torch.dtype) else torch.float32 if dtype is None else None
    return sum(math.prod(e.shape) * (cast if cast and e.dtype.is_floating_point else e.dtype).itemsize for e in weights.entries.values())


def stays_mapped(weights: Weights, dtype: DType, device: torch.device) -> bool:
    """Whether nothing of a network has to be read or cast as long as mapping is allowed."""
    kinds = {e.dtype for e in weights.entries.values() if e.dtype.is_floating_point}
    cast = torch.float32 if dtype is None else dtype
    return device.type in ("cpu", "meta") and (cast == "auto" or kinds <= {cast})


def load_component(
    name: str, cls: Any, folder: Path, weights: Weights | None = None, *, variant: str | None = None, use_safetensors: bool | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    """One component out of its folder: a network (in eval mode), scheduler, tokenizer or processor.

    Without a `dtype` darkroom's networks are float32, those of transformers what their configuration says. `weights` are those of a network, else
    chosen here: the plain ones where there are none of the variant. `options` are `dtype`, `device`, `disable_mmap`, `strict` and `progress`.
    Raises CheckpointError, which names the component and the file.
    """
    with component_errors(name, cls, folder):
        if issubclass(cls, Several):  # several networks of one class, in folders beside each other
            options |= {"variant": variant, "use_safetensors": use_safetensors}
            return cls([load_component(name, cls.part, each, **options) for each in cls.folders(folder)])
        own, names = issubclass(cls, Model), listing(folder)
        if own or issubclass(cls, importlib.import_module("transformers").PreTrainedModel):
            if weights is None:
                choice: dict[str, Any] = {
                    "variant": variant if variant in available_variants(names) else None,
                    "use_safetensors": use_safetensors,
                }
                weights = _chosen_weights(folder, stem=None if own else "model", dtype=options.get("dtype"), **choice)
            return (_own_network if own else _transformers_network)(cls, folder, weights, **options)
        if issubclass(cls, Configurable):
            return cls.from_pretrained(folder)  # type: ignore[attr-defined]
        if is_transformers(cls):
            _check_texts(cls, folder, names)
            with quiet_transformers():
                return cls.from_pretrained(folder, local_files_only=True)
        if hasattr(cls, "from_pretrained"):  # code that the caller has allowed
            return cls.from_pretrained(folder)
        raise CheckpointError("A class that is no component.", where=folder, got=cls.__name__)
