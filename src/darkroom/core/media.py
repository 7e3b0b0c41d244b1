"""Pictures at the edges of a run: PIL images, arrays and tensors become (B, C, H, W) tensors, results become pictures.

Arrays are channels last, (H, W, C) or (B, H, W, C); tensors are channels first, (C, H, W) or (B, C, H, W). Lists hold one kind.
"""

from __future__ import annotations
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from .._public import Later
from ..errors import InputError

if TYPE_CHECKING:
    from PIL import Image, ImageOps
else:
    Image, ImageOps = Later("PIL.Image"), Later("PIL.ImageOps")

__all__ = [
    "crop_region", "hint_to_tensor", "image_count", "image_size", "image_to_tensor", "mask_to_tensor", "overlay", "pixels_of",
    "resize_image", "resize_smooth", "tensor_to_images", "tensor_to_videos",
]  # fmt: skip

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are outside
Size = tuple[int | None, int | None]  # height and width, None for the picture's own


def image_to_tensor(
    image: Any, *, height: int | None = None, width: int | None = None, factor: int = 8, latent_channels: int | None = None, crop: Box |
    None = None, resize_mode: str = "default", where: str = "image",
) -> Tensor:  # fmt: skip
    """The pictures as (B, 3, H, W) float32 in [-1, 1]. PIL images are resized with Lanczos, arrays and tensors to the nearest sample.
    Args:
        image: PIL images of any mode; arrays or tensors in [0, 1] (uint8: 0 to 255). One with negative values counts as [-1, 1] already.
        height, width: size of the result in pixels, None for the picture's own; rounded down to multiples of `factor`.
        latent_channels: tensors with this many channels are latents and are returned as they are.
        crop: a box that is cut out first (PIL images only).
        resize_mode: "default" stretches, "bicubic" does so with splines; "fill" fits inside and extends the edges, "crop" covers and cuts
            (both: PIL images only).
        where: the argument's name, for errors.
    Raises:
        InputError: another type, an empty list, mixed kinds or sizes, another number of channels, values out of range.
    """
    items = _items(image, where)
    if all(isinstance(i, Tensor) and i.ndim in (3, 4) and i.shape[-3] == latent_channels for i in items):
        return _stack([i if i.ndim == 4 else i[None] for i in items], where)
    x = _read(items, 3, (height, width), factor, crop, resize_mode, where)
    low, high = (v.item() for v in torch.aminmax(x))
    if high > 2:  # interpolation overshoots 1 by a little; bytes in a float array by a lot
        raise InputError("Values are too large.", where=where, got=high, expected="[0, 1]", fix="Divide by 255.")
    if low < 0:
        warnings.warn(f"{where}: values from {low:g} to {high:g} are taken as [-1, 1]; pass [0, 1].", stacklevel=2)
        return x
    return 2 * x - 1


def mask_to_tensor(
    mask: Any, *, height: int, width: int, factor: int = 8, crop: Box | None = None, resize_mode: str = "default", where: str = "mask_image"
) -> Tensor:
    """The masks as (B, 1, H, W) float32 of exactly 0 (keep) and 1 (repaint); values from 0.5 are 1.
    They are PIL images of any mode (bytes from 128 are 1), arrays (H, W), (H, W, 1), (B, H, W) or (B, H, W, 1), or tensors (H, W), (B, H, W)
    or (B, 1, H, W), of any real dtype. All else is as in `image_to_tensor`; more than one channel raises InputError too.
    """
    return (_read(_items(mask, where), 1, (height, width), factor, crop, resize_mode, where) >= 0.5).float()


def hint_to_tensor(
    image: Any, *, channels: int = 3, height: int, width: int, crop: Box | None = None, resize_mode: str = "default", where: str = "image"
) -> Tensor:
    """The pictures that a control looks at, as (B, channels, H, W) float32: PIL images and bytes in [0, 1], other values as they are.
    Sizes, `crop` and `resize_mode` are as in `image_to_tensor`; another number of channels raises InputError too.
    """
    items = [i / 255 if str(getattr(i, "dtype", "")).endswith("uint8") else i for i in _items(image, where)]
    return _read(items, channels, (height, width), 1, crop, resize_mode, where)


def tensor_to_images(x: Tensor, output_type: str = "pil") -> Any:
    """(B, C, H, W) in [-1, 1] as pictures: "pil" a list, "np" (B, H, W, C) float32 and "pt" (B, C, H, W) in [0, 1], "latent" `x` itself.
    Values are scaled in the dtype of `x`: half precision rounds here. Another output type, not four dimensions and, for "pil", not 1, 3 or 4
    channels raise InputError.
    """
    if output_type not in ("pil", "np", "pt", "latent"):
        raise InputError("No such choice.", where="output_type", got=output_type, expected="pil, np, pt, latent")
    if output_type == "latent":
        return x
    if not isinstance(x, Tensor) or x.ndim != 4 or (output_type == "pil" and x.shape[1] not in (1, 3, 4)):
        raise InputError("These are no pictures.", where="x", got=_describe(x), expected="(B, C, H, W), C = 1, 3 or 4")
    x = (x * 0.5 + 0.5).clip(0, 1)
    if output_type == "pt":
        return x
    arrays = x.permute(0, 2, 3, 1).cpu().float().numpy()
    if output_type == "np":
        return arrays
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in (arrays * 255).round().astype(np.uint8)]


def tensor_to_videos(x: Tensor, output_type: str = "pil") -> Any:
    """(B, F, C, H, W) in [-1, 1] as videos: "pil" a list of pictures for each, "np" (B, F, H, W, C) and "pt" (B, F, C, H, W) in [0, 1]."""
    videos = [tensor_to_images(video, output_type) for video in x]
    return videos if output_type == "pil" else np.stack(videos) if output_type == "np" else torch.stack(videos)


def pixels_of(image: Any, factor: int, where: str = "image") -> Tensor:
    """The pictures as (B, 3, H, W) in [-1, 1], sides cut to multiples of `factor`; tensors (B, C, H, W) are that already and stay as they are."""
    if isinstance(image, (list, tuple)) and image and all(isinstance(i, Tensor) for i in image):
        image = _stack(list(image), where)
    if not isinstance(image, Tensor):
        return image_to_tensor(image, factor=factor, where=where)
    if image.ndim != 4 or not image.is_floating_point():
        raise InputError("A tensor that holds no pictures.", where=where, got=_describe(image), expected="floats (B, C, H, W) in [-1, 1]")
    return image


def resize_smooth(x: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) at another size: blurred as far as it shrinks, then sampled from corner to corner with cubic splines."""
    for dim, side in ((3, width), (2, height)):
        sigma = max((x.shape[dim] / side - 1) / 2, 0.001)
        reach = int(max(4 * sigma, 3)) // 2
        taps = torch.exp(-(torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device) ** 2) / (2 * sigma**2))
        kernel = (taps / taps.sum()).reshape((1, 1, 1, -1) if dim == 3 else (1, 1, -1, 1)).expand(x.shape[1], -1, -1, -1)
        pad = [reach, reach, 0, 0] if dim == 3 else [0, 0, reach, reach]
        x = F.conv2d(F.pad(x, pad, mode="reflect"), kernel, groups=x.shape[1])
    return F.interpolate(x, (height, width), mode="bicubic", align_corners=True)


def image_count(image: Any, where: str = "image") -> int:
    """How many pictures an input holds."""
    return sum(i.shape[0] if getattr(i, "ndim", 0) == 4 else 1 for i in _items(image, where))


def image_size(image: Any, where: str = "image") -> tuple[int, int]:
    """Width and height of the first picture of an input, in pixels; `where` is the argument's name, for errors."""
    first = _items(image, where)[0]
    height, width = first.size[::-1] if isinstance(first, Image.Image) else _rows(first, 1, where).shape[-2:]
    return width, height


def crop_region(mask: Image.Image, width: int, height: int, pad: int = 0) -> Box:
    """The box around what `mask` marks (InputError: it marks nothing), `pad` pixels wider on each side, grown to width / height if there is room."""
    if (box := mask.convert("L").getbbox()) is None:
        raise InputError("The mask marks nothing.", where="mask_image", fix="Paint white what is to be repainted.")
    x1, y1 = max(box[0] - pad, 0), max(box[1] - pad, 0)
    x2, y2 = min(box[2] + pad, mask.width), min(box[3] + pad, mask.height)
    aspect = width / height
    y1, y2 = _grow(y1, y2, (x2 - x1) / aspect, mask.height)
    x1, x2 = _grow(x1, x2, (y2 - y1) * aspect, mask.width)
    return x1, y1, x2, y2


def overlay(mask: Image.Image, original: Image.Image, image: Image.Image, box: Box | None = None) -> Image.Image:
    """`image` where `mask` is white, `original` where it is black, as RGB; with `box`, `image` is that part of the original."""
    if mask.size != original.size:
        raise InputError("Mask and picture differ in size.", where="mask_image", got=mask.size, expected=original.size)
    # premultiplied alpha: half-masked pixels keep their colour when they are laid over
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    if box is not None:
        part = resize_image(image, box[3] - box[1], box[2] - box[0], mode="crop")
        image = Image.new("RGB", original.size)
        image.paste(part, box[:2])
    image = image.convert("RGBA")
    image.alpha_composite(kept.convert("RGBA"))
    return image.convert("RGB")


def resize_image(
    image: Image.Image, height: int, width: int, mode: str = "default", resample: Image.Resampling | None = None,
    reducing_gap: float | None = None,
) -> Image.Image:  # fmt: skip
    """A PIL image at another size, with `resample` (Lanczos) but for "bicubic"; see `image_to_tensor` for the modes. "fill" and "crop" give RGB."""
    if mode not in ("default", "bicubic", "fill", "crop"):
        raise InputError("No such choice.", where="resize_mode", got=mode, expected="default, bicubic, fill, crop")
    resample = Image.Resampling.LANCZOS if resample is None else resample
    if mode in ("default", "bicubic"):
        return image.resize((width, height), resample if mode == "default" else Image.Resampling.BICUBIC, reducing_gap=reducing_gap)
    sizes = (width, max(image.height * width // image.width, 1)), (max(image.width * height // image.height, 1), height)
    w, h = min(sizes) if mode == "fill" else max(sizes)  # of the two that keep the aspect
    scaled = image.resize((w, h), resample)
    left, top = width // 2 - w // 2, height // 2 - h // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(scaled, (left, top))
    for edge, y in ((0, 0), (h, top + h)) if top > 0 else ():  # a source box without extent repeats the picture's edge
        canvas.paste(scaled.resize((width, top), box=(0, edge, width, edge)), (0, y))
    for edge, x in ((0, 0), (w, left + w)) if left > 0 else ():
        canvas.paste(scaled.resize((left, height), box=(edge, 0, edge, height)), (x, 0))
    return canvas


def _items(image: Any, where: str) -> list[Any]:
    """One picture or a list of them, as a list of one kind."""
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not any(items and all(isinstance(i, kind) for i in items) for kind in (Image.Image, np.ndarray, Tensor)):
        expected, fix = "PIL images, numpy arrays or tensors, one or a list of one kind", "Read files and URLs with darkroom.load_image."
        raise InputError("These are no pictures.", where=where, got=_describe(image), expected=expected, fix=fix)
    return items


def _read(items: list[Any], channels: int, size: Size, factor: int, crop: Box | None, mode: str, where: str) -> Tensor:
    """(B, channels, H, W) float32. PIL images, and bytes that are no mask, become [0, 1]; other values stay as they are."""
    if isinstance(items[0], Image.Image):
        items = [i.crop(crop) for i in items] if crop else items
        if None in size:
            _one_size([i.size for i in items], where)
        sides = _sides(size, items[0].size[::-1], factor, where)
        items = [resize_image(i, *sides, mode).convert("L" if channels == 1 else "RGB") for i in items]  # palettes stay at their colours
        items = [np.array(i, np.float32) / 255 for i in items]
    elif crop or mode in ("fill", "crop"):
        raise InputError("Only PIL images are cropped or filled.", where=where, got=_describe(items[0]), fix="Resize it first.")
    x = _stack([_rows(i, channels, where) for i in items], where)
    x = F.interpolate(x, _sides(size, x.shape[-2:], factor, where))
    if x.shape[1] != channels:
        fix = "Convert it; a PIL image of any mode is converted for you."
        expected = f"{channels}: tensors (C, H, W) or (B, C, H, W), arrays (H, W, C) or (B, H, W, C)"
        raise InputError("Another number of channels.", where=where, got=_describe(items[0]), expected=expected, fix=fix)
    if not x.isfinite().all():
        raise InputError("Values that are no numbers.", where=where, got="NaN or infinity")
    return x


def _rows(item: np.ndarray | Tensor, channels: int, where: str) -> Tensor:
    """One array or tensor as (b, C, H, W) float32. With one channel, three dimensions are (B, H, W), and bytes keep their values."""
    gray, channels_last = channels == 1, isinstance(item, np.ndarray)
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


def _sides(size: Size, own: Sequence[int], factor: int, where: str) -> tuple[int, int]:
    height, width = (side if given is None else given for given, side in zip(size, own))
    if min(height, width) < factor:
        raise InputError("A side is too short.", where=where, got=f"{height, width}", expected=f"{factor} pixels or more")
    return height - height % factor, width - width % factor


def _stack(rows: list[Tensor], where: str) -> Tensor:
    _one_size([tuple(r.shape[1:]) for r in rows], where)
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _one_size(sizes: list[tuple[int, ...]], where: str) -> None:
    if len(set(sizes)) > 1:
        fix = "Resize them first, or pass PIL images with height and width."
        raise InputError("Pictures of different sizes.", where=where, got=", ".join(map(str, sizes)), fix=fix)


def _grow(low: int, high: int, length: float, limit: int) -> tuple[int, int]:
    """An interval that is shorter than `length` grown to it around its middle, then moved back inside [0, limit]."""
    extra = max(int(length - (high - low)), 0)
    grown = high - low + extra
    low = max(min(low - extra // 2, limit - grown), 0)
    return low, min(low + grown, limit)


def _describe(value: Any) -> str:
    if isinstance(value, Image.Image):
        return f"PIL image {value.mode} {value.width}x{value.height}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}: {', '.join(_describe(v) for v in value)}"
    shape = f" {tuple(value.shape)} {value.dtype}" if isinstance(value, (np.ndarray, Tensor)) else ""
    return type(value).__name__ + shape
