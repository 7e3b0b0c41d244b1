"""Adapters on the layers of one module tree. Weights below are left as they are: forks that share them do not notice.

A layer that carries adapters is of a class made from its own, `Adapted`, and keeps what it carries in one attribute, which is replaced, not changed;
so a fork starts with the adapters of its source and neither sees the other's changes. Names in `state_dict` stay what they were.
"""

from __future__ import annotations
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
import torch
from torch import Tensor, nn
from ..core.strength import THREAD
from ..errors import InputError
from .low_rank import Delta, LowRank

__all__ = [
    "Adapted", "Network", "adapted_layers", "adopt", "attach", "delete", "fuse", "layers_of", "move", "network_of", "prepare_hotswap", "swap",
    "unfuse", "update", "whole",
]  # fmt: skip

Weight = float | Mapping[str, float]  # of an adapter: one, or one for each part of the network, by what its layers' names contain


class Active(NamedTuple):
    """A delta that counts, by how much, and one of its tensors, which tells where they are."""

    delta: Delta
    scale: Any  # a number, or a tensor of one that can be changed in place
    probe: Tensor


@dataclass(frozen=True, eq=False)
class Slot:
    """One adapter in one layer. Where it can be swapped without a compiled graph noticing, `hot` are its tensors, padded with zeros to the largest
    rank, of which `delta` has views, and `scale` holds what they count."""

    delta: Any  # a Delta
    hot: Any = None  # a LowRank
    scale: Tensor | None = None
    counts: Any = field(init=False)  # the one that is applied
    probe: Tensor = field(init=False)  # one of its tensors

    def __post_init__(self) -> None:
        counts = self.hot or self.delta
        self.__dict__.update(counts=counts, probe=next(iter(counts.tensors().values())))


@dataclass(frozen=True, eq=False)
class Carried:
    """What a layer carries: adapters by name, those that count, and its own parameters, if others with adapters fused in are in their place."""

    slots: dict[str, Slot]
    active: tuple[Active, ...] = ()
    base: Mapping[str, nn.Parameter | None] = field(default_factory=dict)
    fused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """What a whole network knows of its adapters: the weight of each, in the order of loading, those that count, those that are fused."""

    weights: Mapping[str, Weight] = field(default_factory=dict)
    active: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    enabled: bool = True
    target_rank: int | None = None  # for swapping


class Adapted(nn.Module):
    """What is mixed into a layer's class."""

    _lora: Carried
    _plain: type[nn.Module]  # the layer's class without

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out, scale = super().forward(x, *args, **kwargs), THREAD.scale
        before: list[tuple[Delta, Any]] = []
        for delta, weight, _ in self._settled(x):
            weight = weight if scale == 1.0 else weight * scale
            out = delta.add(self, x, out, weight, before)
            before.append((delta, weight))
        return out

    def _settled(self, x: Tensor) -> tuple[Active, ...]:
        """The adapters that count, where and in the dtype that they are needed: the layer's weights may have been moved by others."""
        for _, _, probe in self._lora.active:
            if probe.device != x.device or (probe.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)):
                self.__dict__["_lora"] = _moved(self._lora, lambda t: t.to(x.device, x.dtype), active=True)
                break
        return self._lora.active

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for p in self._lora.base.values():
            if p is not None:
                p.data = fn(p.data)
        self.__dict__["_lora"] = _moved(self._lora, fn)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are made by way of the plain class, whose name can be found. What is swapped in place is not shared."""
        carried = self._lora
        if any(slot.hot is not None for slot in carried.slots.values()):
            carried = _moved(carried, torch.clone)
        return _blank, (self._plain,), {**self.__dict__, "_lora": carried}


_CLASSES: dict[Any, Any] = {}


def _adapted(kind: Any) -> Any:
    """The class that layers of this class have while they carry adapters."""
    return _CLASSES.get(kind) or _CLASSES.setdefault(
        kind, type(f"Adapted{kind.__name__}", (Adapted, kind), {"_plain": kind, "__module__": kind.__module__})
    )


def _blank(kind: type[nn.Module]) -> nn.Module:
    made = _adapted(kind)
    blank: nn.Module = made.__new__(made)
    return blank


def _map(delta: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    return replace(delta, **{role: fn(tensor) for role, tensor in delta.tensors().items()})


def _moved(carried: Carried, fn: Callable[[Tensor], Tensor], active: bool = False) -> Carried:
    """The same with other tensors: of all adapters, or of those that count."""
    counted = {id(a.delta) for a in carried.active}
    slots, now = {}, {}
    for name, slot in carried.slots.items():
        before = slot.counts
        if not active or id(before) in counted:
            if slot.hot is None:
                slot = Slot(_map(slot.delta, fn))
            else:
                hot = _map(slot.hot, fn)
                slot = Slot(_view(hot, slot.delta), hot, torch.clone(slot.scale).to(hot.down.device))  # type: ignore[arg-type]
        slots[name], now[id(before)] = slot, slot
    found = [(now[id(a.delta)], a.scale) for a in carried.active]
    return replace(carried, slots=slots, active=tuple(_active(slot, scale) for slot, scale in found))


def _view(hot: LowRank, like: LowRank) -> LowRank:
    """The part of padded tensors that `like` has filled."""
    return replace(like, down=hot.down[: like.rank], up=hot.up[:, : like.rank])


def _active(slot: Slot, weight: Any) -> Active:
    return Active(slot.counts, weight if slot.scale is None else slot.scale, slot.probe)


def network_of(module: nn.Module) -> Network:
    """What a network knows of its adapters."""
    return module.__dict__.get("_lora_network") or Network()


def adopt(module: nn.Module) -> nn.Module:
    """The network; if it is made of parts of another, it knows of the adapters that they carry from now on."""
    if "_lora_network" not in module.__dict__:
        weights: dict[str, dict[str, float]] = {}
        active, fused = dict[str, None](), dict[str, None]()
        for path, layer in adapted_layers(module):
            fused |= dict.fromkeys(layer._lora.fused)
            for name, slot in layer._lora.slots.items():
                own = weights.setdefault(name, {})
                scale = next((a.scale for a in layer._lora.active if a.delta is slot.counts), None)
                own[path] = 1.0 if scale is None else float(scale) / (1.0 if slot.scale is None else slot.delta.gain)
                active |= {} if scale is None else {name: None}
        module.__dict__["_lora_network"] = Network(weights, tuple(active), tuple(fused))
    return module


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """The layers of a network that carry adapters, each once, by dotted name."""
    stack, seen = [("", module)], set[int]()
    while stack:
        path, part = stack.pop()
        if "_lora" in part.__dict__ and id(part) not in seen:
            seen.add(id(part))
            yield path, part  # type: ignore[misc]
        for name, child in reversed(part._modules.items()):
            if child is not None:
                stack.append((f"{path}.{name}" if path else name, child))


@contextmanager
def whole(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Changes of the adapters on these networks and layers, which are taken back if anything is raised inside."""
    names = ("_lora", "_lora_network", "_parameters")
    kept = [(m, m.__class__, {n: m.__dict__[n] for n in names if n in m.__dict__}) for m in modules]
    kept = [(m, kind, state | {"_parameters": dict(state["_parameters"])}) for m, kind, state in kept]
    slots = [slot for _, _, state in kept if "_lora" in state for slot in state["_lora"].slots.values()]
    scales = [(slot.scale, float(slot.scale)) for slot in slots if slot.scale is not None]
    try:
        yield
    except BaseException:
        for module, kind, state in kept:
            module.__class__ = kind
            for name in names:
                module.__dict__.pop(name, None)
            module.__dict__.update(state)
        for scale, value in scales:
            scale.fill_(value)
        raise


def _put(layer: nn.Module, carried: Carried) -> None:
    """Let a layer carry this, or be plain again if it is nothing."""
    if carried.slots or carried.base:
        layer.__dict__["_lora"] = carried
        if not isinstance(layer, Adapted):
            layer.__class__ = _adapted(type(layer))
    elif isinstance(layer, Adapted):
        layer.__class__ = layer._plain  # type: ignore[assignment]
        del layer.__dict__["_lora"]


def _weight(weight: Weight, path: str) -> float:
    """The weight of an adapter in the layer `path`. Layers of a block beside its attention take that of the attention of their number."""
    if not isinstance(weight, Mapping):
        return weight
    if path in weight:
        return weight[path]
    if (found := next((w for part, w in weight.items() if part in path), None)) is not None:
        return found
    block = path.split(".")
    return weight.get(f"{block[0]}.{block[1]}.attentions.{block[3]}", 1.0) if len(block) > 3 else 1.0


def update(module: nn.Module, network: Network, layers: Iterable[tuple[str, Adapted]] | None = None) -> None:
    """Let a network's adapters count as `network` says. To be called inside `whole`. `layers` are its `adapted_layers`, if known."""
    counted = [n for n in network.active if n not in network.fused] if network.enabled else []
    for path, layer in adapted_layers(module) if layers is None else layers:
        carried, active = layer._lora, []
        for name in counted:
            if (slot := carried.slots.get(name)) is not None:
                weight = _weight(network.weights[name], path)
                if slot.scale is not None:
                    slot.scale.fill_(weight * slot.delta.gain)
                active.append(_active(slot, weight))
        if [(id(a.delta), a.scale) for a in active] == [(id(a.delta), a.scale) for a in carried.active]:
            continue  # a compiled graph knows these objects
        layer.__dict__["_lora"] = Carried(carried.slots, tuple(active), carried.base, carried.fused)
    module.__dict__["_lora_network"] = network


def _fitted(delta: Delta, layer: Any) -> Delta:
    """A delta in the dtype of a layer that computes in floating point, where the layer is."""
    weight = layer.weight
    dtype = weight.dtype if weight.is_floating_point() and weight.itemsize > 1 else None
    fitted: Delta = _map(delta, lambda t: t.to(None if weight.is_meta else weight.device, dtype))
    return fitted


def _slot(delta: Delta, target_rank: int | None, where: str) -> Slot:
    if target_rank is None:
        return Slot(delta)
    if not isinstance(delta, LowRank) or delta.mid is not None or delta.dora_scale is not None or delta.bias is not None:
        raise InputError("Only plain LoRA can be swapped.", where=where, got=delta.kind, fix="Load it without enable_lora_hotswap.")
    if delta.rank > target_rank:
        fix = "Call enable_lora_hotswap with the largest rank of all adapters, before the first is loaded."
        raise InputError("The adapter's rank is above that for swapping.", where=where, got=delta.rank, expected=f"{target_rank}", fix=fix)
    down = delta.down.new_zeros(target_rank, *delta.down.shape[1:])
    up = delta.up.new_zeros(delta.up.shape[0], target_rank, *delta.up.shape[2:])
    down[: delta.rank], up[:, : delta.rank] = delta.down, delta.up
    hot = replace(delta, down=down, up=up, alpha=None)  # what it counts by is in the scale
    return Slot(_view(hot, delta), hot, torch.tensor(1.0, device=hot.down.device))


def attach(module: nn.Module, deltas: Mapping[str, Delta], name: str) -> None:
    """Give layers of a network, by dotted name, an adapter, which is then the one that counts. To be called inside `whole`."""
    network = network_of(module)
    for path, delta in deltas.items():
        layer = module.get_submodule(path)
        carried = layer._lora if isinstance(layer, Adapted) else Carried({})
        slot = _slot(_fitted(delta, layer), network.target_rank, path)
        _put(layer, replace(carried, slots={**carried.slots, name: slot}))
    update(module, replace(network, weights={**network.weights, name: 1.0}, active=(name,), enabled=True))


def layers_of(module: nn.Module, deltas: Mapping[str, Delta]) -> list[nn.Module]:
    """The modules that `attach` and `swap` change."""
    return [module, *(module.get_submodule(path) for path in deltas), *(layer for _, layer in adapted_layers(module))]


def swap(module: nn.Module, deltas: Mapping[str, Delta], name: str) -> None:
    """Put other deltas in the place of an adapter's; what counts, and by how much, stays. After `prepare_hotswap` no object changes but the values
    of tensors: layers without a new delta get zeros. To be called inside `whole`."""
    network = network_of(module)
    if name in network.fused:
        raise InputError("The adapter is fused.", where=name, fix="Call unfuse_lora first.")
    there = {path: layer for path, layer in adapted_layers(module) if name in layer._lora.slots}
    if new := sorted(deltas.keys() - there.keys()):
        what = "The adapter to be swapped in changes layers that the other does not."
        raise InputError(what, where=new[0], got=f"{len(new)} of them", expected="the same layers, or fewer")
    if network.target_rank is None:
        for path, layer in there.items():
            rest = {n: s for n, s in layer._lora.slots.items() if n != name}
            own = {name: Slot(_fitted(deltas[path], layer))} if path in deltas else {}
            order = {n: {**rest, **own}[n] for n in layer._lora.slots if n in rest or n in own}
            _put(layer, replace(layer._lora, slots=order))
        return update(module, network)
    fresh = {path: _slot(_fitted(delta, there[path]), network.target_rank, path) for path, delta in deltas.items()}
    slots = {path: layer._lora.slots[name] for path, layer in there.items()}
    if frozen := next((path for path, slot in slots.items() if slot.hot is None), None):
        raise InputError(
            "This adapter was loaded before swapping was prepared.", where=frozen, fix="Load it again after enable_lora_hotswap."
        )
    before = {path: (slot, slot.hot.down.clone(), slot.hot.up.clone()) for path, slot in slots.items()}
    try:
        for path, (slot, _, _) in before.items():
            made = fresh[path].hot if path in fresh else None
            slot.hot.down.copy_(made.down) if made is not None else slot.hot.down.zero_()
            slot.hot.up.copy_(made.up) if made is not None else slot.hot.up.zero_()
            like = fresh[path].delta if path in fresh else slot.delta
            there[path]._lora.slots[name] = Slot(_view(slot.hot, like), slot.hot, slot.scale)
        update(module, network)
    except BaseException:
        for path, (slot, down, up) in before.items():
            slot.hot.down.copy_(down)
            slot.hot.up.copy_(up)
            there[path]._lora.slots[name] = slot
        update(module, network)
        raise


def move(layer: Adapted, name: str, device: torch.device) -> None:
    """Take one adapter of a layer to a device."""
    if (slot := layer._lora.slots.get(name)) is not None:
        alone = _moved(Carried({name: slot}), lambda t: t.to(device)).slots[name]
        carried = layer._lora
        active = tuple(_active(alone, a.scale) if a.delta is slot.counts else a for a in carried.active)
        layer.__dict__["_lora"] = replace(carried, slots={**carried.slots, name: alone}, active=active)


def prepare_hotswap(module: nn.Module, target_rank: int) -> None:
    """Adapters that are loaded from now on can be swapped in place, if their rank is `target_rank` or less."""
    module.__dict__["_lora_network"] = replace(network_of(module), target_rank=target_rank)


def delete(module: nn.Module, names: Sequence[str]) -> None:
    """Take adapters off a network. Where none is left that counts, the first that is left does. What is fused stays so until `unfuse`."""
    network = network_of(module)
    with whole(layers_of(module, {})):
        for _, layer in adapted_layers(module):
            _put(layer, replace(layer._lora, slots={n: s for n, s in layer._lora.slots.items() if n not in names}, active=()))
        weights = {n: w for n, w in network.weights.items() if n not in names}
        active = tuple(n for n in network.active if n not in names)
        active = active or (tuple(weights)[:1] if network.active else ())
        update(module, replace(network, weights=weights, active=active))


def fuse(module: nn.Module, names: Sequence[str] | None = None, scale: float = 1.0, safe: bool = False) -> None:
    """Replace the weights of this tree's layers by copies with adapters in them; by default those that count. `safe` checks that they are finite.
    Raises InputError for weights that are not of floating point, or results that are not finite, and changes nothing then."""
    network = network_of(module)
    names = [n for n in (network.active if names is None else names) if n in network.weights and n not in network.fused]
    with whole(layers_of(module, {})):
        for path, layer in adapted_layers(module):
            carried = layer._lora
            if not any(n in carried.slots for n in names):
                continue
            net: Any = layer
            own, bias = net.weight, getattr(net, "bias", None)
            base: dict[str, Any] = dict(carried.base) or {"weight": own, **({} if bias is None else {"bias": bias})}
            bias = None if bias is None else bias.detach()
            if not own.is_floating_point() or own.itemsize < 2:
                raise InputError("Adapters cannot be fused into quantised weights.", where=path, got=own.dtype, fix="Use them unfused.")
            weight, kept = own.detach(), bias
            for name in names:
                if (slot := carried.slots.get(name)) is not None:
                    weight, bias = slot.delta.merged(weight, bias, _weight(network.weights[name], path) * scale, base["weight"].detach())
            if safe and not (weight.isfinite().all() and (bias is None or bias.isfinite().all())):
                raise InputError("Fused weights would not be finite.", where=path, got=", ".join(names), fix="Use a lower weight.")
            layer._parameters["weight"] = nn.Parameter(weight, own.requires_grad)
            if bias is not None and bias is not kept:
                base.setdefault("bias", None)
                layer._parameters["bias"] = nn.Parameter(bias, own.requires_grad)
            layer.__dict__["_lora"] = replace(carried, base=base, fused=(*carried.fused, *(n for n in names if n in carried.slots)))
        update(module, replace(network, fused=(*network.fused, *names)))


def unfuse(module: nn.Module) -> None:
    """Put the very parameters back that were there before `fuse`."""
    network = network_of(module)
    with whole(layers_of(module, {})):
        for _, layer in adapted_layers(module):
            for name, own in layer._lora.base.items():
                now: Any = layer._parameters[name]
                if own is not None and (own.dtype, own.device) != (now.dtype, now.device):  # a fork that was cast
                    own = nn.Parameter(own.detach().to(now), own.requires_grad)
                layer._parameters[name] = own
            _put(layer, replace(layer._lora, base={}, fused=()))
        update(module, replace(network, fused=()))
