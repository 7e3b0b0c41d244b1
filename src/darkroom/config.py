"""Configurations: frozen dataclasses whose fields are the keys of the JSON file beside the weights."""

from __future__ import annotations
import dataclasses
import functools
import inspect
import json
import math
import numbers
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints
import numpy as np
from .errors import ConfigError

__all__ = ["FORMAT_VERSION", "Config", "Configurable", "check_network", "fits", "hints_of"]

MOST, LARGEST = 1000, 10**8  # entries of an option, its largest whole number
_KINDS: dict[Any, Any] = {bool: (bool, np.bool_, types.NoneType), int: numbers.Integral, float: numbers.Real}
FORMAT_VERSION = "0.42.1"  # the version of the checkpoint layout that is written: `_diffusers_version`
_BOOKKEEPING = ("_class_name", "_diffusers_version", "_use_default_values")


def freeze(value: Any) -> Any:
    """JSON lists become tuples at every depth, so that a configuration cannot change under its network."""
    return tuple(freeze(v) for v in value) if isinstance(value, (list, tuple)) else value


class Config(Mapping[str, Any]):
    """A frozen mapping with attribute access. Keys that the class does not know are kept in `extra` and written back.
    Subclass with `@dataclass(frozen=True, eq=False, repr=False)`; every field has a default.
    """

    extra: ClassVar[Mapping[str, Any]]  # set on each instance: the keys that belong to no field
    defaulted: ClassVar[frozenset[str]]  # set on each instance: the fields that nobody gave

    def __post_init__(self) -> None:
        self.__dict__.update({name: freeze(getattr(self, name)) for name in self.names()}, extra={}, defaulted=frozenset())

    @classmethod
    @functools.cache
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def parse(cls, values: Mapping[str, Any], *args: Any) -> Self:
        """A configuration from a JSON file's contents or another class's; what that class had filled in by itself gets this one's default."""
        silent = set(values.get("_use_default_values", ())) | set(getattr(values, "defaulted", ()))
        given = {k: v for k, v in values.items() if k not in _BOOKKEEPING and k not in silent}
        mine = {k: given.pop(k) for k in cls.names() if k in given}
        try:
            config = cls(*args, **mine)
        except TypeError as error:
            raise ConfigError("These options do not fit.", where=cls.__name__, got=str(error)) from None
        config.__dict__.update(extra={k: freeze(v) for k, v in given.items()}, defaulted=frozenset(cls.names()[len(args) :]) - set(mine))
        return config

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; what was kept aside stays."""
        new = type(self).parse({**self, **changes})
        new.__dict__["defaulted"] = self.defaulted - set(changes)
        return new

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name) if name in self.names() else self.extra[name]

    def __getattr__(self, name: str) -> Any:  # only called for what is not a field
        if not name.startswith("__") and name in self.__dict__.get("extra", ()):
            return self.__dict__["extra"][name]
        raise AttributeError(f"{type(self).__name__} has no option {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter((*self.names(), *self.extra))

    def __len__(self) -> int:
        return len(self.names()) + len(self.extra)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == {k: freeze(v) for k, v in other.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.items())})"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration is one of its annotation's; for a switch, None is off."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in choices)
    if origin is Literal:
        return isinstance(value, (str, numbers.Integral, types.NoneType)) and value in choices
    if origin is tuple and isinstance(value, tuple) and choices:
        return all(fits(v, choices[0]) for v in value) if choices[-1] is ... else True
    return isinstance(value, _KINDS.get(hint, origin or hint)) and (hint is bool or not isinstance(value, bool))


@functools.cache
def hints_of(kind: type[Config]) -> dict[str, Any]:
    return get_type_hints(kind)


def check_network(config: Config, owner: str) -> None:
    """Raise ConfigError for a value that no network has: of another type, no finite number, negative where the default is positive, or absurd."""
    for name, hint in hints_of(type(config)).items():
        if name not in config.names():
            continue
        value, default = config[name], getattr(type(config), name, None)
        parts: list[Any] = [value]
        flat: list[Any] = []
        while parts and len(flat) <= MOST:
            part = parts.pop()
            parts += part if isinstance(part, tuple) and len(part) <= MOST else ()
            flat.append(part)
        integers = [v for v in flat if isinstance(v, int) and not isinstance(v, bool)]
        absent = value is None and hint not in (bool, float)  # checkpoints write null for what they do not use
        wrong = not (absent or fits(value, hint)) or len(flat) > MOST or any(isinstance(v, tuple) and len(v) > MOST for v in flat)
        wrong |= any(isinstance(v, float) and not math.isfinite(v) for v in flat) or any(not 0 <= v <= LARGEST for v in integers)
        positive = isinstance(default, float) and default > 0 and isinstance(value, (int, float))
        if wrong or (positive and value <= 0):
            expected = "a number above 0" if positive else str(hint).replace("<class '", "").replace("'>", "")
            raise ConfigError("An option with a value that has no meaning.", where=f"{owner}, option {name}", got=value, expected=expected)


class Configurable:
    """What models and schedulers share: `self.config`, built from keyword options or from a JSON file.
    A subclass names its dataclass in `Config` and its file in `config_name`; the signature of the constructor is read off the dataclass.
    """

    Config: ClassVar[type[Config]]
    config_name: ClassVar[str] = "config.json"
    config: Any
    _assemble: Callable[[Any], None]  # of the base classes: builds from a configuration

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__:
            cls.__signature__ = inspect.signature(cls.Config)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **options: Any):
        self._assemble(self._configure(*args, **options))

    @classmethod
    def _configure(cls, *args: Any, **options: Any) -> Any:
        if unknown := sorted(set(options) - set(cls.Config.names())):
            got, expected, fix = ", ".join(unknown), ", ".join(cls.Config.names()), "To keep keys of a foreign file, use from_config."
            raise ConfigError("An option that this class does not have.", where=cls.__name__, got=got, expected=expected, fix=fix)
        return cls.Config.parse(options, *args)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, *, return_unused_kwargs: bool = False, **changes: Any):
        """Build from a configuration: a dict, or the `.config` of this or another class. `changes` override single keys.
        Keys of other classes are kept, so that switching back restores them.
        """
        silent = {*getattr(config, "defaulted", ()), *(config or {}).get("_use_default_values", ())} - set(changes)
        unused = {k: changes.pop(k) for k in [*changes] if k not in cls.Config.names()}
        self = cls.__new__(cls)
        self._assemble(cls.Config.parse({**(config or {}), **changes, "_use_default_values": tuple(silent)}))
        return (self, unused) if return_unused_kwargs else self

    def to_json(self) -> str:
        """The text of the configuration file, as the layout has it: sorted keys, two spaces."""
        content = {**self.config, "_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION}
        return json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
