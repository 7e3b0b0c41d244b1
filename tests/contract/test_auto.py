"""The class for a task is found by what classes say of themselves."""

from __future__ import annotations
from pathlib import Path
import diffusers
import pytest
import torch
from diffusers.pipelines import auto_pipeline as reference
from families import tiny
from typer.testing import CliRunner
import darkroom
from darkroom import auto, cli
from darkroom.errors import InputError

TASKS = {"Text2Image": "TEXT2IMAGE", "Image2Image": "IMAGE2IMAGE", "Inpainting": "INPAINT"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp("sd"))


def test_one_class_for_each_use() -> None:
    rows = [row[1:] for row in darkroom.pipelines() if row.family]
    assert len(rows) == len(set(rows)) and rows == sorted(rows, key=lambda r: (r[0], r[1], r[3], r[2]))


@pytest.mark.parametrize("task", TASKS)
def test_the_same_classes_as_the_reference(task: str) -> None:
    """From every class of the reference's tables that is here, to the class that the same table names for the task."""
    table = getattr(reference, f"AUTO_{TASKS[task]}_PIPELINES_MAPPING")
    others = [getattr(reference, f"AUTO_{name}_PIPELINES_MAPPING") for name in TASKS.values()]
    count = 0
    for key, cls in table.items():
        for other in others:
            source = getattr(darkroom, other[key].__name__, None) if key in other else None
            if source is not None and hasattr(darkroom, cls.__name__):
                found = auto._class_for(source, getattr(darkroom, f"AutoPipelineFor{task}").task, None, {}, strip=False)
                assert found.__name__ == cls.__name__, (source, key)
                count += 1
    assert count >= 3


@pytest.mark.parametrize("task", TASKS)
def test_from_a_checkpoint(checkpoint: Path, task: str) -> None:
    ours, theirs = (getattr(lib, f"AutoPipelineFor{task}") for lib in (darkroom, diffusers))
    for options in ({}, {"enable_pag": True}, {"enable_pag": True, "pag_applied_layers": ["up"]}):
        a, b = (kind.from_pretrained(checkpoint, requires_safety_checker=False, **options) for kind in (ours, theirs))
        assert type(a).__name__ == type(b).__name__
        assert getattr(a, "pag_applied_layers", None) == options.get("pag_applied_layers", "mid" if options else None)


def test_from_a_pipeline(checkpoint: Path) -> None:
    pipe = darkroom.AutoPipelineForText2Image.from_pretrained(checkpoint, requires_safety_checker=False)
    with_pag = darkroom.AutoPipelineForInpainting.from_pipe(pipe, enable_pag=True)
    assert type(with_pag) is darkroom.StableDiffusionPAGInpaintPipeline
    weights = {p.data_ptr() for p in pipe.unet.parameters()}
    assert weights == {p.data_ptr() for p in with_pag.unet.parameters()}  # it adds none
    kept = darkroom.AutoPipelineForImage2Image.from_pipe(with_pag)
    back = darkroom.AutoPipelineForText2Image.from_pipe(kept, enable_pag=False)
    assert type(kept) is darkroom.StableDiffusionPAGImg2ImgPipeline and type(back) is darkroom.StableDiffusionPipeline
    call = {"prompt": "the cat", "num_inference_steps": 2, "output_type": "pt"}
    first, last = (p(**call, generator=torch.Generator().manual_seed(0)).images for p in (pipe, back))
    assert torch.equal(first, last)


def test_bad_requests(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError, match="from_pretrained"):
        darkroom.AutoPipelineForText2Image()
    with pytest.raises(InputError, match="image2video") as error:
        darkroom.AutoPipelineForImage2Video.from_pretrained(tiny.sdxl(tmp_path / "sdxl"))
    assert "image2image" in str(error.value)
    for kind in (darkroom.AutoPipelineForText2Video, darkroom.AutoPipelineForImage2Video):
        with pytest.raises(InputError, match="motion_adapter"):
            kind.from_pretrained(checkpoint)
    tiny.ddpm(tmp_path / "ddpm")
    with pytest.raises(InputError, match="No family"):
        darkroom.AutoPipelineForImage2Image.from_pretrained(tmp_path / "ddpm")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(InputError, match="NoSuchPipeline"):
        darkroom.AutoPipelineForImage2Image.from_pretrained(tmp_path / "odd")


def test_command() -> None:
    lines = CliRunner().invoke(cli.app, ["pipelines"]).stdout.splitlines()
    assert lines[0].split() == ["name", "family", "task", "guidance", "control"] and len(lines) == 1 + len(darkroom.pipelines())
    assert any(line.split() == ["StableDiffusionPAGPipeline", "stable-diffusion", "text2image", "PAG"] for line in lines)
