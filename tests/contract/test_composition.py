"""Tasks, guidance and families compose without a class for each combination."""

from __future__ import annotations
import numpy as np
import pytest
import torch
from families import tiny
from PIL import Image
import darkroom
import darkroom.families.stable_diffusion
from darkroom import CFG, PAG, SAG, DiffusionPipeline, StableDiffusionPipeline

AREA = Image.new("L", (32, 32))
AREA.paste(255, (4, 4, 20, 28))


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    return DiffusionPipeline.from_pretrained(tiny_sd)


def run(pipe, **changes):
    return pipe("the cat", num_inference_steps=4, output_type="np", generator=torch.Generator().manual_seed(0), **changes).images


PICTURE = {"image": Image.new("RGB", (32, 32), (200, 30, 90)), "strength": 0.7}
TASKS = {"text2image": {}, "image2image": PICTURE, "inpaint": {**PICTURE, "mask_image": AREA}}
TERMS = {"PAG": lambda: [PAG(3.0)], "SAG": lambda: [SAG(0.75)], "PAG and SAG": lambda: [PAG(3.0), SAG(0.75)]}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("terms", TERMS)
def test_every_term_works_with_every_task(pipe, task, terms):
    plain = run(pipe, **TASKS[task])
    guided = run(pipe, **TASKS[task], guidance=CFG(7.5, terms=TERMS[terms]()))
    assert np.isfinite(guided).all() and not np.array_equal(plain, guided)
    assert np.array_equal(plain, run(pipe, **TASKS[task], guidance=CFG(7.5)))


@pytest.mark.parametrize("task, name", [("image2image", "Img2Img"), ("inpaint", "Inpaint"), ("text2image", "")])
def test_a_composed_call_equals_the_named_class(pipe, task, name):
    named = getattr(darkroom, f"StableDiffusionPAG{name}Pipeline").from_pipe(pipe)
    composed = run(pipe, **TASKS[task], guidance=CFG(7.5, terms=[PAG(3.0)]))
    assert np.array_equal(run(named, **TASKS[task]), composed)


def test_a_picture_switches_the_task(pipe):
    named = darkroom.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert np.array_equal(run(pipe, **PICTURE), run(named, **PICTURE))
    assert type(pipe) is StableDiffusionPipeline


def test_an_inpainting_network_takes_guidance_terms(tmp_path):
    pipe = DiffusionPipeline.from_pretrained(tiny.sd(tmp_path, in_channels=9))
    images = [run(pipe, **TASKS["inpaint"], guidance=CFG(7.5, terms=make())) for make in TERMS.values()]
    assert all(np.isfinite(i).all() for i in images) and not np.array_equal(images[0], images[1])


def test_a_class_of_ones_own_is_a_declaration(pipe):
    class Mine(darkroom.families.stable_diffusion.StableDiffusion):
        task = darkroom.Image2Image(strength=0.7)
        terms = (SAG, PAG)

    images = run(Mine.from_pipe(pipe), image=PICTURE["image"], sag_scale=0.75, pag_scale=3.0)
    expected = run(pipe, **PICTURE, guidance=CFG(7.5, terms=[SAG(0.75), PAG(3.0)]))
    assert np.array_equal(images, expected)


def test_a_hand_written_pipeline(tiny_sd, tmp_path):
    class MyPipeline(DiffusionPipeline):
        def __init__(self, unet, scheduler, temperature=1.0):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)
            self.register_to_config(temperature=temperature)

        @torch.no_grad()
        def __call__(self, steps=3):
            x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * self.temperature
            self.scheduler.set_timesteps(steps)
            for t in self.progress_bar(self.scheduler.timesteps):
                out = self.unet(x, t, encoder_hidden_states=torch.zeros(1, 16, 32)).sample
                x = self.scheduler.step(out, t, x).prev_sample
            return x

    mine = MyPipeline.from_pretrained(tiny_sd, temperature=0.5)
    assert mine.components.keys() == {"unet", "scheduler"} and mine.config["temperature"] == 0.5
    mine.save_pretrained(tmp_path)
    assert torch.equal(MyPipeline.from_pretrained(tmp_path)(), mine())
    other = MyPipeline.from_pipe(StableDiffusionPipeline.from_pretrained(tiny_sd), temperature=0.5)
    assert torch.equal(other(), mine())
