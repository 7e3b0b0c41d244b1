"""Typed errors. Each says four things: what went wrong, where (component and file), got and expected, what to do."""

from __future__ import annotations

__all__ = ["CheckpointError", "ConfigError", "DarkroomError", "InputError", "MissingDependencyError"]

LONGEST = 1900  # characters of a whole message: an error is read by a person


def _short(value: object, limit: int = 300) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class DarkroomError(Exception):
    """The root of darkroom's errors.

    Args:
        what: one sentence on what went wrong.
        where: the component, argument or file that it concerns.
        got: what was found there.
        expected: what would have been right.
        fix: what the reader can do about it.
    """

    def __init__(self, what: str, *, where: object = None, got: object = None, expected: object = None, fix: str | None = None):
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        lines = [_short(what, 600)]
        if where is not None:
            lines.append(f"  where:    {_short(str(where))}")
        if got is not None:
            lines.append(f"  got:      {_short(got)}")
        if expected is not None:
            lines.append(f"  expected: {_short(expected)}")
        if fix is not None:
            lines.append(f"  fix:      {_short(fix, 400)}")
        super().__init__("\n".join(lines)[:LONGEST])


class CheckpointError(DarkroomError, ValueError, OSError):
    """A checkpoint that cannot be used: a file that is missing, damaged, hostile or of another shape than its config says."""

    __str__ = Exception.__str__  # OSError's own reads errno and file name


class ConfigError(DarkroomError, ValueError):
    """An option of a model or scheduler that has no meaning, named by its field."""


class InputError(DarkroomError, ValueError):
    """An argument of a call that cannot be used."""


class MissingDependencyError(DarkroomError, ImportError):
    """A feature that needs an extra package; says how to install it."""
