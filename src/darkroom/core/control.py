"""Controls: what a second network makes of a picture, for the denoiser. Each is a value of a pipeline class, for every task and guidance."""

from __future__ import annotations
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..errors import InputError
from .inputs import Inputs, field
from .media import crop_region, hint_to_tensor, image_size
from .types import Branch, Conditioning, Run

__all__ = ["ControlNetUnions", "ControlNets", "T2IAdapters"]

_PICTURE = "What to look at: PIL, numpy (H, W, C) or tensor (C, H, W), one or one per prompt"


@dataclass(kw_only=True)
class WindowInputs(Inputs):
    controlnet_conditioning_scale: float | list[float] = field("Weight of the control; a list has one per network.", 1.0)
    guess_mode: bool = field("Let the picture speak where there is no prompt: the control leaves unconditional predictions alone.", False)
    control_guidance_start: float | list[float] = field("Share of the steps before the control begins; a list has one per network.", 0.0)
    control_guidance_end: float | list[float] = field("Share of the steps after which the control has ended.", 1.0)


@dataclass(kw_only=True)
class ImageInputs(WindowInputs):
    image: Any = field(f"{_PICTURE}; several networks take a list, or a list per prompt.")


@dataclass(kw_only=True)
class ControlImageInputs(WindowInputs):
    control_image: Any = field(f"{_PICTURE}; several networks take a list, or a list per prompt.")


@dataclass(kw_only=True)
class UnionInputs(ControlImageInputs):
    control_mode: int | list[int] | list[list[int]] | None = field("Which kind each picture is of, by the network's numbers from 0.")


@dataclass(kw_only=True)
class AdapterInputs(Inputs):
    image: Any = field(f"{_PICTURE}; several adapters take a list.")
    adapter_conditioning_scale: float | list[float] = field("Weight of the adapter; a list has one per adapter.", 1.0)


@dataclass(kw_only=True)
class AdapterControlInputs(AdapterInputs):
    control_image: Any = field(f"{_PICTURE}; several adapters take a list.")


def numbers(value: Any, count: int, where: str) -> list[float]:
    """One number for each of `count` networks, from one for all or a list."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v - v == 0 for v in values)
    if not good or len(values) != count:
        expected = "a number" if count == 1 else f"a number, or a list of {count}"
        raise InputError("There must be one number per network.", where=where, got=value, expected=expected)
    return [float(v) for v in values]


def per_network(value: Any, count: int, where: str) -> list[Any]:
    """The pictures of each of `count` networks: a list of one entry per network, or per prompt a list of one picture per network."""
    if value is None:
        raise InputError("A picture is missing.", where=where, expected="PIL, numpy, tensor or list")
    if isinstance(value, (list, tuple)) and any(isinstance(v, (list, tuple)) for v in value):
        rows = [v if isinstance(v, (list, tuple)) else [v] for v in value]
        value = [list(column) for column in zip(*rows)] if {len(row) for row in rows} == {count} else rows
    if not isinstance(value, (list, tuple)) or len(value) != count:
        got = f"{len(value)} pictures" if isinstance(value, (list, tuple)) else type(value).__name__
        raise InputError("There must be one picture per network.", where=where, got=got, expected=f"a list of {count}")
    return list(value)


class Pictured:
    """What the controls share: pictures in the argument `picture`, one or more for each network of the component `component`."""

    name: str
    component: str
    kinds: tuple[str, ...]  # of networks that are such a component
    holder: str  # where a component of several networks has them
    Inputs: type[Inputs]

    def __init__(self, picture: str):
        self.picture = picture
        self.tensors: tuple[str, ...] = (picture,)

    def network(self, pipe: Any) -> Any:
        network = getattr(pipe, self.component)
        return getattr(network, "_orig_mod", network)  # compiled

    def networks(self, pipe: Any) -> list[Any]:
        network = self.network(pipe)
        return list(getattr(network, self.holder, [network]))

    def fits(self, component: Any) -> bool:
        """Whether a network, or a list of them, is such a component."""
        first = component[0] if isinstance(component, (list, tuple)) and component else component
        return any(base.__name__ in self.kinds for base in type(first).__mro__)

    def several(self, pipe: Any) -> bool:
        """Whether the component is a list of networks, and receives lists."""
        return hasattr(self.network(pipe), self.holder)

    def pictures(self, pipe: Any, inputs: Any) -> list[Any]:
        """What was given for each network."""
        value, count = getattr(inputs, self.picture), len(self.networks(pipe))
        return [value] if value is not None and count == 1 else per_network(value, count, self.picture)

    def factor(self, pipe: Any) -> int:
        """The size of the result is a multiple of this where the picture decides it."""
        return pipe.codec.factor(pipe)

    def fit(self, pipe: Any, inputs: Any, rows: int) -> Any:
        given, factor = self.pictures(pipe, inputs), self.factor(pipe)
        for one in given:
            image_size(one, self.picture)
        whole = getattr(inputs, "padding_mask_crop", None) is None
        width, height = image_size(given[0], self.picture) if whole else image_size(inputs.image)
        return dataclasses.replace(inputs, height=inputs.height or height - height % factor, width=inputs.width or width - width % factor)

    def prepare(self, pipe: Any, inputs: Any, cond: Conditioning) -> Conditioning:
        return cond

    def tensor(self, pipe: Any, run: Run, image: Any, channels: int, dtype: torch.dtype) -> Tensor:
        """One network's pictures at the size of the result: (1 or prompts, channels, fH, fW)."""
        inputs = run.inputs
        height, width = (side * pipe.codec.factor(pipe) for side in run.x.shape[-2:])
        pad = getattr(inputs, "padding_mask_crop", None)
        crop = None if pad is None else crop_region(inputs.mask_image, width, height, pad)
        fit = dict(height=height, width=width, crop=crop, resize_mode="fill" if crop else "default")
        x = hint_to_tensor(image, channels=channels, where=self.picture, **fit)
        if x.shape[0] not in (1, run.rows // inputs.num_images_per_prompt):
            expected = f"1 or {run.rows // inputs.num_images_per_prompt}"
            raise InputError("There must be one picture, or one per prompt.", where=self.picture, got=x.shape[0], expected=expected)
        return x.to(pipe.device, dtype)

    def rows(self, run: Run, x: Tensor) -> Tensor:
        """What was made for one picture, or for one per prompt, for each row of the run: (B, ...)."""
        return x.repeat_interleave(run.rows // x.shape[0], 0)


class ControlNets(Pictured):
    """One ControlNet or several, whose residuals are added (Zhang et al. 2023). It sees those channels of the latents that it was made for.
    With guess mode, or networks that pool over the picture, unconditional rows get no residuals, and are not computed.
    """

    name, component, holder = "ControlNet", "controlnet", "nets"
    kinds: tuple[str, ...] = ("ControlNetModel", "MultiControlNetModel")
    mark = "control_rows"  # the condition that says which rows it steers, (B,)

    def __init__(self, picture: str = "control_image"):
        super().__init__(picture)
        self.Inputs = ImageInputs if picture == "image" else ControlImageInputs

    def guesses(self, pipe: Any, inputs: Any) -> bool:
        return inputs.guess_mode or self.networks(pipe)[0].config.global_pool_conditions

    def parts(self, pipe: Any, inputs: Any) -> int:
        """How many scales and windows there are."""
        return len(self.networks(pipe))

    def fit(self, pipe: Any, inputs: Any, rows: int) -> Any:
        count = self.parts(pipe, inputs)
        numbers(inputs.controlnet_conditioning_scale, count, "controlnet_conditioning_scale")
        for low, high in self.windows(pipe, inputs):
            if not 0 <= low < high <= 1:
                where, expected = "control_guidance_start, control_guidance_end", "0 <= start < end <= 1"
                raise InputError("The control has no step to act in.", where=where, got=f"{low}, {high}", expected=expected)
        return super().fit(pipe, inputs, rows)

    def windows(self, pipe: Any, inputs: Any) -> list[tuple[float, float]]:
        """For each part the shares of the steps between which it acts."""
        names, count = ("control_guidance_start", "control_guidance_end"), self.parts(pipe, inputs)
        return list(zip(*(numbers(getattr(inputs, name), count, name) for name in names)))

    def prepare(self, pipe: Any, inputs: Any, cond: Conditioning) -> Conditioning:
        if cond.negative is None or not self.guesses(pipe, inputs):
            return cond
        # on the CPU: choosing rows by it makes nobody wait for the device
        steered = torch.ones(next(iter(cond.positive.cond.values())).shape[0], dtype=torch.bool)
        return Conditioning(cond.positive.with_cond(**{self.mark: steered}), cond.negative.with_cond(**{self.mark: ~steered}))

    def start(self, pipe: Any, run: Run) -> None:
        nets = zip(self.networks(pipe), self.pictures(pipe, run.inputs))
        made = [self.rows(run, self.tensor(pipe, run, image, net.config.conditioning_channels, net.dtype)) for net, image in nets]
        run.tensors[self.picture] = made if self.several(pipe) else made[0]

    def scales(self, pipe: Any, run: Run) -> list[float]:
        """What each part weighs in this step."""
        index, steps = run.index, len(run.scheduler.timesteps) - (getattr(run.scheduler, "begin_index", None) or 0)
        scales = numbers(run.inputs.controlnet_conditioning_scale, self.parts(pipe, run.inputs), "controlnet_conditioning_scale")
        windows = zip(scales, self.windows(pipe, run.inputs))
        return [scale if index / steps >= low and (index + 1) / steps <= high else 0.0 for scale, (low, high) in windows]

    def silent(self, pipe: Any, scales: Sequence[float]) -> bool:
        """Whether the residuals are zero anyway."""
        return not any(scales)

    def arguments(self, pipe: Any, run: Run, scales: list[float], take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What the component receives beside latents and conditions; `take` gives the rows of a picture that it computes."""
        pictures = run.tensors[self.picture]
        if self.several(pipe):
            return {"controlnet_cond": [take(picture) for picture in pictures], "conditioning_scale": scales}
        return {"controlnet_cond": take(pictures), "conditioning_scale": scales[0]}

    def residuals(self, pipe: Any, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]:
        scales, steered = self.scales(pipe, run), branch.cond.get(self.mark)
        if self.silent(pipe, scales) or (steered is not None and not steered.any()):
            return {}

        def take(rows: Tensor) -> Tensor:
            return rows if steered is None else rows[steered]

        def picture(rows: Tensor) -> Tensor:  # a callback may have put in one with rows for each branch
            return take(rows[-run.rows :].repeat(x.shape[0] // run.rows, 1, 1, 1))

        conditions = pipe.conditions(Branch({name: take(rows) for name, rows in branch.cond.items()}))
        arguments = self.arguments(pipe, run, scales, picture) | {"guess_mode": self.guesses(pipe, run.inputs), "return_dict": False}
        seen = take(x[:, : self.networks(pipe)[0].config.in_channels])
        down, mid = getattr(pipe, self.component)(seen, t, **conditions, **arguments)
        if steered is not None:
            down, mid = [among_zeros(d, steered) for d in down], among_zeros(mid, steered)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def among_zeros(x: Tensor, rows: Tensor) -> Tensor:
    """`x` (b, ...) at the b places where `rows` (B,) is True, zeros elsewhere: (B, ...)."""
    whole = x.new_zeros(rows.shape[0], *x.shape[1:])
    whole[rows] = x
    return whole


class ControlNetUnions(ControlNets):
    """Union ControlNets: one looks at pictures of several kinds, or several at theirs; `control_mode` says of which kind each picture is."""

    name, kinds = "ControlNetUnion", ("ControlNetUnionModel", "MultiControlNetUnionModel")

    def __init__(self, picture: str = "control_image"):
        super().__init__(picture)
        self.Inputs = UnionInputs

    def modes(self, pipe: Any, inputs: Any) -> list[list[int]]:
        """For each network the kinds of its pictures."""
        nets, value = self.networks(pipe), inputs.control_mode
        modes = value if isinstance(value, (list, tuple)) else [value]
        modes = [list(m) if isinstance(m, (list, tuple)) else [m] for m in (modes if self.several(pipe) else [modes])]
        kinds = nets[0].config.num_control_type
        if len(modes) != len(nets) or not all(isinstance(k, int) and 0 <= k < kinds for mode in modes for k in mode):
            expected = f"whole numbers from 0 to {kinds - 1}, for each of {len(nets)} networks one or a list"
            raise InputError("Pictures of unknown kinds.", where="control_mode", got=value, expected=expected)
        return modes

    def parts(self, pipe: Any, inputs: Any) -> int:
        modes = self.modes(pipe, inputs)
        return len(modes) if self.several(pipe) else len(modes[0])

    def pictures(self, pipe: Any, inputs: Any) -> list[Any]:
        """All pictures, network by network."""
        value, modes = getattr(inputs, self.picture), self.modes(pipe, inputs)
        given = value if isinstance(value, (list, tuple)) else [value]
        if self.several(pipe):
            given = [one for own in given for one in (own if isinstance(own, (list, tuple)) else [own])]
        count = sum(len(own) for own in modes)
        if value is None or len(given) != count:
            raise InputError("Not one picture per kind.", where=self.picture, got=len(given), expected=f"{count}, as control_mode says")
        return list(given)

    def start(self, pipe: Any, run: Run) -> None:
        pictures, made = iter(self.pictures(pipe, run.inputs)), []
        for net, modes in zip(self.networks(pipe), self.modes(pipe, run.inputs)):
            own = (self.tensor(pipe, run, next(pictures), net.config.conditioning_channels, net.dtype) for _ in modes)
            made.append([self.rows(run, one) for one in own])
        run.tensors[self.picture] = made if self.several(pipe) else made[0]

    def silent(self, pipe: Any, scales: Sequence[float]) -> bool:
        return not any(scales) and (self.several(pipe) or len(scales) == 1)  # with more pictures the scales weigh those, not the result

    def arguments(self, pipe: Any, run: Run, scales: list[float], take: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        several, modes, given = self.several(pipe), self.modes(pipe, run.inputs), run.tensors[self.picture]
        pictures = [[take(one) for one in own] for own in (given if several else [given])]
        kinds = []
        for net, own, mode in zip(self.networks(pipe), pictures, modes):
            used = own[0].new_zeros(own[0].shape[0], net.config.num_control_type)
            used[:, mode] = 1
            kinds.append(used)
        lists: dict[str, list[Any]] = {"controlnet_cond": pictures, "control_type": kinds, "control_type_idx": modes}
        return {"conditioning_scale": scales} | (lists if several else {name: own[0] for name, own in lists.items()})


class T2IAdapters(Pictured):
    """One T2I-Adapter or several: feature maps of the picture inside the denoiser's way down, made once per run (Mou et al. 2023).
    Where the inputs have an `adapter_conditioning_factor`, they are added in that share of the steps only.
    """

    name, component, holder = "Adapter", "adapter", "adapters"
    kinds = ("T2IAdapter", "MultiAdapter")
    state = "adapter_state"

    def __init__(self, picture: str = "image"):
        super().__init__(picture)
        self.Inputs = AdapterInputs if picture == "image" else AdapterControlInputs
        self.tensors = ()

    def factor(self, pipe: Any) -> int:
        return math.lcm(pipe.codec.factor(pipe), self.network(pipe).downscale_factor)

    def fit(self, pipe: Any, inputs: Any, rows: int) -> Any:
        numbers(inputs.adapter_conditioning_scale, len(self.networks(pipe)), "adapter_conditioning_scale")
        inputs = super().fit(pipe, inputs, rows)
        if inputs.height % (factor := self.factor(pipe)) or inputs.width % factor:
            got, expected = f"{inputs.height}, {inputs.width}", f"multiples of {factor} pixels"
            raise InputError("The adapter cannot divide this size.", where="height, width", got=got, expected=expected)
        return inputs

    def start(self, pipe: Any, run: Run) -> None:
        nets, network = self.networks(pipe), getattr(pipe, self.component)
        given = zip(nets, self.pictures(pipe, run.inputs))
        pictures = [self.tensor(pipe, run, image, net.config.in_channels, net.dtype) for net, image in given]
        scales = numbers(run.inputs.adapter_conditioning_scale, len(nets), "adapter_conditioning_scale")
        made = network(pictures, scales) if self.several(pipe) else [f * scales[0] for f in network(pictures[0])]
        run.tensors[self.state] = [self.rows(run, feature) for feature in made]

    def residuals(self, pipe: Any, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]:
        if run.index >= int(len(run.timesteps) * getattr(run.inputs, "adapter_conditioning_factor", 1.0)):
            return {}
        return {"down_intrablock_additional_residuals": [f.repeat(x.shape[0] // run.rows, 1, 1, 1) for f in run.tensors[self.state]]}
