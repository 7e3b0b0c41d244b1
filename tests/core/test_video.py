"""Videos in and out: beside the reference, from files and the network; bounds and bad files."""

from __future__ import annotations
import os
import subprocess
import sys
from pathlib import Path
import diffusers.utils
import numpy as np
import pytest
import torch
from diffusers.utils import export_to_gif as reference_gif
from diffusers.utils import export_to_video as reference_video
from diffusers.utils import load_video as reference_load
from PIL import Image
from darkroom import export_to_gif, export_to_video, load_video, utils, video
from darkroom.errors import InputError, MissingDependencyError


def frames(count: int = 5, width: int = 48, height: int = 32) -> list[Image.Image]:
    y, x = np.mgrid[:height, :width]
    bands = [np.stack([x * 5 % 256, y * 7 % 256, (x + y + 9 * i) * 3 % 256], -1).astype(np.uint8) for i in range(count)]
    return [Image.fromarray(b) for b in bands]


def arrays(pictures) -> np.ndarray:
    return np.stack([np.asarray(p.convert("RGB")) for p in pictures])


def floats() -> np.ndarray:
    return arrays(frames()).astype(np.float32) / 255


def test_gif_is_the_references(tmp_path):
    for name, fps in (("a", 10), ("b", 7), ("c", 30)):
        reference_gif(frames(), str(tmp_path / "theirs.gif"), fps=fps)
        assert export_to_gif(frames(), str(tmp_path / f"{name}.gif"), fps=fps) == str(tmp_path / f"{name}.gif")
        assert (tmp_path / f"{name}.gif").read_bytes() == (tmp_path / "theirs.gif").read_bytes()
        ours, rate = load_video(tmp_path / f"{name}.gif", return_fps=True)
        theirs, their_rate = reference_load(str(tmp_path / "theirs.gif"), return_fps=True)
        assert rate == their_rate and all(f.mode == "RGB" for f in ours)
        assert np.array_equal(arrays(ours), arrays(theirs))
    assert Path(export_to_gif(frames())).suffix == ".gif"


@pytest.mark.parametrize(
    "options", [{}, {"fps": 24, "quality": 9.0}, {"bitrate": 200_000}, {"quality": None}, {"macro_block_size": None}], ids=str
)
@pytest.mark.parametrize("kind", ["pil", "np"])
def test_video_is_the_references(tmp_path, kind, options):
    given = frames() if kind == "pil" else list(floats())
    reference_video(given, str(tmp_path / "theirs.mp4"), **options)
    export_to_video(given, str(tmp_path / "ours.mp4"), **options)
    theirs, their_rate = reference_load(str(tmp_path / "theirs.mp4"), return_fps=True)
    ours, rate = load_video(tmp_path / "ours.mp4", return_fps=True)
    assert rate == their_rate and len(ours) == 5
    assert np.array_equal(arrays(ours), arrays(theirs))
    assert np.array_equal(arrays(load_video(str(tmp_path / "theirs.mp4"))), arrays(theirs))


@pytest.mark.parametrize("ending", ["avi", "mkv", "mov", "wmv"])
def test_containers(tmp_path, ending):
    export_to_video(frames(), tmp_path / f"a.{ending}", quality=9)
    ours, rate = load_video(tmp_path / f"a.{ending}", return_fps=True)
    assert rate == 10 and len(ours) == 5
    assert np.abs(arrays(ours).astype(int) - arrays(frames())).mean() < 20


def test_sides_that_players_cannot_show_are_stretched(tmp_path):
    given = frames(3, 50, 34)
    export_to_video(given, tmp_path / "a.mp4")
    assert load_video(tmp_path / "a.mp4")[0].size == (64, 48)
    export_to_video(given, tmp_path / "b.mp4", macro_block_size=1)
    assert load_video(tmp_path / "b.mp4")[0].size == (50, 34)


def test_frames_of_every_kind_are_the_same(tmp_path):
    whole = arrays(frames())
    kinds = [frames(), list(whole), whole, torch.from_numpy(whole).permute(0, 3, 1, 2), list(torch.from_numpy(whole).permute(0, 3, 1, 2))]
    for given in kinds:
        assert np.array_equal(arrays(load_video(given)), whole)
        export_to_gif(given, tmp_path / "a.gif")
        assert (tmp_path / "a.gif").read_bytes() == Path(export_to_gif(frames())).read_bytes()
    half = torch.from_numpy(floats()).permute(0, 3, 1, 2).to(torch.float16)
    assert np.abs(arrays(load_video(half)).astype(int) - whole).max() <= 1
    assert np.array_equal(arrays(load_video(np.full((2, 4, 4, 3), 1.5))), np.full((2, 4, 4, 3), 255))  # cut, where a cast would wrap
    assert [f.size for f in load_video(frames(), lambda fs: [f.resize((8, 8)) for f in fs[::2]])] == [(8, 8)] * 3


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_other_animations(tmp_path, ending):
    first, *others = frames()
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=others, duration=40, lossless=True)
    ours, rate = load_video(tmp_path / f"a.{ending}", return_fps=True)
    assert rate == 25 and np.array_equal(arrays(ours), arrays(frames()))


def test_a_url(tmp_path, monkeypatch):
    export_to_gif(frames(), tmp_path / "a.gif")
    seen = []
    monkeypatch.setattr(video, "_download", lambda *args: seen.append(args) or (tmp_path / "a.gif").read_bytes())
    ours = load_video("https://me:hunter2@example.org/a.gif?key=hunter2", allow_private=True)
    assert seen == [("https://me:hunter2@example.org/a.gif?key=hunter2", "https://example.org/a.gif", True, video.DOWNLOADS)]
    assert np.array_equal(arrays(ours), arrays(load_video(tmp_path / "a.gif")))


def test_a_private_address_is_refused():
    with pytest.raises(InputError, match="not public"):
        load_video("http://127.0.0.1:9/a.mp4")


def test_bad_files(tmp_path):
    export_to_video(frames(), tmp_path / "whole.mp4")
    export_to_gif(frames(), tmp_path / "whole.gif")
    files = {
        "text.mp4": b"<html>not found</html>",
        "empty.mp4": b"",
        "half.mp4": (tmp_path / "whole.mp4").read_bytes()[:600],
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/whole.mp4\n#EXT-X-ENDLIST\n".encode(),
        "joined.mp4": f"ffconcat version 1.0\nfile {tmp_path}/whole.mp4\n".encode(),
        "half.gif": (tmp_path / "whole.gif").read_bytes()[:20],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_video(tmp_path / name)
        assert name in str(caught.value)
    for missing in (tmp_path / "nothing.mp4", "ftp://example.org/a.mp4", ""):
        with pytest.raises(InputError, match="cannot be read"):
            load_video(missing)


def test_bounds(tmp_path, monkeypatch):
    export_to_video(frames(), tmp_path / "a.mp4")
    export_to_gif(frames(), tmp_path / "a.gif")
    for name, most in (("MAX_FRAMES", 5), ("MAX_VOLUME", 5 * 48 * 32), ("MAX_PIXELS", 48 * 32)):
        with monkeypatch.context() as patch:
            patch.setattr(video, name, most)
            assert len(load_video(tmp_path / "a.mp4")) == len(load_video(tmp_path / "a.gif")) == len(load_video(frames())) == 5
            patch.setattr(video, name, most - 1)
            for source in (tmp_path / "a.mp4", tmp_path / "a.gif", frames()):
                with pytest.raises(InputError, match="too large"):
                    load_video(source)


@pytest.mark.parametrize(
    "given",
    [
        [],
        None,
        5,
        [frames()[0], frames(1, 8, 8)[0]],
        np.zeros((2, 4, 4, 3), np.int64),
        np.zeros((4, 4)),
        np.full((1, 2, 2, 3), np.nan),
        ["a"],
        np.zeros((2, 0, 4, 3)),
    ],
    ids=lambda g: str(type(g).__name__),
)
def test_bad_frames(given, tmp_path):
    for call in (
        lambda: load_video(given),
        lambda: export_to_video(given, tmp_path / "a.mp4"),
        lambda: export_to_gif(given, tmp_path / "a.gif"),
    ):
        if given is not None or call.__code__.co_names[0] != "load_video":
            with pytest.raises(InputError):
                call()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [{"fps": 0}, {"fps": -3}, {"fps": float("nan")}, {"quality": 0}, {"quality": 11}, {"macro_block_size": 0}], ids=str
)
def test_bad_options(options, tmp_path):
    with pytest.raises(InputError):
        export_to_video(frames(), tmp_path / "a.mp4", **options)
    assert not any(tmp_path.iterdir())


def test_failures_leave_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    export_to_video(frames(), path)
    old = path.read_bytes()
    with pytest.raises(InputError, match="cannot be written"):
        export_to_video(frames(3, 33, 31), path, macro_block_size=1)  # odd sides
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.mp4"]
    (tmp_path / "a.unknown").write_bytes(b"old")
    with pytest.raises(InputError, match="cannot be written"):
        export_to_video(frames(), tmp_path / "a.unknown")
    assert (tmp_path / "a.unknown").read_bytes() == b"old" and len(os.listdir(tmp_path)) == 2
    with pytest.raises(InputError, match="a folder that exists"):
        export_to_gif(frames(), tmp_path / "none" / "a.gif")
    with pytest.raises(InputError, match="how many frames a second"):
        load_video(frames(), return_fps=True)


def test_without_ffmpeg(tmp_path, monkeypatch):
    export_to_video(frames(), tmp_path / "a.mp4")
    export_to_gif(frames(), tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert len(load_video(tmp_path / "a.gif")) == 5
    for call in (lambda: load_video(tmp_path / "a.mp4"), lambda: export_to_video(frames(), tmp_path / "b.mp4")):
        with pytest.raises(MissingDependencyError, match=r"darkroom-diffusion\[video\]"):
            call()


def test_either_module_may_come_first():
    for first in ("video", "utils"):
        code = (
            f"import darkroom.{first}, darkroom.utils; from darkroom.utils import load_video, export_to_gif; print(load_video.__module__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(Path(utils.__file__).parents[1])}
        )
        assert done.stdout.strip() == "darkroom.video", done.stderr
    assert {"load_video", "export_to_gif", "export_to_video"} <= set(dir(diffusers.utils)) & set(utils.__all__)
