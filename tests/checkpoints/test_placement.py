"""Placement of components: a pure function, so machines are numbers here."""

from __future__ import annotations
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from darkroom.checkpoints.placement import available_memory, plan_devices
from darkroom.errors import InputError

CPU, A, B = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
SIZES = {"unet": 50, "vae": 10, "text_encoder": 30}
ROOM = {A: 60, B: 45, CPU: 1000}


def test_one_device_takes_everything() -> None:
    assert set(plan_devices(SIZES, "cuda:1").values()) == {B}
    assert set(plan_devices(SIZES, torch.device("meta")).values()) == {torch.device("meta")}
    assert set(plan_devices(SIZES, 0).values()) == {A}


def test_balanced_spreads_and_auto_fills() -> None:
    assert dict(plan_devices(SIZES, "balanced", available=ROOM)) == {"unet": A, "vae": B, "text_encoder": B}
    assert dict(plan_devices(SIZES, "auto", available={A: 60, B: 60, CPU: 100})) == {"unet": A, "vae": A, "text_encoder": B}


def test_what_fits_nowhere_stays_on_the_cpu() -> None:
    plan = plan_devices({"a": 100, "b": 90, "c": 5}, "balanced", available={A: 10, CPU: 500})
    assert dict(plan) == {"a": CPU, "b": CPU, "c": A}


def test_a_device_for_each() -> None:
    assert dict(plan_devices(SIZES, {"unet": "cuda", "default": 1})) == {"unet": torch.device("cuda"), "vae": B, "text_encoder": B}
    assert plan_devices(SIZES, {"unet": 0})["vae"] == CPU


def test_max_memory() -> None:
    plan = plan_devices(SIZES, "balanced", {0: 35, "cpu": "1kB"}, available=ROOM)
    assert dict(plan) == {"unet": CPU, "vae": CPU, "text_encoder": A}
    with pytest.raises(InputError, match="do not fit"):
        plan_devices(SIZES, "auto", {"cpu": 5}, available=ROOM)


@pytest.mark.parametrize("device_map", ["balance", "cuda:x", 1.5, {"unet": "nowhere"}, {"transformer": "cpu"}])
def test_bad_maps(device_map: object) -> None:
    with pytest.raises(InputError) as caught:
        plan_devices(SIZES, device_map)  # type: ignore[arg-type]
    assert caught.value.where


def test_the_table_names_components_sizes_and_room() -> None:
    text = str(plan_devices({"unet": 3_440_000_000}, "balanced", available={A: 8_000_000_000, CPU: 10**10}))
    assert "unet" in text and "3.44 GB" in text and "cuda:0" in text and "of 8.00 GB" in text


def test_the_machine_has_memory() -> None:
    assert available_memory()[CPU] > 10**8


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 100), max_size=8),
    st.lists(st.integers(0, 200), max_size=4),
    st.sampled_from(["balanced", "auto"]),
)
def test_no_accelerator_is_filled_beyond_its_room(sizes: dict[str, int], rooms: list[int], device_map: str) -> None:
    room = {torch.device("cuda", i): free for i, free in enumerate(rooms)} | {CPU: 10**6}
    plan = plan_devices(sizes, device_map, available=room)
    assert plan.keys() == sizes.keys()
    for device, free in room.items():
        assert sum(sizes[name] for name in sizes if plan[name] == device) <= free
    for name in sizes:  # the CPU is for what no accelerator has room for, after the others are placed
        if plan[name] == CPU:
            used = {d: sum(sizes[n] for n in sizes if plan[n] == d and sizes[n] >= sizes[name]) for d in room}
            assert all(free - used[d] < sizes[name] for d, free in room.items() if d != CPU)
