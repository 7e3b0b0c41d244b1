"""The table of schedulers, and the pictures of their steps."""

from __future__ import annotations
import sys
import numpy as np
import pytest
from darkroom import schedulers
from darkroom.errors import MissingDependencyError
from darkroom.schedulers.listing import noise_schedules, placements, plot, table


class FakeFigure:
    """Records what matplotlib would draw."""

    def __init__(self, figsize, layout):
        assert min(figsize) > 0 and layout == "constrained"
        self.calls = []

    def subplots(self):
        return self

    def __getattr__(self, name):
        return lambda *args, **options: self.calls.append((name, args, options))

    def savefig(self, file, dpi):
        file.write_text("\n".join(name for name, *_ in self.calls))


def test_every_scheduler_has_a_line():
    head, *lines = table()
    assert head.split()[:2] == ["name", "kind"]
    names = [line.split()[0] for line in lines]
    expected = {name.removesuffix("Scheduler") for name in schedulers.__all__ if name.endswith("Scheduler")} - {"", "Karras"}
    assert names == sorted(names) and set(names) == expected
    assert any(line.startswith("Heun") and "  2  " in line for line in lines)


def test_noise_schedules_fall_from_data_to_noise():
    found = noise_schedules()
    for label, (t, level) in found.items():
        assert t[0] == 0 and t[-1] == 1 and len(t) == len(level) and np.isfinite(level).all() and (np.diff(level) <= 1e-6).all(), label
    assert found["linear, zero SNR"][1][-1] == found["flow, shift 1"][1][-1] < found["linear"][1][-1]
    assert (found["flow, shift 3"][1] <= found["flow, shift 1"][1]).all()


def test_steps_are_placed_between_noise_and_data():
    groups = placements()
    assert {"diffusion", "flow", "inversion", "consistency", "spacings"} <= set(groups)
    for group, rows in groups.items():
        for name, level in rows.items():
            assert np.isfinite(level).all() and len(level) >= 2, name
            order = -1 if group == "inversion" else 1
            if name not in ("RePaint", "PNDM"):  # these go back
                assert (order * np.diff(level) >= -1e-6).all(), name
    assert not {"Amused", "VQDiffusion", "EntropyBound"} & {name for rows in groups.values() for name in rows}


def test_pictures_need_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        plot(tmp_path)


def test_one_picture_for_each_group(monkeypatch, tmp_path):
    module = type(sys)("matplotlib.figure")
    module.Figure = FakeFigure
    monkeypatch.setitem(sys.modules, "matplotlib", type(sys)("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    files = plot(tmp_path / "new")
    assert {file.stem for file in files} == {"noise_schedules", *(f"steps_{group}" for group in placements())}
    assert all(file.read_text().count("plot") > 2 for file in files if "flow" in file.stem or "noise" in file.stem)


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    for file in plot(tmp_path):
        assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000
