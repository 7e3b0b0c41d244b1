"""ControlNet-Union: one ControlNet for several kinds of pictures at once (xinsir 2024, "ControlNet++")."""

from __future__ import annotations
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
import torch
from torch import Tensor, nn
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from .controlnet import ControlNet, ControlNetConfig, zeroed
from .layers.embeddings import TimestepEmbedding, Timesteps
from .unet_2d_condition import UNet2DConditionModel

__all__ = ["ControlNetUnionConfig", "ControlNetUnionModel"]


@dataclass(frozen=True, eq=False, repr=False)
class ControlNetUnionConfig(ControlNetConfig):
    """The keys of the network's `config.json`, beside those of a ControlNet.
    `num_control_type` kinds of pictures are told apart, by a transformer of `num_trans_layer` layers of `num_trans_channel` channels and
    `num_trans_head` heads, whose result goes into `num_proj_channel` channels of the first feature map.
    """

    mid_block_type: ClassVar[str] = "UNetMidBlock2DCrossAttn"  # type: ignore[misc]

    conditioning_embedding_out_channels: tuple[int, ...] = (48, 96, 192, 384)
    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_head: int = 8
    num_trans_layer: int = 1
    num_proj_channel: int = 320


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class ResidualAttention(nn.Module):
    """Self-attention and a feed-forward network, each after a norm and around a residual.
    The first axis is the sequence, though that is the batch here: the checkpoints were trained so, and rows of a batch see each other.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict(c_fc=nn.Linear(dim, 4 * dim), gelu=QuickGELU(), c_proj=nn.Linear(4 * dim, dim)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to the same."""
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ControlNetUnionModel(ControlNet):
    """A ControlNet that is told which kinds of pictures it sees. Raises ConfigError for an option that has no meaning."""

    Config = ControlNetUnionConfig
    config: ControlNetUnionConfig
    orders = ("rgb",)

    def build(self, c: ControlNetUnionConfig) -> None:
        if c.addition_time_embed_dim is None:
            raise ConfigError("The kinds of pictures are embedded in this width.", where="addition_time_embed_dim", expected="an int")
        if c.num_trans_channel % max(c.num_trans_head, 1) or not c.num_trans_channel == c.num_proj_channel == c.block_out_channels[0]:
            got, expected = c.num_trans_channel, f"{c.block_out_channels[0]}, as num_proj_channel and the first of block_out_channels"
            raise ConfigError("The transformer reads feature maps of this width.", where="num_trans_channel", got=got, expected=expected)
        super().build(c)
        dim, kinds = c.num_trans_channel, c.num_control_type
        self.task_embedding = nn.Parameter(dim**0.5 * torch.randn(kinds, dim))
        self.transformer_layes = nn.ModuleList(ResidualAttention(dim, c.num_trans_head) for _ in range(c.num_trans_layer))
        self.spatial_ch_projs = zeroed(nn.Linear(dim, c.num_proj_channel))
        self.control_type_proj = Timesteps(c.addition_time_embed_dim, c.flip_sin_to_cos, c.freq_shift)
        self.control_add_embedding = TimestepEmbedding(c.addition_time_embed_dim * kinds, self.time_embedding.linear_2.out_features)

    @classmethod
    def sizes_for(cls, unet: UNet2DConditionModel) -> Mapping[str, int]:
        return dict.fromkeys(("num_trans_channel", "num_proj_channel"), unet.config.block_out_channels[0])

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor | None, controlnet_cond: Sequence[Tensor],
        control_type: Tensor, control_type_idx: Sequence[int], conditioning_scale: float | Sequence[float] = 1.0,
        class_labels: Tensor | None = None, timestep_cond: Tensor | None = None, attention_mask: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None, cross_attention_kwargs: Mapping[str, Any] | None = None,
        from_multi: bool = False, guess_mode: bool = False, *, attend: Attend | None = None,
    ) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """Residuals for a UNet from a noisy sample and one picture for each kind that is used.
        Args:
            controlnet_cond: the pictures, each (B, conditioning_channels, fH, fW); `control_type_idx` says of which kind each is.
            control_type: (B, num_control_type), 1 for the kinds that are used and 0 for the others.
            conditioning_scale: one weight, or one for each picture. With several pictures it weighs what they add to the sample; of one
                picture, or with `from_multi`, the residuals.
        Other arguments are those of a ControlNet. Raises InputError for an argument that is missing or does not fit.
        """
        count, kinds = len(controlnet_cond), self.config.num_control_type
        scales = list(conditioning_scale) if isinstance(conditioning_scale, Sequence) else [conditioning_scale] * count
        if not count == len(control_type_idx) == len(scales):
            got = f"{count} pictures, {len(control_type_idx)} kinds, {len(scales)} scales"
            raise InputError("Pictures, kinds and scales differ in number.", where="controlnet_cond", got=got, expected="the same of each")
        if control_type.shape != (sample.shape[0], kinds) or not all(0 <= kind < kinds for kind in control_type_idx):
            got, expected = f"{tuple(control_type.shape)}, {list(control_type_idx)}", f"({sample.shape[0]}, {kinds}), 0 to {kinds - 1}"
            raise InputError("No such kinds of pictures.", where="control_type, control_type_idx", got=got, expected=expected)
        x, cond = self._prepared(
            sample, timestep, encoder_hidden_states, class_labels, timestep_cond, attention_mask, added_cond_kwargs, attend
        )
        used = self.control_type_proj(control_type.flatten()).reshape(sample.shape[0], -1)
        cond = replace(cond, temb=cond.temb + self.control_add_embedding(used.to(x.dtype)))
        alone = from_multi or count == 1
        weights = [1.0] * count if alone else scales
        maps = [self._picture(picture, x.shape[-2:]) for picture in controlnet_cond]  # each (B, C0, H, W)
        tokens = [(m.mean((2, 3)) + self.task_embedding[kind]) * w for m, kind, w in zip(maps, control_type_idx, weights)]
        tokens = torch.stack([*tokens, x.mean((2, 3))], 1)  # (B, pictures + 1, C0)
        for layer in self.transformer_layes:
            tokens = layer(tokens)
        shifts = self.spatial_ch_projs(tokens[:, :-1]).unbind(1)  # each (B, C0)
        x = x + sum((m + shift[..., None, None]) * w for m, shift, w in zip(maps, shifts, weights))
        return self._residuals(x, cond, scales[0] if alone else 1.0, guess_mode)
