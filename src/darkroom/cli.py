"""The command line: `darkroom generate PROMPT` makes pictures, `darkroom show FILE` tells how one was made."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import itertools
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .assets import EMOJI
from .errors import DarkroomError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["app", "main"]

_DECLARATIONS = (
    "family.py", "families/stable_diffusion.py", "core/tasks/text2image.py", "core/tasks/image2image.py", "core/tasks/inpaint.py"
)  # fmt: skip
app = typer.Typer(
    name="darkroom", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@functools.cache
def _declared() -> dict[str, str]:
    """The line of help of each argument of a call. Read from the source, because importing the fields would import torch."""
    texts = {}
    for file in _DECLARATIONS:
        for node in ast.walk(ast.parse((Path(__file__).parent / file).read_text("utf-8"))):
            match node:
                case ast.AnnAssign(ast.Name(name), _, ast.Call(ast.Name("field"), [ast.Constant(text), *_])):
                    texts[name] = text
    return texts


def _option(argument: str, flag: str, **settings: Any) -> Any:
    return typer.Option(flag, help=_declared()[argument], show_default=False, **settings)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Errors in words and exit code 2; an interruption is exit code 130, as shells have it."""

    try:
        yield
    except DarkroomError as error:
        typer.echo(f"darkroom: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("\ndarkroom: interrupted", err=True)
        raise typer.Exit(130) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"darkroom {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make pictures with open diffusion models."""


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help=_declared()["prompt"], show_default=False)] = None,
    model: Annotated[
        str, typer.Option(help="A checkpoint: a folder or a hub id.", show_default="the bundled one")
    ] = EMOJI,
    steps: Annotated[int | None, _option("num_inference_steps", "--steps")] = None,
    guidance: Annotated[float | None, _option("guidance_scale", "--guidance")] = None,
    negative: Annotated[str | None, _option("negative_prompt", "--negative")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes a picture repeatable.", show_default="random")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In pixels; one number for both.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Such as euler, ddim or dpmsolvermultistep.")] = None,
    num: Annotated[int, typer.Option(min=1, help="Pictures, with the seeds from SEED on.")] = 1,
    image: Annotated[str | None, _option("image", "--image", metavar="FILE")] = None,
    mask: Annotated[str | None, _option("mask_image", "--mask", metavar="FILE")] = None,
    strength: Annotated[float | None, _option("strength", "--strength")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="Where to compute.", show_default="cuda if there is one, else cpu")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .png; it is overwritten.", show_default="picture.png, or the next free name"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no hints.")] = False,
) -> None:
    """Make pictures from a prompt, an image, or an image and a mask. Each file remembers how it was made: see `show`."""
    with _reported():
        files = _targets(output, num)
        width, height = _parse_size(size)
        if model == EMOJI and prompt and not quiet:
            _hint(prompt)
        seed = random.SystemRandom().randrange(2**32) if seed is None else seed
        if not 0 <= seed <= 2**63 - num:
            raise InputError("A seed out of range.", where="--seed", got=seed, expected="0 to 2^63 - 1")

        pipe, generator = _load(model, dtype, device, scheduler)
        pipe.set_progress_bar_config(disable=True if quiet else None)  # None: a bar only where a person looks
        given = {
            "prompt": prompt,
            "negative_prompt": negative,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": height,
            "width": width,
            "image": _picture(image),
            "mask_image": _picture(mask),
            "strength": strength,
        }
        given = {name: value for name, value in given.items() if value is not None}
        for number in range(seed, seed + num):  # one by one: a picture does not depend on how many are made with it
            made = pipe(**given, generator=generator.manual_seed(number)).images[0]
            record = _record(pipe, given, model, made, number)
            typer.echo(f"{_save(made, next(files), record)} (seed {number})")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A picture that darkroom made.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
) -> None:
    """Tell how a picture was made: prompt, seed and all else that it takes to make it again."""
    with _reported():
        record = _read_record(file)
        if as_json:
            typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
        else:
            typer.echo("\n".join(f"{name + ':':<11}{value}" for name, value in record.items()))


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(130)


# ---- arguments


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size.strip().lower())
    if not found:
        raise InputError(
            "A size that cannot be read.", where="--size", got=size, expected="such as 64 or 96x64, in pixels"
        )
    return int(found[1]), int(found[2] or found[1])


def _targets(output: Path | None, num: int) -> Iterator[Path]:
    """The files to write. One that was named is overwritten; without a name, the next that does not exist."""
    base = output or Path("picture.png")
    base = base if base.suffix else base.with_suffix(".png")
    if base.suffix.lower() != ".png":
        raise InputError(
            "Pictures are written as PNG.", where="--output", got=base.name, expected="a name that ends in .png"
        )
    if not base.parent.is_dir() or base.is_dir():
        raise InputError(
            "No place for the picture.", where="--output", got=str(base), expected="a file in a folder that exists"
        )
    numbered = (base.with_stem(f"{base.stem}-{i}") for i in itertools.count(1 if num > 1 else 2))
    files = numbered if num > 1 else itertools.chain([base], numbered)
    return files if output else (file for file in files if not file.exists())


def _picture(source: str | None) -> Image | None:
    if source is None:
        return None
    from .utils import load_image

    return load_image(source)


def _plain(name: str) -> str:
    """EulerDiscreteScheduler, euler-discrete and Euler are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("scheduler").removesuffix("discrete")


def _load(model: str, dtype: str, device: str | None, scheduler: str | None) -> tuple[Any, Any]:
    """The pipeline, and the generator of its noise, which is on the CPU so that a seed means the same on every device."""
    import torch

    from .pipeline import DiffusionPipeline

    if dtype not in (names := ("float32", "float16", "bfloat16")):
        raise InputError("No such dtype.", where="--dtype", got=dtype, expected=", ".join(names))
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without that kind of device
        raise InputError(
            "No such device.", where="--device", got=f"{device}: {error}", expected="such as cpu or cuda"
        ) from None
    pipe = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    if scheduler is not None:
        kinds = {_plain(kind.__name__): kind for kind in pipe.scheduler.compatibles}
        if _plain(scheduler) not in kinds:
            raise InputError(
                "This checkpoint has no such scheduler.", where="--scheduler", got=scheduler, expected=", ".join(kinds)
            )
        pipe.scheduler = kinds[_plain(scheduler)].from_config(pipe.scheduler.config)
    return pipe.to(place), torch.Generator("cpu")


def _hint(prompt: str, folder: str = EMOJI) -> None:
    """The bundled checkpoint draws what it was trained on: say so where a prompt is far from that."""
    file = Path(folder) / "captions.json"
    known = (
        {caption for pool in json.loads(file.read_text("utf-8")).values() for caption in pool}
        if file.exists()
        else set()
    )
    words = set(re.findall(r"\w+", prompt.lower()))

    def nearness(caption: str) -> float:
        others = set(re.findall(r"\w+", caption))
        return len(words & others) / (len(words | others) or 1)

    if words and known and max(map(nearness, known)) < 0.6:
        close = difflib.get_close_matches(prompt.lower(), known, n=3, cutoff=0.6)
        ranked = sorted(known, key=lambda caption: (-nearness(caption), len(caption), caption))
        nearest = (
            list(dict.fromkeys([*close, *(c for c in ranked if nearness(c) > 0)]))[:3] or sorted(known, key=len)[:3]
        )
        names = ", ".join(f'"{caption}"' for caption in nearest)
        typer.echo(f"The bundled checkpoint only knows emoji. Nearest that it knows: {names}.", err=True)


# ---- files


def _record(pipe: Any, given: dict[str, Any], model: str, picture: Image, seed: int) -> dict[str, str]:
    """What it takes to make the picture again. No time and no path of this machine: the same seed gives the same bytes."""
    arguments = {name: p.default for name, p in type(pipe).__call__.__signature__.parameters.items()} | given
    if "image" in given and "strength" not in given:
        task = pipe.tasks["inpaint" if "mask_image" in given else "image2image"]
        arguments["strength"] = task.defaults.get("strength", 0.8)
    record = {
        "prompt": arguments.get("prompt"),
        "negative": arguments.get("negative_prompt"),
        "model": "emoji" if model == EMOJI else model,
        "scheduler": type(pipe.scheduler).__name__,
        "steps": arguments.get("num_inference_steps"),
        "guidance": arguments.get("guidance_scale"),
        "strength": arguments.get("strength"),
        "size": f"{picture.width}x{picture.height}",
        "seed": seed,
        "darkroom": __version__,
    }
    return {name: str(value) for name, value in record.items() if value is not None}


def _save(picture: Image, file: Path, record: dict[str, str]) -> Path:
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
        raise InputError(
            "The picture cannot be written.", where="--output", got=str(error), expected="a writable file"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return file


def _read_record(file: Path) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            found = dict(getattr(picture, "text", {}))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError("No picture that can be read.", where=str(file), got=str(error), expected="a PNG") from None
    if "darkroom" not in found:
        raise InputError(
            "This picture does not say how it was made.", where=str(file), expected="a PNG that darkroom made"
        )
    return {name: str(value) for name, value in found.items()}
