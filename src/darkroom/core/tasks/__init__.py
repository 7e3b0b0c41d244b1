"""Tasks: what a pipeline starts from. One file each."""

from .image2image import Image2Image
from .inpaint import Inpaint
from .text2image import Text2Image

__all__ = ["Image2Image", "Inpaint", "Text2Image"]
