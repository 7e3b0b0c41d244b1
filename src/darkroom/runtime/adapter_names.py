"""What the tensors of adapter files are called, and the layers that they belong to.

A key is a prefix that says which component, a layer's name and a tail that says which tensor it is. Layers are looked up in tables made from
the component's own modules: nothing is guessed from a name.
"""

from __future__ import annotations
import difflib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
import torch
from torch import Tensor, nn
from ..errors import AdapterError
from .low_rank import OFT, Delta, Difference, LoHa, LoKr, LowRank, weight_shape

__all__ = ["Parsed", "parse"]

Originals = Mapping[str, Callable[[Iterable[str]], Mapping[str, str]]]  # component -> a function: our tensors' names -> original name: ours

# ---- tails

_NAME = r"(?:\.(?!(?:weight|bias)$)[^.]+)?"  # PEFT may put the adapter's name before the last part
TAILS: list[tuple[str, str, str, str]] = [  # scheme ("" where any has it), kind ("" where any has it), role, what follows a layer's name
    ("kohya", "lora", "down", r"lora_down\.weight"),
    ("kohya", "lora", "up", r"lora_up\.weight"),
    ("kohya", "lora", "mid", r"lora_mid\.weight"),
    ("diffusers", "lora", "down", r"lora(?:_linear_layer)?\.down\.weight"),
    ("diffusers", "lora", "up", r"lora(?:_linear_layer)?\.up\.weight"),
    ("PEFT", "lora", "down", rf"lora_A{_NAME}\.weight"),
    ("PEFT", "lora", "up", rf"lora_B{_NAME}\.weight"),
    ("PEFT", "lora", "bias", rf"lora_B{_NAME}\.bias"),
    ("", "", "magnitude", rf"lora_magnitude_vector{_NAME}(?:\.weight)?"),
    ("", "", "alpha", r"alpha"),
    ("", "", "dora_scale", r"dora_scale"),
    *(("", "loha", role, rf"hada_{role}{_NAME}") for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(("", "lokr", role, rf"lokr_{role}{_NAME}") for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    ("PEFT", "oft", "in", rf"oft_R{_NAME}\.weight"),
    ("kohya", "oft", "skew", r"oft_blocks"),
    ("kohya", "oft", "blocks", r"oft_diag"),
    ("kohya", "oft", "rescale", r"rescale"),
    ("kohya", "diff", "change", r"(?:diff|w_norm)"),
    ("kohya", "", "diff_b", r"(?:diff_b|b_norm)"),
    ("plain", "diff", "change", r"weight"),  # with a prefix of kohya's only: else these are a network's weights, no change of them
    ("plain", "", "diff_b", r"bias"),
]  # fmt: skip
_TAIL = re.compile(r"(.+?)[._](?:" + "|".join(f"(?P<row{i}>{row[3]})" for i, row in enumerate(TAILS)) + ")", re.DOTALL)

# ---- prefixes and layers

DENOISER = ("unet", "transformer", "prior")  # what a prefix that names no component means: the first of these that there is
PREFIXES = {
    "lora_unet": "", "lora_transformer": "", "lycoris": "", "diffusion_model": "", "model.diffusion_model": "",
    "clip_l.transformer": "text_encoder", "clip_g.transformer": "text_encoder_2",
    "lora_te": "text_encoder", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2", "lora_te3": "text_encoder_3",
}  # fmt: skip
COMPONENTS = ("unet", "transformer", "prior", "controlnet", "text_encoder", "text_encoder_2", "text_encoder_3")
_SHELL = re.compile(r"^(?:base_model\.model\.|module\.|text_encoders\.)+")  # what wraps a whole network, or several
_FLAT = ("lora_", "lycoris_")  # prefixes that only adapters have
_PREFIX = re.compile("^(" + "|".join(re.escape(p) for p in sorted(PREFIXES, key=len, reverse=True)) + r")[._]")
RENAMES = [(re.compile(pattern), new) for pattern, new in (  # tried in turn, each on what the last one made, until there is such a layer
    (_SHELL, ""), (r"\.processor(?=\.)", ""), (r"\.temporal_transformer(?=\.)", ""),
    (r"\.attention_blocks\.0(?=\.)", ".attn1"), (r"\.attention_blocks\.1(?=\.)", ".attn2"),
    (r"\.to_out$", ".to_out.0"), (r"\.to_([qkv])$", r".\1_proj"), (r"\.to_out\.0$", ".out_proj"),
)]  # fmt: skip


class Names:
    """The layers of a component: their shapes, and every name that a file may have for them."""

    def __init__(self, component: str, module: nn.Module, originals: Originals):
        self.shapes = {name: shape for name, part in module.named_modules() if (shape := weight_shape(part)) is not None}
        self.table: dict[str, str | None] = {}
        for name in self.shapes:
            forms = {name}
            if component.startswith("text_encoder"):  # a level that transformers has dropped for some classes
                forms |= {"text_model." + name, name.removeprefix("text_model.")}
            for form in forms | {form.replace(".", "_") for form in forms}:
                self.table[form] = name if self.table.get(form, name) == name else None  # two layers of one name are none
        self.originals = originals.get(component)

    def find(self, name: str) -> str | None:
        """The layer that a file calls `name`."""
        found = self._look(name)
        if found is None and self.originals is not None:  # made when first needed
            for theirs, ours in self.originals([f"{layer}.weight" for layer in self.shapes]).items():
                for form in (theirs.removesuffix(".weight"), theirs.removesuffix(".weight").replace(".", "_")):
                    self.table.setdefault(form, ours.removesuffix(".weight"))
            self.originals, found = None, self._look(name)
        return found

    def _look(self, name: str) -> str | None:
        if found := self.table.get(name):
            return found
        for pattern, new in RENAMES:
            name, changes = pattern.subn(new, name)
            if changes and (found := self.table.get(name)):
                return found
        return None


# ---- what comes out


@dataclass(frozen=True)
class Parsed:
    """The changes that a file makes, by component and layer.

    `ignored` has the keys that belong to no layer, with the reason; `counts` how many tensors of the file each component gets, and how many were
    meant for it; `format` names the schemes of the file's keys.
    """

    deltas: dict[str, dict[str, Delta]]
    ignored: dict[str, str]
    counts: dict[str, tuple[int, int]]
    format: str
    names: Mapping[str, Names] = field(repr=False)

    @property
    def total(self) -> int:
        """The tensors of the file that were meant for any component."""
        return sum(meant for _, meant in self.counts.values())

    def nearest(self, key: str, count: int = 3) -> list[str]:
        """The names of layers that look most like the one in `key`, with their component."""
        return _nearest(key, self.names, count)


def _nearest(key: str, names: Mapping[str, Names], count: int = 3) -> list[str]:
    if tail := _TAIL.fullmatch(key):
        key = tail[1]
    key = _PREFIX.sub("", _SHELL.sub("", key)).replace(".", "_")
    known = {f"{c}.{layer}".replace(".", "_"): f"{c}.{layer}" for c, own in names.items() for layer in own.shapes}
    return [known[match] for match in difflib.get_close_matches(key, known, count, 0.3)]


class _Found(NamedTuple):
    key: str
    value: Tensor
    scheme: str
    kind: str


class _Layer(NamedTuple):
    """A layer that a file changes: where it is, for messages, its shape, and what the file has for it by role."""

    where: str
    shape: tuple[int, ...]
    parts: dict[str, _Found]

    def wrong(self, what: str, role: str, expected: object, fix: str | None = None) -> AdapterError:
        found = self.parts[role]
        return AdapterError(what, where=self.where, got=f"{found.key}: {tuple(found.value.shape)}", expected=expected, fix=fix)

    def get(self, role: str) -> Tensor | None:
        return self.parts[role].value if role in self.parts else None

    def need(self, *roles: str) -> list[Tensor]:
        """The tensors of these roles. Raises AdapterError if one is not there."""
        if lost := [role for role in roles if role not in self.parts]:
            got = ", ".join(found.key for found in self.parts.values())
            raise AdapterError(
                "Half of a pair.", where=self.where, got=got, expected="also " + " and ".join(lost), fix="The file is not whole."
            )
        return [self.parts[role].value for role in roles]

    def fit(self, role: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of a role in a shape that differs by axes of one element at most. Raises AdapterError if it has another."""
        value = self.parts[role].value
        if [n for n in value.shape if n != 1] != [n for n in shape if n != 1] or value.shape[:1] != shape[:1]:
            fix = "The adapter is for another base model; load it into a pipeline of that one."
            raise self.wrong("A tensor does not fit its layer.", role, shape, fix)
        return value.reshape(shape)


def parse(
    state: Mapping[str, Tensor], components: Mapping[str, nn.Module], *, metadata: Mapping[str, Any] | None = None,
    alphas: Mapping[str, float] | None = None, strict: bool = True, originals: Originals | None = None,
) -> Parsed:  # fmt: skip
    """What the tensors of an adapter file change in the layers of `components`, such as {"unet": ..., "text_encoder": ...}, of which only the
    layers' names and shapes are read.

    Args:
        metadata: PEFT's configuration, alone, under `adapter_config.json`, or as text under `lora_adapter_metadata`, as safetensors files have it.
        alphas: values for layers whose alpha is not in `state`, by key; without any, alpha is the rank.
        strict: raise if a key belongs to no layer; False lists it in `ignored`.
        originals: component -> function from our tensors' names to {name in the original layout: ours}; `checkpoints.layouts.NAMES` is one.
    Raises:
        AdapterError: no key matches, or not all do; a tensor has another shape than its layer, is not finite or has no partner; two schemes
            of names, or two adapters, for one layer.
    """
    names = {component: Names(component, module, originals or {}) for component, module in components.items()}
    layers: dict[tuple[str, str], dict[str, _Found]] = defaultdict(dict)
    ignored: dict[str, str] = {}
    total, applied, schemes = dict.fromkeys(components, 0), dict.fromkeys(components, 0), set()
    given = {**state, **{_alpha_key(key): torch.tensor(float(value)) for key, value in (alphas or {}).items()}}
    for key, value in given.items():
        component, layer, (scheme, kind, role, _), why = _place(key, names)
        if component in names:
            total[component] += key in state
        if component is None or layer is None:
            ignored[key] = why
            continue
        _check(key, value, role, f"{component}.{layer}")
        parts = layers[component, layer]
        if role in parts and not (parts[role].value.shape == value.shape and torch.equal(parts[role].value, value)):
            got = f"{parts[role].key} and {key}"
            raise AdapterError("Two tensors for one place.", where=f"{component}.{layer}", got=got, expected="one adapter in one naming")
        parts.setdefault(role, _Found(key, value, scheme, kind))
        applied[component] += key in state
        schemes.add(scheme)
    if not layers or (strict and ignored):
        raise _unmatched(given, ignored, names)
    deltas: dict[str, dict[str, Delta]] = {component: {} for component in components}
    configs = _configs(metadata)
    for (component, layer), parts in layers.items():
        place = _Layer(f"{component}.{layer}", names[component].shapes[layer], parts)
        deltas[component][layer] = _delta(place, layer, configs.get(component, configs.get("", {})))
    counts = {component: (applied[component], total[component]) for component in components}
    return Parsed(deltas, ignored, counts, " and ".join(sorted(schemes - {"", "plain"})) or "LyCORIS", names)


def _place(key: str, names: Mapping[str, Names]) -> tuple[str | None, str | None, tuple[str, str, str, str], str]:
    """The component and the layer that a key is for, None where there is none, the tail's row, and why there is none."""
    if (tail := _TAIL.fullmatch(_alpha_key(key) if key.endswith(".alpha") else key)) is None:
        return None, None, ("",) * 4, "no tensor of an adapter"
    row = TAILS[int(str(tail.lastgroup)[3:])]
    component, name = _component(tail[1], names)
    if row[0] == "plain" and not key.startswith(_FLAT):
        return component, None, row, "a weight, not a change of one"
    if component is None or component not in names:
        return component, None, row, f"there is no {component or 'such component'}"
    return component, names[component].find(name), row, f"no such layer in {component}"


def _alpha_key(key: str) -> str:
    """The key that a file would have for an alpha that is given beside it, which may be named after a tensor."""
    bare = key.removesuffix(".alpha")
    tail = _TAIL.fullmatch(bare)
    return (tail[1] if tail else bare) + ".alpha"


def _component(name: str, names: Mapping[str, Names]) -> tuple[str | None, str]:
    """The component that a key without its tail is for, None if none is to be found, and the layer's name in it."""
    name = _SHELL.sub("", name)
    bare = "" if len(names) != 1 else next(iter(names))
    bare = next((part for part in DENOISER if part in names), bare)
    if found := _PREFIX.match(name):
        return PREFIXES[found[1]] or bare or None, name[found.end() :]
    first, _, rest = name.partition(".")
    if rest and (first in names or first in COMPONENTS) and not (bare and name in names[bare].table):
        return first, rest
    return bare or None, name


def _check(key: str, value: object, role: str, where: str) -> None:
    if not isinstance(value, Tensor):
        raise AdapterError("No tensor.", where=where, got=f"{key}: {type(value).__name__}", expected="a tensor")
    if role == "alpha" and value.numel() != 1:
        raise AdapterError("An alpha that is no number.", where=where, got=f"{key}: {tuple(value.shape)}", expected="one number")
    if role != "alpha" and not value.is_floating_point():  # what is quantised has its scales elsewhere
        raise AdapterError("A tensor of whole numbers.", where=where, got=f"{key}: {value.dtype}", expected="a floating-point type")
    wide = value.float() if value.itemsize == 1 else value
    if not math.isfinite(wide.sum(dtype=torch.float32)) and not torch.isfinite(wide).all():  # the sum is quicker
        raise AdapterError("Numbers that are not finite.", where=where, got=key, fix="The file is damaged, or its training failed.")


def _unmatched(state: Mapping[str, Tensor], ignored: Mapping[str, str], names: Mapping[str, Names]) -> AdapterError:
    shown = list(ignored)[:3]
    got = ", ".join(f"{key[:120]} ({ignored[key]})" for key in shown) or "no tensors"
    near = dict.fromkeys(name for key in shown[:2] for name in _nearest(key[:200], names))
    what = f"{len(ignored)} of {len(state)} tensors of the adapter belong to no layer." if state else "The adapter is empty."
    fix = "The adapter is for another model, or no LoRA."
    if len(ignored) < len(state):
        fix = "The adapter is for another model; strict=False applies what does match."
    return AdapterError(what, where=", ".join(names), got=got, expected="names like " + ", ".join(near) if near else None, fix=fix)


# ---- changes


_PATTERN = re.compile(r"(?!.*\.\*.*\.\*.*\.\*)(?:\\[.dw]|\[[\w-]+\]|\.\*|[\w.^$-]){1,300}")  # what cannot take long to match


def _configs(metadata: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """PEFT's configurations by component, "" for all."""
    content: Any = dict(metadata or {})
    if isinstance(text := content.pop("lora_adapter_metadata", None), str):
        try:
            own = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AdapterError("Metadata that is no JSON.", where="lora_adapter_metadata", got=str(error)) from None
        content |= own if isinstance(own, dict) else {}
    beside = content.pop("adapter_config.json", None)
    content = {key: value for key, value in content.items() if not isinstance(value, str)}  # other text of the header says nothing to us
    content = {**(beside if isinstance(beside, dict) else {}), **content}
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in content.items():
        component, _, option = str(key).rpartition(".")
        found[component][option] = value
    return dict(found)


def _alpha(place: _Layer, layer: str, config: Mapping[str, Any]) -> float | None:
    """The alpha of a layer: the file's, PEFT's for names like it, PEFT's, None."""
    if (value := place.get("alpha")) is not None:
        return float(value)
    patterns, alpha = config.get("alpha_pattern") or {}, config.get("lora_alpha", config.get("alpha"))
    if not isinstance(patterns, dict) or not all(map(_PATTERN.fullmatch, patterns)):
        raise AdapterError("Patterns that are not read.", where="alpha_pattern", got=patterns, expected="names of layers, or parts of some")
    chosen = next((value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)), None)
    alpha = alpha if chosen is None else chosen
    return None if alpha is None else _number(alpha, "alpha", -1e6, 1e6)


def _number(value: object, option: str, least: float, most: float) -> float:
    if not isinstance(value, (int, float)) or not least <= value <= most:
        raise AdapterError("A configuration that cannot be used.", where=option, got=value, expected=f"a number from {least:g} to {most:g}")
    return float(value)


def _norms(place: _Layer) -> Tensor | None:
    """The norms of DoRA as (out, 1, ...) or (1, in, 1, ...): PEFT's are of rows, others have the shape that says which they are of."""
    (out, *rest), ones = place.shape, (1,) * (len(place.shape) - 2)
    if "magnitude" in place.parts:
        value = place.parts["magnitude"].value
        if value.numel() != out:
            raise place.wrong("Norms of another number of rows.", "magnitude", out)
        return value.reshape(out, 1, *ones)
    if (scale := place.get("dora_scale")) is None:
        return None
    if scale.ndim > 1 and scale.shape[0] == 1 and rest and scale.numel() == rest[0]:
        return scale.reshape(1, rest[0], *ones)
    if scale.numel() != out or (scale.ndim and scale.shape[0] != out):
        raise place.wrong("Norms of another number of rows.", "dora_scale", (out, 1, *ones))
    return scale.reshape(out, 1, *ones)


def _delta(place: _Layer, layer: str, config: Mapping[str, Any]) -> Delta:
    """The change that a file makes of a layer. Raises AdapterError if its tensors do not belong together, or not to this layer."""
    found = place.parts.values()
    kinds, schemes = {part.kind for part in found} - {""}, {part.scheme for part in found} - {"", "plain"}
    for what, each in (("naming scheme", schemes), ("kind of change", kinds)):
        if len(each) > 1:
            got, expected = ", ".join(part.key for part in found), "one of " + ", ".join(sorted(each))
            raise AdapterError(f"More than one {what} for one layer.", where=place.where, got=got, expected=expected)
    if not kinds and "diff_b" not in place.parts:
        place.need("down", "up")
    kind = min(kinds, default="diff")
    if kind != "diff" and len(place.shape) < 2:
        raise place.wrong("A change of a matrix for a layer that has none.", next(iter(place.parts)), place.shape)
    made, apart = BUILD[kind](place, layer, config), {"alpha", *(("diff_b",) if kind in ("lora", "loha", "lokr") else ())}
    if len(made.tensors()) != len(place.parts.keys() - apart):
        got = ", ".join(part.key for part in found)
        raise AdapterError("Tensors that mean nothing together.", where=place.where, got=got, expected=", ".join(made.tensors()))
    if kind == "diff" or "diff_b" not in place.parts:
        return made
    own = place.fit("diff_b", place.shape[:1])  # which alpha does not scale
    return replace(made, bias=own / made.gain) if made.gain else Difference(None, own)  # type: ignore[type-var]


def _paired(place: _Layer, inner: str, outer: str, axis: int = 1) -> int:
    """The rank that two tensors have in common: the first's first axis, the second's `axis`."""
    a, b = place.need(inner, outer)
    rank = a.shape[0] if a.ndim > 1 else 0
    if not rank or b.ndim < 2 or b.shape[axis] != rank:
        raise place.wrong("The two halves have different ranks.", outer, f"{rank} in axis {axis}, as {place.parts[inner].key}")
    return rank


def _lora(place: _Layer, layer: str, config: Mapping[str, Any]) -> Delta:
    rank, (out, inner, *kernel), ones = _paired(place, "down", "up"), place.shape, (1,) * (len(place.shape) - 2)
    mid = place.fit("mid", (rank, rank, *kernel)) if "mid" in place.parts else None
    down, up = place.fit("down", (rank, inner, *(kernel if mid is None else ones))), place.fit("up", (out, rank, *ones))
    bias = place.fit("bias", (out,)) if "bias" in place.parts else None
    return LowRank(down, up, _alpha(place, layer, config), mid, _norms(place), bias, bool(config.get("use_rslora")))


def _loha(place: _Layer, layer: str, config: Mapping[str, Any]) -> Delta:
    made: dict[str, Any] = {}
    (out, inner, *kernel), cores = place.shape, {"t1", "t2"} & place.parts.keys()
    if cores:
        place.need("t1", "t2")
    rank = _paired(place, "w1_b", "w2_b", 0)
    for a, b, core in (("w1_a", "w1_b", "t1"), ("w2_a", "w2_b", "t2")):
        _paired(place, b, a, 0 if cores else 1)
        made[a] = place.fit(a, (rank, out) if cores else (out, rank))
        made[b] = place.fit(b, (rank, inner) if cores else (rank, inner * math.prod(kernel)))
        made[core] = place.fit(core, (rank, rank, *kernel)) if cores else None
    return LoHa(**made, alpha=_alpha(place, layer, config), dora_scale=_norms(place))


def _lokr(place: _Layer, layer: str, config: Mapping[str, Any]) -> Delta:
    (out, inner, *kernel), made, core = place.shape, {}, "t2" in place.parts
    for side in ("w1", "w2"):
        if side not in place.parts:
            place.need(f"{side}_a", f"{side}_b")
            _paired(place, f"{side}_b", f"{side}_a", 0 if core and side == "w2" else 1)
    ends = [place.parts[role].value for role in ("w1", "w1_a", "w1_b") if role in place.parts]
    a, c = (ends[0].shape[0], ends[-1].shape[1]) if all(end.ndim == 2 for end in ends) else (0, 0)
    b, d, rank = out // max(a, 1), inner // max(c, 1), 0
    if a * b != out or c * d != inner:
        fix = "The adapter is for another base model; load it into a pipeline of that one."
        role = "w1" if "w1" in place.parts else "w1_a"
        raise place.wrong("A factor does not divide its layer.", role, f"divisors of {out} and {inner}", fix)
    shapes: dict[str, tuple[int, ...]] = {"w1": (a, c), "w2": (b, d, *kernel)}
    for side, rows, columns in (("w1", a, c), ("w2", b, d * math.prod(kernel))):
        if f"{side}_b" in place.parts:
            rank = len(place.parts[f"{side}_b"].value)
            shapes |= {f"{side}_a": (rows, rank), f"{side}_b": (rank, columns)}
    if core:
        shapes |= {"w2_a": (rank, b), "w2_b": (rank, d), "t2": (rank, rank, *kernel)}
    made = {role: place.fit(role, shape) for role, shape in shapes.items() if role in place.parts}
    alpha = _alpha(place, layer, config)
    if not rank:  # two whole factors: LyCORIS does not scale them, PEFT by the rank that it was asked for
        asked = "alpha" not in place.parts and "r" in config
        alpha = alpha / _number(config["r"], "r", 1, 1e6) if asked and alpha is not None else None
    return LoKr(**made, alpha=alpha, dora_scale=_norms(place))


def _difference(place: _Layer, layer: str, config: Mapping[str, Any]) -> Delta:
    change = place.fit("change", place.shape) if "change" in place.parts else None
    return Difference(change, place.fit("diff_b", place.shape[:1]) if "diff_b" in place.parts else None)


def _oft(place: _Layer, layer: str, config: Mapping[str, Any]) -> Delta:
    form = next((role for role in ("in", "skew", "blocks") if role in place.parts), "blocks")
    (blocks,), out, width = place.need(form), place.shape[0], math.prod(place.shape[1:])
    if form == "in":
        groups, entries = blocks.shape if blocks.ndim == 2 else (0, 0)
        size = (1 + math.isqrt(1 + 8 * entries)) // 2
        if size * (size - 1) != 2 * entries or not entries or (groups * size != width and (groups != 1 or width % size)):
            raise place.wrong("Rotations of another number of columns.", form, f"(groups, n (n - 1) / 2) of {width} columns")
        terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else 0
        return OFT(blocks, form=form, terms=int(_number(terms, "num_cayley_neumann_terms", 0, 100)))
    if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or blocks.shape[0] * blocks.shape[1] != out:
        raise place.wrong("Rotations of another number of rows.", form, f"(groups, n, n) of {out} rows")
    rescale = place.fit("rescale", (out,)) if "rescale" in place.parts else None
    return OFT(blocks, _alpha(place, layer, {}), rescale, form)


BUILD: dict[str, Callable[[_Layer, str, Mapping[str, Any]], Delta]] = {
    "lora": _lora, "loha": _loha, "lokr": _lokr, "diff": _difference, "oft": _oft,
}  # fmt: skip
