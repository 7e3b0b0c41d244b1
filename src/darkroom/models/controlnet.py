"""ControlNet: a trainable copy of a UNet's way down that looks at a picture and adds to the UNet's skip connections (Zhang et al. 2023)."""

from __future__ import annotations
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from ..outputs import Output
from .base import choose
from .layers.attention import Conditions
from .layers.unet_blocks import DownBlock, block, per_block
from .unet_2d_condition import ConditionedUNet, UNet2DConditionModel

__all__ = ["ControlNet", "ControlNetConditioningEmbedding", "ControlNetConfig", "ControlNetModel", "ControlNetOutput", "zeroed"]


@dataclass
class ControlNetOutput(Output):
    """`down_block_res_samples`: what each skip connection of the UNet receives, (B, C, H, W) at its size; `mid_block_res_sample`: its middle."""

    down_block_res_samples: Sequence[Tensor]
    mid_block_res_sample: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class ControlNetConfig(Config):
    """The keys of the network's `config.json`; those that a UNet has too mean the same (see `UNet2DConditionConfig`).
    `conditioning_embedding_out_channels` are the widths of the picture's embedding, which halves its size between them.
    `global_pool_conditions` averages residuals over the picture, which then steers style rather than layout.
    """

    time_embedding_type: ClassVar[str] = "positional"
    time_embedding_dim: ClassVar[int | None] = None
    time_embedding_act_fn: ClassVar[str | None] = None
    timestep_post_act: ClassVar[str | None] = None
    time_cond_proj_dim: ClassVar[int | None] = None
    resnet_skip_time_act: ClassVar[bool] = False
    mid_block_only_cross_attention: ClassVar[bool | None] = None

    in_channels: int = 4
    conditioning_channels: int = 3
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    act_fn: str = "silu"
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple[int, ...], ...] = 1
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: int | None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: str = "default"
    projection_class_embeddings_input_dim: int | None = None
    controlnet_conditioning_channel_order: str = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False
    addition_embed_type_num_heads: int = 64


def zeroed(layer: nn.Conv2d | nn.Linear) -> Any:
    """The layer with weights of zero: what it is added to does not change until it is trained."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class ControlNetConditioningEmbedding(nn.Module):
    """The picture in the resolution of latents, (B, C, fH, fW) to (B, out, H, W): convolutions, every second one halves the size."""

    def __init__(self, channels: int, out: int, widths: Sequence[int]):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        pairs = [[nn.Conv2d(a, a, 3, padding=1), nn.Conv2d(a, b, 3, padding=1, stride=2)] for a, b in pairwise(widths)]
        self.blocks = nn.ModuleList(layer for pair in pairs for layer in pair)
        self.conv_out = zeroed(nn.Conv2d(widths[-1], out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv_in, *self.blocks):
            x = F.silu(layer(x))
        return self.conv_out(x)


class ControlNet(ConditionedUNet):
    """What ControlNets share: the way down, the middle, and a layer of zeros, before training, behind each of their results."""

    Result = ControlNetOutput
    orders: ClassVar[tuple[str, ...]] = ("rgb", "bgr")  # of the picture's channels

    def build(self, c: Any) -> None:
        choose("controlnet_conditioning_channel_order", c.controlnet_conditioning_channel_order, dict.fromkeys(self.orders))
        choose("encoder_hid_dim_type", c.encoder_hid_dim_type, dict.fromkeys((None, "text_proj")))
        choose("addition_embed_type", c.addition_embed_type, dict.fromkeys((None, "text", "text_time")))
        widths = c.block_out_channels
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        levels = self._levels(c, self._build_embeddings(c))
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            c.conditioning_channels, widths[0], c.conditioning_embedding_out_channels
        )
        self.down_blocks = nn.ModuleList(map(block, per_block(c, "down_block_types"), levels))
        if odd := [name for name, made in zip(c.down_block_types, self.down_blocks) if not isinstance(made, DownBlock)]:
            what = "The skip connections of these blocks are not those that a ControlNet steers."
            raise ConfigError(what, where="down_block_types", got=odd, expected="DownBlock2D, CrossAttnDownBlock2D, ...")
        self.mid_block = self._middle(c, levels[-1])
        made = [widths[0], *(level.channels for level in levels for _ in range(level.layers + (level.resample is not None)))]
        self.controlnet_down_blocks = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in made)
        self.controlnet_mid_block = zeroed(nn.Conv2d(widths[-1], widths[-1], 1))
        self.reads_context = c.addition_embed_type == "text" or any(getattr(m, "reads_context", False) for m in self.modules())

    def __call__(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        down, mid = nn.Module.__call__(self, *args, **kwargs)
        return self.Result(down, mid) if return_dict else (down, mid)

    def _prepared(
        self, sample: Tensor, timestep: Tensor | float, context: Tensor | None, class_labels: Tensor | None, timestep_cond: Tensor | None,
        attention_mask: Tensor | None, added: Mapping[str, Tensor] | None, attend: Attend | None,
    ) -> tuple[Tensor, Conditions]:  # fmt: skip
        """After the first convolution (B, C0, H, W), and what blocks receive."""
        if sample.ndim != 4 or sample.shape[1] != self.conv_in.in_channels:
            got, fits = tuple(sample.shape), f"(B, {self.conv_in.in_channels}, H, W)"
            raise InputError("The sample does not fit this network.", where="sample", got=got, expected=fits)
        dims = per_block(self.config, "cross_attention_dim")
        given = (class_labels, timestep_cond, added or {}, attention_mask)
        return self.conv_in(sample), self._conditions(sample, timestep, context, *given, dims, attend)

    def _picture(self, cond: Tensor, size: Sequence[int]) -> Tensor:
        """The picture (B, C, fH, fW) embedded: (B, C0, H, W)."""
        channels = self.config.conditioning_channels
        x = self.controlnet_cond_embedding(cond) if cond.ndim == 4 and cond.shape[1] == channels else None
        if x is None or x.shape[-2:] != torch.Size(size):
            factor = 2 ** (len(self.config.conditioning_embedding_out_channels) - 1)
            expected = f"(B, {channels}, {size[0] * factor}, {size[1] * factor})"
            raise InputError("The picture does not fit the sample.", where="controlnet_cond", got=tuple(cond.shape), expected=expected)
        return x

    def _residuals(self, x: Tensor, cond: Conditions, scale: float, guess_mode: bool) -> tuple[list[Tensor], Tensor]:
        """From the first feature map to what the UNet adds."""
        skips = [x]
        for down in self.down_blocks:
            skips += self._run(down, skips[-1], cond)
        mid = skips[-1] if self.mid_block is None else self._run(self.mid_block, skips[-1], cond)
        layers = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        made = [layer(x) for layer, x in zip(layers, [*skips, mid], strict=True)]
        pooled = self.config.global_pool_conditions
        if guess_mode and not pooled:  # deeper ones count more: 0.1 to 1
            weights = torch.logspace(-1, 0, len(made), device=x.device) * scale
            made = [m * w for m, w in zip(made, weights)]
        elif scale != 1:
            made = [m * scale for m in made]
        if pooled:
            made = [m.mean((2, 3), keepdim=True) for m in made]  # (B, C, 1, 1)
        return made[:-1], made[-1]

    @classmethod
    def sizes_for(cls, unet: UNet2DConditionModel) -> Mapping[str, int]:
        """Further options that the UNet settles."""
        return {}

    @classmethod
    def from_unet(
        cls, unet: UNet2DConditionModel, controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256), load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:  # fmt: skip
        """A ControlNet for this UNet, to be trained: with its options and, unless `load_weights_from_unet=False`, copies of its weights."""
        shared = {name: unet.config[name] for name in cls.Config.names() if name in unet.config.names()}
        shared |= {"conditioning_embedding_out_channels": tuple(conditioning_embedding_out_channels), **cls.sizes_for(unet)}
        order = controlnet_conditioning_channel_order
        net = cls(**shared, controlnet_conditioning_channel_order=order, conditioning_channels=conditioning_channels)
        if load_weights_from_unet:
            own, given = net.state_dict(), unet.state_dict()
            net.load_state_dict({name: tensor for name, tensor in given.items() if name in own}, strict=False)
        return net


class ControlNetModel(ControlNet):
    """A ControlNet for one kind of picture: edges, depth, poses, ... Raises ConfigError for an option that has no meaning."""

    Config = ControlNetConfig
    config: ControlNetConfig

    def forward(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor | None, controlnet_cond: Tensor,
        conditioning_scale: float = 1.0, class_labels: Tensor | None = None, timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None, added_cond_kwargs: Mapping[str, Tensor] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None, guess_mode: bool = False, *, attend: Attend | None = None,
    ) -> tuple[list[Tensor], Tensor]:  # fmt: skip
        """Residuals for a UNet from a noisy sample (B, in_channels, H, W) and a picture.
        Args:
            controlnet_cond: the picture (B, conditioning_channels, fH, fW), usually in [0, 1]; f is the codec's factor.
            conditioning_scale: weight of the residuals.
            guess_mode: weigh residuals from 0.1 (the finest) to 1 (the middle), for work without a prompt.
            timestep, encoder_hidden_states, class_labels, timestep_cond, attention_mask, added_cond_kwargs, attend: as of the UNet.
            cross_attention_kwargs: accepted; it belongs to adapters.
        Raises InputError for an argument that is missing or does not fit the configuration.
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            controlnet_cond = controlnet_cond.flip(1)
        given = (class_labels, timestep_cond, attention_mask, added_cond_kwargs, attend)
        x, cond = self._prepared(sample, timestep, encoder_hidden_states, *given)
        return self._residuals(x + self._picture(controlnet_cond, x.shape[-2:]), cond, conditioning_scale, guess_mode)
