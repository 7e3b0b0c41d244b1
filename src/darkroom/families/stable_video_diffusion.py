"""Stable Video Diffusion: a picture that begins to move (Blattmann et al. 2023)."""

from __future__ import annotations
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
import torch
from torch import Tensor
from ..core.codec import ScaledCodec
from ..core.guidance import FrameCFG
from ..core.inputs import field
from ..core.media import image_count, image_to_tensor, resize_smooth, tensor_to_videos
from ..core.random import randn
from ..core.tasks.image2video import Image2Video
from ..core.tasks.text2image import latent_size
from ..core.types import Branch, Conditioning, Run
from ..errors import ConfigError
from ..family import CallInputs, Family
from ..outputs import Output
from ..runtime.fork import cast_copy

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    from ..models.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
    from ..models.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
    from ..schedulers.euler_discrete import EulerDiscreteScheduler

__all__ = ["StableVideoDiffusionPipeline", "StableVideoDiffusionPipelineOutput"]


@dataclass
class StableVideoDiffusionPipelineOutput(Output):
    """`frames`: for each video a list of PIL pictures, or an array (B, F, H, W, 3) in [0, 1], a tensor (B, F, 3, H, W) in [0, 1], or latents."""

    frames: Any


@dataclass(kw_only=True)
class SVDInputs(CallInputs):
    sigmas: list[float] | None = field("A schedule of one's own: noise levels, falling.")
    min_guidance_scale: float = field("Weight of the picture at the first frame.", 1.0)
    max_guidance_scale: float = field("Weight of the picture at the last frame; 1 or less switches guidance off.", 3.0)
    fps: int = field("Frames per second that the motion is made for.", 7, minimum=1, integer=True)
    motion_bucket_id: int = field("How much moves: more is more.", 127, minimum=0, integer=True)
    noise_aug_strength: float = field("Noise added to the picture: more lets the video differ from it.", 0.02, minimum=0)
    decode_chunk_size: int | None = field(
        "Frames decoded at a time, all if not given: fewer need less memory.", None, minimum=1, integer=True
    )
    num_videos_per_prompt: int = field("Videos for each picture.", 1, minimum=1, integer=True)


class StableVideoDiffusionPipeline(Family):
    """Picture to video. Every frame sees the picture twice: as CLIP sees it, and as latents beside its own."""

    vae: AutoencoderKLTemporalDecoder
    image_encoder: CLIPVisionModelWithProjection
    unet: UNetSpatioTemporalConditionModel
    scheduler: EulerDiscreteScheduler
    feature_extractor: CLIPImageProcessor
    codec = ScaledCodec("vae")
    task = Image2Video(height=576, width=1024)
    inputs = SVDInputs
    size_step = 8
    defaults = {"num_inference_steps": 25}
    arguments = {
        "image2video": "image height width num_frames num_inference_steps sigmas min_guidance_scale max_guidance_scale fps motion_bucket_id "
        "noise_aug_strength decode_chunk_size num_videos_per_prompt generator latents output_type callback_on_step_end "
        "callback_on_step_end_tensor_inputs return_dict"
    }
    Output = StableVideoDiffusionPipelineOutput

    @property
    def denoiser(self) -> Any:
        return self.unet

    def count(self, inputs: Any) -> int:
        return image_count(inputs.image) * inputs.num_videos_per_prompt

    def frames(self, inputs: Any) -> int:
        return inputs.num_frames or self.unet.config.num_frames

    def guidance(self, inputs: Any) -> Any:
        return FrameCFG(inputs.min_guidance_scale, inputs.max_guidance_scale)

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        many, encoder = inputs.num_videos_per_prompt, self.image_encoder
        side = encoder.config.image_size
        small = (resize_smooth(image_to_tensor(inputs.image, factor=1), side, side) + 1) / 2  # (b, 3, 224, 224) in [0, 1]
        options = dict(do_normalize=True, do_center_crop=False, do_resize=False, do_rescale=False, return_tensors="pt")
        seen = self.feature_extractor(images=small, **options).pixel_values.to(self.device, encoder.dtype)
        context = encoder(seen).image_embeds[:, None].repeat_interleave(many, 0)  # (B, 1, D)
        latents = self._picture_latents(inputs).to(context)
        numbers = [inputs.fps - 1, inputs.motion_bucket_id, inputs.noise_aug_strength]  # the networks were trained with fps - 1
        c = self.unet.config
        if c.addition_time_embed_dim * len(numbers) != c.projection_class_embeddings_input_dim:
            got, expected = c.projection_class_embeddings_input_dim, f"{len(numbers)} x {c.addition_time_embed_dim}"
            raise ConfigError(
                "This network takes other numbers.", where="projection_class_embeddings_input_dim", got=got, expected=expected
            )
        cond = {"context": context, "image_latents": latents, "time_ids": context.new_tensor([numbers]).repeat(len(context), 1)}
        positive = Branch(cond, self.unet.attend)
        blank = {"context": torch.zeros_like(context), "image_latents": torch.zeros_like(latents)}
        return Conditioning(positive, positive.with_cond(**blank) if needs_negative else None)

    def _picture_latents(self, inputs: Any) -> Tensor:
        """Latents of the pictures, with noise on them, for each frame, unscaled: (B, F, C, H, W)."""
        factor, many = self.codec.factor(self), inputs.num_videos_per_prompt
        height, width = (side * factor for side in latent_size(self, inputs))
        image = image_to_tensor(inputs.image, height=height, width=width, factor=factor).to(self.device)
        own = isinstance(inputs.generator, (list, tuple))  # each video draws a noise of its own
        image = image.repeat_interleave(many, 0) if own else image
        image = image + inputs.noise_aug_strength * randn(image.shape, inputs.generator, image.device, image.dtype)
        vae = self.vae
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae = cast_copy(vae, torch.float32)
        latents = vae.encode(image.to(vae.dtype)).latent_dist.mode()
        latents = latents if own else latents.repeat_interleave(many, 0)
        return latents[:, None].repeat(1, self.frames(inputs), 1, 1, 1)

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        cond = branch.cond
        x = torch.cat([x, cond["image_latents"]], 2)  # (B, F, 2C, H, W)
        return self.unet(x, t, cond["context"], cond["time_ids"], attend=branch.attend).sample

    def decode(self, run: Run) -> dict[str, Any]:
        if run.inputs.output_type == "latent":
            return {"frames": run.x}
        chunk, vae = run.inputs.decode_chunk_size or run.x.shape[1], self.vae
        counted = "num_frames" in inspect.signature(vae.decode).parameters  # an autoencoder for pictures will do

        def pictures(z: Tensor) -> Tensor:
            return vae.decode(z, **({"num_frames": len(z)} if counted else {})).sample

        z = run.x / vae.config.scaling_factor
        videos = torch.stack([torch.cat([pictures(part) for part in video.split(chunk)]) for video in z])  # (B, F, 3, H, W)
        return {"frames": tensor_to_videos(videos.float(), run.inputs.output_type)}

    def generate(self, inputs: Any) -> Any:  # without an output class there are the frames alone, as the reference has it
        out = super().generate(inputs)
        return out if inputs.return_dict else out[0]
