"""The arguments of a pipeline's call, declared once: signature, validation, stubs and command line are read off these fields."""

from __future__ import annotations
import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from ..errors import InputError

__all__ = ["REQUIRED", "Inputs", "combine", "field", "signature"]

REQUIRED: Any = inspect.Parameter.empty  # the default of an argument that a call cannot do without


def field(
    help: str, default: Any = None, *, unit: str | None = None, minimum: float | None = None, maximum: float | None = None,
    integer: bool = False, choices: Sequence[str] | None = None,
) -> Any:  # fmt: skip
    """A field of `Inputs`: one line of help, and the bounds that are checked before anything runs."""
    metadata = dict(help=help, unit=unit, minimum=minimum, maximum=maximum, integer=integer, choices=choices)
    kind: dict[str, Any] = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**kind, metadata=metadata)


def default_of(spec: dataclasses.Field[Any]) -> Any:
    return spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()


@dataclass(kw_only=True)
class Inputs:
    """The base: arguments that every pipeline has."""

    output_type: str = field("What the pictures come as.", "pil", choices=("pil", "np", "pt", "latent"))
    return_dict: bool = field("False gives a plain tuple.", True)

    def check(self) -> None:
        """Raise InputError for the first value outside its field's bounds."""
        for spec in dataclasses.fields(self):
            value, rule = getattr(self, spec.name), spec.metadata
            if value is None or not rule:
                continue
            low, high, integer, choices = (rule[name] for name in ("minimum", "maximum", "integer", "choices"))
            numeric = low is not None or high is not None or integer or spec.type in ("float", "float | None")
            if numeric and not _in_range(value, low, high, integer):
                bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
                expected = ", ".join(["a whole number" if integer else "a finite number", *bounds])
                raise InputError("A number out of range.", where=spec.name, got=value, expected=expected)
            if choices and value not in choices:
                raise InputError("No such choice.", where=spec.name, got=value, expected=" or ".join(map(str, choices)))


def _in_range(value: Any, low: float | None, high: float | None, integer: bool) -> bool:
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value  # numpy and torch scalars
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not math.isfinite(number):
        return False
    return (not integer or number == int(number)) and (low is None or number >= low) and (high is None or number <= high)


def combine(name: str, parts: Sequence[type[Inputs]], defaults: Mapping[str, Any]) -> type[Inputs]:
    """One dataclass with the fields of all parts, some of their defaults replaced."""
    specs = {spec.name: spec for part in parts for spec in dataclasses.fields(part)}
    fields = [(n, spec.type, field(default=defaults.get(n, default_of(spec)), **spec.metadata)) for n, spec in specs.items()]
    return dataclasses.make_dataclass(name, fields, bases=(Inputs,), kw_only=True)


def signature(inputs: type[Inputs], positional: str) -> inspect.Signature:
    """The signature of a call: the names in `positional` in that order, all others by keyword only."""
    specs = {spec.name: spec for spec in dataclasses.fields(inputs)}
    order = positional.split()
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name in [*order, *(n for n in specs if n not in order)]:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if name in order else inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default_of(specs[name]), annotation=specs[name].type))
    return inspect.Signature(parameters)
