"""Whole pipelines through `from_pretrained`: options, placement, code that comes with a checkpoint, connected pipelines, the hub; `inspect`."""

from __future__ import annotations
import json
import logging
import shutil
from pathlib import Path
import numpy as np
import pytest
import torch
from hub_server import HubServer
from typer.testing import CliRunner
from darkroom import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from darkroom.checkpoints import hub as hub_module
from darkroom.checkpoints.inspection import inspect_checkpoint, peak_activations
from darkroom.cli import app
from darkroom.errors import CheckpointError, InputError

CODE = """
import torch
from darkroom import DiffusionPipeline

class Doubling(DiffusionPipeline):
    def __init__(self, unet, scheduler):
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self):
        return 2
"""
PART = """
import json
from pathlib import Path

class Watermark:
    def __init__(self, text):
        self.text = text

    @classmethod
    def from_pretrained(cls, folder, **options):
        return cls(json.loads((Path(folder) / "watermark.json").read_text())["text"])

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "watermark.json").write_text(json.dumps({"text": self.text}))
"""


@pytest.fixture
def copy(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "copy"))


def picture(pipe: DiffusionPipeline) -> np.ndarray:
    return pipe("the cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


def test_as_stored(tiny_sd: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, torch_dtype={"unet": torch.bfloat16, "default": torch.float16})
    assert (pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.float16, torch.float16)
    pipe.save_pretrained(tmp_path / "mixed")
    again = DiffusionPipeline.from_pretrained(tmp_path / "mixed", torch_dtype="auto")
    assert (again.unet.dtype, again.vae.dtype, again.text_encoder.dtype) == (torch.bfloat16, torch.float16, torch.float16)
    assert DiffusionPipeline.from_pretrained(tmp_path / "mixed").unet.dtype == torch.float32
    assert UNet2DConditionModel.from_pretrained(tmp_path / "mixed", subfolder="unet", torch_dtype="auto").dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype"):
        DiffusionPipeline.from_pretrained(tiny_sd, torch_dtype="float16")


def test_variants(tiny_sd: Path, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = DiffusionPipeline.from_pretrained(copy, torch_dtype=torch.float16)
    half.unet.save_pretrained(copy / "unet", variant="fp16")
    assert DiffusionPipeline.available_variants(copy) == {"fp16": ["unet"]}
    with caplog.at_level(logging.WARNING):
        pipe = DiffusionPipeline.from_pretrained(copy, variant="fp16", torch_dtype="auto")
    notes = [r.getMessage() for r in caplog.records if "variant" in r.getMessage()]
    assert len(notes) == 1 and "text_encoder, vae" in notes[0]
    assert pipe.unet.dtype == torch.float16 and pipe.vae.dtype == torch.float32
    assert DiffusionPipeline.from_pretrained(copy, variant="auto", torch_dtype="auto").unet.dtype == torch.float32
    with pytest.raises(CheckpointError, match=r"fp16 \(unet\)"):
        DiffusionPipeline.from_pretrained(copy, variant="bf16")


@pytest.mark.parametrize("workers", [("NO", ""), ("YES", "1"), ("YES", "3"), ("", "")])
def test_parallel_or_not_is_the_same(tiny_sd: Path, workers: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = picture(DiffusionPipeline.from_pretrained(tiny_sd))
    monkeypatch.setenv("HF_ENABLE_PARALLEL_LOADING", workers[0])
    monkeypatch.setenv("HF_PARALLEL_LOADING_WORKERS", workers[1])
    for options in ({}, {"disable_mmap": True}):
        assert np.array_equal(expected, picture(DiffusionPipeline.from_pretrained(tiny_sd, **options)))


def test_placement(tiny_sd: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, device_map={"unet": "cpu", "default": "meta"})
    assert pipe.unet.device.type == "cpu" and pipe.vae.device.type == pipe.text_encoder.device.type == "meta"
    assert pipe.hf_device_map == {"unet": "cpu", "vae": "meta", "text_encoder": "meta"} and "unet" in str(pipe.device_plan)
    with pytest.raises(InputError, match="reset_device_map"):
        pipe.to("cpu")
    balanced = DiffusionPipeline.from_pretrained(tiny_sd, device_map="balanced", max_memory={"cpu": "1GB"})
    assert np.array_equal(picture(balanced), picture(DiffusionPipeline.from_pretrained(tiny_sd)))
    balanced.reset_device_map()
    assert balanced.hf_device_map is None
    with pytest.raises(InputError, match="do not fit"):
        DiffusionPipeline.from_pretrained(tiny_sd, device_map="auto", max_memory={"cpu": "1kB"})


def test_links_out_of_the_folder(tiny_sd: Path, copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    (copy / "vae").symlink_to(tiny_sd / "vae")
    assert np.array_equal(picture(DiffusionPipeline.from_pretrained(copy)), picture(DiffusionPipeline.from_pretrained(tiny_sd)))
    with pytest.raises(CheckpointError, match="vae"):
        DiffusionPipeline.from_pretrained(copy, follow_links=False)
    assert DiffusionPipeline.from_pretrained(tiny_sd, follow_links=False)


def test_code_runs_only_where_it_is_allowed(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "doubling.py"
    file.write_text(CODE, "utf-8")
    for allowed in (False, 1, "yes"):
        with pytest.raises(CheckpointError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(copy, custom_pipeline=str(file), trust_remote_code=allowed)
    pipe = DiffusionPipeline.from_pretrained(copy, custom_pipeline=str(file), trust_remote_code=True)
    assert type(pipe).__name__ == "Doubling" and pipe() == 2 and set(pipe.components) == {"unet", "scheduler"}
    shutil.copy(file, copy / "mine.py")
    assert DiffusionPipeline.from_pretrained(copy, custom_pipeline="mine", trust_remote_code=True)() == 2
    change(copy / "model_index.json", _class_name=["mine", "Doubling"])
    assert DiffusionPipeline.from_pretrained(copy, trust_remote_code=True)() == 2
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(copy)
    assert picture(StableDiffusionPipeline.from_pretrained(copy)).shape == (1, 32, 32, 3)  # a class of the caller's choice needs none
    monkeypatch.setenv("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    with pytest.raises(CheckpointError, match="DIFFUSERS_DISABLE_REMOTE_CODE"):
        DiffusionPipeline.from_pretrained(copy, trust_remote_code=True)
    with pytest.raises(InputError, match="custom_pipeline"):
        DiffusionPipeline.from_pretrained(copy, custom_pipeline="lpw_stable_diffusion", trust_remote_code=True)


def test_components_of_own_code(copy: Path, tmp_path: Path) -> None:
    (copy / "mark").mkdir()
    (copy / "mark/watermark.py").write_text(PART, "utf-8")
    (copy / "mark/watermark.json").write_text('{"text": "mine"}', "utf-8")
    change(copy / "model_index.json", mark=["watermark", "Watermark"])

    class Marked(DiffusionPipeline):
        def __init__(self, unet, mark):
            self.register_modules(unet=unet, mark=mark)

    with pytest.raises(CheckpointError, match="mark"):
        Marked.from_pretrained(copy)
    pipe = Marked.from_pretrained(copy, trust_remote_code=True)
    assert pipe.mark.text == "mine" and pipe.config["mark"] == ("watermark", "Watermark")
    pipe.save_pretrained(tmp_path / "again")
    assert Marked.from_pretrained(tmp_path / "again", trust_remote_code=True).mark.text == "mine"


def test_connected_pipelines(hub: HubServer, tiny_sd: Path, tiny_ddpm: Path, copy: Path) -> None:
    hub.add("org/prior", {p.relative_to(tiny_ddpm).as_posix(): p.read_bytes() for p in tiny_ddpm.rglob("*") if p.is_file()})

    class Combined(DiffusionPipeline):
        connected = ("prior",)

        def __init__(self, unet, vae, prior_unet, prior_scheduler):
            self.register_modules(unet=unet, vae=vae, prior_unet=prior_unet, prior_scheduler=prior_scheduler)

    with pytest.raises(CheckpointError, match="connected"):
        Combined.from_pretrained(copy)
    (copy / "README.md").write_text("---\nprior:\n- org/prior\n---\n# A decoder", "utf-8")
    pipe = Combined.from_pretrained(copy)
    assert type(pipe.prior_unet).__name__ == "UNet2DModel" and type(pipe.prior_scheduler).__name__ == "DDPMScheduler"
    given = Combined.from_pretrained(copy, prior_scheduler=pipe.prior_scheduler)
    assert given.prior_scheduler is pipe.prior_scheduler


def test_a_pipeline_from_the_hub(hub: HubServer, tiny_sd: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    content = {p.relative_to(tiny_sd).as_posix(): p.read_bytes() for p in tiny_sd.rglob("*") if p.is_file()}
    content |= {"notes.pdf": b"x" * 1000, "other.ckpt": b"y"}
    hub.add("org/tiny", content)
    folder = DiffusionPipeline.download("org/tiny")
    assert not (Path(folder) / "notes.pdf").exists() and not (Path(folder) / "other.ckpt").exists()
    assert sum(request.metadata for request in hub.asked()) == 1
    hub.reset()
    assert np.array_equal(picture(DiffusionPipeline.from_pretrained("org/tiny")), picture(DiffusionPipeline.from_pretrained(tiny_sd)))
    assert len(hub.asked()) == 1
    hub.commit("org/tiny", {**content, "README.md": b"new"})
    with caplog.at_level(logging.WARNING):
        DiffusionPipeline.from_pretrained(folder, check_for_updates=True)
    assert "newer commit" in caplog.text
    assert DiffusionPipeline.available_variants("org/tiny") == {}


def test_push(hub: HubServer, tiny_ddpm: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_ddpm)
    pipe.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="org/mine", token=hub.token)
    assert torch.equal(DiffusionPipeline.from_pretrained("org/mine").unet.conv_in.weight, pipe.unet.conv_in.weight)
    pipe.unet.push_to_hub("org/unet", token=hub.token)
    assert "config.json" in hub_module.listing_of("org/unet").sizes


def test_inspection(tiny_sd: Path, hub: HubServer) -> None:
    found = inspect_checkpoint(tiny_sd, dtype=torch.float16)
    parts = {part.name: part for part in found.parts}
    pipe = DiffusionPipeline.from_pretrained(tiny_sd, torch_dtype=torch.float16)
    assert parts["unet"].parameters == pipe.unet.num_parameters() and parts["unet"].dtypes == {"float32": pipe.unet.num_parameters()}
    assert parts["unet"].weights == 2 * pipe.unet.num_parameters() and parts["unet"].known and parts["tokenizer"].parameters is None
    assert (found.height, found.width) == (32, 32) and found.memory["full"] > found.memory["model"] > found.memory["sequential"] > 0
    assert inspect_checkpoint(tiny_sd, height=64, width=64).memory["model"] > found.memory["model"]
    assert json.loads(json.dumps(found.to_dict()))["parts"][0]["name"] == found.parts[0].name and "32x32" in str(found)
    content = {p.relative_to(tiny_sd).as_posix(): p.read_bytes() for p in tiny_sd.rglob("*") if p.is_file()}
    hub.add("org/tiny", content)
    remote = inspect_checkpoint("org/tiny", dtype=torch.float16)
    assert remote.parts == found.parts and remote.memory == found.memory and remote.commit
    assert hub.bytes_sent < sum(map(len, content.values())) / 2  # headers only
    single = inspect_checkpoint(tiny_sd / "vae")
    assert [part.class_name for part in single.parts] == ["AutoencoderKL"]
    with pytest.raises(CheckpointError):
        inspect_checkpoint(tiny_sd / "scheduler")


def test_activations_are_what_a_call_takes() -> None:
    """Twice the side, four times the memory; and about the size of the largest feature maps."""
    vae = AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    small, large = (peak_activations(vae.to("meta"), 1, side, side) for side in (64, 128))
    assert small is not None and large is not None
    assert 3.9 < large / small < 4.1 and 2 < small / (64 * 64 * 64 * 4) < 8


def test_commands(tiny_sd: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    shown = run(app, ["inspect", str(tiny_sd), "--size", "64", "--dtype", "float16"])
    assert shown.exit_code == 0 and "UNet2DConditionModel" in shown.output and "64x64" in shown.output
    assert json.loads(run(app, ["inspect", str(tiny_sd), "--json"]).output)["class_name"] == "StableDiffusionPipeline"
    hub.add("org/tiny", {p.relative_to(tiny_sd).as_posix(): p.read_bytes() for p in tiny_sd.rglob("*") if p.is_file()})
    pulled = run(app, ["pull", "org/tiny"])
    assert pulled.exit_code == 0 and (Path(pulled.output.strip()) / "model_index.json").exists()
    assert "up to date" in run(app, ["pull", "org/tiny", "--check"]).output
    hub.commit("org/tiny", {"README.md": b"new"})
    assert "newer commit" in run(app, ["pull", "org/tiny", "--check"]).output


def test_several_networks_of_one_component(tmp_path: Path, hub: HubServer) -> None:
    from families import controls

    folder = controls.sd_controlnet(tmp_path / "two", nets=2)
    content = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert any(name.startswith("controlnet_1/") for name in content)
    hub.add("org/two", content)
    options: dict[str, object] = {"requires_safety_checker": False, "device_map": "cpu"}
    here, there = (DiffusionPipeline.from_pretrained(source, **options) for source in (folder, "org/two"))
    for pipe in (here, there):
        assert len(pipe.controlnet.nets) == 2
        assert pipe.device_plan.sizes["controlnet"] == sum(p.nbytes for p in pipe.controlnet.parameters())
    for ours, theirs in zip(here.controlnet.parameters(), there.controlnet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    found = inspect_checkpoint("org/two")
    parts = {part.name: part for part in found.parts}
    assert parts["controlnet_1"].class_name == "ControlNetModel" and parts["controlnet_1"].weights == parts["controlnet"].weights > 0
    assert found.download == inspect_checkpoint(folder).download
