"""Prints what `from_pipe` adds to a process, in MB, the size of the source's UNet in MB, and its dtype afterwards.

Arguments: library, checkpoint (its UNet is replaced), config of the UNet as JSON, device, a dtype for `from_pipe` or "", and the classes: that
of the source, then those made from it in turn. AnimateDiff gets a motion adapter, which is there before the count begins.
"""

from __future__ import annotations
import gc
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
import torch

library, checkpoint, config, device, dtype, *names = sys.argv[1:]
lib = import_module(library)


def held() -> float:
    gc.collect()
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated() / 1e6
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def filled(kind: type, **options: Any) -> Any:
    """A network in float16, every number the same."""
    torch.set_default_dtype(torch.float16)
    with torch.device("meta"):
        network = kind(**options)
    torch.set_default_dtype(torch.float32)
    network.to_empty(device=device)
    for tensor in network.state_dict().values():
        tensor.fill_(0.01)
    return network


unet = filled(lib.UNet2DConditionModel, **json.loads(config))
size = sum(tensor.nbytes for tensor in unet.parameters()) / 1e6
first, *others = (getattr(lib, name) for name in names)  # imported before the count begins
pipes = [first.from_pretrained(checkpoint, unet=unet, torch_dtype=torch.float16).to(device)]
adapter = filled(lib.MotionAdapter, block_out_channels=tuple(unet.config.block_out_channels)) if "AnimateDiffPipeline" in names else None
before = held()
for other in others:
    options = {"torch_dtype": getattr(torch, dtype)} if dtype else {}
    options |= {"motion_adapter": adapter} if "AnimateDiff" in other.__name__ else {}
    pipes.append(other.from_pipe(pipes[0], **options))
print(json.dumps([held() - before, size, str(unet.dtype).removeprefix("torch.")]))
