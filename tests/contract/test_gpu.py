"""On a CUDA device: the same pictures as on the CPU, and no wait for the device inside a step."""

from __future__ import annotations
import numpy as np
import pytest
import torch
from darkroom import CFG, PAG, SAG, DiffusionPipeline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("terms", [[], ["pag", "sag"]], ids=str)
def test_the_same_picture_as_on_the_cpu(tiny_sd, terms):
    def run(pipe):
        made = [{"pag": PAG(3.0), "sag": SAG(0.75)}[name] for name in terms]
        call = dict(num_inference_steps=5, output_type="np", guidance=CFG(5.0, terms=made))
        return pipe("the cat", generator=torch.Generator("cpu").manual_seed(0), **call).images

    pipe = DiffusionPipeline.from_pretrained(tiny_sd)
    before = run(pipe)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    np.testing.assert_allclose(run(pipe.to("cuda")), before, atol=1e-3)
    assert pipe.device.type == "cuda"


def test_half_precision(tiny_sd):
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=torch.float16).to("cuda")
    images = pipe("the cat", num_inference_steps=4, output_type="np").images
    assert np.isfinite(images).all()
