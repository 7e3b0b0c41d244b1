"""Train what goes with the bundled checkpoint, whose weights stay as they are: `python training/companions.py control`, `lora` or `motion`.

Each goes on where it was when started again, and ends by writing its files into the package. `evaluate_companions.py` measures them.
"""

from __future__ import annotations
import argparse
from collections.abc import Callable
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from data import FRAMES, caption_pool, compose, cut_out, delft, glyphs, moderate, placement, render, turning
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from train import WORK, Share, fit, seeded
from darkroom import ControlNetModel, DDIMScheduler, StableDiffusionPipeline
from darkroom.assets import EMOJI

__all__ = ["ASSETS", "RANK", "Frozen", "LowRank", "adapt"]

ASSETS = Path(EMOJI).parent
WIDTHS = (16, 32, 64)  # of the ControlNet's picture: it halves twice, as the autoencoder does
RANK = 4


class Frozen:
    """The bundled checkpoint, and what training asks of it."""

    def __init__(self) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(EMOJI)
        self.unet = self.pipe.unet.requires_grad_(False).to(memory_format=torch.channels_last)
        self.vae = self.pipe.vae.to(memory_format=torch.channels_last)
        self.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)

    @torch.no_grad()
    def states(self) -> Tensor:
        """Of the eight captions of each glyph, and of the empty prompt behind them: (N + 1, 8, 77, 128)."""
        pool = [*caption_pool(glyphs()), [""] * 8]
        return torch.stack([self.pipe.encode_prompt(captions, do_classifier_free_guidance=False)[0] for captions in pool])

    @torch.no_grad()
    def latents(self, pictures: np.ndarray) -> Tensor:
        """Of pictures (N, 64, 64, 3) of uint8: (N, 4, 16, 16)."""
        parts = []
        for rows in tqdm(np.array_split(pictures, -(-len(pictures) // 32)), desc="latents", mininterval=10):
            x = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(self.vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean)
        return torch.cat(parts) * self.vae.config.scaling_factor

    def loss(self, x0: Tensor, rng: torch.Generator, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Mean square of the velocity at noise levels that are spread over the batch."""
        batch, noise = len(x0), torch.randn(x0.shape, generator=rng)
        t = (torch.randperm(batch, generator=rng) + torch.rand(batch, generator=rng)) / batch * 1000
        t = t.long().clamp(max=999)
        x = self.scheduler.add_noise(x0, noise, t)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return F.mse_loss(predict(x, t), self.scheduler.get_velocity(x0, noise, t))


def spoken(states: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
    """One of the captions of each of these glyphs, and nothing in a tenth of the cases."""
    rows = torch.where(torch.rand(len(rows), generator=rng) < 0.1, len(states) - 1, rows)
    return states[rows, torch.randint(states.shape[1], (len(rows),), generator=rng)]


def shuffled(count: int, batch: int, step: int) -> Tensor:
    """Which rows this step sees: each once in every round."""
    at = torch.arange(step * batch, (step + 1) * batch)
    rounds = {r: torch.randperm(count, generator=seeded(5, r)) for r in (at // count).unique().tolist()}
    return torch.stack([rounds[r][i] for r, i in zip((at // count).tolist(), (at % count).tolist(), strict=True)])


def hints(silhouettes: Tensor) -> Tensor:
    """Silhouettes (N, 64, 64) of uint8 as the ControlNet sees them: (N, 3, 64, 64) of 0 and 1."""
    return silhouettes[:, None].expand(-1, 3, -1, -1).float() / 255


def made_once(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    file = WORK / name
    if not file.exists():
        torch.save(make(), file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    return torch.load(file, weights_only=True)


def train_control(steps: int, batch: int, placements: int) -> None:
    """A ControlNet that is shown the silhouette of a glyph, which stands anywhere on the page at any size and angle; in the last third of the steps,
    only at moderate ones.
    """
    frozen = Frozen()

    def data() -> dict[str, Tensor]:
        rng, pictures, silhouettes, kept = np.random.default_rng(6), [], [], []
        for glyph in tqdm(glyphs(), desc="glyphs", mininterval=10):
            cut = cut_out(glyph.text)
            for _ in range(placements):
                place = placement(rng)
                picture, silhouette = compose(cut, **place)
                pictures.append(picture)
                silhouettes.append(silhouette)
                kept.append(moderate(place))
        latents = frozen.latents(np.stack(pictures))
        return {"latents": latents, "silhouettes": torch.from_numpy(np.stack(silhouettes)), "moderate": torch.tensor(kept)}

    shown, states = made_once("placed.pt", data), frozen.states()
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(frozen.unet, conditioning_embedding_out_channels=WIDTHS)
    net.requires_grad_(True).to(memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        rng, among = seeded(7, step), torch.arange(len(shown["latents"])) if 3 * step < 2 * steps else shown["moderate"].nonzero()[:, 0]
        rows = among[shuffled(len(among), batch, step)]
        context, picture = spoken(states, rows // placements, rng), hints(shown["silhouettes"][rows])

        def predict(x: Tensor, t: Tensor) -> Tensor:
            down, mid = net(x, t, context, picture, return_dict=False)
            added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            return frozen.unet(x, t, context, **added).sample

        return frozen.loss(shown["latents"][rows], rng, predict)

    for _ in fit("control", {"controlnet": net}, loss_at, Share(0, 1), steps=steps, rate=1e-3, betas=(0.9, 0.99), decay=0.995):
        pass
    net.to(torch.float16).save_pretrained(ASSETS / "emoji-controlnet")


class LowRank(nn.Module):
    """A linear layer or a convolution and, beside it, one of low rank that starts at zero: W x + B A x (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int):
        super().__init__()
        self.base = base
        if isinstance(base, nn.Linear):
            self.lora_A, self.lora_B = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        else:
            self.lora_A = nn.Conv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding, bias=False)
            self.lora_B = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


def adapt(unet: nn.Module, rank: int) -> dict[str, LowRank]:
    """Put such layers in the places of all attention projections and of the convolutions around them; returns them by their names."""
    ends = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
    made = {name: LowRank(layer, rank) for name, layer in unet.named_modules() if name.endswith(ends)}
    for name, layer in made.items():
        unet.set_submodule(name, layer)
    return made


def train_lora(steps: int, batch: int) -> None:
    """Layers of low rank beside those of the network, after which every glyph is painted in blue, as on a tile of Delft."""
    frozen = Frozen()

    def data() -> dict[str, Tensor]:
        return {"latents": frozen.latents(np.stack([delft(render(g.text)) for g in glyphs()]))}

    latents, states = made_once("delft.pt", data)["latents"], frozen.states()
    torch.manual_seed(0)
    layers = adapt(frozen.unet, RANK)
    trained = nn.ModuleDict({name.replace(".", "/"): nn.ModuleList([m.lora_A, m.lora_B]) for name, m in layers.items()})

    def loss_at(step: int) -> Tensor:
        rng, rows = seeded(8, step), shuffled(len(latents), batch, step)
        context = spoken(states, rows, rng)
        return frozen.loss(latents[rows], rng, lambda x, t: frozen.unet(x, t, context).sample)

    for _ in fit("lora", {"lora": trained}, loss_at, Share(0, 1), steps=steps, rate=1.5e-3, betas=(0.9, 0.99), decay=0.99):
        pass
    tensors = {}
    for name, m in layers.items():
        for part in ("lora_A", "lora_B"):
            tensors[f"unet.{name}.{part}.weight"] = getattr(m, part).weight.detach().half().contiguous()
    folder = ASSETS / "emoji-lora"
    folder.mkdir(exist_ok=True)
    save_file(tensors, file := folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    file.chmod(0o644)


def train_motion(steps: int, batch: int) -> None:
    """Motion modules with which the hues of a glyph go once around in eight frames."""
    from darkroom import MotionAdapter, UNetMotionModel

    frozen = Frozen()

    def data() -> dict[str, Tensor]:
        frames = np.concatenate([turning(render(g.text)) for g in glyphs()])
        return {"latents": frozen.latents(frames).unflatten(0, (-1, FRAMES)).transpose(1, 2).contiguous()}  # (N, 4, F, 16, 16)

    latents, states = made_once("turning.pt", data)["latents"], frozen.states()
    torch.manual_seed(0)
    shape = {"block_out_channels": frozen.unet.config.block_out_channels, "motion_layers_per_block": 1, "motion_num_attention_heads": 4}
    adapter = MotionAdapter(**shape, motion_max_seq_length=FRAMES).requires_grad_(True)
    for name, p in adapter.named_parameters():
        if ".proj_out." in name:
            nn.init.zeros_(p)
    unet = UNetMotionModel.from_unet2d(frozen.unet, adapter)

    def loss_at(step: int) -> Tensor:
        rng, rows = seeded(9, step), shuffled(len(latents), batch, step)
        context = spoken(states, rows, rng)
        return frozen.loss(latents[rows], rng, lambda x, t: unet(x, t, context).sample)

    for _ in fit("motion", {"adapter": adapter}, loss_at, Share(0, 1), steps=steps, rate=1.5e-3, betas=(0.9, 0.99), decay=0.98):
        pass
    adapter.to(torch.float16).save_pretrained(ASSETS / "emoji-motion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("control", "lora", "motion"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=16, help="twice as many for the ControlNet, a quarter for videos")
    parser.add_argument("--placements", type=int, default=32, help="of each glyph, for the ControlNet")
    args = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args.stage == "control":
        train_control(args.steps or 780, 2 * args.batch, args.placements)
    elif args.stage == "lora":
        train_lora(args.steps or 400, args.batch)
    else:
        train_motion(args.steps or 260, args.batch // 4)


if __name__ == "__main__":
    main()
