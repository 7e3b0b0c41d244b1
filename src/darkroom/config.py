"""Configurations: frozen dataclasses whose fields are the keys of the JSON file beside the weights."""

from __future__ import annotations
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self
from .errors import ConfigError

__all__ = ["FORMAT_VERSION", "Config", "Configurable"]

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
