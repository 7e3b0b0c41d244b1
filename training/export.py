"""Write the trained networks as a Stable Diffusion checkpoint of float16 weights: `python training/export.py`.

`--interim` takes the running average of a training that has not ended. The model card is filled in by `evaluate.py`.
"""

from __future__ import annotations
import argparse
import json
import shutil
from pathlib import Path
import torch
from data import caption_pool, glyphs, save_tokenizer
from train import SCHEDULE, TEXT, UNET, VAE, WORK
from transformers import CLIPTextConfig, CLIPTextModel
from darkroom.models.autoencoder_kl import AutoencoderKL
from darkroom.models.unet_2d_condition import UNet2DConditionModel
from darkroom.schedulers.ddim import DDIMScheduler

__all__ = ["ASSET", "export"]

ASSET = Path(__file__).parents[1] / "src/darkroom/assets/emoji"
COMPONENTS = {
    "feature_extractor": (None, None),
    "image_encoder": (None, None),
    "safety_checker": (None, None),
    "scheduler": ("diffusers", "DDIMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}


def export(folder: Path, *, interim: bool = False) -> None:
    """Replace the checkpoint in `folder`; its README.md and LICENSE stay."""
    latents = torch.load(WORK / "latents.pt", weights_only=True)
    unet, text = UNet2DConditionModel(**UNET), CLIPTextModel(CLIPTextConfig(**TEXT))
    trained = torch.load(WORK / ("unet.pt" if interim else "unet-final.pt"), weights_only=True)
    unet.load_state_dict(trained["unet"])
    text.load_state_dict(trained["text_encoder"])
    if interim:
        parameters = [*unet.parameters(), *text.parameters()]
        torch._foreach_copy_([p.data for p in parameters], trained["average"])
    vae = AutoencoderKL(**VAE, scaling_factor=latents["scaling_factor"])
    vae.load_state_dict(torch.load(WORK / "vae-final.pt", weights_only=True))
    for name, part in {"unet": unet, "text_encoder": text, "vae": vae}.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        part.to(torch.float16).save_pretrained(folder / name)
    settings = folder / "text_encoder/config.json"  # without this, transformers would compute in the dtype of the file, unlike the others
    settings.write_text(settings.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    (folder / "text_encoder/model.safetensors").chmod(0o644)
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    save_tokenizer(folder / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index | COMPONENTS, indent=2, sort_keys=True) + "\n")
    known = {g.name.lower(): sorted({c.lower() for c in pool}) for g, pool in zip(glyphs(), caption_pool(glyphs()), strict=True)}
    (folder / "captions.json").write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interim", action="store_true", help="the average of a training that is still running")
    parser.add_argument("--to", type=Path, default=ASSET)
    args = parser.parse_args()
    export(args.to, interim=args.interim)
