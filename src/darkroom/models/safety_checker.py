"""The safety checker of Stable Diffusion 1.x: CLIP embeddings of images against embeddings of 17 + 3 concepts."""

from __future__ import annotations
import logging
from collections.abc import Sequence
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPVisionModel, PreTrainedModel
from ..errors import InputError

__all__ = ["StableDiffusionSafetyChecker"]

Images = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]
STRICTER = 0.01  # taken off every threshold of an image that shows a special concept
logger = logging.getLogger("darkroom")


def _exceeds(embeds: Tensor, concepts: Tensor, thresholds: Tensor, slack: Tensor | float = 0.0) -> Tensor:
    """Whether any cosine with a concept is above its threshold, to three decimals: (B,) bool."""
    cosines = F.normalize(embeds) @ F.normalize(concepts).T  # (B, concepts)
    return ((cosines.float() - thresholds.float() + slack).round(decimals=3) > 0).any(1)


def _blacken(images: Images, flagged: list[bool]) -> Images:
    if isinstance(images, Tensor):
        return images.masked_fill(torch.tensor(flagged, device=images.device).view(-1, *[1] * (images.ndim - 1)), 0)
    if isinstance(images, np.ndarray):
        return np.where(np.reshape(flagged, (-1,) + (1,) * (images.ndim - 1)), images.dtype.type(0), images)
    black = torch.zeros_like if isinstance(images[0], Tensor) else np.zeros_like
    return [black(image) if bad else image for image, bad in zip(images, flagged, strict=True)]


class StableDiffusionSafetyChecker(PreTrainedModel):
    """Blackens images near the concepts of its checkpoint, thresholds included (described by Rando et al. 2022)."""

    config_class = CLIPConfig
    main_input_name = "clip_input"
    _no_split_modules = ["CLIPEncoderLayer"]

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        width = config.projection_dim
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, width, bias=False)
        self.concept_embeds = nn.Parameter(torch.ones(17, width), requires_grad=False)
        self.special_care_embeds = nn.Parameter(torch.ones(3, width), requires_grad=False)
        self.concept_embeds_weights = nn.Parameter(torch.ones(17), requires_grad=False)
        self.special_care_embeds_weights = nn.Parameter(torch.ones(3), requires_grad=False)
        self.post_init()

    @torch.no_grad()
    def forward(self, clip_input: Tensor, images: Images) -> tuple[Images, list[bool]]:
        """The images, flagged ones black, and which were flagged.
        Args:
            clip_input: the images as CLIP's processor gives them, (B, 3, 224, 224).
            images: as many to return: an array (B, H, W, C), a tensor, or a list of either. Not changed in place.
        Raises InputError if there are not as many images as rows of `clip_input`.
        """
        if len(images) != len(clip_input):
            what, where = "Images and CLIP inputs do not belong together.", "StableDiffusionSafetyChecker, images"
            fits = f"{len(clip_input)}, one for each row of clip_input"
            raise InputError(what, where=where, got=f"{len(images)} images", expected=fits)
        embeds = self.visual_projection(self.vision_model(clip_input)[1])  # (B, projection_dim)
        special = _exceeds(embeds, self.special_care_embeds, self.special_care_embeds_weights)
        slack = STRICTER * special.float()[:, None]
        flagged = _exceeds(embeds, self.concept_embeds, self.concept_embeds_weights, slack).tolist()
        if any(flagged):
            counts = sum(flagged), len(flagged)
            logger.warning("Potential NSFW content was detected in one or more images: %d of %d are black.", *counts)
            images = _blacken(images, flagged)
        return images, flagged
