"""VaeImageProcessor and VideoProcessor: the reference's way to and from pictures, for programs that call it. Pipelines use `core.media` itself."""

from __future__ import annotations
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor
from .config import Config, Configurable
from .core.media import Box, crop_region, overlay, resize_image
from .errors import ConfigError, InputError

__all__ = ["VaeImageProcessor", "VideoProcessor"]

RESAMPLING = {name.lower(): getattr(Image.Resampling, name) for name in ("LANCZOS", "BILINEAR", "BICUBIC", "NEAREST")}
RESAMPLING["linear"] = Image.Resampling.BILINEAR
KINDS = (Image.Image, np.ndarray, Tensor)


@dataclass(frozen=True, eq=False, repr=False)
class ProcessorConfig(Config):
    do_resize: bool = True
    vae_scale_factor: int = 8
    vae_latent_channels: int = 4
    resample: str = "lanczos"
    reducing_gap: int | None = None
    do_normalize: bool = True
    do_binarize: bool = False
    do_convert_rgb: bool = False
    do_convert_grayscale: bool = False


class VaeImageProcessor(Configurable):
    """Pictures to tensors (B, C, H, W) in [-1, 1], and back.
    Options: `do_resize` to multiples of `vae_scale_factor`; tensors of `vae_latent_channels` channels stay as they are; `resample` ("lanczos",
    "bilinear", "bicubic", "nearest") and `reducing_gap` are Pillow's; `do_normalize` goes from [0, 1] to [-1, 1]; `do_binarize` to 0 and 1;
    `do_convert_rgb` or `do_convert_grayscale`. Raises ConfigError for both of these and for another `resample`.
    """

    Config = ProcessorConfig

    def _assemble(self, config: Any) -> None:
        if config.do_convert_rgb and config.do_convert_grayscale:
            raise ConfigError("Colours or none.", where="do_convert_rgb, do_convert_grayscale", got="both", expected="at most one")
        if config.resample not in RESAMPLING:
            raise ConfigError("No such choice.", where="resample", got=config.resample, expected=", ".join(RESAMPLING))
        self.config = config

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
        """(B, H, W, C) or (H, W, C) in [0, 1] as pictures."""
        rows = (images[None] if images.ndim == 3 else images) * 255
        return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in rows.round().astype(np.uint8)]

    @staticmethod
    def pil_to_numpy(images: Image.Image | list[Image.Image]) -> np.ndarray:
        """Pictures of one size as (B, H, W, C) or, without colours, (B, H, W) float32 in [0, 1]."""
        return np.stack([np.array(i, np.float32) / 255 for i in (images if isinstance(images, list) else [images])])

    @staticmethod
    def numpy_to_pt(images: np.ndarray) -> Tensor:
        """(B, H, W, C) or (B, H, W) as (B, C, H, W)."""
        return torch.from_numpy((images[..., None] if images.ndim == 3 else images).transpose(0, 3, 1, 2))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> np.ndarray:
        """(B, C, H, W) as (B, H, W, C) float32."""
        return images.cpu().permute(0, 2, 3, 1).float().numpy()

    @staticmethod
    def normalize(images: Any) -> Any:
        """[0, 1] to [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Any) -> Any:
        """[-1, 1] to [0, 1], cut off there."""
        return (images * 0.5 + 0.5).clip(0, 1)

    @staticmethod
    def convert_to_rgb(image: Image.Image) -> Image.Image:
        return image.convert("RGB")

    @staticmethod
    def convert_to_grayscale(image: Image.Image) -> Image.Image:
        return image.convert("L")

    @staticmethod
    def blur(image: Image.Image, blur_factor: int = 4) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(blur_factor))

    @staticmethod
    def binarize(image: Any) -> Any:
        """0 below 0.5 and 1 from there on, in place."""
        image[image < 0.5], image[image >= 0.5] = 0, 1
        return image

    get_crop_region = staticmethod(crop_region)

    def apply_overlay(self, mask: Image.Image, init_image: Image.Image, image: Image.Image, crop_coords: Box | None = None) -> Image.Image:
        """`image` where `mask` is white, `init_image` where it is black; see `core.media.overlay`."""
        return overlay(mask, init_image, image, crop_coords)

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """A picture, array (B, H, W, C) or tensor (B, C, H, W) at another size. "fill" fits inside, "crop" covers: both for pictures only."""
        if isinstance(image, Image.Image):
            c = self.config
            return resize_image(image, height, width, resize_mode, RESAMPLING[c.resample], c.reducing_gap)
        if resize_mode != "default":
            raise InputError("Only PIL images are cropped or filled.", where="resize_mode", got=resize_mode, expected="default")
        if isinstance(image, np.ndarray):
            return self.pt_to_numpy(F.interpolate(self.numpy_to_pt(image), (height, width)))
        return F.interpolate(image, (height, width))

    def get_default_height_width(self, image: Any, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """The sides, given or the picture's own, rounded down to multiples of the scale factor."""
        own = image.size[::-1] if isinstance(image, Image.Image) else image.shape[2:] if isinstance(image, Tensor) else image.shape[1:3]
        sides = (mine if side is None else side for side, mine in zip((height, width), own))
        tall, wide = (side - side % self.config.vae_scale_factor for side in sides)
        return tall, wide

    def preprocess(
        self, image: Any, height: int | None = None, width: int | None = None, resize_mode: str = "default", crops_coords: Box | None = None
    ) -> Tensor:
        """Pictures, arrays or tensors in [0, 1], one or a list of one kind, as (B, C, H, W); `crops_coords` cuts pictures first.
        Values below 0 count as [-1, 1] already. Raises InputError for what is none of these.
        """
        c = self.config
        if c.do_convert_grayscale and isinstance(image, (np.ndarray, Tensor)) and image.ndim == 3:
            last = isinstance(image, np.ndarray) and image.shape[-1] != 1
            image = image[..., None] if last else image[None] if isinstance(image, np.ndarray) else image[:, None]
        items = list(image) if isinstance(image, (list, tuple)) else [image]
        kind = next((k for k in KINDS if items and all(isinstance(i, k) for i in items)), None)
        if kind is None or any(not isinstance(i, Image.Image) and i.ndim not in (2, 3, 4) for i in items):
            got = ", ".join(sorted({type(i).__name__ for i in items})) or "nothing"
            raise InputError("These are no pictures.", where="image", got=got, expected="PIL images, arrays or tensors, of one kind")
        if kind is Image.Image:
            items = [i.crop(crops_coords) for i in items] if crops_coords is not None else items
            if c.do_resize:
                sides = self.get_default_height_width(items[0], height, width)
                items = [self.resize(i, *sides, resize_mode) for i in items]
            mode = "RGB" if c.do_convert_rgb else "L" if c.do_convert_grayscale else None
            x = self.numpy_to_pt(self.pil_to_numpy([i.convert(mode) for i in items] if mode else items))
        else:
            join = (np.concatenate, np.stack) if kind is np.ndarray else (torch.cat, torch.stack)
            x = join[items[0].ndim != 4](items)
            x = self.numpy_to_pt(x) if kind is np.ndarray else x
            x = x[:, None] if c.do_convert_grayscale and x.ndim == 3 else x
            if kind is Tensor and x.shape[1] == c.vae_latent_channels:
                return x
            x = self.resize(x, *self.get_default_height_width(x, height, width)) if c.do_resize else x
        if c.do_normalize and x.min() < 0:
            warnings.warn(f"image: values from {x.min():g} are taken as [-1, 1]; pass [0, 1].", FutureWarning, stacklevel=2)
        elif c.do_normalize:
            x = self.normalize(x)
        return self.binarize(x) if c.do_binarize else x

    def postprocess(self, image: Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None) -> Any:
        """(B, C, H, W) as "pil", "np" (B, H, W, C), "pt", or as it is ("latent"); `do_denormalize` says for each whether it is in [-1, 1]."""
        if not isinstance(image, Tensor) or output_type not in ("latent", "pt", "np", "pil"):
            got, expected = f"{type(image).__name__}, {output_type!r}", "a tensor; latent, pt, np or pil"
            raise InputError("No such choice.", where="image, output_type", got=got, expected=expected)
        if output_type == "latent":
            return image
        each = [self.config.do_normalize] * len(image) if do_denormalize is None else do_denormalize
        x = torch.stack([self.denormalize(i) if do else i for i, do in zip(image, each, strict=True)])
        if output_type == "pt":
            return x
        return self.pt_to_numpy(x) if output_type == "np" else self.numpy_to_pil(self.pt_to_numpy(x))


class VideoProcessor(VaeImageProcessor):
    """The same for videos: a list of pictures, an array (F, H, W, C) or a tensor (F, C, H, W) for each, or one array or tensor of all."""

    def preprocess_video(self, video: Any, height: int | None = None, width: int | None = None, **options: Any) -> Tensor:
        """One video or several as (B, C, F, H, W); `options` are those of `preprocess`."""
        if isinstance(video, (list, tuple)) and video and all(getattr(v, "ndim", 0) == 5 for v in video):
            video = np.concatenate(video) if isinstance(video[0], np.ndarray) else torch.cat(tuple(video))
        if getattr(video, "ndim", 0) == 5:
            videos = list(video)
        elif getattr(video, "ndim", 0) == 4:
            videos = [video]
        elif isinstance(video, (list, tuple)) and video:
            single = isinstance(video[0], Image.Image) or getattr(video[0], "ndim", 4) < 4
            videos = [list(video)] if single else list(video)
        else:
            expected = "a list of pictures, an array (F, H, W, C), a tensor (F, C, H, W), or several"
            raise InputError("This is no video.", where="video", got=type(video).__name__, expected=expected)
        return torch.stack([self.preprocess(v, height=height, width=width, **options) for v in videos]).transpose(1, 2)

    def postprocess_video(self, video: Tensor, output_type: str = "np", **options: Any) -> Any:
        """(B, C, F, H, W) as "np" (B, F, H, W, C), "pt" (B, F, C, H, W) or "pil", a list of pictures for each."""
        if output_type not in ("np", "pt", "pil"):
            raise InputError("No such choice.", where="output_type", got=output_type, expected="np, pt, pil")
        made = [self.postprocess(v.transpose(0, 1), output_type, **options) for v in video]
        return made if output_type == "pil" else np.stack(made) if output_type == "np" else torch.stack(made)

    @staticmethod
    def classify_height_width_bin(height: int, width: int, ratios: Mapping[Any, Sequence[float]]) -> tuple[int, int]:
        """Of the sizes by their ratio of height to width the one whose ratio is nearest."""
        nearest = min(ratios, key=lambda ratio: abs(float(ratio) - height / width))
        return int(ratios[nearest][0]), int(ratios[nearest][1])

    @staticmethod
    def resize_and_crop_tensor(samples: Tensor, new_width: int, new_height: int) -> Tensor:
        """Videos (B, C, F, H, W) at a size that they cover, bilinearly, and cut around the middle."""
        rows, _, count, tall, wide = samples.shape
        if (tall, wide) == (new_height, new_width):
            return samples
        scale = max(new_height / tall, new_width / wide)
        sides = int(tall * scale), int(wide * scale)
        x = F.interpolate(samples.transpose(1, 2).flatten(0, 1), sides, mode="bilinear", align_corners=False)
        top, left = (sides[0] - new_height) // 2, (sides[1] - new_width) // 2
        return x[..., top : top + new_height, left : left + new_width].unflatten(0, (rows, count)).transpose(1, 2)
