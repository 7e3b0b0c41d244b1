"""What is measured. A case is a function from options to rows, entered in `CASES` with its target and way of running."""

from __future__ import annotations
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from statistics import median
from time import perf_counter
from typing import Any
from .measure import LIBRARIES, Options, Row, clock, fresh, interleave, share

__all__ = ["CASES"]

PROMPT = "grinning face"
SEED = 7

SD15 = {  # the UNet of Stable Diffusion 1.5 (Rombach et al. 2022), 860 million parameters
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
NARROW = SD15 | {"block_out_channels": [32, 32, 64, 64]}

CHECKPOINT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "skip_prk_steps": True}
SCHEDULERS = """DDIM DDPM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete DPMSolverMultistep
    DPMSolverSinglestep DEISMultistep UniPCMultistep""".split()

Run = Callable[[Options], Iterator[Row]]
CASES: dict[str, tuple[Run, str, str]] = {}  # by name: what runs, the target, the way it is measured


def case(name: str, target: str, way: str) -> Callable[[Run], Run]:
    return lambda run: CASES.setdefault(name, (run, target, way))[0]


@case("import", "bare 0.15 s without torch; a pipeline class 1.15 x `import torch`", "a fresh process per statement")
def imports(options: Options) -> Iterator[Row]:
    program = "import sys, time; t = time.perf_counter(); {}; print(time.perf_counter() - t, 'torch' in sys.modules)"
    statements = {
        "bare": "import darkroom",
        "torch": "import torch",
        **{name: f"from {name} import StableDiffusionPipeline" for name in LIBRARIES},
    }
    loaded: dict[str, str] = {}

    def seconds(name: str) -> float:
        took, loaded[name] = fresh(["-c", program.format(statements[name])], options)[2].split()
        return float(took)

    runs = {name: partial(seconds, name) for name in statements}
    got = interleave(runs, 1 if options.quick else 9, warm_up=not options.quick)
    note = "torch is not loaded" if loaded["bare"] == "False" else "**loads torch**"
    yield Row("`import darkroom`", got["bare"], limit=0.15, absolute=True, note=note)
    yield Row("`import StableDiffusionPipeline`", got["darkroom"], got["diffusers"], note=f"torch alone: {median(got['torch']):.3g} s")
    ours, theirs = ([a / b for a, b in zip(got[name], got["torch"])] for name in LIBRARIES)
    yield Row("the same, in units of `import torch`", ours, theirs, unit="torch", limit=1.15, absolute=True)


@case("picture", "0.75 x from start to saved picture, same picture", "a fresh process per picture, bundled checkpoint")
def picture(options: Options) -> Iterator[Row]:
    import numpy as np
    from PIL import Image
    from darkroom.assets import EMOJI

    steps = 3 if options.quick else 25
    peaks: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{name}.png" for name in LIBRARIES}

        def seconds(name: str) -> float:
            arguments = ["-m", "benchmarks.picture", name, EMOJI, PROMPT, str(steps), str(SEED), files[name]]
            took, peak, _ = fresh(arguments, options)
            peaks[name].append(peak)
            return took

        runs = {n: partial(seconds, n) for n in LIBRARIES}
        got = interleave(runs, 1 if options.quick else 7, warm_up=not options.quick)
        ours, theirs = (np.asarray(Image.open(files[name])).astype(int) for name in LIBRARIES)
    note = f"pictures differ by at most {abs(ours - theirs).max()} of 255 levels"
    yield Row(f"first picture, {steps} steps", got["darkroom"], got["diffusers"], limit=0.75, note=note)
    yield Row("peak memory of that process", peaks["darkroom"], peaks["diffusers"], unit="MB")


@case("unet", "1.05 x", "both networks over the same random weights in one process")
def unet(options: Options) -> Iterator[Row]:
    import diffusers
    import torch
    import darkroom

    config = NARROW if options.quick else SD15
    torch.manual_seed(SEED)
    theirs = diffusers.UNet2DConditionModel(**config).eval().to(options.device)
    with torch.device("meta"):
        ours = darkroom.UNet2DConditionModel(**config).eval()
    nets = dict(zip(LIBRARIES, (ours, theirs)))
    for dtype in (torch.float32, torch.bfloat16):
        theirs.to(dtype)
        ours.load_state_dict(theirs.state_dict(), assign=True)
        for size in (8,) if options.quick else (32, 64):
            x = torch.randn(2, 4, size, size).to(options.device, dtype)
            context = torch.randn(2, 77, 768).to(options.device, dtype)
            inputs = (x, torch.tensor(500, device=options.device), context)
            runs = {n: clock(lambda net=net, inputs=inputs: net(*inputs), options.device) for n, net in nets.items()}
            with torch.no_grad():
                a, b = (net(*inputs).sample.float() for net in nets.values())  # warms up, too
                got = interleave(runs, 3 if options.quick else 21, budget=90, warm_up=False)
            name = str(dtype).removeprefix("torch.")
            note = f"outputs differ by {(a - b).abs().max():.1e}, largest value {b.abs().max():.2g}"
            samples = (share(got[n], 1) for n in LIBRARIES)
            yield Row(f"UNet call, {8 * size} px, {name}", *samples, unit="ms", limit=1.05, note=note)


@case("step", "1 x", "one process, tiny random checkpoint, per step of a call of 50; the network's part by hooks, host time on a GPU")
def step(options: Options) -> Iterator[Row]:
    import diffusers
    import torch
    from families import tiny
    import darkroom

    steps = 50
    network: dict[str, list[float]] = {name: [] for name in LIBRARIES}
    latents: dict[str, torch.Tensor] = {}

    def candidate(lib: Any) -> Callable[[], float]:
        pipe = lib.StableDiffusionPipeline.from_pretrained(folder).to(options.device)
        pipe.set_progress_bar_config(disable=True)
        ticks: list[float] = []  # the beginning and end of every network call, in turn
        pipe.unet.register_forward_pre_hook(lambda *_: ticks.append(perf_counter()))
        pipe.unet.register_forward_hook(lambda *_: ticks.append(perf_counter()))

        def call() -> None:
            seeded = torch.Generator().manual_seed(SEED)
            out = pipe("a cat", num_inference_steps=steps, generator=seeded, output_type="latent")
            latents[lib.__name__] = out.images

        def run() -> float:
            ticks.clear()
            seconds = clock(call, options.device)()
            network[lib.__name__].append(sum(ticks[1::2]) - sum(ticks[::2]))
            return seconds

        return run

    with tempfile.TemporaryDirectory() as folder:
        tiny.sd(folder, scheduler="DDIMScheduler")
        runs = {lib.__name__: candidate(lib) for lib in (darkroom, diffusers)}
    got = interleave(runs, 2 if options.quick else 15)
    whole = [share(got[n], steps) for n in LIBRARIES]
    inside = [share(network[n][1:], steps) for n in LIBRARIES]  # without the warm-up
    rest = [[w - i for w, i in zip(*pair)] for pair in zip(whole, inside)]
    note = f"latents differ by {(latents['darkroom'] - latents['diffusers']).abs().max():.1e}"
    yield Row("a step, whole", *whole, unit="ms", limit=1, note=note)
    yield Row("a step, in the network", *inside, unit="ms")
    yield Row("a step, the rest", *rest, unit="ms", limit=1)


@case(
    "schedulers",
    "0.5 x",
    "one process, runs of 25 steps on (1, 4, 8, 8), per step; less the same operations on tensors of that size, replayed",
)
def schedulers(options: Options) -> Iterator[Row]:
    import diffusers
    import torch
    from torch.overrides import TorchFunctionMode
    import darkroom

    class Tape(TorchFunctionMode):
        """The calls with tensors of the sample's size that are made meanwhile. Reading an attribute is none."""

        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[Callable[..., Any], Any, Any]] = []

        def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if function.__name__ != "__get__" and any(map(large, (found, *args))):
                self.calls.append((function, args, kwargs or {}))
            return found

    def large(value: Any) -> bool:
        return (
            any(map(large, value)) if isinstance(value, (list, tuple)) else isinstance(value, torch.Tensor) and value.numel() == x.numel()
        )

    seeded, turns = torch.Generator().manual_seed(SEED), 1 if options.quick else 20
    x, out = torch.randn(2, 1, 4, 8, 8, generator=seeded).unbind()

    def begin(scheduler: Any) -> Callable[[], torch.Tensor]:
        """A run that is laid out, to be walked."""
        scheduler.set_timesteps(25)
        times, draws = list(scheduler.timesteps), "generator" in signature(scheduler.step).parameters
        extra = {"generator": seeded.manual_seed(SEED)} if draws else {}

        def walk() -> torch.Tensor:
            sample = x
            for t in times:
                scheduler.scale_model_input(sample, t)
                sample = scheduler.step(out, t, sample, **extra).prev_sample
            return sample

        return walk

    def share_of(scheduler: Any, prepare: Callable[[], Callable[[], Any]]) -> Callable[[], float]:
        """A candidate: microseconds for each timestep of what was prepared."""

        def run() -> float:
            spent = 0.0
            for _ in range(turns):
                walk = prepare()
                began = perf_counter()
                walk()
                spent += perf_counter() - began
            return 1e6 * spent / turns / len(scheduler.timesteps)

        return run

    def replay(calls: list[tuple[Callable[..., Any], Any, Any]]) -> None:
        for function, args, kwargs in calls:
            function(*args, **kwargs)

    for name in SCHEDULERS:
        candidates, ends = {}, []
        for lib in (darkroom, diffusers):
            scheduler = getattr(lib, f"{name}Scheduler").from_config(CHECKPOINT)
            with Tape() as tape:
                ends.append(begin(scheduler)())
            candidates[lib.__name__] = share_of(scheduler, partial(begin, scheduler))
            candidates[f"{lib.__name__} arithmetic"] = share_of(scheduler, lambda calls=tape.calls: partial(replay, calls))
        got = interleave(candidates, 2 if options.quick else 15)
        samples = [[whole - part for whole, part in zip(got[n], got[f"{n} arithmetic"])] for n in LIBRARIES]
        note = "; ".join(f"{n}: {median(got[n]):.0f} in all, {median(got[f'{n} arithmetic']):.0f} arithmetic" for n in LIBRARIES)
        note += f"; results differ by {(ends[0] - ends[1]).abs().max() / ends[1].abs().max():.0e} of the largest"
        yield Row(f"{name}, a step beyond its arithmetic", *samples, unit="µs", limit=0.5, note=note)


@case("memory", "50 MB, 1 % of SDXL", "a fresh process each; float16; resident memory, on a GPU allocated bytes")
def memory(options: Options) -> Iterator[Row]:
    from families import tiny
    from .loading import SDXL

    layouts = {
        "SD 1.5": (tiny.sd, NARROW if options.quick else SD15, "StableDiffusion", ("", "Img2Img")),
        "SDXL": (
            tiny.sdxl,
            SDXL | {"block_out_channels": [320] * 3} if options.quick else SDXL,
            "StableDiffusionXL",
            ("", "Img2Img", "Inpaint"),
        ),
    }
    for layout, (write, config, family, tasks) in layouts.items():
        with tempfile.TemporaryDirectory() as folder:
            write(folder)
            for dtype in ("", "float16"):
                after: dict[str, tuple[float, str]] = {}

                def grown(name: str, dtype: str = dtype, after: dict[str, tuple[float, str]] = after) -> float:
                    classes = [f"{family}{task}Pipeline" for task in tasks]  # noqa: B023
                    arguments = ["-m", "benchmarks.growth", name, folder, json.dumps(config), options.device, dtype, *classes]  # noqa: B023
                    megabytes, *after[name] = json.loads(fresh(arguments, options)[2])
                    return megabytes

                got = interleave({n: partial(grown, n) for n in LIBRARIES}, 1 if options.quick else 3, warm_up=False)
                what = f"{layout}: growth by {len(tasks) - 1} x `from_pipe(pipe{', torch_dtype=float16' if dtype else ''})`"
                size = after["darkroom"][0]
                note = f"UNet of {size:.0f} MB; source afterwards: " + ", ".join(f"{n} {d}" for n, (_, d) in after.items())
                limit = 50 if layout != "SDXL" else size / 100
                yield Row(what, got["darkroom"], got["diffusers"], unit="MB", limit=round(limit, 1), absolute=True, note=note)


@case("load", "1 x", "one process, bundled checkpoint, everything imported")
def load(options: Options) -> Iterator[Row]:
    import diffusers
    import darkroom
    from darkroom.assets import EMOJI

    classes = {lib.__name__: lib.StableDiffusionPipeline for lib in (darkroom, diffusers)}
    runs = {name: clock(lambda kind=kind: kind.from_pretrained(EMOJI)) for name, kind in classes.items()}
    got = interleave(runs, 2 if options.quick else 15)
    yield Row("`from_pretrained`", *(share(got[n], 1) for n in LIBRARIES), unit="ms", limit=1)


@case(
    "large", "0.6 x float32, 0.35 x to bfloat16 in 1.1 x the result's memory, 0.6 x SDXL in shards", "a fresh process each, page cache warm"
)
def large(options: Options) -> Iterator[Row]:
    from .loading import rows

    yield from rows(options)
