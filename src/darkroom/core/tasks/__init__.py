"""Tasks: what a pipeline starts from. One file each."""

from .conditioned import Depth2Image, Edit, LatentUpscale, Upscale, Variation
from .image2image import Image2Image
from .inpaint import Inpaint
from .text2image import Text2Image
from .text2video import Text2Video, Video2Video
from .views import Panorama

__all__ = [
    "Depth2Image", "Edit", "Image2Image", "Inpaint", "LatentUpscale", "Panorama", "Text2Image", "Text2Video", "Upscale", "Variation",
    "Video2Video",
]  # fmt: skip
