"""What README and docs show has to run."""

from __future__ import annotations
import os
import re
import shlex
from pathlib import Path
import pytest
from darkroom import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/quickstart.md",
    "docs/pipelines.md",
    "docs/schedulers.md",
    "docs/guidance.md",
    "docs/text-to-image.md",
    "docs/image-to-image.md",
    "docs/inpainting.md",
    "docs/ip-adapter.md",
    "docs/perturbed-attention.md",
    "docs/lora.md",
    "docs/video.md",
    "docs/control.md",
    "docs/errors.md",
    "docs/checkpoints.md",
    "docs/security.md",
    "docs/textual-inversion.md",
    "docs/decorators.md",
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_python_samples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "sample"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page}, sample {number}", "exec"), namespace)
    shown = "".join(blocks(page, "text"))
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(page, "bash")).splitlines():
        program, *args = shlex.split(line, comments=True)
        if program.startswith("./"):
            assert os.access(ROOT / program, os.X_OK), program
            program, args = ("darkroom", ["generate", *args]) if program == "./scripts/generate" else (program, args)
        if program.rsplit("/", 1)[-1] == "darkroom":
            with pytest.raises(SystemExit) as ended:
                cli.main(args)
            assert ended.value.code == 0, line
        else:
            assert program in ("pip", "./scripts/test"), line


@pytest.mark.parametrize("page", [*PAGES, "docs/design.md", "docs/benchmarks.md"])
def test_links_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)#\s]+)\)", (ROOT / page).read_text("utf-8")):
        assert "://" in target or (ROOT / page).parent.joinpath(target).exists(), target
