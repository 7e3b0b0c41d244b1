"""Typed errors. Each says four things: what went wrong, where (component and file), got and expected, what to do."""

__all__ = ["AdapterError", "CheckpointError", "ConfigError", "DarkroomError", "InputError", "MissingDependencyError"]

LONGEST = 1900  # characters of a whole message: an error is read by a person


def _short(value: object, limit: int) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class DarkroomError(Exception):
    """The root of darkroom's errors.
    `what` is one sentence on what went wrong, `where` the component, argument or file that it concerns, `got` what was found there,
    `expected` what would have been right and `fix` what the reader can do about it.
    """

    def __init__(self, what: str, *, where: object = None, got: object = None, expected: object = None, fix: str | None = None):
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        limits = {"where": 500, "got": 300, "expected": 300, "fix": 400}
        place = None if where is None else str(where)
        place = place if place is None or len(place) <= 450 else f"{place[:100]}...{place[-300:]}"  # the file's name is at the end
        parts = {"where": place, "got": got, "expected": expected, "fix": fix}
        lines = [f"  {name + ':':<9} {_short(part, limits[name])}" for name, part in parts.items() if part is not None]
        super().__init__("\n".join([_short(what, 600), *lines])[:LONGEST])


class CheckpointError(DarkroomError, ValueError, OSError):
    """A checkpoint that cannot be used: a file that is missing, damaged, hostile or of another shape than its config says."""

    __str__ = Exception.__str__  # OSError's own reads errno and file name


class AdapterError(CheckpointError):
    """A file of an adapter that does not fit the pipeline, or is no adapter."""


class ConfigError(DarkroomError, ValueError):
    """An option of a model or scheduler that has no meaning, named by its field."""


class InputError(DarkroomError, ValueError):
    """An argument of a call that cannot be used."""


class MissingDependencyError(DarkroomError, ImportError):
    """A feature that needs an extra package; says how to install it."""
