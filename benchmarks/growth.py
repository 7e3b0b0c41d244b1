"""Prints what `from_pipe` adds to a process, in MB, the size of the source's UNet in MB, and its dtype afterwards.

Arguments: library, checkpoint (its UNet is replaced), config of the UNet as JSON, device, a dtype for `from_pipe` or "", and the classes: that
of the source, then those made from it in turn.
"""

from __future__ import annotations
import gc
import json
import os
import sys
from importlib import import_module
from pathlib import Path
import torch

library, checkpoint, config, device, dtype, *names = sys.argv[1:]
lib = import_module(library)


def held() -> float:
    gc.collect()
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated() / 1e6
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


torch.set_default_dtype(torch.float16)
with torch.device("meta"):
    unet = lib.UNet2DConditionModel(**json.loads(config))
torch.set_default_dtype(torch.float32)
unet.to_empty(device=device)
for tensor in unet.parameters():
    tensor.data.fill_(0.01)
size = sum(tensor.nbytes for tensor in unet.parameters()) / 1e6
first, *others = (getattr(lib, name) for name in names)  # imported before the count begins
pipes = [first.from_pretrained(checkpoint, unet=unet, torch_dtype=torch.float16).to(device)]
before = held()
for other in others:
    pipes.append(other.from_pipe(pipes[0], **({"torch_dtype": getattr(torch, dtype)} if dtype else {})))
print(json.dumps([held() - before, size, str(unet.dtype).removeprefix("torch.")]))
