"""Saving: layouts, and whole or not at all."""

from __future__ import annotations
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from checkpoints.toy import Tied, Toy, same, toy
from darkroom.checkpoints import save as module
from darkroom.checkpoints.save import recover, save_folder_atomic, save_model, write_text_atomic
from darkroom.errors import CheckpointError, InputError

X = "diffusion_pytorch_model"


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", 300])
@pytest.mark.parametrize("safe", [True, False])
def test_round_trip(tmp_path: Path, variant: str | None, size: object, safe: bool) -> None:
    model = toy(layers=4)
    model.save_pretrained(tmp_path / "m", variant=variant, max_shard_size=size, safe_serialization=safe)
    loaded = Toy.from_pretrained(tmp_path / "m", variant=variant)
    assert same(model, loaded) and loaded.config == model.config and not loaded.training
    dot, ext = f".{variant}" if variant else "", "safetensors" if safe else "bin"
    found = set(names(tmp_path / "m"))
    if size == "10GB":
        assert found == {"config.json", f"{X}{dot}.{ext}"}
    else:
        index = json.loads((tmp_path / "m" / f"{X}.{ext}.index{dot}.json").read_text())
        shards = set(index["weight_map"].values())
        assert found == shards | {"config.json", f"{X}.{ext}.index{dot}.json"} and len(shards) > 2
        assert shards == {f"{X}{dot}-{i:05d}-of-{len(shards):05d}.{ext}" for i in range(1, len(shards) + 1)}
        assert index["metadata"] == {"total_size": sum(t.numel() * t.itemsize for t in model.state_dict().values())}
        assert index["weight_map"].keys() == model.state_dict().keys()


def test_config_as_the_layout_has_it(tmp_path: Path) -> None:
    toy().save_pretrained(tmp_path / "m")
    text = (tmp_path / "m" / "config.json").read_text()
    content = json.loads(text)
    assert content["_class_name"] == "Toy" and "_diffusers_version" in content and content["width"] == 8
    assert text == json.dumps(content, indent=2, sort_keys=True) + "\n"


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    model = Tied()
    model.save_pretrained(tmp_path / "m")
    size = (tmp_path / "m" / f"{X}.safetensors").stat().st_size
    assert size < 4 * (64 + 8 + 8) + 600
    loaded = Tied.from_pretrained(tmp_path / "m")
    assert same(model, loaded) and loaded.a.weight is loaded.b.weight


def test_other_variants_stay_and_stale_shards_go(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    toy(1, layers=4).save_pretrained(folder, max_shard_size=300)
    (folder / "README.md").write_text("mine")
    toy(2, layers=4).save_pretrained(folder, variant="fp16", max_shard_size=300)
    assert same(Toy.from_pretrained(folder), toy(1, layers=4)) and same(Toy.from_pretrained(folder, variant="fp16"), toy(2, layers=4))
    toy(3, layers=4).save_pretrained(folder)
    assert f"{X}.safetensors" in names(folder) and not [
        n for n in names(folder) if n.startswith(f"{X}-") or n == f"{X}.safetensors.index.json"
    ]
    assert (folder / "README.md").read_text() == "mine"
    assert same(Toy.from_pretrained(folder), toy(3, layers=4)) and same(Toy.from_pretrained(folder, variant="fp16"), toy(2, layers=4))
    toy(4, layers=4).save_pretrained(folder, safe_serialization=False)  # the older safetensors would be preferred
    assert same(Toy.from_pretrained(folder), toy(4, layers=4))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_saving_over_the_files_that_are_mapped(tmp_path: Path) -> None:
    toy(1).save_pretrained(tmp_path / "m")
    loaded = Toy.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        loaded.norm.weight.add_(1)
    loaded.save_pretrained(tmp_path / "m")
    assert same(Toy.from_pretrained(tmp_path / "m"), loaded) and torch.equal(loaded.blocks[0].weight, toy(1).blocks[0].weight)


def test_options_without_meaning(tmp_path: Path) -> None:
    for options in (
        {"variant": "../x"},
        {"variant": "a-b"},
        {"variant": ""},
        {"max_shard_size": "big"},
        {"max_shard_size": 0},
        {"max_shard_size": "-1GB"},
    ):
        with pytest.raises(InputError):
            toy().save_pretrained(tmp_path / "m", **options)
    with torch.device("meta"):
        empty = Toy()
    with pytest.raises(CheckpointError, match="values"):
        save_model(empty, tmp_path / "m")
    assert not list(tmp_path.iterdir())
    assert [module._bytes(v) for v in ("5GB", "500MB", "2GiB", "10kb", 7)] == [5 * 10**9, 5 * 10**8, 2 * 2**30, 10**4, 7]


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("old")
    with pytest.raises(KeyError), save_folder_atomic(tmp_path / "m") as folder:
        (folder / "a").write_text("new")
        raise KeyError
    assert (tmp_path / "m" / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["m"]
    with pytest.raises(KeyError), save_folder_atomic(tmp_path / "none") as folder:
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "a").write_text("old")
    locked.chmod(0o555)
    for target in (tmp_path / "file", tmp_path / "file" / "m", locked, Path("/proc/m")):
        with pytest.raises(CheckpointError) as error:
            toy().save_pretrained(target)
        assert str(target) in str(error.value)
    assert (locked / "a").read_text() == "old"
    locked.chmod(0o755)


def test_a_pipeline_folder(tmp_path: Path) -> None:
    target = tmp_path / "p"
    with save_folder_atomic(target) as folder:
        toy(1).save_pretrained(folder / "unet")
        toy(1).save_pretrained(folder / "unet", variant="fp16")
        toy(1).save_pretrained(folder / "vae")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "added_tokens.json").write_text("{}")
        assert [p.name for p in tmp_path.iterdir()] == [folder.name]  # nothing nests
    (target / "images").mkdir()
    (target / "images" / "x.png").write_text("x")
    (target / "link").symlink_to("images/x.png")
    (tmp_path / "shared").mkdir()
    (target / "vae2").symlink_to("../shared")
    with save_folder_atomic(target) as folder:
        toy(2).save_pretrained(folder / "unet")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.json").write_text("{}")
        toy(3).save_pretrained(folder / "vae2")
    assert names(target) == sorted(
        ["images/x.png", "link", "tokenizer/vocab.json", *(f"{n}/config.json" for n in ("unet", "vae", "vae2"))]
        + [f"unet/{X}.safetensors", f"unet/{X}.fp16.safetensors", f"vae/{X}.safetensors", f"vae2/{X}.safetensors"]
    )
    assert same(Toy.from_pretrained(target / "unet"), toy(2)) and same(Toy.from_pretrained(target / "unet", variant="fp16"), toy(1))
    assert not list((tmp_path / "shared").iterdir()) and (target / "link").read_text() == "x"


def test_a_link_to_the_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    toy().save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and same(Toy.from_pretrained(tmp_path / "real"), toy())


def test_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *a, **k: object())
    for seed in (1, 2):
        toy(seed).save_pretrained(tmp_path / "m")
        assert same(Toy.from_pretrained(tmp_path / "m"), toy(seed)) and [p.name for p in tmp_path.iterdir()] == ["m"]
    (tmp_path / "m").rename(tmp_path / "m.old-0123abcd")  # killed between the two renames
    assert same(Toy.from_pretrained(tmp_path / "m"), toy(2)) and recover(tmp_path / "m") == tmp_path / "m"


def test_text(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a", "é\n")
    write_text_atomic(tmp_path / "a", "ü\n")
    assert (tmp_path / "a").read_bytes() == "ü\n".encode() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(CheckpointError):
        write_text_atomic(tmp_path / "none" / "a", "")


KILL = """
import os, signal, sys
from pathlib import Path
from checkpoints.toy import Toy, same, toy
from darkroom.checkpoints.save import save_folder_atomic
import darkroom.checkpoints.save as module
base, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
if not exchange:
    module.ctypes.CDLL = lambda *a, **k: object()
target = base / "p"

def save(seed):
    with save_folder_atomic(target) as folder:
        toy(seed).save_pretrained(folder / "unet", max_shard_size=700)
        toy(seed).save_pretrained(folder / "vae")
        (folder / "model_index.json").write_text(str(seed))

save(1)
(target / "extra").write_text("x")
events = {"open", "os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "os.scandir"}
killed = n = mixed = 0
while True:
    n += 1
    child = os.fork()
    if child == 0:
        left = n
        def hook(event, args):
            global left
            if event in events and str(base) in str(args[0]) or event == "os.rename":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        save(2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    folder = module.recover(target)
    seed = int((folder / "model_index.json").read_text())
    for name in ("unet", "vae"):
        assert same(Toy.from_pretrained(folder / name), toy(seed)), (n, name)
    assert (folder / "extra").read_text() == "x", n
    if not os.WIFSIGNALED(status):
        assert os.waitstatus_to_exitcode(status) == 0 and seed == 2
        break
    killed += 1
    if seed == 2:
        save(1)
        (target / "extra").write_text("x")
for debris in base.glob("p.*"):
    os.utime(debris, (0, 0))  # old enough to be no save at work
save(3)
assert sorted(p.name for p in base.iterdir()) == ["p"], list(base.iterdir())
print(killed)
"""


@pytest.mark.parametrize("kind", ["exchange", "two renames"])
def test_killed_at_every_operation(tmp_path: Path, kind: str) -> None:
    """SIGKILL before each file operation of a save: the folder is the old one or the new one, and the next save clears the debris."""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent / "src")]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path), kind], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 40 and signal.SIGKILL == 9
