"""The hub, against a server that speaks its API: what is asked, what goes wrong, and what the cache holds after that."""

from __future__ import annotations
import hashlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
import huggingface_hub
import pytest
from checkpoints.toy import download_pipeline
from hub_server import HubServer, git_sha1
from huggingface_hub import constants
from darkroom.checkpoints import remote
from darkroom.checkpoints.files import size_of
from darkroom.checkpoints.hub import HUB_OPTIONS, Listing, listing_of, locate, newer_commit, push_folder, read_range
from darkroom.errors import CheckpointError, DarkroomError, InputError

X = "diffusion_pytorch_model"
INDEX = {"_class_name": "P", "unet": ["diffusers", "UNet2DConditionModel"], "tok": ["transformers", "CLIPTokenizer"]}
BIG = random.Random(0).randbytes(300_000)
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "README.md": b"# A model",
    ".gitattributes": b"*.bin lfs",
    "v1.ckpt": b"pickle",
    "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    f"unet/{X}.safetensors": BIG,
    f"unet/{X}.fp16.safetensors": BIG[:1000],
    f"unet/{X}.bin": BIG[1:],
    "tok/vocab.json": b"{}",
    "tok/merges.txt": b"",
}
WANTED = ["README.md", "model_index.json", "tok/merges.txt", "tok/vocab.json", "unet/config.json", f"unet/{X}.safetensors"]
WEIGHTS = hashlib.sha256(BIG).hexdigest()


@pytest.fixture
def hub(hub: HubServer) -> HubServer:
    hub.add("org/model", FILES)
    return hub


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in files(root)}


def cache_is_sound(cache: Path, source: dict[str, bytes] = FILES) -> None:
    """Every visible file is one of the source's, whole; every blob is what its name says."""
    for snapshot in cache.glob("models--*/snapshots/*"):
        for name, content in contents(snapshot).items():
            assert content == source[name], name
    for blob in cache.glob("models--*/blobs/*"):
        if not blob.name.endswith(".incomplete"):
            assert blob.name in (hashlib.sha256(blob.read_bytes()).hexdigest(), git_sha1(blob.read_bytes()))


CLIENT = """
import json, signal, sys, os
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background, with it ignored
if os.environ.get("NO_LOCKS"):
    import fcntl
    fcntl.flock = lambda *a: None
from darkroom.checkpoints import remote
from darkroom.checkpoints.hub import fetch_pipeline
from darkroom.errors import CheckpointError
remote.WAITS = (0.05,) * 5
assert "torch" not in sys.modules
try:
    print(fetch_pipeline("org/model", **json.loads(sys.argv[1]))[0])
except CheckpointError as error:
    sys.exit(str(error))
"""


def start(hub: HubServer, cache: Path, *, environment: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Another process that loads the pipeline through HF_ENDPOINT."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_TOKEN")}
    src = str(Path(__file__).parents[2] / "src")
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache.parent), "HF_HUB_CACHE": str(cache), "PYTHONPATH": src, **(environment or {})}
    arguments = [sys.executable, "-c", CLIENT, json.dumps(options)]
    return subprocess.Popen(arguments, env={**kept, **own}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    return out.strip(), err


# what is asked


def test_one_request_and_the_planned_files(hub: HubServer, tmp_path: Path) -> None:
    folder = download_pipeline("org/model", token=hub.token)
    assert files(folder) == WANTED and all((folder / name).read_bytes() == FILES[name] for name in WANTED)
    commit = hub.repos["org/model"].refs["main"]
    assert folder.name == commit and [r.path for r in hub.log if r.metadata] == ["/api/models/org/model"]
    fetched = [r.path.removeprefix(f"/org/model/resolve/{commit}/") for r in hub.asked("/resolve/")]
    assert fetched[0] == "model_index.json" and sorted(fetched) == WANTED[:2] + WANTED[3:]  # an empty file need not be asked for
    assert {r.method for r in hub.log} == {"GET"}  # no HEAD beforehand: the listing says it all
    # again: one request; the same for a component, whose files are there
    for load in (lambda: download_pipeline("org/model"), lambda: locate("org/model", files=["config.json"], subfolder="unet").parent):
        hub.reset()
        assert load() == folder and len(hub.log) == 1
    # another variant of the same commit: what is new is fetched
    hub.reset()
    folder = download_pipeline("org/model", choice={"variant": "fp16"}, revision=commit)
    assert [r.path.rpartition("/")[2] for r in hub.asked("/resolve/")] == [f"{X}.fp16.safetensors"] and len(hub.log) == 2
    cache_is_sound(tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.incomplete")) == [] and list((tmp_path / "cache").rglob("*.tmp")) == []


def test_components_that_the_caller_brings_are_not_fetched(hub: HubServer) -> None:
    assert files(download_pipeline("org/model", skip=["unet"])) == ["README.md", "model_index.json", "tok/merges.txt", "tok/vocab.json"]


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "commit"])
def test_no_request(hub: HubServer, how: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    folder = download_pipeline("org/model")
    request.getfixturevalue("no_network")
    hub.reset()
    options: dict[str, Any] = {"local_files_only": {"local_files_only": True}, "commit": {"revision": folder.name}}.get(how, {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "HF_HUB_OFFLINE")
    assert download_pipeline("org/model", **options) == folder and hub.log == []
    assert listing_of("org/model", **options).sizes == {name: len(content) for name, content in FILES.items()}
    assert read_range("org/model", f"unet/{X}.safetensors", 8, 100, **options) == BIG[8:108] and hub.log == []


def test_offline_says_what_is_missing(hub: HubServer, no_network: None) -> None:
    for load in (download_pipeline, listing_of, newer_commit):
        with pytest.raises(CheckpointError, match="not asked") as caught:
            load("org/model", local_files_only=True)
        assert "org/model" in str(caught.value)
    with pytest.raises(CheckpointError, match="not asked"):
        read_range("org/model", "x", 0, 1, local_files_only=True)
    with pytest.raises(InputError, match="force_download"):
        download_pipeline("org/model", local_files_only=True, force_download=True)


def test_local_folders_need_no_network(tmp_path: Path, hub: HubServer, no_network: None) -> None:
    for name, content in FILES.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(content)
    here = tmp_path / "here"
    assert download_pipeline(here) == here and locate(here, files=[], subfolder="unet") == here / "unet"
    assert listing_of(here) == Listing("", "", {name: len(content) for name, content in sorted(FILES.items())})
    with pytest.raises(CheckpointError, match="bf16"):
        download_pipeline(here, choice={"variant": "bf16"})
    with pytest.raises(CheckpointError, match="subfolder"):
        locate(here, files=[], subfolder="none")
    with pytest.raises(CheckpointError, match="not allowed"):
        locate(here, files=[], subfolder="../here")
    assert hub.log == []


def test_several_at_once(hub: HubServer) -> None:
    many = {f"unet/{X}-{i:05d}-of-00012.safetensors": bytes([i]) * 5000 for i in range(1, 13)}
    hub.add("org/sharded", {**FILES, **many, f"unet/{X}.safetensors.index.json": b'{"weight_map": {}}'})
    hub.fault("/storage/", "wait", 0.15)
    locate("org/sharded", files=[], choose=lambda names, folder: list(many), cache_dir=None)
    assert hub.most_at_once == 8


def test_files_of_the_same_content_come_once(hub: HubServer) -> None:
    hub.add("org/twins", {"a/model.safetensors": BIG, "b/model.safetensors": BIG})
    folder = locate("org/twins", files=["a/model.safetensors", "b/model.safetensors"])
    assert contents(folder) == dict(hub.repos["org/twins"].commits[folder.name]) and len(hub.asked("/storage/")) == 1


def test_a_branch_that_moves(hub: HubServer) -> None:
    hub.restless = True
    before = dict(FILES)
    folder = download_pipeline("org/model")
    assert all((folder / name).read_bytes() == before[name] for name in WANTED)
    assert hub.repos["org/model"].refs["main"] != folder.name
    assert {r.path.split("/")[4] for r in hub.asked("/resolve/")} == {folder.name}
    for _ in range(3):
        folder = download_pipeline("org/model")
        assert contents(folder) == {name: hub.repos["org/model"].commits[folder.name][name] for name in files(folder)}


def test_what_the_hub_does_not_have(hub: HubServer) -> None:
    with pytest.raises(CheckpointError, match=r"fp16.*|bf16"):
        download_pipeline("org/model", choice={"variant": "bf16"})
    with pytest.raises(CheckpointError, match="no such subfolder"):
        locate("org/model", files=["config.json"], subfolder="vae")
    with pytest.raises(CheckpointError, match="Not a pipeline"):
        hub.add("org/plain", {"config.json": b"{}"})
        download_pipeline("org/plain")
    assert files(locate("org/model", files=["nothing.json"], subfolder="tok")) == []


def test_names_that_leave_the_folder(hub: HubServer, tmp_path: Path) -> None:
    bad = ["../../escape.json", "/etc/escape.json", "a/../../../escape.json", "C:\\escape.json", "unet/__init__.py"]
    hub.add("org/hostile", {**FILES, **dict.fromkeys(bad, b"bad")})
    assert set(listing_of("org/hostile").sizes) == set(FILES)
    locate("org/hostile", files=list(FILES), choose=lambda names, folder: names)
    assert not list(tmp_path.rglob("*escape*")) and not any("escape" in r.path for r in hub.log)
    for revision in ("../x", "/x", "a\\b", ""):
        with pytest.raises(InputError, match="revision"):
            download_pipeline("org/model", revision=revision)


# the cache


def test_other_programs_find_the_files(hub: HubServer, tmp_path: Path) -> None:
    folder = download_pipeline("org/model")
    hub.reset()
    got = huggingface_hub.snapshot_download("org/model", local_files_only=True, allow_patterns=WANTED)
    assert Path(got) == folder and hub.log == []
    assert huggingface_hub.try_to_load_from_cache("org/model", "unet/config.json") == str(folder / "unet/config.json")
    assert huggingface_hub.hf_hub_download("org/model", f"unet/{X}.safetensors") == str(folder / f"unet/{X}.safetensors")
    assert not hub.asked("/storage/")
    found = huggingface_hub.scan_cache_dir(tmp_path / "cache")
    assert not found.warnings and [r.repo_id for r in found.repos] == ["org/model"]


@pytest.mark.parametrize("listed", [True, False])
def test_files_of_other_programs_are_found(hub: HubServer, tmp_path: Path, listed: bool) -> None:
    patterns = ["model_index.json", "tok/*", "unet/config.json", f"unet/{X}.safetensors"]  # not README.md
    folder = huggingface_hub.snapshot_download("org/model", allow_patterns=patterns)
    if not listed:
        for tree in (tmp_path / "cache").glob("models--*/trees/*"):
            tree.unlink()
    hub.reset()
    assert str(download_pipeline("org/model", local_files_only=True)) == folder and hub.log == []
    download_pipeline("org/model")
    assert len([r for r in hub.log if r.metadata]) == 1 and [r.path.rpartition("/")[2] for r in hub.asked("/resolve/")] == ["README.md"]


def test_the_hub_does_not_answer_but_the_cache_does(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    folder = download_pipeline("org/model")
    for kind, value in [
        ("status", 503),
        ("status", 429),
        ("status", 401),
        ("html", None),
        ("hang up", None),
        ("loop", None),
        ("junk", b"{"),
    ]:
        hub.reset()
        caplog.clear()
        hub.fault("/api/models/", kind, value)
        assert download_pipeline("org/model") == folder
        assert [r.levelno for r in caplog.records if r.name == "darkroom"] == [logging.WARNING], kind
        assert "fetched before" in caplog.text and len([r for r in hub.log if r.metadata]) <= (21 if kind == "loop" else 1)
    caplog.clear()
    with pytest.raises(CheckpointError, match="only a part") as caught:
        download_pipeline("org/model", choice={"variant": "fp16"})
    assert "fp16" in str(caught.value)
    with pytest.raises(CheckpointError):
        download_pipeline("org/model", force_download=True)


def test_no_server_at_all(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    folder = download_pipeline("org/model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    dead = f"http://127.0.0.1:{port}"
    assert download_pipeline("org/model", endpoint=dead) == folder and "no connection can be made" in caplog.text
    for endpoint, why in [(dead, "no connection can be made"), ("http://surely-no-such-host.invalid", "host cannot be resolved")]:
        with pytest.raises(CheckpointError, match=why):
            download_pipeline("org/other", endpoint=endpoint)


def test_an_update_that_fails_leaves_the_old_one(hub: HubServer, tmp_path: Path) -> None:
    old = download_pipeline("org/model")
    new = {**FILES, f"unet/{X}.safetensors": BIG[::-1]}
    commit = hub.commit("org/model", new)
    hub.fault("/storage/", "status", 404)
    with pytest.raises(CheckpointError):
        download_pipeline("org/model")
    assert download_pipeline("org/model", local_files_only=True) == old  # the branch means the old commit until the new one is whole
    hub.reset()
    assert download_pipeline("org/model").name == commit != old.name
    assert download_pipeline("org/model", local_files_only=True).name == commit
    assert len(hub.asked("/resolve/")) == 1  # what has not changed is not fetched again


def test_force_download(hub: HubServer) -> None:
    folder = download_pipeline("org/model")
    weights = (folder / f"unet/{X}.safetensors").resolve()
    weights.write_bytes(bytes(len(BIG)))  # damaged, in the right size
    hub.reset()
    assert download_pipeline("org/model", force_download=True) == folder and weights.read_bytes() == BIG
    assert len(hub.asked("/resolve/")) == len(WANTED) - 1
    (folder / "unet/config.json").resolve().write_bytes(b"")  # damaged, in another size: seen without being told
    download_pipeline("org/model")
    assert (folder / "unet/config.json").read_bytes() == FILES["unet/config.json"]


def test_without_links(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    folder = download_pipeline("org/model")
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert contents(folder) == {name: FILES[name] for name in WANTED}


def test_too_little_room(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(CheckpointError, match="too little room"):
        download_pipeline("org/model")
    assert not hub.asked("/storage/")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cache cannot be written"):
        download_pipeline("org/model", cache_dir=tmp_path / "file")


def test_a_hub_that_lists_names_only(hub: HubServer, tmp_path: Path) -> None:
    hub.mirror = True
    folder = download_pipeline("org/model")
    assert contents(folder) == {name: FILES[name] for name in WANTED}
    assert set(listing_of("org/model").sizes.values()) == {-1} and listing_of("org/model").digests == {}
    hub.reset()
    assert download_pipeline("org/model") == folder and len(hub.log) == 1
    assert download_pipeline("org/model", local_files_only=True) == folder
    hub.restless = True
    hub.commit("org/model", FILES)
    folder = download_pipeline("org/model")
    assert contents(folder) == {name: FILES[name] for name in WANTED} and hub.repos["org/model"].refs["main"] != folder.name
    hub.add("org/lies", FILES)
    hub.fault("/storage/", "swap", BIG[::-1])
    with pytest.raises(CheckpointError, match="digest differs"):
        download_pipeline("org/lies")
    assert not list((tmp_path / "cache").glob(f"models--org--lies/snapshots/*/unet/{X}.safetensors"))


# what goes wrong on the way

REFUSALS = [
    ("/api/models/", "status", 401, {}, "does not accept the token"),
    ("/api/models/", "status", 401, {"X-Error-Code": "RepoNotFound"}, "no such repository, or it is private"),
    ("/api/models/", "status", 401, {"X-Error-Code": "GatedRepo"}, "gated"),
    ("/api/models/", "status", 403, {"X-Error-Code": "GatedRepo"}, "gated"),
    ("/api/models/", "status", 403, {}, "gives no access"),
    ("/api/models/", "status", 404, {"X-Error-Code": "RepoNotFound"}, "no such repository"),
    ("/api/models/", "status", 404, {"X-Error-Code": "RevisionNotFound"}, "no such revision"),
    ("/api/models/", "status", 404, {}, "no such repository, revision or file"),
    ("/api/models/", "status", 418, {}, "status 418"),
    ("/api/models/", "status", 429, {}, "fewer requests"),
    ("/api/models/", "status", 429, {"Retry-After": "86400"}, "fewer requests"),
    ("/api/models/", "status", 500, {}, "status 500"),
    ("/api/models/", "status", 503, {}, "status 503"),
    ("/api/models/", "html", None, {}, "something else than JSON"),
    ("/api/models/", "junk", b'{"sha": "../../x", "siblings": []}', {}, "names no commit"),
    ("/api/models/", "junk", b'{"sha": ', {}, "Not valid JSON"),
    ("/api/models/", "junk", b'["sha"]', {}, "something else than JSON"),
    ("/api/models/", "loop", None, {}, "circle"),
    ("/api/models/", "hang up", None, {}, "connection broke off"),
    ("/resolve/", "status", 404, {"X-Error-Code": "EntryNotFound"}, "no such file"),
    ("/resolve/", "status", 403, {"X-Error-Code": "GatedRepo"}, "gated"),
    ("/resolve/", "status", 503, {}, "status 503"),
    ("/resolve/", "loop", None, {}, "circle"),
    ("/resolve/", "html", None, {}, "web page"),
    ("/storage/", "status", 403, {}, "gives no access"),
    ("/storage/", "html", None, {}, "web page"),
    ("/storage/", "cut", 0, {}, "connection broke off"),
    ("/storage/", "lie", 1000, {}, "announces"),
    ("/storage/", "lie", -1000, {}, "announces"),
    ("/storage/", "swap", BIG[::-1], {}, "digest differs"),
    ("/storage/", "swap", BIG[:-1], {}, "announces"),
    ("/resolve-cache/", "swap", b"#" * 9, {}, "announces|digest differs"),
]


@pytest.mark.parametrize("path, kind, value, headers, message", REFUSALS)
def test_one_clear_error(
    hub: HubServer,
    tmp_path: Path,
    path: str,
    kind: str,
    value: Any,
    headers: dict[str, str],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.fault(path, kind, value, headers=headers)
    with pytest.raises(CheckpointError, match=message) as caught, caplog.at_level(logging.DEBUG, "darkroom"):
        download_pipeline("org/model", token=hub.token)
    error = caught.value
    assert error.what.count("\n") == 0 and len(str(error)) < 1000 and "canary" not in str(error) + caplog.text
    assert len(hub.log) < 90
    cache_is_sound(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(f"models--*/snapshots/*/unet/{X}.safetensors"))
    hub.reset()  # and the next time it works
    folder = download_pipeline("org/model")
    assert contents(folder) == {name: FILES[name] for name in WANTED}


PASSING = [
    ("/api/models/", "status", 503, {"times": 3}),
    ("/api/models/", "status", 500, {"times": 5}),
    ("/api/models/", "status", 429, {"times": 1, "headers": {"Retry-After": "1"}}),
    ("/api/models/", "status", 429, {"times": 1, "headers": {"RateLimit": '"api";r=0;t=1'}}),
    ("/api/models/", "hang up", None, {"times": 2}),
    ("/resolve/", "status", 502, {"times": 4}),
    ("/resolve/", "hang up", None, {"times": 3}),
    ("/storage/", "status", 403, {"times": 2}),  # an address that is no longer good
    ("/storage/", "status", 503, {"times": 2}),
    ("/storage/", "cut", 100_000, {"times": 1}),
    ("/storage/", "cut", 70_000, {}),  # each time after so much
    ("/storage/", "cut", 3_000, {}),
    ("/storage/", "lie", 1000, {"times": 1}),
    ("/storage/", "lie", -1000, {"times": 1}),
    ("/storage/", "no length", None, {}),
    ("/storage/", "swap", BIG[::-1], {"times": 1}),
    ("/storage/", "swap", BIG + b"more", {"times": 1}),
    ("/storage/", "swap", BIG[:10], {"times": 1}),
    ("/resolve-cache/", "gzip", None, {}),
    ("/resolve-cache/", "swap", b"<html>", {"times": 2}),
]


@pytest.mark.parametrize("path, kind, value, options", PASSING)
def test_faults_that_pass(hub: HubServer, tmp_path: Path, path: str, kind: str, value: Any, options: dict[str, Any]) -> None:
    hub.fault(path, kind, value, **options)
    started = time.monotonic()
    folder = download_pipeline("org/model")
    assert contents(folder) == {name: FILES[name] for name in WANTED}
    cache_is_sound(tmp_path / "cache")
    if options.get("headers"):
        assert time.monotonic() - started >= 1
    assert list((tmp_path / "cache").rglob("*.incomplete")) == []


def test_a_stalled_server_is_given_up(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    hub.fault("/api/models/", "wait", 1.0)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="does not answer in time"):
        download_pipeline("org/model")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("then", ["", "no ranges", "wrong range", "swap"])
def test_an_interrupted_download_resumes(hub: HubServer, tmp_path: Path, then: str) -> None:
    hub.fault("/storage/", "cut", 100_000, times=1)
    hub.fault("/storage/", "status", 404, times=1)
    with pytest.raises(CheckpointError):
        download_pipeline("org/model")
    (part,) = (tmp_path / "cache").rglob("*.incomplete")
    assert part.read_bytes() == BIG[:100_000]
    if then == "swap":
        part.write_bytes(BIG[:99_999] + b"\0")  # what was left is wrong: seen at the end, and fetched anew
    hub.reset()
    if then in ("no ranges", "wrong range"):
        hub.fault("/storage/", then, times=1)
    folder = download_pipeline("org/model")
    assert (folder / f"unet/{X}.safetensors").read_bytes() == BIG
    assert hub.asked("/storage/")[0].headers["range"] == "bytes=100000-"
    assert not then or len(hub.asked("/storage/")) <= 2
    if not then:
        assert len(hub.asked("/storage/")) == 1 and hub.bytes_sent < 201_000
    assert list((tmp_path / "cache").rglob("*.incomplete")) == []


def test_an_etag_that_changes_midway(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("/storage/", "cut", 100_000, times=1)
    hub.fault("/storage/", "swap", BIG[::-1], times=1)
    folder = download_pipeline("org/model")
    assert (folder / f"unet/{X}.safetensors").read_bytes() == BIG


# other processes


def test_a_killed_download_resumes_in_another_process(hub: HubServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.fault("/storage/", "slow", 4096)
    process = start(hub, cache)
    while not (parts := [p for p in cache.rglob("*.incomplete") if size_of(p) > 50_000]):
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    had = parts[0].stat().st_size
    cache_is_sound(cache)
    assert not list(cache.glob(f"models--*/snapshots/*/unet/{X}.safetensors"))
    hub.reset()
    out, err = finish(start(hub, cache))
    assert contents(Path(out)) == {name: FILES[name] for name in WANTED}, err
    assert hub.asked("/storage/")[0].headers["range"] == f"bytes={had}-" and len(hub.asked("/storage/")) == 1
    assert list(cache.rglob("*.incomplete")) == []


def test_control_c(hub: HubServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.fault("/storage/", "slow", 1024)
    process = start(hub, cache)
    while not [p for p in cache.rglob("*.incomplete") if size_of(p) > 10_000]:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = finish(process)
    assert "KeyboardInterrupt" in err and time.monotonic() - started < 10
    hub.reset()
    assert (download_pipeline("org/model") / f"unet/{X}.safetensors").read_bytes() == BIG
    assert "range" in hub.asked("/storage/")[0].headers


@pytest.mark.parametrize("locks", [True, False])
def test_many_processes_and_one_download(hub: HubServer, tmp_path: Path, locks: bool) -> None:
    cache = tmp_path / "cache"
    hub.fault("/storage/", "slow", 16384)
    hub.fault("/storage/", "cut", 100_000, times=0 if locks else 4)
    processes = [start(hub, cache, environment={} if locks else {"NO_LOCKS": "1"}) for _ in range(8 if locks else 4)]
    done = [finish(process) for process in processes]
    assert {out for out, _ in done} == {str(download_pipeline("org/model"))}, done
    cache_is_sound(cache)
    if locks:
        assert len(hub.asked("/storage/")) == 1 and len(hub.asked("/resolve/")) == len(WANTED) - 1
    assert list(cache.rglob("*.incomplete")) == []


def test_parts_of_others_that_vanish(hub: HubServer, tmp_path: Path) -> None:
    blobs = tmp_path / "cache/models--org--model/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{WEIGHTS}.00000000-1-00000000.incomplete").symlink_to("gone")  # listed, and gone when it is looked at
    assert (download_pipeline("org/model") / f"unet/{X}.safetensors").read_bytes() == BIG


def test_one_bar_over_bytes(hub: HubServer, tmp_path: Path) -> None:
    _, err = finish(start(hub, tmp_path / "shown"))
    lines = [line for line in err.splitlines() if line]  # of one bar, as it goes on
    assert err.count("  0%|") == 1 and all(line.startswith("Fetching org/model: ") for line in lines)
    assert "100%|" in lines[-1] and "300k/300k" in lines[-1]
    for i, off in enumerate(("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")):
        out, err = finish(start(hub, tmp_path / f"hidden{i}", environment={off: "1"}))
        assert err == "" and Path(out).is_dir()


# tokens, proxies, options


def test_tokens_stay_with_their_host(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/model"].token = hub.token
    folder = download_pipeline("org/model", token=hub.token)
    mine, others = [r for r in hub.log if r.host == "hub"], [r for r in hub.log if r.host == "storage"]
    assert {r.headers["authorization"] for r in mine} == {f"Bearer {hub.token}"} and others
    assert not any("canary" in str(r.headers) for r in others)
    assert not any(hub.token.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(CheckpointError, match="no such repository, or it is private"):
        download_pipeline("org/model", token=False, cache_dir=tmp_path / "b")
    with pytest.raises(CheckpointError, match="does not accept the token") as caught:
        download_pipeline("org/model", token="hf_wrongcanary", cache_dir=tmp_path / "b")
    assert "canary" not in str(caught.value)
    # the token of this machine goes to its hub and to no other
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert download_pipeline("org/model", cache_dir=tmp_path / "c").name == folder.name
    with HubServer() as other:
        other.add("org/model", FILES)
        download_pipeline("org/model", endpoint=other.url, cache_dir=tmp_path / "d")
        assert not any("authorization" in r.headers for r in other.log)
        other.reset()
        download_pipeline("org/model", endpoint=other.url, token=True, cache_dir=tmp_path / "e")
        assert any("authorization" in r.headers for r in other.log)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token on this machine"):
        download_pipeline("org/model", token=True)


def test_gated(hub: HubServer) -> None:
    hub.add("org/gated", FILES, gated=True, token="somebody else's")
    for token in (hub.token, None):
        with pytest.raises(CheckpointError, match="gated"):
            download_pipeline("org/gated", token=token)
    hub.repos["org/gated"].token = hub.token
    assert files(download_pipeline("org/gated", token=hub.token)) == WANTED


def test_proxies(hub: HubServer) -> None:
    folder = download_pipeline("org/model", endpoint="http://hub.invalid", proxies={"http": hub.url})
    assert files(folder) == WANTED and {r.headers["host"] for r in hub.asked("/api/models|/resolve/")} == {"hub.invalid"}
    for bad in ("http://x", {"http": "canary://user:canary@host"}, {"http": 1}):
        with pytest.raises(InputError, match="proxies") as caught:
            download_pipeline("org/model", proxies=bad)  # type: ignore[arg-type]
        assert "canary" not in str(caught.value)


def test_options_without_meaning(hub: HubServer, no_network: None) -> None:
    assert {"revision", "cache_dir", "token", "local_files_only", "force_download", "proxies", "endpoint"} == set(HUB_OPTIONS)
    for options in ({"mirror": "x"}, {"token": 1}, {"token": "two\nlines"}, {"endpoint": "ftp://x"}, {"endpoint": "http://u:p@x"}):
        with pytest.raises(InputError) as caught:
            download_pipeline("org/model", **options)
        assert "lines" not in str(caught.value)
    assert hub.log == []


# listings, ranges, updates


def test_listing_of(hub: HubServer, tmp_path: Path) -> None:
    listing = listing_of("org/model")
    assert (listing.repo_id, listing.commit) == ("org/model", hub.repos["org/model"].refs["main"]) and len(hub.log) == 1
    assert listing.sizes == {name: len(content) for name, content in FILES.items()}
    assert listing.digests[f"unet/{X}.safetensors"] == WEIGHTS and listing.digests["README.md"] == git_sha1(FILES["README.md"])
    folder = download_pipeline("org/model")
    assert listing_of(folder) == Listing("org/model", listing.commit, {name: len(FILES[name]) for name in WANTED})
    hub.commit("org/model", {"x": b"1"}, "next/one")
    assert listing_of("org/model", revision="next/one").sizes == {"x": 1}
    assert hub.log[-1].path == "/api/models/org/model/revision/next/one"


def test_read_range(hub: HubServer) -> None:
    name = f"unet/{X}.safetensors"
    assert read_range("org/model", name, 8, 100) == BIG[8:108] and hub.bytes_sent == 100
    assert read_range("org/model", "model_index.json", 0, 5) == FILES["model_index.json"][:5]
    assert hub.log[0].headers["range"] == "bytes=8-107" and len(hub.asked("/storage/")) == 1
    commit = hub.repos["org/model"].refs["main"]
    hub.commit("org/model", {name: BIG[::-1]})
    assert read_range("org/model", name, 0, 10, revision=commit) == BIG[:10]
    for start, length in [(len(BIG) - 10, 20), (len(BIG), 1)]:
        with pytest.raises(CheckpointError):
            read_range("org/model", name, start, length)
    for start, length in [(-1, 5), (0, 0)]:
        with pytest.raises(InputError):
            read_range("org/model", name, start, length)
    with pytest.raises(CheckpointError, match="not allowed"):
        read_range("org/model", "../x", 0, 1)
    with pytest.raises(CheckpointError, match="no such file"):
        read_range("org/model", "none", 0, 1)
    with pytest.raises(CheckpointError) as caught:
        read_range("org/model", name, len(BIG), 1, token=hub.token)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("kind, value", [("no ranges", None), ("wrong range", None), ("swap", b"short"), ("gzip", None), ("html", None)])
def test_ranges_that_are_wrong(hub: HubServer, kind: str, value: Any) -> None:
    big = bytes(50_000_000)
    hub.add("org/big", {"x.safetensors": big})
    hub.fault("/storage/", kind, value)
    with pytest.raises(CheckpointError, match="range of bytes") as caught:
        read_range("org/big", "x.safetensors", 8, 100)
    assert "org/big" in str(caught.value) and hub.bytes_sent < 10_000_000  # what the sockets hold, unread
    assert len(hub.asked("/storage/")) == 1


def test_ranges_are_tried_again(hub: HubServer) -> None:
    for kind, value in [("status", 503), ("cut", 50), ("lie", -10)]:
        hub.fault("/storage/", kind, value, times=1)
        assert read_range("org/model", f"unet/{X}.safetensors", 8, 100) == BIG[8:108]


def test_newer_commit(hub: HubServer, tmp_path: Path) -> None:
    first = hub.repos["org/model"].refs["main"]
    assert newer_commit("org/model") == first  # nothing is here yet
    folder = download_pipeline("org/model")
    hub.reset()
    assert newer_commit("org/model") is None and newer_commit(folder) is None and newer_commit(folder / "unet") is None
    assert len(hub.log) == 3 and newer_commit("org/model", revision=first) is None and len(hub.log) == 3
    second = hub.commit("org/model", FILES)
    assert newer_commit("org/model") == second == newer_commit(folder) and folder.name == first
    download_pipeline("org/model")
    assert newer_commit("org/model") is None and newer_commit(folder) == second
    with pytest.raises(InputError, match="does not say"):
        newer_commit(tmp_path)
    hub.fault("/api/models/", "status", 503)
    with pytest.raises(CheckpointError, match="503"):
        newer_commit("org/model")


# uploads


def test_push_folder(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "x.json.tmp-12345678").write_bytes(b"debris")
    url = push_folder(folder, "me/mine", private=True, token=hub.token, commit_message="First")
    repo = hub.repos["me/mine"]
    assert url == f"{hub.url}/me/mine/commit/{repo.refs['main']}" and repo.private and hub.messages == ["First"]
    assert dict(repo.commits[repo.refs["main"]]) == FILES
    assert contents(download_pipeline("me/mine", token=hub.token)) == {name: FILES[name] for name in WANTED}
    main = repo.refs["main"]
    (folder / "README.md").write_bytes(b"# Changed")
    push_folder(folder, "me/mine", token=hub.token, revision="next")
    assert repo.refs["main"] == main and repo.commits[repo.refs["next"]]["README.md"] == b"# Changed"
    push_folder(folder, "me/mine", token=hub.token, create_pr=True)
    assert repo.refs["main"] == main and "refs/pr/1" in repo.refs
    assert not any("canary" in str(r.headers) for r in hub.log if r.host == "storage")


def test_push_folder_refused(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.json").write_text("{}")
    with pytest.raises(CheckpointError, match="could not be uploaded.*token") as caught:
        push_folder(tmp_path / "mine", "me/mine", token="hf_wrongcanary")
    assert "canary" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such folder"):
        push_folder(tmp_path / "none", "me/mine", token=hub.token)
    with pytest.raises(InputError, match="hub id"):
        push_folder(tmp_path / "mine", "a/b/c", token=hub.token)
    hub.fault("/api/models/me/mine/commit", "status", 403)
    with pytest.raises(CheckpointError, match="gives no access"):
        push_folder(tmp_path / "mine", "me/mine", token=hub.token)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(DarkroomError, match="no connection"):
        push_folder(tmp_path / "mine", "me/mine", token=hub.token, endpoint=f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="offline"):
        push_folder(tmp_path / "mine", "me/mine", token=hub.token)


def test_parts_of_the_living_are_left_to_them(hub: HubServer, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        living = blobs / f"{WEIGHTS}.{host}-{process.pid}-00000000.incomplete"
        elsewhere = blobs / f"{WEIGHTS}.{'0' * 8}-1-00000000.incomplete"
        for part in (living, elsewhere):
            part.write_bytes(BIG[:1000])
        download_pipeline("org/model")
        assert living.read_bytes() == elsewhere.read_bytes() == BIG[:1000]
        assert "range" not in hub.asked("/storage/")[0].headers
        process.kill()
    former = blobs / f"{WEIGHTS}.{host}-{os.getpid()}-00000000.incomplete"  # of a process that had the number of this one
    former.write_bytes(BIG[:3000])
    (blobs / WEIGHTS).unlink()
    hub.reset()
    download_pipeline("org/model")
    assert hub.asked("/storage/")[0].headers["range"] == "bytes=3000-"
    assert [part for part in (living, elsewhere, former) if part.exists()] == [elsewhere]
    os.utime(elsewhere, (0, 0))  # not touched for long
    (blobs / WEIGHTS).unlink()
    hub.reset()
    download_pipeline("org/model")
    assert hub.asked("/storage/")[0].headers["range"] == "bytes=1000-" and not elsewhere.exists()
