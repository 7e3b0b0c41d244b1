"""The specification's long sample, top to bottom, from a hub: a picture with an IP-Adapter, SAG over the same weights, then a film with both kinds
of adapters loaded again. No step changes what came before."""

from __future__ import annotations
from pathlib import Path
import numpy as np
import pytest
import torch
from checkpoints import conftest
from families import ip_adapters, motion, side_by_side, tiny
from PIL import Image
from safetensors.torch import save_file
from darkroom import AnimateDiffPipeline, DDIMScheduler, DiffusionPipeline, MotionAdapter, StableDiffusionSAGPipeline, UNetMotionModel
from darkroom.utils import export_to_gif, load_image

hub = conftest.hub
STEPS = 4


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def models(hub, tmp_path):
    """Repositories of the sample's names and layouts."""
    hub.add("SG161222/Realistic_Vision_V6.0_B1_noVAE", contents(tiny.sd(tmp_path / "sd", scheduler="PNDMScheduler")))
    unet = DiffusionPipeline.from_pretrained(tmp_path / "sd").unet
    files = ip_adapters.write(tmp_path / "ip", ip_adapters.adapter(unet), "ip-adapter_sd15.bin")
    hub.add("h94/IP-Adapter", contents(files))
    motion.adapter().save_pretrained(tmp_path / "motion")
    hub.add("guoyww/animatediff-motion-adapter-v1-5-2", contents(tmp_path / "motion"))
    layers = UNetMotionModel.from_unet2d(unet, MotionAdapter.from_pretrained(tmp_path / "motion")).named_modules()
    tensors = {}
    for name, layer in layers:
        if "motion_modules" in name and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, wide = layer.weight.shape
            tensors |= {f"unet.{name}.lora.down.weight": torch.randn(4, wide), f"unet.{name}.lora.up.weight": torch.randn(out, 4) / 4}
    assert tensors
    (tmp_path / "zoom").mkdir()
    save_file(tensors, tmp_path / "zoom/diffusion_pytorch_model.safetensors")
    hub.add("guoyww/animatediff-motion-lora-zoom-out", contents(tmp_path / "zoom"))
    return hub


def test_the_long_sample(models, tmp_path):
    side_by_side.picture(5, 64).save(tmp_path / "load_neg_embed.png")
    image = load_image(str(tmp_path / "load_neg_embed.png"))

    pipe_sd = DiffusionPipeline.from_pretrained("SG161222/Realistic_Vision_V6.0_B1_noVAE", torch_dtype=torch.float16)
    pipe_sd.load_ip_adapter("h94/IP-Adapter", subfolder="models", weight_name="ip-adapter_sd15.bin")
    pipe_sd.set_ip_adapter_scale(0.6)
    pipe_sd.to("cpu")

    def run_sd(**options):
        generator = torch.Generator(device="cpu").manual_seed(33)
        return pipe_sd(
            prompt="bear eats pizza",
            negative_prompt="wrong white balance, dark, sketches,worst quality,low quality",
            num_inference_steps=STEPS,
            generator=generator,
            output_type="np",
            **options,
        ).images

    out_sd = run_sd(ip_adapter_image=image)
    assert np.isfinite(out_sd).all()

    pipe_sag = StableDiffusionSAGPipeline.from_pipe(pipe_sd)
    generator = torch.Generator(device="cpu").manual_seed(33)
    out_sag = pipe_sag(
        prompt="bear eats pizza",
        negative_prompt="wrong white balance, dark, sketches,worst quality,low quality",
        ip_adapter_image=image,
        num_inference_steps=STEPS,
        generator=generator,
        guidance_scale=1.0,
        sag_scale=0.75,
        output_type="np",
    ).images
    assert np.abs(out_sag - out_sd).max() > 0.01
    assert np.array_equal(run_sd(ip_adapter_image=image), out_sd)

    pipe_sag.unload_ip_adapter()
    assert not pipe_sag.ip_adapters and len(pipe_sd.ip_adapters) == 1
    assert np.array_equal(run_sd(ip_adapter_image=image), out_sd)  # an AttributeError in the specification's own words

    adapter = MotionAdapter.from_pretrained("guoyww/animatediff-motion-adapter-v1-5-2", torch_dtype=torch.float16)
    pipe_animate = AnimateDiffPipeline.from_pipe(pipe_sd, motion_adapter=adapter)
    pipe_animate.scheduler = DDIMScheduler.from_config(pipe_animate.scheduler.config, beta_schedule="linear")
    assert pipe_sd.scheduler.config.beta_schedule == "scaled_linear"
    # load IP-Adapter and LoRA weights again
    pipe_animate.load_ip_adapter("h94/IP-Adapter", subfolder="models", weight_name="ip-adapter_sd15.bin")
    plain = frames(pipe_animate, image)
    pipe_animate.load_lora_weights("guoyww/animatediff-motion-lora-zoom-out", adapter_name="zoom-out")
    pipe_animate.to("cpu")
    pipe_animate.set_adapters("zoom-out", adapter_weights=0.75)
    zoomed = frames(pipe_animate, image)
    assert zoomed.shape == (1, 8, 32, 32, 3) and np.isfinite(zoomed).all()
    assert np.abs(zoomed - plain).max() > 0.01  # the motion LoRA counts
    out = pipe_animate(
        prompt="bear eats pizza",
        num_frames=8,
        num_inference_steps=STEPS,
        ip_adapter_image=image,
        generator=torch.Generator().manual_seed(33),
    ).frames[0]
    export_to_gif(out, str(tmp_path / "out_animate.gif"))
    with Image.open(tmp_path / "out_animate.gif") as film:
        assert film.n_frames == 8 and film.size == (32, 32)

    assert pipe_animate.get_active_adapters() == ["zoom-out"] and not pipe_sd.get_list_adapters()
    assert np.array_equal(run_sd(ip_adapter_image=image), out_sd)
    pipe_animate.unload_ip_adapter()
    pipe_animate.unload_lora_weights()
    assert np.array_equal(run_sd(ip_adapter_image=image), out_sd)
    theirs = {id(p) for module in (pipe_sd.unet, pipe_sd.vae, pipe_sd.text_encoder) for p in module.parameters()}
    own = [p for module in (pipe_animate.unet, pipe_animate.vae, pipe_animate.text_encoder) for p in module.parameters()]
    added = sum(p.numel() for p in own if id(p) not in theirs)
    assert added == sum(p.numel() for p in adapter.parameters())  # three pipelines: the weights of one, and the adapter's


def frames(pipe, image):
    generator = torch.Generator(device="cpu").manual_seed(33)
    call = {"prompt": "bear eats pizza", "num_frames": 8, "num_inference_steps": STEPS, "ip_adapter_image": image}
    return np.asarray(pipe(**call, generator=generator, output_type="np").frames)
