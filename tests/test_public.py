"""The public surface, the direction of imports, and limits on size."""

from __future__ import annotations
import ast
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from statistics import median
import pytest
import darkroom
from darkroom._public import NAMES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/darkroom"
FILES = sorted(PACKAGE.rglob("*.py"))
SHARED = ("checkpoints", "core", "models", "schedulers")
LONGEST_FILE = 800  # lines
LARGEST = {
    "adapters": 1350,
    "checkpoints": 5800,
    "schedulers": 4500,
    "families": 2900,
    "models": 4900,
    "core": 4000,
    "runtime": 1700,
    "the rest": 2400,
}  # lines of all files, with blanks and docstrings: to fall, not to rise
TYPICAL_SCHEDULERS = 110  # lines of the median file: one algorithm, or a few

names = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> set[str]:
    """The modules that a file imports anywhere in it, by full name."""
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            home = ".".join(part for part in (base, node.module) if part)
            found |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
    return found


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh process has after a statement, by full name."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(PACKAGE.parent)})
    return set(done.stdout.split())


def test_all_is_exact_and_sorted():
    assert darkroom.__all__ == sorted(darkroom.__all__) == sorted(NAMES)
    assert dir(darkroom) == darkroom.__all__
    for name, module in NAMES.items():
        assert getattr(darkroom, name) is getattr(import_module(f"darkroom.{module}"), name)
        assert name in import_module(f"darkroom.{module}").__all__


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = darkroom.Nothing


@names
def test_modules_declare_what_is_public(file: Path):
    module = import_module(module_of(file))
    tree = ast.parse(file.read_text("utf-8"))
    if all(isinstance(node, ast.Expr) for node in tree.body):
        return  # a package's docstring
    kind = {True: 0, False: 1}  # constants come first, then classes, then functions
    key = [(kind[name.isupper()], kind[name[0].isupper()], name) for name in module.__all__]
    assert key == sorted(key) or list(module.__all__) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@names
def test_direction_of_imports(file: Path):
    part, found = file.relative_to(PACKAGE).parts[0], imports(file)
    outside = {name.partition(".")[0] for name in found}
    assert not outside & {"diffusers", "accelerate", "peft"}
    inside = {name.split(".")[1] for name in found if name.startswith("darkroom.")}
    if part in SHARED:
        assert not inside & {"families", "family", "auto", "cli"}
    if part == "core":
        assert not inside & {"adapters", "checkpoints", "models", "runtime", "schedulers"}
    if part == "models":
        assert not inside & {"schedulers"}
        assert all(name.startswith("darkroom.runtime.fork") for name in found if name.startswith("darkroom.runtime"))
    if part == "adapters":
        assert not inside & {"auto", "cli", "families", "family", "schedulers"}
    if part == "runtime":
        assert not inside & {"checkpoints", "families", "family", "models", "schedulers"}


@names
def test_shared_code_names_no_family(file: Path):
    """Not in code: docstrings may say where a network comes from, a table of classes has to, and a class has its name."""
    if file.relative_to(PACKAGE).parts[0] not in (*SHARED, "runtime"):
        return
    tree = ast.parse(file.read_text("utf-8"))
    skipped = {id(n) for node in ast.walk(tree) if isinstance(node, ast.Expr) for n in ast.walk(node)}
    skipped |= {id(n) for node in ast.walk(tree) if isinstance(node, ast.Raise) for n in ast.walk(node)}  # an error may give an example
    if file in (PACKAGE / "checkpoints/index.py", PACKAGE / "checkpoints/layouts.py"):
        skipped |= {id(n) for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign)) for n in ast.walk(node)}
    allowed = {"StableDiffusionSafetyChecker"}
    for node in ast.walk(tree):
        text = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "value", None)
        if id(node) not in skipped and isinstance(text, str) and text.partition(",")[0] not in allowed:
            assert not re.search(r"stable_?diffusion|sdxl|\bflux|hunyuan|kandinsky|\bwan\b", text, re.I), (node.lineno, text)


def test_importing_is_cheap():
    heavy = {"PIL", "numpy", "torch", "transformers", "huggingface_hub", "safetensors"}
    assert not heavy & loaded_by("import darkroom, darkroom.assets, darkroom.cli, darkroom.errors")


def test_a_pipeline_class_needs_little():
    found = loaded_by("from darkroom import StableDiffusionPipeline")
    assert "torch" in found
    assert not found & {"PIL", "transformers", "huggingface_hub", "safetensors", "darkroom.runtime.lora"}
    assert not [name for name in found if name.startswith("darkroom.checkpoints")]


def test_size():
    lengths = {file: file.read_text("utf-8").count("\n") for file in FILES}
    assert max(lengths.values()) <= LONGEST_FILE, max(lengths, key=lengths.__getitem__)
    parts: dict[str, int] = dict.fromkeys(LARGEST, 0)
    for file, length in lengths.items():
        part = file.relative_to(PACKAGE).parts[0]
        parts[part if part in LARGEST else "the rest"] += length
    assert all(parts[part] <= most for part, most in LARGEST.items()), parts
    assert median(length for file, length in lengths.items() if file.parent.name == "schedulers") < TYPICAL_SCHEDULERS


def test_stubs_are_current():
    wanted = runpy.run_path(str(ROOT / "scripts/stubs.py"))["stubs"]()
    assert set(wanted) == set(PACKAGE.rglob("*.pyi"))
    for file, text in wanted.items():
        assert file.read_text("utf-8") == text, f"{file.name} is not current: python scripts/stubs.py"
        compile(text, str(file), "exec")


def test_one_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", darkroom.__version__)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'dynamic = ["version"]' in project and 'path = "src/darkroom/__init__.py"' in project
