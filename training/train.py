"""Train the bundled checkpoint: `python training/train.py vae`, then `unet`, then `python training/export.py`.

Each stage writes its state to training/work every two minutes and goes on from there when started again. Several workers share each
batch and add up their gradients; what they draw depends on the step alone, so the number of workers changes nothing but rounding.
"""

from __future__ import annotations
import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from data import SIZE, caption_pool, glyphs, other_glyphs, render, save_tokenizer
from torch import Generator, Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from darkroom.models.autoencoder_kl import AutoencoderKL
from darkroom.models.unet_2d_condition import UNet2DConditionModel
from darkroom.schedulers.ddim import DDIMScheduler

WORK = Path(__file__).parent / "work"
VAE = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (32, 64, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3, "sample_size": SIZE, "force_upcast": False,
}  # fmt: skip
UNET = {
    "in_channels": 4, "out_channels": 4, "sample_size": SIZE // 4, "block_out_channels": (64, 128, 128), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 4,
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 128,
}  # fmt: skip
TEXT = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 128,
    "max_position_embeddings": 77, "bos_token_id": 2046, "eos_token_id": 2047, "pad_token_id": 2047, "hidden_act": "quick_gelu",
}  # fmt: skip
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def seeded(*key: int) -> Generator:
    """A generator for one purpose at one step."""
    return Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def pictures(texts: list[str]) -> Tensor:
    """Rendered glyphs, (N, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.stack([render(t) for t in texts])).permute(0, 3, 1, 2).float() / 127.5 - 1


class Share:
    """This worker's part of each batch, and the sum of all workers' gradients."""

    def __init__(self, rank: int, workers: int):
        self.rank, self.workers = rank, workers
        if workers > 1:
            dist.init_process_group("gloo", init_method=f"file://{WORK}/rendezvous", rank=rank, world_size=workers)

    def __call__(self, batch: Tensor) -> Tensor:
        return batch.tensor_split(self.workers)[self.rank]

    def average(self, parameters: list[nn.Parameter], loss: Tensor) -> float:
        """Average the gradients in place; returns the average of the losses."""
        if self.workers == 1:
            return loss.item()
        flat = torch.cat([loss.detach().reshape(1), *(p.grad.reshape(-1) for p in parameters)]) / self.workers
        dist.all_reduce(flat)
        sizes = [1, *(p.numel() for p in parameters)]
        for p, gradient in zip(parameters, flat.split(sizes)[1:], strict=True):
            p.grad.copy_(gradient.view_as(p))
        return flat[0].item()


def fit(
    stage: str, nets: dict[str, nn.Module], loss_at: Callable[[int], Tensor], share: Share, *, steps: int, rate: float,
    betas: tuple[float, float], decay: float,
) -> Iterator[int]:  # fmt: skip
    """AdamW with warm-up, cosine and an exponential moving average, for `steps` steps or from the saved state on.

    Yields after each step; when it is done, the networks hold the average.
    """
    parameters = [p for net in nets.values() for p in net.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate, betas=betas, weight_decay=0.01, fused=True)
    average = [p.detach().clone() for p in parameters]
    state_file, start = WORK / f"{stage}.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        average = state["average"]
        for name, net in nets.items():
            net.load_state_dict(state[name])

    def save(step: int) -> None:
        if share.rank == 0:
            parts = {name: net.state_dict() for name, net in nets.items()}
            part = state_file.with_suffix(".part")
            torch.save({**parts, "optimizer": optimizer.state_dict(), "average": average, "step": step}, part)
            os.replace(part, state_file)

    saved = time.monotonic()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=stage, disable=share.rank > 0, mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.zero_grad()
        loss = loss_at(step)
        loss.backward()
        value = share.average(parameters, loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(decay, (step + 1) / (step + 10)))
        if share.rank == 0 and step % 10 == 9:
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            with open(WORK / f"{stage}.jsonl", "a") as log:
                log.write(json.dumps({"step": step + 1, "loss": value, "seconds": time.process_time() * share.workers}) + "\n")
        if time.monotonic() - saved > 120:
            save(step + 1)
            saved = time.monotonic()
        yield step
    save(steps)
    with torch.no_grad():
        for p, mean in zip(parameters, average, strict=True):
            p.copy_(mean)


def train_vae(share: Share, steps: int) -> None:
    """The autoencoder: 65% of the steps on crops, where most is learned per pixel, then on whole pictures."""
    chosen, others = pictures([g.text for g in glyphs()]), pictures([g.text for g in other_glyphs()])
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE).to(memory_format=torch.channels_last)

    def batch_at(step: int) -> Tensor:
        crops = step < 0.65 * steps
        rng, half = seeded(1, step), 8 if crops else 3
        rows = [images[torch.randint(len(images), (half,), generator=rng)] for images in (chosen, others)]
        x = torch.cat(rows)[torch.randperm(2 * half, generator=rng)]
        if crops:
            corners = torch.randint(SIZE // 2 + 1, (len(x), 2), generator=rng).tolist()
            x = torch.stack([image[:, i : i + 32, j : j + 32] for image, (i, j) in zip(x, corners, strict=True)])
        return share(x).contiguous(memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        x = batch_at(step)
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=seeded(2, step, share.rank))
        y = vae.decode(z).sample
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * edges + 5e-4 * kl

    for _ in fit("vae", {"vae": vae}, loss_at, share, steps=steps, rate=2.5e-3, betas=(0.9, 0.99), decay=0.99):
        pass
    if share.rank == 0:
        torch.save(vae.state_dict(), WORK / "vae-final.pt")


@torch.no_grad()
def write_latents() -> None:
    """The latents of the chosen glyphs, mean and standard deviation, and the factor that makes their variance 1."""
    vae, images = AutoencoderKL(**VAE).eval(), pictures([g.text for g in glyphs()])
    vae.load_state_dict(torch.load(WORK / "vae-final.pt", weights_only=True))
    posteriors = [vae.encode(x).latent_dist for x in images.split(32)]
    mean, std = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
    y = torch.cat([vae.decode(z).sample for z in mean.split(32)]).clamp(-1, 1)
    error = ((y - images) / 2).pow(2).mean((1, 2, 3))
    report = {"psnr": (-10 * error.log10()).mean().item(), "scaling_factor": round(1 / mean.std().item(), 4)}
    torch.save({"mean": mean, "std": std, **report}, WORK / "latents.pt")
    print(json.dumps(report), flush=True)


def train_unet(share: Share, exposures: int, batch: int) -> None:
    """Denoiser and text encoder together, on the latents of the autoencoder: v-prediction, plain mean square."""
    latents = torch.load(WORK / "latents.pt", weights_only=True)
    pool = caption_pool(glyphs())
    tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
    padded = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    captions = torch.stack([tokenizer(p, **padded).input_ids for p in pool])  # (N, 8, 77)
    empty = tokenizer([""], **padded).input_ids
    torch.manual_seed(0)
    text = CLIPTextModel(CLIPTextConfig(**TEXT))
    unet = UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler(**SCHEDULE)
    n = len(pool)

    def rows_at(step: int) -> Tensor:
        """Which glyphs: every one of them once in each round."""
        at = torch.arange(step * batch, (step + 1) * batch)
        rounds = {r: torch.randperm(n, generator=seeded(3, r)) for r in (at // n).unique().tolist()}
        return torch.stack([rounds[r][i] for r, i in zip((at // n).tolist(), (at % n).tolist(), strict=True)])

    def loss_at(step: int) -> Tensor:
        rng, rows = seeded(4, step), rows_at(step)
        noise, spread = torch.randn((2, batch, *latents["mean"].shape[1:]), generator=rng)
        t = (torch.randperm(batch, generator=rng) + torch.rand(batch, generator=rng)) / batch * 1000
        ids = captions[rows, torch.randint(8, (batch,), generator=rng)]
        ids = torch.where(torch.rand(batch, 1, generator=rng) < 0.1, empty, ids)
        x0 = (latents["mean"][rows] + latents["std"][rows] * spread) * latents["scaling_factor"]
        x0, noise, t, ids = share(x0), share(noise), share(t.long().clamp(max=999)), share(ids)
        x = scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(unet(x, t, text(ids)[0]).sample, scheduler.get_velocity(x0, noise, t))

    nets = {"unet": unet, "text_encoder": text}
    steps = math.ceil(n * exposures / batch)
    for _ in fit("unet", nets, loss_at, share, steps=steps, rate=1.2e-3, betas=(0.9, 0.99), decay=0.997):
        pass
    if share.rank == 0:
        torch.save({name: net.state_dict() for name, net in nets.items()}, WORK / "unet-final.pt")


def work(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # layers this small are slower with more; workers are the better use of cores
    torch.set_flush_denormal(True)
    share = Share(rank, args.workers)
    if args.stage == "vae":
        train_vae(share, args.steps)
    else:
        train_unet(share, args.exposures, args.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("vae", "unet"))
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--steps", type=int, default=2400, help="of the autoencoder")
    parser.add_argument("--exposures", type=int, default=320, help="how often the denoiser sees each glyph")
    parser.add_argument("--batch", type=int, default=32, help="of the denoiser, over all workers")
    args = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    (WORK / "rendezvous").unlink(missing_ok=True)
    if not (WORK / "tokenizer").exists():
        save_tokenizer(WORK / "tokenizer")
    if args.stage == "unet" and not (WORK / "latents.pt").exists():
        write_latents()
    if args.workers == 1:
        work(0, args)
    else:
        torch.multiprocessing.spawn(work, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
