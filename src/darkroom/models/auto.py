"""AutoModel: the network that a folder holds, whatever its class."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from ..checkpoints.files import listing, plan, read_json, stem_of
from ..checkpoints.hub import locate, model_files
from ..checkpoints.models import load_component, load_model, model_class
from ..errors import CheckpointError
from .base import Model

__all__ = ["AutoModel"]

_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")


class AutoModel:
    """Loads a network by the class that its `config.json` names: one of darkroom's, or one of transformers'."""

    def __init__(self, *args: Any, **options: Any):
        raise TypeError("AutoModel makes no networks of its own: use AutoModel.from_pretrained(path)")

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, subfolder: str | None = None, **options: Any) -> Any:
        """Load a network from a folder or a hub id.

        Args:
            path: a folder, or a hub id.
            subfolder: the component's folder inside it.
            options: `dtype` (or `torch_dtype`), `variant`, `use_safetensors` and the rest as in `Model.from_pretrained`.
        Raises:
            CheckpointError: there is no `config.json`, or it names no class that is known.
        """
        if "torch_dtype" in options:
            options.setdefault("dtype", options.pop("torch_dtype"))
        choice = {name: options[name] for name in ("variant", "use_safetensors") if name in options}
        hub = {name: options.pop(name) for name in _HUB if name in options}
        folder = locate(path, subfolder=subfolder, files=partial(model_files, **choice), **hub)
        where = folder / "config.json"
        if not where.exists():
            raise CheckpointError(
                "Not a network: the folder has no config.json.", where=folder, fix="For a component of a pipeline, pass subfolder=."
            )
        found = model_class(read_json(where), where)
        if options.get("variant") is not None:  # a component of a pipeline may fall back to the plain file, a single network may not
            names = listing(folder)
            plan(names, stem_of(names) or "model", **choice)
        if issubclass(found, Model):
            return load_model(found, folder, **options)
        return load_component(folder.name, "transformers", found.__name__, folder, cls=found, **options)
