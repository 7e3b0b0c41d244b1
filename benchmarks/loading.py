"""Loading of large checkpoints, beside the reference: `python -m benchmarks --only large [--folder KEPT]`.

Writes (once, into KEPT) Stable Diffusion 1.5's layout in float32 (4.3 GB) and SDXL's UNet in float16 in shards of 1 GB (5.1 GB), of random
weights. Every figure is of a fresh process in which everything is imported and compiled, the files read just before, so that they are in the page
cache; memory is over the process's own after its imports, in a run of its own.
"""

from __future__ import annotations
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

from .cases import SD15
from .measure import LIBRARIES, Options, Row, fresh, interleave

__all__ = ["layouts", "rows"]

SDXL = {
    "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
TEXT = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, vocab_size=49408)
PLAIN = 4 * 2**20  # bytes of a plain read
PIECE = 2**20  # bytes that stay in a processor's cache


def layouts(folder: Path, quick: bool = False) -> None:
    """Write both layouts, where they are not there yet; much narrower ones if `quick`."""
    import torch
    import transformers
    from families import tiny
    from torch import nn
    import darkroom

    numbers = torch.randn(2**24) / 30
    narrow = {"block_out_channels": [32, 32, 64, 64]} if quick else {}

    def filled(module: nn.Module, dtype: torch.dtype) -> Any:
        """A module on "meta" with random values. They repeat: what they are makes no difference."""
        for owner in module.modules():
            for leaf, p in owner._parameters.items():
                if p is not None:
                    many = numbers.to(dtype).repeat(-(-p.numel() // len(numbers)))
                    owner._parameters[leaf] = nn.Parameter(many[: p.numel()].reshape(p.shape).clone())
        return module.eval()

    if not (folder / "sd" / "model_index.json").exists():
        with torch.device("meta"):
            unet, vae = darkroom.UNet2DConditionModel(**SD15 | narrow), darkroom.AutoencoderKL(**VAE | narrow)
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
        pipe = darkroom.StableDiffusionPipeline(
            unet=filled(unet, torch.float32),
            vae=filled(vae, torch.float32),
            text_encoder=text,
            tokenizer=tiny.tokenizer(folder / "tokenizer"),
            scheduler=darkroom.PNDMScheduler(),
            safety_checker=None,
            feature_extractor=None,
        )
        pipe.save_pretrained(folder / "sd")
    if not (folder / "sdxl" / "config.json").exists():
        with torch.device("meta"):
            unet = darkroom.UNet2DConditionModel(**SDXL | ({"block_out_channels": [320] * 3} if quick else {}))
        filled(unet, torch.float16).save_pretrained(folder / "sdxl", max_shard_size="100MB" if quick else "1GB")


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: all, and those of no file."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Rss") or line.startswith("VmRSS")
    )
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]


def sampled(run: Callable[[], Any]) -> tuple[Any, int, int]:
    """What `run` returns, and the highest `resident` during it less that before."""
    before, peak, over = resident(), [0, 0], threading.Event()

    def sample() -> None:
        while not over.is_set():
            peak[:] = map(max, peak, resident())
            over.wait(0.005)

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        result = run()
        peak[:] = map(max, peak, resident())
    finally:
        over.set()
        watcher.join()
    return result, peak[0] - before[0], peak[1] - before[1]


def loading(library: str, what: str, folder: str, dtype: str) -> Callable[[], Any]:
    """A function that loads, with everything imported and nothing read."""
    from importlib import import_module
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401  is imported when a pipeline is loaded

    lib = import_module(library)
    _ = lib.AutoencoderKL, lib.PNDMScheduler, lib.UNet2DConditionModel
    if library == "darkroom":
        import_module("darkroom.checkpoints.pipelines")
    kind = lib.StableDiffusionPipeline if what == "sd" else lib.UNet2DConditionModel
    return lambda: kind.from_pretrained(f"{folder}/{what}", torch_dtype=getattr(torch, dtype))


def reading(way: str, folder: str) -> tuple[Callable[[], Any], int]:
    """A function that reads the float32 UNet, and its bytes: "plain" into a small buffer, "kept" in memory as plainly, or by
    `load_weights`: "read" into memory, or "cast" to bfloat16.
    """
    import torch
    import darkroom
    from darkroom.checkpoints.weights import Weights, load_weights

    path = Path(folder, "sd", "unet", "diffusion_pytorch_model.safetensors")
    size = path.stat().st_size

    def plain() -> None:
        with path.open("rb") as file:

            def work(turn: int) -> None:
                buffer = memoryview(bytearray(PLAIN))
                for offset in range(turn * PLAIN, size, 2 * PLAIN):
                    os.preadv(file.fileno(), [memory[offset : offset + PLAIN] if way == "kept" else buffer], offset)

            together(work)

    config = json.loads((path.parent / "config.json").read_text())
    with torch.device("meta"):
        unet = darkroom.UNet2DConditionModel.from_config(config)
    dtype = torch.bfloat16 if way == "cast" else None
    memory = memoryview(torch.empty(size if way == "kept" else 0, dtype=torch.uint8).numpy())  # type: ignore[arg-type]
    return plain if way in ("plain", "kept") else lambda: load_weights(unet, Weights([path]), dtype=dtype, mmap=False), size


def least(folder: str) -> Callable[[], Any]:
    """A function that does what no reader of Stable Diffusion 1.5's layout in float32 as bfloat16 avoids: two threads bring every byte into a small
    buffer, and write half as many into new memory.
    """
    import torch

    files = [(open(path, "rb"), path.stat().st_size // PLAIN * PLAIN) for path in Path(folder, "sd").rglob("*.safetensors")]
    memory = torch.empty(sum(size for _, size in files) // 2, dtype=torch.uint8)
    pieces, end = [], 0
    for file, size in files:
        pieces += [(file, offset, end + offset // 2) for offset in range(0, size, PIECE)]
        end += size // 2

    def work(turn: int) -> None:
        buffer = torch.empty(PIECE, dtype=torch.uint8)
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        for file, offset, place in pieces[turn::2]:
            os.preadv(file.fileno(), [view], offset)
            memory[place : place + PIECE // 2].copy_(buffer[: PIECE // 2])

    return lambda: together(work)


def together(work: Callable[[int], None]) -> None:
    """Do both halves, 0 and 1, of some work at once."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def child(task: str, *arguments: str) -> dict[str, float]:
    """What a fresh process measures: "time" and "memory" of `loading`, "use" with every weight read once, "rate" of `reading`, `least`."""
    if task == "rate":
        run, size = reading(*arguments)
    else:
        run = least(*arguments) if task == "least" else loading(*arguments)
    began = time.perf_counter()
    if task == "memory":
        pipe, peak, anonymous = sampled(run)
        parts = pipe.components.values() if hasattr(pipe, "components") else [pipe]
        size = sum(p.nbytes for part in parts if hasattr(part, "parameters") for p in part.parameters())
        return {"peak": peak / size, "anonymous": anonymous / size, "GB": size / 1e9}
    made = run()
    if task == "use":
        parts = made.components.values() if hasattr(made, "components") else [made]
        for p in (p for part in parts if hasattr(part, "parameters") for p in part.parameters()):
            p.sum()
    seconds = time.perf_counter() - began
    return {"rate": size / 1e9 / seconds} if task == "rate" else {"seconds": seconds}


def rows(options: Options) -> Iterator[Row]:
    """Each comparison as a row. The layouts are kept in `options.folder` if it is given."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        fresh(["-m", "benchmarks.loading", "--write", folder, *["quick"] * options.quick], options)
        yield from _rows(folder, 1 if options.quick else 9, options)


def _rows(folder: str, rounds: int, options: Options) -> Iterator[Row]:
    def run(*arguments: str) -> dict[str, float]:
        for path in Path(folder, "sdxl" if "sdxl" in arguments else "sd").rglob("*.safetensors"):
            # into the page cache: what ran before may have pushed it out
            subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
        return json.loads(fresh(["-m", "benchmarks.loading", "--child", *arguments], options)[2])

    cases = [("sd", "float32", 0.6), ("sd", "bfloat16", 0.35), ("sdxl", "float16", 0.6)]
    for what, dtype, limit in cases:
        name = {"sd": "SD 1.5 layout, float32", "sdxl": "SDXL UNet, float16 in shards of 1 GB"}[what] + f" to {dtype}"
        for task, words in {"time": "", "use": ", and every weight read once"}.items():
            runs = {lib: lambda lib=lib, task=task: run(task, lib, what, folder, dtype)["seconds"] for lib in LIBRARIES}  # noqa: B023
            if (task, dtype) == ("time", "bfloat16"):
                runs["least"] = lambda: run("least", folder)["seconds"]
            got = interleave(runs, rounds, warm_up=not options.quick)
            if "least" in got:
                what_least = "what no reader in two threads avoids: every byte read, as many written as the result has"
                yield Row(what_least, got["least"], got["diffusers"])
            yield Row(name + words, *(got[lib] for lib in LIBRARIES), limit=limit if task == "time" else None)
        a, b = (run("memory", lib, what, folder, dtype) for lib in LIBRARIES)
        limits = (1.3, 1.1) if dtype == "bfloat16" else (None, None)
        for key, bound in zip(("peak", "anonymous"), limits):
            words = {"peak": "resident memory at the peak", "anonymous": "anonymous memory at the peak"}[key]
            yield Row(f"{words}, {what} to {dtype}", [a[key]], [b[key]], "x result", bound, True, f"result {a['GB']:.2f} GB")
    ways = {way: partial(lambda way: run("rate", way, folder)["rate"], way) for way in ("plain", "kept", "read", "cast")}
    got = interleave(ways, rounds, warm_up=not options.quick)
    for way, words in {"read": "reading float32 without mapping", "cast": "reading float32 as bfloat16"}.items():
        for limit, into in {"plain": "one small buffer", "kept": "memory of their own"}.items():
            row = Row(f"{words}, beside plain parallel reads into {into}", got[way], got[limit], "GB/s")
            row.note = f"{row.ratio[0]:.0%}, target 70% or more" if row.ratio else ""
            yield row


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        print(json.dumps(child(*sys.argv[2:])))
    else:
        layouts(Path(sys.argv[2]), quick=len(sys.argv) > 3)
