"""The UNet of latent diffusion, conditioned on a timestep and on a sequence of states (Rombach et al. 2022)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from ..outputs import Output
from .base import as_batch
from .layers.embeddings import (
    GaussianFourierProjection,
    ImageHintTimeEmbedding,
    ImageProjection,
    ImageTimeEmbedding,
    TextImageProjection,
    TextImageTimeEmbedding,
    TextTimeEmbedding,
    TimestepEmbedding,
    Timesteps,
)
from .layers.resnet import activation
from .layers.transformer import Conditions
from .layers.unet_blocks import Attends, Level, MidBlock, down_block, up_block, up_levels
from .unet_base import UNet, check_block_types, one_of, per_block

__all__ = ["UNet2DConditionConfig", "UNet2DConditionModel", "UNet2DConditionOutput"]

logger = logging.getLogger("darkroom")


@dataclass
class UNet2DConditionOutput(Output):
    """`sample`: the prediction (B, out_channels, H, W)."""

    sample: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class UNet2DConditionConfig(Config):
    """The keys of the network's `config.json`.

    `attention_head_dim` is the number of attention heads of transformer blocks, against its name, unless
    `num_attention_heads` is given: all checkpoints are written so. In other attentions it is what it says.
    Options of one value per block may be one value for all.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[tuple[int, ...], ...] | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    timestep_post_act: str | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: str = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: str | None = None
    addition_embed_type_num_heads: int = 64


class UNet2DConditionModel(UNet):
    """A UNet over (B, C, H, W) that predicts noise, velocity or the clean sample, as its checkpoint was trained.

    Raises:
        ConfigError: an option that has no meaning, or whose length does not fit the number of blocks.
    """

    Config = UNet2DConditionConfig
    Result = UNet2DConditionOutput
    config: UNet2DConditionConfig

    def build(self, config: UNet2DConditionConfig) -> None:
        c, first = config, config.block_out_channels[0]
        if c.attention_type != "default":
            raise one_of("attention_type", c.attention_type, "default")
        self.conv_in = nn.Conv2d(c.in_channels, first, c.conv_in_kernel, padding=(c.conv_in_kernel - 1) // 2)
        width = self._build_embeddings(c)
        levels = self._levels(c, width * 2 if c.class_embeddings_concat else width)
        self.down_blocks = nn.ModuleList(map(down_block, c.down_block_types, levels))
        self.mid_block = self._middle(c, levels[-1])
        head_dims = [level.head_dim for level in levels]
        depths = c.reverse_transformer_layers_per_block or [level.depth for level in reversed(levels)]
        self.up_blocks = nn.ModuleList(
            # head_dim is not reversed on the way up: the checkpoints were trained so
            up_block(name, replace(level, head_dim=head_dim, depth=depth))
            for name, level, head_dim, depth in zip(c.up_block_types, up_levels(levels), head_dims, depths, strict=True)
        )
        self.conv_norm_out = self.conv_act = None
        if c.norm_num_groups is not None:
            self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, first, eps=c.norm_eps)
            self.conv_act = activation(c.act_fn)
        self.conv_out = nn.Conv2d(first, c.out_channels, c.conv_out_kernel, padding=(c.conv_out_kernel - 1) // 2)
        named = (*c.down_block_types, c.mid_block_type or "", *c.up_block_types)
        attends = self.encoder_hid_dim_type != "image_proj" and any("CrossAttn" in name for name in named)
        self.reads_context = attends or c.addition_embed_type == "text"

    def _build_embeddings(self, c: UNet2DConditionConfig) -> int:
        """What turns timestep, class and added conditions into one vector. Returns its width."""
        first = c.block_out_channels[0]
        if c.time_embedding_type == "positional":
            width, time_dim = c.time_embedding_dim or first * 4, first
            self.time_proj: nn.Module = Timesteps(first, c.flip_sin_to_cos, c.freq_shift)
        elif c.time_embedding_type == "fourier":
            width = time_dim = c.time_embedding_dim or first * 2
            if width % 2:
                raise ConfigError("A Fourier embedding is even.", where="time_embedding_dim", got=width)
            self.time_proj = GaussianFourierProjection(width // 2, log=False, flip_sin_to_cos=c.flip_sin_to_cos)
        else:
            raise one_of("time_embedding_type", c.time_embedding_type, "positional", "fourier")
        self.time_embedding = TimestepEmbedding(time_dim, width, c.act_fn, post_act=c.timestep_post_act, cond_dim=c.time_cond_proj_dim)
        self.time_embed_act = activation(c.time_embedding_act_fn) if c.time_embedding_act_fn is not None else None

        def given(field: str) -> int:
            value = c[field]
            if not isinstance(value, int):
                raise ConfigError("This network needs one number here.", where=field, got=value, expected="an int")
            return value

        kind = c.encoder_hid_dim_type or ("text_proj" if c.encoder_hid_dim is not None else None)
        self.encoder_hid_dim_type = kind
        projections = {
            None: lambda: None,
            "text_proj": lambda: nn.Linear(given("encoder_hid_dim"), given("cross_attention_dim")),
            "text_image_proj": lambda: TextImageProjection(
                given("encoder_hid_dim"), given("cross_attention_dim"), given("cross_attention_dim")
            ),
            "image_proj": lambda: ImageProjection(given("encoder_hid_dim"), given("cross_attention_dim")),
        }
        if kind not in projections:
            raise one_of("encoder_hid_dim_type", kind, *projections)
        self.encoder_hid_proj = projections[kind]()

        by_number = (lambda: None) if c.num_class_embeds is None else (lambda: nn.Embedding(c.num_class_embeds, width))
        classes = {
            None: by_number,
            "timestep": lambda: TimestepEmbedding(time_dim, width, c.act_fn),
            "identity": nn.Identity,
            "projection": lambda: TimestepEmbedding(given("projection_class_embeddings_input_dim"), width),
            "simple_projection": lambda: nn.Linear(given("projection_class_embeddings_input_dim"), width),
        }
        if c.class_embed_type not in classes:
            raise one_of("class_embed_type", c.class_embed_type, *classes)
        self.class_embedding = classes[c.class_embed_type]()

        text_field = "cross_attention_dim" if c.encoder_hid_dim is None else "encoder_hid_dim"
        additions = {
            None: lambda: None,
            "text": lambda: TextTimeEmbedding(given(text_field), width, c.addition_embed_type_num_heads),
            "text_image": lambda: TextImageTimeEmbedding(given("cross_attention_dim"), given("cross_attention_dim"), width),
            "text_time": lambda: TimestepEmbedding(given("projection_class_embeddings_input_dim"), width),
            "image": lambda: ImageTimeEmbedding(given("encoder_hid_dim"), width),
            "image_hint": lambda: ImageHintTimeEmbedding(given("encoder_hid_dim"), width),
        }
        if c.addition_embed_type not in additions:
            raise one_of("addition_embed_type", c.addition_embed_type, *additions)
        self.add_embedding = additions[c.addition_embed_type]()
        if c.addition_embed_type == "text_time":
            self.add_time_proj = Timesteps(given("addition_time_embed_dim"), c.flip_sin_to_cos, c.freq_shift)
        return width

    @staticmethod
    def _levels(c: UNet2DConditionConfig, temb_channels: int) -> list[Level]:
        """What the blocks on the way down are built from, one for each."""
        n = len(c.block_out_channels)
        check_block_types(c, without="Skip")
        head_dims = per_block(c, "attention_head_dim", n)
        heads = per_block(c, "num_attention_heads", n) if c.num_attention_heads is not None else head_dims
        layers, only_cross = per_block(c, "layers_per_block", n), per_block(c, "only_cross_attention", n)
        context_dims, depths = per_block(c, "cross_attention_dim", n), per_block(c, "transformer_layers_per_block", n)
        if c.reverse_transformer_layers_per_block is not None:
            per_block(c, "reverse_transformer_layers_per_block", n)
        elif any(isinstance(depth, tuple) for depth in depths):
            where = "reverse_transformer_layers_per_block"
            raise ConfigError("The depth of the way up is missing.", where=where, expected="one tuple per block")
        return [
            Level.of(
                c,
                i,
                temb_channels=temb_channels,
                layers=layers[i],
                resample="conv" if i < n - 1 else None,
                heads=heads[i],
                head_dim=head_dims[i] or c.block_out_channels[i],
                depth=depths[i],
                context_dim=context_dims[i],
                only_cross=only_cross[i],
            )
            for i in range(n)
        ]

    @staticmethod
    def _middle(c: UNet2DConditionConfig, level: Level) -> MidBlock | None:
        kinds: dict[str | None, Attends | None] = {
            None: None,
            "UNetMidBlock2D": "",
            "UNetMidBlock2DCrossAttn": "transformer",
            "UNetMidBlock2DSimpleCrossAttn": "added_kv",
        }
        if c.mid_block_type not in kinds:
            raise one_of("mid_block_type", c.mid_block_type, *kinds)
        if (kind := kinds[c.mid_block_type]) is None:
            return None
        only_cross = c.mid_block_only_cross_attention
        if only_cross is None:
            only_cross = c.only_cross_attention is True
        simple = kind == "added_kv"
        options = {
            "resnet_out_scale_factor": c.mid_block_scale_factor,
            "resnet_skip_time_act": simple and c.resnet_skip_time_act,
            "only_cross": simple and only_cross,
        }
        return MidBlock(kind, replace(level, layers=1 if kind else 0, **options))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None,
        *,
        attend: Attend | None = None,
    ) -> Tensor:
        """Predict from a noisy sample.

        Args:
            sample: (B, in_channels, H, W); H and W of any size.
            timestep: one for all rows or one for each, 0 to 999 for most checkpoints.
            encoder_hidden_states: the context (B, M, cross_attention_dim).
            class_labels: (B,), or (B, C) for projected classes.
            timestep_cond: (B, time_cond_proj_dim), the embedded guidance scale of distilled networks.
            attention_mask, encoder_attention_mask: 1 keeps and 0 discards a key of self- and cross-attention;
                (B, M) or (B, N, M).
            cross_attention_kwargs: `scale` is accepted and belongs to adapters.
            added_cond_kwargs: `text_embeds`, `time_ids`, `image_embeds`, `hint`, as `addition_embed_type` needs them.
            down_block_additional_residuals: added to each skip connection (ControlNet, Zhang et al. 2023).
            mid_block_additional_residual: added after the middle.
            down_intrablock_additional_residuals: added inside blocks on the way down (T2I-Adapter, Mou et al. 2023).
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
        Returns:
            (B, out_channels, H, W).
        Raises:
            InputError: an argument that is missing or does not fit the configuration.
        """
        c, added = self.config, added_cond_kwargs or {}
        unknown = sorted(set(cross_attention_kwargs or ()) - {"scale"})
        if unknown:
            logger.warning("cross_attention_kwargs that nothing reads: %s", ", ".join(unknown))
        hinted = c.addition_embed_type == "image_hint"
        self._check(sample, self.conv_in.in_channels - (4 if hinted else 0))
        self._check_context(encoder_hidden_states)
        x = 2 * sample - 1 if c.center_input_sample else sample
        temb = self._embed(x, timestep, timestep_cond, encoder_hidden_states, class_labels, added)
        if hinted:
            x = torch.cat([x, self.add_embedding.hint(self._added(added, "hint"))], 1)  # (B, C + 4, H, W)
        context = self._context(encoder_hidden_states, added)
        context_mask = as_bias(encoder_attention_mask, x.dtype)
        if context_mask is not None and context is not None and context_mask.shape[-1] != context.shape[1]:
            got, fits = context_mask.shape[-1], context.shape[1]
            raise InputError("The mask does not fit.", where="encoder_attention_mask", got=got, expected=fits)
        mask = as_bias(attention_mask, x.dtype)
        cond = Conditions(temb, context, mask, context_mask, attend or self.attend)

        inside, outside = down_intrablock_additional_residuals, down_block_additional_residuals
        if mid_block_additional_residual is None:  # older T2I-Adapter programs pass theirs as a ControlNet's
            inside, outside = outside if inside is None else inside, None
        remaining = list(inside or ())

        x = self.conv_in(x)  # (B, C0, H, W)
        skips = [x]
        for block in self.down_blocks:
            x, new = self._run(block, x, cond, remaining.pop(0) if remaining else None)
            skips += new
        if outside is not None:
            if len(outside) != len(skips):
                where = "down_block_additional_residuals"
                raise InputError("Not one per skip connection.", where=where, got=len(outside), expected=len(skips))
            skips = [skip + more for skip, more in zip(skips, outside, strict=True)]
        if self.mid_block is not None:
            x = self._run(self.mid_block, x, cond)
            if remaining and remaining[0].shape == x.shape:
                x = x + remaining.pop(0)
        if mid_block_additional_residual is not None and outside is not None:
            x = x + mid_block_additional_residual
        for block in self.up_blocks:
            skips, taken = skips[: -len(block.resnets)], skips[-len(block.resnets) :]
            x = self._run(block, x, taken, cond, skips[-1].shape[-2:] if skips else None)
        if self.conv_norm_out is not None:
            x = self.conv_act(self.conv_norm_out(x))
        return self.conv_out(x)

    def _check_context(self, context: Tensor | None) -> None:
        dims = self.config.encoder_hid_dim if self.encoder_hid_dim_type else self.config.cross_attention_dim
        dims = dims if isinstance(dims, tuple) else (dims,)
        if self.reads_context and (context is None or context.ndim != 3 or context.shape[-1] not in dims):
            raise InputError(
                "The context does not fit this network.",
                where="encoder_hidden_states",
                got=None if context is None else tuple(context.shape),
                expected=f"(B, M, {dims[0]})",
                fix="Use the text encoder that belongs to this checkpoint.",
            )

    def _embed(
        self,
        x: Tensor,
        timestep: Tensor | float,
        timestep_cond: Tensor | None,
        context: Tensor | None,
        class_labels: Tensor | None,
        added: Mapping[str, Tensor],
    ) -> Tensor:
        """The vector (B, E) that all residual blocks receive."""
        c = self.config
        temb = self.time_embedding(self.time_proj(as_batch(timestep, x)).to(x.dtype), timestep_cond)
        if self.class_embedding is not None:
            if class_labels is None:
                raise InputError("This network needs a class.", where="class_labels", expected="one row per sample")
            if c.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(x.dtype)
            classes = self.class_embedding(class_labels).to(x.dtype)
            temb = torch.cat([temb, classes], -1) if c.class_embeddings_concat else temb + classes
        if c.addition_embed_type == "text":
            temb = temb + self.add_embedding(context)
        elif c.addition_embed_type == "text_image":
            temb = temb + self.add_embedding(added.get("text_embeds", context), self._added(added, "image_embeds"))
        elif c.addition_embed_type == "text_time":
            pooled, ids = self._added(added, "text_embeds"), self._added(added, "time_ids")
            sizes = self.add_time_proj(ids.flatten()).reshape(pooled.shape[0], -1)  # (B, numbers x dim)
            vector, expected = torch.cat([pooled, sizes], -1).to(temb.dtype), self.add_embedding.linear_1.in_features
            if vector.shape[-1] != expected:
                raise InputError(
                    "Pooled text and sizes do not have the width of this network.",
                    where="added_cond_kwargs: text_embeds, time_ids",
                    got=f"{pooled.shape[-1]} + {sizes.shape[-1]}",
                    expected=f"{expected} in all",
                    fix="SDXL's base takes 6 numbers per sample as time_ids, its refiner 5.",
                )
            temb = temb + self.add_embedding(vector)
        elif c.addition_embed_type in ("image", "image_hint"):
            temb = temb + self.add_embedding(self._added(added, "image_embeds"))
        return temb if self.time_embed_act is None else self.time_embed_act(temb)

    def _context(self, context: Tensor | None, added: Mapping[str, Tensor]) -> Tensor | None:
        """The context as attention receives it, (B, M, C)."""
        if self.encoder_hid_dim_type == "text_proj":
            context = self.encoder_hid_proj(context)
        elif self.encoder_hid_dim_type == "text_image_proj":
            context = self.encoder_hid_proj(context, self._added(added, "image_embeds"))
        elif self.encoder_hid_dim_type == "image_proj":
            context = self.encoder_hid_proj(self._added(added, "image_embeds"))
        return context

    def _added(self, added: Mapping[str, Tensor], name: str) -> Tensor:
        if added.get(name) is None:
            raise InputError("A condition is missing.", where="added_cond_kwargs", got=list(added), expected=name)
        return added[name]


def as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask of 1 (keep) and 0 (discard), (B, M) or (B, N, M), as a bias over attention scores, (B, 1, 1 or N, M)."""
    if mask is None:
        return None
    bias = (1 - mask.to(dtype)) * -10000.0
    return bias[:, None, None] if mask.ndim == 2 else bias[:, None]
