"""Embeddings of timesteps and of the conditions that UNets add to them."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ...errors import InputError
from .resnet import activation

__all__ = [
    "GaussianFourierProjection", "GroundedObjects", "ImageHintTimeEmbedding", "ImageProjection", "ImageTimeEmbedding", "TextImageProjection",
    "TextImageTimeEmbedding", "TextTimeEmbedding", "TimestepEmbedding", "Timesteps",
]  # fmt: skip


class Timesteps(nn.Module):
    """Sinusoids of a timestep, [sin, cos] or [cos, sin], always float32 (Ho et al. 2020, after Vaswani et al. 2017)."""

    def __init__(self, dim: int, flip_sin_to_cos: bool = True, freq_shift: float = 0):
        super().__init__()
        self.dim, self.flip_sin_to_cos, self.freq_shift = dim, flip_sin_to_cos, freq_shift

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, dim)."""
        half = self.dim // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / (half - self.freq_shift)
        phase = t[:, None].float() * torch.exp(-math.log(10000) * exponent)  # (B, dim/2)
        waves = (phase.cos(), phase.sin()) if self.flip_sin_to_cos else (phase.sin(), phase.cos())
        return F.pad(torch.cat(waves, -1), (0, self.dim % 2))


class GaussianFourierProjection(nn.Module):
    """Sinusoids of fixed random frequencies, of t or of log t (Tancik et al. 2020; Song et al. 2021)."""

    def __init__(self, size: int, *, scale: float = 1.0, log: bool, flip_sin_to_cos: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size) * scale, requires_grad=False)
        self.log, self.flip_sin_to_cos = log, flip_sin_to_cos

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, 2 size)."""
        phase = (t.log() if self.log else t)[:, None] * self.weight * 2 * math.pi
        return torch.cat((phase.cos(), phase.sin()) if self.flip_sin_to_cos else (phase.sin(), phase.cos()), -1)


class GroundedObjects(nn.Module):
    """Phrases, or phrases and pictures, in boxes as tokens (Li et al. 2023, GLIGEN). Embeddings are `dim` wide; what stands for none is learned."""

    FREQUENCIES = 8
    NAMES = {  # kind -> (the tensors' part of a name, embeddings, masks)
        "positive": ("linears", "positive_embeddings", "masks"),
        "text": ("linears_text", "phrases_embeddings", "phrases_masks"),
        "image": ("linears_image", "image_embeddings", "image_masks"),
    }

    def __init__(self, dim: int, out_dim: int, with_pictures: bool):
        super().__init__()
        self.dim, self.kinds = dim, ("text", "image") if with_pictures else ("positive",)
        place = self.FREQUENCIES * 2 * 4  # sine and cosine of left, top, right, bottom
        for kind in self.kinds:
            layers = nn.Linear(dim + place, 512), nn.SiLU(), nn.Linear(512, 512), nn.SiLU(), nn.Linear(512, out_dim)
            setattr(self, self.NAMES[kind][0], nn.Sequential(*layers))
            setattr(self, f"null_{kind}_feature", nn.Parameter(torch.zeros(dim)))
        self.null_position_feature = nn.Parameter(torch.zeros(place))

    def forward(self, objects: Mapping[str, Tensor]) -> Tensor:
        """By name: `boxes` (B, K, 4) of left, top, right, bottom in [0, 1], and `masks` (B, K) of 1 and 0; `positive_embeddings` (B, K, dim), or
        `phrases_embeddings`, `phrases_masks`, `image_embeddings` and `image_masks`. Gives (B, K, out_dim), or phrases and then pictures,
        (B, 2K, out_dim). Raises InputError for other names and shapes.
        """
        rows = tuple(objects["masks"].shape) if "masks" in objects else ()
        named = {"boxes": (*rows, 4), "masks": rows}
        for _, embeddings, masks in (self.NAMES[kind] for kind in self.kinds):
            named |= {embeddings: (*rows, self.dim), masks: rows}
        got = {name: tuple(x.shape) for name, x in objects.items()}
        if len(rows) != 2 or got != named:
            raise InputError("Objects that do not fit this network.", where="gligen", got=got, expected=named)
        rates = (100 ** (torch.arange(self.FREQUENCIES) / self.FREQUENCIES)).to(objects["boxes"])
        phase = objects["boxes"][..., None] * rates  # (B, K, 4, frequencies)
        places = torch.stack([phase.sin(), phase.cos()], -1).permute(0, 1, 3, 4, 2).flatten(2)

        def kept(x: Tensor, mask: Tensor, null: Tensor) -> Tensor:
            return x * mask[..., None] + (1 - mask[..., None]) * null

        places, made = kept(places, objects["masks"], self.null_position_feature), []
        for kind in self.kinds:
            layers, embeddings, masks = self.NAMES[kind]
            tokens = kept(objects[embeddings], objects[masks], getattr(self, f"null_{kind}_feature"))
            made.append(getattr(self, layers)(torch.cat([tokens, places], -1)))
        return torch.cat(made, 1)


class TimestepEmbedding(nn.Module):
    """Two linear layers over an embedded timestep, `hidden` (else `out_dim`) wide in between, plus a projected condition with `cond_dim`
    (Meng et al. 2023).
    """

    def __init__(
        self, in_dim: int, out_dim: int, act_fn: str = "silu", *, post_act: str | None = None, cond_dim: int | None = None, hidden: int |
        None = None,
    ):  # fmt: skip
        super().__init__()
        hidden = hidden or out_dim
        self.linear_1 = nn.Linear(in_dim, hidden)
        self.cond_proj = nn.Linear(cond_dim, in_dim, bias=False) if cond_dim is not None else None
        self.act = activation(act_fn)
        self.linear_2 = nn.Linear(hidden, out_dim)
        self.post_act = activation(post_act) if post_act is not None else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is not None:
            if self.cond_proj is None:
                fix = "Leave it out; only networks whose config sets time_cond_proj_dim take it."
                raise InputError("No such condition.", where="timestep_cond", got=tuple(cond.shape), expected="None", fix=fix)
            x = x + self.cond_proj(cond)
        return self.post_act(self.linear_2(self.act(self.linear_1(x))))


class AttentionPooling(nn.Module):
    """One vector for a sequence: its mean, as a query, attends to itself and to the sequence (DeepFloyd IF)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, dim) / dim**0.5)
        self.k_proj, self.q_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, C)."""
        mean = x.mean(1, keepdim=True) + self.positional_embedding.to(x.dtype)  # (B, 1, C)
        x = torch.cat([mean, x], 1)
        q, k, v = self.q_proj(mean), self.k_proj(x), self.v_proj(x)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (q, k, v))  # (B, h, 1 or N + 1, d)
        return F.scaled_dot_product_attention(q, k, v).flatten(1)


class TextTimeEmbedding(nn.Sequential):
    """Text states (B, N, C) as an addend to the timestep embedding (DeepFloyd IF)."""

    def __init__(self, text_dim: int, out_dim: int, heads: int = 64):
        before, pool = nn.LayerNorm(text_dim), AttentionPooling(text_dim, heads)
        super().__init__(OrderedDict(norm1=before, pool=pool, proj=nn.Linear(text_dim, out_dim), norm2=nn.LayerNorm(out_dim)))


class TextImageTimeEmbedding(nn.Module):
    """Pooled text and image embeddings as an addend to the timestep embedding (Kandinsky 2.1)."""

    def __init__(self, text_dim: int, image_dim: int, out_dim: int):
        super().__init__()
        self.text_proj, self.text_norm = nn.Linear(text_dim, out_dim), nn.LayerNorm(out_dim)
        self.image_proj = nn.Linear(image_dim, out_dim)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.image_proj(image) + self.text_norm(self.text_proj(text))


class ImageTimeEmbedding(nn.Module):
    """An image embedding (B, C) as an addend to the timestep embedding (Kandinsky 2.2)."""

    def __init__(self, image_dim: int, out_dim: int):
        super().__init__()
        self.image_proj, self.image_norm = nn.Linear(image_dim, out_dim), nn.LayerNorm(out_dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(image))


class ImageHintTimeEmbedding(ImageTimeEmbedding):
    """The same with a picture (B, 3, 8H, 8W) as a hint: 4 more channels of the sample (Kandinsky 2.2 ControlNet)."""

    def __init__(self, image_dim: int, out_dim: int):
        super().__init__(image_dim, out_dim)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise((3, 16, 16, 32, 32, 96, 96, 256))):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=2 if i in (2, 4, 6) else 1), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers, nn.Conv2d(256, 4, 3, padding=1))  # (B, 4, H, W)


class TextImageProjection(nn.Module):
    """A context of ten image tokens and the projected text (Kandinsky 2.1)."""

    def __init__(self, text_dim: int, image_dim: int, context_dim: int, tokens: int = 10):
        super().__init__()
        self.tokens = tokens
        self.image_embeds, self.text_proj = nn.Linear(image_dim, tokens * context_dim), nn.Linear(text_dim, context_dim)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        tokens = self.image_embeds(image).unflatten(-1, (self.tokens, -1))  # (B, 10, C)
        return torch.cat([tokens, self.text_proj(text)], 1)  # (B, 10 + M, C)


class ImageProjection(nn.Module):
    """A context of `tokens` made from an image embedding (Kandinsky 2.2)."""

    def __init__(self, image_dim: int, context_dim: int, tokens: int = 32):
        super().__init__()
        self.tokens = tokens
        self.image_embeds, self.norm = nn.Linear(image_dim, tokens * context_dim), nn.LayerNorm(context_dim)

    def forward(self, image: Tensor) -> Tensor:
        image = self.image_embeds(image.to(self.image_embeds.weight.dtype))
        return self.norm(image.unflatten(-1, (self.tokens, -1)))  # (B, tokens, C)
