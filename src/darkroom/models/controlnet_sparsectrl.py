"""SparseCtrl: a ControlNet with motion modules, which sees pictures for some frames of a video and steers all of them (Guo et al. 2023)."""

from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
import torch
from torch import Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..errors import InputError
from .base import choose
from .controlnet import ControlNet, ControlNetConfig, ControlNetOutput, zeroed
from .layers.motion import insert_motion, motion_modules, per_frame
from .layers.unet_blocks import per_block
from .unet_2d_condition import UNet2DConditionModel

__all__ = ["SparseControlNetConfig", "SparseControlNetModel", "SparseControlNetOutput"]


class SparseControlNetOutput(ControlNetOutput):
    """The same fields; each has a row for each frame, (B F, C, H, W)."""


@dataclass(frozen=True, eq=False, repr=False)
class SparseControlNetConfig(Config):
    """The keys of the network's `config.json`; those of a ControlNet mean the same (see `ControlNetConfig`). With
    `use_simplified_condition_embedding` pictures come as latents; with `concat_conditioning_mask` a further channel says which frames have one.
    """

    addition_embed_type: ClassVar[str | None] = None
    time_cond_proj_dim: ClassVar[int | None] = None

    in_channels: int = 4
    conditioning_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlockMotion",) * 3, "DownBlockMotion")
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 768
    transformer_layers_per_block: int | tuple[int, ...] = 1
    transformer_layers_per_mid_block: int | tuple[int, ...] | None = None
    temporal_transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256)
    global_pool_conditions: bool = False
    controlnet_conditioning_channel_order: str = "rgb"
    motion_max_seq_length: int = 32
    motion_num_attention_heads: int | tuple[int, ...] = 8
    concat_conditioning_mask: bool = True
    use_simplified_condition_embedding: bool = True


class SparseControlNetModel(ControlNet):
    """A ControlNet for videos of which some frames are given. Raises ConfigError for an option that has no meaning."""

    Config = SparseControlNetConfig
    Result = SparseControlNetOutput
    config: SparseControlNetConfig

    def build(self, c: SparseControlNetConfig) -> None:
        for name in per_block(c, "down_block_types"):
            choose("down_block_types", name, dict.fromkeys(("CrossAttnDownBlockMotion", "DownBlockMotion")))
        shared = {name: c[name] for name in ControlNetConfig.names() if name in c.names()}
        shared |= {"down_block_types": tuple(name.replace("Motion", "2D") for name in c.down_block_types), "downsample_padding": 1}
        shared["conditioning_embedding_out_channels"] = c.conditioning_embedding_out_channels or (16, 32, 96, 256)
        plain = ControlNetConfig(**shared | {"conditioning_channels": self._seen(c)})
        super().build(plain)
        first, depth = c.block_out_channels[0], c.transformer_layers_per_mid_block
        level = self._levels(plain, 4 * first)[-1]
        if depth is None:
            depth = level.depth if isinstance(level.depth, int) else 1
        self.mid_block = self._middle(plain, replace(level, depth=depth))
        if c.use_simplified_condition_embedding:
            self.controlnet_cond_embedding = zeroed(nn.Conv2d(self._seen(c), first, 3, padding=1))  # type: ignore[assignment]
        fields = "block_out_channels layers_per_block temporal_transformer_layers_per_block motion_num_attention_heads"
        for block, *sizes in zip(self.down_blocks, *(per_block(c, field) for field in fields.split())):
            insert_motion(block, motion_modules(*sizes, c.norm_num_groups, c.motion_max_seq_length, double=False))  # type: ignore[arg-type]

    @staticmethod
    def _seen(c: SparseControlNetConfig) -> int:
        """Channels of the pictures and of what says which frames have one."""
        return c.conditioning_channels + c.concat_conditioning_mask

    @classmethod
    def sizes_for(cls, unet: UNet2DConditionModel) -> Mapping[str, Any]:
        return {"down_block_types": tuple(name.replace("2D", "Motion") for name in unet.config.down_block_types)}

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor, controlnet_cond: Tensor,
        conditioning_scale: float = 1.0, timestep_cond: Tensor | None = None, attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None, conditioning_mask: Tensor | None = None, guess_mode: bool = False, *,
        attend: Attend | None = None,
    ) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """Residuals for a UNet over videos, (B F, C, H, W), from pictures for some frames.
        Args:
            sample: the noisy frames (B, in_channels, F, H, W). Only their size counts: this network does not look at them.
            encoder_hidden_states: the context, (B, M, cross_attention_dim), or (B F, M, cross_attention_dim), one for each frame.
            controlnet_cond: (B, conditioning_channels, F, h, w): latents of the size of the sample, or pictures; zeros where there is none.
            conditioning_mask: (B, 1, F, h, w), 1 for the frames that have a picture, else 0.
            conditioning_scale: weight of the residuals.
            guess_mode: weigh residuals from 0.1 (the finest) to 1 (the middle), for work without a prompt.
            timestep, attention_mask, attend: as of the UNet. `timestep_cond` and `cross_attention_kwargs` are accepted; nothing reads them.
        Raises InputError for an argument that is missing or does not fit the configuration.
        """
        c, context, seen = self.config, encoder_hidden_states, controlnet_cond
        rows, frames = sample.shape[0], sample.shape[2] if sample.ndim == 5 else 0
        if frames == 0 or sample.shape[1] != c.in_channels:
            got, fits = tuple(sample.shape), f"(B, {c.in_channels}, F, H, W)"
            raise InputError("The sample does not fit this network.", where="sample", got=got, expected=fits)
        if c.controlnet_conditioning_channel_order == "bgr":
            seen = seen.flip(1)
        if c.concat_conditioning_mask:
            if conditioning_mask is None:
                raise InputError("What frames are given is missing.", where="conditioning_mask", expected=f"({rows}, 1, {frames}, h, w)")
            seen = torch.cat([seen, conditioning_mask.to(seen)], 1)
        if context.shape[0] not in (rows, rows * frames) or seen.shape[:3] != (rows, self._seen(c), frames):
            where, got = "encoder_hidden_states, controlnet_cond", f"{tuple(context.shape)}, {tuple(controlnet_cond.shape)}"
            expected = f"({rows} or {rows * frames}, M, C), ({rows}, {c.conditioning_channels}, {frames}, h, w)"
            raise InputError("They do not fit the sample.", where=where, got=got, expected=expected)
        dims = per_block(c, "cross_attention_dim")
        cond = self._conditions(sample[:, :, 0], timestep, context, None, None, {}, attention_mask, dims, attend)
        cond = per_frame(replace(cond, context=context), rows, frames)
        x = self.conv_in(torch.zeros_like(sample).transpose(1, 2).flatten(0, 1))  # (BF, C0, H, W)
        picture = self.controlnet_cond_embedding(seen.transpose(1, 2).flatten(0, 1))
        if picture.shape != x.shape:
            got, expected = tuple(controlnet_cond.shape[-2:]), "the size of the sample, after the network's own reduction"
            raise InputError("The pictures have another size.", where="controlnet_cond", got=got, expected=expected)
        return self._residuals(x + picture, cond, conditioning_scale, guess_mode)
