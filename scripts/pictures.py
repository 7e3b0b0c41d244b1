"""Make the pictures of the documentation again: `python scripts/pictures.py`, or some of them by name. One CPU core makes all in some minutes.

A contact sheet is a table in `SHEETS`: what its rows and columns set goes to the pipeline's call. The bundled checkpoint draws every cell.
"""

from __future__ import annotations
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import darkroom  # noqa: E402
from darkroom.assets import EMOJI, SUITED  # noqa: E402
from darkroom.cli import app  # noqa: E402
from darkroom.plots import chart, plot_schedulers  # noqa: E402

__all__ = ["OTHERS", "SHEETS", "Sheet", "make"]

SIDE = 64  # pixels of a picture
LINE = 13  # and of a line of text
Advance = Callable[[], object]  # the progress bar, by one
Settings = Mapping[str, Any]  # `pipeline_class` and `scheduler` name classes, `options` are the scheduler's; the rest goes to the call


class Sheet(NamedTuple):
    """Pictures in rows and columns, with their labels. A cell is made with `fixed`, then the settings of its row and of its column; where there
    is one row without a label, cells are `wrap` to a line, with their labels below.
    """

    columns: Mapping[str, Settings]
    rows: Mapping[str, Settings] = {"": {}}
    fixed: Settings = {}
    wrap: int = 0
    colours: int = 256


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
    "guidance": Sheet(GUIDANCES, {name: {"prompt": name} for name in ("owl", "castle", "rocket")}),
    "terms": Sheet(TERMS, {"owl": {"prompt": "owl"}, "castle": {"prompt": "castle"}, "unasked": FREE}),
}


@cache
def pipeline(name: str) -> Any:
    """A pipeline of this class over the bundled checkpoint; all share its weights."""
    if name != "StableDiffusionPipeline":
        return getattr(darkroom, name).from_pipe(pipeline("StableDiffusionPipeline"))
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
    scheduler: str = "DDIMScheduler",
    options: Settings | None = None,
    seed: int = 0,
    **call: Any,
) -> Any:
    """One picture, or the latents with `output_type="latent"`, (1, 4, h, w)."""
    pipe = pipeline(pipeline_class)
    pipe.scheduler = getattr(darkroom, scheduler).from_config(trained(), **(options or {}))
    return pipe(**SUITED | call, generator=torch.Generator().manual_seed(seed)).images[0]


def wrapped(label: str) -> str:
    return "\n".join(part for line in label.split("\n") for part in textwrap.wrap(line, 13))


def draw_sheet(sheet: Sheet, advance: Advance) -> Image.Image:
    """The sheet as one picture, in as few colours as it may have."""
    font = ImageFont.load_default(LINE - 3)
    heads = [wrapped(label) for label in sheet.columns]
    cell, head = SIDE + 4, 6 + LINE * max(label.count("\n") + 1 for label in heads)
    across, left = sheet.wrap or len(heads), 8 + max(int(font.getlength(label)) for label in sheet.rows)
    down = -(-len(heads) // across) * (cell + head) if sheet.wrap else len(sheet.rows) * cell + head
    canvas = Image.new("RGB", (left + across * cell, down), "white")
    text = partial(ImageDraw.Draw(canvas).multiline_text, fill="black", font=font, align="center", spacing=2)
    for row, (row_label, of_row) in enumerate(sheet.rows.items()):
        top = head + row * cell
        text((left - 6, top + SIDE / 2), row_label, anchor="rm")
        for column, of_column in enumerate(sheet.columns.values()):
            x, y = left + column % across * cell + 2, column // across * (cell + head) if sheet.wrap else top
            canvas.paste(paint(**{**sheet.fixed, **of_row, **of_column}), (x, y))
            advance()
            if sheet.wrap:
                text((x + SIDE / 2, y + SIDE + 2), heads[column], anchor="ma")
            elif not row:
                text((x + SIDE / 2, head - 4), heads[column], anchor="md")
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


OTHERS: dict[str, tuple[Callable[[Path, Advance], None], int]] = {  # what makes them, and how often the bar advances
    "convergence": (convergence, 49),
    "heart": (heart, 1),
    "plots": (plots, 2),
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
