"""AutoModel: the network that a folder holds, whatever its class."""

from typing import Any
from ..checkpoints.files import PathLike, read_json
from ..checkpoints.hub import HUB_OPTIONS, locate
from ..checkpoints.index import component_class
from ..checkpoints.models import load_component, load_model
from ..checkpoints.plan import component_files
from ..errors import CheckpointError
from .base import Model

__all__ = ["AutoModel"]


class AutoModel:
    """Loads a network by the class that its `config.json` names: one of darkroom's, or one of transformers'."""

    def __init__(self, *args: Any, **options: Any):
        raise TypeError("AutoModel makes no networks of its own: use AutoModel.from_pretrained(path)")

    @classmethod
    def from_pretrained(cls, path: PathLike, *, subfolder: str | None = None, **options: Any) -> Any:
        """Load a network from a folder or a hub id.
        Options are as in `Model.from_pretrained`. Raises CheckpointError if there is no `config.json`, or it names no class that is known.
        """
        options.setdefault("dtype", options.pop("torch_dtype", None))
        choice = {name: options[name] for name in ("variant", "use_safetensors") if name in options}
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        choose = lambda names, folder: component_files(names, where=folder, dtype=options["dtype"], **choice)  # noqa: E731
        folder = locate(path, files=["config.json"], choose=choose, subfolder=subfolder, **hub)
        where = folder / "config.json"
        match read_json(where):  # darkroom's networks by their class, those of transformers by their first architecture
            case {"_class_name": str(name)}:
                found = component_class(str(where), "diffusers", name)
            case {"architectures": [str(name), *_]}:
                found = component_class(str(where), "transformers", name)
            case _:
                raise CheckpointError("A configuration that names no class.", where=where, expected='"_class_name" or "architectures"')
        if issubclass(found, Model):
            return load_model(found, folder, **options)
        return load_component(folder.name, found, folder, **options)
