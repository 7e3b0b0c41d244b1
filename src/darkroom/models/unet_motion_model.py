"""A UNet over pictures with motion modules between its layers: a UNet over videos (AnimateDiff, Guo et al. 2023)."""

from __future__ import annotations
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self
import torch
from torch import Tensor, nn
from ..checkpoints.files import PathLike
from ..config import Config
from ..core.attention import Attend
from ..core.windows import Windows
from ..errors import ConfigError, InputError
from ..runtime.fork import cast_copy, fork
from .base import choose
from .layers.attention import Transformer2D
from .layers.motion import insert_motion, motion_modules, per_frame
from .layers.resnet import Level
from .layers.unet_blocks import Block, down_levels, middle_block, per_block, up_levels
from .motion_adapter import MotionAdapter
from .unet_2d import UNet2DOutput
from .unet_2d_condition import ConditionedUNet, UNet2DConditionModel

__all__ = ["UNetMotionConfig", "UNetMotionModel", "UNetMotionOutput"]

logger = logging.getLogger("darkroom")


class UNetMotionOutput(UNet2DOutput):
    """`sample`: the prediction (B, out_channels, F, H, W)."""


@dataclass(frozen=True, eq=False, repr=False)
class UNetMotionConfig(Config):
    """The keys of the network's `config.json`; those of a UNet over pictures mean the same (see `UNet2DConditionConfig`), except that
    `num_attention_heads` is the number of heads by its name. The rest are those of the motion modules (see `MotionAdapterConfig`).
    """

    # what such a network cannot be configured to
    center_input_sample: ClassVar[bool] = False
    flip_sin_to_cos: ClassVar[bool] = True
    freq_shift: ClassVar[int] = 0
    mid_block_type: ClassVar[str] = "UNetMidBlock2DCrossAttn"
    only_cross_attention: ClassVar[bool] = False
    dual_cross_attention: ClassVar[bool] = False
    class_embed_type: ClassVar[str | None] = None
    num_class_embeds: ClassVar[int | None] = None
    addition_embed_type_num_heads: ClassVar[int] = 64
    resnet_time_scale_shift: ClassVar[str] = "default"
    resnet_skip_time_act: ClassVar[bool] = False
    resnet_out_scale_factor: ClassVar[float] = 1.0
    time_embedding_type: ClassVar[str] = "positional"
    time_embedding_dim: ClassVar[int | None] = None
    time_embedding_act_fn: ClassVar[str | None] = None
    timestep_post_act: ClassVar[str | None] = None
    conv_in_kernel: ClassVar[int] = 3
    conv_out_kernel: ClassVar[int] = 3
    class_embeddings_concat: ClassVar[bool] = False

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlockMotion",) * 3, "DownBlockMotion")
    up_block_types: tuple[str, ...] = ("UpBlockMotion", *("CrossAttnUpBlockMotion",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    temporal_transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1
    reverse_temporal_transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    transformer_layers_per_mid_block: int | tuple[int, ...] | None = None
    temporal_transformer_layers_per_mid_block: int | tuple[int, ...] | None = 1
    use_linear_projection: bool = False
    num_attention_heads: int | tuple[int, ...] = 8
    motion_max_seq_length: int = 32
    motion_num_attention_heads: int | tuple[int, ...] = 8
    reverse_motion_num_attention_heads: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    use_motion_mid_block: bool = True
    mid_block_layers: int = 1
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None


class UNetMotionModel(ConditionedUNet):
    """A UNet over (B, C, F, H, W) that predicts noise, velocity or the clean sample, as its checkpoint was trained.
    Raises ConfigError for an option that has no meaning, or whose length does not fit the number of blocks.
    """

    Config = UNetMotionConfig
    Result = UNetMotionOutput
    config: UNetMotionConfig

    def build(self, c: UNetMotionConfig) -> None:
        choose("addition_embed_type", c.addition_embed_type, dict.fromkeys((None, "text_time")))
        choose("encoder_hid_dim_type", c.encoder_hid_dim_type, dict.fromkeys((None, "text_proj")))
        for way in ("Down", "Up"):
            for name in per_block(c, field := f"{way.lower()}_block_types"):
                choose(field, name, dict.fromkeys((f"CrossAttn{way}BlockMotion", f"{way}BlockMotion")))
        self.conv_in = nn.Conv2d(c.in_channels, c.block_out_channels[0], 3, padding=1)
        levels = self._levels(c, self._build_embeddings(c))
        depth = c.transformer_layers_per_mid_block
        if depth is None:
            depth = levels[-1].depth if isinstance(levels[-1].depth, int) else 1
        middle = replace(levels[-1], depth=depth, resnet_out_scale_factor=c.mid_block_scale_factor)
        depths = self._reversed(c, "transformer_layers_per_block")
        plain = c.replace(**{f: tuple(n.replace("Motion", "2D") for n in c[f]) for f in ("down_block_types", "up_block_types")})
        up = [replace(level, depth=depth) for level, depth in zip(up_levels(levels), depths)]
        self._build_blocks(plain, levels, middle_block(Transformer2D, middle, c.mid_block_layers + 1), up, "silu", 3, c.norm_num_groups)
        self.reads_context = True
        self._insert(self._motion(c))

    def _levels(self, c: Any, width: int) -> list[Level]:
        ours = {"heads": "num_attention_heads", "context_dim": "cross_attention_dim", "depth": "transformer_layers_per_block"}
        return down_levels(c, temb_channels=width, **{name: per_block(c, field) for name, field in ours.items()})

    @staticmethod
    def _reversed(c: UNetMotionConfig, field: str) -> tuple[Any, ...]:
        """An option of the blocks on the way up."""
        if c[f"reverse_{field}"] is not None:
            return per_block(c, f"reverse_{field}")
        values = per_block(c, field)
        if any(isinstance(v, tuple) for v in values):
            raise ConfigError("The depth of the way up is missing.", where=f"reverse_{field}", expected="one tuple per block")
        return values[::-1]

    def _blocks(self) -> list[Block]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]  # type: ignore[list-item]

    def _motion(self, c: UNetMotionConfig) -> list[nn.ModuleList | None]:
        """New motion modules for each block."""
        heads, size = per_block(c, "motion_num_attention_heads"), (c.norm_num_groups, c.motion_max_seq_length)
        layers, widths = per_block(c, "layers_per_block"), c.block_out_channels
        ups = zip(widths[::-1], layers[::-1], self._reversed(c, "temporal_transformer_layers_per_block"), heads[::-1])
        downs = zip(widths, layers, per_block(c, "temporal_transformer_layers_per_block"), heads)
        depth = c.temporal_transformer_layers_per_mid_block or 1
        mid = motion_modules(widths[-1], c.mid_block_layers, depth, heads[-1], *size) if c.use_motion_mid_block else None
        return [
            *(motion_modules(w, n, d, h, *size) for w, n, d, h in downs), mid,
            *(motion_modules(w, n + 1, d, h, *size) for w, n, d, h in ups),
        ]  # fmt: skip

    def _insert(self, made: Iterable[nn.ModuleList | None]) -> None:
        """Put motion modules behind the other layers of each block, in place of those that are there."""
        for block, modules in zip(self._blocks(), made, strict=True):
            insert_motion(block, modules)
        self._name_sites()

    @classmethod
    def from_unet2d(cls, unet: UNet2DConditionModel, motion_adapter: MotionAdapter | None = None, load_weights: bool = True) -> Self:
        """This UNet with the motion modules of an adapter, or with new ones to be trained, as a network over videos. No weight is copied, unless
        the adapter's dtype is another: the parameters are those of the UNet and of the adapter, and move with them. Layers replaced in
        one leave the others as they are. `load_weights=False` makes a network of new weights, of the same shapes.
        Raises ConfigError for a UNet of another kind, and an adapter that was made for another UNet.
        """
        config, own = unet.config, cls.Config
        odd = {n: config[n] for n in config.names() if n not in own.names() and config[n] != getattr(own, n, config[n])}
        fields = {f"{way.lower()}_block_types": (f"CrossAttn{way}Block2D", f"{way}Block2D") for way in ("Down", "Up")}
        odd |= {field: config[field] for field, known in fields.items() if not set(config[field]) <= set(known)}
        if odd:
            raise ConfigError("Motion modules do not go into such a network.", where="unet", got=odd, expected="as of Stable Diffusion")
        values: dict[str, Any] = {n: config[n] for n in own.names() if n in config.names()}
        values |= {f: tuple(n.replace("2D", "Motion") for n in config[f]) for f in fields}
        values["num_attention_heads"] = config.num_attention_heads or config.attention_head_dim
        if motion_adapter is not None and motion_adapter.config.conv_in_channels:
            values["in_channels"] = motion_adapter.config.conv_in_channels
        if not load_weights:
            return cls(**values | ({} if motion_adapter is None else cls._motion_options(values, motion_adapter)))
        self: Any = fork(unet)
        self.__class__ = cls
        self.config = cls.Config(**values)
        if motion_adapter is None:
            self._insert([m and m.to(unet.device, unet.dtype) for m in self._motion(self.config)])
            return self
        self.load_motion_modules(motion_adapter)
        if (seen := motion_adapter.conv_in) is not None:  # what the adapter sees beside the latents
            first, extra = self.conv_in, seen.weight[:, unet.config.in_channels :].to(self.conv_in.weight)
            self.conv_in = nn.Conv2d(seen.in_channels, seen.out_channels, 3, padding=1, device="meta")
            self.conv_in.weight, self.conv_in.bias = nn.Parameter(torch.cat([first.weight, extra], 1).detach()), first.bias
        return self

    @staticmethod
    def _motion_options(config: Mapping[str, Any], adapter: MotionAdapter) -> dict[str, Any]:
        """The options that an adapter settles, if it fits a network of this configuration."""
        a, count = adapter.config, len(config["block_out_channels"])
        layers = [v if isinstance(v, tuple) else (v,) * count for v in (config["layers_per_block"], a.motion_layers_per_block)]
        ours, theirs = (config["block_out_channels"], layers[0]), (a.block_out_channels, layers[1])
        if ours != theirs:
            what, where = "The motion adapter was made for another network.", "motion_adapter: block_out_channels, motion_layers_per_block"
            raise ConfigError(what, where=where, got=theirs, expected=ours, fix="SD 1.5 and SDXL have adapters of their own.")
        names = {
            "temporal_transformer_layers_per_block": a.motion_transformer_layers_per_block,
            "temporal_transformer_layers_per_mid_block": a.motion_transformer_layers_per_mid_block,
        }  # fmt: skip
        return names | {n: a[n] for n in ("motion_num_attention_heads", "motion_max_seq_length", "use_motion_mid_block")}

    def load_motion_modules(self, motion_adapter: MotionAdapter) -> None:
        """Take the motion modules of an adapter, without copying them (see `from_unet2d`), in place of those that are there."""
        options = self._motion_options(self.config, motion_adapter)
        twin = fork(motion_adapter) if motion_adapter.dtype == self.dtype else cast_copy(motion_adapter, self.dtype)
        twin = twin.to(self.device)
        blocks = [*twin.down_blocks, twin.mid_block, *twin.up_blocks]
        self.config = self.config.replace(**options)
        self._insert([None if block is None else block.motion_modules for block in blocks])
        for block in self._blocks():
            for module in getattr(block, "motion_modules", ()):
                module.norm.num_groups = self.config.norm_num_groups  # the network's, as its configuration has no other

    def save_motion_modules(self, save_directory: PathLike, *, variant: str | None = None, safe_serialization: bool = True) -> None:
        """Write the motion modules alone, as a `MotionAdapter`."""
        c = self.config
        if c.reverse_temporal_transformer_layers_per_block is not None:
            where, got = "reverse_temporal_transformer_layers_per_block", c.reverse_temporal_transformer_layers_per_block
            raise ConfigError("A motion adapter has one depth for both ways.", where=where, got=got, expected="None")
        adapter = MotionAdapter(
            block_out_channels=c.block_out_channels, motion_layers_per_block=c.layers_per_block,
            motion_transformer_layers_per_block=c.temporal_transformer_layers_per_block,
            motion_mid_block_layers_per_block=c.mid_block_layers, motion_norm_num_groups=c.norm_num_groups,
            motion_transformer_layers_per_mid_block=c.temporal_transformer_layers_per_mid_block or 1,
            motion_num_attention_heads=c.motion_num_attention_heads, motion_max_seq_length=c.motion_max_seq_length,
            use_motion_mid_block=c.use_motion_mid_block,
        ).to(self.dtype)  # fmt: skip
        adapter.load_state_dict({name: tensor for name, tensor in self.state_dict().items() if "motion_modules" in name})
        adapter.save_pretrained(save_directory, variant=variant, safe_serialization=safe_serialization)

    def freeze_unet2d_params(self) -> None:
        """Let only the motion modules learn. Weights that another network shares are frozen there too."""
        for name, p in self.named_parameters():
            p.requires_grad_("motion_modules" in name)

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """One call for `rows` videos of 16 frames of this size; the values mean nothing."""
        c, frames = self.config, min(16, self.config.motion_max_seq_length)
        x = torch.empty(rows, c.in_channels, frames, height, width, dtype=self.dtype)
        context = torch.empty(rows, 77, c.encoder_hid_dim or per_block(c, "cross_attention_dim")[0], dtype=self.dtype)
        added = {}
        if c.addition_embed_type == "text_time":
            text = (c.projection_class_embeddings_input_dim or 0) - 6 * (c.addition_time_embed_dim or 0)
            added = {"text_embeds": torch.empty(rows, text, dtype=self.dtype), "time_ids": torch.empty(rows, 6, dtype=self.dtype)}
        cond = None if c.time_cond_proj_dim is None else torch.empty(rows, c.time_cond_proj_dim, dtype=self.dtype)
        return self(x, torch.ones(1), context, timestep_cond=cond, added_cond_kwargs=added)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None, cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None, down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None, *, attend: Attend | None = None, windows: Windows | None = None,
        at_once: tuple[int, int] | None = None,
    ) -> Tensor:  # fmt: skip
        """Predict from noisy frames: (B, in_channels, F, H, W) -> (B, out_channels, F, H, W).
        Args:
            timestep: one for all rows or one for each.
            encoder_hidden_states: the context, (B, M, cross_attention_dim), or (B F, M, cross_attention_dim), one for each frame.
            timestep_cond: (B, time_cond_proj_dim), the embedded guidance scale of distilled networks.
            attention_mask: 1 keeps and 0 discards a key of self-attention inside of frames; (B or B F, M).
            cross_attention_kwargs: `scale` is accepted and belongs to adapters.
            added_cond_kwargs: `text_embeds` (B, C) and `time_ids` (B, 6) of SDXL.
            down_block_additional_residuals, mid_block_additional_residual: of a ControlNet, for each frame: (B F, C, H, W).
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
            windows: how motion modules go through more frames than they were trained on.
            at_once: how many frames, and how many pixels of all frames, layers take at a time, to save memory.
        Raises InputError for an argument that is missing or does not fit the configuration.
        """
        c, context = self.config, encoder_hidden_states
        if sample.ndim != 5 or sample.shape[1] != self.conv_in.in_channels:
            got, fits = tuple(sample.shape), f"(B, {self.conv_in.in_channels}, F, H, W)"
            raise InputError("The sample does not fit this network.", where="sample", got=got, expected=fits)
        if unknown := sorted(set(cross_attention_kwargs or ()) - {"scale"}):
            logger.warning("cross_attention_kwargs that nothing reads: %s", ", ".join(unknown))
        rows, frames = sample.shape[0], sample.shape[2]
        dims = per_block(c, "cross_attention_dim") if self.encoder_hid_proj is None else (c.encoder_hid_dim,)
        given = (timestep, context, None, timestep_cond, added_cond_kwargs or {}, attention_mask)
        cond = self._conditions(sample[:, :, 0], *given, dims, attend)
        if self.encoder_hid_proj is not None:
            context = self.encoder_hid_proj(context)
        if context.shape[0] not in (rows, rows * frames):
            expected = f"{rows} or {rows * frames}"
            raise InputError(
                "There is a context for each video, or for each frame.", where="encoder_hidden_states", got=len(context), expected=expected
            )
        picture, pixel = at_once or (None, None)
        cond = per_frame(replace(cond, temb=self.time_embed_act(cond.temb), context=context), rows, frames)
        cond = replace(cond, windows=windows, at_once=picture, pixels_at_once=pixel)
        x = self._through(sample.transpose(1, 2).flatten(0, 1), cond, (), down_block_additional_residuals, mid_block_additional_residual)
        return x.unflatten(0, (rows, frames)).transpose(1, 2)
