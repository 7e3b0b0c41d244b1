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

    sd, xl = (NARROW if options.quick else SD15), SDXL | ({"block_out_channels": [320] * 3} if options.quick else {})
    family = "StableDiffusion{}Pipeline".format
    plans = [  # layout, its writer, config, classes: that of the source first; limit in MB
        ("SD 1.5", tiny.sd, sd, [family(task) for task in ("", "Img2Img")], 50),
        ("SD 1.5 and a motion adapter", tiny.sd, sd, [family(""), family("SAG"), "AnimateDiffPipeline"], 50),
        ("SDXL", tiny.sdxl, xl, [family(f"XL{task}") for task in ("", "Img2Img", "Inpaint")], None),
    ]
    for layout, write, config, classes, limit in plans:
        with tempfile.TemporaryDirectory() as folder:
            write(folder)
            for dtype in ("", "float16"):
                after: dict[str, tuple[float, str]] = {}

                def grown(name: str, *parts: str, after: dict[str, tuple[float, str]] = after) -> float:
                    megabytes, *after[name] = json.loads(fresh(["-m", "benchmarks.growth", name, *parts], options)[2])
                    return megabytes

                parts = [folder, json.dumps(config), options.device, dtype, *classes]
                runs = {n: partial(grown, n, *parts) for n in LIBRARIES}
                got = interleave(runs, 1 if options.quick else 3, warm_up=False)
                what = f"{layout}: growth by {len(classes) - 1} x `from_pipe(pipe{', torch_dtype=float16' if dtype else ''})`"
                size = after["darkroom"][0]
                note = f"UNet of {size:.0f} MB; source afterwards: " + ", ".join(f"{n} {d}" for n, (_, d) in after.items())
                most = limit or round(size / 100, 1)
                yield Row(what, got["darkroom"], got["diffusers"], unit="MB", limit=most, absolute=True, note=note)


@case("load", "1 x", "one process, bundled checkpoint, everything imported")
def load(options: Options) -> Iterator[Row]:
    import diffusers
    import darkroom
    from darkroom.assets import EMOJI

    classes = {lib.__name__: lib.StableDiffusionPipeline for lib in (darkroom, diffusers)}
    runs = {name: clock(lambda kind=kind: kind.from_pretrained(EMOJI)) for name, kind in classes.items()}
    got = interleave(runs, 2 if options.quick else 15)
    yield Row("`from_pretrained`", *(share(got[n], 1) for n in LIBRARIES), unit="ms", limit=1)


@case("adapters", "0.3 x to load, 5 ms to switch, 1.1 x a call without", "both networks over the same random weights, LoRA of rank 16")
def adapters(options: Options) -> Iterator[Row]:
    import diffusers
    import torch
    from safetensors.torch import save_file
    import darkroom

    config = NARROW if options.quick else SD15
    torch.manual_seed(SEED)
    theirs = diffusers.UNet2DConditionModel(**config).eval().to(options.device)
    with torch.device("meta"):
        ours = darkroom.UNet2DConditionModel(**config).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    nets: dict[str, Any] = dict(zip(LIBRARIES, (ours, theirs)))
    state = {}
    for name, layer in ours.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, wide = layer.weight.shape
            state |= {f"unet.{name}.lora_A.weight": torch.randn(16, wide), f"unet.{name}.lora_B.weight": torch.randn(out, 16) / 100}
    size = 8 if options.quick else 32
    x, context = torch.randn(2, 4, size, size).to(options.device), torch.randn(2, 77, 768).to(options.device)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_file(state, f"{folder}/{(name := 'pytorch_lora_weights.safetensors')}")
        file: dict[str, Any] = {"prefix": "unet", "weight_name": name}

        def load(net: Any) -> float:
            seconds = clock(lambda: net.load_lora_adapter(folder, adapter_name="a", **file), options.device)()
            net.unload_lora()
            return seconds

        got = interleave({n: partial(load, net) for n, net in nets.items()}, 2 if options.quick else 9)
        megabytes = sum(t.nbytes for t in state.values()) / 1e6
        yield Row(f"load {len(state)} tensors, {megabytes:.0f} MB", *(share(got[n], 1) for n in LIBRARIES), unit="ms", limit=0.3)
        for net in nets.values():
            for name in "ab":
                net.load_lora_adapter(folder, adapter_name=name, **file)
        weights = iter(range(10**6))
        runs = {n: clock(lambda net=net: net.set_adapters(["a", "b"], [next(weights) % 7, 0.5])) for n, net in nets.items()}
        got = interleave(runs, 3 if options.quick else 21)
        yield Row("switch between two of them", *(share(got[n], 1) for n in LIBRARIES), unit="ms", limit=5, absolute=True)

        def call(net: Any, with_adapter: bool) -> float:
            (net.enable_lora if with_adapter else net.disable_lora)()
            return clock(lambda: net(x, torch.tensor(500, device=options.device), context), options.device)()

        outs = []
        for net in nets.values():
            net.set_adapters("a")
            outs.append(net(x, torch.tensor(500, device=options.device), context).sample)
        runs = {f"{n} {w}": partial(call, net, w) for n, net in nets.items() for w in (False, True)}
        got = interleave(runs, 3 if options.quick else 15, budget=240)
    ratios = ([w / b for w, b in zip(got[f"{n} True"], got[f"{n} False"])] for n in LIBRARIES)
    note = f"outputs differ by {(outs[0] - outs[1]).abs().max():.1e}, largest value {outs[1].abs().max():.2g}"
    yield Row(f"a call with one, unfused, {8 * size} px", *ratios, unit="x without", limit=1.1, absolute=True, note=note)
    yield Row("the same, in time", *(share(got[f"{n} True"], 1) for n in LIBRARIES), unit="ms")


@case("ip_adapter", "1 x", "one process, both UNets over the same random weights of SD 1.5 size, embeddings given, per step of a call of 3")
def ip_adapter(options: Options) -> Iterator[Row]:
    import diffusers
    import torch
    from families import ip_adapters, tiny
    import darkroom

    config, size, steps = NARROW if options.quick else SD15, 8 if options.quick else 64 if options.device != "cpu" else 16, 3
    torch.manual_seed(SEED)
    theirs = diffusers.UNet2DConditionModel(**config).eval()
    with torch.device("meta"):
        ours = darkroom.UNet2DConditionModel(**config).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    pipes, latents, shapes = {}, {}, {"base": (2, 1, 1024), "plus": (2, 1, 257, 1280)}
    with tempfile.TemporaryDirectory() as folder:
        tiny.sd(folder)
        for lib, unet in ((darkroom, ours), (diffusers, theirs)):
            pipe = lib.StableDiffusionPipeline.from_pretrained(folder, unet=unet, requires_safety_checker=False)
            pipe.to(options.device).set_progress_bar_config(disable=True)
            pipes[lib.__name__] = pipe
    context = torch.randn(2, 1, 77, 768).to(options.device)
    call = dict(zip(("prompt_embeds", "negative_prompt_embeds"), context), num_inference_steps=steps, output_type="latent")
    call |= {"height": 2 * size, "width": 2 * size}

    def candidate(name: str, embeds: torch.Tensor) -> Callable[[], float]:
        def run() -> None:
            seeded = torch.Generator().manual_seed(SEED)
            latents[name] = pipes[name](**call, ip_adapter_image_embeds=[embeds], generator=seeded).images

        return clock(run, options.device)

    for kind, shape in shapes.items():
        tensors = ip_adapters.adapter(ours, kind, real=True)
        for pipe in pipes.values():
            pipe.load_ip_adapter(tensors, None, None, image_encoder_folder=None)
        embeds = torch.randn(shape).to(options.device)
        runs = {name: candidate(name, embeds) for name in pipes}
        got = interleave(runs, 2 if options.quick else 15, budget=90)
        note = f"latents differ by {(latents['darkroom'] - latents['diffusers']).abs().max():.1e}"
        yield Row(f"a step with {kind}, latents of {size}", *(share(got[n], steps) for n in LIBRARIES), unit="ms", limit=1, note=note)


@case(
    "large", "0.6 x float32, 0.35 x to bfloat16 in 1.1 x the result's memory, 0.6 x SDXL in shards", "a fresh process each, page cache warm"
)
def large(options: Options) -> Iterator[Row]:
    from .loading import rows

    yield from rows(options)
