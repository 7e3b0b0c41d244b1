"""Prints what `from_pipe` adds to a process, in MB, and the source's dtype afterwards.

Arguments: library, checkpoint (its UNet is replaced), config of the UNet as JSON, device, and a dtype for `from_pipe` or "".
"""

from __future__ import annotations
import gc
import json
import os
import sys
from importlib import import_module
from pathlib import Path
import torch

library, checkpoint, config, device, dtype = sys.argv[1:]
lib = import_module(library)


def held() -> float:
    gc.collect()
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated() / 1e6
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


torch.set_default_dtype(torch.float16)
unet = lib.UNet2DConditionModel(**json.loads(config))
torch.set_default_dtype(torch.float32)
pipe = lib.StableDiffusionPipeline.from_pretrained(checkpoint, unet=unet, torch_dtype=torch.float16).to(device)
second = lib.StableDiffusionImg2ImgPipeline  # imported before the count begins
before = held()
twin = second.from_pipe(pipe, **({"torch_dtype": getattr(torch, dtype)} if dtype else {}))
print(json.dumps([held() - before, str(unet.dtype).removeprefix("torch.")]))
