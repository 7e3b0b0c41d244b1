"""Networks of one kind beside each other, as one component: in memory a list, on disk one folder for each."""

from __future__ import annotations
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self
from torch import nn
from ..checkpoints.files import PathLike
from ..checkpoints.index import further_folders
from ..config import Config
from ..errors import CheckpointError, InputError
from .base import Model

__all__ = ["Several", "SeveralConfig"]


@dataclass(frozen=True, eq=False, repr=False)
class SeveralConfig(Config):
    """No keys: each network has its own configuration."""


class Several(Model):
    """Networks of the class `part`, in the attribute that `holder` names. InputError for none, or for one of another class."""

    Config = SeveralConfig
    part: ClassVar[type[Model]]
    holder: ClassVar[str] = "nets"

    def __init__(self, networks: Sequence[Any]):
        nn.Module.__init__(self)
        self.config = SeveralConfig()
        if not networks or not all(isinstance(net, self.part) for net in networks):
            got, expected = [type(net).__name__ for net in networks], f"a list of {self.part.__name__}"
            raise InputError("These networks do not go together.", where=type(self).__name__, got=got, expected=expected)
        setattr(self, self.holder, nn.ModuleList(networks))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return nn.Module.__call__(self, *args, **kwargs)

    @classmethod
    def folders(cls, first: PathLike) -> list[Path]:
        """The folders that exist: `first`, then `first_1`, `first_2`, ..."""
        here = Path(first)
        there = [path.name for path in here.parent.iterdir() if path.is_dir()]
        return [here, *(here.parent / name for name in further_folders(here.name, there))]

    @classmethod
    def from_pretrained(cls, path: PathLike, *, subfolder: str | None = None, **options: Any) -> Self:  # type: ignore[override]
        """Load the networks of a folder and of those beside it that continue its name: `controlnet`, `controlnet_1`, ...
        Options are as in `Model.from_pretrained`. Raises CheckpointError if there is no such folder on this machine.
        """
        first = Path(path, subfolder) if subfolder else Path(path)
        if not first.is_dir():
            fix = f"Load each by itself and put them together: {cls.__name__}([first, second])."
            raise CheckpointError("Not a folder on this machine.", where=first, expected="such as my_pipeline/controlnet", fix=fix)
        return cls([cls.part.from_pretrained(folder, **options) for folder in cls.folders(first)])

    def save_pretrained(
        self, save_directory: PathLike, *, variant: str | None = None, max_shard_size: int | str = "10GB", safe_serialization: bool = True
    ) -> None:
        """Write each network into a folder of its own: `save_directory`, `save_directory_1`, ..."""
        options: dict[str, Any] = {"variant": variant, "max_shard_size": max_shard_size, "safe_serialization": safe_serialization}
        for i, net in enumerate(getattr(self, self.holder)):
            net.save_pretrained(f"{os.fspath(save_directory)}_{i}" if i else save_directory, **options)
