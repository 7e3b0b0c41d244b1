"""The UNet of latent diffusion, conditioned on a timestep and on a sequence of states (Rombach et al. 2022)."""

from __future__ import annotations
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
import torch
from torch import Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from .base import choose
from .layers import embeddings
from .layers.attention import AddedKVAttention, Conditions, Transformer2D
from .layers.embeddings import GaussianFourierProjection, TextTimeEmbedding, TimestepEmbedding, Timesteps
from .layers.resnet import Level, activation
from .layers.unet_blocks import Attends, Block, down_levels, middle_block, per_block, up_levels
from .unet_2d import UNet, UNet2DOutput

__all__ = ["ConditionedUNet", "UNet2DConditionConfig", "UNet2DConditionModel", "UNet2DConditionOutput"]

logger = logging.getLogger("darkroom")


class UNet2DConditionOutput(UNet2DOutput):
    """`sample`: the prediction (B, out_channels, H, W)."""


@dataclass(frozen=True, eq=False, repr=False)
class UNet2DConditionConfig(Config):
    """The keys of the network's `config.json`.
    `attention_head_dim` is the number of attention heads of transformer blocks, against its name, unless `num_attention_heads` is
    given: all checkpoints are written so. In other attentions it is what it says. Options of one value per block may be one for all.
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


class ConditionedUNet(UNet):
    """What networks share that read a context and added conditions beside the timestep, a whole UNet or its way down alone (ControlNet)."""

    def _levels(self, c: Any, width: int) -> list[Level]:
        """What the way down is built from; `width` is that of the timestep embedding."""
        heads = per_block(c, "attention_head_dim" if c.num_attention_heads is None else "num_attention_heads")
        options = {"context_dim": per_block(c, "cross_attention_dim"), "only_cross": per_block(c, "only_cross_attention")}
        options["depth"] = per_block(c, "transformer_layers_per_block")
        options["head_dim"] = tuple(dim or size for dim, size in zip(per_block(c, "attention_head_dim"), c.block_out_channels))
        return down_levels(c, temb_channels=width, heads=heads, **options)

    def _build_embeddings(self, c: Any) -> int:
        """What turns timestep, class and added conditions into one vector. Returns its width."""

        def given(field: str) -> int:
            if not isinstance(c[field], int):
                raise ConfigError("This network needs one number here.", where=field, got=c[field], expected="an int")
            return c[field]

        first = c.block_out_channels[0]
        fourier = choose("time_embedding_type", c.time_embedding_type, {"positional": False, "fourier": True})
        width = c.time_embedding_dim or first * (2 if fourier else 4)
        if fourier and width % 2:
            raise ConfigError("A Fourier embedding is even.", where="time_embedding_dim", got=width)
        if fourier:
            self.time_proj = GaussianFourierProjection(width // 2, log=False, flip_sin_to_cos=c.flip_sin_to_cos)
        else:
            self.time_proj = Timesteps(first, c.flip_sin_to_cos, c.freq_shift)
        time_dim = width if fourier else first
        self.time_embedding = TimestepEmbedding(time_dim, width, c.act_fn, post_act=c.timestep_post_act, cond_dim=c.time_cond_proj_dim)
        self.time_embed_act = nn.Identity() if c.time_embedding_act_fn is None else activation(c.time_embedding_act_fn)
        kind = c.encoder_hid_dim_type or ("text_proj" if c.encoder_hid_dim is not None else None)
        wide, context_dim = partial(given, "encoder_hid_dim"), partial(given, "cross_attention_dim")
        projections = {
            None: lambda: None,
            "text_proj": lambda: nn.Linear(wide(), context_dim()),
            "text_image_proj": lambda: embeddings.TextImageProjection(wide(), context_dim(), context_dim()),
            "image_proj": lambda: embeddings.ImageProjection(wide(), context_dim()),
            "ip_image_proj": lambda: None,  # saved with an IP-Adapter, which belongs to a pipeline here
        }
        self.encoder_hid_dim_type, self.encoder_hid_proj = kind, choose("encoder_hid_dim_type", kind, projections)()
        classes = {
            None: lambda: None if c.num_class_embeds is None else nn.Embedding(c.num_class_embeds, width),
            "timestep": lambda: TimestepEmbedding(time_dim, width, c.act_fn),
            "identity": nn.Identity,
            "projection": lambda: TimestepEmbedding(given("projection_class_embeddings_input_dim"), width),
            "simple_projection": lambda: nn.Linear(given("projection_class_embeddings_input_dim"), width),
        }
        self.class_embedding = choose("class_embed_type", c.class_embed_type, classes)()
        text_field = "cross_attention_dim" if c.encoder_hid_dim is None else "encoder_hid_dim"
        additions = {
            None: lambda: None,
            "text": lambda: TextTimeEmbedding(given(text_field), width, c.addition_embed_type_num_heads),
            "text_image": lambda: embeddings.TextImageTimeEmbedding(context_dim(), context_dim(), width),
            "text_time": lambda: TimestepEmbedding(given("projection_class_embeddings_input_dim"), width),
            "image": lambda: embeddings.ImageTimeEmbedding(wide(), width),
            "image_hint": lambda: embeddings.ImageHintTimeEmbedding(wide(), width),
        }
        self.add_embedding = choose("addition_embed_type", c.addition_embed_type, additions)()
        if c.addition_embed_type == "text_time":
            self.add_time_proj = Timesteps(given("addition_time_embed_dim"), c.flip_sin_to_cos, c.freq_shift)
        return width

    @staticmethod
    def _middle(c: Any, level: Level) -> Block | None:
        bare: dict[str | None, Attends] = {None: None, "UNetMidBlock2D": None}
        read = {"UNetMidBlock2DCrossAttn": Transformer2D, "UNetMidBlock2DSimpleCrossAttn": AddedKVAttention}
        kind = choose("mid_block_type", c.mid_block_type, bare | read)
        if c.mid_block_type is None:
            return None
        simple, only_cross = kind is AddedKVAttention, c.mid_block_only_cross_attention
        if only_cross is None:
            only_cross = c.only_cross_attention is True
        options = {"resnet_skip_time_act": simple and c.resnet_skip_time_act, "only_cross": simple and only_cross}
        return middle_block(kind, replace(level, resnet_out_scale_factor=c.mid_block_scale_factor, **options), layers=2 if kind else 1)

    def _conditions(
        self, x: Tensor, timestep: Tensor | float, context: Tensor | None, class_labels: Tensor | None, timestep_cond: Tensor | None,
        added: Mapping[str, Tensor], attention_mask: Tensor | None, dims: tuple[int, ...], attend: Attend | None,
    ) -> Conditions:  # fmt: skip
        """What blocks receive, from the arguments of a call; `dims` are the widths that the context may have."""
        if self.reads_context and (context is None or context.ndim != 3 or context.shape[-1] not in dims):
            got, fix = None if context is None else tuple(context.shape), "Use the text encoder that belongs to this checkpoint."
            what, where = "The context does not fit this network.", "encoder_hidden_states"
            raise InputError(what, where=where, got=got, expected=f"(B, M, {dims[0]})", fix=fix)
        temb, kind = self._embed(x, timestep, class_labels, timestep_cond), self.config.addition_embed_type
        if kind is not None:
            temb = temb + self._added(kind, context, added, temb.dtype)
        return Conditions(temb, context, as_bias(attention_mask, x.dtype), attend=attend or self.attend)

    @staticmethod
    def _given(added: Mapping[str, Tensor], name: str) -> Tensor:
        if added.get(name) is None:
            raise InputError("A condition is missing.", where="added_cond_kwargs", got=list(added), expected=name)
        return added[name]

    def _added(self, kind: str, context: Tensor | None, added: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """What further conditions add to the timestep's vector: (B, E)."""
        if kind == "text":
            return self.add_embedding(context)
        if kind == "text_time":
            return self.add_embedding(self._pooled(added).to(dtype))
        text = (added.get("text_embeds", context),) if kind == "text_image" else ()
        return self.add_embedding(*text, self._given(added, "image_embeds"))

    def _pooled(self, added: Mapping[str, Tensor]) -> Tensor:
        """Pooled text beside the sinusoids of SDXL's sizes (Podell et al. 2023)."""
        pooled, ids = self._given(added, "text_embeds"), self._given(added, "time_ids")
        sizes = self.add_time_proj(ids.flatten()).reshape(pooled.shape[0], -1)  # (B, numbers x dim)
        expected = self.add_embedding.linear_1.in_features
        if pooled.shape[-1] + sizes.shape[-1] != expected:
            what, where = "Pooled text and sizes do not have the width of this network.", "added_cond_kwargs: text_embeds, time_ids"
            got = f"{pooled.shape[-1]} + {sizes.shape[-1]}"
            raise InputError(what, where=where, got=got, expected=f"{expected}", fix="SDXL takes 6 time_ids per sample, its refiner 5.")
        return torch.cat([pooled, sizes], -1)


class UNet2DConditionModel(ConditionedUNet):
    """A UNet over (B, C, H, W) that predicts noise, velocity or the clean sample, as its checkpoint was trained.
    Raises ConfigError for an option that has no meaning, or whose length does not fit the number of blocks.
    """

    Config = UNet2DConditionConfig
    Result = UNet2DConditionOutput
    config: UNet2DConditionConfig

    def build(self, c: UNet2DConditionConfig) -> None:
        gated = choose("attention_type", c.attention_type, {"default": None, "gated": False, "gated-text-image": True})
        context_dim = per_block(c, "cross_attention_dim")[0]
        self.position_net = None if gated is None else embeddings.GroundedObjects(context_dim, context_dim, gated)
        depths = per_block(c, "transformer_layers_per_block")
        if c.reverse_transformer_layers_per_block is not None:
            per_block(c, "reverse_transformer_layers_per_block")
        elif any(isinstance(depth, tuple) for depth in depths):
            where = "reverse_transformer_layers_per_block"
            raise ConfigError("The depth of the way up is missing.", where=where, expected="one tuple per block")
        self.conv_in = nn.Conv2d(c.in_channels, c.block_out_channels[0], c.conv_in_kernel, padding=(c.conv_in_kernel - 1) // 2)
        width = self._build_embeddings(c)
        self.concat_classes = c.class_embeddings_concat
        levels = self._levels(c, width * 2 if c.class_embeddings_concat else width)
        # head_dim is not reversed on the way up: the checkpoints were trained so
        ups = zip(up_levels(levels), levels, c.reverse_transformer_layers_per_block or depths[::-1])
        up = [replace(a, head_dim=b.head_dim, depth=depth) for a, b, depth in ups]
        self._build_blocks(c, levels, self._middle(c, levels[-1]), up, c.act_fn, c.conv_out_kernel, c.norm_num_groups)
        reads = self.encoder_hid_dim_type != "image_proj" and any(getattr(m, "reads_context", False) for m in self.modules())
        self.reads_context = reads or c.addition_embed_type == "text"

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor | None, class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None, attention_mask: Tensor | None = None, cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None, down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None, down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
        encoder_attention_mask: Tensor | None = None, *, attend: Attend | None = None,
    ) -> Tensor:  # fmt: skip
        """Predict from a noisy sample: (B, in_channels, H, W) -> (B, out_channels, H, W); H and W of any size.
        Args:
            timestep: one for all rows or one for each, 0 to 999 for most checkpoints.
            encoder_hidden_states: the context (B, M, cross_attention_dim).
            class_labels: (B,), or (B, C) for projected classes.
            timestep_cond: (B, time_cond_proj_dim), the embedded guidance scale of distilled networks.
            attention_mask, encoder_attention_mask: 1 keeps and 0 discards a key of self- and cross-attention; (B, M) or (B, N, M).
            cross_attention_kwargs: `scale` and `ip_adapter_masks` are accepted and belong to adapters; `gligen` are the arguments of
                `GroundedObjects`, for networks whose `attention_type` is "gated" or "gated-text-image", which may go without.
            added_cond_kwargs: what `addition_embed_type` and `encoder_hid_dim_type` need: `text_embeds` (B, C) and `time_ids` (B, 5 or 6) for
                "text_time", `image_embeds` (B, C) for those named after images, `hint` (B, 3, 8H, 8W) for "image_hint".
            down_block_additional_residuals: added to each skip connection (ControlNet, Zhang et al. 2023).
            mid_block_additional_residual: added after the middle.
            down_intrablock_additional_residuals: added inside blocks on the way down (T2I-Adapter, Mou et al. 2023).
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
        Raises InputError for an argument that is missing or does not fit the configuration.
        """
        c = self.config
        if unknown := sorted(set(cross_attention_kwargs or ()) - {"gligen", "ip_adapter_masks", "scale"}):
            logger.warning("cross_attention_kwargs that nothing reads: %s", ", ".join(unknown))
        objects = (cross_attention_kwargs or {}).get("gligen")
        if objects is not None and self.position_net is None:
            where, expected = "cross_attention_kwargs: gligen", 'an attention_type of "gated"'
            raise InputError("This network knows no objects.", where=where, expected=expected)
        x, context = self._centred(sample, 4 if c.addition_embed_type == "image_hint" else 0), encoder_hidden_states
        fits = c.cross_attention_dim if self.encoder_hid_proj is None else c.encoder_hid_dim
        dims = fits if isinstance(fits, tuple) else (fits,)
        added = added_cond_kwargs or {}
        cond = self._conditions(x, timestep, context, class_labels, timestep_cond, added, attention_mask, dims, attend)
        if c.addition_embed_type == "image_hint":
            x = torch.cat([x, self.add_embedding.input_hint_block(self._given(added, "hint"))], 1)  # (B, in_channels, H, W)
        if self.encoder_hid_proj is not None:
            image = () if self.encoder_hid_dim_type == "text_proj" else (self._given(added, "image_embeds"),)
            text = () if self.encoder_hid_dim_type == "image_proj" else (context,)
            context = self.encoder_hid_proj(*text, *image)  # (B, M, cross_attention_dim)
        context_mask = as_bias(encoder_attention_mask, x.dtype)
        if context_mask is not None and context is not None and context_mask.shape[-1] != context.shape[1]:
            got, keys = context_mask.shape[-1], context.shape[1]
            raise InputError("The mask does not fit.", where="encoder_attention_mask", got=got, expected=keys)
        inside, outside = down_intrablock_additional_residuals, down_block_additional_residuals
        if mid_block_additional_residual is None:  # older T2I-Adapter programs pass theirs as a ControlNet's
            inside, outside = outside if inside is None else inside, None
        cond = replace(cond, temb=self.time_embed_act(cond.temb), context=context, context_mask=context_mask)
        if objects is not None and self.position_net is not None:
            cond = replace(cond, objects=self.position_net(objects))
        return self._through(x, cond, inside or (), outside, mid_block_additional_residual)

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """One call for `rows` samples of this size with conditions of the usual shapes; the values mean nothing."""
        c = self.config
        hinted = c.addition_embed_type == "image_hint"
        x = torch.empty(rows, c.in_channels - 4 * hinted, height, width, dtype=self.dtype)
        dims = c.cross_attention_dim if c.encoder_hid_dim is None else c.encoder_hid_dim
        context = torch.empty(rows, 77, dims if isinstance(dims, int) else dims[0], dtype=self.dtype)
        added, labels = {}, None
        if c.addition_embed_type == "text_time":
            count = 6 if (c.projection_class_embeddings_input_dim or 0) - 6 * (c.addition_time_embed_dim or 0) >= 1280 else 5
            text = (c.projection_class_embeddings_input_dim or 0) - count * (c.addition_time_embed_dim or 0)
            added = {"text_embeds": torch.empty(rows, text, dtype=self.dtype), "time_ids": torch.empty(rows, count, dtype=self.dtype)}
        if "image" in (kinds := f"{c.addition_embed_type} {self.encoder_hid_proj and c.encoder_hid_dim_type}"):
            wide = c.cross_attention_dim if "text_image" in kinds else c.encoder_hid_dim
            added = {name: torch.empty(rows, wide, dtype=self.dtype) for name in ("text_embeds", "image_embeds")}
            added |= {"hint": torch.empty(rows, 3, 8 * height, 8 * width, dtype=self.dtype)} if hinted else {}
        if c.num_class_embeds is not None or c.class_embed_type == "timestep":
            labels = torch.zeros(rows, dtype=torch.int64)
        elif c.projection_class_embeddings_input_dim is not None and c.class_embed_type is not None:
            labels = torch.empty(rows, c.projection_class_embeddings_input_dim, dtype=self.dtype)
        cond = None if c.time_cond_proj_dim is None else torch.empty(rows, c.time_cond_proj_dim, dtype=self.dtype)
        return self(x, torch.ones(1), context, class_labels=labels, timestep_cond=cond, added_cond_kwargs=added)


def as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask of 1 (keep) and 0 (discard), (B, M) or (B, N, M), as a bias over attention scores, (B, 1, 1 or N, M)."""
    if mask is None:
        return None
    bias = (1 - mask.to(dtype)) * -10000.0
    return bias[:, None, None] if mask.ndim == 2 else bias[:, None]
