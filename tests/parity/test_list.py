"""Which pipeline classes are compared with the reference, and which are not, for a stated reason: README.md lists them, and this keeps it true."""

from __future__ import annotations
import inspect
import re
from importlib import import_module
from pathlib import Path
import diffusers
import pytest
import darkroom
from darkroom import Family
from darkroom._public import NAMES

HERE = Path(__file__).parent
PUBLIC = {n for n in NAMES if inspect.isclass(c := getattr(darkroom, n)) and issubclass(c, Family) and hasattr(c, "task")}
FILES = sorted(path.stem for path in HERE.glob("test_*.py") if path != Path(__file__))


def listed() -> dict[str, tuple[str, str]]:
    """Class -> the file in which it is compared ("" for none), and what is to be said of it."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`(\w+)\.py`)? ?\| (.*?) ?\|$", (HERE / "README.md").read_text("utf-8"), re.M)
    assert len({name for name, *_ in rows}) == len(rows)
    return {name: (file, remark) for name, file, remark in rows}


def test_every_class_is_listed():
    assert set(listed()) == PUBLIC


def test_what_is_not_compared_has_a_reason():
    for name, (file, remark) in listed().items():
        assert file in FILES or (not file and remark), name


@pytest.mark.parametrize("file", FILES)
def test_the_named_file_compares_the_class(file, monkeypatch):
    """`NAMES` of a file, if it has them, are the classes whose calls it compares, with their arguments."""
    monkeypatch.syspath_prepend(HERE)
    compared = set(getattr(import_module(file), "NAMES", ()))
    claimed = {name for name, (home, _) in listed().items() if home == file}
    assert claimed <= compared, claimed - compared


def test_the_reference_has_them_all():
    for name, (file, _) in listed().items():
        assert not file or hasattr(diffusers, name), name
