"""The UNet of diffusion over pixels, with a timestep and perhaps a class (Ho et al. 2020; Song et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..config import Config
from ..core.attention import Attend
from ..errors import ConfigError, InputError
from ..outputs import Output
from .base import as_batch
from .layers.embeddings import GaussianFourierProjection, TimestepEmbedding, Timesteps
from .layers.transformer import Conditions
from .layers.unet_blocks import Level, MidBlock, SkipDownBlock, SkipUpBlock, down_block, quarter, up_block, up_levels
from .unet_base import UNet, check_block_types, one_of

__all__ = ["UNet2DConfig", "UNet2DModel", "UNet2DOutput"]


@dataclass
class UNet2DOutput(Output):
    """`sample`: the prediction (B, out_channels, H, W)."""

    sample: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class UNet2DConfig(Config):
    """The keys of the network's `config.json`.

    `attention_head_dim` is the number of channels per head, None for one head. `downsample_type` and `upsample_type`
    ("conv" or "resnet") concern self-attention blocks.
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

    Raises:
        ConfigError: an option that has no meaning, or whose length does not fit the number of blocks.
    """

    Config = UNet2DConfig
    Result = UNet2DOutput
    config: UNet2DConfig

    def build(self, config: UNet2DConfig) -> None:
        c, widths, n = config, config.block_out_channels, len(config.block_out_channels)
        first, temb_channels = widths[0], config.time_embedding_dim or widths[0] * 4
        check_block_types(c, without="CrossAttn")
        for field in ("downsample_type", "upsample_type"):
            if c[field] not in ("conv", "resnet"):
                raise one_of(field, c[field], "conv", "resnet")
        self.conv_in = nn.Conv2d(c.in_channels, first, 3, padding=1)
        time_dim = first
        if c.time_embedding_type == "positional":
            self.time_proj: nn.Module = Timesteps(first, c.flip_sin_to_cos, c.freq_shift)
        elif c.time_embedding_type == "fourier":
            self.time_proj, time_dim = GaussianFourierProjection(first, scale=16, log=True), 2 * first
        elif c.time_embedding_type == "learned":
            if c.num_train_timesteps is None:
                raise ConfigError("Learned timesteps have a number.", where="num_train_timesteps", expected="an int")
            self.time_proj = nn.Embedding(c.num_train_timesteps, first)
        else:
            raise one_of("time_embedding_type", c.time_embedding_type, "positional", "fourier", "learned")
        self.time_embedding = TimestepEmbedding(time_dim, temb_channels)
        self.class_embedding: nn.Module | None = None
        if c.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(time_dim, temb_channels)
        elif c.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif c.class_embed_type is not None:
            raise one_of("class_embed_type", c.class_embed_type, None, "timestep", "identity")
        elif c.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(c.num_class_embeds, temb_channels)

        levels = [
            Level.of(
                c,
                i,
                temb_channels=temb_channels,
                layers=c.layers_per_block,
                resample=c.downsample_type if i < n - 1 else None,
                head_dim=c.attention_head_dim or widths[i],
            )
            for i in range(n)
        ]
        self.down_blocks = nn.ModuleList(map(down_block, c.down_block_types, levels))
        self.mid_block = None
        if c.mid_block_type is not None:
            plain = c.resnet_time_scale_shift == "default"
            groups = c.attn_norm_num_groups or (c.norm_num_groups or quarter(widths[-1]) if plain else None)
            scale = {"resnet_out_scale_factor": c.mid_block_scale_factor}
            middle = replace(levels[-1], layers=1, attention_groups=groups, **scale)
            self.mid_block = MidBlock("self" if c.add_attention else "", middle)
        self.up_blocks = nn.ModuleList(map(up_block, c.up_block_types, up_levels(levels, c.upsample_type)))
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups or quarter(first), first, eps=c.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(first, c.out_channels, 3, padding=1)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, *, attend: Attend | None = None
    ) -> Tensor:
        """Predict from a noisy sample.

        Args:
            sample: (B, in_channels, H, W).
            timestep: one for all rows or one for each; the noise's sigma for Fourier embeddings.
            class_labels: (B,) for networks conditioned on a class.
            attend: the attention of this call, see `darkroom.core.attention`; the network's own if None.
        Returns:
            (B, out_channels, H, W).
        Raises:
            InputError: an argument that is missing or does not fit the configuration.
        """
        self._check(sample, self.conv_in.in_channels)
        x = 2 * sample - 1 if self.config.center_input_sample else sample
        t = as_batch(timestep, x)
        temb = self.time_embedding(self.time_proj(t).to(self.dtype))
        if (class_labels is None) != (self.class_embedding is None):
            wanted = "a tensor of classes" if class_labels is None else "None: the network knows no classes"
            raise InputError("Classes do not fit.", where="class_labels", got=class_labels, expected=wanted)
        if self.class_embedding is not None and class_labels is not None:
            if self.config.class_embed_type == "timestep":
                class_labels = self.time_proj(class_labels).to(self.dtype)
            temb = temb + self.class_embedding(class_labels).to(self.dtype)
        cond = Conditions(temb, attend=attend or self.attend)

        picture: Tensor | None = x
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock):
                x, new, picture = self._run(block, x, cond, picture)
            else:
                x, new = self._run(block, x, cond)
            skips += new
        if self.mid_block is not None:
            x = self._run(self.mid_block, x, cond)
        picture = None
        for block in self.up_blocks:
            skips, taken = skips[: -len(block.resnets)], skips[-len(block.resnets) :]
            if isinstance(block, SkipUpBlock):
                x, picture = self._run(block, x, taken, cond, picture)
            else:
                x = self._run(block, x, taken, cond, skips[-1].shape[-2:] if skips else None)
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        if picture is not None:
            x = x + picture
        if self.config.time_embedding_type == "fourier":
            x = x / t.reshape(-1, 1, 1, 1)
        return x
