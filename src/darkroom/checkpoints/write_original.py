"""Networks and pipelines into one file of the original layout."""

from __future__ import annotations
import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch
from torch import Tensor, nn
from ..errors import CheckpointError, InputError
from ..models.base import Model
from .files import PathLike
from .layouts import CONVOLUTIONS, FUSED, NAMES, NETWORKS, PLACES, QUERY_KEY_VALUE, TEXTS, WHOLE
from .locks import beside
from .models import check_dtype
from .original import TEXT_UNSEEN
from .save import write_safetensors

__all__ = ["save_single_file"]


@dataclass(frozen=True)
class _Piece:
    """A tensor of a file, made of tensors whose rows follow each other; joined and cast when it is written."""

    parts: list[Tensor]
    dtype: torch.dtype

    @property
    def shape(self) -> list[int]:
        rows, first = sum(part.shape[0] for part in self.parts if part.ndim), self.parts[0]
        return [rows, *first.shape[1:]] if first.ndim else []

    @property
    def nbytes(self) -> int:
        return sum(part.numel() for part in self.parts) * self.dtype.itemsize

    def detach(self) -> Tensor:
        return (self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)).to("cpu", self.dtype)


def _pieces(module: nn.Module, names: str, prefix: str, dtype: torch.dtype | None, where: str) -> dict[str, _Piece]:
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError("A network without values cannot be saved.", where=where, got='tensors on "meta"')
    found = {}
    for name, own in NAMES[names](list(state)).items():
        fused = FUSED.search(own)
        parts = [state.pop(f"{own[: fused.start()]}{part}.{fused[1]}") for part in QUERY_KEY_VALUE] if fused else [state.pop(own)]
        if CONVOLUTIONS.search(name):
            parts = [part[..., None, None] for part in parts if part.ndim == 2]
        elif name == "text_projection":
            parts = [part.T for part in parts]
        found[prefix + name] = _Piece(parts, dtype if dtype is not None and parts[0].is_floating_point() else parts[0].dtype)
    if state:
        raise InputError("Tensors that the original layout has no names for.", where=where, got=", ".join(sorted(state)[:5]))
    return found


def _places(thing: Any) -> list[tuple[str, Any, str, str]]:
    """(component, module, how its names are, prefix) of all that goes into the file."""
    own = getattr(thing, "_orig_mod", thing)
    if isinstance(own, Model) and (component := NETWORKS.get(type(own).__name__)):
        return [(component, own, component, PLACES[component].alone)]
    parts = {n: getattr(c, "_orig_mod", c) for n, c in getattr(thing, "components", {}).items() if isinstance(c, nn.Module)}
    if NETWORKS.get(type(parts.get("unet")).__name__) != "unet":
        raise InputError(
            "No original layout of this is known.", where=type(own).__name__, expected=f"{', '.join(NETWORKS)}, or a pipeline of them"
        )
    second, activation = "text_encoder_2" in parts, getattr(getattr(parts.get("text_encoder"), "config", None), "hidden_act", None)
    family = ("xl" if "text_encoder" in parts else "refiner") if second else "v2" if activation == "gelu" else "v1"
    found = [(name, parts[name], name, PLACES[name].prefixes[0]) for name in WHOLE if name in parts]
    places = {place.component: place for place in reversed(TEXTS[family])}
    return found + [(name, parts[name], place.names, place.prefix) for name, place in places.items() if name in parts]


def save_single_file(pipe_or_model: Any, path: PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Write a `.safetensors` file in the original layout, whole or not at all.

    UNet, VAE and text encoders of a pipeline go into one file, a network of a class in NETWORKS into one of its own; what else a pipeline has is not
    written. `dtype` is that of the file, None for what the networks have. What tensors do not tell is kept in the metadata, for `load_single_file`.

    Raises:
        InputError: something that has no original layout, or a name without ".safetensors".
        CheckpointError: the file cannot be written, or a network has no values.
    """
    target = Path(path)
    check_dtype(dtype, "dtype")
    if target.suffix != ".safetensors":
        raise InputError("Single files are written as safetensors.", where=target, expected="a name that ends in .safetensors")
    metadata: dict[str, str] = {"format": "pt"}
    pieces: dict[str, _Piece] = {}
    for name, module, names, prefix in _places(pipe_or_model):
        pieces |= _pieces(module, names, prefix, dtype, name)
        own = module.to_json() if isinstance(module, Model) else json.dumps({key: getattr(module.config, key, None) for key in TEXT_UNSEEN})
        metadata[f"darkroom.{name}"] = own
    predicts = getattr(getattr(getattr(pipe_or_model, "scheduler", None), "config", None), "prediction_type", None)
    if predicts is not None:
        metadata["modelspec.prediction_type"] = "v" if predicts == "v_prediction" else predicts
    part = beside(target, "saving")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(part, pieces, metadata)  # type: ignore[arg-type]
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        fix = "Choose a place that you may write to." if isinstance(error, PermissionError) else None
        raise CheckpointError("The file cannot be written here.", where=target, got=error.strerror or str(error), fix=fix) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
