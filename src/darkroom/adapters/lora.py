"""LoRA and its kin as methods of pipelines and networks. Each changes everything it is asked to, or raises and changes nothing."""

from __future__ import annotations
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
import torch
from torch import Tensor, nn
from .._public import Later
from ..errors import CheckpointError, InputError
from .blocks import by_transformer

if TYPE_CHECKING:
    from ..checkpoints.files import PathLike
    from ..runtime import lora
else:
    lora = Later("darkroom.runtime.lora")

__all__ = ["Applied", "LoraNetwork", "LoraPipeline", "save_lora"]

logger = logging.getLogger("darkroom")
METADATA = "lora_adapter_metadata"  # in the header of a safetensors file: PEFT's configuration as JSON
ADAPTABLE = re.compile(r"(unet|transformer|prior|text_encoder)(_\d)?")  # components that adapters are made for
Components = Mapping[str, nn.Module]
Weights = float | Mapping[str, Any] | Sequence[Any] | None


@dataclass(frozen=True)
class Applied:
    """What became of an adapter's file. `counts` has for each component how many tensors were applied and how many the file has for it; `ignored`
    the keys that belong to nothing, with the reason; `format` names the scheme of the keys."""

    adapter_name: str
    counts: Mapping[str, tuple[int, int]]
    ignored: Mapping[str, str]
    format: str

    def __str__(self) -> str:
        counts = [(name, done, whole) for name, (done, whole) in self.counts.items() if whole]
        parts = [f"{done} of {whole}{'' if i else ' tensors'} to {name}" for i, (name, done, whole) in enumerate(counts)]
        return f"applied {', '.join(parts)}, ignored {len(self.ignored)}"


def _plain(module: Any) -> nn.Module:
    return lora.adopt(getattr(module, "_orig_mod", module))  # what is inside torch.compile's wrapper


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _loaded(components: Components) -> list[str]:
    """The adapters on these networks, in the order of loading."""
    return list(dict.fromkeys(name for module in components.values() for name in lora.network_of(module).weights))


def _known(components: Components, names: str | Sequence[str], where: str = "adapter_names") -> list[str]:
    names, loaded = _names(names), _loaded(components)
    if unknown := [name for name in names if name not in loaded]:
        raise InputError("No such adapter is loaded.", where=where, got=unknown, expected=", ".join(loaded) or "none: load one first")
    return names


@contextmanager
def _whole(components: Components) -> Iterator[None]:
    with ExitStack() as stack:
        for module in components.values():
            stack.enter_context(lora.whole(lora.layers_of(module, {})))
        yield


def _load(
    components: Components, source: PathLike | Mapping[str, Any], adapter_name: str | None, hotswap: bool, strict: bool, *,
    prefix: str | None = None, alphas: Mapping[str, float] | None = None, metadata: Mapping[str, Any] | None = None, **files: Any,
) -> Applied:  # fmt: skip
    """Read an adapter and put it on these networks."""
    from ..checkpoints.adapters import Adapter, read_adapter
    from ..checkpoints.layouts import NAMES
    from ..runtime.adapter_names import parse

    loaded = {*_loaded(components), *(name for module in components.values() for name in lora.network_of(module).fused)}
    if hotswap:
        _known(components, adapter_name or "", "adapter_name")
    elif adapter_name in loaded:
        what, fix = "An adapter of this name is loaded, or still fused.", "Choose another, or hotswap=True."
        raise InputError(what, where="adapter_name", got=adapter_name, fix=fix)
    if adapter_name is not None and (not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name):
        raise InputError("Not a name for an adapter.", where="adapter_name", got=adapter_name, expected="text without dots")
    number = len(_loaded(components))
    while adapter_name is None or (not hotswap and adapter_name in loaded):
        adapter_name, number = f"default_{number}", number + 1
    state = read_adapter(source, **files)
    if isinstance(source, Mapping):  # a training may go on to change them
        state = Adapter({key: tensor.detach().clone() for key, tensor in state.items()}, state.metadata, state.where)
    if prefix is not None:
        state = Adapter({k: v for k, v in state.items() if k.startswith(f"{prefix}.")}, state.metadata, state.where)
    try:
        notes = state.metadata if metadata is None else metadata
        found = parse(state, components, metadata=notes, alphas=alphas, strict=strict, originals={"unet": NAMES["unet"]})
    except CheckpointError as error:
        where = f"{state.where}: {error.where}"
        raise type(error)(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from None
    with ExitStack() as stack, torch.no_grad():
        for name, module in components.items():
            stack.enter_context(lora.whole(lora.layers_of(module, found.deltas[name])))
        for name, module in components.items():
            if hotswap and (found.deltas[name] or adapter_name in lora.network_of(module).weights):
                lora.swap(module, found.deltas[name], adapter_name)
            elif found.deltas[name]:
                lora.attach(module, found.deltas[name], adapter_name)
    return Applied(adapter_name, {n: found.counts[n] for n in components}, found.ignored, found.format)


# ---- weights


def _number(weight: Any, where: str) -> float:
    weight = weight.item() if isinstance(weight, Tensor) and weight.numel() == 1 else weight
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise InputError("Not a weight of an adapter.", where=where, got=weight, expected="a number")
    return float(weight)


def _weigh(components: Components, names: str | Sequence[str], weights: Weights, by_component: bool) -> None:
    """Let these adapters count, by their weights, and no others."""
    names = _known(components, names)
    if isinstance(weights, (list, tuple)) and len(weights) != len(names):
        raise InputError("Another number of weights than of adapters.", where="adapter_weights", got=len(weights), expected=f"{len(names)}")
    each = list(weights) if isinstance(weights, (list, tuple)) else [weights] * len(names)
    made: dict[str, dict[str, Any]] = {component: {} for component in components}
    for name, weight in zip(names, each):
        if by_component and isinstance(weight, Mapping) and (unknown := sorted(map(str, weight.keys() - components.keys()))):
            raise InputError(
                "Weights for components that there are not.", where=name, got=", ".join(unknown), expected=", ".join(components)
            )
        for component, module in components.items():
            own = weight.get(component) if by_component and isinstance(weight, Mapping) else weight
            where = f"adapter_weights: {name}, {component}"
            own = 1.0 if own is None else own
            made[component][name] = by_transformer(module, own, _number, 1.0, where) if isinstance(own, Mapping) else _number(own, where)
    layers = {component: list(lora.adapted_layers(module)) for component, module in components.items()}
    with ExitStack() as stack, torch.no_grad():
        for component, module in components.items():
            stack.enter_context(lora.whole([module, *(layer for _, layer in layers[component])]))
        for component, module in components.items():
            if (known := lora.network_of(module)).weights:
                new = {n: w for n, w in made[component].items() if n in known.weights}
                lora.update(module, replace(known, weights={**known.weights, **new}, active=tuple(names)), layers[component])


def _enable(components: Components, enabled: bool) -> None:
    with _whole(components):
        for module in components.values():
            if not enabled and lora.network_of(module).fused:
                lora.unfuse(module)
            if lora.network_of(module).weights:
                lora.update(module, replace(lora.network_of(module), enabled=enabled))


def _fuse(components: Components, scale: float, safe: bool, names: str | Sequence[str] | None) -> None:
    names = None if names is None else _known(components, names)
    scale = _number(scale, "lora_scale")
    with _whole(components), torch.no_grad():
        for module in components.values():
            lora.fuse(module, names, scale, safe)


def _unload(components: Components) -> None:
    with _whole(components):
        for module in components.values():
            lora.delete(module, list(lora.network_of(module).weights))


def _place(components: Components, names: str | Sequence[str], device: torch.device | str | int) -> None:
    names = _known(components, names)
    with _whole(components):
        for module in components.values():
            for _, layer in lora.adapted_layers(module):
                for name in names:
                    lora.move(layer, name, torch.device(device))


def _prepare(components: Components, target_rank: int, check_compiled: str) -> None:
    if check_compiled not in ("error", "warn", "ignore"):
        raise InputError("No such choice.", where="check_compiled", got=check_compiled, expected="error, warn or ignore")
    if not isinstance(target_rank, int) or isinstance(target_rank, bool) or target_rank < 1:
        raise InputError("Not a rank.", where="target_rank", got=target_rank, expected="a whole number of 1 or more")
    if _loaded(components) and check_compiled != "ignore":
        what, fix = "Swapping is prepared before the first adapter is loaded.", 'Unload them, or pass check_compiled="ignore".'
        if check_compiled == "error":
            raise InputError(what, where="enable_lora_hotswap", got=", ".join(_loaded(components)), fix=fix)
        logger.warning("%s Those that are loaded cannot be swapped in place: %s", what, ", ".join(_loaded(components)))
    for module in components.values():
        lora.prepare_hotswap(module, target_rank)


# ---- saving

PEFT = {"down": "lora_A.weight", "up": "lora_B.weight", "bias": "lora_B.bias", "dora_scale": "lora_magnitude_vector"}
KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
OTHERS = {"loha": "hada_{}", "lokr": "lokr_{}"}
ROTATIONS = {"skew": "oft_blocks", "blocks": "oft_diag", "in": "oft_R.weight"}  # by form


def _tensors_of(delta: Any) -> dict[str, Tensor]:
    """The tensors of one layer's change by the names that files have for them: PEFT's, or those of who knows such a change."""
    found, tensors = {}, delta.tensors()
    columns = delta.dora_scale is not None and delta.dora_scale.ndim > 1 and delta.dora_scale.shape[0] == 1
    if delta.kind == "lora" and delta.mid is None and not columns:
        if delta.dora_scale is not None:
            tensors["dora_scale"] = delta.dora_scale.flatten()
        return {PEFT[role]: tensor for role, tensor in tensors.items()}
    for role, tensor in tensors.items():
        if role == "bias":
            found["diff_b"] = tensor * delta.gain
        elif role == "dora_scale" or delta.kind == "lora":
            found[KOHYA.get(role, role)] = tensor
        elif delta.kind == "oft":
            found[ROTATIONS[delta.form] if role == "blocks" else role] = tensor
        else:
            found["diff" if role == "change" else OTHERS[delta.kind].format(role)] = tensor
    return found | ({} if delta.alpha is None else {"alpha": torch.tensor(float(delta.alpha))})


def _stored(module: nn.Module, name: str, upcast: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter's tensors by name, and what PEFT's configuration says of its ranks and alphas, empty where each alpha is its rank."""
    deltas = {path: layer._lora.slots[name].delta for path, layer in lora.adapted_layers(module) if name in layer._lora.slots}
    state = {f"{path}.{tail}": tensor for path, delta in deltas.items() for tail, tensor in _tensors_of(delta).items()}
    state = {key: tensor.float() if upcast else tensor for key, tensor in state.items()}
    ranks = {path: delta.rank for path, delta in deltas.items()}
    alphas = {path: float(delta.rank if delta.alpha is None else delta.alpha) for path, delta in deltas.items()}
    stable = any(getattr(delta, "rank_stabilized", False) for delta in deltas.values())
    if not any(".lora_A." in key for key in state) or (alphas == ranks and not stable):
        return state, {}
    (rank, _), (alpha, _) = (Counter(each.values()).most_common(1)[0] for each in (ranks, alphas))
    patterns = {
        "rank_pattern": {p: r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {p: a for p, a in alphas.items() if a != alpha},
    }
    notes = {"r": rank, "lora_alpha": alpha, **patterns, "target_modules": sorted(deltas), "use_rslora": stable}
    ends = {"use_dora": "lora_magnitude_vector", "lora_bias": "lora_B.bias"}
    return state, notes | {option: any(key.endswith(end) for key in state) for option, end in ends.items()}


def save_lora(
    folder: PathLike, layers: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Mapping[str, Any]] = {}, *,
    weight_name: str | None = None, safe_serialization: bool = True, save_function: Callable[..., Any] | None = None,
) -> None:  # fmt: skip
    """Write the tensors of an adapter by component ("" for none) into one file of a folder, whole or not at all. Other files there stay."""
    from ..checkpoints.adapters import LORA_NAMES
    from ..checkpoints.atomic import save_folder_atomic
    from ..checkpoints.files import inside
    from ..checkpoints.save import write_pickled, write_safetensors

    state = {f"{prefix}.{key}" if prefix else key: tensor for prefix, own in layers.items() for key, tensor in own.items()}
    if wrong := [key for key, tensor in state.items() if not isinstance(tensor, Tensor)]:
        raise InputError("Layers are tensors by name.", where=wrong[0], got=type(state[wrong[0]]).__name__, expected="a tensor")
    notes = {f"{prefix}.{key}" if prefix else key: v for prefix, own in metadata.items() for key, v in own.items()}
    if notes and not safe_serialization:
        raise InputError("Only safetensors files hold metadata.", where="safe_serialization", got=False, expected="True")
    if Path(folder).is_file():
        raise InputError("A file, where a folder should be.", where="save_directory", got=str(folder), fix="Name the file by weight_name.")
    inside(Path(folder), name := weight_name or LORA_NAMES[0 if safe_serialization else 1])
    header = {"format": "pt"} | ({METADATA: json.dumps(notes, indent=2, sort_keys=True, default=list)} if notes else {})
    with save_folder_atomic(folder) as target:
        (path := target / name).parent.mkdir(parents=True, exist_ok=True)
        if save_function is not None:
            save_function(state, path)
        elif safe_serialization:
            write_safetensors(path, state, header)
        else:
            write_pickled(path, state)


def _tensors(layers: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return layers.state_dict() if isinstance(layers, nn.Module) else layers


class LoraNetwork:
    """Mixed into networks. `load_lora_adapter` and the rest act on this network alone; a pipeline has methods of its own for all of its."""

    def _self(self) -> Components:
        return {"transformer" if "Transformer" in type(self).__name__ else "unet": _plain(self)}

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict: PathLike | Mapping[str, Any], prefix: str | None = None, hotswap: bool = False, *,
        adapter_name: str | None = None, strict: bool = True, network_alphas: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None, low_cpu_mem_usage: bool = False, **files: Any,
    ) -> Applied:  # fmt: skip
        """Load an adapter; of a file for several networks, `prefix` names the one whose tensors are meant. See `LoraPipeline.load_lora_weights`."""
        options = {"prefix": prefix, "alphas": network_alphas, "metadata": metadata, **files}
        components = self._self() if prefix is None else {prefix: _plain(self)}
        return _load(components, pretrained_model_name_or_path_or_dict, adapter_name, hotswap, strict, **options)  # type: ignore[arg-type]

    def save_lora_adapter(
        self, save_directory: PathLike, adapter_name: str = "default", upcast_before_saving: bool = False, safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:  # fmt: skip
        """Write one adapter, in float32 with `upcast_before_saving`."""
        _known(self._self(), adapter_name, "adapter_name")
        state, notes = _stored(next(iter(self._self().values())), adapter_name, upcast_before_saving)
        options = {"weight_name": weight_name, "safe_serialization": safe_serialization}
        save_lora(save_directory, {"": state}, {"": notes} if safe_serialization else {}, **options)

    def set_adapters(self, adapter_names: str | Sequence[str], weights: Weights = None) -> None:
        """Let these adapters count, each by a number, or numbers per block of a UNet."""
        _weigh(self._self(), adapter_names, weights, by_component=False)

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Let these adapters count, with the weights that they have."""
        known = lora.network_of(module := next(iter(self._self().values())))
        names = _known(self._self(), adapter_name, "adapter_name")
        with lora.whole(lora.layers_of(module, {})):
            lora.update(module, replace(known, active=tuple(names)))

    def active_adapters(self) -> list[str]:
        """The adapters that count."""
        return list(lora.network_of(next(iter(self._self().values()))).active)

    def enable_lora(self) -> None:
        """Let adapters count again after `disable_lora`."""
        _enable(self._self(), True)

    def disable_lora(self) -> None:
        """Compute without adapters; what is fused is taken out."""
        _enable(self._self(), False)

    enable_adapters, disable_adapters = enable_lora, disable_lora

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters and free their memory."""
        lora.delete(next(iter(self._self().values())), _known(self._self(), adapter_names))

    def unload_lora(self) -> None:
        """Remove all adapters. What is fused stays."""
        _unload(self._self())

    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: str | Sequence[str] | None = None) -> None:
        """Put adapters into private copies of the weights."""
        _fuse(self._self(), lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self) -> None:
        """Put the weights back that were there before."""
        lora.unfuse(next(iter(self._self().values())))

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """See `LoraPipeline.enable_lora_hotswap`."""
        _prepare(self._self(), target_rank, check_compiled)


class _ClassOrSelf:
    """A function that gets the class and, where it is called on an object, the object too."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.__doc__ = function, function.__doc__

    def __get__(self, instance: Any, owner: type) -> Callable[..., Any]:
        return partial(self.function, owner, instance)


class LoraPipeline:
    """Mixed into pipelines: adapters on the layers of its denoiser and text encoders. They belong to this pipeline: what `from_pipe` makes of it
    starts with them, and neither sees what the other changes then."""

    if TYPE_CHECKING:
        _progress: Mapping[str, Any]

        @property
        def components(self) -> dict[str, Any]: ...

    def _adaptable(self) -> dict[str, nn.Module]:
        found = {n: _plain(c) for n, c in self.components.items() if isinstance(c, nn.Module) and ADAPTABLE.fullmatch(n)}
        return dict(sorted(found.items(), key=lambda item: item[0].startswith("text_encoder")))  # the denoiser first

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: PathLike | Mapping[str, Any], adapter_name: str | None = None, hotswap: bool = False, *,
        strict: bool = True, network_alphas: Mapping[str, float] | None = None, low_cpu_mem_usage: bool = False, **files: Any,
    ) -> Applied:  # fmt: skip
        """Load an adapter onto the networks that it is for, where it counts from now on instead of others.
        Prints, unless progress bars are disabled, and returns how many of its tensors were applied.
        Args:
            pretrained_model_name_or_path_or_dict: a folder, hub id, file, or tensors by name.
            adapter_name: by default "default_0" and so on.
            hotswap: put it in the place of the loaded adapter of that name; see `enable_lora_hotswap`.
            strict: False leaves out tensors that belong to nothing, instead of an error.
            network_alphas: alphas by key, if they are not in the file.
            low_cpu_mem_usage: accepted from older programs.
            files: `weight_name`, `subfolder`, `use_safetensors`, and the hub's `revision`, `token`, `cache_dir`, `local_files_only`,
                `force_download` and `proxies`.
        Raises:
            CheckpointError: the file cannot be read, or does not fit the networks (AdapterError). InputError: the name is taken.
        """
        done = _load(
            self._adaptable(), pretrained_model_name_or_path_or_dict, adapter_name, hotswap, strict, alphas=network_alphas, **files
        )
        if not self._progress.get("disable"):
            print(done)
        return done

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: PathLike | Mapping[str, Any], **files: Any) -> Any:
        """The tensors of a file as they are, and None: alphas stay among them. With `return_lora_metadata` the file's metadata, too."""
        from ..checkpoints.adapters import read_adapter

        files.pop("unet_config", None)
        wanted = files.pop("return_lora_metadata", False)
        state = read_adapter(pretrained_model_name_or_path_or_dict, **files)
        return (state, None, state.metadata or None) if wanted else (state, None)

    @classmethod
    def load_lora_into_unet(
        cls, state_dict: Mapping[str, Tensor], network_alphas: Mapping[str, float] | None, unet: nn.Module, adapter_name: str | None = None,
        **_: Any,
    ) -> Applied:  # fmt: skip
        """Load those tensors of a dictionary that are for a denoiser."""
        return _load({"unet": _plain(unet)}, state_dict, adapter_name, False, False, alphas=network_alphas)

    @classmethod
    def load_lora_into_text_encoder(
        cls, state_dict: Mapping[str, Tensor], network_alphas: Mapping[str, float] | None, text_encoder: nn.Module,
        prefix: str | None = None, lora_scale: float = 1.0, adapter_name: str | None = None, **_: Any,
    ) -> Applied:  # fmt: skip
        """Load those tensors of a dictionary that are for a text encoder, whose keys begin with `prefix` ("text_encoder"), and weigh them."""
        components = {prefix or "text_encoder": _plain(text_encoder)}
        done = _load(components, state_dict, adapter_name, False, False, alphas=network_alphas)
        _weigh(components, done.adapter_name, lora_scale, by_component=False)
        return done

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Weights = None) -> None:
        """Let these adapters count, and no others.
        `adapter_weights` is a number (1 if None), one for each adapter, or a dictionary by component, whose values are numbers or, for a UNet,
        `{"down": 0.5, "mid": 1.0, "up": {"block_0": 0.2, "block_1": [0.4, 0.8, 1.0]}}`; what it does not name has 1. Raises InputError for
        names and weights that there is nothing for.
        """
        _weigh(self._adaptable(), adapter_names, adapter_weights, by_component=True)

    def get_active_adapters(self) -> list[str]:
        """The adapters that count."""
        return list(dict.fromkeys(n for module in self._adaptable().values() for n in lora.network_of(module).active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The adapters of each component that has any."""
        return {name: list(found) for name, module in self._adaptable().items() if (found := lora.network_of(module).weights)}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters and free their memory. Where none is left that counts, the first that is left does."""
        components = self._adaptable()
        names = _known(components, adapter_names)
        with _whole(components):
            for module in components.values():
                lora.delete(module, names)

    def enable_lora(self) -> None:
        """Let adapters count again after `disable_lora`."""
        _enable(self._adaptable(), True)

    def disable_lora(self) -> None:
        """Compute without adapters, until `enable_lora`; what is fused is taken out."""
        _enable(self._adaptable(), False)

    def fuse_lora(
        self, components: Sequence[str] | None = None, lora_scale: float = 1.0, safe_fusing: bool = False,
        adapter_names: str | Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Put adapters, by default those that count, into private copies of the weights of `components`, by default all; a step then costs no
        more than without. `safe_fusing` checks the result for values that are not finite. Pipelines that share the weights do not see it."""
        _fuse(self._chosen(components), lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Put the very weights back that were there before `fuse_lora`."""
        chosen = self._chosen(components)
        with _whole(chosen):
            for module in chosen.values():
                lora.unfuse(module)

    def _chosen(self, names: Sequence[str] | None) -> dict[str, nn.Module]:
        known = self._adaptable()
        wanted = list(known) if names is None else _names(names)
        if not wanted or (unknown := [name for name in wanted if name not in known]):
            raise InputError("No such component.", where="components", got=unknown if wanted else "none", expected=", ".join(known))
        return {name: known[name] for name in wanted}

    @property
    def fused_loras(self) -> set[str]:
        """The names of the adapters that are fused."""
        return {name for module in self._adaptable().values() for name in lora.network_of(module).fused}

    @property
    def num_fused_loras(self) -> int:
        return len(self.fused_loras)

    def unload_lora_weights(self) -> None:
        """Remove all adapters and free their memory. What is fused stays, until `unfuse_lora`."""
        _unload(self._adaptable())

    def set_lora_device(self, adapter_names: str | Sequence[str], device: torch.device | str | int) -> None:
        """Keep adapters on a device, such as "cpu" while they do not count. Those that count come back by themselves when they are needed."""
        _place(self._adaptable(), adapter_names, device)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Prepare for `load_lora_weights(..., hotswap=True)` without a new compilation, or with other ranks: adapters that are loaded from now on
        have room for `target_rank`. To be called before the first is loaded; `check_compiled` says what to do else: "error", "warn" or "ignore"."""
        _prepare(self._adaptable(), target_rank, check_compiled)

    @_ClassOrSelf
    def save_lora_weights(
        cls, self: Any, save_directory: PathLike, unet_lora_layers: Any = None, text_encoder_lora_layers: Any = None,
        text_encoder_2_lora_layers: Any = None, transformer_lora_layers: Any = None, *, is_main_process: bool = True,
        weight_name: str | None = None, save_function: Callable[..., Any] | None = None, safe_serialization: bool = True,
        adapter_name: str | None = None, **metadata: Any,
    ) -> None:  # fmt: skip
        """Write an adapter as `pytorch_lora_weights.safetensors` in a folder, whole or not at all.
        Called on a pipeline: the adapter `adapter_name`, by default the one that counts. On the class, or with layers: these, tensors by name
        (as PEFT's `get_peft_model_state_dict` gives them) or modules; `unet_lora_adapter_metadata` and so on hold their configurations.
        """
        given = {"unet": unet_lora_layers, "text_encoder": text_encoder_lora_layers, "text_encoder_2": text_encoder_2_lora_layers}
        given = {n: _tensors(v) for n, v in {**given, "transformer": transformer_lora_layers}.items() if v}
        notes = {
            name: metadata.pop(f"{name}_lora_adapter_metadata", None) or {} for name in (*given, "unet", "text_encoder", "text_encoder_2")
        }
        if metadata:
            raise InputError("No such argument.", where="save_lora_weights", got=", ".join(metadata))
        if not given and self is not None:
            components = self._adaptable()
            active = self.get_active_adapters()
            if adapter_name is None and len(active) != 1:
                raise InputError(
                    "Which adapter?", where="adapter_name", got=active, expected=", ".join(_loaded(components)) or "one to be loaded"
                )
            names = _known(components, active[0] if adapter_name is None else adapter_name, "adapter_name")
            found = {n: _stored(m, names[0]) for n, m in components.items() if names[0] in lora.network_of(m).weights}
            given, notes = {n: state for n, (state, _) in found.items()}, {n: own for n, (_, own) in found.items()}
        if not given:
            raise InputError("There is nothing to save.", where="save_lora_weights", expected="unet_lora_layers, or a loaded adapter")
        options: dict[str, Any] = {"weight_name": weight_name, "safe_serialization": safe_serialization, "save_function": save_function}
        save_lora(save_directory, given, {n: notes[n] for n in given} if safe_serialization else {}, **options)
