"""Configurations: frozen dataclasses whose fields are the keys of the JSON file beside the weights."""

from __future__ import annotations
import dataclasses
import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self
from .errors import ConfigError

__all__ = ["FORMAT_VERSION", "Config", "Configurable"]

FORMAT_VERSION = "0.42.1"  # the version of the checkpoint layout that is written: `_diffusers_version`
_BOOKKEEPING = ("_class_name", "_diffusers_version", "_use_default_values")
logger = logging.getLogger("darkroom")


def freeze(value: Any) -> Any:
    """JSON lists become tuples at every depth, so that a configuration cannot change under its network."""
    if isinstance(value, (list, tuple)):
        return tuple(freeze(v) for v in value)
    return value


class Config(Mapping[str, Any]):
    """A frozen mapping with attribute access. Keys that the class does not know are kept in `extra` and written back.

    Subclass with `@dataclass(frozen=True, eq=False, repr=False)`; every field has a default.
    """

    extra: ClassVar[Mapping[str, Any]]  # set on each instance: the keys that belong to no field
    defaulted: ClassVar[frozenset[str]]  # set on each instance: the fields that nobody gave

    def __post_init__(self) -> None:
        for name in self.names():
            object.__setattr__(self, name, freeze(getattr(self, name)))
        object.__setattr__(self, "extra", {})
        object.__setattr__(self, "defaulted", frozenset())

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def parse(cls, values: Mapping[str, Any], *args: Any) -> Self:
        """A configuration from the contents of a JSON file (or of another class's configuration).

        Values that the file's own class had filled in by itself do not count as given: this class's default applies.
        """
        silent = set(values.get("_use_default_values", ())) | set(getattr(values, "defaulted", ()))
        given = {k: v for k, v in values.items() if k not in _BOOKKEEPING}
        mine = {k: v for k, v in given.items() if k in cls.names() and k not in silent}
        try:
            config = cls(*args, **mine)
        except TypeError as error:
            raise ConfigError("These options do not fit.", where=cls.__name__, got=str(error)) from None
        object.__setattr__(config, "extra", {k: freeze(v) for k, v in given.items() if k not in silent and k not in cls.names()})
        object.__setattr__(config, "defaulted", frozenset(set(cls.names()[len(args) :]) - set(mine)))
        return config

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; what was kept aside stays."""
        new = type(self).parse({**self, **changes})
        object.__setattr__(new, "defaulted", self.defaulted - set(changes))
        return new

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name) if name in self.names() else self.extra[name]

    def __getattr__(self, name: str) -> Any:  # only called for what is not a field
        if not name.startswith("__") and name in self.__dict__.get("extra", ()):
            return self.__dict__["extra"][name]
        raise AttributeError(f"{type(self).__name__} has no option {name!r}")

    def __iter__(self) -> Iterator[str]:
        yield from self.names()
        yield from self.extra

    def __len__(self) -> int:
        return len(self.names()) + len(self.extra)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == {k: freeze(v) for k, v in other.items()}

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.items())})"


class Configurable:
    """What models and schedulers share: `self.config`, built from keyword options or from a JSON file.

    A subclass names its dataclass in `Config` and its file in `config_name`; the signature of the constructor is read off the dataclass.
    """

    Config: ClassVar[type[Config]]
    config_name: ClassVar[str] = "config.json"
    config: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__:
            cls.__signature__ = inspect.signature(cls.Config)  # type: ignore[attr-defined]

    @classmethod
    def _configure(cls, *args: Any, **options: Any) -> Any:
        unknown = sorted(set(options) - set(cls.Config.names()))
        if unknown:
            got, expected, fix = ", ".join(unknown), ", ".join(cls.Config.names()), "To keep keys of a foreign file, use from_config."
            raise ConfigError("An option that this class does not have.", where=cls.__name__, got=got, expected=expected, fix=fix)
        return cls.Config.parse(options, *args)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, *, return_unused_kwargs: bool = False, **changes: Any):
        """Build from a configuration: a dict, or the `.config` of this or another class.

        Keys of other classes are kept, so that switching back restores them. `changes` override single keys.
        """
        values = {**(config or {}), **{k: v for k, v in changes.items() if k in cls.Config.names()}}
        silent = set(getattr(config, "defaulted", ())) | set((config or {}).get("_use_default_values", ()))
        values["_use_default_values"] = tuple(silent - set(changes))
        parsed = cls.Config.parse(values)
        self = cls._from_parsed(parsed)
        unused = {k: v for k, v in changes.items() if k not in cls.Config.names()}
        return (self, unused) if return_unused_kwargs else self

    @classmethod
    def _from_parsed(cls, parsed: Any):
        self = cls(**{k: parsed[k] for k in cls.Config.names() if k not in parsed.defaulted})
        self.config = parsed
        return self

    def to_json(self) -> str:
        """The text of the configuration file, as the layout has it: sorted keys, two spaces."""
        content = {**self.config, "_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION}
        return json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
