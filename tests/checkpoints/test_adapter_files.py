"""Files of adapters: which one it is, what it holds, and what is refused."""

from __future__ import annotations
import json
import pickle
import pytest
import safetensors.torch
import torch
from darkroom.checkpoints.adapters import LORA_NAMES, read_adapter
from darkroom.errors import CheckpointError, DarkroomError, InputError

NESTED = {"image_proj": {"proj.weight": torch.ones(2, 3)}, "ip_adapter": {"1.to_k_ip.weight": torch.arange(4.0)}, "name": "cat", "step": 7}
FLAT = {"image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"}


@pytest.fixture
def folder(tmp_path):
    safetensors.torch.save_file({"a": torch.ones(2, 2)}, tmp_path / "one.safetensors", metadata={"k": "v"})
    return tmp_path


def test_the_only_file_of_a_folder(folder):
    found = read_adapter(folder)
    assert found.keys() == {"a"} and found.metadata == {"k": "v"} and found.where.endswith("one.safetensors")
    (folder / "scheduler.bin").write_bytes(b"")
    assert read_adapter(folder, subfolder=None).keys() == {"a"}
    assert read_adapter(folder.parent, subfolder=folder.name).keys() == {"a"}


def test_the_usual_name_comes_first(folder):
    safetensors.torch.save_file({"b": torch.ones(1)}, folder / LORA_NAMES[0])
    assert read_adapter(folder).keys() == {"b"}
    assert read_adapter(str(folder), weight_name="one.safetensors").keys() == {"a"}
    assert read_adapter(folder / "one.safetensors").keys() == {"a"}


def test_what_is_read_owns_its_memory(folder):
    found = read_adapter(folder)
    (folder / "one.safetensors").write_bytes(b"")
    assert torch.equal(found["a"], torch.ones(2, 2))


def test_dictionaries_in_one_another(folder, tmp_path):
    torch.save(NESTED, folder / "two.bin")
    found = read_adapter(folder, weight_name="two.bin")
    assert found.keys() == FLAT and found.metadata == {"name": "cat", "step": 7}
    assert torch.equal(found["ip_adapter.1.to_k_ip.weight"], torch.arange(4.0))
    given = read_adapter(NESTED)
    assert given.keys() == FLAT and given.metadata == {"name": "cat", "step": 7}
    assert read_adapter(folder, use_safetensors=False).keys() == FLAT
    assert read_adapter(folder).keys() == {"a"}


def test_the_configuration_beside_it(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    assert read_adapter(folder).metadata["adapter_config.json"] == {"r": 4, "lora_alpha": 8}


def test_a_repository_of_the_hub(folder, hub):
    """Nothing is fetched but the file that is wanted."""
    content = (folder / "one.safetensors").read_bytes()
    files = {
        "README.md": b"",
        LORA_NAMES[0]: content,
        "other/style.safetensors": content,
        "model.ckpt": b"x" * 100,
        "adapter_config.json": b"{}",
    }
    hub.add("org/style", files)
    assert read_adapter("org/style").keys() == {"a"}
    assert read_adapter("org/style", subfolder="other").where.endswith("other/style.safetensors")
    assert read_adapter("org/style", weight_name="other/style.safetensors", revision="main", local_files_only=True).keys() == {"a"}
    assert not hub.asked(r"model\.ckpt|README")
    with pytest.raises(CheckpointError, match="no such file"):
        read_adapter("org/style", weight_name="none.safetensors")


class Payload:
    def __reduce__(self):
        return print, ("owned",)


def deep(levels: int) -> dict:
    return {"a": torch.ones(1)} if not levels else {"a": deep(levels - 1)}


BAD = {
    "no such name": lambda f: read_adapter(f, weight_name="none.safetensors"),
    "outside": lambda f: read_adapter(f, weight_name="../one.safetensors"),
    "no such subfolder": lambda f: read_adapter(f, subfolder="none"),
    "another kind": lambda f: read_adapter(f, weight_name="one.safetensors", use_safetensors=False),
    "two of them": lambda f: safetensors.torch.save_file({"a": torch.ones(1)}, f / "two.safetensors") or read_adapter(f),
    "empty folder": lambda f: (f / "one.safetensors").unlink() or read_adapter(f),
    "truncated": lambda f: (f / "one.safetensors").write_bytes((f / "one.safetensors").read_bytes()[:-3]) and read_adapter(f),
    "nan": lambda f: read_adapter({"a": torch.tensor([1.0, float("nan")])}),
    "infinite": lambda f: read_adapter({"a": torch.tensor([1.0, float("inf")])}),
    "no tensors": lambda f: read_adapter({"a": 1}),
    "too deep": lambda f: read_adapter(deep(5)),
    "one name twice": lambda f: read_adapter({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}),
    "payload": lambda f: (f / "x.bin").write_bytes(pickle.dumps({"a": Payload()})) and read_adapter(f / "x.bin"),
    "pickle refused": lambda f: torch.save(NESTED, f / "x.bin") or read_adapter(f / "x.bin", use_safetensors=True),
}


@pytest.mark.parametrize("read", BAD.values(), ids=BAD)
def test_refused(folder, read, capsys):
    with pytest.raises(CheckpointError):
        read(folder)
    assert "owned" not in capsys.readouterr().out


OPTIONS = [{"weight_name": 3}, {"use_safetensors": "yes"}, {"weightname": "y"}]


@pytest.mark.parametrize("source, options", [(3, {}), *(("x", options) for options in OPTIONS)], ids=str)
def test_arguments(source, options):
    with pytest.raises(InputError):
        read_adapter(source, **options)


def test_only_safetensors_where_the_machine_says_so(folder, monkeypatch):
    torch.save(NESTED, folder / "two.bin")
    monkeypatch.setenv("DARKROOM_SAFETENSORS_ONLY", "1")
    with pytest.raises(DarkroomError, match="only safetensors"):
        read_adapter(folder, weight_name="two.bin")
