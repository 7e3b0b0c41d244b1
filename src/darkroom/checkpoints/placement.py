"""Which component goes to which device: a pure function of sizes and free memory."""

from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
import torch
from ..errors import InputError
from .files import parse_bytes

__all__ = ["DevicePlan", "available_memory", "plan_devices"]

Device = torch.device | str | int


@dataclass(frozen=True)
class DevicePlan(Mapping[str, torch.device]):
    """Component -> device. `str` is a table with sizes and what stays free."""

    devices: dict[str, torch.device]
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of weights
    room: dict[torch.device, int] = field(default_factory=dict)  # bytes that were free

    def __getitem__(self, name: str) -> torch.device:
        return self.devices[name]

    def __iter__(self) -> Any:
        return iter(self.devices)

    def __len__(self) -> int:
        return len(self.devices)

    def __str__(self) -> str:
        width = max(map(len, self.devices), default=0)
        order = sorted(self.devices, key=lambda name: -self.sizes.get(name, 0))
        lines = [f"{name:<{width}}  {gigabytes(self.sizes.get(name, 0)):>9}  {self.devices[name]}" for name in order]
        for device, room in self.room.items():
            used = sum(size for name, size in self.sizes.items() if self.devices.get(name) == device)
            lines.append(f"{device!s:<{width}}  {gigabytes(used):>9}  of {gigabytes(room)}")
        return "\n".join(lines)


def gigabytes(size: float) -> str:
    """A number of bytes for people, decimal: "3.44 GB", "120 MB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def available_memory() -> dict[torch.device, int]:
    """Free bytes of each accelerator, then of the CPU."""
    room: dict[torch.device, int] = {}
    if torch.cuda.is_available():
        room |= {torch.device("cuda", i): torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())}
    elif torch.backends.mps.is_available():
        room[torch.device("mps")] = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        room[torch.device("cpu")] = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: the CPU's memory counts as unbounded
        room[torch.device("cpu")] = 2**63
    return room


def _device(value: object, where: str) -> torch.device:
    try:
        return torch.device("cuda", value) if isinstance(value, int) else torch.device(value)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        expected = '"balanced", "auto", a device such as "cuda" or "cpu", "meta", or {component: device}'
        raise InputError("No such device.", where=where, got=value, expected=expected) from None


def plan_devices(
    sizes: Mapping[str, int],
    device_map: Device | Mapping[str, Device],
    max_memory: Mapping[Device, int | str] | None = None,
    available: Mapping[torch.device, int] | None = None,
) -> DevicePlan:
    """Place components.

    Args:
        sizes: bytes of each component's weights, in the dtype that it will have.
        device_map: a device for all; "balanced" spreads over the accelerators, the largest component first, each to the device with the most
            room; "auto" fills one accelerator before the next; either leaves on the CPU what fits nowhere. Or a device for each component, with
            "default" (or "") for the rest, which otherwise stays on the CPU.
        max_memory: for "balanced" and "auto", what may be used of each device: bytes, or such as "10GB". A device that is not named is not used,
            but for the CPU.
        available: free bytes by device; asked of the machine if None.
    Raises:
        InputError: an unknown device or strategy, a component that does not exist, or not enough memory anywhere.
    """
    if isinstance(device_map, Mapping):
        if unknown := sorted(set(device_map) - set(sizes) - {"default", ""}):
            raise InputError("No such component.", where="device_map", got=", ".join(unknown), expected=", ".join(sizes))
        rest = device_map.get("default", device_map.get("", "cpu"))
        return DevicePlan({n: _device(device_map.get(n, rest), f"device_map, {n}") for n in sizes}, dict(sizes))
    if device_map not in ("balanced", "auto"):
        device = _device(device_map, "device_map")
        return DevicePlan(dict.fromkeys(sizes, device), dict(sizes))
    room = dict(available_memory() if available is None else available)
    cpu = torch.device("cpu")
    if max_memory is not None:
        bounds = {_device(key, "max_memory"): parse_bytes(value, "max_memory") for key, value in max_memory.items()}
        bounds = {torch.device("cuda", 0) if d.type == "cuda" and d.index is None else d: v for d, v in bounds.items()}
        room = {d: min(bounds[d], free) if d in bounds else free for d, free in room.items() if d in bounds or d == cpu}
    left, devices = dict(room), {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        fits = [d for d in left if d != cpu and left[d] >= sizes[name]]
        chosen = (max(fits, key=left.__getitem__) if device_map == "balanced" else fits[0]) if fits else cpu
        left[chosen] = left.get(chosen, 0) - sizes[name]
        devices[name] = chosen
    if left.get(cpu, 0) < 0:
        got, expected = gigabytes(sum(sizes.values())), ", ".join(f"{d}: {gigabytes(v)}" for d, v in room.items())
        fix = "Load in a smaller dtype, or raise max_memory."
        raise InputError("The components do not fit into memory.", where="device_map", got=got, expected=f"at most {expected}", fix=fix)
    return DevicePlan({name: devices[name] for name in sizes}, dict(sizes), room)
