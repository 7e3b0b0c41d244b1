"""The diffusion transformer over latents, conditioned on a class (Peebles & Xie 2023, DiT)."""

from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from ..outputs import Output
from .base import Model, as_batch, choose
from .layers.transformer import AdaZeroBlock, PatchEmbed, unpatchify

__all__ = ["DiTTransformer2DConfig", "DiTTransformer2DModel", "Transformer2DModel", "Transformer2DModelOutput"]


@dataclass
class Transformer2DModelOutput(Output):
    """`sample`: the prediction (B, out_channels, H, W)."""

    sample: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class DiTTransformer2DConfig(Config):
    """The keys of the network's `config.json`. `num_embeds_ada_norm` is the number of classes; `norm_num_groups` means nothing."""

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None
    num_layers: int = 28
    dropout: float = 0.0
    norm_num_groups: int = 32
    attention_bias: bool = True
    sample_size: int = 32
    patch_size: int = 2
    activation_fn: str = "gelu-approximate"
    num_embeds_ada_norm: int | None = 1000
    upcast_attention: bool = False
    norm_type: str = "ada_norm_zero"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-5


class DiTTransformer2DModel(Model):
    """A transformer over patches of (B, C, H, W) that predicts noise and, with twice the channels, its variance."""

    Config = DiTTransformer2DConfig
    Result = Transformer2DModelOutput
    config: DiTTransformer2DConfig

    def build(self, c: DiTTransformer2DConfig) -> None:
        choose("norm_type", c.norm_type, {"ada_norm_zero": None})
        if c.num_embeds_ada_norm is None:
            raise ConfigError("The number of classes is missing.", where="num_embeds_ada_norm", expected="an int")
        dim, channels = c.num_attention_heads * c.attention_head_dim, c.in_channels if c.out_channels is None else c.out_channels
        self.pos_embed = PatchEmbed(c.in_channels, dim, c.patch_size, c.sample_size // c.patch_size)
        options: dict[str, Any] = {"activation_fn": c.activation_fn, "biased": c.attention_bias, "upcast": c.upcast_attention}
        options |= {"affine": c.norm_elementwise_affine, "eps": c.norm_eps, "dropout": c.dropout}
        blocks = (AdaZeroBlock(dim, c.num_attention_heads, c.num_embeds_ada_norm, **options) for _ in range(c.num_layers))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.proj_out_1, self.proj_out_2 = nn.Linear(dim, 2 * dim), nn.Linear(dim, c.patch_size**2 * channels)

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """One call for `rows` samples of this size; the values mean nothing."""
        x = torch.empty(rows, self.config.in_channels, height, width, dtype=self.dtype)
        return self(x, torch.ones(1), torch.zeros(rows, dtype=torch.int64))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor | float, class_labels: Tensor, cross_attention_kwargs: Mapping[str, Any] | None = None,
        *, attend: Attend | None = None,
    ) -> Tensor:  # fmt: skip
        """Predict from a noisy sample: (B, in_channels, H, W) -> (B, out_channels, H, W), at any size that is whole patches.
        Args:
            timestep: one for all rows or one for each.
            class_labels: (B,), from 0 to `num_embeds_ada_norm`, which stands for no class.
            cross_attention_kwargs: there is no cross-attention; accepted from older programs.
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
        Raises InputError for a sample of another shape.
        """
        x, c, patch = hidden_states, self.config, self.config.patch_size
        if x.ndim != 4 or x.shape[1] != c.in_channels or x.shape[2] % patch or x.shape[3] % patch:
            got, fits = tuple(x.shape), f"(B, {c.in_channels}, H, W), sides multiples of {patch}"
            raise InputError("The sample does not fit this network.", where="hidden_states", got=got, expected=fits)
        height, width, t = x.shape[2] // patch, x.shape[3] // patch, as_batch(timestep, x)
        x = self.pos_embed(x)  # (B, N, dim)
        for block in self.transformer_blocks:
            x = block(x, t, class_labels, attend or self.attend)
        temb = self.transformer_blocks[0].norm1.emb(t, class_labels, x.dtype)  # there is no embedding of the output's own
        shift, scale = self.proj_out_1(F.silu(temb))[:, None].chunk(2, -1)  # 2 x (B, 1, dim)
        return unpatchify(self.proj_out_2(self.norm_out(x) * (1 + scale) + shift), height, width, patch)


class Transformer2DModel(DiTTransformer2DModel):
    """The name of DiT in older checkpoints: a configuration of it makes a `DiTTransformer2DModel`. One of another `norm_type`, which has this name
    too, raises ConfigError."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, **options: Any) -> Self:
        return DiTTransformer2DModel.from_config({"norm_type": "layer_norm", **(config or {})}, **options)
