"""The command line, run in this process on a tiny checkpoint."""

from __future__ import annotations
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
import darkroom
from darkroom import StableDiffusionPipeline, cli
from darkroom.assets import EMOJI
from darkroom.families.stable_diffusion import StableDiffusionInpaintPipeline

Darkroom = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Darkroom:
    """Runs a command in an empty folder; returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        return int(ended.value.code or 0)

    return call


@pytest.fixture
def generate(run: Darkroom, tiny_sd: Path) -> Darkroom:
    """`darkroom generate` with three steps of the tiny checkpoint."""
    return lambda *args: run("generate", *args, "--model", tiny_sd, "--steps", 3)


def record_of(file: str) -> dict[str, str]:
    with Image.open(file) as picture:
        return dict(picture.text)  # type: ignore[attr-defined]


def test_version(run: Darkroom, capsys: pytest.CaptureFixture[str]):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"darkroom {darkroom.__version__}\n"


def test_help_is_that_of_the_fields(run: Darkroom, capsys: pytest.CaptureFixture[str]):
    assert run("generate", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    fields = {f.name: f for kind in (StableDiffusionPipeline, StableDiffusionInpaintPipeline) for f in dataclasses.fields(kind.Inputs)}
    assert set(cli._declared()) >= set(fields) - {"output_type", "return_dict"}
    used = "prompt num_inference_steps guidance_scale negative_prompt image mask_image strength".split()
    for name in used:
        text = cli._declared()[name].rstrip(".")
        assert text in shown
        assert fields[name].metadata["help"].startswith(text)
    assert "PIL" not in shown


def test_the_same_seed_gives_the_same_bytes(generate: Darkroom, capsys: pytest.CaptureFixture[str]):
    assert generate("a cat", "--seed", 5, "--output", "one.png") == 0
    assert capsys.readouterr().out == "one.png (seed 5)\n"
    assert generate("a cat", "--seed", 5, "--output", "two.png") == 0
    assert generate("a cat", "--seed", 6, "--output", "three.png") == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert Image.open("one.png").tobytes() != Image.open("three.png").tobytes()


def test_several_pictures_are_those_of_their_seeds(generate: Darkroom):
    assert generate("a cat", "--seed", 5, "--num", 2, "--output", "cat") == 0
    assert sorted(p.name for p in Path().iterdir()) == ["cat-1.png", "cat-2.png"]
    assert generate("a cat", "--seed", 6, "--output", "single.png") == 0
    assert Path("single.png").read_bytes() == Path("cat-2.png").read_bytes()


def test_a_random_seed_is_printed_and_recorded(generate: Darkroom, capsys: pytest.CaptureFixture[str]):
    assert generate("a cat") == generate("a cat") == 0
    printed = [line.split("seed ")[1].rstrip(")") for line in capsys.readouterr().out.splitlines()]
    assert printed == [record_of("picture.png")["seed"], record_of("picture-2.png")["seed"]]
    assert printed[0] != printed[1]


def test_only_a_named_file_is_overwritten(generate: Darkroom):
    for name in ("picture.png", "picture-2.png", "mine.png"):
        Path(name).write_text("kept")
    assert generate("a cat", "--seed", 1) == generate("a cat", "--seed", 1, "--num", 2) == 0
    assert Path("picture.png").read_text() == Path("picture-2.png").read_text() == "kept"
    assert sorted(p.name for p in Path().glob("picture-[1-9].png")) == [f"picture-{i}.png" for i in (1, 2, 3, 4)]
    assert generate("a cat", "--seed", 1, "--output", "mine.png") == 0
    assert Path("mine.png").read_bytes() == Path("picture-3.png").read_bytes()


def test_record(generate: Darkroom, run: Darkroom, tiny_sd: Path, capsys: pytest.CaptureFixture[str]):
    prompt = 'a "cat" ❤️\nof ü'
    assert generate(prompt, "--negative", "dog", "--seed", 5, "--guidance", 4, "--size", "16x32", "--scheduler", "euler") == 0
    expected = {
        "prompt": prompt,
        "negative": "dog",
        "model": str(tiny_sd),
        "scheduler": "EulerDiscreteScheduler",
        "steps": "3",
        "guidance": "4.0",
        "size": "16x32",
        "seed": "5",
        "darkroom": darkroom.__version__,
    }
    assert record_of("picture.png") == expected
    assert Image.open("picture.png").size == (16, 32)
    capsys.readouterr()
    assert run("show", "picture.png", "--json") == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert run("show", "picture.png") == 0
    assert "scheduler: EulerDiscreteScheduler\n" in capsys.readouterr().out


def test_image_and_mask(generate: Darkroom):
    Image.new("RGB", (32, 32), "red").save("red.png")
    Image.new("L", (32, 32), 0).save("nothing.png")
    Image.new("L", (32, 32), 255).save("all.png")
    assert generate("a cat", "--image", "red.png", "--seed", 1, "--output", "a.png") == 0
    assert record_of("a.png")["strength"] == "0.8"
    assert generate("a cat", "--image", "red.png", "--strength", 0.5, "--seed", 1, "--output", "b.png") == 0
    assert record_of("b.png")["strength"] == "0.5"
    assert Image.open("a.png").tobytes() != Image.open("b.png").tobytes()
    assert generate("a cat", "--image", "red.png", "--mask", "nothing.png", "--seed", 1, "--output", "c.png") == 0
    assert record_of("c.png")["strength"] == "1.0"
    assert generate("a cat", "--image", "red.png", "--mask", "all.png", "--seed", 1, "--output", "d.png") == 0
    assert Image.open("c.png").tobytes() != Image.open("d.png").tobytes()


@pytest.mark.parametrize("name", ["DDIMScheduler", "ddim", "euler_ancestral", "EulerDiscrete", "dpmsolvermultistep", "Heun"])
def test_scheduler_names(name: str, generate: Darkroom):
    assert generate("a cat", "--seed", 1, "--scheduler", name) == 0
    assert cli._plain(record_of("picture.png")["scheduler"]) == cli._plain(name)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--size", "64by64"), ("--size", "64by64", "96x64")),
        (("--size", "33"), ("height", "33", "32 or 40")),
        (("--seed", -1), ("--seed", "-1")),
        (("--output", "picture.jpg"), ("--output", "picture.jpg", ".png")),
        (("--output", "nowhere/picture.png"), ("--output", "nowhere")),
        (("--scheduler", "eulr"), ("--scheduler", "eulr", "eulerancestral", "ddim")),
        (("--dtype", "int8"), ("--dtype", "int8", "bfloat16")),
        (("--device", "abacus"), ("--device", "abacus", "cpu")),
        (("--image", "missing.png"), ("missing.png",)),
        (("--strength", "0.5"), ("strength",)),
        (("--num", "0"), ("--num",)),
        (("--nonsense",), ("--nonsense",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if value and str(value[0]).startswith("--") else "",
)
def test_bad_arguments(args: tuple[object, ...], words: tuple[str, ...], generate: Darkroom, capsys: pytest.CaptureFixture[str]):
    assert generate("a cat", *args) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert all(word in said.err for word in words), said.err
    assert "Traceback" not in said.err
    assert not list(Path().iterdir())


def test_no_prompt_and_no_such_model(generate: Darkroom, run: Darkroom, capsys: pytest.CaptureFixture[str]):
    assert generate() == 2
    assert "prompt" in capsys.readouterr().err
    assert run("generate", "a cat", "--model", "./no-such-folder") == 2
    assert "no-such-folder" in capsys.readouterr().err


def test_an_interruption_leaves_nothing(generate: Darkroom, monkeypatch: pytest.MonkeyPatch):
    Path("picture.png").write_text("kept")

    def save(picture: Image.Image, file: Path, *args: object, **options: object) -> None:
        Path(file).write_bytes(b"half a pic")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    assert generate("a cat", "--output", "picture.png") == 130
    assert [p.name for p in Path().iterdir()] == ["picture.png"]
    assert Path("picture.png").read_text() == "kept"


def test_show_of_other_files(run: Darkroom, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (4, 4)).save("plain.png")
    Path("text.png").write_text("no picture")
    bomb = PngInfo()
    bomb.add_text("prompt", "x" * (2 << 20), zip=True)  # more than PIL unpacks
    Image.new("RGB", (4, 4)).save("bomb.png", pnginfo=bomb)
    for name in ("plain.png", "text.png", "missing.png", "bomb.png"):
        assert run("show", name) == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "near"),
    [("red heart", None), ("A Red Heart!", None), ("red hart", '"red heart"'), ("a cat on a bicycle", '"bicycle"'), ("qwertz", ".")],
)
def test_hint(prompt: str, near: str | None):
    hint = cli._hint(prompt)
    assert hint is None if near is None else near in (hint or "")


def test_the_bundled_checkpoint_is_the_default(run: Darkroom, capsys: pytest.CaptureFixture[str]):
    assert run("generate", "the eiffel tower", "--steps", 2, "--seed", 3) == 0
    assert "knows emoji only" in capsys.readouterr().err
    record = record_of("picture.png")
    assert (record["model"], record["guidance"]) == ("emoji", "2.5")  # what suits it
    assert run("generate", "the eiffel tower", "--steps", 2, "--seed", 3, "--quiet", "--model", EMOJI) == 0
    assert capsys.readouterr().err == ""
    assert Path("picture.png").read_bytes() == Path("picture-2.png").read_bytes()
