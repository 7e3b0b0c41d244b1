"""Measure the bundled checkpoint: `python training/evaluate.py`. Fixed seeds, 25 steps, guidance 2.5.

A hundred captions are drawn from the trained ones. For each picture the glyphs, trained and held out, are ordered by the squared
distance of their slightly blurred pixels. Counted is whether the captioned glyph, or one that differs from it in skin tone alone, is the
nearest, or among the five nearest. Skin tones that were never shown must be met exactly, tone included, to count as nearest.
"""

from __future__ import annotations
import argparse
import json
import random
import time
from itertools import pairwise
from pathlib import Path
import numpy as np
import torch
from data import ALSO, SIZE, Glyph, caption_pool, glyphs, other_glyphs, render
from export import ASSET
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from train import WORK

SHOWN = (
    "dog face, cat face, fox, panda, lion, frog, unicorn, penguin, owl, butterfly, octopus, elephant, red apple, banana, watermelon, strawberry, "
    "pizza, hamburger, doughnut, birthday cake, hot beverage, red heart, fire, star, rainbow, snowman without snow, sun, cactus, tulip, sunflower, "
    "automobile, rocket, sailboat, bicycle, house, castle, soccer ball, guitar, trophy, wrapped gift, light bulb, key, crown, camera, grinning face, "
    "smiling face with sunglasses, face with tears of joy, robot, ghost, thumbs up, waving hand: medium skin tone, baby"
).split(", ")  # fmt: skip


def blurred(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(1)), dtype=np.float32).ravel() / 255


def rank(picture: Image.Image, gallery: np.ndarray) -> list[int]:
    """The glyphs of the gallery (N, pixels), nearest first."""
    return ((gallery - blurred(picture)) ** 2).sum(1).argsort(kind="stable").tolist()


def paint(pipe, captions: list[str], *, guidance: float, steps: int, first_seed: int = 0) -> list[Image.Image]:
    """One picture for each caption, each from its own seed."""
    pictures = []
    for start in range(0, len(captions), 10):
        part = captions[start : start + 10]
        seeds = [torch.Generator().manual_seed(first_seed + start + i) for i in range(len(part))]
        pictures += pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=seeds).images
    return pictures


def sheet(pictures: list[Image.Image], labels: list[str], path: Path, columns: int = 13) -> None:
    """Pictures at twice their size in rows, with what was asked for under each."""
    cell, line = 2 * SIZE, 24
    out = Image.new("RGB", (columns * cell, -(-len(pictures) // columns) * (cell + line)), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(11)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % columns * cell, i // columns * (cell + line)
        out.paste(picture.resize((cell, cell), Image.Resampling.LANCZOS), (x, y))
        words = label if len(label) <= 22 else label[:21] + "…"
        draw.text((x + cell / 2, y + cell + 2), words, fill="black", font=font, anchor="ma")
    out.save(path, optimize=True)


def score(pictures: list[Image.Image], wanted: list[Glyph], everything: list[Glyph], *, exact: bool) -> dict[str, int]:
    gallery = np.stack([blurred(Image.fromarray(render(g.text))) for g in everything])
    hits = {"count": len(wanted), "nearest": 0, "among five": 0}
    for picture, glyph in zip(pictures, wanted, strict=True):
        right = [(g == glyph if exact else g.base == glyph.base) for g in everything]
        order = rank(picture, gallery)
        hits["nearest"] += right[order[0]]
        hits["among five"] += any(right[i] for i in order[:5])
    return hits


def minutes_on_one_core() -> float:
    """What the training took, from its logs: the clock in them starts again when a training goes on."""
    total = 0.0
    for stage in ("vae", "unet"):
        clock = [json.loads(line)["seconds"] for line in open(WORK / f"{stage}.jsonl")]
        total += sum(max(0.0, b - a) for a, b in pairwise(clock))
    return total / 60


def write_card(folder: Path, result: dict, rows: str, pipe) -> None:
    """The model card beside the weights, from `card.md` and what was measured."""
    last = {s: json.loads(open(WORK / f"{s}.jsonl").readlines()[-1])["step"] for s in ("vae", "unet")}
    known = json.loads((folder / "captions.json").read_text("utf-8"))
    million = {n: f"{sum(p.numel() for p in getattr(pipe, n).parameters()) / 1e6:.2f}" for n in ("vae", "unet", "text_encoder")}
    card = (Path(__file__).parent / "card.md").read_text("utf-8")
    text = card.format(
        size=round(sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6, 1),
        glyphs=result["glyphs"], gallery=result["glyphs"] + len(glyphs(held_out=True)), others=len(other_glyphs()), also=ALSO.count(";") + 1,
        seconds=f"{result['seconds per image']:.1f}", steps=result["steps"], guidance=result["guidance"], table=rows,
        psnr=torch.load(WORK / "latents.pt", weights_only=True)["psnr"], folder="src/darkroom/assets/emoji",
        vae=million["vae"], unet=million["unet"], text=million["text_encoder"], vae_steps=last["vae"], unet_steps=last["unet"],
        exposures=round(32 * last["unet"] / result["glyphs"]), minutes=round(minutes_on_one_core()), captions=", ".join(known),
    )  # fmt: skip
    (folder / "README.md").write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ASSET)
    parser.add_argument("--out", type=Path, default=WORK / "evaluation")
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--count", type=int, default=100, help="captions drawn from the trained ones")
    parser.add_argument("--card", action="store_true", help="write the model card beside the weights")
    args = parser.parse_args()
    from darkroom import StableDiffusionPipeline

    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    args.out.mkdir(parents=True, exist_ok=True)
    trained, unseen = glyphs(), glyphs(held_out=True)
    options = {"guidance": args.guidance, "steps": args.steps}

    rng = random.Random(0)
    asked = rng.sample(list(zip(trained, caption_pool(trained), strict=True)), args.count)
    captions = [rng.choice(pool) for _, pool in asked]
    began = time.process_time()
    pictures = paint(pipe, captions, **options)
    seconds = (time.process_time() - began) / len(pictures)
    sheet(pictures, captions, args.out / "drawn.png")
    table = {"trained captions": score(pictures, [g for g, _ in asked], trained + unseen, exact=False)}

    twice = [g for g in unseen for _ in range(2)]
    pictures = paint(pipe, [g.name for g in twice], **options, first_seed=1000)
    sheet(pictures, [g.name for g in twice], args.out / "held-out.png", columns=8)
    table["held-out skin tones"] = score(pictures, twice, trained + unseen, exact=True)

    sheet(paint(pipe, SHOWN, **options, first_seed=2000), SHOWN, args.out / "contact-sheet.png")
    print(f"{'':22}{'count':>8}{'nearest':>9}{'among five':>12}")
    rows = []
    for name, row in table.items():
        share = [f"{100 * row[k] / row['count']:.0f}%" for k in ("nearest", "among five")]
        print(f"{name:22}{row['count']:>8}{share[0]:>9}{share[1]:>12}")
        rows.append(f"| {name} | {row['count']} | {share[0]} | {share[1]} |")
    print(f"{seconds:.2f} CPU-seconds an image")
    result = {**table, **options, "seconds per image": round(seconds, 3), "glyphs": len(trained)}
    (args.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    if args.card:
        write_card(args.model, result, "\n".join(rows), pipe)


if __name__ == "__main__":
    main()
