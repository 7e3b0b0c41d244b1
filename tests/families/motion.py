"""Tiny AnimateDiff checkpoints, written by the reference, on those of `tiny`."""

from __future__ import annotations
from pathlib import Path
from typing import Any
import diffusers
import torch
from families import controls, tiny

__all__ = ["animatediff", "animatediff_controlnet", "animatediff_pag", "animatediff_sparse", "animatediff_xl", "video2video",
           "video2video_controlnet"]  # fmt: skip

KINDS = {  # pipelines -> the function that writes their checkpoint
    "AnimateDiffControlNetPipeline": "animatediff_controlnet",
    "AnimateDiffPAGPipeline": "animatediff_pag",
    "AnimateDiffPipeline": "animatediff",
    "AnimateDiffSDXLPipeline": "animatediff_xl",
    "AnimateDiffSparseControlNetPipeline": "animatediff_sparse",
    "AnimateDiffVideoToVideoControlNetPipeline": "video2video_controlnet",
    "AnimateDiffVideoToVideoPipeline": "video2video",
}
ADAPTER: dict[str, Any] = dict(
    block_out_channels=(16, 32), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=8, motion_max_seq_length=8
)  # fmt: skip


def adapter(seed: int = 5, **options: Any) -> Any:
    """A motion adapter whose modules do something."""
    torch.manual_seed(seed)
    made = diffusers.MotionAdapter(**ADAPTER | options).eval()
    for name, p in made.named_parameters():
        if "proj_out" in name:
            torch.nn.init.normal_(p, std=0.2)
    return made


def sparse(seed: int = 6, **options: Any) -> Any:
    """A sparse control whose residuals are not zero."""
    torch.manual_seed(seed)
    own = dict(block_out_channels=(16, 32), layers_per_block=1, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"))
    own |= dict(cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8, motion_num_attention_heads=2, motion_max_seq_length=8)
    net = diffusers.SparseControlNetModel(**own | options).eval()
    for name, p in net.named_parameters():
        if name.startswith("controlnet_") and not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return net


def written(name: str, folder: Path | str, base: str = "sd", motion: Any = (), networks: Any = None, **options: Any) -> Path:
    """The checkpoint of the pipeline `name` on a picture checkpoint of `tiny`."""
    source = diffusers.DiffusionPipeline.from_pretrained(getattr(tiny, base)(folder, **options))
    parts = {n: part for n, part in source.components.items() if n != "safety_checker"}
    more = {} if networks is None else {"controlnet": networks(source.unet)}
    kind = getattr(diffusers, f"AnimateDiff{name}Pipeline")
    pipe = kind(**parts, motion_adapter=adapter(**dict(motion)), **more)
    if base == "sdxl":  # the reference leaves this layer as it was made, and then every copy of the checkpoint would be another
        pipe.unet.add_embedding.load_state_dict(source.unet.add_embedding.state_dict())
    pipe.save_pretrained(folder)
    return Path(folder)


def animatediff(folder: Path | str, **options: Any) -> Path:
    """Text to video: 32 x 32 pixels, up to 8 frames."""
    return written("", folder, **options)


def animatediff_pag(folder: Path | str, **options: Any) -> Path:
    """The same, saved by the pipeline with perturbed attention."""
    return written("PAG", folder, **options)


def video2video(folder: Path | str, **options: Any) -> Path:
    """Video to video."""
    return written("VideoToVideo", folder, **options)


def animatediff_xl(folder: Path | str, **options: Any) -> Path:
    """Text to video with SDXL."""
    return written("SDXL", folder, "sdxl", motion={"motion_num_attention_heads": (2, 4)}, **{"scheduler": "DDIMScheduler", **options})


def _nets(count: int) -> Any:
    def make(unet: Any) -> Any:
        shaped = diffusers.UNet2DConditionModel.from_config({**unet.config, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 4})  # fmt: skip
        made = [controls.controlnet(shaped, seed=10 + i) for i in range(count)]
        return made if count > 1 else made[0]

    return make


def animatediff_controlnet(folder: Path | str, *, nets: int = 1, **options: Any) -> Path:
    """Text to video with ControlNets."""
    return written("ControlNet", folder, networks=_nets(nets), **options)


def video2video_controlnet(folder: Path | str, *, nets: int = 1, **options: Any) -> Path:
    """Video to video with ControlNets."""
    return written("VideoToVideoControlNet", folder, networks=_nets(nets), **options)


def animatediff_sparse(folder: Path | str, *, net_options: Any = (), **options: Any) -> Path:
    """Text to video with a sparse control."""
    return written("SparseControlNet", folder, networks=lambda unet: sparse(**dict(net_options)), **options)
