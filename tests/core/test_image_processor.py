"""The processors of pictures and videos beside the reference's."""

from __future__ import annotations
import warnings
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as Theirs
from diffusers.video_processor import VideoProcessor as TheirVideos
from PIL import Image, ImageDraw
from darkroom import VaeImageProcessor, VideoProcessor
from darkroom.errors import ConfigError, InputError


def picture(width: int = 61, height: int = 43, mode: str = "RGB", seed: int = 0) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).uniform(0, 60, (height, width, 3))
    return Image.fromarray((np.stack([x * 3, y * 4, x + y], -1) % 180 + noise).astype(np.uint8)).convert(mode)


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def same(ours, theirs) -> None:
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            same(a, b)
        return
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


OPTIONS = [
    {},
    {"do_convert_rgb": True, "resample": "bilinear"},
    {"do_convert_grayscale": True, "do_normalize": False, "do_binarize": True},
    {"vae_scale_factor": 16, "resample": "bicubic", "reducing_gap": 3},
    {"do_resize": False, "resample": "nearest"},
]
INPUTS = {
    "pil": lambda: picture(),
    "gray": lambda: picture(mode="L"),
    "list": lambda: [picture(seed=1), picture(seed=2)],
    "array": lambda: array(2, 43, 61, 3),
    "one array": lambda: [array(43, 61, 3)],
    "tensor": lambda: torch.from_numpy(array(2, 3, 43, 61)),
    "tensors": lambda: [torch.from_numpy(array(3, 43, 61)), torch.from_numpy(array(3, 43, 61, seed=1))],
    "latents": lambda: torch.from_numpy(array(1, 4, 8, 8)),
    "gray tensor": lambda: torch.from_numpy(array(1, 43, 61)),
    "gray array": lambda: array(2, 43, 61),
    "gray last": lambda: array(43, 61, 1),
    "negative": lambda: torch.from_numpy(array(1, 3, 24, 24)) - 0.5,
}


FITTING = [(k, o) for k in INPUTS for o in OPTIONS if k not in ("gray tensor", "gray array", "gray last") or "do_convert_grayscale" in o]


@pytest.mark.parametrize(("kind", "options"), FITTING, ids=str)
def test_preprocess(kind, options):
    theirs, ours = Theirs(**options), VaeImageProcessor(**options)
    assert dict(ours.config).items() <= dict(theirs.config).items()
    sizes = [{}] if options.get("do_resize") is False else [{}, {"height": 40, "width": 56}, {"height": 33}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in sizes:
            same(ours.preprocess(INPUTS[kind](), **size), theirs.preprocess(INPUTS[kind](), **size))


@pytest.mark.parametrize("resample", ["lanczos", "bilinear"])
@pytest.mark.parametrize("mode", ["default", "fill", "crop"])
def test_modes(mode, resample):
    theirs, ours = Theirs(resample=resample), VaeImageProcessor(resample=resample)
    for width, height in ((61, 43), (43, 61), (64, 64)):
        given = {"height": 48, "width": 40, "resize_mode": mode, "crops_coords": (3, 2, width - 4, height - 1)}
        same(ours.preprocess(picture(width, height), **given), theirs.preprocess(picture(width, height), **given))
        same(ours.resize(picture(width, height), 48, 40, mode), theirs.resize(picture(width, height), 48, 40, mode))


def test_postprocess():
    x = torch.from_numpy(array(2, 3, 16, 24)) * 3 - 1.5
    for options in ({}, {"do_normalize": False}):
        theirs, ours = Theirs(**options), VaeImageProcessor(**options)
        for kind in ("pil", "np", "pt", "latent"):
            given = x.clip(0, 1) if options else x
            same(ours.postprocess(given, kind), theirs.postprocess(given, kind))
            same(ours.postprocess(x.clip(0, 1), kind, [True, False]), theirs.postprocess(x.clip(0, 1), kind, [True, False]))
    same(VaeImageProcessor().postprocess(x[:, :1]), Theirs().postprocess(x[:, :1]))


def test_small_methods():
    mask = Image.new("L", (60, 50))
    ImageDraw.Draw(mask).ellipse((20, 10, 44, 30), fill=255)
    theirs, ours = Theirs(), VaeImageProcessor()
    box = theirs.get_crop_region(mask, 32, 32, pad=4)
    assert ours.get_crop_region(mask, 32, 32, pad=4) == box
    for given in (None, box):
        same(
            ours.apply_overlay(mask, picture(60, 50), picture(32, 32, seed=4), given),
            theirs.apply_overlay(mask, picture(60, 50), picture(32, 32, seed=4), given),
        )
    same(ours.blur(picture(), 3), theirs.blur(picture(), 3))
    same(ours.resize(array(1, 20, 30, 3), 16, 24), theirs.resize(array(1, 20, 30, 3), 16, 24))
    same(ours.denormalize(array(3) * 4 - 2), theirs.denormalize(torch.from_numpy(array(3) * 4 - 2)))
    same(ours.convert_to_grayscale(picture()), theirs.convert_to_grayscale(picture()))
    assert VaeImageProcessor.from_config(theirs.config).config == ours.config


VIDEOS = {
    "pictures": lambda: [picture(seed=i) for i in range(3)],
    "lists": lambda: [[picture(seed=i + j) for i in range(3)] for j in range(2)],
    "tensor": lambda: torch.from_numpy(array(3, 3, 24, 40)),
    "array": lambda: array(3, 24, 40, 3),
    "tensors": lambda: [torch.from_numpy(array(3, 3, 24, 40)), torch.from_numpy(array(3, 3, 24, 40, seed=1))],
    "batch": lambda: torch.from_numpy(array(2, 3, 3, 24, 40)),
    "array batch": lambda: array(2, 3, 24, 40, 3),
    "frames": lambda: [torch.from_numpy(array(3, 24, 40, seed=i)) for i in range(3)],
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_videos(kind):
    theirs, ours = TheirVideos(), VideoProcessor()
    for size in ({}, {"height": 24, "width": 32}):
        x = theirs.preprocess_video(VIDEOS[kind](), **size)
        assert x.ndim == 5
        same(ours.preprocess_video(VIDEOS[kind](), **size), x)
    for output_type in ("np", "pt", "pil"):
        same(ours.postprocess_video(x, output_type), theirs.postprocess_video(x, output_type))


def test_sizes_of_videos():
    x = torch.from_numpy(array(1, 3, 2, 24, 40))
    for size in ((40, 24), (32, 32), (20, 48)):
        same(VideoProcessor.resize_and_crop_tensor(x, *size), TheirVideos.resize_and_crop_tensor(x, *size))
    ratios = {"0.5": [32.0, 64.0], "1.0": [48.0, 48.0], "2.0": [64.0, 32.0]}
    for sides in ((10, 30), (40, 40), (50, 20)):
        assert VideoProcessor.classify_height_width_bin(*sides, ratios) == TheirVideos.classify_height_width_bin(*sides, ratios)


def test_errors():
    for options in ({"do_convert_rgb": True, "do_convert_grayscale": True}, {"resample": "best"}):
        with pytest.raises(ConfigError):
            VaeImageProcessor(**options)
    processor = VideoProcessor()
    for given in ([], "a.png", [picture(), array(3, 3, 3)], torch.zeros(5)):
        with pytest.raises(InputError):
            processor.preprocess(given)
    calls = [
        lambda: processor.preprocess_video(None),
        lambda: processor.postprocess(array(1, 3, 8, 8)),
        lambda: processor.postprocess(torch.zeros(1, 3, 8, 8), "gif"),
        lambda: processor.postprocess_video(torch.zeros(1, 3, 2, 8, 8), "latent"),
        lambda: processor.resize(torch.zeros(1, 3, 8, 8), 4, 4, "fill"),
        lambda: processor.resize(picture(), 4, 4, "other"),
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()
