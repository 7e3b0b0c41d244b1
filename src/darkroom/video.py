"""Videos from files and the network as pictures, and pictures as .gif and video files."""

from __future__ import annotations
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
import numpy as np
from PIL import Image, ImageSequence
from .errors import DarkroomError, InputError, MissingDependencyError
from .utils import MAX_PIXELS, _download, without_secrets

__all__ = ["export_to_gif", "export_to_video", "load_video"]

MAX_FRAMES, MAX_VOLUME = 1 << 16, 12 * MAX_PIXELS  # of a video: frames, and pixels of all of them: 1000 frames of 1920 x 1080
DOWNLOADS = 8  # a video may be so many times as large and slow as a picture
CONTAINERS = "mov,matroska,avi,flv,asf,ogg,mpeg,mpegts"  # those of ffmpeg that name no further files or addresses
FFMPEG = "-hide_banner -protocol_whitelist file".split()


def load_video(
    video: str | os.PathLike[str] | Sequence[Any],
    convert_method: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
    return_fps: bool = False,
    *,
    allow_private: bool = False,
) -> Any:
    """A video's frames as RGB pictures, or what `convert_method` makes of their list; with `return_fps` also the frames per second.
    Args:
        video: a file's path, an http or https URL (by the rules of `load_image`, at most 512 MiB), or frames: pictures, arrays (H, W, C) or
            tensors (C, H, W) of bytes or of floats in [0, 1], also as one array or tensor. Animated GIF, PNG and WebP need nothing further,
            other files imageio-ffmpeg.
        allow_private: also follow URLs to addresses that are not public.
    Raises:
        InputError: no such file, no video, over 65536 frames or 2147 million pixels in all, an address that is not allowed, no known rate.
        MissingDependencyError: imageio-ffmpeg is not there.
    """
    fps: float | None = None
    if not isinstance(video, (str, os.PathLike)):
        frames = [Image.fromarray(frame).convert("RGB") for frame in _arrays(video, "video")]
        where = "video"
    else:
        name = os.path.expanduser(video)
        remote = name.lower().startswith(("http://", "https://"))
        where = without_secrets(name) if remote else name
        try:
            with _local(name, where, allow_private) if remote else contextlib.nullcontext(name) as path:
                frames, fps = _read(path, where)
        except DarkroomError:
            raise
        except Exception as error:  # a damaged file can raise nearly anything from a decoder
            detail = f": {str(error).rpartition('=== stderr ===')[2].strip()[-200:]}" if not remote else ""
            expected = "a file's path, or a URL with http:// or https://, of a video"
            raise InputError("The video cannot be read.", where=where, got=type(error).__name__ + detail, expected=expected) from None
    made = frames if convert_method is None else convert_method(frames)
    if return_fps and not fps:
        raise InputError("Nothing says how many frames a second has.", where=where, fix="Go without return_fps.")
    return (made, fps) if return_fps else made


def export_to_gif(image: Any, output_gif_path: str | os.PathLike[str] | None = None, fps: float = 10) -> str:
    """Write frames (see `load_video`) as an endless .gif, whole or not at all; returns its path, of a temporary file if none is given.
    A frame lasts whole milliseconds, and programs show it for whole hundredths of a second. Raises InputError.
    """
    arrays = _arrays(image, "image")
    pictures = image if isinstance(image[0], Image.Image) else [Image.fromarray(frame) for frame in arrays]
    duration = int(1000 // _rate(fps))
    with _replacing(output_gif_path, ".gif") as (path, part):
        pictures[0].save(part, "GIF", save_all=True, append_images=pictures[1:], optimize=False, duration=duration, loop=0)
    return path


def export_to_video(
    video_frames: Any, output_video_path: str | os.PathLike[str] | None = None, fps: float = 10, quality: float | None = 5.0,
    bitrate: int | None = None, macro_block_size: int | None = 16,
) -> str:  # fmt: skip
    """Write frames (see `load_video`) as a video of the kind that the path's ending names, whole or not at all; returns its path, of a
    temporary .mp4 if none is given. Needs imageio-ffmpeg.
    Args:
        quality: 1 to 10, of a variable bit rate; None leaves it to the codec. `bitrate`, in bits per second, takes its place.
        macro_block_size: frames are stretched to the next multiple of so many pixels, as many players need it; None or 1 leaves them.
    Raises:
        InputError: no frames, of several sizes, an option out of range, what ffmpeg refuses. MissingDependencyError without imageio-ffmpeg.
    """
    frames, rate = _arrays(video_frames, "video_frames"), _rate(fps)
    if quality is not None and not 1 <= quality <= 10:
        raise InputError("Out of range.", where="quality", got=quality, expected="1 to 10, or None")
    if macro_block_size is not None and not (isinstance(macro_block_size, int) and 1 <= macro_block_size <= 256):
        raise InputError("Out of range.", where="macro_block_size", got=macro_block_size, expected="1 to 256 pixels, or None")
    height, width, channels = frames[0].shape if frames[0].ndim == 3 else (*frames[0].shape, 1)
    layout = {1: "gray", 2: "gray8a", 3: "rgb24", 4: "rgba"}.get(channels)
    if layout is None:
        raise InputError("Another number of channels.", where="video_frames", got=channels, expected="1 to 4")
    write = _ffmpeg("export_to_video").write_frames
    with _replacing(output_video_path, ".mp4") as (path, part):
        options = {"pix_fmt_in": layout, "fps": rate, "quality": quality, "bitrate": bitrate, "macro_block_size": macro_block_size or 1}
        try:
            with contextlib.closing(write(part, (width, height), **options, ffmpeg_log_level="error")) as writer:
                writer.send(None)
                for frame in frames:
                    writer.send(np.ascontiguousarray(frame))
        except OSError as error:
            raise _refused(path, error) from None
        if not os.path.getsize(part):  # ffmpeg failed after the last frame
            raise _refused(path, OSError("ffmpeg wrote nothing"))
    return path


def _refused(path: str, error: OSError) -> InputError:
    fix = "Take another ending, sides that are multiples of 2, or macro_block_size=16."
    return InputError("The video cannot be written.", where=path, got=str(error).strip()[-200:], fix=fix)


def _rate(fps: float) -> float:
    if isinstance(fps, bool) or not isinstance(fps, (int, float, np.number)) or not 0 < fps <= 1000:
        raise InputError("Out of range.", where="fps", got=fps, expected="above 0, at most 1000 frames per second")
    return float(fps)


def _ffmpeg(asks: str) -> Any:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        fix = 'pip install "darkroom-diffusion[video]"'
        raise MissingDependencyError("Video files need imageio-ffmpeg.", where=asks, got=str(error), fix=fix) from None
    return imageio_ffmpeg


@contextlib.contextmanager
def _local(url: str, where: str, allow_private: bool) -> Iterator[str]:
    """A download as a file, as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "video")
        Path(path).write_bytes(_download(url, where, allow_private, DOWNLOADS))
        yield path


def _check_volume(count: int, width: int, height: int, where: str) -> None:
    if count > MAX_FRAMES or width * height > MAX_PIXELS or count * width * height > MAX_VOLUME:
        got, expected = f"{count} frames of {width}x{height} or more", f"{MAX_FRAMES} frames, {MAX_VOLUME} pixels in all"
        raise InputError("The video is too large.", where=where, got=got, expected=expected)


def _read(path: str, where: str) -> tuple[list[Image.Image], float | None]:
    """The frames of a file, and how many a second has, if it says so."""
    frames: list[Image.Image] = []
    with open(path, "rb") as file:
        head = file.read(12)
    if head.startswith((b"GIF8", b"\x89PNG")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP"):
        with Image.open(path, formats=("GIF", "PNG", "WEBP")) as animation:
            _check_volume(1, *animation.size, where)
            duration = animation.info.get("duration")
            for frame in ImageSequence.Iterator(animation):
                _check_volume(len(frames) + 1, *animation.size, where)
                frames.append(frame.convert("RGB"))
                duration = duration or frame.info.get("duration")  # known only once a frame is decoded, in some formats
        return frames, 1000 / duration if duration else None
    options = [*FFMPEG, "-format_whitelist", CONTAINERS]
    reader = _ffmpeg("load_video").read_frames("file:" + os.path.abspath(path), input_params=options)
    with contextlib.closing(reader):
        known = next(reader)
        width, height = known["size"]
        _check_volume(1, width, height, where)
        for data in reader:
            _check_volume(len(frames) + 1, width, height, where)
            frames.append(Image.frombytes("RGB", (width, height), data))
    if not frames:
        raise InputError("The video has no frames.", where=where)
    return frames, known["fps"] or None


def _arrays(frames: Any, where: str) -> list[np.ndarray]:
    """Frames as arrays of bytes (H, W, C) or (H, W), all of one shape. Floats in [0, 1] are cut, not rounded."""
    expected = "pictures, arrays (F, H, W, C) or tensors (F, C, H, W), of bytes or of floats in [0, 1]"
    items = list(frames) if isinstance(frames, (list, tuple)) or getattr(frames, "ndim", 0) == 4 else []
    made = []
    for item in items:
        if isinstance(item, Image.Image):
            item = np.asarray(item if item.mode in ("L", "LA", "RGB", "RGBA") else item.convert("RGB"))
        elif hasattr(item, "detach"):
            item = item.detach().cpu().permute(1, 2, 0) if item.ndim == 3 else item.detach().cpu()
            item = (item.float() if item.is_floating_point() else item).numpy()
        if not isinstance(item, np.ndarray) or item.ndim not in (2, 3) or 0 in item.shape or item.dtype.kind not in "uf":
            raise InputError("These are no frames.", where=where, got=_what(item), expected=expected)
        if item.dtype.kind == "f":
            if not np.isfinite(item).all():
                raise InputError("Values that are no numbers.", where=where, got="NaN or infinity")
            item = (item.clip(0, 1) * 255).astype(np.uint8)
        if item.dtype != np.uint8:
            raise InputError("Whole numbers other than bytes.", where=where, got=_what(item), expected=expected)
        made.append(item[..., 0] if item.ndim == 3 and item.shape[-1] == 1 else item)
    if not made or len({m.shape for m in made}) > 1:
        got = sorted({m.shape for m in made}) if made else _what(frames)
        raise InputError("No frames, or of several sizes.", where=where, got=got, expected=expected)
    _check_volume(len(made), made[0].shape[1], made[0].shape[0], where)
    return made


def _what(value: Any) -> str:
    return f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))} {getattr(value, 'dtype', '')}".strip()


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str] | None, suffix: str) -> Iterator[tuple[str, str]]:
    """The path that is to be written, and one beside it that takes its place at the end."""
    if path is None:
        handle, path = tempfile.mkstemp(suffix=suffix)
        os.close(handle)
    target = os.path.abspath(os.path.expanduser(path))
    folder, name = os.path.split(target)
    try:
        handle, part = tempfile.mkstemp(prefix=".", suffix=f".{name}", dir=folder)
        os.close(handle)
    except OSError as error:
        raise InputError("This file cannot be written.", where=target, got=error.strerror, expected="a folder that exists") from None
    try:
        yield os.fspath(path), part
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # temporary files are made for their owner alone
        os.replace(part, target)
    except OSError as error:
        if isinstance(error, DarkroomError):
            raise
        raise InputError("This file cannot be written.", where=target, got=str(error)) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)
