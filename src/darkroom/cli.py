"""The command line: `darkroom generate` makes pictures, `show` tells how one was made, `inspect` and `pull` look at and fetch checkpoints."""

from __future__ import annotations
import ast
import difflib
import functools
import itertools
import json
import os
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from typer import Argument, Exit, Option, Typer, echo
from . import __version__
from .assets import EMOJI, SUITED
from .errors import DarkroomError, InputError

__all__ = ["app", "main"]

app = Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@functools.cache
def _declared() -> dict[str, str]:
    """What each argument of a call means, by name. Read from the source: importing the fields would import torch."""
    here, texts = Path(__file__).parent, {}
    for file in ("family", "families/stable_diffusion", "core/tasks/text2image", "core/tasks/image2image", "core/tasks/inpaint"):
        for node in ast.walk(ast.parse((here / f"{file}.py").read_text("utf-8"))):
            match node:
                case ast.AnnAssign(ast.Name(name), _, ast.Call(ast.Name("field"), [ast.Constant(text), *_])):
                    texts.setdefault(name, re.sub(r"(; a list|: PIL|\. PIL).*", ".", text))  # kinds that a shell does not have
    return texts


def _option(argument: str, flag: str, **settings: Any) -> Any:
    return Option(flag, help=_declared()[argument], show_default=False, **settings)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"darkroom {__version__}")
        raise Exit


@app.callback()
def _root(version: Annotated[bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Make pictures with open diffusion models."""


@app.command()
def generate(
    prompt: Annotated[str | None, Argument(help=_declared()["prompt"], show_default=False)] = None,
    model: Annotated[str, Option(help="Checkpoint: a folder or a hub id.", show_default="the bundled one")] = EMOJI,
    steps: Annotated[int | None, _option("num_inference_steps", "--steps")] = None,
    guidance: Annotated[float | None, _option("guidance_scale", "--guidance")] = None,
    negative: Annotated[str | None, _option("negative_prompt", "--negative")] = None,
    seed: Annotated[int | None, Option(help="Makes a picture repeatable.", show_default="random")] = None,
    size: Annotated[str | None, Option(metavar="WxH", help="Pixels; one number for both sides.")] = None,
    scheduler: Annotated[str | None, Option(help="Such as euler, ddim or dpmsolvermultistep.")] = None,
    num: Annotated[int, Option(min=1, help="Pictures, with the seeds from SEED on.")] = 1,
    image: Annotated[str | None, _option("image", "--image", metavar="FILE")] = None,
    mask: Annotated[str | None, _option("mask_image", "--mask", metavar="FILE")] = None,
    strength: Annotated[float | None, _option("strength", "--strength")] = None,
    dtype: Annotated[str, Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str | None, Option(help="Where to compute.", show_default="cuda if there is one, else cpu")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="PNG to write, over another too; else the next free picture.png.")] = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress bar and no hints.")] = False,
) -> None:
    """Make pictures from a prompt, an image, or an image and a mask. Each file remembers how it was made: see `show`."""
    from .utils import load_image

    if quiet or not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported, which is yet to come
    files, (width, height) = _targets(output, num), _size(size)
    if model == EMOJI and prompt and not quiet and (hint := _hint(prompt)):
        echo(hint, err=True)
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    if not 0 <= seed <= 2**63 - num:
        raise InputError("A seed out of range.", where="--seed", got=seed, expected="0 to 2^63 - 1")
    pipe, generator = _load(model, dtype, device, scheduler)
    given = dict(prompt=prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
    given |= dict(strength=strength, image=image, mask_image=mask)
    given = (SUITED if model == EMOJI else {}) | {name: value for name, value in given.items() if value is not None}
    given |= {name: load_image(given[name]) for name in ("image", "mask_image") if name in given}
    for number in range(seed, seed + num):  # one by one: a picture does not depend on how many are made with it
        made, file = pipe(**given, generator=generator.manual_seed(number)).images[0], next(files)
        _save(made, file, _record(pipe, given, model, made, number))
        echo(f"{file} (seed {number})")


@app.command()
def show(
    file: Annotated[Path, Argument(help="A picture that darkroom made.", show_default=False)],
    as_json: Annotated[bool, Option("--json", help="As a JSON object.")] = False,
) -> None:
    """Tell how a picture was made: prompt, seed, scheduler and settings."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            record = {name: str(value) for name, value in getattr(picture, "text", {}).items()}
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError("No picture that can be read.", where=file, got=str(error), expected="a PNG") from None
    if "darkroom" not in record:
        raise InputError("This picture does not say how it was made.", where=file, expected="a PNG that darkroom made")
    lines = (f"{name + ':':<11}{value}" for name, value in record.items())
    echo(json.dumps(record, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


@app.command()
def inspect(
    model: Annotated[str, Argument(help="A folder or a hub id.", show_default=False)],
    dtype: Annotated[str | None, Option(help="Compute memory for float32, float16 or bfloat16.", show_default="as stored")] = None,
    size: Annotated[str | None, Option(metavar="WxH", help="Of the picture, in pixels.", show_default="what it was trained for")] = None,
    variant: Annotated[str | None, Option(help="Such as fp16; auto takes what suits the dtype.")] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub repository.")] = None,
    as_json: Annotated[bool, Option("--json", help="As a JSON object, sizes in bytes.")] = False,
) -> None:
    """Tell what a checkpoint is made of and what it needs. Of a hub repository only configurations and headers are fetched."""
    import torch
    from .checkpoints.inspection import inspect_checkpoint

    width, height = _size(size)
    cast = None if dtype is None else getattr(torch, _dtype(dtype))
    found = inspect_checkpoint(model, dtype=cast, height=height, width=width, variant=variant, revision=revision)
    if as_json:
        echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title, notes = str(found).partition("\n")[0], str(found).split("\n")[2 + len(found.parts) :]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("component", "class", "parameters", "stored as", "weights", f"in {found.dtype}"):
        table.add_column(name, no_wrap=True, overflow="ignore")
    for row in found.rows():
        table.add_row(*row)
    Console(highlight=False, width=150).print(title, table, "\n".join(notes), sep="\n")  # of its own width, whatever the terminal's


@app.command()
def pull(
    model: Annotated[str, Argument(help="A hub id.", show_default=False)],
    variant: Annotated[str | None, Option(help="Such as fp16; auto takes what suits the dtype.")] = None,
    revision: Annotated[str | None, Option(help="Branch, tag or commit.")] = None,
    check: Annotated[bool, Option("--check", help="Only say whether the hub has a newer commit than the cache.")] = False,
) -> None:
    """Fetch a checkpoint into the cache, so that it loads without a connection."""
    from .checkpoints.hub import fetch_pipeline, newer_commit

    if check:
        newer = newer_commit(model, revision=revision)
        echo(f"{model}: the hub has a newer commit, {newer}" if newer else f"{model}: up to date")
    else:
        echo(fetch_pipeline(model, variant=variant, revision=revision)[0])


@app.command()
def pipelines() -> None:
    """List the pipeline classes: family of checkpoints, task, terms of guidance, control."""
    from .auto import PipelineRow, pipelines

    rows = [PipelineRow(*PipelineRow._fields), *pipelines()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    echo("\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows))


@app.command()
def schedulers(
    plot: Annotated[Path | None, Option(metavar="DIR", help="Draw noise schedules and the placement of steps into this folder.")] = None,
) -> None:
    """List the schedulers: what they sample, order, evaluations per step, whether they draw noise, and where they come from."""
    from .plots import plot_schedulers, scheduler_table

    echo("\n".join(scheduler_table() if plot is None else map(str, plot_schedulers(plot))))


def main(args: Sequence[str] | None = None) -> None:
    """The program. Exit codes: 0, 2 for arguments and files that cannot be used, 130 when interrupted."""
    try:
        app(args, prog_name="darkroom")
    except DarkroomError as error:
        echo(f"darkroom: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:  # before a command has begun; Typer sees to the rest
        sys.exit(130)


def _size(size: str | None) -> tuple[int | None, int | None]:
    """(width, height)"""
    if size is None:
        return None, None
    if not (found := re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size.strip().lower())):
        raise InputError("A size that cannot be read.", where="--size", got=size, expected="such as 64 or 96x64 (pixels)")
    return int(found[1]), int(found[2] or found[1])


def _targets(output: Path | None, num: int) -> Iterator[Path]:
    """The files to write. One that was named is overwritten; without a name, the next that does not exist."""
    base = output or Path("picture.png")
    base = base if base.suffix else base.with_suffix(".png")
    if base.suffix.lower() != ".png":
        raise InputError("Pictures are written as PNG.", where="--output", got=base.name, expected="a name with .png")
    if base.is_dir() or not base.parent.is_dir():
        raise InputError("No place for a file.", where="--output", got=str(base), expected="a file in an existing folder")
    numbered = (base.with_stem(f"{base.stem}-{i}") for i in itertools.count(1 if num > 1 else 2))
    files = numbered if num > 1 else itertools.chain([base], numbered)
    return files if output else (file for file in files if not file.exists())


def _dtype(name: str) -> str:
    if name not in (names := ("float32", "float16", "bfloat16")):
        raise InputError("No such dtype.", where="--dtype", got=name, expected=", ".join(names))
    return name


def _plain(name: str) -> str:
    """EulerDiscreteScheduler, euler-discrete and Euler are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("scheduler").removesuffix("discrete")


def _load(model: str, dtype: str, device: str | None, scheduler: str | None) -> tuple[Any, Any]:
    """The pipeline, and the generator of its noise: on the CPU, so that a seed means the same on every device."""
    import torch
    from .pipeline import DiffusionPipeline

    try:
        place = torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without that kind of device
        raise InputError("No such device.", where="--device", got=f"{device}: {error}", expected="cpu or cuda") from None
    pipe = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, _dtype(dtype)))
    if scheduler is not None:
        kinds = {_plain(kind.__name__): kind for kind in pipe.scheduler.compatibles}
        if (kind := kinds.get(_plain(scheduler))) is None:
            raise InputError("No scheduler for this model.", where="--scheduler", got=scheduler, expected=", ".join(kinds))
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe.to(place), torch.Generator("cpu")


def _hint(prompt: str) -> str | None:
    """The bundled checkpoint draws what it was trained on: a remark for prompts that are far from that."""
    known = json.loads((Path(EMOJI) / "captions.json").read_text("utf-8"))
    by_length = sorted({*known, *itertools.chain(*known.values())}, key=lambda caption: (-len(caption), caption))
    captions = {frozenset(_words(c)): c for c in by_length}  # the shortest of those that say the same
    words = _words(prompt.lower())
    shares = {c: len(words & own) / len(words | own) for own, c in captions.items() if own}  # of words in common
    if not words or max(shares.values()) > 0.6:
        return None
    alike = difflib.get_close_matches(prompt.lower(), shares, n=2, cutoff=0.75)  # in spelling
    related = [c for c in sorted(shares, key=lambda caption: -shares[caption]) if shares[c] > 0]
    names = ", ".join(f'"{c}"' for c in list(dict.fromkeys([*alike, *related]))[:3])
    return "The bundled checkpoint knows emoji only" + (f"; nearest to this prompt: {names}." if names else ".")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text)) - {"a", "an", "and", "at", "emoji", "for", "in", "of", "on", "the", "to", "with"}


def _record(pipe: Any, given: dict[str, Any], model: str, picture: Any, seed: int) -> dict[str, str]:
    """How the picture was made. No time and no place: the same seed gives the same bytes everywhere."""
    kind = type(pipe)
    own = kind.__call__.__signature__.parameters
    kind = next((kind.with_task(name) for name in kind.tasks if name in given and name not in own), kind)
    used = {name: p.default for name, p in kind.__call__.__signature__.parameters.items()} | given
    record = dict(prompt=used.get("prompt"), negative=used.get("negative_prompt"), model="emoji" if model == EMOJI else model)
    record |= dict(scheduler=type(pipe.scheduler).__name__, steps=used.get("num_inference_steps"), guidance=used.get("guidance_scale"))
    record |= dict(strength=used.get("strength"), size=f"{picture.width}x{picture.height}", seed=seed, darkroom=__version__)
    return {name: str(value) for name, value in record.items() if value is not None}


def _save(picture: Any, file: Path, record: dict[str, str]) -> None:
    """Write a PNG with its record, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in record.items():
        info.add_text(name, value)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        picture.save(part, "PNG", pnginfo=info)
        os.replace(part, file)
    except OSError as error:
        raise InputError("The file cannot be written.", where=file, got=str(error), fix="Choose another --output.") from None
    finally:
        part.unlink(missing_ok=True)
