"""model_index.json, and the classes that it names, which come from fixed tables only; how transformers is kept to itself."""

from __future__ import annotations
import atexit
import contextlib
import gc
import importlib
import re
import sys
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from .._public import NAMES
from ..config import Configurable
from ..errors import CheckpointError, MissingDependencyError
from .files import read_json
from .remote_code import PREFIX

__all__ = [
    "INDEX_NAME",
    "ModelIndex",
    "building",
    "check_kind",
    "component_class",
    "further_folders",
    "is_transformers",
    "library_of",
    "quiet_transformers",
    "without_collector",
]

INDEX_NAME = "model_index.json"
MOST = 256  # components
_OWN = ("diffusers", "darkroom")
# classes that the layout files under the name of a pipeline's module: class -> (that name, darkroom's module)
_FILED = {
    "LDMBertModel": ("latent_diffusion", "models.ldm_bert"), "StableDiffusionSafetyChecker": ("stable_diffusion", "models.safety_checker"),
}  # fmt: skip
SEVERAL = {  # components of several networks, in folders beside each other -> the class of one
    "MultiAdapter": "T2IAdapter", "MultiControlNetModel": "ControlNetModel", "MultiControlNetUnionModel": "ControlNetUnionModel",
}  # fmt: skip
_BASES = ("PreTrainedModel", "PreTrainedTokenizerBase", "FeatureExtractionMixin", "ProcessorMixin", "BaseImageProcessor")
_RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}  # what transformers renamed
# transformers swaps the default dtype and torch.nn.init of the whole process while it builds: networks are built one at a time
building = threading.RLock()
# the last collection would look through every object of torch and transformers once more, for a second, to no end
atexit.register(gc.freeze)


def further_folders(first: str, there: Collection[str]) -> list[str]:
    """Those of the folders that continue the name of the first one: `first_1`, `first_2`, ... Older programs call the third `first_1_2`."""
    found, last = list[str](), first
    while True:
        plain, last = f"{first}_{len(found) + 1}", f"{last}_{len(found) + 1}"
        name = next((name for name in (plain, last) if name in there), None)
        if name is None:
            return found
        found.append(name)


@dataclass
class ModelIndex:
    """The contents of model_index.json."""

    class_name: Any  # as the file has it, which may be no name
    components: dict[str, tuple[str, str] | None] = field(default_factory=dict)  # (library, class); None where the checkpoint goes without
    options: dict[str, Any] = field(default_factory=dict)  # the other values whose names do not begin with an underscore
    ignored: tuple[str, ...] = ()  # files that are not to be fetched
    further: dict[str, str] = field(default_factory=dict)  # folder of a further network of a component of several -> that component

    def with_further(self, folders: Collection[str]) -> ModelIndex:
        """This index with the folders of further networks as components: `controlnet_1`, ... beside `controlnet` of a MultiControlNetModel."""
        components, further = dict(self.components), dict(self.further)
        for owner, entry in self.components.items():
            if entry is not None and entry[1] in SEVERAL:
                for folder in further_folders(owner, folders):
                    if folder not in components:
                        components[folder], further[folder] = (entry[0], SEVERAL[entry[1]]), owner
        return replace(self, components=components, further=further)

    @classmethod
    def parse(cls, content: dict[str, Any], where: object = INDEX_NAME) -> ModelIndex:
        """Raises CheckpointError for a component name that is no plain name, and for an entry that names no class."""
        index, ignored = cls(content.get("_class_name")), content.get("_ignore_files")
        index.ignored = tuple(name for name in ignored if isinstance(name, str)) if isinstance(ignored, list) else ()
        for key, value in content.items():
            if key.startswith("_") and not key.startswith("__"):
                continue
            if isinstance(value, list) and len(value) == 2 and all(v is None or isinstance(v, str) for v in value):
                if not re.fullmatch(r"[A-Za-z]\w{0,99}", key, re.ASCII):
                    raise CheckpointError("A component name that is not allowed.", where=where, got=repr(key)[:100])
                if value[0] is not None and value[1] is None:
                    raise CheckpointError("A component without a class.", where=f"{where}, {key}", got=value, expected="[library, class]")
                index.components[key] = None if value[0] is None else (value[0], value[1])
            else:
                index.options[key] = value
        if len(index.components) > MOST:
            raise CheckpointError("A pipeline of too many components.", where=where, got=len(index.components), expected=f"at most {MOST}")
        return index

    @classmethod
    def read(cls, folder: Path) -> ModelIndex:
        """The index of the pipeline in a folder. Raises CheckpointError if there is none, or one that cannot be used."""
        path = folder / INDEX_NAME
        if not path.exists():
            fix = "A single network is loaded with AutoModel.from_pretrained or its own class."
            raise CheckpointError("Not a pipeline: the folder has no model_index.json.", where=folder, fix=fix)
        return cls.parse(read_json(path), path)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """No garbage collection until the end: what is imported and loaded stays, and looking through it takes a fifth of the time of an import."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold `building`; until the end transformers logs errors only and shows no progress bars."""
    from transformers.utils import logging

    with building:
        before = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging._tqdm_active = False  # disable_progress_bar() would also switch the hub's bars, which are the user's
        try:
            yield
        finally:
            logging.set_verbosity(before[0])
            logging._tqdm_active = before[1]


def is_transformers(cls: object) -> bool:
    """Whether a class is a model, tokenizer or processor in the sense of transformers."""
    if not isinstance(cls, type) or not any(base.__module__.startswith("transformers.") for base in cls.__mro__):
        return False
    return issubclass(cls, tuple(getattr(importlib.import_module("transformers"), base) for base in _BASES))


def component_class(name: str, library: str, class_name: str) -> type:
    """The class of a component, or of a whole pipeline, as model_index.json names it. One of your own is found if its module has been imported
    before: nothing is imported because a file asks for it. Raises CheckpointError for a pair that no table knows, MissingDependencyError where
    transformers lacks a package for the class.
    """
    class_name = class_name.removeprefix("FlashPack")
    filed, module = _FILED.get(class_name, (None, NAMES.get(class_name)))
    own, found = library in (*_OWN, filed), None
    if library == "transformers":
        with quiet_transformers():
            found = getattr(importlib.import_module("transformers"), _RENAMED.get(class_name, class_name), None)
        if type(found).__name__ == "DummyObject":
            needs = ", ".join(getattr(found, "_backends", ())) or "another package"
            raise MissingDependencyError(f"{class_name} needs {needs}.", where=name, fix=f"pip install {needs}")
    elif own and module:
        found = getattr(importlib.import_module("darkroom." + module), class_name)
    elif not own:
        found = getattr(sys.modules.get(library), "__dict__", {}).get(class_name)  # not getattr: a lazy module would import
    if not isinstance(found, type) or not (own or issubclass(found, Configurable) or is_transformers(found)):
        got, fix = f"[{library[:80]}, {class_name[:80]}]", f"Load it yourself and pass it as {name}=, or {name}=None to go without."
        expected = "a network or scheduler of darkroom, or a model, tokenizer or processor of transformers"
        raise CheckpointError("A component of a class that darkroom does not know.", where=name, got=got, expected=expected, fix=fix)
    return found


def _kind(cls: type) -> object:
    """What a component is for: a scheduler, a network that decodes, another network, or one of the kinds of transformers."""
    if issubclass(cls, Configurable):
        return "network that decodes" if hasattr(cls, "decode") else "network" if hasattr(cls, "parameters") else "scheduler"
    import transformers

    return next((base for base in _BASES if issubclass(cls, getattr(transformers, base))), None)


def check_kind(name: str, cls: type, annotation: str) -> None:
    """Raise CheckpointError for a component that cannot do what the pipeline needs it for, such as a tokenizer in the place of a network.

    `annotation` is the pipeline's, such as "A | B | None"; what it says nothing of passes. Another class of the same kind passes too.
    """
    wanted: set[object] = set()
    for part in (part.strip().rpartition(".")[2] for part in annotation.split("|")):
        if part in NAMES or part == "Scheduler":
            home = "schedulers.base" if part == "Scheduler" else NAMES.get(part, "")
            wanted.add(_kind(getattr(importlib.import_module(f"darkroom.{home}"), part)))
        elif part in _FILED:
            wanted.add(_kind(getattr(importlib.import_module(f"darkroom.{_FILED[part][1]}"), part)))
        elif part != "None":
            import transformers

            found = getattr(transformers, part, None)
            if not isinstance(found, type):
                return
            wanted.add(_kind(found))
    if wanted and _kind(cls) not in (wanted | {None}):
        raise CheckpointError("A component of another kind than the pipeline needs.", where=name, got=cls.__name__, expected=annotation)


def library_of(cls: type) -> tuple[str, str]:
    """How model_index.json names a class: (library, class)."""
    top, name = cls.__module__.partition(".")[0], cls.__name__
    if top in _OWN:
        return _FILED.get(name, ("diffusers", ""))[0], name
    if top.startswith(PREFIX):  # code that came with a checkpoint
        return cls.__module__.rpartition(".")[2], name
    if top == "transformers":
        return top, name.removesuffix("Pil")  # the backend of an image processor is the reader's choice
    return cls.__module__, name
