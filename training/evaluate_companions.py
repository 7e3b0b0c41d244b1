"""Measure what goes with the bundled checkpoint: `python training/evaluate_companions.py control`, `lora` or `motion`. 25 steps, guidance 2.5.

`control`: captions, and silhouettes of their glyphs in moderate places that were never shown. "overlap": how much of the wanted and the made
silhouette they have in common (intersection over union), both without holes. "nearest": how often the captioned glyph, skin tones aside, is
the nearest of all in the same place; "among five": of the five nearest.

`lora`: how often the captioned glyph is the nearest of all as they are, and of all in the blue of tiles. "colours": the mean difference of a
picture from itself as this blue would have its shades, 0 to 255.

`motion`: how often the captioned glyph is the nearest of all in the colours of that frame ("nearest"), and the frame the nearest to its own colours
among the eight of the captioned glyph ("hue"); a still picture would be right in one of them.
"""

from __future__ import annotations
import argparse
import json
import random
import numpy as np
import torch
from companions import ASSETS, RANK, Frozen, adapt
from data import FRAMES, caption_pool, compose, cut_out, delft, glyphs, moderate, placement, render, turning
from evaluate import blurred, paint, rank, sheet
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from tqdm import tqdm
from train import WORK
from darkroom import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from darkroom.assets import EMOJI, SUITED


def filled(silhouette: np.ndarray) -> np.ndarray:
    """Without holes: all that the outside does not reach. (H, W) of bool."""
    page = Image.fromarray(np.pad(silhouette, 1).astype(np.uint8) * 255).copy()  # a writable one
    ImageDraw.floodfill(page, (0, 0), 128)
    return np.asarray(page)[1:-1, 1:-1] != 128


def made(picture: Image.Image) -> np.ndarray:
    """What is not paper."""
    return filled(np.asarray(picture.convert("RGB")).min(2) < 225)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def measure_control(count: int) -> dict:
    known, rng, choose = glyphs(), np.random.default_rng(1000), random.Random(0)
    cuts = [cut_out(g.text) for g in known]
    chosen = [choose.randrange(len(known)) for _ in range(count)]
    pool = caption_pool(known)
    captions, places = (
        [choose.choice(pool[i]) for i in chosen],
        [place for place in map(placement, [rng] * 9 * count) if moderate(place)][:count],
    )
    true = [compose(cuts[i], **place) for i, place in zip(chosen, places, strict=True)]
    hints = [Image.fromarray(silhouette).convert("RGB") for _, silhouette in true]
    wanted = [filled(silhouette > 127) for _, silhouette in true]
    frozen = Frozen()
    with torch.no_grad():
        decoded = frozen.vae.decode(frozen.latents(np.stack([p for p, _ in true])) / frozen.vae.config.scaling_factor).sample
    through = [Image.fromarray(p) for p in ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]
    net = ControlNetModel.from_pretrained(ASSETS / "emoji-controlnet")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(EMOJI, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    results = {"the glyphs themselves, through the autoencoder": through}
    for scale in (0.0, 0.5, 1.0):
        drawn = []
        for start in tqdm(range(0, count, 10), desc=f"scale {scale:g}"):
            part = slice(start, min(start + 10, count))
            seeds = [torch.Generator().manual_seed(3000 + i) for i in range(part.start, part.stop)]
            drawn += pipe(captions[part], image=hints[part], controlnet_conditioning_scale=scale, generator=seeds, **SUITED).images
        results[f"scale {scale:g}"] = drawn
    galleries = [np.stack([blurred(Image.fromarray(compose(cut, **place)[0])) for cut in cuts]) for place in tqdm(places, desc="galleries")]
    table = {}
    for name, pictures in results.items():
        right = [[known[r].base == known[i].base for r in rank(p, g)[:5]] for p, g, i in zip(pictures, galleries, chosen, strict=True)]
        row = {"overlap": round(np.mean([overlap(a, made(p)) for a, p in zip(wanted, pictures, strict=True)]), 3)}
        table[name] = row | {"nearest": sum(r[0] for r in right) / count, "among five": sum(map(any, right)) / count}
    first = min(count, 24)
    rows = [one for group in zip(hints[:first], *(pictures[:first] for pictures in results.values()), strict=True) for one in group]
    labels = [label for caption in captions[:first] for label in ("wanted", "through the codec", "scale 0", "scale 0.5", caption)]
    sheet(rows, labels, WORK / "evaluation" / "control.png", columns=15)
    return table


def measure_lora(count: int) -> dict:
    known, choose = glyphs(), random.Random(0)
    chosen = [choose.randrange(len(known)) for _ in range(count)]
    captions = [choose.choice(caption_pool(known)[i]) for i in chosen]
    pipe = StableDiffusionPipeline.from_pretrained(EMOJI)
    pipe.set_progress_bar_config(disable=True)
    weights = load_file(ASSETS / "emoji-lora" / "pytorch_lora_weights.safetensors")
    layers = adapt(pipe.unet, RANK)
    for name, layer in layers.items():
        for part in (layer.lora_A, layer.lora_B):
            part.requires_grad_(False).weight.copy_(weights[f"unet.{name}.{'lora_A' if part is layer.lora_A else 'lora_B'}.weight"])
    plain = [render(g.text) for g in known]
    galleries = {"as they are": plain, "in blue": [delft(picture) for picture in plain]}
    table, shown = {}, []
    for scale in (0.0, 0.5, 1.0):
        for layer in layers.values():
            layer.scale = scale
        pictures = paint(pipe, captions, guidance=SUITED["guidance_scale"], steps=SUITED["num_inference_steps"], first_seed=4000)
        row = {}
        for kind, gallery in galleries.items():
            seen = np.stack([blurred(Image.fromarray(picture)) for picture in gallery])
            row[kind] = sum(known[rank(p, seen)[0]].base == known[i].base for p, i in zip(pictures, chosen, strict=True)) / count
        shades = [np.asarray(p.convert("RGB")) for p in pictures]
        row["colours"] = round(float(np.mean([np.abs(delft(p).astype(float) - p) for p in shades])), 1)
        table[f"scale {scale:g}"] = row
        shown.append(pictures[:20])
    rows = [p for group in zip(*shown, strict=True) for p in group]
    labels = [label for caption in captions[:20] for label in (caption, "scale 0.5", "scale 1")]
    sheet(rows, labels, WORK / "evaluation" / "lora.png", columns=12)
    return table


def measure_motion(count: int) -> dict:
    from darkroom import AnimateDiffPipeline, MotionAdapter

    known, choose = glyphs(), random.Random(0)
    chosen = [choose.randrange(len(known)) for _ in range(count)]
    captions = [choose.choice(caption_pool(known)[i]) for i in chosen]
    base = StableDiffusionPipeline.from_pretrained(EMOJI)
    pipe = AnimateDiffPipeline.from_pipe(base, motion_adapter=MotionAdapter.from_pretrained(ASSETS / "emoji-motion"))
    pipe.set_progress_bar_config(disable=True)
    gallery = np.stack([[blurred(Image.fromarray(frame)) for frame in turning(render(g.text))] for g in tqdm(known)])  # (N, F, pixels)
    nearest = hue = 0
    shown: list[Image.Image] = []
    for number, (i, caption) in enumerate(zip(tqdm(chosen), captions, strict=True)):
        frames = pipe(caption, num_frames=FRAMES, generator=torch.Generator().manual_seed(5000 + number), **SUITED).frames[0]
        for place, frame in enumerate(frames):
            nearest += known[rank(frame, gallery[:, place])[0]].base == known[i].base
            hue += np.abs(gallery[i, rank(frame, gallery[i])[0]] - gallery[i, place]).mean() < 0.002  # or its equal
        shown += frames if number < 12 else []
    sheet(shown, [c for c in captions[:12] for _ in range(FRAMES)], WORK / "evaluation" / "motion.png", columns=FRAMES)
    return {"frames": count * FRAMES, "nearest": nearest / count / FRAMES, "hue": hue / count / FRAMES}


MEASURES = {"control": measure_control, "lora": measure_lora, "motion": measure_motion}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    (WORK / "evaluation").mkdir(exist_ok=True, parents=True)
    table = MEASURES[args.what](args.count)
    (WORK / "evaluation" / f"{args.what}.json").write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
