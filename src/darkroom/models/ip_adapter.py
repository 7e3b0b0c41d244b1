"""IP-Adapter: pictures as a prompt. Networks that make tokens of what an image encoder sees, and layers that make keys and values of the tokens
(Ye et al. 2023).

All tensors have the names of the published files, with a dot between those of nested dictionaries, so a state dict is such a file. Letters: n
pictures, T tokens for each, C the width of the denoiser's context.
"""

from __future__ import annotations
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..errors import CheckpointError

__all__ = ["FaceID", "FaceIDPlus", "FullFace", "IPAdapter", "Plus", "Pooled", "Reader", "attention_layers", "readers"]

HEAD = 64  # channels of an attention head in the resamplers
Shapes = Mapping[str, Sequence[int]]


class ImageTokens(nn.Module):
    """What the networks share: they make T tokens of what `reads` says, which is `width` wide."""

    reads: Literal["pooled", "states", "face"]  # the encoder's image embedding, its states below the last layer, or a face embedding
    width: int


def mlp(shapes: Shapes) -> list[nn.Module]:
    (hidden, width), (out, _) = shapes["proj.0.weight"], shapes["proj.2.weight"]
    return [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out)]


class Pooled(ImageTokens):
    """The basic kind: T tokens of an image embedding, (n, width) to (n, T, C)."""

    reads = "pooled"

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.proj, self.norm = self.projection(shapes), nn.LayerNorm(shapes["norm.weight"][0])

    def projection(self, shapes: Shapes) -> nn.Module:
        out, self.width = shapes["proj.weight"]
        return nn.Linear(self.width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).unflatten(-1, (-1, *self.norm.normalized_shape)))


class FaceID(Pooled):
    """The kind "FaceID": T tokens of a face recognition network's embedding, (n, width) to (n, T, C)."""

    reads = "face"

    def projection(self, shapes: Shapes) -> nn.Module:
        self.width = shapes["proj.0.weight"][1]
        return nn.Sequential(*mlp(shapes))


class FullFace(ImageTokens):
    """The kind "full face": each of the encoder's states becomes a token, (n, T, width) to (n, T, C)."""

    reads = "states"

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.width = shapes["proj.0.weight"][1]
        self.proj = nn.Sequential(*mlp(shapes), nn.LayerNorm(shapes["proj.3.weight"][0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Perceiver(nn.Module):
    """Attention of latents (n, T, D) to states (n, N, D) and themselves (Jaegle et al. 2021; Alayrac et al. 2022)."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_kv, self.to_out = (nn.Linear(a, b, bias=False) for a, b in ((dim, inner), (dim, 2 * inner), (inner, dim)))

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        tokens = self.to_q(latents), *self.to_kv(torch.cat([self.norm1(x), latents], 1)).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (-1, HEAD)).transpose(1, 2) for t in tokens)  # 3 x (n, h, T or N + T, 64)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Resampler(nn.Module):
    """Latents that read states in several layers: (n, N, width) and (n or 1, T, D) to (n, T, C)."""

    def __init__(self, shapes: Shapes):
        super().__init__()
        (dim, self.width), (out, _) = shapes["proj_in.weight"], shapes["proj_out.weight"]
        depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})

        def layer(i: int) -> nn.ModuleList:
            inner, wide = shapes[f"layers.{i}.0.to_q.weight"][0], shapes[f"layers.{i}.1.1.weight"][0]
            feed = nn.LayerNorm(dim), nn.Linear(dim, wide, bias=False), nn.GELU(), nn.Linear(wide, dim, bias=False)
            return nn.ModuleList([Perceiver(dim, inner), nn.Sequential(*feed)])

        self.proj_in, self.proj_out, self.norm_out = nn.Linear(self.width, dim), nn.Linear(dim, out), nn.LayerNorm(out)
        self.layers = nn.ModuleList(layer(i) for i in range(depth))

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, latents = self.proj_in(x), latents.expand(x.shape[0], -1, -1)
        for attention, feed in self.layers:  # type: ignore[misc]
            latents = latents + attention(x, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


class Plus(Resampler, ImageTokens):
    """The kinds "plus" and "plus face": T learned latents read the encoder's states, (n, N, width) to (n, T, C)."""

    reads = "states"

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.latents = nn.Parameter(torch.empty(tuple(shapes["latents"])))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, self.latents)


class FaceIDPlus(FaceID):
    """The kind "FaceID plus": the tokens of a face also read an image encoder's states of it, (n, width) and (n, N, w) to (n, T, C).
    With a `shortcut`, how much of it that adds, the tokens of the face remain (version 2).
    """

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        prefix = "perceiver_resampler."
        self.perceiver_resampler = Resampler({n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)})

    def forward(self, x: Tensor, states: Tensor, shortcut: float | None = None) -> Tensor:  # type: ignore[override]
        face = super().forward(x)
        seen = self.perceiver_resampler(states, face)
        return seen if shortcut is None else face + shortcut * seen


KINDS: dict[str, tuple[str, type[ImageTokens]]] = {  # by a tensor that no kind further down has
    "proj.weight": ("base", Pooled),
    "proj.3.weight": ("full face", FullFace),
    "perceiver_resampler.proj_in.weight": ("FaceID plus", FaceIDPlus),
    "norm.weight": ("FaceID", FaceID),
    "latents": ("plus", Plus),
}


class Reader(NamedTuple):
    """A layer that reads image tokens: its dotted name, the width of its keys, and that of its context."""

    site: str
    inner: int
    context: int


def attention_layers(denoiser: nn.Module) -> list[tuple[str, Any]]:
    """The layers of a denoiser's transformers by dotted name, in the order that files number them in: the way down, the way up, the middle."""
    order, denoiser = {"down_blocks": 0, "up_blocks": 1}, getattr(denoiser, "_orig_mod", denoiser)
    found = [
        (n, m) for n, m in denoiser.named_modules() if n.endswith(("attn1", "attn2")) and hasattr(m, "site") and "motion_modules" not in n
    ]
    return sorted(found, key=lambda layer: order.get(layer[0].partition(".")[0], 2))


def readers(denoiser: nn.Module) -> list[Reader]:
    """Those of them that read the prompt, and with an adapter pictures."""
    crossing = [(n, m) for n, m in attention_layers(denoiser) if n.endswith("attn2") and m.is_cross_attention]
    return [Reader(n, m.to_k.out_features, m.to_k.in_features) for n, m in crossing]


class KeysValues(nn.Module):
    """The projections of one layer, without bias."""

    def __init__(self, inner: int, context: int):
        super().__init__()
        self.to_k_ip, self.to_v_ip = nn.Linear(context, inner, bias=False), nn.Linear(context, inner, bias=False)


class IPAdapter(nn.Module):
    """One adapter: `image_proj` makes tokens of pictures, `ip_adapter` keys and values of them, for each layer of `layers`, numbered 1, 3, 5, ...
    The state dict has the names of the published files.
    """

    kind = ""  # such as "plus"

    def __init__(self, image_proj: ImageTokens, layers: Iterable[Reader]):
        super().__init__()
        self.image_proj, self.layers = image_proj, tuple(layers)
        numbered = {f"{2 * i + 1}": KeysValues(layer.inner, layer.context) for i, layer in enumerate(self.layers)}
        self.ip_adapter = nn.ModuleDict(numbered)
        self.homes = {layer.site: number for layer, number in zip(self.layers, numbered)}

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def keys_and_values(self, site: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens (..., T, C) at a layer: 2 x (..., T, inner)."""
        layer: Any = self.ip_adapter[self.homes[site]]
        return layer.to_k_ip(tokens), layer.to_v_ip(tokens)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], layers: Sequence[Reader], where: object = "IP-Adapter") -> IPAdapter:
        """The adapter that a file holds, for a denoiser of these layers. Of the tensors those whose names begin with "image_proj." and "ip_adapter."
        count, without LoRA layers. Raises CheckpointError for an unknown kind, or if they do not fit the denoiser or each other.
        """
        prefix = "image_proj."
        projection = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        own = {n: t for n, t in tensors.items() if n.startswith("ip_adapter.") and "_lora." not in n}
        if not projection or not own:
            got, expected = ", ".join(sorted(tensors)[:5]) or "nothing", "tensors of image_proj and of ip_adapter"
            raise CheckpointError("This is no IP-Adapter.", where=where, got=got, expected=expected)
        kind, network = next((KINDS[name] for name in KINDS if name in projection), (None, None))
        if network is None:
            known = "; ".join(f"{kind} ({name})" for name, (kind, _) in KINDS.items())
            raise CheckpointError("An IP-Adapter of an unknown kind.", where=where, got=", ".join(sorted(projection)[:5]), expected=known)
        try:
            with torch.device("meta"):
                adapter = cls(network({n: tuple(t.shape) for n, t in projection.items()}), layers)
                width = adapter.image_proj(*adapter._examples()).shape[-1]
        except Exception as error:  # a tensor that is missing, or of a shape that has no meaning
            got = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"The image projection is not that of the kind {kind}.", where=where, got=got) from None
        adapter.kind, given = kind, {**own, **{prefix + name: tensor for name, tensor in projection.items()}}
        shapes, fits = ({n: tuple(t.shape) for n, t in tensors.items()} for tensors in (given, adapter.state_dict()))
        if odd := [n for n, t in given.items() if not t.is_floating_point()]:
            raise CheckpointError("A tensor of another kind.", where=f"{where}: {odd[0]}", got=given[odd[0]].dtype, expected="floats")
        wrong = min(
            (n for n in shapes.keys() | fits.keys() if shapes.get(n) != fits.get(n)), key=lambda n: (n[:3], len(n), n), default=None
        )
        if wrong is not None and wrong.startswith(prefix):
            what = f"The image projection is not that of the kind {kind}."
            raise CheckpointError(what, where=f"{where}: {wrong}", got=shapes.get(wrong), expected=fits.get(wrong))
        if wrong is not None or (layers and width != layers[0].context):
            what, fix = "The adapter is for another base model.", "Load one for the model that this denoiser belongs to."
            many, context = len({name.split(".")[1] for name in own}), layers[0].context if layers else None
            expected = f"{wrong} {fits.get(wrong)}, tokens {context} wide for {len(layers)} layers"  # type: ignore[arg-type]
            got = f"{wrong} {shapes.get(wrong)}, tokens {width} wide for {many}"  # type: ignore[arg-type]
            raise CheckpointError(what, where=where, got=got, expected=expected, fix=fix)
        adapter.load_state_dict(given, assign=True)
        return adapter.requires_grad_(False).eval()

    def _examples(self) -> list[Tensor]:
        """What the projection reads."""
        network = self.image_proj
        example = torch.empty(1, 2, network.width) if network.reads == "states" else torch.empty(1, network.width)
        return [example, *([torch.empty(1, 2, network.perceiver_resampler.width)] if isinstance(network, FaceIDPlus) else [])]
