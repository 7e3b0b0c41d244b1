"""The table of schedulers, what it says about noise, and the pictures of their steps."""

from __future__ import annotations
import runpy
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from darkroom import schedulers
from darkroom.errors import MissingDependencyError
from darkroom.plots import noise_schedules, placements, plot_schedulers, scheduler_table
from darkroom.schedulers.catalogue import describe

ROOT = Path(__file__).parents[2]
STOCHASTIC = {row.name.removesuffix("Scheduler"): row.stochastic for row in describe()}
SDE = {"algorithm_type": "sde-dpmsolver++"}
EITHER = {  # of those where an option decides: the options of the class and of its step without noise, and those with noise
    "BlockRefinement": ({}, {}, {}, {"temperature": 5.0}),
    "DDIM": ({}, {}, {}, {"eta": 1.0}),
    "DDIMParallel": ({}, {}, {}, {"eta": 1.0}),
    "DPMSolverMultistep": ({}, {}, SDE, {}),
    "DPMSolverMultistepInverse": ({}, {}, SDE | {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {}),
    "DPMSolverSinglestep": ({}, {}, SDE, {}),
    "EDMDPMSolverMultistep": ({}, {}, SDE, {}),
    "EDMEuler": ({}, {}, {}, {"s_churn": 2.0}),
    "ERSDE": ({"noise_scale": "ode"}, {}, {}, {}),
    "EulerDiscrete": ({}, {}, {}, {"s_churn": 2.0}),
    "FlowMatchEulerDiscrete": ({}, {}, {"stochastic_sampling": True}, {}),
    "FlowMatchHeunDiscrete": ({}, {}, {}, {"s_churn": 2.0}),
    "KarrasVe": ({"s_churn": 0.0}, {}, {}, {}),
    "LTXEulerAncestralRF": ({"eta": 0.0}, {}, {}, {}),
    "RFD4Proteina": ({"t_lim_ode": 0.0}, {}, {}, {}),
    "SASolver": ({"tau_func": lambda t: 0.0}, {}, {}, {}),
    "TCD": ({}, {"eta": 0.0}, {}, {}),
}
UNHEEDED = {"CogVideoXDDIM": [{}, {"eta": 1.0}], "CogVideoXDPM": [{}, {"eta": 1.0}], "RePaint": [{}, {"eta": 1.0}]}
NEEDED = {
    "Amused": {"mask_token_id": 20},
    "RFD4Proteina": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 2.5, "tsr_sigma": 1.0, "tail_steps": 0},
    "VQDiffusion": {"num_vec_classes": 21},
}
TOKENS = [row.name.removesuffix("Scheduler") for row in describe() if row.kind == "tokens"]


def trace(name: str, seed: int, options: dict, call: dict) -> torch.Tensor:
    """All samples of a short run, in a row, whose noise comes from this seed of the global generator alone."""
    scheduler = getattr(schedulers, f"{name}Scheduler")(**NEEDED.get(name, {}) | options)
    given = {"stage_index": 1} if "Helios" in name else {"intermediate_timesteps": None} if name == "SCM" else {}
    scheduler.set_timesteps(2 if name == "ConsistencyDecoder" else 6, **given)
    if name.startswith("ScoreSdeVe"):
        scheduler.set_sigmas(6)
    made = torch.Generator().manual_seed(9)
    shape = (2, 4, 4) if name in ("RFD4Proteina", "Piflow") else (2, 3, 2, 4, 4) if "Helios" in name else (2, 3, 4, 4)
    x = torch.full((2, 12), 20) if name in TOKENS else torch.randn(shape, generator=made)
    x = x % 20 if name in ("DiscreteDDIM", "EntropyBound") else x
    original, last, seen = x, None, []
    torch.manual_seed(seed)
    times = [*scheduler.timesteps]
    for i, t in enumerate(times[:-1] if name in ("SCM", "DDPMWuerstchen") else times):
        if name in TOKENS:
            logits = 3 * torch.randn(2, 12, 20, generator=made)
            out = logits.mT.log_softmax(1) if name == "VQDiffusion" else logits
        else:
            out = torch.tanh(x)
        match name:
            case "BlockRefinement":
                x = scheduler.step(out, i, x, mask_token_id=20, **call).prev_sample
            case "CogVideoXDPM":
                x, last = scheduler.step(out, last, t, times[i - 1] if i else None, x, **call)
            case "DDPMWuerstchen":
                x = scheduler.step(out, t.expand(len(x)), x).prev_sample
            case "HeliosDMD":
                x = scheduler.step(out, t, x, cur_sampling_step=i).prev_sample
            case "KarrasVe":
                if t > 0:
                    sigma, sigma_next = scheduler.schedule[t], scheduler.schedule[t - 1]
                    x, raised = scheduler.add_noise_to_input(x, sigma)
                    x = scheduler.step(out, raised, sigma_next, x).prev_sample
            case "Piflow":
                x = scheduler.step(torch.cat([out] * 10, -1), t, x).prev_sample
            case "RFD4Proteina":
                x = scheduler.step(out, t, x, torch.ones(x.shape[:2], dtype=torch.bool)).prev_sample
            case "RePaint":
                x = scheduler.undo_step(x, t) if i and t > times[i - 1] else x
                x = scheduler.step(out, t, x, original, torch.eye(4)).prev_sample
            case "ScoreSdeVe":
                x = scheduler.step_pred(out, t, x).prev_sample
            case "ScoreSdeVp":
                x = scheduler.step_pred(out, x, t)[0]
            case _:
                x = scheduler.step(out, t, x, **call).prev_sample
        seen.append(x.flatten())
    assert x.isfinite().all()
    return torch.cat(seen)


def varies(name: str, options: dict, call: dict) -> bool:
    """Whether runs differ by the seed."""
    first = trace(name, 0, options, call)
    assert torch.equal(first, trace(name, 0, options, call))
    return not torch.equal(first, trace(name, 1, options, call))


@pytest.mark.filterwarnings("ignore:Should have:UserWarning")  # torchsde, of the rounding of an interval's ends
@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_table_says_whether_steps_draw_noise(name):
    assert (name in EITHER) == (STOCHASTIC[name] == "optional")
    if name in EITHER:
        without, step_without, with_noise, step_with = EITHER[name]
        assert not varies(name, without, step_without) and varies(name, with_noise, step_with)
    else:
        assert {varies(name, {}, call) for call in UNHEEDED.get(name, [{}])} == {STOCHASTIC[name] == "yes"}


def test_every_scheduler_has_a_line():
    head, *lines = scheduler_table()
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
        plot_schedulers(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_one_picture_for_each_group(tmp_path):
    files = plot_schedulers(tmp_path / "new")
    groups = placements()
    assert [file.stem for file in files] == ["noise_schedules", *(f"steps_{group}" for group in groups)]
    assert {*files} == {*(tmp_path / "new").iterdir()}
    for file in files:
        with Image.open(file) as picture:
            assert picture.format == "PNG" and picture.width == 990, file
            pixels = np.asarray(picture.convert("L"))
            rows = len(groups.get(file.stem.removeprefix("steps_"), range(19)))
            assert abs(picture.height - 110 * (1.1 + 0.26 * rows)) < 60, file  # a line for each scheduler
        inside = pixels[60:-60, 500:-30]
        assert 0.005 < (inside < 200).mean() < 0.2, file  # curves, on white


def test_the_guide_names_every_scheduler():
    page = (ROOT / "docs/schedulers.md").read_text("utf-8")
    assert [name for name in STOCHASTIC if f"`{name}`" not in page] == []


def test_contact_sheets():
    script = runpy.run_path(str(ROOT / "scripts/pictures.py"))
    for name, sheet in script["SHEETS"].items():
        for settings in (sheet.fixed, *sheet.rows.values(), *sheet.columns.values()):
            getattr(schedulers, settings.get("scheduler", "DDIMScheduler")).from_config(script["trained"](), **settings.get("options", {}))
        assert (ROOT / f"docs/images/{name}.png").stat().st_size < 150_000
    done, rows = [], {"DDIM": script["solver"]("DDIM"), "LMS": script["solver"]("LMSDiscrete")}
    sheet = script["Sheet"](script["steps"]((1, 2), heart={"prompt": "red heart"}), rows)
    picture = script["draw_sheet"](sheet, lambda: done.append(1))
    assert len(done) == 4 and picture.mode == "P" and picture.height == 2 * 68 + 32
    cells = np.asarray(picture.convert("RGB"), dtype=float)[32:, -136:].reshape(2, 68, 2, 68, 3).transpose(0, 2, 1, 3, 4)
    assert all((cell[:, :, 0] - cell[:, :, 2]).mean() > 20 for cell in cells.reshape(4, 68, 68, 3))  # red on white
    assert not np.array_equal(*cells[:, 1])
