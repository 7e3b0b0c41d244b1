"""Pictures at the edges of a run: PIL images, arrays and tensors become (B, C, H, W) tensors, results become pictures.

Arrays are channels last, (H, W, C) or (B, H, W, C); tensors are channels first, (C, H, W) or (B, C, H, W). Lists hold one kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from ..config import Config, Configurable
from ..errors import ConfigError, DarkroomError, InputError

__all__ = [
    "VaeImageProcessor",
    "crop_region",
    "image_count",
    "image_to_tensor",
    "mask_to_tensor",
    "overlay",
    "resize_image",
    "tensor_to_images",
]

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside
RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos", "nearest")}
RESAMPLE["linear"] = RESAMPLE["bilinear"]


def image_to_tensor(
    image: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    factor: int = 8,
    latent_channels: int | None = None,
    crop: Box | None = None,
    resize_mode: str = "default",
    where: str = "image",
) -> Tensor:
    """The pictures as (B, 3, H, W) float32 in [-1, 1]. PIL images are resized with Lanczos, arrays and tensors to the nearest sample.

    Args:
        image: PIL images of any mode; arrays or tensors in [0, 1] (uint8: 0 to 255). One with negative values counts as [-1, 1] already.
        height, width: size of the result in pixels, None for the picture's own; rounded down to multiples of `factor`.
        latent_channels: tensors with this many channels are latents and are returned as they are.
        crop: a box that is cut out first (PIL images only).
        resize_mode: "default" stretches; "fill" fits inside and extends the edges, "crop" covers and cuts (both: PIL images only).
        where: the argument's name, for errors.
    Raises:
        InputError: another type, an empty list, mixed kinds or sizes, another number of channels, values out of range.
    """
    if (latents := _latents(image, latent_channels, where)) is not None:
        return latents
    config = _ProcessorConfig(vae_scale_factor=factor, do_convert_rgb=True)
    x = _read(image, where, config, height, width, resize_mode, crop)
    _expect_channels(x, 3, image, where)
    return _signed(x, where)


def mask_to_tensor(
    mask: Any,
    *,
    height: int,
    width: int,
    factor: int = 8,
    crop: Box | None = None,
    resize_mode: str = "default",
    where: str = "mask_image",
    image: Any = None,
) -> Tensor:
    """The masks as (B, 1, H, W) float32 of exactly 0 (keep) and 1 (repaint); values from 0.5 are 1.

    Args:
        mask: PIL images of any mode (bytes from 128 are 1); arrays (H, W), (H, W, 1), (B, H, W) or (B, H, W, 1), tensors (H, W), (B, H, W)
            or (B, 1, H, W), of any real dtype.
        image: the picture it belongs to. Where both are tensors of pixels, their heights and widths have to agree.
        height, width, factor, crop, resize_mode, where: as in `image_to_tensor`.
    Raises:
        InputError: as `image_to_tensor`, and more than one channel.
    """
    both = isinstance(image, Tensor) and isinstance(mask, Tensor)
    if both and image.ndim >= 3 and image.shape[-3] == 3 and image.shape[-2:] != mask.shape[-2:]:
        raise InputError("Mask and picture differ in size.", where=where, got=_describe(mask), expected=_describe(image))
    config = _ProcessorConfig(vae_scale_factor=factor, do_convert_grayscale=True)
    x = _read(mask, where, config, height, width, resize_mode, crop)
    _expect_channels(x, 1, mask, where)
    _range(x, where)
    return (x >= 0.5).float()


def tensor_to_images(x: Tensor, output_type: str = "pil", normalized: bool = True) -> Any:
    """(B, C, H, W) as pictures: "pil" a list, "np" (B, H, W, C) float32 in [0, 1], "pt" (B, C, H, W) in [0, 1], "latent" `x` itself.

    Args:
        x: values in [-1, 1], or in [0, 1] with `normalized=False`. They are scaled in the dtype of `x`: half precision rounds here.
    Raises:
        InputError: another output type; not four dimensions; for "pil", not 1, 3 or 4 channels.
    """
    _expect_choice(output_type, ("pil", "np", "pt", "latent"), "output_type")
    if output_type == "latent":
        return x
    if not isinstance(x, Tensor) or x.ndim != 4 or (output_type == "pil" and x.shape[1] not in (1, 3, 4)):
        raise InputError("These are no pictures.", where="x", got=_describe(x), expected="(B, C, H, W), C = 1, 3 or 4")
    x = _denormalize(x) if normalized else x
    if output_type == "pt":
        return x
    x = x.permute(0, 2, 3, 1).float()
    return x.cpu().numpy() if output_type == "np" else _pil_list((x * 255).round().clip(0, 255).byte().cpu().numpy())


def image_count(image: Any) -> int:
    """How many pictures an input holds: the list's length, or the batch of an array with four dimensions."""
    return sum(item.shape[0] if getattr(item, "ndim", 0) == 4 else 1 for item in _items(image, "image"))


def crop_region(mask: Image.Image, width: int, height: int, pad: int = 0) -> Box:
    """The box around what `mask` marks, with `pad` pixels more on each side, grown to the aspect of (width, height) where there is room.

    Raises:
        InputError: the mask marks nothing.
    """
    box = mask.convert("L").getbbox()
    if box is None:
        raise InputError("The mask marks nothing.", where="mask_image", fix="Paint white what is to be repainted.")
    x1, y1 = max(box[0] - pad, 0), max(box[1] - pad, 0)
    x2, y2 = min(box[2] + pad, mask.width), min(box[3] + pad, mask.height)
    aspect = width / height
    if (x2 - x1) / (y2 - y1) > aspect:
        y1, y2 = _grow(y1, y2, (x2 - x1) / aspect, mask.height)
    else:
        x1, x2 = _grow(x1, x2, (y2 - y1) * aspect, mask.width)
    return x1, y1, x2, y2


def overlay(mask: Image.Image, original: Image.Image, image: Image.Image, box: Box | None = None, resample: str = "lanczos") -> Image.Image:
    """`image` where `mask` is white, `original` where it is black, as RGB; with `box`, `image` is that part of the original."""
    if mask.size != original.size:
        raise InputError("Mask and picture differ in size.", where="mask_image", got=mask.size, expected=original.size)
    # premultiplied alpha: half-masked pixels keep their colour when they are laid over
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    if box is not None:
        left, top, right, bottom = box
        canvas = Image.new("RGB", original.size)
        canvas.paste(resize_image(image, bottom - top, right - left, mode="crop", resample=resample), (left, top))
        image = canvas
    image = image.convert("RGBA")
    image.alpha_composite(kept.convert("RGBA"))
    return image.convert("RGB")


def resize_image(
    image: Image.Image, height: int, width: int, mode: str = "default", resample: str = "lanczos", gap: float | None = None
) -> Image.Image:
    """A PIL image at another size; see `image_to_tensor` for the modes. "fill" and "crop" give RGB."""
    _expect_choice(mode, ("default", "fill", "crop"), "resize_mode")
    if mode == "default":
        return image.resize((width, height), RESAMPLE[resample], reducing_gap=gap)
    wanted, own = width * image.height, image.width * height  # the two aspects, over a common denominator
    if wanted < own if mode == "fill" else wanted > own:
        w, h = width, max(image.height * width // image.width, 1)
    else:
        w, h = max(image.width * height // image.height, 1), height
    scaled = image.resize((w, h), RESAMPLE[resample])
    left, top = width // 2 - w // 2, height // 2 - h // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(scaled, (left, top))
    if mode == "fill":  # a source box without extent repeats the picture's edge
        for edge, y in ((0, 0), (h, top + h)) if top > 0 else ():
            canvas.paste(scaled.resize((width, top), box=(0, edge, width, edge)), (0, y))
        for edge, x in ((0, 0), (w, left + w)) if left > 0 else ():
            canvas.paste(scaled.resize((left, height), box=(edge, 0, edge, height)), (x, 0))
    return canvas


def _normalize(x: Any) -> Any:
    """[0, 1] to [-1, 1]."""
    return 2 * x - 1


def _denormalize(x: Any) -> Any:
    """[-1, 1] to [0, 1]; what lies outside is cut off."""
    return (x * 0.5 + 0.5).clip(0, 1)


def _pil_list(batch: np.ndarray) -> list[Image.Image]:
    """(B, H, W, C) bytes as gray or colour images."""
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in batch]


@dataclass(frozen=True, eq=False, repr=False)
class _ProcessorConfig(Config):
    """With `do_convert_grayscale`, arrays of three dimensions are (B, H, W), and bytes keep their values (0 and 1 are a mask)."""

    do_resize: bool = True
    vae_scale_factor: int = 8
    vae_latent_channels: int = 4
    resample: str = "lanczos"
    reducing_gap: float | None = None
    do_normalize: bool = True
    do_binarize: bool = False
    do_convert_rgb: bool = False
    do_convert_grayscale: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _expect_choice(self.resample, RESAMPLE, "resample", ConfigError)
        if self.do_convert_rgb and self.do_convert_grayscale:
            raise ConfigError("A picture is either RGB or gray.", where="do_convert_rgb", fix="Set only one of the two.")


class VaeImageProcessor(Configurable):
    """The functions of this module as one object, for programs that call `pipe.image_processor`."""

    Config = _ProcessorConfig

    def __init__(self, *args: Any, **options: Any):
        self.config = self._configure(*args, **options)

    def preprocess(
        self, image: Any, height: int | None = None, width: int | None = None, resize_mode: str = "default", crops_coords: Box | None = None
    ) -> Tensor:
        """(B, C, H, W) float32: in [-1, 1] with `do_normalize`, of 0 and 1 with `do_binarize`. See `image_to_tensor`."""
        c = self.config
        if not c.do_convert_grayscale and (z := _latents(image, c.vae_latent_channels, "image")) is not None:
            return z
        x = _read(image, "image", c, height, width, resize_mode, crops_coords)
        x = _signed(x, "image") if c.do_normalize else x
        return (x >= 0.5).float() if c.do_binarize else x

    def postprocess(self, image: Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None) -> Any:
        """See `tensor_to_images`; `do_denormalize` says for each picture whether it is in [-1, 1]."""
        if do_denormalize is None or output_type == "latent":
            return tensor_to_images(image, output_type, self.config.do_normalize)
        rows = [_denormalize(x) if signed else x for x, signed in zip(image, do_denormalize, strict=True)]
        return tensor_to_images(torch.stack(rows), output_type, normalized=False)

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """A PIL image, (B, H, W, C) array or (B, C, H, W) tensor at another size, as the same kind."""
        if isinstance(image, Image.Image):
            return resize_image(image, height, width, resize_mode, self.config.resample, self.config.reducing_gap)
        _only_pil(None, resize_mode, image, "image")
        x = self.numpy_to_pt(image) if isinstance(image, np.ndarray) else image
        x = F.interpolate(x, (height, width))
        return self.pt_to_numpy(x) if isinstance(image, np.ndarray) else x

    def apply_overlay(self, mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None) -> Image.Image:
        return overlay(mask, init_image, image, crop_coords, self.config.resample)

    @staticmethod
    def blur(image: Image.Image, blur_factor: float = 4) -> Image.Image:
        """Gaussian blur with a radius of `blur_factor` pixels."""
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def pil_to_numpy(images: Image.Image | Sequence[Image.Image]) -> np.ndarray:
        """(B, H, W, C) float32 in [0, 1]; gray pictures give (B, H, W)."""
        return np.stack([np.array(i, np.float32) / 255 for i in _items(images, "images")])

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
        """(B, H, W, C) or (H, W, C) in [0, 1]."""
        images = images if images.ndim == 4 else images[None]
        return _pil_list((images * 255).round().clip(0, 255).astype(np.uint8))

    @staticmethod
    def numpy_to_pt(images: np.ndarray) -> Tensor:
        return torch.from_numpy((images[..., None] if images.ndim == 3 else images).transpose(0, 3, 1, 2))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> np.ndarray:
        return tensor_to_images(images, "np", normalized=False)

    get_crop_region = staticmethod(crop_region)
    normalize = staticmethod(_normalize)
    denormalize = staticmethod(_denormalize)


def _items(image: Any, where: str) -> list[Any]:
    """One picture or a list of them, as a list of one kind."""
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not any(items and all(isinstance(i, kind) for i in items) for kind in (Image.Image, np.ndarray, Tensor)):
        expected = "PIL images, numpy arrays or tensors, one or a list of one kind"
        fix = "Files and URLs are read by darkroom.utils.load_image."
        raise InputError("These are no pictures.", where=where, got=_describe(image), expected=expected, fix=fix)
    return items


def _read(image: Any, where: str, c: _ProcessorConfig, height: int | None, width: int | None, mode: str, crop: Box | None) -> Tensor:
    """(B, C, H, W) float32. PIL images, and bytes that are no mask, become [0, 1]; other values stay as they are."""
    items, gray = _items(image, where), c.do_convert_grayscale
    if isinstance(items[0], Image.Image):
        items = [i.crop(crop) for i in items] if crop else items
        if c.do_resize:
            if height is None or width is None:
                _one_size([i.size for i in items], where)
            size = _size(height, width, items[0].size[::-1], c.vae_scale_factor, where)
            items = [resize_image(i, *size, mode, c.resample, c.reducing_gap) for i in items]
        color = "RGB" if c.do_convert_rgb else "L" if gray else None  # after resizing: palettes stay at their colours
        items = [np.array(i.convert(color) if color else i, np.float32) / 255 for i in items]
        return _stack([_rows(i, gray, where) for i in items], where)
    _only_pil(crop, mode, image, where)
    x = _stack([_rows(i, gray, where) for i in items], where)
    own = (x.shape[-2], x.shape[-1])
    size = _size(height, width, own, c.vae_scale_factor, where) if c.do_resize else own
    return x if size == own else F.interpolate(x, size)


def _rows(item: np.ndarray | Tensor, gray: bool, where: str) -> Tensor:
    """One array or tensor as (b, C, H, W) float32."""
    channels_last = isinstance(item, np.ndarray)
    if item.ndim not in (2, 3, 4) or 0 in item.shape or (isinstance(item, np.ndarray) and item.dtype.kind not in "biuf"):
        raise InputError("No picture has this shape or dtype.", where=where, got=_describe(item))
    x = torch.from_numpy(np.array(item, order="C")) if isinstance(item, np.ndarray) else item
    if x.ndim == 2:
        x = x[None, None]
    elif x.ndim == 3 and gray and not (channels_last and x.shape[-1] <= 4):
        x = x[:, None]
    else:
        x = x[None] if x.ndim == 3 else x
        x = x.permute(0, 3, 1, 2) if channels_last else x
    if not (gray or x.is_floating_point() or x.dtype == torch.uint8):
        raise InputError("Whole numbers other than bytes.", where=where, got=_describe(item), expected="floats or uint8")
    return x.float() / 255 if x.dtype == torch.uint8 and not gray else x.float()


def _latents(image: Any, channels: int | None, where: str) -> Tensor | None:
    """What is already latents, as (B, channels, h, w), untouched; None for everything else."""
    items = image if isinstance(image, (list, tuple)) else [image]
    if not items or not all(isinstance(i, Tensor) and i.ndim in (3, 4) and i.shape[-3] == channels for i in items):
        return None
    return _stack([i if i.ndim == 4 else i[None] for i in items], where)


def _stack(rows: list[Tensor], where: str) -> Tensor:
    _one_size([tuple(r.shape[1:]) for r in rows], where)
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _one_size(sizes: list[tuple[int, ...]], where: str) -> None:
    if len(set(sizes)) > 1:
        fix = "Resize them first, or pass PIL images with height and width."
        raise InputError("Pictures of different sizes.", where=where, got=", ".join(map(str, sizes)), fix=fix)


def _size(height: int | None, width: int | None, own: Sequence[int], factor: int, where: str) -> tuple[int, int]:
    given = (own[0] if height is None else height, own[1] if width is None else width)
    if min(given) < factor:
        raise InputError("A side is too short.", where=where, got=f"{given}", expected=f"{factor} pixels or more")
    return given[0] - given[0] % factor, given[1] - given[1] % factor


def _grow(low: int, high: int, length: float, limit: int) -> tuple[int, int]:
    """An interval grown to `length` around its middle, then moved back inside [0, limit]."""
    extra = int(length - (high - low))
    low, high = low - extra // 2, high + extra - extra // 2
    if high > limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)


def _range(x: Tensor, where: str) -> tuple[float, float]:
    low, high = (v.item() for v in torch.aminmax(x))  # NaN anywhere makes both NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("Values that are no numbers.", where=where, got="NaN or infinity")
    return low, high


def _signed(x: Tensor, where: str) -> Tensor:
    """[0, 1] to [-1, 1]; pictures with negative values are there already."""
    low, high = _range(x, where)
    if high > 2:  # interpolation overshoots 1 by a little; bytes in a float array by a lot
        raise InputError("Values are too large.", where=where, got=high, expected="[0, 1]", fix="Divide by 255.")
    if low < 0:
        warnings.warn(f"{where}: values from {low:g} to {high:g} are taken as [-1, 1]; pass [0, 1].", stacklevel=3)
        return x
    return _normalize(x)


def _only_pil(crop: Box | None, mode: str, image: Any, where: str) -> None:
    if crop or mode != "default":
        raise InputError("Only PIL images are cropped or filled.", where=where, got=_describe(image), fix="Resize it first.")


def _expect_channels(x: Tensor, channels: int, given: Any, where: str) -> None:
    if x.shape[1] != channels:
        expected = f"{channels}: tensors (C, H, W) or (B, C, H, W), arrays (H, W, C) or (B, H, W, C)"
        fix = "Convert it; a PIL image of any mode is converted for you."
        raise InputError("Another number of channels.", where=where, got=_describe(given), expected=expected, fix=fix)


def _expect_choice(got: str, choices: Iterable[str], where: str, error: type[DarkroomError] = InputError) -> None:
    if got not in choices:
        raise error("No such choice.", where=where, got=got, expected=", ".join(choices))


def _describe(value: Any) -> str:
    if isinstance(value, Image.Image):
        return f"PIL image {value.mode} {value.width}x{value.height}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}: {', '.join(_describe(v) for v in value)}"
    shape = f" {tuple(value.shape)} {value.dtype}" if isinstance(value, (np.ndarray, Tensor)) else ""
    return type(value).__name__ + shape
