"""IP-Adapters from a repository of the hub: what is fetched, and that nothing else is."""

from __future__ import annotations
from pathlib import Path
import pytest
from families import ip_adapters
from hub_server import HubServer
import darkroom
from darkroom import CheckpointError


@pytest.fixture
def pipe(tiny_sd: Path) -> darkroom.StableDiffusionPipeline:
    return darkroom.StableDiffusionPipeline.from_pretrained(tiny_sd, requires_safety_checker=False)


@pytest.fixture
def repository(pipe: darkroom.StableDiffusionPipeline, tmp_path: Path, hub: HubServer) -> str:
    folder = ip_adapters.write(tmp_path / "source", ip_adapters.adapter(pipe.unet, "base"))
    ip_adapters.write(folder, ip_adapters.adapter(pipe.unet, "plus"), "ip-adapter-plus.bin", image_encoder=False)
    hub.add("org/adapters", {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    return "org/adapters"


def test_file_and_encoder(pipe, repository, hub):
    pipe.load_ip_adapter(repository, subfolder="models", weight_name="ip-adapter.safetensors", revision="main")
    assert [own.kind for own in pipe.ip_adapters] == ["base"] and pipe.image_encoder is not None
    assert hub.asked("image_encoder/model.safetensors") and not hub.asked(r"plus\.bin")
    hub.reset()
    encoder = pipe.image_encoder
    pipe.load_ip_adapter(repository, subfolder="models", weight_name="ip-adapter-plus.bin")
    assert [own.kind for own in pipe.ip_adapters] == ["plus"] and pipe.image_encoder is encoder
    assert hub.asked(r"plus\.bin") and not hub.asked("image_encoder/model.safetensors")


def test_what_is_not_there(pipe, repository, hub):
    for options in ({"weight_name": "none.bin"}, {"weight_name": "ip-adapter.safetensors", "image_encoder_folder": "encoder"}):
        with pytest.raises(CheckpointError):
            pipe.load_ip_adapter(repository, subfolder="models", **options)
        assert not pipe.ip_adapters and pipe.image_encoder is None
    pipe.load_ip_adapter(repository, "models", "ip-adapter.safetensors", image_encoder_folder=None)
    assert not hub.asked("image_encoder/model.safetensors") and pipe.image_encoder is None
