"""Pictures in and out: side by side with the reference's image processor; reading from files and the network."""

from __future__ import annotations
import http.server
import io
import threading
import time
import warnings
import zlib
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor as Reference
from diffusers.utils import load_image as reference_load_image
from diffusers.utils import make_image_grid as reference_grid
from PIL import Image, ImageDraw
from darkroom import utils
from darkroom.core import media
from darkroom.errors import InputError

SIZES = [(None, None), (64, 64), (40, 72), (70, 50), (131, 37)]  # (height, width)
PICTURES = [(64, 48), (100, 61), (33, 90), (64, 64)]  # (width, height)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colours with hard edges and noise, with real transparency where the mode has it."""
    rng = np.random.default_rng(seed + width * 1000 + height)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) % 64 * 4, x * y % 256], -1)
    image = Image.fromarray((base + rng.uniform(-20, 20, base.shape)).clip(0, 255).astype(np.uint8))
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def blob(width: int, height: int, box: tuple[int, int, int, int], mode: str = "L") -> Image.Image:
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    draw.ellipse(box, fill=255)
    draw.rectangle((box[0], box[1], box[0] + 3, box[1] + 3), fill=128)  # just over the threshold
    draw.rectangle((box[2] - 3, box[3] - 3, box[2], box[3]), fill=127)  # just under it
    return mask.convert(mode)


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def same(ours, theirs) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs), np.abs(ours.astype(float) - theirs.astype(float)).max()


# ---- in


@pytest.mark.parametrize("size", PICTURES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA", "CMYK"])
def test_pil(mode, size):
    image, reference = picture(*size, mode), Reference(do_convert_rgb=True)
    for height, width in SIZES:
        ours = media.image_to_tensor(image, height=height, width=width)
        same(ours, reference.preprocess(image, height, width))
        assert ours.dtype == torch.float32 and ours.shape[1] == 3


@pytest.mark.parametrize("resize_mode", ["fill", "crop"])
@pytest.mark.parametrize("size", PICTURES)
@pytest.mark.parametrize("crop", [None, (3, 5, 40, 30), (-4, 0, 20, 60)])
def test_fill_and_crop(resize_mode, size, crop):
    image, reference = picture(*size), Reference()
    for height, width in SIZES[1:]:
        ours = media.image_to_tensor(image, height=height, width=width, crop=crop, resize_mode=resize_mode)
        same(ours, reference.preprocess(image, height, width, resize_mode, crop))


@pytest.mark.parametrize("size", PICTURES)
def test_bicubic(size):
    image, reference = picture(*size), Reference(resample="bicubic")
    for height, width in SIZES:
        ours = media.image_to_tensor(image, height=height, width=width, resize_mode="bicubic")
        same(ours, reference.preprocess(image, height, width))
    values = array(48, 40, 3)
    same(media.image_to_tensor(values, resize_mode="bicubic"), media.image_to_tensor(values))


@pytest.mark.parametrize("factor,height,width", [(8, *s) for s in SIZES] + [(1, None, None), (1, 50, 33), (16, None, 50)])
@pytest.mark.parametrize(
    "image",
    [
        array(48, 40, 3),
        array(2, 48, 40, 3),
        [array(48, 40, 3), array(48, 40, 3, seed=1)],
        [array(2, 48, 40, 3), array(1, 48, 40, 3, seed=1)],
        array(48, 40, 3)[::-1],
        array(48, 40, 3).astype(np.float16),
        torch.from_numpy(array(3, 48, 40)),
        torch.from_numpy(array(2, 3, 48, 40)),
        [torch.from_numpy(array(3, 48, 40)), torch.from_numpy(array(3, 48, 40, seed=1))],
        [torch.from_numpy(array(1, 3, 48, 40)), torch.from_numpy(array(2, 3, 48, 40, seed=1))],
        [picture(50, 60), picture(50, 60, seed=1)],
    ],
    ids=lambda v: media._describe(v)[:40],
)
def test_arrays_tensors_lists(image, factor, height, width):
    given = image.copy() if isinstance(image, np.ndarray) else image  # the reference cannot read negative strides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = Reference(vae_scale_factor=factor).preprocess(given, height, width)
    ours = media.image_to_tensor(image, height=height, width=width, factor=factor, latent_channels=4)
    assert ours.dtype == torch.float32
    if theirs.dtype == torch.float16:  # the reference scales in half precision
        torch.testing.assert_close(ours, theirs.float(), atol=1e-3, rtol=0)
    else:
        same(ours, theirs)


def test_negative_values_are_signed_already_and_said_once():
    image = torch.from_numpy(array(1, 3, 16, 16)) * 2 - 1
    with pytest.warns(UserWarning, match=r"\[-1, 1\]") as caught:
        ours = media.image_to_tensor(image)
    assert len(caught) == 1
    with pytest.warns(FutureWarning):
        same(ours, Reference().preprocess(image))


def test_latents_are_returned_untouched():
    z = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    assert media.image_to_tensor(z, latent_channels=4, height=64, width=64) is z
    same(media.image_to_tensor([z[0], z[1]], latent_channels=4), z)
    same(media.image_to_tensor(z[0], latent_channels=4), Reference().preprocess(z[0]))
    with pytest.raises(InputError, match="channels"):
        media.image_to_tensor(z.clamp(0, 1), latent_channels=16, height=64, width=64)


def test_bytes_are_scaled():
    """The reference takes the bytes of a uint8 array for values in [0, 1]."""
    image = picture(64, 64)
    same(media.image_to_tensor(np.array(image)), media.image_to_tensor(image))
    same(media.image_to_tensor(torch.from_numpy(np.array(image)).permute(2, 0, 1)), media.image_to_tensor(image))


def test_inputs_are_not_written_to():
    x, mask = torch.from_numpy(array(1, 3, 16, 16)), torch.from_numpy(array(1, 1, 16, 16))
    kept = x.clone(), mask.clone()
    media.image_to_tensor(x)
    media.mask_to_tensor(mask, height=16, width=16)
    media.tensor_to_images(x)
    assert torch.equal(x, kept[0]) and torch.equal(mask, kept[1])


# ---- masks


def reference_mask(mask, height, width, resize_mode="default", crop=None):
    processor = Reference(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    return processor.preprocess(mask, height, width, resize_mode, crop)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("resize_mode,crop", [("default", None), ("fill", (2, 1, 50, 60)), ("fill", None), ("crop", None)])
def test_mask_pil(mode, resize_mode, crop):
    mask = blob(64, 80, (10, 20, 40, 70), mode)
    for height, width in SIZES[1:]:
        ours = media.mask_to_tensor(mask, height=height, width=width, resize_mode=resize_mode, crop=crop)
        same(ours, reference_mask(mask, height, width, resize_mode, crop))
        assert ours.dtype == torch.float32 and set(ours.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("height,width", SIZES[1:])
@pytest.mark.parametrize(
    "mask",
    [
        array(48, 40),
        array(48, 40, 1),
        array(2, 48, 40),
        array(2, 48, 40, 1),
        [array(48, 40), array(48, 40, seed=1)],
        torch.from_numpy(array(48, 40)),
        torch.from_numpy(array(1, 48, 40)),
        torch.from_numpy(array(2, 48, 40)),
        torch.from_numpy(array(2, 1, 48, 40)),
        [torch.from_numpy(array(1, 48, 40)), torch.from_numpy(array(1, 48, 40, seed=1))],
        [torch.from_numpy(array(48, 40)), torch.from_numpy(array(48, 40, seed=1))],
        (array(48, 40) > 0.7).astype(np.uint8),
    ],
    ids=lambda v: media._describe(v)[:40],
)
def test_mask_arrays(mask, height, width):
    given = [m.clone() for m in mask] if isinstance(mask, list) and isinstance(mask[0], torch.Tensor) else mask
    theirs = reference_mask(given.clone() if isinstance(given, torch.Tensor) else given, height, width)
    ours = media.mask_to_tensor(mask, height=height, width=width)
    same(ours, theirs)
    assert ours.dtype == torch.float32 and set(ours.unique().tolist()) == {0.0, 1.0}


def test_half_is_one():
    mask = torch.tensor([[0.5, 0.4999999]])
    assert media.mask_to_tensor(mask, height=1, width=2, factor=1).tolist() == [[[[1.0, 0.0]]]]


def test_mask_of_bools():
    """The reference cannot resize them."""
    mask = array(16, 16) > 0.5
    same(media.mask_to_tensor(mask, height=16, width=16)[0, 0], mask)
    same(media.mask_to_tensor(torch.from_numpy(mask), height=16, width=16)[0, 0], mask)


# ---- crop and overlay


def test_crop_region():
    rng = np.random.default_rng(0)
    for _ in range(500):
        w, h, width, height = (int(v) for v in rng.integers(5, 40, 4))
        x, y = np.sort(rng.integers(0, w, 2)), np.sort(rng.integers(0, h, 2))
        mask = Image.new("L", (w, h))
        mask.paste(int(rng.integers(1, 256)), (int(x[0]), int(y[0]), int(x[1]) + 1, int(y[1]) + 1))
        pad = int(rng.integers(0, 9))
        assert media.crop_region(mask, width, height, pad) == Reference.get_crop_region(mask, width, height, pad)


def test_crop_region_of_nothing():
    with pytest.raises(InputError, match="nothing"):
        media.crop_region(Image.new("L", (64, 64)), 64, 64)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("box", [None, (8, 10, 60, 50), (0, 0, 37, 80)])
def test_overlay(mode, box):
    original = picture(64, 80, mode)
    mask = blob(64, 80, (10, 20, 40, 70)).resize((64, 80))
    result = picture(*((64, 80) if box is None else (48, 48)), seed=5)
    ours = media.overlay(mask, original, result, box)
    same(ours, Reference().apply_overlay(mask, original, result, box))
    assert ours.mode == "RGB" and ours.size == original.size


def test_padding_mask_crop_round_trip():
    """The whole way of inpainting a crop: what the mask leaves black is the original's, bit for bit."""
    original, mask, reference = picture(120, 90), blob(120, 90, (70, 20, 100, 45)), Reference()
    box = media.crop_region(mask, 64, 64, pad=8)
    assert box == reference.get_crop_region(mask, 64, 64, pad=8)
    x = media.image_to_tensor(original, height=64, width=64, crop=box, resize_mode="fill")
    same(x, reference.preprocess(original, 64, 64, "fill", box))
    [painted] = media.tensor_to_images(-x)
    final = media.overlay(mask, original, painted, box)
    same(final, reference.apply_overlay(mask, original, reference.postprocess(-x)[0], box))
    black = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(final)[black], np.asarray(original)[black])
    assert not np.array_equal(np.asarray(final), np.asarray(original))


# ---- out


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_out(output_type, dtype, channels):
    x = torch.from_numpy(array(2, channels, 24, 17)).to(dtype) * 3 - 1.5
    ours, theirs = media.tensor_to_images(x, output_type), Reference().postprocess(x, output_type)
    if output_type == "pil":
        assert [i.mode for i in ours] == [i.mode for i in theirs]
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    elif output_type == "np":
        same(ours, theirs)
        assert ours.dtype == np.float32
    else:
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_out_rounds_half_to_even_and_never_wraps():
    levels = torch.tensor([0.5, 1.5, 2.5, 254.5, -3.0, 400.0], dtype=torch.float64).view(1, 1, 1, 6)
    [image] = media.tensor_to_images(levels / 255 * 2 - 1)
    assert list(np.asarray(image)[0]) == [0, 2, 2, 254, 0, 255]


def test_in_and_out_is_the_identity():
    image = picture(64, 48)
    same(media.tensor_to_images(media.image_to_tensor(image))[0], image)


def test_image_size():
    """Width and height, however the pictures come."""
    pil, batch, tensor = picture(20, 30), array(2, 30, 20, 3), torch.zeros(2, 3, 30, 20)
    masks = array(30, 20), array(30, 20, 1), array(5, 30, 20), tensor[0, 0], tensor[0], tensor[:, 0], tensor[:, :1]
    for image in (pil, [pil, pil], batch, batch[0], [*batch], tensor, [*tensor], *masks):
        assert media.image_size(image) == (20, 30)
    for image in (None, [], array(5)):
        with pytest.raises(InputError, match="where: +mask_image"):
            media.image_size(image, "mask_image")


# ---- refusals

BAD_IMAGES = {
    "none": None,
    "text": "cat.png",
    "empty": [],
    "mixed kinds": [picture(16, 16), array(16, 16, 3)],
    "mixed sizes": [array(16, 16, 3), array(24, 16, 3)],
    "mixed PIL sizes": [picture(16, 16), picture(24, 16)],
    "gray array": array(16, 16),
    "two channels": array(16, 16, 2),
    "channels first array": array(3, 16, 16),
    "channels last tensor": torch.from_numpy(array(16, 16, 3)),
    "five dimensions": torch.zeros(1, 1, 3, 16, 16),
    "one dimension": np.zeros(16),
    "objects": np.array([[["a"]]]),
    "no pixels": np.zeros((0, 16, 3)),
    "whole numbers": np.zeros((16, 16, 3), np.int64),
    "bytes in floats": array(16, 16, 3) * 255,
    "NaN": np.full((16, 16, 3), np.nan),
    "infinity": torch.full((3, 16, 16), float("inf")),
    "too small": picture(7, 16),
}


@pytest.mark.parametrize("image", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images(image):
    with pytest.raises(InputError, match="where: +init_image"):
        media.image_to_tensor(image, where="init_image")


BAD_MASKS = {
    "colour array": array(16, 16, 3),
    "colour tensor": torch.zeros(1, 3, 16, 16),
    "NaN": np.full((16, 16), np.nan),
    "empty": [],
    "none": None,
    "mixed sizes": [array(16, 16), array(24, 16)],
}


@pytest.mark.parametrize("mask", BAD_MASKS.values(), ids=BAD_MASKS)
def test_bad_masks(mask):
    with pytest.raises(InputError, match="where: +mask_image"):
        media.mask_to_tensor(mask, height=16, width=16)


def test_more_refusals():
    x, image = torch.zeros(1, 3, 16, 16), picture(16, 16)
    with pytest.raises(InputError, match="pil, np, pt, latent"):
        media.tensor_to_images(x, "jpeg")
    with pytest.raises(InputError, match="no pictures"):
        media.tensor_to_images(x[0])
    with pytest.raises(InputError, match="no pictures"):
        media.tensor_to_images(torch.zeros(1, 5, 4, 4))
    with pytest.raises(InputError, match="default, bicubic, fill, crop"):
        media.image_to_tensor(image, resize_mode="stretch")
    with pytest.raises(InputError, match="Only PIL"):
        media.image_to_tensor(x, crop=(0, 0, 8, 8))
    with pytest.raises(InputError, match="Only PIL"):
        media.image_to_tensor(x, resize_mode="fill")
    with pytest.raises(InputError, match="differ in size"):
        media.overlay(Image.new("L", (8, 8)), image, image)


# ---- files and URLs


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated() -> bytes:
    image = picture(40, 20)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera lay on its side
    return encoded(image, exif=exif)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", query)
            self.end_headers()
            return
        body = self.server.files.get(path)
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        try:
            for part in body if isinstance(body, list) else [body or b""]:
                self.wfile.write(part)
                time.sleep(0.05 if isinstance(body, list) else 0)
        except OSError:  # the client has hung up: that is what is being tested
            pass

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files = {"/a.png": encoded(picture(40, 30)), "/rotated.png": rotated(), "/no.png": b"<html>not found</html>"}
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_load_file(tmp_path, mode):
    path = tmp_path / "a.png"
    picture(30, 20, mode).save(path)
    for source in (path, str(path), Image.open(path)):
        ours = utils.load_image(source)
        assert ours.mode == "RGB"
        same(ours, reference_load_image(str(path)))
    same(utils.load_image(path, lambda i: i.convert("L")), reference_load_image(str(path), lambda i: i.convert("L")))


def test_load_turns_upright(tmp_path):
    (tmp_path / "a.png").write_bytes(rotated())
    ours = utils.load_image(tmp_path / "a.png")
    assert ours.size == (20, 40)
    same(ours, reference_load_image(str(tmp_path / "a.png")))


def test_load_url(server):
    same(utils.load_image(server.url + "/a.png", allow_private=True), picture(40, 30))
    same(utils.load_image(f"{server.url}/to?{server.url}/a.png", allow_private=True), picture(40, 30))
    assert utils.load_image(server.url + "/rotated.png", allow_private=True).size == (20, 40)


def test_load_url_failures(server, monkeypatch):
    server.files["/big.png"] = encoded(picture(300, 300))
    server.files["/ps.png"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    server.files["/half.png"] = encoded(picture(300, 300))[:5000]
    for path, said in {
        "/missing.png": "HTTP Error 404",
        "/no.png": "UnidentifiedImageError",
        "/ps.png": "UnidentifiedImageError",
        "/half.png": "truncated",
        "/to?file:///etc/hostname": "not allowed",
        "/to?ftp://127.0.0.1/a.png": "unknown url type",
        "/to?/to?/to": "HTTP Error 302",
    }.items():
        with pytest.raises(InputError, match=said):
            utils.load_image(server.url + path, allow_private=True)
    size = len(server.files["/big.png"])
    monkeypatch.setattr(utils, "MAX_BYTES", size)
    assert utils.load_image(server.url + "/big.png", allow_private=True).size == (300, 300)
    monkeypatch.setattr(utils, "MAX_BYTES", size - 1)
    with pytest.raises(InputError, match=f"at most {size - 1} bytes"):
        utils.load_image(server.url + "/big.png", allow_private=True)
    with pytest.raises(InputError) as caught:
        utils.load_image(server.url.replace("//", "//me:hunter2@") + "/missing.png?key=hunter2", allow_private=True)
    assert "hunter2" not in str(caught.value) and "/missing.png" in str(caught.value)


def test_slow_servers(server, monkeypatch):
    """One that is silent, and one that sends a little now and then."""
    server.files["/drip.png"] = [b"."] * 200
    monkeypatch.setattr(utils, "TIMEOUT", 0.2)
    with pytest.raises(InputError, match="in 0.2 seconds"):
        utils.load_image(server.url + "/drip.png", allow_private=True)
    server.files["/silent.png"] = [b""] * 4
    monkeypatch.setattr(utils, "TIMEOUT", 0.02)
    with pytest.raises(InputError, match="timed out"):
        utils.load_image(server.url + "/silent.png", allow_private=True)


def test_an_address_that_does_not_answer_is_passed_over(server, monkeypatch):
    found = [(2, 1, 6, "", (address, server.server_port)) for address in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(
        utils.socket, "getaddrinfo", lambda *a, real=utils.socket.getaddrinfo, **k: found if a[0] == "two.test" else real(*a, **k)
    )
    monkeypatch.setattr(utils, "_is_public", lambda address: True)
    same(utils.load_image(f"http://two.test:{server.server_port}/a.png"), picture(40, 30))
    found.pop()
    with pytest.raises(InputError, match="no answer from two.test"):
        utils.load_image(f"http://two.test:{server.server_port}/a.png")


def test_https_speaks_tls(server, monkeypatch):
    """A plain server is no partner, and the address is checked before a word is said."""
    monkeypatch.setattr(utils, "_is_public", lambda address: True)
    with pytest.raises(InputError, match="SSL"):
        utils.load_image(server.url.replace("http:", "https:") + "/a.png")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0", "10.1.2.3", "192.168.0.1",
     "169.254.169.254", "[fe80::1]", "[fd00::1]", "224.0.0.1", "100.64.0.1", "[64:ff9b::10.0.0.1]", "[2002:7f00:1::]"],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_private_addresses_are_refused(host, scheme):
    with pytest.raises(InputError, match="not public"):
        utils.load_image(f"{scheme}://{host}:9/a.png")


def test_public_addresses():
    inside = "::ffff:100.64.0.1", "::ffff:224.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:a00:1::", "ff02::1", "fe80::1%1"
    assert not any(utils._is_public(a) for a in inside)
    assert all(utils._is_public(a) for a in ("8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"))


def test_redirects_are_checked_too(server, monkeypatch):
    """The first address counts as public here, the one it sends us to does not."""
    monkeypatch.setattr(utils, "_is_public", lambda address: address == "127.0.0.1")
    same(utils.load_image(server.url + "/a.png"), picture(40, 30))
    with pytest.raises(InputError, match="127.0.0.2"):
        utils.load_image(f"{server.url}/to?http://127.0.0.2:{server.server_port}/a.png")


def test_the_checked_address_is_the_one_that_is_used(server, monkeypatch):
    """A name that resolves to another address at each look-up gains nothing."""
    asked = []

    def resolve(host, port, **kwargs):
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "10.0.0.1", port))]

    real = utils.socket.getaddrinfo
    monkeypatch.setattr(utils.socket, "getaddrinfo", lambda h, p, *a, **k: resolve(h, p) if h == "rebind.test" else real(h, p, *a, **k))
    monkeypatch.setattr(utils, "_is_public", lambda address: address == "127.0.0.1")
    same(utils.load_image(f"http://rebind.test:{server.server_port}/a.png"), picture(40, 30))
    assert asked == ["rebind.test"]


@pytest.mark.parametrize("source", ["missing.png", "ftp://example.org/a.png", "data:image/png;base64,AAAA", "http://[", "http://", 7, None])
def test_bad_sources(source):
    with pytest.raises(InputError):
        utils.load_image(source)


def test_decompression_bombs(tmp_path):
    header = bytearray(encoded(Image.new("1", (8, 8))))
    header[16:24] = (20000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(header)
    with pytest.raises(InputError, match=f"limit of {utils.MAX_PIXELS} pixels"):
        utils.load_image(tmp_path / "a.png")


def test_a_bomb_is_refused_where_a_program_lifted_the_limit_of_pil(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(utils, "MAX_PIXELS", 99)
    assert utils.load_image(picture(9, 11)).size == (9, 11)
    with pytest.raises(InputError, match="10x10 pixels"):
        utils.load_image(picture(10, 10))


def test_grid():
    images = [picture(20, 30, seed=s) for s in range(6)]
    same(utils.make_image_grid(images, 2, 3), reference_grid(images, 2, 3))
    same(utils.make_image_grid(images, 3, 2, resize=16), reference_grid(images, 3, 2, resize=16))
    with pytest.raises(InputError, match="2 x 2"):
        utils.make_image_grid(images, 2, 2)
