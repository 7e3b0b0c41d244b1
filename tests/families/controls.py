"""Tiny checkpoints with controls: those of `tiny` with ControlNets or T2I-Adapters beside them, written by the reference."""

from __future__ import annotations
from pathlib import Path
from typing import Any
import diffusers
import torch
from . import tiny

__all__ = ["controlnet", "sd_adapter", "sd_controlnet", "sdxl_adapter", "sdxl_controlnet", "sdxl_union"]

KINDS = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL"}


def controlnet(unet: Any, *, seed: int = 0, union: bool = False, **options: Any) -> Any:
    """A ControlNet for a UNet over latents of half the picture's size, as if it had been trained: no layer is zero."""
    torch.manual_seed(seed)
    width = unet.config.block_out_channels[0]
    kind = diffusers.ControlNetUnionModel if union else diffusers.ControlNetModel
    own = {"num_trans_channel": width, "num_proj_channel": width, "num_trans_head": 2} if union else {}
    made = kind.from_unet(unet, conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False)
    kept = {name: value for name, value in made.config.items() if name != "_use_default_values"}
    net = kind.from_config({**kept, "in_channels": 4, **own, **options})
    for name, p in net.named_parameters():
        if name.startswith(("controlnet_", "spatial_")) and not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return net.eval()


def _written(folder: Path | str, base: str, name: str, component: str, networks: Any, **options: Any) -> Path:
    """A checkpoint of `tiny` with a further component."""
    source = diffusers.DiffusionPipeline.from_pretrained(getattr(tiny, base)(folder, **options))
    kind = getattr(diffusers, f"{KINDS[base]}{name}Pipeline")
    parts = {n: part for n, part in source.components.items() if n != "image_encoder"}
    made = networks(source.unet)
    kind(**parts, **{component: made if len(made) > 1 else made[0]}, **_options(base)).save_pretrained(folder)
    return Path(folder)


def _options(base: str) -> dict[str, Any]:
    return {"requires_safety_checker": False} if base == "sd" else {}


def _controlnets(base: str, folder: Path | str, nets: int, net_options: Any, union: bool = False, **options: Any) -> Path:
    def networks(unet: Any) -> list[Any]:
        return [controlnet(unet, seed=10 + i, union=union, **dict(net_options)) for i in range(nets)]

    return _written(folder, base, "ControlNetUnion" if union else "ControlNet", "controlnet", networks, **options)


def _adapters(base: str, folder: Path | str, nets: int, net_options: Any, **options: Any) -> Path:
    own = {"channels": [16, 32], "num_res_blocks": 1, "downscale_factor": 2, **dict(net_options)}

    def networks(unet: Any) -> list[Any]:
        made = [diffusers.T2IAdapter(**own) for _ in range(nets)]
        return [diffusers.MultiAdapter(made)] if nets > 1 else made

    return _written(folder, base, "Adapter", "adapter", networks, **options)


def sd_controlnet(folder: Path | str, *, nets: int = 1, net_options: Any = (), **options: Any) -> Path:
    """Stable Diffusion with one or several ControlNets."""
    return _controlnets("sd", folder, nets, net_options, **options)


def sd_adapter(folder: Path | str, *, nets: int = 1, net_options: Any = (), **options: Any) -> Path:
    """Stable Diffusion with one or several T2I-Adapters."""
    return _adapters("sd", folder, nets, net_options, **options)


def sdxl_controlnet(folder: Path | str, *, nets: int = 1, net_options: Any = (), **options: Any) -> Path:
    """SDXL with one or several ControlNets."""
    return _controlnets("sdxl", folder, nets, net_options, **options)


def sdxl_union(folder: Path | str, *, nets: int = 1, net_options: Any = (), **options: Any) -> Path:
    """SDXL with one or several Union ControlNets."""
    return _controlnets("sdxl", folder, nets, net_options, union=True, **options)


def sdxl_adapter(folder: Path | str, *, nets: int = 1, net_options: Any = (), **options: Any) -> Path:
    """SDXL with one or several T2I-Adapters."""
    own = {"adapter_type": "full_adapter_xl", "downscale_factor": 4, **dict(net_options)}
    return _adapters("sdxl", folder, nets, own, **options)
