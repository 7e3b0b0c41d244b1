"""Schedulers of tokens: how tokens are drawn and steps counted; those of pictures, which are masked, and those of text, block after block."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Generator, Tensor
from ..config import Config as BaseConfig
from ..outputs import Output
from .base import Device, Stepped, Timestep, options
from .special import SpecialScheduler

__all__ = [
    "AmusedScheduler", "BlockRefinementScheduler", "BlockRefinementSchedulerOutput", "DiscreteDDIMScheduler", "DiscreteDDIMSchedulerOutput",
    "EntropyBoundScheduler", "EntropyBoundSchedulerOutput", "VQDiffusionScheduler",
]  # fmt: skip

LOG_ZERO = math.log(1e-30)  # what stands for the logarithm of 0


@dataclass
class BlockRefinementSchedulerOutput(Output):
    """The block after a step; where tokens were committed and where edited; all drawn tokens and their probabilities; the logits."""

    prev_sample: Tensor
    transfer_index: Tensor
    editing_transfer_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


@dataclass
class DiscreteDDIMSchedulerOutput(Output):
    """The block after a step; the tokens drawn from the logits and their probabilities; the logits, for self-conditioning."""

    prev_sample: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


@dataclass
class EntropyBoundSchedulerOutput(Output):
    """The block after a step; where tokens were accepted; all drawn tokens and their probabilities; the logits at the step's temperature."""

    prev_sample: Tensor
    accepted_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


def uniform(shape: tuple[int, ...], like: Tensor, generator: Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform numbers in [0, 1) on the device of `like`, drawn on the generator's if there is one."""
    return torch.rand(shape, generator=generator, device=generator.device if generator else like.device, dtype=dtype).to(like.device)


def gumbel(u: Tensor, least: float) -> Tensor:
    """Gumbel noise from uniform numbers, limited to at least `least` on the way. Added to logits, its argmax is a draw from their softmax."""
    return -(-u.clamp(min=least).log()).clamp(min=least).log()


def draw(probabilities: Tensor, generator: Generator | None = None) -> Tensor:
    """One token from each row: (..., K) -> int64 (...)."""
    rows = probabilities.flatten(0, -2)
    rows = rows.to(generator.device) if generator else rows
    rows = rows.float() if rows.device.type == "cpu" and rows.dtype != torch.float64 else rows  # multinomial knows no halves there
    return torch.multinomial(rows, 1, generator=generator).to(probabilities.device).view(probabilities.shape[:-1])


def chances(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """What these tokens (...) have of (..., K)."""
    return probabilities.gather(-1, tokens[..., None])[..., 0]


def random_tokens(like: Tensor, classes: int, generator: Generator | None = None) -> Tensor:
    """Uniformly random tokens of that many classes, int64, in shape and device of `like`."""
    return torch.randint(classes, like.shape, generator=generator, device=generator.device if generator else like.device).to(like.device)


class TokenScheduler(SpecialScheduler, kind="tokens", accuracy="-"):
    """Over tokens (B, N), int64, of which the network gives the logits (B, N, K). A timestep is the number of a step; where a class needs no other
    position, steps may be taken again, as block by block."""

    _falls = True  # whether timesteps count down

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if "num_inference_steps" in config.names():
            TokenScheduler.set_timesteps(self, config.num_inference_steps)
        else:
            self._install(np.empty(0, np.int64), None)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps; where tokens come in blocks, for each block."""
        numbers = np.arange(self._steps(num_inference_steps))
        self._plan(len(numbers), numbers[::-1].copy() if self._falls else numbers, device)

    def _step_number(self, timestep: Timestep) -> int:
        number, steps = int(self.number(timestep)), self.num_inference_steps or 0
        self._ensure(0 <= number < steps, "No step of this run.", "step, timestep", number, f"0 to {steps - 1}")
        return number

    def _sample(self, logits: Tensor, temperature: float, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Tokens at this temperature (0 takes the likeliest), and their probabilities at temperature 1."""
        logits = logits.float()
        self._ensure(temperature >= 0, "A temperature below 0.", "step, temperature", temperature, "0 or above")
        tokens = draw((logits / temperature).softmax(-1), generator) if temperature else logits.argmax(-1)
        return tokens, chances(logits.softmax(-1), tokens)


class AmusedScheduler(TokenScheduler, paper="Chang et al. 2022", draws="yes"):
    """Parallel decoding of masked tokens (MaskGIT: Chang et al. 2022; aMUSEd: Patil et al. 2024). Each step draws every masked token, then masks
    again as many as the schedule says, those with the least log-probability plus noise, whose weight falls over the run as `temperatures`.
    `mask_token_id` is the masked token, `masking_schedule` how the share of masked tokens falls: by a cosine (Chang et al., sec. 3.3) or evenly."""

    Config = options(BaseConfig, mask_token_id=int, masking_schedule=("cosine", "linear"))
    temperatures: Any = None

    def set_timesteps(self, num_inference_steps: int, temperature: float | tuple[float, float] | list[float] = (2, 0),  # type: ignore[override]
                      device: Device = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps whose noise weighs `temperature`, from the first number to the second, or to 0.01."""
        super().set_timesteps(num_inference_steps, device)
        start, end = temperature if isinstance(temperature, (tuple, list)) else (temperature, 0.01)
        self.temperatures = torch.linspace(start, end, len(self._numbers), device=device)

    def _masked_share(self, timestep: Timestep) -> tuple[int, Tensor]:
        """The position of a timestep, and the share of tokens that are masked after it, as a float32 number."""
        self._needs_run()
        place = self.index_for_timestep(timestep)
        done = torch.tensor(place + 1) / len(self._numbers)
        return place, torch.cos(done * math.pi / 2) if self.config.masking_schedule == "cosine" else 1 - done

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, starting_mask_ratio: float = 1.0,
             generator: Generator | None = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """The tokens at the next timestep, and all tokens without masks, from logits (B, N, K) and tokens (B, N), or (B, K, H, W) and (B, H, W).
        `starting_mask_ratio` is the share that was masked when the run began."""
        self._needs_run()
        shape, mask = sample.shape, self.config.mask_token_id
        if sample.ndim == 3 and model_output.ndim == 4:
            sample, model_output = sample.flatten(1), model_output.flatten(2).mT
        unknown, probabilities = sample == mask, model_output.softmax(-1)
        x0 = prev = torch.where(unknown, draw(probabilities, generator), sample)
        if self.number(timestep) > 0:
            place, share = self._masked_share(timestep)
            self._ensure(sample.shape[1] > 1, "Too few tokens to mask some and keep some.", "step, sample", tuple(shape), "2 in a row")
            count = (sample.shape[1] * (starting_mask_ratio * share)).floor()
            count = (unknown.sum(-1, keepdim=True) - 1).clamp(max=int(count)).clamp(min=1)  # fewer than before, but one at least
            chosen = chances(probabilities, x0)
            chosen = torch.where(unknown, chosen, torch.finfo(chosen.dtype).max)  # what was given stays
            noise = gumbel(uniform(chosen.shape, chosen, generator, chosen.dtype), 1e-20)
            confidence = chosen.clamp(min=1e-20).log() + self.temperatures[place].reshape(1, 1) * noise
            prev = torch.where(confidence < confidence.sort(-1).values.gather(1, count), mask, x0)
        return self._result(return_dict, prev.reshape(shape), x0.reshape(shape))

    def add_noise(self, sample: Tensor, timesteps: Timestep, generator: Generator | None = None) -> Tensor:
        """Tokens with a random share masked: that which is masked after the step at this timestep."""
        share = self._masked_share(timesteps)[1]
        return sample.masked_fill(uniform(sample.shape, sample, generator) < share.item(), self.config.mask_token_id)


class VQDiffusionScheduler(TokenScheduler, paper="Gu et al. 2022", draws="yes"):
    """Discrete diffusion with the mask-and-replace kernel (VQ-Diffusion: Gu et al. 2022, sec. 4.1): in a step a token stays with probability
    alpha, becomes any of the K - 1 others with beta each, or the mask with gamma. `log_at`, `log_bt` and `log_ct` are their logarithms for one
    step, (T,), `log_cumprod_at` and so on for all steps so far, (T + 1,), with those of no step last, on the CPU.
    `num_vec_classes` counts the tokens, the mask among them as the last. Over the process the share of intact tokens goes evenly from
    `alpha_cum_start` to `alpha_cum_end`, that of masked ones from `gamma_cum_start` to `gamma_cum_end`. Runs of fewer steps begin in its middle."""

    Config = options(
        BaseConfig, num_vec_classes=int, num_train_timesteps=100, alpha_cum_start=0.99999, alpha_cum_end=0.000009, gamma_cum_start=0.000009,
        gamma_cum_end=0.99999,
    )  # fmt: skip
    _bounds = {"num_vec_classes": 1, "num_train_timesteps": 1}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        steps, self.num_embed = config.num_train_timesteps, config.num_vec_classes
        self.mask_class, part = self.num_embed - 1, np.arange(steps) / (steps - 1)
        alpha = np.append(1, part * (config.alpha_cum_end - config.alpha_cum_start) + config.alpha_cum_start)
        kept = 1 - np.append(0, part * (config.gamma_cum_end - config.gamma_cum_start) + config.gamma_cum_start)  # not masked
        with np.errstate(all="ignore"):
            single = self._logs(alpha[1:] / alpha[:-1], 1 - kept[1:] / kept[:-1])
            whole = self._logs(np.roll(alpha, -1), np.roll(1 - kept, -1))
        if any(table.isnan().any() for table in (*single, *whole)):
            self._refuse("alpha_cum_start, alpha_cum_end, gamma_cum_start, gamma_cum_end", "these", "shares that never exceed 1 together")
        (self.log_at, self.log_bt, self.log_ct), (self.log_cumprod_at, self.log_cumprod_bt, self.log_cumprod_ct) = single, whole
        self._install(np.arange(steps)[::-1].copy(), None)

    def _logs(self, alpha: np.ndarray, gamma: np.ndarray) -> list[Tensor]:
        beta = (1 - alpha - gamma) / (self.num_embed - 1)
        return [torch.from_numpy(values).log().float() for values in (alpha, beta, gamma)]

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generator | None = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Draw the tokens (B, N) one timestep earlier, given the log-probabilities of the original ones, (B, K - 1, N)."""
        logs = self.q_posterior(model_output, sample, timestep) if self.number(timestep) != 0 else model_output
        return self._result(return_dict, (gumbel(uniform(logs.shape, logs, generator), 1e-30) + logs).argmax(1))

    def q_posterior(self, log_p_x_0: Tensor, x_t: Tensor, t: Timestep) -> Tensor:
        """log p(x_{t-1} | x_t), (B, K, N): the sum over x0 of q(x_t | x_{t-1}) q(x_{t-1} | x0) p(x0) / q(x_t | x0) (Gu et al. 2022, eq. 11)."""
        t = int(self.number(t))
        masked = (x_t == self.mask_class)[:, None]
        ratio = log_p_x_0 - self._reached(x_t, masked, self.log_cumprod_at[t], self.log_cumprod_bt[t], self.log_cumprod_ct[t])
        total = ratio.logsumexp(1, keepdim=True)
        a, b, c = (table[t - 1].item() for table in (self.log_cumprod_at, self.log_cumprod_bt, self.log_cumprod_ct))
        earlier = ratio - total + a
        earlier = torch.cat([earlier.logaddexp(torch.full_like(earlier, b)), torch.full_like(total, c)], 1)
        step = self._reached(x_t, masked, self.log_at[t], self.log_bt[t], self.log_ct[t])
        return earlier + torch.cat([step, torch.where(masked, 0.0, LOG_ZERO)], 1) + total  # a mask stays one

    def _reached(self, x_t: Tensor, masked: Tensor, log_a: Tensor, log_b: Tensor, log_c: Tensor) -> Tensor:
        """The log-probability of x_t after each of the tokens that are no mask, (B, K - 1, N) (Gu et al. 2022, eq. 7)."""
        same, other = log_a.logaddexp(log_b).item(), (log_a + LOG_ZERO).logaddexp(log_b).item()
        classes = torch.arange(self.mask_class, device=x_t.device)[:, None]
        return torch.where(masked, log_c.item(), torch.where(x_t[:, None] == classes, same, other))


class BlockRefinementScheduler(TokenScheduler, paper="Chang et al. 2022", draws="optional"):
    """Commit by confidence (LLaDA2.0 2025; MaskGIT: Chang et al. 2022): of the drawn tokens of a block the most probable stay. The others remain
    masked or, without a mask token, become random again (DiffusionGemma); then `_committed` tells where tokens stay, until the next block.
    A step commits the tokens whose probability is above `threshold`, and at least an equal share of the block; committed tokens change where
    another one is more probable than `editing_threshold` (None: never). `minimal_topk` is kept for files, and means nothing."""

    Config = options(
        BaseConfig, block_length=32, num_inference_steps=32, threshold=0.95, editing_threshold=(float | None, None), minimal_topk=1
    )
    _bounds = {"block_length": 0}
    _shares: list[int] | None = None  # how many tokens each step commits at least

    def _restart(self) -> None:
        super()._restart()
        self._committed: Tensor | None = None

    def set_timesteps(self, num_inference_steps: int, device: Device = None, block_length: int | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps for each block of `block_length` tokens (None: as configured)."""
        super().set_timesteps(num_inference_steps, device)
        length = self.config.block_length if block_length is None else block_length
        self._ensure(length > 0, "A block without tokens.", "set_timesteps, block_length", block_length, "at least 1")
        self._shares = self.get_num_transfer_tokens(length, num_inference_steps).tolist()

    def get_num_transfer_tokens(self, block_length: int, num_inference_steps: int) -> Tensor:
        """How many tokens each step commits at least, (steps,): equal shares, the first ones larger by one where they do not divide."""
        steps = max(num_inference_steps, 0)
        return (torch.arange(steps) < block_length % max(steps, 1)).long() + block_length // max(steps, 1)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, mask_token_id: int | None = None, temperature: float = 0.0,
             top_p: float | None = None, top_k: int | None = None, sampling_method: str = "auto", threshold: float | None = None,
             editing_threshold: float | None = None, minimal_topk: int | None = None, prompt_mask: Tensor | None = None,
             generator: Generator | None = None, return_dict: bool = True) -> BlockRefinementSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """The block (B, N) after step `timestep`, which counts up from 0. Tokens are drawn at `temperature` from the `top_k` likeliest and those
        that make up `top_p`, or are the likeliest (`sampling_method` "greedy", or "auto" at temperature 0). Without `mask_token_id`, step 0
        begins a block. `prompt_mask` (N,) protects tokens from editing; the thresholds replace the configured ones."""
        config, number = self.config, int(self.number(timestep))
        threshold = config.threshold if threshold is None else threshold
        editing = config.editing_threshold if editing_threshold is None else editing_threshold
        drawn = sampling_method == "multinomial" or (sampling_method == "auto" and temperature != 0)
        tokens, probabilities = self._candidates(model_output, temperature, top_k, top_p, generator, drawn)
        if mask_token_id is None:
            fixed, steps = torch.zeros_like(sample, dtype=torch.bool), self.num_inference_steps or 1
            if number > 0 and self._committed is not None and self._committed.shape == sample.shape:
                fixed = self._committed
            due = -(-(number + 1) * sample.shape[1] // steps) - fixed.sum(-1, keepdim=True)  # of the tokens so far, those not yet committed
            ranks = probabilities.masked_fill(fixed, -math.inf).argsort(-1, descending=True).argsort(-1)
            transfer, editable = ~fixed & ((ranks < due) | (probabilities > threshold)), fixed
        else:
            masked = sample == mask_token_id
            transfer, editable = self._transfer(probabilities, masked, number, threshold), ~masked
            if prompt_mask is not None:
                editable = editable & ~prompt_mask
            editing = None if editing is None or editing <= 0 else editing
        edits = torch.zeros_like(transfer) if editing is None else editable & (tokens != sample) & (probabilities > editing)
        prev = torch.where(transfer | edits, tokens.to(sample.dtype), sample)
        if mask_token_id is None:
            self._committed = fixed | transfer
            prev = torch.where(self._committed, prev, random_tokens(sample, model_output.shape[-1], generator))
        fields = (prev, transfer, edits, tokens, probabilities, model_output)
        return BlockRefinementSchedulerOutput(*fields) if return_dict else fields

    def _transfer(self, probabilities: Tensor, masked: Tensor, number: int, threshold: float) -> Tensor:
        """Which masked positions are filled: all above the threshold, or where these are less than the step's share the most probable."""
        if self._shares is None:
            return torch.zeros_like(masked)
        share = self._shares[min(max(number, 0), len(self._shares) - 1)]
        confidence = probabilities.masked_fill(~masked, -math.inf)
        sure = confidence > threshold
        best = confidence.topk(min(share, masked.shape[1]), dim=-1).indices
        best = torch.zeros_like(masked).scatter(-1, best, True) & masked
        return torch.where(sure.sum(-1, keepdim=True) >= share, sure, best)

    def _candidates(self, logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: Generator | None,
                    drawn: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        """A token for each position, and its probability in the distribution it was taken from."""
        if temperature == 0 or not drawn:
            return self._sample(logits, 0.0 if temperature >= 0 else temperature, generator)
        usable = temperature > 0 and (top_p is None or top_p > 0)
        self._ensure(usable, "No distribution to draw from.", "step, temperature and top_p", (temperature, top_p), "at least 0, above 0")
        logits = logits / temperature if temperature != 1 else logits
        least = torch.finfo(logits.dtype).min
        if top_k is not None and 0 < top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], least)
        if top_p is not None and top_p < 1:  # from the first token on that the sum before reaches
            ordered, order = logits.sort(-1, descending=True)
            beyond = (ordered.softmax(-1).cumsum(-1) > top_p).roll(1, -1)
            beyond[..., 0] = False
            logits = logits.scatter(-1, order, ordered.masked_fill(beyond, least))
        probabilities = logits.float().softmax(-1)
        tokens = draw(probabilities, generator)
        return tokens, chances(probabilities, tokens)

    @staticmethod
    def check_eos_finished(cur_x: Tensor, sampled_tokens: Tensor, final_transfer: Tensor, finished: Tensor, eos_token_id: int,
                           mask_token_id: int, prompt_length: int) -> Tensor:  # fmt: skip
        """Which rows are finished, (B,): those that were, and those that committed the end token now and have no mask before their first one.
        `cur_x` is (B, all tokens so far), `sampled_tokens` and `final_transfer` (where they were committed or edited) are (B, N)."""
        place, ends = torch.arange(cur_x.shape[1], device=cur_x.device), cur_x == eos_token_id
        first = ends.int().argmax(-1, keepdim=True)
        masks = (cur_x == mask_token_id) & (place >= prompt_length) & (place < first)
        ended = ends.any(-1) & (first[:, 0] >= prompt_length) & ~masks.any(-1)
        return finished | (ended & (final_transfer & (sampled_tokens == eos_token_id)).any(-1))

    def check_block_should_continue(self, step_idx: int, masks_remaining: bool, editing_enabled: bool, editing_transfer_index: Tensor,
                                    post_steps: int, max_post_steps: int, finished: Tensor) -> bool:  # fmt: skip
        """Whether the block needs another step: while masks and steps remain, then while edits were made, at most `max_post_steps` of them."""
        if finished.all():
            return False
        if masks_remaining:
            return step_idx < (self.num_inference_steps or 0)
        return editing_enabled and bool(editing_transfer_index.any()) and post_steps <= max_post_steps

    def add_noise(self, original_samples: Tensor, attention_mask: Tensor, *, prompt_length: int, block_length: int, mask_token_id: int,
                  generator: Generator | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Tokens (B, N) with a random share of each block after the prompt masked, and the same with all other tokens masked; then the two masks.
        Padding, where `attention_mask` is 0, stays."""
        self._ensure(block_length > 0, "A block without tokens.", "add_noise, block_length", block_length, "at least 1")
        rows, length = original_samples.shape
        masked = torch.zeros_like(original_samples, dtype=torch.bool)
        for start in range(prompt_length, length, block_length):
            share, block = uniform((rows, 1), original_samples, generator), masked[:, start : start + block_length]
            block.copy_(uniform((rows, block.shape[1]), original_samples, generator) < share)
        valid = attention_mask.bool()
        after = valid & (torch.arange(length, device=valid.device) >= prompt_length)
        chosen, others = masked & valid, ~masked & after
        noisy, reverse = (original_samples.masked_fill(view, mask_token_id) for view in (chosen, others))
        return noisy, reverse, chosen, others


class DiscreteDDIMScheduler(TokenScheduler, paper="Austin et al. 2021", draws="yes"):
    """Discrete denoising with the uniform kernel (D3PM: Austin et al. 2021). A token survives to time t with probability alpha = 1 - t, and is
    a uniformly random one otherwise; there is no mask token. Every position is drawn anew from q(x_s | x_t, x0) at every step.
    `step_correct` is the Gibbs corrector of "Uniform Diffusion Models Revisited" (2026): with the logits of the sample that a step gave, it
    draws single positions again from their distribution given all others, which leaves the marginal as it is and improves samples.
    `corrector_steps` sweeps after each step resample `corrector_k` positions each, the least certain by `corrector_selection` (the less
    `corrector_selection_tau`, the more strictly)."""

    Config = options(
        BaseConfig, num_inference_steps=32, corrector_steps=0, corrector_k=1,
        corrector_selection=("lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random"), corrector_selection_tau=1.0,
    )  # fmt: skip
    _bounds = {"corrector_selection_tau": 0}
    _falls = False

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, temperature: float = 0.0,
             generator: Generator | None = None, return_dict: bool = True) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """The tokens (B, N) at the next time s. With alpha_s the share of intact tokens there, and a = alpha_t / alpha_s, a position becomes the
        predicted token with mass alpha_s (1 - a) / K + a alpha_s [x_t = x0], stays with a (1 - alpha_s) / K, and becomes any token with
        (1 - a) (1 - alpha_s) / K (Austin et al. 2021, eq. 3)."""
        number, steps, classes = self._step_number(timestep), self.num_inference_steps or 1, model_output.shape[-1]
        tokens, probabilities = self._sample(model_output, temperature, generator)
        alpha_t, alpha_s = number / steps, (number + 1) / steps
        a = alpha_t / alpha_s
        clean = alpha_s * (1 - a) / classes + a * alpha_s * (sample == tokens).float()
        stay, noise = (torch.full_like(clean, share * (1 - alpha_s) / classes) for share in (a, 1 - a))
        routes = torch.stack([clean, stay, noise], -1)
        route = draw(routes / routes.sum(-1, keepdim=True), generator)
        prev = torch.where(route == 2, random_tokens(sample, classes, generator), sample)
        fields = (torch.where(route == 0, tokens, prev), tokens, probabilities, model_output)
        return DiscreteDDIMSchedulerOutput(*fields) if return_dict else fields

    def step_correct(self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, generator: Generator | None = None,
                     return_dict: bool = True) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """One sweep of the corrector over the result of `step`, of which `model_output` is. `sampled_tokens` are the new ones, (B, corrector_k)."""
        classes, alpha = model_output.shape[-1], (self._step_number(timestep) + 1) / (self.num_inference_steps or 1)
        logits, floor = model_output.double(), -math.inf
        if alpha < 1:  # what the other positions say alone: without the evidence of the token itself
            evidence = torch.full((*sample.shape, 1), -math.log1p(classes * alpha / (1 - alpha)), dtype=logits.dtype, device=logits.device)
            logits = logits.scatter_add(-1, sample[..., None], evidence)
            floor = math.log1p(-alpha) - math.log(classes)
        clean = math.log(alpha) + logits.log_softmax(-1)
        logs = torch.logaddexp(clean, torch.full_like(clean, floor))
        positions = self._select(sample, logs, generator)
        chosen = logs.gather(1, positions[..., None].expand(-1, -1, classes)).exp()
        tokens = draw(chosen, generator)
        fields = (sample.scatter(1, positions, tokens), tokens, chances(chosen, tokens), model_output)
        return DiscreteDDIMSchedulerOutput(*fields) if return_dict else fields

    def _select(self, sample: Tensor, logs: Tensor, generator: Generator | None) -> Tensor:
        """The positions (B, k) to draw again, without replacement, the least certain first."""
        config, rule = self.config, self.config.corrector_selection
        if rule == "lowest_maxprob":
            doubt = -logs.amax(-1)
        elif rule == "lowest_current_prob":
            doubt = -chances(logs, sample)
        else:
            doubt = logs.scatter(-1, sample[..., None], -math.inf).amax(-1) - chances(logs, sample)
        u = uniform(sample.shape, sample, generator)
        scores = u if rule == "random" else doubt / config.corrector_selection_tau + gumbel(u, 1e-12)
        return scores.topk(min(max(1, config.corrector_k), sample.shape[1]), dim=-1).indices


class EntropyBoundScheduler(TokenScheduler, paper="Ben-Hamu et al. 2025", draws="yes"):
    """Entropy-bounded unmasking (Ben-Hamu et al. 2025), for tokens corrupted uniformly. Positions are accepted from the lowest entropy on, while
    the entropies of all but the largest sum to at most `entropy_bound`, which bounds the mutual information between them. The others become
    random tokens again. The bound, in nats, trades quality for speed; the temperature falls evenly from `t_max` at the first step towards `t_min`."""

    Config = options(BaseConfig, entropy_bound=0.1, t_max=0.8, t_min=0.4, num_inference_steps=32)
    _bounds = {"t_max": 0}
    _falls = False

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if not config.t_min >= 0:
            self._refuse("t_min", config.t_min, "at least 0")

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, entropy_bound: float | None = None,
             generator: Generator | None = None, return_dict: bool = True) -> EntropyBoundSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """The tokens (B, N) after this step; `entropy_bound` replaces the configured one."""
        config, steps = self.config, self.num_inference_steps or 1
        bound = config.entropy_bound if entropy_bound is None else entropy_bound
        fraction = (steps - self._step_number(timestep)) / steps
        logits = model_output / (config.t_min + (config.t_max - config.t_min) * fraction)
        tokens, probabilities = self._sample(logits, 1.0, generator)
        logs = logits - logits.logsumexp(-1, keepdim=True)
        entropies, order = (-(logs.clamp(min=torch.finfo(logs.dtype).min) * logs.softmax(-1)).sum(-1)).sort(-1)
        accepted = entropies.cumsum(-1) - entropies <= bound
        accepted = torch.zeros_like(accepted).scatter(-1, order, accepted)
        prev = torch.where(accepted, tokens, random_tokens(sample, logits.shape[-1], generator))
        fields = (prev, accepted, tokens, probabilities, logits)
        return EntropyBoundSchedulerOutput(*fields) if return_dict else fields
