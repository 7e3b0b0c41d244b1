"""The path rule, bounded JSON, and the choice of weight files from a listing."""

from __future__ import annotations
import json
import ntpath
import os
from pathlib import Path, PurePosixPath, PureWindowsPath
import pytest
import torch
from checkpoints.toy import pipeline_files
from hypothesis import given
from hypothesis import strategies as st
from darkroom.checkpoints.files import check_links, inside, is_safe, listing, read_json
from darkroom.checkpoints.plan import available_variants, parse_weight_name, plan, weight_paths
from darkroom.errors import CheckpointError

X = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "a/../../b",
        "..\\b",
        "C:\\x",
        "C:x",
        "a\x00b",
        "__pycache__/x",
        "a/__init__.py",
        "//a",
        "a/.. /b",
        "a.",
        "a /b",
        None,
        3,
    ],
)
def test_names_that_leave_the_folder_are_refused(name: object) -> None:
    with pytest.raises(CheckpointError):
        inside(Path("/root/folder"), name)


PARTS = st.one_of(
    st.text(alphabet="ab./\\:_- ~", max_size=12),
    st.sampled_from(
        [
            "..",
            ".",
            "...",
            ".. ",
            " ..",
            "C:",
            "c:\\",
            "\\\\srv\\share",
            "//srv/x",
            "NUL",
            "a:stream",
            "~",
            "~root",
            "%2e%2e",
            "unet",
            "..;",
        ]
    ),
)


@given(st.lists(PARTS, min_size=1, max_size=5), st.sampled_from(["/", "\\", "//", "/./"]))
def test_whatever_is_allowed_lies_inside(parts: list[str], separator: str) -> None:
    name = separator.join(parts)
    try:
        path = inside(Path("/root/folder"), name)
    except CheckpointError as error:
        assert len(str(error)) < 500
        return
    assert os.path.normpath(path).startswith("/root/folder/")
    for folder in ("C:\\root\\folder", "\\\\server\\share\\folder"):  # and where the same checkpoint is read on Windows
        joined = ntpath.normpath(ntpath.join(folder, name))
        assert joined.startswith(folder + "\\") and not PureWindowsPath(name).drive and not PureWindowsPath(name).root
        assert all(part == part.rstrip(". ") for part in joined.split("\\"))  # what Windows drops from the ends of names


@given(st.text(max_size=30))
def test_any_text_at_all(name: str) -> None:
    if is_safe(name):
        assert PurePosixPath(name).parts and os.path.normpath(Path("/f") / name).startswith("/f/")
        assert ntpath.normpath(ntpath.join("C:\\f", name)).startswith("C:\\f\\")


@pytest.mark.parametrize(
    "name", ["unet/x.json", ".gitattributes", "a b/ü (1).json", "v1.5/x", "a/.hidden", "..a/b..c", "_x", " x", "-x", "~x", "a//b", "./a"]
)
def test_names_that_are_allowed(name: str) -> None:
    assert is_safe(name)


def snapshot(root: Path) -> Path:
    """A repository in the hub's cache."""
    repo, commit = root / "models--org--repo", "0123456789" * 4
    folder = repo / "snapshots" / commit
    (folder / "unet").mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, name in enumerate(("model_index.json", "unet/config.json")):
        (repo / "blobs" / f"{i:064x}").write_text("{}")
        (folder / name).symlink_to(os.path.relpath(repo / "blobs" / f"{i:064x}", (folder / name).parent))
    return folder


def test_links_stay_inside(tmp_path: Path) -> None:
    root, secret = tmp_path / "checkpoint", tmp_path / "secret.json"
    (root / "unet").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    for path in (secret, root / "a.json", tmp_path / "shared" / "config.json", tmp_path / "checkpoint-2"):
        path.write_text("{}")
    (root / "unet" / "same.json").symlink_to("../a.json")
    (root / "loop.json").symlink_to("loop.json")
    good = [Path("a.json"), root / "a.json", Path("unet/same.json"), Path("loop.json"), Path("none.json"), Path("unet/../a.json")]
    check_links(root, good)
    (tmp_path / "link-to-root").symlink_to(root)
    check_links(tmp_path / "link-to-root", [Path("a.json"), root / "a.json"])  # the folder itself may be a link
    (root / "out.json").symlink_to(secret)
    (root / "up.json").symlink_to("../secret.json")
    (root / "twice.json").symlink_to("out.json")
    (root / "vae").symlink_to(tmp_path / "shared")
    (root / "beside").symlink_to(tmp_path / "checkpoint-2")  # whose name begins alike
    for bad in ("out.json", "up.json", "twice.json", "vae/config.json", "vae/none.json", "beside", "../secret.json"):
        with pytest.raises(CheckpointError, match="follow_links") as error:
            check_links(root, [*good, Path(bad)])
        assert Path(bad).name in str(error.value) and len(str(error.value)) < 2000


def test_links_of_the_hubs_cache(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    names = [Path("model_index.json"), Path("unet/config.json")]
    check_links(folder, names)
    (tmp_path / "linked").symlink_to(folder)
    check_links(tmp_path / "linked", names)
    other = snapshot(tmp_path / "other")
    (folder / "x.json").symlink_to(other / "model_index.json")  # another repository's
    (folder / "y.json").symlink_to("../../secret.json")
    (folder / "z.json").symlink_to("../../blobs/../secret.json")
    for bad in ("x.json", "y.json", "z.json"):
        with pytest.raises(CheckpointError, match=bad):
            check_links(folder, [Path(bad)])
    with pytest.raises(CheckpointError):  # a part of a snapshot is no snapshot
        check_links(folder / "unet", [Path("config.json")])
    for name in ("blobs", "snapshots"):  # nor is what only looks like one
        (folder.parents[1] / name).rename(folder.parents[1] / f"old-{name}")
        (folder.parents[1] / name).symlink_to(f"old-{name}" if name == "snapshots" else tmp_path)
        (tmp_path / f"{0:064x}").write_text("{}")
        with pytest.raises(CheckpointError):
            check_links(folder, [Path("model_index.json")])


def test_good_names() -> None:
    assert inside(Path("f"), "unet/x-00001-of-00002.safetensors") == Path("f/unet/x-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b"\xff\xfe{}", "utf-8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "deep"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "JSON"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "long"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as error:
        read_json(path, limit=2000 if says == "long" else 2**20)
    assert "config.json" in str(error.value) and len(str(error.value)) < 2000


def test_json_with_a_mark_and_infinity(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": -Infinity,\r\n "b": [[1]]}')
    assert read_json(path) == {"a": float("-inf"), "b": [[1]]}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path, tmp_path / "none.json"):
        with pytest.raises(CheckpointError):
            read_json(path)


def shards(pattern: str, n: int) -> list[str]:
    return [pattern.format(f"{i:05d}-of-{n:05d}") for i in range(1, n + 1)]


NEW, OLD, PLAIN = shards(X + ".fp16-{}.safetensors", 2), shards(X + "-{}.fp16.safetensors", 2), shards(X + "-{}.safetensors", 3)


@pytest.mark.parametrize(
    ("names", "options", "files", "index"),
    [
        ([f"{X}.safetensors", f"{X}.bin", "config.json"], {}, [f"{X}.safetensors"], None),
        ([f"{X}.safetensors", f"{X}.bin"], {"use_safetensors": False}, [f"{X}.bin"], None),
        ([f"{X}.bin"], {}, [f"{X}.bin"], None),
        ([f"{X}.safetensors", f"{X}.fp16.safetensors"], {"variant": "fp16"}, [f"{X}.fp16.safetensors"], None),
        ([f"{X}.safetensors", f"{X}.fp16.safetensors"], {}, [f"{X}.safetensors"], None),
        ([f"{X}.safetensors", f"{X}.fp16.bin"], {"variant": "fp16"}, [f"{X}.fp16.bin"], None),
        ([*NEW, f"{X}.safetensors.index.fp16.json", *PLAIN], {"variant": "fp16"}, NEW, f"{X}.safetensors.index.fp16.json"),
        ([*OLD, f"{X}.safetensors.fp16.index.json"], {"variant": "fp16"}, OLD, f"{X}.safetensors.fp16.index.json"),
        (
            [*OLD, *NEW, f"{X}.safetensors.fp16.index.json", f"{X}.safetensors.index.fp16.json"],
            {"variant": "fp16"},
            NEW,
            f"{X}.safetensors.index.fp16.json",
        ),
        ([*PLAIN, f"{X}.safetensors.index.json", *NEW, *OLD], {}, PLAIN, f"{X}.safetensors.index.json"),
        ([*PLAIN], {}, PLAIN, None),
        ([f"{X}.non_ema.safetensors", f"{X}.safetensors"], {"variant": "non_ema"}, [f"{X}.non_ema.safetensors"], None),
    ],
)
def test_plan(names: list[str], options: dict, files: list[str], index: str | None) -> None:
    for order in (names, names[::-1]):
        chosen = plan(order, **options)
        assert (list(chosen.files), chosen.index) == (files, index)
        assert chosen.format == files[0].rsplit(".")[-1]


def test_transformers_calls_its_pickles_otherwise() -> None:
    names = ["pytorch_model.bin", "model.safetensors", "pytorch_model.fp16.bin", "flax_model.msgpack"]
    assert plan(names).files == ["model.safetensors"]
    assert plan(names, use_safetensors=False).files == ["pytorch_model.bin"]
    assert plan(names, variant="fp16").files == ["pytorch_model.fp16.bin"]


def test_plans_that_cannot_be() -> None:
    names = [f"{X}.fp16.safetensors", f"{X}.non_ema.safetensors", f"{X}.safetensors", *NEW[:1]]
    assert available_variants(names) == ("fp16", "non_ema")
    with pytest.raises(CheckpointError, match="fp16, non_ema"):
        plan(names, variant="bf16")
    with pytest.raises(CheckpointError, match="fp16"):
        plan([f"{X}.fp16.safetensors"])
    with pytest.raises(CheckpointError, match="safetensors"):
        plan([f"{X}.bin"], use_safetensors=True)
    with pytest.raises(CheckpointError, match="no weights"):
        plan(["config.json"])
    with pytest.raises(CheckpointError, match="shard"):
        plan(PLAIN[1:])


@pytest.mark.parametrize(
    "name", ["config.json", "model.fp16", "pytorch_lora_weights.safetensors", "model_index.json", "x.safetensors", "model.onnx"]
)
def test_other_files_are_no_weights(name: str) -> None:
    assert parse_weight_name(name) is None


def test_pipeline_falls_back_where_one_component_has_the_variant() -> None:
    paths = [f"unet/{X}.fp16.safetensors", f"unet/{X}.safetensors", f"vae/{X}.safetensors", "text/model.safetensors", "scheduler/c.json"]
    files = pipeline_files(paths, ["unet", "vae", "scheduler"], variant="fp16")
    assert files == ["scheduler/c.json", f"unet/{X}.fp16.safetensors", f"vae/{X}.safetensors"]
    with pytest.raises(CheckpointError, match="fp16"):
        pipeline_files(paths, ["vae", "unet"], variant="bf16")
    with pytest.raises(CheckpointError):  # the one component that has it is not loaded
        pipeline_files(paths, ["vae"], variant="fp16")


def test_index_names_stay_in_the_folder(tmp_path: Path) -> None:
    names = [*PLAIN, f"{X}.safetensors.index.json"]
    for name in PLAIN:
        (tmp_path / name).touch()
    chosen = plan(names)
    index = tmp_path / chosen.index
    for bad in ("../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", "gone.safetensors", 3, "a\\b.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": PLAIN[0], "b": bad}}))
        with pytest.raises(CheckpointError):
            weight_paths(tmp_path, chosen)
    for bad in ({}, {"weight_map": []}, {"weight_map": {}}):
        index.write_text(json.dumps(bad))
        with pytest.raises(CheckpointError):
            weight_paths(tmp_path, chosen)
    index.write_text(json.dumps({"weight_map": {"a": PLAIN[0], "b": PLAIN[2]}}))  # without metadata
    assert weight_paths(tmp_path, chosen) == [tmp_path / PLAIN[0], tmp_path / PLAIN[2]]


def test_layouts_as_the_reference_writes_them(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from darkroom.checkpoints.weights import Weights

    unet = diffusers.UNet2DModel(
        block_out_channels=(8, 8),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    shapes = {k: tuple(v.shape) for k, v in unet.state_dict().items()}
    for variant in (None, "fp16"):
        for size in ("10GB", "20KB"):
            for safe in (True, False):
                folder = tmp_path / f"{variant}-{size}-{safe}"
                unet.to(torch.float16 if variant else torch.float32).save_pretrained(
                    folder, variant=variant, max_shard_size=size, safe_serialization=safe
                )
                names = listing(folder)
                assert available_variants(names) == ((variant,) if variant else ())
                chosen = plan(names, variant=variant)
                assert set(chosen.files) | {chosen.index} - {None} == set(names) - {"config.json"} - ({None} if chosen.index else set())
                assert (chosen.index is not None) == (size == "20KB") and chosen.format == ("safetensors" if safe else "bin")
                entries = Weights(weight_paths(folder, chosen)).entries
                assert {k: e.shape for k, e in entries.items()} == shapes
                assert {e.dtype for e in entries.values()} == {torch.float16 if variant else torch.float32}
