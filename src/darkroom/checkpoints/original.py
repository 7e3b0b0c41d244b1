"""A file in the original layout, and the components that it holds."""

from __future__ import annotations
import copy
import io
import logging
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
import torch
from torch import nn
from ..errors import CheckpointError, InputError
from . import inferred
from .files import open_regular, parse_json, read_json
from .index import component_class, quiet_transformers
from .layouts import ANCHORS, FUSED, IGNORED, NAMES, NETWORKS, PLACES, PUBLISHED_STEPS, QUERY_KEY_VALUE, SEEMS, TEXTS, TextPlace
from .models import component_errors, skeleton
from .unpickling import run_pickle
from .weights import Entry, Weights, load_weights

__all__ = ["TEXT_UNSEEN", "SingleFile"]

logger = logging.getLogger("darkroom")
Part = Mapping[str, str]  # original name, without the component's prefix -> name in the file
TEXT_UNSEEN = ("hidden_act", "num_attention_heads", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id", "projection_dim")
_PREDICTIONS = {"v": "v_prediction", "eps": "epsilon", "v_prediction": "v_prediction", "epsilon": "epsilon", "sample": "sample"}
_SPEAKERS = ("modelspec.prediction_type", "modelspec.predict_key")  # keys of the metadata that say what is predicted


class SingleFile:
    """What the names, shapes and metadata of a file say. Headers are read, weights are not.

    Args:
        path: a local file.
        config: the configuration of one network, or a folder in the folder layout whose configurations are used; what is inferred if None.
        original_config: the contents of the training code's YAML file: overrides what is inferred.
        prediction_type: "epsilon" or "v_prediction"; tensors do not always tell.
        extract_ema: take the UNet's averaged weights, where the file holds both.
        device: where networks go.
        disable_mmap: read the file instead of mapping it.
        progress: called with the number of bytes read since its last call.
    Raises:
        CheckpointError: the file or a configuration cannot be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: Mapping[str, Any] | Path | None = None,
        original_config: Mapping[str, Any] | None = None,
        prediction_type: str | None = None,
        extract_ema: bool = False,
        device: torch.device | str = "cpu",
        disable_mmap: bool = False,
        progress: Callable[[int], object] | None = None,
    ):
        self.path, self.config, self.extract_ema = path, config, extract_ema
        self.reading: dict[str, Any] = {"device": device, "mmap": False if disable_mmap else None, "progress": progress}
        self.weights = Weights([path])
        self.shapes = {name: entry.shape for name, entry in self.weights.entries.items()}
        self.metadata = self._metadata()
        try:
            self.original = inferred.original_options(original_config or {})
        except (AttributeError, TypeError, ZeroDivisionError) as error:
            raise CheckpointError("A configuration of another form.", where="original_config", got=str(error)) from None
        self.unet = self.part("unet")
        self.family = inferred.family_of(self.shapes, self._shapes_of(self.unet or self.part("controlnet")))
        self.prediction_type = self._prediction_type(prediction_type)
        self.texts: dict[str, TextPlace] = {}
        for place in TEXTS[self.family]:
            if place.prefix + ANCHORS[place.names] in self.shapes:
                self.texts.setdefault(place.component, place)

    def _metadata(self) -> dict[str, str]:
        if self.path.suffix != ".safetensors":
            return {}
        from safetensors import safe_open

        with safe_open(self.path, framework="np") as file:
            return dict(file.metadata() or {})

    def _prediction_type(self, given: str | None) -> str:
        self.guessed = False
        said = given or self.original["scheduler"].pop("prediction_type", None)
        if said is not None and (not isinstance(said, str) or said not in _PREDICTIONS):
            raise InputError("Nothing that a network predicts.", where="prediction_type", got=said, expected="epsilon or v_prediction")
        for text in (said, *(self.metadata.get(key) for key in _SPEAKERS)):
            if text in _PREDICTIONS:
                return _PREDICTIONS[text]
        if "v_pred" in self.shapes:  # an empty tensor, by agreement
            return "v_prediction"
        if self.family != "v2" or self.channels in (5, 9):  # all depth and inpainting networks that were published predict the noise
            return "epsilon"
        step = self.metadata.get("global_step") or self._pickled_step()
        self.guessed = step not in PUBLISHED_STEPS
        return PUBLISHED_STEPS.get(step, "v_prediction")

    def _pickled_step(self) -> str:
        """How long the network of a pickled file was trained, "" if it does not say."""
        with open_regular(self.path) as file:
            if self.path.suffix == ".safetensors" or file.read(4) != b"PK\3\4":
                return ""
            with zipfile.ZipFile(file) as archive:  # a good one, or there would be no weights
                text = next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
        return str(run_pickle(io.BytesIO(text)).get("global_step", ""))

    # ---- parts

    def part(self, component: str) -> Part:
        """The tensors of a network, a key of PLACES; none if there is no such network."""
        place = PLACES[component]
        prefix = next((prefix for prefix in place.prefixes if prefix + place.anchor in self.shapes), None)
        if prefix is None:
            return {}
        part = self._under(prefix) if prefix else {name: name for name in self.shapes if name.startswith(place.roots)}
        if component == "unet" and self.extract_ema:
            part = {name: "model_ema.diffusion_model" + name.replace(".", "") for name in part}
            if lost := [name for name in part.values() if name not in self.shapes]:
                fix = "Leave extract_ema out."
                raise CheckpointError("The file holds no averaged weights.", where=self.path, expected=lost[0], fix=fix)
        return part

    def _under(self, prefix: str) -> Part:
        return {name[len(prefix) :]: name for name in self.shapes if name.startswith(prefix)}

    def _shapes_of(self, part: Part) -> inferred.Shapes:
        return {name: self.shapes[in_file] for name, in_file in part.items()}

    @property
    def channels(self) -> int | None:
        """The input channels of the UNet, None where there is none."""
        shape = self.shapes.get(self.unet.get("input_blocks.0.0.weight", ""), ())
        return shape[1] if len(shape) == 4 else None

    def lacks(self, what: str) -> CheckpointError:
        """The error that says what the file seems to be instead."""
        names = sorted(self.shapes)[:20_000]
        seems = next((text for pattern, text in SEEMS if any(re.search(pattern, name) for name in names)), None)
        got = f"it seems to be {seems}" if seems else "tensors such as " + (", ".join(name[:60] for name in names[:3]) or "none")
        return CheckpointError(f"The file holds no {what} in the original layout.", where=self.path, got=got)

    # ---- configurations

    def _given(self, component: str) -> dict[str, Any] | None:
        """The configuration that the caller brought."""
        if not isinstance(self.config, Path):
            return None if self.config is None else dict(self.config)
        own = self.config / component / "config.json"
        return read_json(own if own.exists() else self.config / "config.json")

    def _told(self, component: str) -> dict[str, Any]:
        """What `save_single_file` wrote of the configuration."""
        text = self.metadata.get(f"darkroom.{component}")
        content = {} if text is None else parse_json(text.encode(), f"{self.path}, metadata of {component}")
        return {key: value for key, value in content.items() if not key.startswith("_")}

    # ---- components

    def _fill(self, module: nn.Module, part: Part, names: Part, dtype: torch.dtype | None, what: str) -> None:
        """Load a part. `names` has ours for the original ones; what else there is keeps its own, for the warning."""
        weights, where = copy.copy(self.weights), f"{self.path}: {what}"
        weights.entries = {}
        for name, in_file in part.items():
            entry = self.weights.entries[in_file]
            found = _split(names[name], entry) if name in names else {name: entry}
            if doubled := found.keys() & weights.entries.keys():
                raise CheckpointError("Two tensors of one name.", where=where, got=in_file[:100], expected=f"one for {min(doubled)}")
            weights.entries |= found
        weights.files = dict.fromkeys(weights.entries, self.path)
        full = getattr(module, "keep_in_float32", ())
        load_weights(module, weights, dtype=dtype, keep_in_float32=full, where=where, **self.reading)

    def network(self, component: str, *, dtype: torch.dtype | None = torch.float32, **changes: Any) -> Any:
        """A network, a key of PLACES, in eval mode. `dtype` None keeps what is stored; `changes` override its configuration.

        A file of one network with the names of the folder layout is read too, if there is a configuration for it.
        """
        name = next(name for name, own in NETWORKS.items() if own == component)
        cls: Any = component_class(component, "darkroom", name)
        part, given, unread = self.part(component), self._given(component), PLACES[component].unread
        foldered = not part and given is not None and any(n.startswith(("down_blocks.", "encoder.down_blocks.")) for n in self.shapes)
        if not part and not foldered:
            raise self.lacks(name)
        with component_errors(component, cls, self.path):
            with skeleton(self.weights, name, self.path):
                if given is None:
                    seen, assumed = inferred.CONFIGS[component](self._shapes_of(part), self.family, self.prediction_type)
                    given = {**assumed, **self._told(component), **seen, **self.original.get(component, {})}
                model = cls.from_config({**given, **changes})
            if foldered:
                self._fill(model, dict(zip(self.shapes, self.shapes)), {n: cls.rename_key(n) for n in self.shapes}, dtype, component)
            else:
                part = {name: in_file for name, in_file in part.items() if unread is None or not unread.fullmatch(name)}
                self._fill(model, part, NAMES[component](list(model.state_dict())), dtype, component)
            return model.eval()

    def text_encoder(self, component: str, *, dtype: torch.dtype | None = torch.float32) -> Any:
        """`text_encoder` or `text_encoder_2` in eval mode. Raises CheckpointError if the file does not have it."""
        import transformers

        if component not in self.texts:
            raise self.lacks(component)
        place = self.texts[component]
        cls, part, given = getattr(transformers, place.class_name), self._under(place.prefix), self._given(component)
        with component_errors(component, cls, self.path):
            with quiet_transformers(), skeleton(self.weights, place.class_name, self.path):
                seen, assumed = inferred.text_config(self._shapes_of(part), place)
                if given is None:
                    given = {**assumed, **{k: v for k, v in self._told(component).items() if k in TEXT_UNSEEN}, **seen}
                model = cls(cls.config_class.from_dict(given))
            for module in model.modules():
                if "position_ids" in module._buffers:  # in no file
                    module.position_ids = torch.arange(seen["max_position_embeddings"])[None]
            names = NAMES[place.names](list(model.state_dict()))
            part = {name: in_file for name, in_file in part.items() if name in names or not IGNORED.fullmatch(name)}
            self._fill(model, part, names, dtype, component)
            return model.eval()

    def scheduler(self) -> Any:
        """The scheduler that checkpoints of this family are published with."""
        if self.guessed:
            logger.warning("%s: the file does not say what its network predicts; v_prediction is assumed, see prediction_type=", self.path)
        changes = dict(self.original["scheduler"])
        if "ztsnr" in self.shapes:  # an empty tensor, by agreement
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        name, config = inferred.scheduler_config(self.family, self.prediction_type, changes)
        cls: Any = component_class("scheduler", "darkroom", name)
        with component_errors("scheduler", cls, self.path):
            return cls.from_config(config)

    def tokenizer(self, component: str) -> Any:
        """The tokenizer of a text encoder."""
        from ..assets.clip import END, clip_tokenizer

        with quiet_transformers():
            return clip_tokenizer(END if self.texts[component].names == "clip" else "!")


def _split(name: str, entry: Entry) -> dict[str, Entry]:
    """Where the tensors lie that ours has for one of OpenCLIP's: queries, keys and values are rows of one, the projection is transposed."""
    if (whole := FUSED.search(name)) and entry.shape and entry.shape[0] % 3 == 0:
        rows = entry.shape[0] // 3
        jump = entry.nbytes // 3 if entry.stride is None else rows * entry.stride[0] * entry.dtype.itemsize
        shape, own = (rows, *entry.shape[1:]), [f"{name[: whole.start()]}{part}.{whole[1]}" for part in QUERY_KEY_VALUE]
        parts = (replace(entry, shape=shape, offset=entry.offset + i * jump, nbytes=entry.nbytes // 3) for i in range(3))
        return dict(zip(own, parts))
    if name == "text_projection.weight" and len(entry.shape) == 2:
        stride = entry.stride or (entry.shape[1], 1)
        return {name: replace(entry, shape=entry.shape[::-1], stride=stride[::-1] if entry.nbytes else None)}
    return {name: entry}
