"""What calls return: dataclasses that also answer to an index and to a key, and turn into tuples."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Output"]


class Output(Mapping[Any, Any]):
    """A dataclass whose fields are also items: `out.sample`, `out["sample"]`, `out[0]` and `(sample,) = out.to_tuple()`.
    A field that is None does not count for indexes, keys and tuples.
    """

    def _present(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: value for f in fields if (value := getattr(self, f.name)) is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self._present().values())

    def __getitem__(self, key: Any) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())
