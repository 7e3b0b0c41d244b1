"""The UNet of diffusion over pixels, with a timestep and perhaps a class (Ho et al. 2020; Song et al. 2021), and what UNets share."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from ..outputs import Output
from .base import Model, as_batch, choose
from .layers.attention import Conditions, SelfAttention, rename_attention
from .layers.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from .layers.freeu import FreeU
from .layers.resnet import Level, activation
from .layers.skip_blocks import quarter
from .layers.unet_blocks import Block, DownBlock, block, down_levels, middle_block, per_block, up_levels

__all__ = ["UNet", "UNet2DConfig", "UNet2DModel", "UNet2DOutput"]


class UNet(Model):
    """A network of blocks on the way down, in the middle and on the way up.
    `build` makes `conv_in`, `time_proj`, `time_embedding` and `class_embedding` (None without classes), then calls `_build_blocks`.
    """

    gradient_checkpointing: bool = False
    concat_classes: bool = False  # the class goes beside the timestep, it is not added
    rename_key = staticmethod(rename_attention)

    def _build_blocks(
        self, c: Config, down: list[Level], middle: Block | None, up: list[Level], act_fn: str, out_kernel: int, groups: int | None
    ) -> None:
        self.down_blocks = nn.ModuleList(map(block, per_block(c, "down_block_types"), down))
        self.mid_block = middle
        self.up_blocks = nn.ModuleList(map(block, per_block(c, "up_block_types"), up))
        self.conv_norm_out = nn.GroupNorm(groups, c.block_out_channels[0], eps=c.norm_eps) if groups else nn.Identity()
        self.conv_act = activation(act_fn) if groups else nn.Identity()
        self.conv_out = nn.Conv2d(c.block_out_channels[0], c.out_channels, out_kernel, padding=(out_kernel - 1) // 2)

    def enable_gradient_checkpointing(self) -> None:
        """Compute what is inside blocks again for gradients, not keep it: less memory, more time (Chen et al. 2016)."""
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        self.gradient_checkpointing = False

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU in the first two blocks on the way up (Si et al. 2023): `b1` and `b2` scale half of the backbone's channels, `s1` and `s2` the
        lowest frequencies of skip connections; all 1 changes nothing. Forks of this network made later have it too, from then on apart.
        Raises InputError for what is no number of 0 or more, and for networks whose blocks are of other kinds.
        """
        for name, value in (("s1", s1), ("s2", s2), ("b1", b1), ("b2", b2)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise InputError("Not a factor.", where=name, got=value, expected="0 or more")
        blocks = [*getattr(self, "up_blocks", ())][:2]
        if not blocks or not all(isinstance(up, Block) for up in blocks):
            got, expected = [type(up).__name__ for up in blocks], "blocks of residual layers, perhaps with transformers"
            raise InputError("FreeU knows no such blocks on the way up.", where=type(self).__name__, got=got, expected=expected)
        for up, backbone, skip in zip(blocks, (b1, b2), (s1, s2)):
            up.freeu = FreeU(backbone, skip)

    def disable_freeu(self) -> None:
        """Blocks as they were."""
        for up in getattr(self, "up_blocks", ()):
            up.freeu = None

    def _embed(self, x: Tensor, timestep: Tensor | float, class_labels: Tensor | None, timestep_cond: Tensor | None = None) -> Tensor:
        """Timestep and class as a vector (B, E) of the dtype of `x`."""
        temb = self.time_embedding(self.time_proj(as_batch(timestep, x)).to(x.dtype), timestep_cond)
        if self.class_embedding is None:
            return temb
        if class_labels is None:
            raise InputError("This network needs a class.", where="class_labels", expected="one row per sample")
        if self.config.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels).to(x.dtype)
        classes = self.class_embedding(class_labels).to(x.dtype)
        return torch.cat([temb, classes], -1) if self.concat_classes else temb + classes

    def _centred(self, sample: Tensor, added: int = 0) -> Tensor:
        """The sample as the first convolution receives it, perhaps with `added` further channels, if it fits."""
        if sample.ndim != 4 or sample.shape[1] != self.conv_in.in_channels - added:
            got, fits = tuple(sample.shape), f"(B, {self.conv_in.in_channels - added}, H, W)"
            raise InputError("The sample does not fit this network.", where="sample", got=got, expected=fits)
        return 2 * sample - 1 if self.config.center_input_sample else sample

    def _enter(self, x: Tensor, cond: Conditions) -> Tensor:
        """The first feature map."""
        return self.conv_in(x)

    def _through(
        self, x: Tensor, cond: Conditions, inside: Sequence[Tensor] = (), outside: Sequence[Tensor] | None = None, mid: Tensor | None = None
    ) -> Tensor:
        """From the first convolution to the last, (B, in_channels, H, W) to (B, out_channels, H, W).
        `inside` goes into blocks on the way down, `outside` and `mid` onto skip connections and after the middle.
        """
        picture, x, remaining = x, self._enter(x, cond), list(inside)  # (B, 3, H, W), which only some blocks take, and (B, C0, H, W)
        skips = [x]
        for down in self.down_blocks:
            if isinstance(down, DownBlock):
                skips += self._run(down, x, cond, remaining.pop(0) if remaining else None)
                x = skips[-1]
            else:  # what such blocks put out is not what the way up receives
                x, made, *grown = self._run(down, x, cond, picture if down.picture else remaining.pop(0) if remaining else None)
                skips, picture = skips + made, *(grown or [picture])
        if outside is not None:
            if len(outside) != len(skips):
                where = "down_block_additional_residuals"
                raise InputError("Not one per skip connection.", where=where, got=len(outside), expected=len(skips))
            skips = [skip + more for skip, more in zip(skips, outside)]
        if self.mid_block is not None:
            x = self._run(self.mid_block, x, cond)
            if remaining and remaining[0].shape == x.shape:
                x = x + remaining[0]
        if outside is not None and mid is not None:
            x = x + mid
        drawn: Tensor | None = None  # the picture that some blocks add to on the way up
        for up in self.up_blocks:
            skips, taken = skips[: -len(up.resnets)], skips[-len(up.resnets) :]
            given = (taken, skips[-1].shape[-2:] if skips and skips[-1] is not None else None)
            if up.picture:
                x, drawn = self._run(up, x, cond, *given, drawn)
            else:
                x = self._run(up, x, cond, *given)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x if drawn is None else x + drawn

    def _run(self, part: nn.Module, *args: Any) -> Any:
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        return checkpoint(part, *args, use_reentrant=False) if again else part(*args)


@dataclass
class UNet2DOutput(Output):
    """`sample`: the prediction (B, out_channels, H, W)."""

    sample: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class UNet2DConfig(Config):
    """The keys of the network's `config.json`.
    `attention_head_dim` is the number of channels per head, None for one head. `downsample_type` and `upsample_type` ("conv" or
    "resnet") concern self-attention blocks.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None


class UNet2DModel(UNet):
    """A UNet over (B, C, H, W) that predicts noise, the clean sample or the score, as its checkpoint was trained.
    Raises ConfigError for an option that has no meaning, or whose length does not fit the number of blocks.
    """

    Config = UNet2DConfig
    Result = UNet2DOutput
    config: UNet2DConfig

    def build(self, c: UNet2DConfig) -> None:
        first, width = c.block_out_channels[0], c.time_embedding_dim or c.block_out_channels[0] * 4
        for field in ("downsample_type", "upsample_type"):
            choose(field, c[field], {"conv": None, "resnet": None})
        if c.time_embedding_type == "learned" and c.num_train_timesteps is None:
            raise ConfigError("Learned timesteps have a number.", where="num_train_timesteps", expected="an int")
        self.conv_in = nn.Conv2d(c.in_channels, first, 3, padding=1)
        times = {
            "positional": lambda: Timesteps(first, c.flip_sin_to_cos, c.freq_shift),
            "fourier": lambda: GaussianFourierProjection(first, scale=16, log=True),
            "learned": lambda: nn.Embedding(c.num_train_timesteps, first),
        }
        self.time_proj = choose("time_embedding_type", c.time_embedding_type, times)()
        time_dim = 2 * first if c.time_embedding_type == "fourier" else first
        self.time_embedding = TimestepEmbedding(time_dim, width)
        classes = {
            None: lambda: None if c.num_class_embeds is None else nn.Embedding(c.num_class_embeds, width),
            "timestep": lambda: TimestepEmbedding(time_dim, width),
            "identity": nn.Identity,
        }
        self.class_embedding = choose("class_embed_type", c.class_embed_type, classes)()
        levels = down_levels(c, temb_channels=width, resample=c.downsample_type, head_dim=c.attention_head_dim or c.block_out_channels)
        middle = None
        if c.mid_block_type is not None:
            every = quarter(levels[-1].channels) if c.norm_num_groups is None else c.norm_num_groups
            groups = c.attn_norm_num_groups or (every if c.resnet_time_scale_shift == "default" else None)
            level = replace(levels[-1], attention_groups=groups, norm_num_groups=every, resnet_out_scale_factor=c.mid_block_scale_factor)
            middle = middle_block(SelfAttention if c.add_attention else None, level)
        out_groups = quarter(first) if c.norm_num_groups is None else c.norm_num_groups
        self._build_blocks(c, levels, middle, up_levels(levels, c.upsample_type), "silu", 3, out_groups)

    def sample_call(self, rows: int, height: int, width: int) -> Any:
        """One call for `rows` samples of this size; the values mean nothing."""
        labels = None if self.class_embedding is None else torch.zeros(rows, dtype=torch.int64)
        return self(torch.empty(rows, self.config.in_channels, height, width, dtype=self.dtype), torch.ones(1), labels)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, *, attend: Attend | None = None
    ) -> Tensor:
        """Predict from a noisy sample: (B, in_channels, H, W) -> (B, out_channels, H, W).
        Args:
            timestep: one for all rows or one for each; the noise's sigma for Fourier embeddings.
            class_labels: (B,) for networks conditioned on a class.
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
        Raises InputError for an argument that is missing or does not fit the configuration.
        """
        x = self._centred(sample)
        if class_labels is not None and self.class_embedding is None:
            raise InputError("This network knows no classes.", where="class_labels", got=class_labels, expected="None")
        x = self._through(x, Conditions(self._embed(x, timestep, class_labels), attend=attend or self.attend))
        return x / as_batch(timestep, x).reshape(-1, 1, 1, 1) if self.config.time_embedding_type == "fourier" else x
