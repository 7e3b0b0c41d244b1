"""The program of somebody who wants one picture. Arguments: library, checkpoint, prompt, steps, seed, file."""

from __future__ import annotations
import sys
from importlib import import_module

library, checkpoint, prompt, steps, seed, file = sys.argv[1:]
StableDiffusionPipeline = import_module(library).StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(checkpoint)

import torch  # noqa: E402  (the library under test decides when torch is imported)

generator = torch.Generator().manual_seed(int(seed))
pipe(prompt, num_inference_steps=int(steps), generator=generator).images[0].save(file)
