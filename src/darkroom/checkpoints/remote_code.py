"""Code that comes with a checkpoint: the one place that runs any, and only for a caller who passed trust_remote_code=True."""

from __future__ import annotations
import builtins
import hashlib
import importlib
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import decode_source, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from ..errors import CheckpointError, MissingDependencyError
from .files import PathLike, is_safe, open_regular

__all__ = ["PREFIX", "custom_file", "forbidden", "load_custom_class"]

PREFIX = "darkroom_remote_code_"  # of the packages in sys.modules
LIMIT = 4 * 2**20  # bytes of one file of code
Sources = Mapping[str, tuple[Path, bytes]]  # module -> its file and what is in it
_SWITCHES = ("DARKROOM_DISABLE_REMOTE_CODE", "DIFFUSERS_DISABLE_REMOTE_CODE")
_packages: dict[str, Sources] = {}
_lock = threading.RLock()


def forbidden() -> str | None:
    """The environment variable that forbids all code of checkpoints, None if none does. Read at every call."""
    return next((name for name in _SWITCHES if os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")), None)


def custom_file(custom_pipeline: PathLike, folder: Path | None = None) -> Path | None:
    """The file that `custom_pipeline` means: `<name>.py` in the checkpoint's folder, a path that ends in .py, or pipeline.py of a local folder.

    None for anything else: the id of a hub repository, whose pipeline.py is the caller's to fetch. No file is opened.
    """
    name, path = os.fspath(custom_pipeline), Path(custom_pipeline)
    if folder is not None and re.fullmatch(r"[\w-]+", name) and (folder / f"{name}.py").is_file():
        return folder / f"{name}.py"
    return path if path.suffix == ".py" else path / "pipeline.py" if path.is_dir() else None


def load_custom_class(
    path: Path, *, class_name: str | None = None, base: type | tuple[type, ...] | None = None, trust_remote_code: bool
) -> type:
    """Run a Python file and return the class that it defines.

    The file runs as a module whose name is made of its place and of the contents of the .py files beside it: what ran before does not run again,
    what has changed does. `from .name import ...` finds those files, as they were when this was called; the folder is not on sys.path, and nothing
    is written into it. What the code imports from diffusers is darkroom's wherever darkroom has a public name like it: a class derived from
    `diffusers.DiffusionPipeline` becomes a darkroom pipeline, and diffusers need not be installed.

    Args:
        path: the file, with its suffix .py.
        class_name: the class to take. Without it, the only one of the right kind that the file itself defines.
        base: what the class must be derived from. None: a pipeline, network or scheduler of darkroom, or a class of transformers.
        trust_remote_code: True, and nothing else, runs the code.

    Raises CheckpointError if the code is not trusted, is forbidden by DARKROOM_DISABLE_REMOTE_CODE=1 or DIFFUSERS_DISABLE_REMOTE_CODE=1, fails, or
    does not define the class; MissingDependencyError if it imports what is not installed. What went wrong in the code is the `__cause__`.
    """
    path = Path(os.path.abspath(path))  # not resolved: in the hub's cache the file is a link, and its neighbours are not where that leads
    asked = f"{class_name or 'a class'} in {path.name}"
    if switch := forbidden():
        fix = f"Unset {switch} to allow the code of checkpoints that you trust."
        raise CheckpointError(f"The environment variable {switch} forbids code of checkpoints.", where=path, got=asked, fix=fix)
    if trust_remote_code is not True:
        fix = "Read the file; if you trust it, pass trust_remote_code=True to this call."
        raise CheckpointError("The checkpoint brings code of its own, which is not run.", where=path, got=asked, fix=fix)
    sources = _read(path)
    seal = hashlib.sha256(os.fsencode(path))
    for name, (_, text) in sorted(sources.items()):
        seal.update(f":{name}:{len(text)}:".encode() + text)
    with _lock:
        module = _run(f"{PREFIX}{seal.hexdigest()[:24]}", path, sources)
    return _pick(module, path, class_name, base)


def _module_name(path: Path) -> str:
    return re.sub(r"\W", "_", path.stem)


def _read(path: Path) -> dict[str, tuple[Path, bytes]]:
    """The file, and those beside it, by the names of their modules."""
    if path.suffix != ".py":
        raise CheckpointError("Not a file of Python code.", where=path, expected="a path that ends in .py")
    sources: dict[str, tuple[Path, bytes]] = {}
    for file in (path, *sorted(path.parent.glob("*.py"))):
        if file == path or (file.stem.isidentifier() and is_safe(file.name) and file.is_file()):
            with open_regular(file) as stream:
                text = stream.read(LIMIT + 1)
            if len(text) > LIMIT:
                raise CheckpointError("A file of code that is too long.", where=file, expected=f"at most {LIMIT} bytes")
            sources.setdefault(_module_name(file), (file, text))
    return sources


def _run(package: str, path: Path, sources: Sources) -> ModuleType:
    name = f"{package}.{_module_name(path)}"
    if name in sys.modules:
        return sys.modules[name]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
    _packages[package] = sources
    try:
        return importlib.import_module(name)
    except BaseException as error:
        del _packages[package]
        for loaded in [other for other in sys.modules if other == package or other.startswith(package + ".")]:
            del sys.modules[loaded]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        files = {str(file) for file, _ in sources.values()}
        lines = [f"{frame.filename}, line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
        where = lines[-1] if lines else path
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(PREFIX):
            top = error.name.partition(".")[0]
            what, fix = (
                f"The code of the checkpoint needs {top}, which is not installed.",
                f"pip install {top}, if that is the name of its package",
            )
            raise MissingDependencyError(what, where=where, fix=fix) from error
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError("The code of the checkpoint failed.", where=where, got=got, fix="See the cause above.") from error


def _pick(module: ModuleType, path: Path, class_name: str | None, base: type | tuple[type, ...] | None) -> type:
    from ..config import Configurable
    from ..pipeline import DiffusionPipeline
    from .index import is_transformers

    bases = (DiffusionPipeline, Configurable) if base is None else base if isinstance(base, tuple) else (base,)
    fits = lambda cls: issubclass(cls, bases) or (base is None and is_transformers(cls))  # noqa: E731
    expected = f"derived from {' or '.join(cls.__name__ for cls in bases)}"
    found = {cls.__name__: cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__}
    got = ", ".join(sorted(found)) or "no class"
    if class_name is not None:
        named = vars(module).get(class_name)  # it may come from a file beside this one
        if not isinstance(named, type):
            raise CheckpointError("The code does not define the class.", where=path, got=got, expected=str(class_name)[:100])
        if not fits(named):
            raise CheckpointError(f"The class {class_name} is of another kind.", where=path, expected=expected)
        return named
    chosen = [cls for cls in found.values() if fits(cls)]
    if len(chosen) != 1:
        what = "The code defines several classes of the kind." if chosen else "The code defines no class of the kind."
        got = ", ".join(sorted(cls.__name__ for cls in chosen)) or got
        raise CheckpointError(what, where=path, got=got, expected=f"one class {expected}, or the name of one")
    return chosen[0]


class _Finder(MetaPathFinder):
    """Finds the files of `_packages`, also when the code imports them later."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if (sources := _packages.get(package)) is None or (name and name not in sources):
            return None
        if not name:
            return ModuleSpec(fullname, _Code(None, b""), is_package=True)
        file, text = sources[name]
        return spec_from_file_location(fullname, file, loader=_Code(file, text))


class _Code(Loader):
    """Runs the bytes that were read, and those only: no compiled file is read or written."""

    def __init__(self, file: Path | None, text: bytes):
        self.file, self.text = file, text

    def get_source(self, fullname: str) -> str:
        return decode_source(self.text)

    def exec_module(self, module: ModuleType) -> None:
        if self.file is not None:
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
            exec(compile(self.text, str(self.file), "exec", dont_inherit=True), module.__dict__)


class _Diffusers(ModuleType):
    """What the code sees as diffusers or one of its modules: darkroom's public names, else what is installed."""

    def __getattr__(self, name: str) -> Any:
        from .._public import NAMES

        if name in NAMES and name != "pipelines":  # a function here, a package there
            return getattr(importlib.import_module("darkroom"), name)
        if name.startswith("__"):
            raise AttributeError(name)
        builtins.__import__(self.__name__, fromlist=(name,))  # `name` may be a module of it
        return getattr(sys.modules[self.__name__], name)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` for the code of checkpoints."""
    if level == 0 and name.partition(".")[0] == "diffusers":
        return _Diffusers(name if fromlist else "diffusers")
    return builtins.__import__(name, globals, locals, fromlist or (), level)
