"""Pictures of what the schedulers do, by matplotlib."""

from __future__ import annotations
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from .checkpoints.files import PathLike
from .errors import MissingDependencyError
from .schedulers.listing import LIMIT, STEPS, noise_schedules, placements

__all__ = ["chart", "plot_schedulers"]

STYLES = {"": "-", "zero SNR": "--", "shift 1": "-", "shift 3": "--", "shift 5": ":"}


@contextmanager
def chart(file: Path, height: float, title: str) -> Iterator[Any]:
    """Axes to draw on, 9 inches wide, saved as this file at the end. Raises MissingDependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Drawing needs matplotlib.", where="schedulers, plot", fix="pip install matplotlib") from error
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    axes.grid(axis="both", alpha=0.3)
    yield axes
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def plot_schedulers(folder: PathLike) -> list[Path]:
    """Draw `noise_schedules` and, for each group, `placements` into PNG files of the folder, which is made. Returns the files."""
    files = [Path(folder) / "noise_schedules.png"]
    with chart(files[0], 6, "Noise schedules: log-SNR over time, from data to noise") as axes:
        colours: dict[str, str] = {}
        for label, (t, level) in noise_schedules().items():
            name, _, variant = label.partition(", ")
            axes.plot(t, level, STYLES[variant], label=label, color=colours.setdefault(name, f"C{len(colours)}"))
        axes.set(xlabel="t / T", ylabel="log-SNR", xlim=(0, 1), ylim=(-LIMIT, LIMIT))
        axes.legend(fontsize="small", ncols=3, loc="upper right")
    for group, rows in placements().items():
        files.append(Path(folder) / f"steps_{group}.png")
        with chart(files[-1], 1.1 + 0.26 * len(rows), f"Where {STEPS} steps are: {group}") as axes:
            for place, level in enumerate(rows.values()):
                axes.plot(level, [place] * len(level), "k|-", markersize=10, linewidth=0.4)
            axes.set(xlabel="noise  <  log-SNR  <  data", xlim=(-LIMIT - 0.5, LIMIT + 0.5), ylim=(len(rows) - 0.4, -0.6))
            axes.set_yticks(range(len(rows)), labels=list(rows))
    return files
