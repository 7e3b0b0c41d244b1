"""Make the pictures of the documentation again: `python scripts/pictures.py`, or some of them by name. One CPU core makes all in some minutes.

A contact sheet is a table in `SHEETS`: what its rows and columns set goes to the pipeline's call. The bundled checkpoint draws every cell.
"""

from __future__ import annotations
import math
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
import torch
import typer
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import darkroom  # noqa: E402
from darkroom.assets import EMOJI, EMOJI_CONTROLNET, EMOJI_LORA, EMOJI_MOTION, SUITED  # noqa: E402
from darkroom.cli import app  # noqa: E402
from darkroom.plots import chart, plot_schedulers  # noqa: E402

__all__ = ["OTHERS", "SHEETS", "Sheet", "make"]

SIDE = 64  # pixels of a picture
LINE = 13  # and of a line of text
Advance = Callable[[], object]  # the progress bar, by one
# `pipeline_class` and `scheduler` name classes, `options` are the scheduler's, `inputs` are functions whose results go to the call, and `show`
# names the input that is shown in place of the picture; the rest goes to the call
Settings = Mapping[str, Any]


class Sheet(NamedTuple):
    """Pictures in rows and columns, with their labels. A cell is made with `fixed`, then the settings of its row and of its column; where there
    is one row without a label, cells are `wrap` to a line, with their labels below. `side` is that of a cell in pixels.
    """

    columns: Mapping[str, Settings]
    rows: Mapping[str, Settings] = {"": {}}
    fixed: Settings = {}
    wrap: int = 0
    colours: int = 256
    side: int = SIDE


SHOWN = (
    "dog face, cat face, fox, panda, lion, frog, unicorn, penguin, owl, butterfly, octopus, elephant, red apple, banana, watermelon, strawberry, "
    "pizza, hamburger, doughnut, birthday cake, hot beverage, red heart, fire, star, rainbow, snowman without snow, sun, cactus, tulip, sunflower, "
    "automobile, rocket, sailboat, bicycle, house, castle, soccer ball, guitar, trophy, wrapped gift, light bulb, key, crown, camera, grinning face, "
    "smiling face with sunglasses, face with tears of joy, robot, ghost, thumbs up, waving hand: medium skin tone, baby"
).split(", ")  # fmt: skip


FREE = {"prompt": "", "guidance_scale": 1.0, "seed": 2}  # what the network draws when nothing is asked: the noise decides


def steps(numbers: Sequence[int], **asked: Settings) -> dict[str, Settings]:
    """Columns: each prompt with each number of steps."""
    return {f"{name}\n{n} steps": {**settings, "num_inference_steps": n} for name, settings in asked.items() for n in numbers}


def solver(name: str, **options: Any) -> Settings:
    return {"scheduler": f"{name}Scheduler", "options": options}


SOLVERS: dict[str, Settings] = {
    "DDIM": solver("DDIM"),
    "DDPM": solver("DDPM"),
    "PNDM": solver("PNDM", skip_prk_steps=True),
    "LMS": solver("LMSDiscrete"),
    "Euler": solver("EulerDiscrete"),
    "Euler ancestral": solver("EulerAncestralDiscrete"),
    "Heun, 2 calls": solver("HeunDiscrete"),
    "KDPM2, 2 calls": solver("KDPM2Discrete"),
    "DPM-Solver++ 2M": solver("DPMSolverMultistep"),
    "DPM-Solver++ 2M SDE": solver("DPMSolverMultistep", algorithm_type="sde-dpmsolver++"),
    "DEIS": solver("DEISMultistep"),
    "UniPC": solver("UniPCMultistep"),
}


Shape = tuple[str, Sequence[float], Any]  # a method of ImageDraw, its coordinates in 64ths of the picture, and the colour


def drawn(*shapes: Shape, side: int = SIDE, mode: str = "RGB") -> Image.Image:
    """A picture of simple shapes: coloured ones on white or, with mode "L", a mask."""
    fine = Image.new(mode, (4 * side, 4 * side), "white" if mode == "RGB" else "black")
    for kind, places, colour in shapes:
        options = {"width": side // 4} if kind == "line" else {}
        getattr(ImageDraw.Draw(fine), kind)([place * side / 16 for place in places], fill=colour, **options)
    return fine.resize((side, side), Image.Resampling.LANCZOS if mode == "RGB" else Image.Resampling.NEAREST)


APPLE: Sequence[Shape] = (
    ("ellipse", (8, 17, 56, 60), (220, 40, 30)),
    ("line", (32, 20, 38, 6), (80, 50, 20)),
    ("ellipse", (36, 3, 54, 12), (60, 150, 50)),
)
HOUSE: Sequence[Shape] = (
    ("rectangle", (15, 27, 50, 57), (240, 220, 170)),
    ("polygon", (10, 29, 32, 8, 55, 29), (190, 60, 40)),
    ("rectangle", (27, 40, 38, 57), (120, 70, 40)),
)
SMILE: Sequence[Shape] = (
    ("ellipse", (8, 8, 56, 56), (255, 205, 40)),
    ("ellipse", (20, 21, 26, 30), "black"),
    ("ellipse", (38, 21, 44, 30), "black"),
    ("line", (20, 39, 25, 44, 32, 46, 39, 44, 44, 39), "black"),
)


def between_prompts(first: str, second: str, share: float) -> torch.Tensor:
    """Embeddings on the line between those of two prompts, (1, M, d)."""
    pipe = pipeline("StableDiffusionPipeline")
    ends = pipe.encode_prompt([first, second], do_classifier_free_guidance=False)[0]
    return torch.lerp(ends[:1], ends[1:], share)


def between_seeds(first: int, second: int, share: float) -> torch.Tensor:
    """Noise on the arc between that of two seeds, (1, 4, 16, 16); on a line it would lose spread."""
    a, b = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (first, second))
    return math.cos(share * math.pi / 2) * a + math.sin(share * math.pi / 2) * b


def sketch(shapes: Sequence[Shape], prompt: str, **settings: Any) -> Settings:
    """Image to image from shapes."""
    return {"pipeline_class": "StableDiffusionImg2ImgPipeline", "prompt": prompt, "inputs": {"image": partial(drawn, *shapes)}, **settings}


@cache
def known(prompt: str) -> Image.Image:
    return paint(prompt=prompt)


def repainted(name: str, prompt: str, *places: float) -> Settings:
    """Inpainting of an emoji inside a rectangle."""
    inputs = {"image": partial(known, name), "mask_image": partial(drawn, ("rectangle", places, "white"), mode="L")}
    return {"pipeline_class": "StableDiffusionInpaintPipeline", "prompt": prompt, "inputs": inputs}


@cache
def four() -> Image.Image:
    """Four emoji in one picture, 128 x 128."""
    return darkroom.make_image_grid([known(name) for name in ("owl", "castle", "red apple", "automobile")], rows=2, cols=2)


def moved(name: str, size: float, angle: float, x: float, y: float) -> Image.Image:
    """The silhouette of an emoji, white on black: made smaller, turned (degrees, counterclockwise), and put there, in [0, 1] of the room left."""
    paper = ImageOps.expand(known(name).convert("L").point(lambda grey: 255 * (grey > 230)), 1, 255)
    ImageDraw.floodfill(paper, (0, 0), 128)  # what is not outside is the thing, white parts too
    shape = (
        paper.crop((1, 1, SIDE + 1, SIDE + 1))
        .point(lambda grey: 255 * (grey != 128))
        .resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC)
    )
    shape = shape.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    shape = shape.crop(shape.getbbox())
    shape = shape.resize((round(shape.width * size / 4), round(shape.height * size / 4)), Image.Resampling.LANCZOS)
    page = Image.new("L", (SIDE, SIDE))
    page.paste(shape, (round(x * (SIDE - shape.width)), round(y * (SIDE - shape.height))))
    return page.point(lambda grey: 255 * (grey > 127))


def steered(hint: Callable[[], Image.Image], prompt: str = "", **settings: Any) -> Settings:
    """Text to image inside a silhouette."""
    return {"pipeline_class": "StableDiffusionControlNetPipeline", "prompt": prompt, "inputs": {"image": hint}, **settings}


def shape(kind: str, *places: float) -> Settings:
    return steered(partial(drawn, (kind, places, "white"), mode="L"))


def pag(scale: float, layers: str) -> Settings:
    return {"guidance": darkroom.CFG(1.0, terms=[darkroom.PAG(scale, layers=layers)])}


def sag(scale: float) -> Settings:
    return {"guidance": darkroom.CFG(1.0, terms=[darkroom.SAG(scale)])}


GUIDANCES: dict[str, Settings] = {  # more than suits the network, and what tames it
    "CFG 2.5": {"guidance": darkroom.CFG(2.5)},
    "CFG 10": {"guidance": darkroom.CFG(10.0)},
    "rescale 0.7": {"guidance": darkroom.CFG(10.0, rescale=0.7)},
    "first half": {"guidance": darkroom.CFG(10.0, stop=0.5)},
    "second half": {"guidance": darkroom.CFG(10.0, start=0.5)},
    "falling": {"guidance": darkroom.CFG(lambda t: t / 100)},
    "APG": {"guidance": darkroom.APG(10.0, norm_threshold=4.0, eta=0.0)},
    "Dynamic Thresholding": {"guidance": darkroom.DynamicThresholding(10.0, mimic_scale=2.5)},
    "Magnitude Aware": {"guidance": darkroom.MagnitudeAware(10.0)},
    "CFGZeroStar": {"guidance": darkroom.CFGZeroStar(10.0, zero_init_steps=0)},
    "TCFG": {"guidance": darkroom.TCFG(10.0)},
    "FDG": {"guidance": darkroom.FDG((10.0, 2.5))},
}
TERMS: dict[str, Settings] = {
    "no term": {"guidance": darkroom.CFG(1.0)},
    "PAG 1": {"guidance": darkroom.CFG(1.0, terms=[darkroom.PAG(1.0)])},
    "PAG 3": {"guidance": darkroom.CFG(1.0, terms=[darkroom.PAG(3.0)])},
    "SAG 0.75": {"guidance": darkroom.CFG(1.0, terms=[darkroom.SAG(0.75)])},
    "SEG 1": {"guidance": darkroom.CFG(1.0, terms=[darkroom.SEG(1.0)])},
    "SEG 3": {"guidance": darkroom.CFG(1.0, terms=[darkroom.SEG(3.0)])},
    "SLG 2.8": {"guidance": darkroom.CFG(1.0, terms=[darkroom.SLG(2.8)])},
    "SLG 1, always": {"guidance": darkroom.CFG(1.0, terms=[darkroom.SLG(1.0, start=0.0, stop=1.0)])},
    "AutoGuidance 1": {"guidance": darkroom.CFG(1.0, terms=[darkroom.AutoGuidance(1.0, dropout=0.1)])},
    "NAG 5": {"guidance": darkroom.CFG(1.0, terms=[darkroom.NAG(5.0)])},
}
PLACED: dict[str, Settings] = {
    "red apple": steered(partial(moved, "red apple", 0.7, -20, 0.1, 0.9), "red apple"),
    "automobile": steered(partial(moved, "automobile", 0.9, 25, 0.5, 0.5), "automobile"),
    "green heart": steered(partial(moved, "green heart", 0.75, -30, 1.0, 0.0), "green heart"),
    "penguin": steered(partial(moved, "penguin", 0.75, 0, 1.0, 1.0), "penguin"),
}
SHEETS: dict[str, Sheet] = {
    "emoji": Sheet({name: {"prompt": name, "seed": 2000 + place} for place, name in enumerate(SHOWN)}, wrap=13),
    "schedulers": Sheet(steps((5, 10, 25), owl={"prompt": "owl"}, castle={"prompt": "castle"}, unasked=FREE), SOLVERS, colours=64),
    "spacings": Sheet(
        steps((4, 6, 8, 12), owl={"prompt": "owl"}, unasked=FREE),
        {
            "leading": solver("DPMSolverMultistep", timestep_spacing="leading"),
            "linspace": solver("DPMSolverMultistep", timestep_spacing="linspace"),
            "trailing": solver("DPMSolverMultistep", timestep_spacing="trailing"),
            "Karras sigmas": solver("DPMSolverMultistep", use_karras_sigmas=True),
            "exponential sigmas": solver("DPMSolverMultistep", use_exponential_sigmas=True),
            "beta sigmas": solver("DPMSolverMultistep", use_beta_sigmas=True),
        },
    ),
    "noise": Sheet(
        {f"{n} steps": {"num_inference_steps": n} for n in (10, 20, 40, 80, 160)},
        {
            "DDIM": solver("DDIM"),
            "DDIM, eta=1": solver("DDIM") | {"eta": 1.0},
            "Euler": solver("EulerDiscrete"),
            "Euler ancestral": solver("EulerAncestralDiscrete"),
            "DPM-Solver++ 2M": solver("DPMSolverMultistep"),
            "DPM-Solver++ 2M SDE": solver("DPMSolverMultistep", algorithm_type="sde-dpmsolver++"),
        },
        FREE,
    ),
    "mistakes": Sheet(
        {
            "as trained": {},
            "predicts epsilon": solver("DDIM", prediction_type="epsilon"),
            "predicts sample": solver("DDIM", prediction_type="sample"),
            "clip_sample": solver("DDIM", clip_sample=True),
            "guidance 12": {"guidance_scale": 12.0},
        },
        {"owl": {"prompt": "owl"}, "castle": {"prompt": "castle"}},
    ),
    "text_guidance": Sheet(
        {f"{scale:g}": {"guidance_scale": scale} for scale in (1.0, 1.5, 2.5, 4.0, 7.5, 12.0)},
        {name: {"prompt": name} for name in ("castle", "red apple", "a cat on a bicycle")},
    ),
    "text_seeds": Sheet(
        {f"seed {seed}": {"seed": seed} for seed in range(7)}, {"owl": {"prompt": "owl"}, "unasked": {"prompt": "", "guidance_scale": 1.0}}
    ),
    "text_sizes": Sheet(
        {
            f"{width} x {height}": {"width": width, "height": height}
            for width, height in ((32, 32), (64, 64), (96, 64), (64, 96), (128, 128))
        },
        {name: {"prompt": name} for name in ("owl", "automobile")},
        side=128,
        colours=128,
    ),
    "text_mixed": Sheet(
        {f"{n}/6": {"share": n / 6} for n in range(7)},
        {
            "tangerine to lemon": {"inputs": {"prompt_embeds": partial(between_prompts, "tangerine", "lemon")}},
            "owl to penguin": {"inputs": {"prompt_embeds": partial(between_prompts, "owl", "penguin")}},
            "seed 2 to 7, unasked": {**FREE, "inputs": {"latents": partial(between_seeds, 2, 7)}},
        },
    ),
    "image_strength": Sheet(
        {"picture": {"show": "image"}, **{f"{strength:g}": {"strength": strength} for strength in (0.1, 0.2, 0.5, 0.8)}},
        {
            "red apple": sketch(APPLE, "red apple"),
            "tomato": sketch(APPLE, "tomato"),
            "castle": sketch(HOUSE, "castle"),
            "smiling face with sunglasses": sketch(SMILE, "smiling face with sunglasses"),
            "unasked": sketch(SMILE, "", guidance_scale=1.0),
        },
    ),
    "inpainting": Sheet(
        {
            "picture": {"show": "image"},
            "mask": {"show": "mask_image"},
            **{f"strength {strength:g}": {"strength": strength} for strength in (1.0, 0.2, 0.1)},
        },
        {
            "smiling face with sunglasses": repainted("grinning face", "smiling face with sunglasses", 4, 14, 60, 35),
            "face with medical mask": repainted("grinning face", "face with medical mask", 0, 32, 64, 64),
            "cat face": repainted("dog face", "cat face", 0, 0, 64, 32),
            "crescent moon": repainted("sun", "crescent moon", 32, 0, 64, 64),
            "green heart": repainted("red heart", "green heart", 32, 0, 64, 64),
        },
    ),
    "inpainting_crop": Sheet(
        {
            "picture": {"show": "image"},
            "mask": {"show": "mask_image"},
            "None": {},
            "0": {"padding_mask_crop": 0},
            "4": {"padding_mask_crop": 4},
            "32": {"padding_mask_crop": 32},
        },
        fixed={
            "pipeline_class": "StableDiffusionInpaintPipeline",
            "prompt": "bicycle",
            "inputs": {"image": four, "mask_image": partial(drawn, ("rectangle", (34, 34, 62, 62), "white"), side=128, mode="L")},
        },
        side=128,
    ),
    "pag": Sheet(
        {
            "off": {},
            "mid, 3": pag(3.0, "mid"),
            "mid, 10": pag(10.0, "mid"),
            "down, 1": pag(1.0, "down"),
            "down, 3": pag(3.0, "down"),
            "up, 1": pag(1.0, "up"),
            "up, 3": pag(3.0, "up"),
        },
        {**{f"unasked, seed {seed}": {**FREE, "seed": seed} for seed in (2, 5, 7)}, "castle": {"prompt": "castle", "guidance_scale": 1.0}},
    ),
    "sag": Sheet(
        {"off": {}, **{f"{scale:g}": sag(scale) for scale in (0.5, 1.0, 2.0, 4.0)}},
        {**{f"unasked, seed {seed}": {**FREE, "seed": seed} for seed in (2, 6, 7)}, "castle": {"prompt": "castle", "guidance_scale": 1.0}},
    ),
    "control_scale": Sheet(
        {"shape": {"show": "image"}, **{f"{scale:g}": {"controlnet_conditioning_scale": scale} for scale in (0.0, 0.25, 0.5, 1.0)}}, PLACED
    ),
    "control_prompts": Sheet(
        {
            "shape": {"show": "image"},
            **{name: {"prompt": name} for name in ("red apple", "green heart", "lemon", "owl", "pizza", "castle", "octopus")},
        },
        {
            "a disc": shape("ellipse", 4, 20, 42, 58),
            "an ellipse": shape("ellipse", 2, 18, 62, 46),
            "a bar": shape("rectangle", 22, 4, 42, 60),
            "a triangle": shape("polygon", 32, 4, 60, 58, 4, 58),
        },
    ),
    "control_window": Sheet(
        {
            "shape": {"show": "image"},
            "none": {"controlnet_conditioning_scale": 0.0},
            **{f"0 to {end:g}": {"control_guidance_end": end} for end in (0.2, 0.4)},
            "all": {},
            **{f"{start:g} to 1": {"control_guidance_start": start} for start in (0.2, 0.4)},
        },
        {name: PLACED[name] for name in ("red apple", "automobile")},
    ),
    "control_guess": Sheet(
        {
            "shape": {"show": "image"},
            "with a prompt": {},
            "without": {"prompt": ""},
            "guessed, 2.5": {"prompt": "", "guess_mode": True},
            "guessed, 5": {"prompt": "", "guess_mode": True, "guidance_scale": 5.0},
        },
        {name: PLACED[name] for name in ("red apple", "automobile")},
    ),
    "lora": Sheet(
        {
            "without": {},
            **{f"{scale:g}": {"lora": True, "cross_attention_kwargs": {"scale": scale}} for scale in (0.25, 0.5, 0.75, 1.0, 1.5)},
        },
        {name: {"prompt": name} for name in ("owl", "castle", "automobile", "red heart", "pizza")},
    ),
    "guidance": Sheet(GUIDANCES, {name: {"prompt": name} for name in ("owl", "castle", "rocket")}),
    "terms": Sheet(TERMS, {"owl": {"prompt": "owl"}, "castle": {"prompt": "castle"}, "unasked": FREE}),
}


@cache
def pipeline(name: str, lora: bool = False) -> Any:
    """A pipeline of this class over the bundled checkpoint; all share its weights."""
    if lora:
        pipe = getattr(darkroom, name).from_pipe(pipeline(name))
        pipe.load_lora_weights(EMOJI_LORA)
        return pipe
    if name != "StableDiffusionPipeline":
        parts = {"controlnet": darkroom.ControlNetModel.from_pretrained(EMOJI_CONTROLNET)} if "ControlNet" in name else {}
        return getattr(darkroom, name).from_pipe(pipeline("StableDiffusionPipeline"), **parts)
    pipe = darkroom.StableDiffusionPipeline.from_pretrained(EMOJI)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def trained() -> Any:
    """The configuration that the checkpoint came with."""
    return pipeline("StableDiffusionPipeline").scheduler.config


def paint(
    *,
    pipeline_class: str = "StableDiffusionPipeline",
    lora: bool = False,
    scheduler: str = "DDIMScheduler",
    options: Settings | None = None,
    seed: int = 0,
    inputs: Mapping[str, Callable[..., Any]] | None = None,
    share: float | None = None,
    show: str = "",
    **call: Any,
) -> Any:
    """One picture, or the latents with `output_type="latent"`, (1, 4, h, w). `share` goes to the functions that make the inputs."""
    made = {name: make() if share is None else make(share) for name, make in (inputs or {}).items()}
    if show:
        return made[show]
    pipe = pipeline(pipeline_class, lora)
    pipe.scheduler = getattr(darkroom, scheduler).from_config(trained(), **(options or {}))
    return pipe(**SUITED | call | made, generator=torch.Generator().manual_seed(seed)).images[0]


def wrapped(label: str) -> str:
    return "\n".join(part for line in label.split("\n") for part in textwrap.wrap(line, 13))


def draw_sheet(sheet: Sheet, advance: Advance) -> Image.Image:
    """The sheet as one picture, in as few colours as it may have."""
    font = ImageFont.load_default(LINE - 3)
    heads = [wrapped(label) for label in sheet.columns]
    cell, head = sheet.side + 4, 6 + LINE * max(label.count("\n") + 1 for label in heads)
    across, left = sheet.wrap or len(heads), 8 + max(int(font.getlength(label)) for label in sheet.rows)
    down = -(-len(heads) // across) * (cell + head) if sheet.wrap else len(sheet.rows) * cell + head
    canvas = Image.new("RGB", (left + across * cell, down), "white")
    text = partial(ImageDraw.Draw(canvas).multiline_text, fill="black", font=font, align="center", spacing=2)
    for row, (row_label, of_row) in enumerate(sheet.rows.items()):
        top = head + row * cell
        text((left - 6, top + sheet.side / 2), row_label, anchor="rm")
        for column, of_column in enumerate(sheet.columns.values()):
            x, y = left + column % across * cell + 2, column // across * (cell + head) if sheet.wrap else top
            canvas.paste(paint(**{**sheet.fixed, **of_row, **of_column}), (x, y))
            if "show" in of_column:  # a white mask on a white page has no edge
                ImageDraw.Draw(canvas).rectangle((x - 1, y - 1, x + sheet.side, y + sheet.side), outline="gray")
            advance()
            if sheet.wrap:
                text((x + sheet.side / 2, y + sheet.side + 2), heads[column], anchor="ma")
            elif not row:
                text((x + sheet.side / 2, head - 4), heads[column], anchor="md")
    return reduced(canvas, sheet.colours)


def reduced(picture: Image.Image, colours: int) -> Image.Image:
    return picture.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)


def heart(folder: Path, advance: Advance) -> None:
    app(["generate", "red heart", "--seed", "0", "--quiet", "--output", str(folder / "heart.png")], standalone_mode=False)
    advance()


def plots(folder: Path, advance: Advance) -> None:
    with tempfile.TemporaryDirectory() as made:
        for file in plot_schedulers(made):
            if file.stem in ("noise_schedules", "steps_spacings"):
                with Image.open(file) as picture:
                    reduced(picture.convert("RGB"), 32).save(folder / file.name, optimize=True)
                advance()


def convergence(folder: Path, advance: Advance) -> None:
    """How far the latents of solvers without noise are from those of very many steps, for the same calls of the network. All have the same
    noise levels, Karras'. Their limits differ a little, by how a noise level is told to the network (timesteps that are whole, or not) and where
    the run ends; so each is measured against a solver of second order that has the same.
    """
    asked = [{"output_type": "latent", **settings} for settings in ({"prompt": "owl"}, {"prompt": "castle"}, {"prompt": "rocket"}, FREE)]
    spaced, calls = {"use_karras_sigmas": True}, (6, 8, 12, 16, 24, 32, 48)
    limits = {"DPM-Solver++ 2M": "UniPC", "UniPC": "UniPC", "DEIS": "DEIS"}  # "Heun, 2 calls" of the others

    @cache
    def latents(label: str, calls: int) -> list[torch.Tensor]:
        """The latents of all that is asked, by this solver."""
        rule = {"scheduler": SOLVERS[label]["scheduler"], "options": {**SOLVERS[label]["options"], **spaced}}
        return [paint(**rule, num_inference_steps=calls // (2 if "2 calls" in label else 1), **settings) for settings in asked]

    with chart(folder / "convergence.png", 5, "Distance from the exact latents, for the same calls of the network") as axes:
        for label in SOLVERS:
            if label in ("DDIM", "DDPM", "PNDM", "Euler ancestral", "DPM-Solver++ 2M SDE"):
                continue
            exact, errors = latents(limits.get(label, "Heun, 2 calls"), 240), []
            for made in (latents(label, n) for n in calls):
                errors.append(sum((a - b).pow(2).mean().sqrt().item() for a, b in zip(made, exact)) / len(exact))
                advance()
            axes.plot(calls, errors, ".-", label=label.partition(",")[0])
        axes.set(xscale="log", yscale="log", xlabel="calls of the network", ylabel="root of the mean square")
        axes.set_xticks([], minor=True)
        axes.set_xticks(calls, labels=map(str, calls))
        axes.legend(fontsize="small", ncols=2)
    small = reduced(Image.open(folder / "convergence.png").convert("RGB"), 64)
    small.save(folder / "convergence.png", optimize=True)


def video(folder: Path, advance: Advance) -> None:
    """Six emoji whose colours turn, side by side."""
    adapter = darkroom.MotionAdapter.from_pretrained(EMOJI_MOTION)
    pipe = darkroom.AnimateDiffPipeline.from_pipe(pipeline("StableDiffusionPipeline"), motion_adapter=adapter)
    shown = []
    for name in ("fox", "automobile", "red heart", "owl", "rocket", "castle"):
        shown.append(pipe(name, num_frames=8, generator=torch.Generator().manual_seed(0), **SUITED).frames[0])
        advance()
    rows = [darkroom.make_image_grid(list(frames), rows=1, cols=len(frames)) for frames in zip(*shown, strict=True)]
    first, *rest = (reduced(row, 64) for row in rows)
    first.save(folder / "video.gif", save_all=True, append_images=rest, duration=100, loop=0, optimize=True)


OTHERS: dict[str, tuple[Callable[[Path, Advance], None], int]] = {  # what makes them, and how often the bar advances
    "convergence": (convergence, 49),
    "heart": (heart, 1),
    "plots": (plots, 2),
    "video": (video, 6),
}


def make(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join([*SHEETS, *OTHERS])}.", show_default="all")] = None,
    folder: Annotated[Path, typer.Option(help="Where they go.")] = ROOT / "docs/images",
) -> None:
    """Make the pictures of the documentation again."""
    wanted = names or [*SHEETS, *OTHERS]
    if unknown := {*wanted} - {*SHEETS, *OTHERS}:
        raise typer.BadParameter(f"no such picture: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    cells = sum(len(SHEETS[name].rows) * len(SHEETS[name].columns) if name in SHEETS else OTHERS[name][1] for name in wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=cells, unit="picture") as bar:
        for name in wanted:
            bar.set_description(name)
            if name in SHEETS:
                draw_sheet(SHEETS[name], bar.update).save(folder / f"{name}.png", optimize=True)
            else:
                OTHERS[name][0](folder, bar.update)


if __name__ == "__main__":
    typer.run(make)
