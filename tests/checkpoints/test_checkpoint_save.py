"""Saving and reading: layouts, whole or not at all, and what stands in the way. Kills are in test_crash.py."""

from __future__ import annotations
import errno
import itertools
import json
import logging
import os
import resource
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
from checkpoints.toy import Tied, Toy, same, toy
from safetensors.torch import save_file
from darkroom import DiffusionPipeline, UNet2DModel
from darkroom.checkpoints import atomic, locks
from darkroom.checkpoints import save as module
from darkroom.checkpoints.atomic import save_folder_atomic, write_text_atomic
from darkroom.checkpoints.locks import Replaced, read_whole, reading, recover
from darkroom.checkpoints.safetensors import DTYPES
from darkroom.checkpoints.save import save_model, write_pickled, write_safetensors
from darkroom.errors import CheckpointError, InputError

X = "diffusion_pytorch_model"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="other processes are forks")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def fork(work: Callable[[], None]) -> int:
    """The id of a process that does `work` and ends with 0, or with 1 if that raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        signal.alarm(120)  # no process is left over
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def await_(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without renameat2."""
    monkeypatch.setattr(atomic, "ctypes", SimpleNamespace(CDLL=lambda *_: None))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)


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


def test_unknown_options_are_kept(tmp_path: Path) -> None:
    toy().save_pretrained(tmp_path / "m")
    content = json.loads((tmp_path / "m" / "config.json").read_text()) | {"new_option": [1, {"a": None}]}
    (tmp_path / "m" / "config.json").write_text(json.dumps(content))
    Toy.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "n")
    assert json.loads((tmp_path / "n" / "config.json").read_text()) == content


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


def test_bytes_of_the_format(tmp_path: Path) -> None:
    kinds = {str(kind): kind for kind in DTYPES.values()}
    tensors = {name: torch.arange(48, dtype=torch.uint8)[: 6 * kind.itemsize].view(kind).reshape(2, 3) for name, kind in kinds.items()}
    tensors |= {
        "é\U0001f600": torch.ones(3),
        "": torch.ones(2),
        "empty": torch.ones(0, 3),
        "number": torch.tensor(3.0),
        'a"\\b': torch.ones(1),
    }
    tensors |= {"no memory": torch.ones(5, 0), "bit": torch.tensor([True, False]), "h1": torch.ones(3, dtype=torch.float16)}
    for metadata in ({"format": "pt"}, {"format": "pt", "ü": "x"}):
        if len(metadata) > 1:
            metadata.pop("format")  # the format's own writer has no order for two
        save_file(tensors, tmp_path / "a", metadata=metadata)
        write_safetensors(tmp_path / "b", tensors, metadata)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    base = torch.arange(24.0).reshape(4, 6)
    views = {"t": base.t(), "row": base[1], "column": base[:, 2], "parameter": torch.nn.Parameter(base[1:3]), "one": base[:1].expand(3, 6)}
    save_file({name: t.detach().clone().contiguous() for name, t in views.items()}, tmp_path / "a", metadata={"format": "pt"})
    write_safetensors(tmp_path / "b", views)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_pickle_holds_what_it_names(tmp_path: Path) -> None:
    base = torch.arange(100_000.0)
    views = {"part": base[10:20], "square": base[:16].reshape(4, 4).t(), "empty": base[:0], "half": torch.ones(3, dtype=torch.bfloat16)}
    write_pickled(tmp_path / "m.bin", views)
    found = torch.load(tmp_path / "m.bin", weights_only=True)
    assert (tmp_path / "m.bin").stat().st_size < 5000 and found.keys() == views.keys()
    assert all(torch.equal(found[name], views[name]) and found[name].dtype == views[name].dtype for name in views)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(("variant", "size"), [(None, "10GB"), (None, "30KB"), ("fp16", "10GB"), ("fp16", "30KB")])
def test_the_reference_reads_it(tmp_path: Path, tiny_ddpm: Path, variant: str | None, size: str, safe: bool) -> None:
    import diffusers

    model = UNet2DModel.from_pretrained(tiny_ddpm / "unet")
    model.save_pretrained(tmp_path / "unet", variant=variant, max_shard_size=size, safe_serialization=safe)
    assert len(names(tmp_path / "unet")) > 3 or size == "10GB"
    theirs, report = diffusers.UNet2DModel.from_pretrained(
        tmp_path / "unet", variant=variant, use_safetensors=safe, output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(report.values()), report
    assert same(theirs, diffusers.UNet2DModel.from_pretrained(tiny_ddpm / "unet"))
    assert dict(theirs.config) | {"_name_or_path": ""} == dict(diffusers.UNet2DModel.from_pretrained(tiny_ddpm / "unet").config) | {
        "_name_or_path": ""
    }


@pytest.mark.parametrize("safe", [True, False])
def test_no_second_copy_in_memory(tmp_path: Path, safe: bool) -> None:
    model = toy(width=3000, layers=4)  # 180 MB

    def peak() -> int:  # MB that were resident
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

    def work() -> None:
        model.save_pretrained(tmp_path / "warm")
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        model.save_pretrained(tmp_path / "m", safe_serialization=safe)
        assert peak() - before < 60, (before, peak())

    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not measure peaks")
    assert code_of(fork(work)) == 0


def test_saving_over_the_files_that_are_mapped(tmp_path: Path) -> None:
    toy(1).save_pretrained(tmp_path / "m")
    loaded = Toy.from_pretrained(tmp_path / "m")
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    with torch.no_grad():
        loaded.norm.weight.add_(1)
    for _ in range(2):
        loaded.save_pretrained(tmp_path / "m")
        assert same(Toy.from_pretrained(tmp_path / "m"), loaded) and torch.equal(loaded.blocks[0].weight, toy(1).blocks[0].weight)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_pipeline_over_itself(tmp_path: Path, tiny_sd: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_sd)
    pipe.save_pretrained(tmp_path / "sd")
    before = {name: (tmp_path / "sd" / name).read_bytes() for name in names(tmp_path / "sd")}
    start = time.monotonic()
    for _ in range(3):
        read_whole(tmp_path / "sd", DiffusionPipeline.from_pretrained).save_pretrained(tmp_path / "sd")
    assert time.monotonic() - start < 30 and {name: (tmp_path / "sd" / name).read_bytes() for name in names(tmp_path / "sd")} == before
    pipe.save_pretrained(tmp_path / "sd", variant="fp16")
    assert {name for name in names(tmp_path / "sd") if "fp16" in name} == {
        f"unet/{X}.fp16.safetensors", f"vae/{X}.fp16.safetensors", "text_encoder/model.fp16.safetensors"
    } and before.keys() < set(names(tmp_path / "sd"))  # fmt: skip


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
    assert [module.parse_bytes(v, "max_shard_size") for v in ("5GB", "500MB", "2GiB", "10kb", 7)] == [
        5 * 10**9,
        5 * 10**8,
        2 * 2**30,
        10**4,
        7,
    ]


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_folder(tmp_path: Path, kind: type[BaseException]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("old")
    with pytest.raises(kind), save_folder_atomic(tmp_path / "m") as folder:
        (folder / "a").write_text("new")
        raise kind
    assert (tmp_path / "m" / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["m"]
    with pytest.raises(kind), save_folder_atomic(tmp_path / "none") as folder:
        raise kind
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_interrupted_between_the_renames(tmp_path: Path, no_exchange: None, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(1).save_pretrained(tmp_path / "m")
    rename = Path.rename

    def interrupt(path: Path, target: Path) -> Path:
        if ".saving-" in path.name and target.name == "m":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        toy(2).save_pretrained(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"] and same(Toy.from_pretrained(tmp_path / "m"), toy(1))


def test_another_save_was_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        toy(1).save_pretrained(target, variant="fp16")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    toy(2).save_pretrained(tmp_path / "m")
    assert same(Toy.from_pretrained(tmp_path / "m"), toy(2)) and same(Toy.from_pretrained(tmp_path / "m", variant="fp16"), toy(1))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "a").write_text("old")
    locked.chmod(0o555)
    null = Path(f"{tmp_path}/a\0b")
    for target in (
        tmp_path / "file",
        tmp_path / "file" / "m",
        tmp_path / "circle",
        locked,
        Path("/proc/m"),
        Path("/"),
        tmp_path / ("x" * 250),
    ):
        with pytest.raises(CheckpointError) as error:
            toy().save_pretrained(target)
        assert str(target)[:100] in str(error.value), error.value
    with pytest.raises(CheckpointError):
        toy().save_pretrained(null)
    assert (locked / "a").read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["circle", "file", "locked"]
    locked.chmod(0o755)


def as_nobody() -> None:
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_read_only_folders_inside() -> None:
    """They are carried over, and removed with the old checkpoint: as a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o777)

        def work() -> None:
            as_nobody()
            toy(1).save_pretrained(base / "m")
            (base / "m" / "images").mkdir()
            (base / "m" / "images" / "x").write_text("x")
            (base / "m" / "images").chmod(0o555)
            toy(2).save_pretrained(base / "m")
            assert (base / "m" / "images" / "x").read_text() == "x" and (base / "m" / "images").stat().st_mode & 0o777 == 0o555
            assert same(Toy.from_pretrained(base / "m"), toy(2)) and [p.name for p in base.iterdir()] == ["m"]

        assert code_of(fork(work)) == 0


def test_a_folder_that_may_not_be_replaced() -> None:
    """The parent is read-only: as a user who is not root."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        toy(1).save_pretrained(base / "p" / "m")
        for folder in (base, base / "p", base / "p" / "m"):
            folder.chmod(0o777 if folder.name == "m" else 0o755)

        def work() -> None:
            if os.getuid() != 0:
                (base / "p").chmod(0o555)
            as_nobody()
            with pytest.raises(CheckpointError, match="denied"):
                toy(2).save_pretrained(base / "p" / "m")
            with pytest.raises(CheckpointError, match="denied"):
                write_text_atomic(base / "p" / "text", "x")

        assert code_of(fork(work)) == 0
        (base / "p").chmod(0o755)
        assert same(Toy.from_pretrained(base / "p" / "m"), toy(1)) and names(base) == ["p/m/config.json", f"p/m/{X}.safetensors"]


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", ["limit", "disk"])
def test_a_full_disk(tmp_path: Path, tiny_sd: Path, kind: str, safe: bool) -> None:
    """Files may not grow beyond a limit, or the disk is really full."""
    pipe = DiffusionPipeline.from_pretrained(tiny_sd)
    base = tmp_path / "disk"
    base.mkdir()
    if kind == "disk":
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(base)], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip("no right to mount a small disk")
    try:
        pipe.unet.save_pretrained(base / "m", safe_serialization=safe)

        def work() -> None:
            if kind == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            expected = "No space left|too large"
            with pytest.raises(CheckpointError, match=expected) as error:
                pipe.unet.save_pretrained(base / "m", safe_serialization=safe, max_shard_size="1MB" if kind == "limit" else "50KB")
                pipe.save_pretrained(base / "second", safe_serialization=safe)
            assert str(base) in str(error.value) and "saving-" not in str(error.value)
            with pytest.raises(CheckpointError, match=expected):
                pipe.vae.save_pretrained(base / "n", safe_serialization=safe)
                pipe.save_pretrained(base / "third", safe_serialization=safe)
            if kind == "limit":  # transformers writes this one
                with pytest.raises(CheckpointError, match=expected), save_folder_atomic(base / "t") as folder:
                    pipe.text_encoder.save_pretrained(folder)

        assert code_of(fork(work)) == 0
        assert same(type(pipe.unet).from_pretrained(base / "m"), pipe.unet)
        assert not [p.name for p in base.iterdir() if p.name.startswith(".")]
    finally:
        if kind == "disk":
            subprocess.run(["umount", "-l", str(base)], check=True)


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


def test_a_part_of_a_save_is_synced_once(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, synced, fsync = DiffusionPipeline.from_pretrained(tiny_sd), [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", note)
    for _ in range(2):
        synced.clear()
        pipe.save_pretrained(tmp_path / "sd")
        parts = [tmp_path / "sd", *(tmp_path / "sd").rglob("*")]
        assert sorted(synced) == sorted(p.stat().st_ino for p in (tmp_path, *parts))  # and before anything was renamed:
        assert synced[-1] == tmp_path.stat().st_ino and synced[-2] == (tmp_path / "sd").stat().st_ino
    synced.clear()
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    assert synced == [(tmp_path / "scheduler" / "scheduler_config.json").stat().st_ino, (tmp_path / "scheduler").stat().st_ino]


def test_a_network_in_the_root_of_a_save(tmp_path: Path) -> None:
    for seed in (1, 2):
        with save_folder_atomic(tmp_path / "m") as folder:
            before = folder.stat().st_ino
            toy(seed).save_pretrained(folder)
            assert folder.stat().st_ino == before  # it is locked
            toy(seed).save_pretrained(folder / "unet", max_shard_size=300)
            toy(seed).save_pretrained(folder / "unet")
            assert names(folder) == ["config.json", f"{X}.safetensors", "unet/config.json", f"unet/{X}.safetensors"]
        assert same(Toy.from_pretrained(tmp_path / "m"), toy(seed))


def test_mode_and_working_folder_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy(1).save_pretrained(tmp_path / "m")
    (tmp_path / "m").chmod(0o2750)
    (tmp_path / "m" / "images").mkdir()
    monkeypatch.chdir(tmp_path / "m" / "images")
    toy(2).save_pretrained("..")
    assert (tmp_path / "m").stat().st_mode & 0o7777 == 0o2750 and same(Toy.from_pretrained("../../m"), toy(2))
    Path("x").write_text("")
    assert (tmp_path / "m" / "images" / "x").exists()


def test_without_exchange(tmp_path: Path, no_exchange: None) -> None:
    for seed in (1, 2):
        toy(seed).save_pretrained(tmp_path / "m")
        assert same(Toy.from_pretrained(tmp_path / "m"), toy(seed)) and [p.name for p in tmp_path.iterdir()] == ["m"]
    (tmp_path / "m").rename(tmp_path / ".m.replaced-0123abcd")  # killed between the two renames
    assert recover(tmp_path / "m") == tmp_path / "m" and same(Toy.from_pretrained(tmp_path / "m"), toy(2))
    (tmp_path / "m").rename(tmp_path / ".m.replaced-0123abcd")
    toy(3).save_pretrained(tmp_path / "m", variant="fp16")
    assert same(Toy.from_pretrained(tmp_path / "m"), toy(2)) and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_recovery_waits_for_a_save_at_work(tmp_path: Path) -> None:
    """Between its two renames a save is not taken for dead."""
    toy(1).save_pretrained(tmp_path / "m")
    toy(2).save_pretrained(tmp_path / "new")
    go, gone = os.pipe(), os.pipe()

    def work() -> None:
        descriptor = locks.pin(tmp_path / "m", exclusive=True)
        (tmp_path / "m").rename(tmp_path / ".m.replaced-0123abcd")
        os.write(go[1], b"x")
        time.sleep(0.3)
        (tmp_path / "new").rename(tmp_path / "m")
        os.write(gone[1], b"x")
        locks.release(descriptor)

    pid = fork(work)
    os.read(go[0], 1)
    with reading(tmp_path / "m") as folder:
        assert same(Toy.from_pretrained(folder), toy(2)) and os.read(gone[0], 1)
    assert code_of(pid) == 0
    for descriptor in (*go, *gone):
        os.close(descriptor)
    toy(2).save_pretrained(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_debris_goes_and_saves_at_work_stay(tmp_path: Path) -> None:
    go = os.pipe()

    def work() -> None:
        with save_folder_atomic(tmp_path / "m") as folder:
            (folder / "half").write_text(folder.name)
            os.write(go[1], b"x")
            signal.pause()

    pids = [fork(work) for _ in range(2)]
    os.read(go[0], 1), os.read(go[0], 1)
    at_work = {p.name for p in tmp_path.iterdir()}
    backups = {"m.old-20240101", "m.tmp-20240101", "m.saving-20240101", ".m.saving-2024", "mm"}  # of people
    for name in backups:
        (tmp_path / name).mkdir()
    (tmp_path / ".m.replaced-0123abcd").mkdir()
    (tmp_path / ".m.replaced-0123abcd" / "read-only").mkdir()
    (tmp_path / ".m.replaced-0123abcd" / "read-only" / "x").write_text("")
    (tmp_path / ".m.replaced-0123abcd" / "read-only").chmod(0o555)
    (tmp_path / "m").mkdir()
    toy(1).save_pretrained(tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == at_work | backups | {"m"} and len(at_work) == 2
    os.kill(pids[0], signal.SIGKILL)
    assert code_of(pids[0]) == -signal.SIGKILL
    toy(2).save_pretrained(tmp_path / "m")
    (left,) = {p.name for p in tmp_path.iterdir()} - backups - {"m"}
    assert left in at_work
    os.kill(pids[1], signal.SIGKILL)
    code_of(pids[1])
    toy(3).save_pretrained(tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == backups | {"m"} and same(Toy.from_pretrained(tmp_path / "m"), toy(3))
    os.close(go[0]), os.close(go[1])


def test_debris_where_locks_do_nothing(tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".m.saving-0123abcd").mkdir()
    toy(1).save_pretrained(tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == {"m", ".m.saving-0123abcd"}
    monkeypatch.setattr(atomic, "DAY", -1)
    toy(2).save_pretrained(tmp_path / "m")
    assert {p.name for p in tmp_path.iterdir()} == {"m"} and same(Toy.from_pretrained(tmp_path / "m"), toy(2))


@pytest.mark.parametrize("systems", [(), ("no_locks",), ("no_exchange",), ("no_locks", "no_exchange")])
def test_several_first_saves_at_once(tmp_path: Path, systems: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    for name in systems:
        request.getfixturevalue(name)

    def work(seed: int) -> Callable[[], None]:
        def save() -> None:
            for _ in range(5):
                toy(seed).save_pretrained(tmp_path / "m", max_shard_size=300 if seed % 2 else "10GB")

        return save

    codes = [code_of(pid) for pid in [fork(work(seed)) for seed in range(4)]]
    assert codes == [0] * 4
    loaded = read_whole(tmp_path / "m", Toy.from_pretrained)
    assert any(same(loaded, toy(seed)) for seed in range(4)) and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_text(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a", "é\n")
    write_text_atomic(tmp_path / "a", "ü\n")
    assert (tmp_path / "a").read_bytes() == "ü\n".encode() and len(list(tmp_path.iterdir())) == 1
    write_text_atomic(tmp_path / "folder" / "b", "")
    for path in (tmp_path / "a" / "b", tmp_path / "folder"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_text_atomic(path, "")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(tmp_path / "a", "\ud800")
    (tmp_path / ".a.saving-0123abcd").write_text("half")
    os.utime(tmp_path / ".a.saving-0123abcd", (0, 0))
    write_text_atomic(tmp_path / "a", "x")
    assert names(tmp_path) == [".a.saving-0123abcd", "a", "folder/b"]  # its change of today says that it may be at work


# ---- reading


def test_a_save_waits_for_readers(tmp_path: Path) -> None:
    toy(1).save_pretrained(tmp_path / "m")
    with reading(tmp_path / "m") as folder, reading(tmp_path / "m"):
        pid = fork(lambda: toy(2).save_pretrained(tmp_path / "m"))
        await_(lambda: list(tmp_path.glob(".m.saving-*/config.json")))
        time.sleep(0.1)
        assert same(Toy.from_pretrained(folder), toy(1))
    assert code_of(pid) == 0 and same(Toy.from_pretrained(tmp_path / "m"), toy(2))


def test_a_reader_takes_what_is_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that ends between the opening and the locking of the folder."""
    toy(1).save_pretrained(tmp_path / "m")
    flock = locks.fcntl.flock

    def late(*args: int) -> None:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
        toy(2).save_pretrained(tmp_path / "m")
        flock(*args)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with reading(tmp_path / "m") as folder:
        pid = fork(lambda: toy(3).save_pretrained(tmp_path / "m"))
        await_(lambda: list(tmp_path.glob(".m.saving-*/config.json")))
        time.sleep(0.1)
        assert same(Toy.from_pretrained(folder), toy(2))
    assert code_of(pid) == 0 and same(Toy.from_pretrained(tmp_path / "m"), toy(3))


def test_a_reader_that_forked_does_not_hold_the_lock(tmp_path: Path) -> None:
    toy(1).save_pretrained(tmp_path / "m")
    with reading(tmp_path / "m"):
        pid = fork(signal.pause)
    start = time.monotonic()
    toy(2).save_pretrained(tmp_path / "m")
    os.kill(pid, signal.SIGKILL)
    assert time.monotonic() - start < 10 and code_of(pid) == -signal.SIGKILL


def test_patience_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    toy(1).save_pretrained(tmp_path / "m")
    with pytest.raises(Replaced, match="m\n"), reading(tmp_path / "m") as folder, caplog.at_level(logging.WARNING, "darkroom"):
        toy(2).save_pretrained(tmp_path / "m")
        assert "going on" in caplog.text and same(Toy.from_pretrained(folder), toy(2))
    descriptor = locks.pin(tmp_path / "m", exclusive=True)  # a save that hangs
    assert same(read_whole(tmp_path / "m", Toy.from_pretrained), toy(2))
    locks.release(descriptor)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_replaced_while_read(tmp_path: Path, no_locks: None) -> None:
    toy(1).save_pretrained(tmp_path / "m")
    tries = []

    def load(folder: Path) -> Toy:
        tries.append(1)
        if len(tries) < 4:
            toy(1 + len(tries)).save_pretrained(tmp_path / "m")
        if len(tries) == 2:
            raise KeyError("an error of a mixture")
        return Toy.from_pretrained(folder)

    assert same(read_whole(tmp_path / "m", load), toy(4)) and len(tries) == 4
    with pytest.raises(KeyboardInterrupt), reading(tmp_path / "m"):
        toy(5).save_pretrained(tmp_path / "m")
        raise KeyboardInterrupt
    with pytest.raises(KeyError), reading(tmp_path / "m"):
        raise KeyError


def test_reading_never_ends(tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    toy(1).save_pretrained(tmp_path / "m")
    tries = []
    with pytest.raises(Replaced):
        read_whole(tmp_path / "m", lambda folder: (tries.append(1), toy(2).save_pretrained(folder)))
    assert len(tries) == 3


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", "org/name", "a\0b", tmp_path / "file" / "m"):
        with reading(path) as folder:
            assert folder == Path(path)
        with pytest.raises(KeyError):
            read_whole(path, lambda folder: {}[folder])
    toy(1).save_pretrained(tmp_path / "m")
    (tmp_path / "link").symlink_to("m")
    (tmp_path / "m").chmod(0o555)
    assert same(read_whole(tmp_path / "link", Toy.from_pretrained), toy(1))
    (tmp_path / "m").chmod(0o755)
    with reading(tmp_path / "m"), pytest.raises(CheckpointError, match="config"):
        (tmp_path / "m" / "config.json").unlink()
        Toy.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("rounds", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("systems", [(), ("no_locks",), ("no_exchange",), ("no_locks", "no_exchange")])
def test_never_a_mixture(tmp_path: Path, systems: tuple[str, ...], rounds: int, request: pytest.FixtureRequest) -> None:
    """A reader in a loop against a writer in a loop."""
    for name in systems:
        request.getfixturevalue(name)
    target = tmp_path / "m"
    models = [toy(seed) for seed in (1, 2)]

    def save(seed: int) -> None:
        with save_folder_atomic(target) as folder:
            models[seed].save_pretrained(folder / "unet")
            models[seed].save_pretrained(folder / "vae", max_shard_size=300 if seed else "10GB")
            (folder / "model_index.json").write_text(str(seed))

    def write() -> None:
        for n in range(10**9):
            save(n % 2)
            if "no_locks" in systems:
                time.sleep(0.02)  # who never rests cannot be read

    def load(folder: Path) -> tuple[int, Toy, Toy]:
        seed = int((folder / "model_index.json").read_text())
        return seed, Toy.from_pretrained(folder / "unet"), Toy.from_pretrained(folder / "vae")

    save(0)
    pid, seen = fork(write), []
    try:
        for _ in range(rounds):
            seed, unet, vae = read_whole(target, load)
            assert same(unet, models[seed]) and same(vae, models[seed])
            seen.append(seed)
    finally:
        os.kill(pid, signal.SIGKILL)
        code_of(pid)
    assert len(seen) / 50 < sum(a != b for a, b in itertools.pairwise(seen))  # the writer was not kept waiting


@pytest.mark.slow
def test_a_pipeline_is_never_a_mixture(tmp_path: Path, tiny_ddpm: Path) -> None:
    pipes = [DiffusionPipeline.from_pretrained(tiny_ddpm) for _ in range(2)]
    with torch.no_grad():
        for parameter in pipes[1].unet.parameters():
            parameter.add_(1)
    pipes[1].scheduler = type(pipes[1].scheduler).from_config(pipes[1].scheduler.config, num_train_timesteps=500)

    def write() -> None:
        for n in range(10**9):
            pipes[n % 2].save_pretrained(tmp_path / "p", max_shard_size="10GB" if n % 2 else "20KB")

    pipes[1].save_pretrained(tmp_path / "p")
    pid, seen = fork(write), []
    try:
        for _ in range(200):
            pipe = read_whole(tmp_path / "p", DiffusionPipeline.from_pretrained)
            seen.append(n := int(len(pipe.scheduler) == 500))
            assert same(pipe.unet, pipes[n].unet)
    finally:
        os.kill(pid, signal.SIGKILL)
        code_of(pid)
    assert {0, 1} == set(seen)
