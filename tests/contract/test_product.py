"""Every family with every task, guidance and control: a task, a guidance and a control are values, so each combination runs."""

from __future__ import annotations
from functools import cache
from pathlib import Path
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import controls, tiny
from PIL import Image
import darkroom
from darkroom import APG, CFG, PAG, SAG, SEG
from darkroom.core.control import T2IAdapters
from darkroom.core.tasks import Image2Image, Inpaint
from darkroom.families.controlled import WithAdapter
from darkroom.families.controlled_xl import ControlledXL
from darkroom.families.stable_diffusion import StableDiffusion
from darkroom.families.stable_diffusion_xl import StableDiffusionXLRefined, XLImage2Image, XLInpaint

FAMILIES = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL"}
TASKS = {"text2image": "", "image2image": "Img2Img", "inpaint": "Inpaint"}
CONTROLS = {"none": "", "controlnet": "ControlNet", "adapter": "Adapter"}
GUIDANCE = {
    "CFG": lambda: CFG(5.0),
    "PAG": lambda: CFG(5.0, terms=[PAG(3.0)]),
    "SAG": lambda: CFG(5.0, terms=[SAG(0.75)]),
    "SEG": lambda: CFG(5.0, terms=[SEG(3.0)]),
    "APG": lambda: APG(5.0, eta=0.0, momentum=-0.5),
}


class Repainted(WithAdapter, StableDiffusion):  # the reference has no such classes
    task = Image2Image(strength=0.8)
    control = T2IAdapters("control_image")


class Filled(Repainted):
    task = Inpaint(strength=1.0)


class RepaintedXL(ControlledXL, WithAdapter, StableDiffusionXLRefined):
    task = XLImage2Image(strength=0.8)
    control = T2IAdapters("control_image")


class FilledXL(RepaintedXL):
    task = XLInpaint(strength=0.9999)


COMPOSED = {
    ("sd", "image2image"): Repainted,
    ("sd", "inpaint"): Filled,
    ("sdxl", "image2image"): RepaintedXL,
    ("sdxl", "inpaint"): FilledXL,
}


def name_of(family: str, task: str, control: str, pag: bool = False) -> str:
    return f"{FAMILIES[family]}{CONTROLS[control]}{'PAG' * pag}{TASKS[task]}Pipeline"


def picture(seed: int = 3) -> Image.Image:
    y, x = np.mgrid[0:1:32j, 0:1:32j]
    waves = np.random.default_rng(seed).uniform(1, 4, (3, 2))
    return Image.fromarray((np.stack([0.5 + 0.5 * np.sin(6.3 * (a * x + b * y)) for a, b in waves], -1) * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def write(family: str, control: str) -> Path:
        make = getattr(tiny, family) if control == "none" else getattr(controls, f"{family}_{control}")
        return make(tmp_path_factory.mktemp(family))

    return write


@pytest.fixture(scope="module")
def load(folder):
    @cache
    def pipe(library: Any, cls: Any, family: str, control: str) -> Any:
        kind = cls if isinstance(cls, type) else getattr(library, cls)
        made = kind.from_pretrained(folder(family, control), **({"requires_safety_checker": False} if family == "sd" else {}))
        made.set_progress_bar_config(disable=True)
        if library is diffusers and family == "sd":
            made.text_encoder.__dict__.setdefault("text_model", made.text_encoder)  # the reference looks there
        return made

    return pipe


def arguments(task: str, control: str) -> dict[str, Any]:
    area = Image.new("L", (32, 32))
    area.paste(255, (4, 8, 20, 24))
    call: dict[str, Any] = {"prompt": "the cat and the dog", "num_inference_steps": 4, "output_type": "np"}
    if task != "text2image":
        call |= {"image": picture(), "strength": 0.9}
    if task == "inpaint":
        call |= {"mask_image": area}
    if control != "none":
        call |= {"image" if task == "text2image" else "control_image": picture(5)}
    return call


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell(load, family: str, task: str, control: str) -> None:
    own = COMPOSED.get((family, task)) if control == "adapter" else None
    pipe = load(darkroom, own or name_of(family, task, control), family, control)
    call, found = arguments(task, control), {}
    for name, make in GUIDANCE.items():
        found[name] = pipe(**call, guidance=make(), generator=torch.Generator().manual_seed(0)).images
        assert found[name].shape == (1, 32, 32, 3) and np.isfinite(found[name]).all() and found[name].std() > 0.01, name
    for name in found.keys() - {"CFG"}:
        assert np.abs(found[name] - found["CFG"]).max() > 1e-4, name
    if own is None:
        theirs = load(diffusers, name_of(family, task, control), family, control)
        wanted = theirs(**call, guidance_scale=5.0, generator=torch.Generator().manual_seed(0)).images
        np.testing.assert_allclose(found["CFG"], wanted, atol=1e-4)
    named = name_of(family, task, control, pag=True)
    if hasattr(diffusers, named):
        theirs = load(diffusers, named, family, control)
        wanted = theirs(**call, guidance_scale=5.0, pag_scale=3.0, generator=torch.Generator().manual_seed(0)).images
        np.testing.assert_allclose(found["PAG"], wanted, atol=1e-4)


def test_sag_as_the_reference_has_it(load) -> None:
    call = arguments("text2image", "none")
    wanted = load(diffusers, "StableDiffusionSAGPipeline", "sd", "none")(
        **call, guidance_scale=5.0, sag_scale=0.75, generator=torch.Generator().manual_seed(0)
    ).images
    ours = load(darkroom, "StableDiffusionPipeline", "sd", "none")(
        **call, guidance=GUIDANCE["SAG"](), generator=torch.Generator().manual_seed(0)
    )
    np.testing.assert_allclose(ours.images, wanted, atol=1e-4)


def test_a_web_of_switches_leaves_the_first_as_it_was(load) -> None:
    first = load(darkroom, "StableDiffusionPipeline", "sd", "none")
    net = load(darkroom, "StableDiffusionControlNetPipeline", "sd", "controlnet").controlnet
    call = arguments("text2image", "none")
    before = first(**call, generator=torch.Generator().manual_seed(0)).images
    image2image = darkroom.AutoPipelineForImage2Image.from_pipe(first)
    inpaint = darkroom.AutoPipelineForInpainting.from_pipe(image2image)
    with_pag = darkroom.AutoPipelineForInpainting.from_pipe(inpaint, enable_pag=True)
    steered = darkroom.AutoPipelineForInpainting.from_pipe(with_pag, controlnet=net)
    assert type(steered) is darkroom.StableDiffusionControlNetPAGInpaintPipeline
    for pipe, task, control in (
        (image2image, "image2image", "none"),
        (inpaint, "inpaint", "none"),
        (with_pag, "inpaint", "none"),
        (steered, "inpaint", "controlnet"),
    ):
        assert np.isfinite(pipe(**arguments(task, control), generator=torch.Generator().manual_seed(0)).images).all()
        assert np.array_equal(first(**call, generator=torch.Generator().manual_seed(0)).images, before)
    back = darkroom.AutoPipelineForText2Image.from_pipe(steered, enable_pag=False, controlnet=None)
    assert type(back) is darkroom.StableDiffusionPipeline
    assert np.array_equal(back(**call, generator=torch.Generator().manual_seed(0)).images, before)
