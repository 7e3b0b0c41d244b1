"""Refinement of blocks of tokens: what the network is sure of is committed first."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Generator, Tensor
from ..outputs import Output
from .base import Device, Timestep
from .tokens import TokenScheduler, Untabled, draw, random_tokens, uniform

__all__ = ["BlockRefinementScheduler", "BlockRefinementSchedulerOutput"]


@dataclass
class BlockRefinementSchedulerOutput(Output):
    """The block after a step; where tokens were committed and where edited; all drawn tokens and their probabilities; the logits."""

    prev_sample: Tensor
    transfer_index: Tensor
    editing_transfer_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class BlockRefinementConfig(Untabled):
    """A step commits the tokens whose probability is above `threshold`, and at least an equal share of the block; committed tokens change where
    another one is more probable than `editing_threshold` (None: never). `minimal_topk` is kept for files, and means nothing.
    """

    block_length: int = 32
    num_inference_steps: int = 32
    threshold: float = 0.95
    editing_threshold: float | None = None
    minimal_topk: int = 1


class BlockRefinementScheduler(TokenScheduler):
    """Commit by confidence (LLaDA2.0 2025; MaskGIT: Chang et al. 2022): of the drawn tokens of a block the most probable stay. The others remain
    masked or, without a mask token, become random again (DiffusionGemma); then `_committed` tells where tokens stay, until the next block.
    """

    Config = BlockRefinementConfig
    paper = "Chang et al. 2022"
    _shares: tuple[int, int] | None = None  # the length of a block and the steps for it

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if config.block_length < 1:
            self._refuse("block_length", config.block_length, "at least 1")

    def _restart(self) -> None:
        super()._restart()
        self._committed: Tensor | None = None

    def _count(self, steps: int, device: Device = None) -> None:
        self.num_inference_steps = self._steps(steps)
        self._install(np.arange(self.num_inference_steps)[::-1].copy(), device)

    def set_timesteps(self, num_inference_steps: int, device: Device = None, block_length: int | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps for each block of `block_length` tokens (None: as configured)."""
        self._count(num_inference_steps, device)
        self._shares = (self.config.block_length if block_length is None else block_length, num_inference_steps)
        if self._shares[0] < 1:
            raise self._error("A block without tokens.", "set_timesteps, block_length", block_length, "at least 1")

    def get_num_transfer_tokens(self, block_length: int, num_inference_steps: int) -> Tensor:
        """How many tokens each step commits at least, (steps,): equal shares, the first ones larger by one where they do not divide."""
        steps = max(num_inference_steps, 0)
        return (torch.arange(steps) < block_length % max(steps, 1)).long() + block_length // max(steps, 1)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, mask_token_id: int | None = None, temperature: float = 0.0,
        top_p: float | None = None, top_k: int | None = None, sampling_method: str = "auto", threshold: float | None = None,
        editing_threshold: float | None = None, minimal_topk: int | None = None, prompt_mask: Tensor | None = None,
        generator: Generator | None = None, return_dict: bool = True,
    ) -> BlockRefinementSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """The block (B, N) after step `timestep`, which counts up from 0. Tokens are drawn at `temperature` from the `top_k` likeliest and those
        that make up `top_p`, or are the likeliest (`sampling_method` "greedy", or "auto" at temperature 0). Without `mask_token_id`, step 0
        begins a block. `prompt_mask` (N,) protects tokens from editing; the thresholds replace the configured ones.
        """
        config, number = self.config, int(self.number(timestep))
        threshold = config.threshold if threshold is None else threshold
        editing = config.editing_threshold if editing_threshold is None else editing_threshold
        drawn = sampling_method == "multinomial" or (sampling_method == "auto" and temperature != 0)
        tokens, probabilities = self._candidates(model_output, temperature, top_k, top_p, generator, drawn)
        if mask_token_id is None:
            started = number > 0 and self._committed is not None and self._committed.shape == sample.shape
            fixed = self._committed if started and self._committed is not None else torch.zeros_like(sample, dtype=torch.bool)
            steps = self.num_inference_steps or 1
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
        length, steps = self._shares
        share = length // steps + (min(number, steps - 1) < length % steps)
        confidence = probabilities.masked_fill(~masked, -math.inf)
        sure = confidence > threshold
        best = confidence.topk(min(share, masked.shape[1]), dim=-1).indices
        best = torch.zeros_like(masked).scatter(-1, best, True) & masked
        return torch.where(sure.sum(-1, keepdim=True) >= share, sure, best)

    def _candidates(
        self, logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: Generator | None, drawn: bool
    ) -> tuple[Tensor, Tensor]:
        """A token for each position, and its probability in the distribution it was taken from."""
        if temperature == 0 or not drawn:
            return self._sample(logits, 0.0 if temperature >= 0 else temperature, generator)
        if temperature < 0 or not (top_p is None or top_p > 0):
            got = f"temperature {temperature}, top_p {top_p}"
            raise self._error("No distribution to draw from.", "step", got, "temperature at least 0, top_p above 0")
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
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]

    @staticmethod
    def check_eos_finished(
        cur_x: Tensor, sampled_tokens: Tensor, final_transfer: Tensor, finished: Tensor, eos_token_id: int, mask_token_id: int, prompt_length: int
    ) -> Tensor:  # fmt: skip
        """Which rows are finished, (B,): those that were, and those that committed the end token now and have no mask before their first one.
        `cur_x` is (B, all tokens so far), `sampled_tokens` and `final_transfer` (where they were committed or edited) are (B, N).
        """
        place, ends = torch.arange(cur_x.shape[1], device=cur_x.device), cur_x == eos_token_id
        first = ends.int().argmax(-1, keepdim=True)
        masks = (cur_x == mask_token_id) & (place >= prompt_length) & (place < first)
        ended = ends.any(-1) & (first[:, 0] >= prompt_length) & ~masks.any(-1)
        return finished | (ended & (final_transfer & (sampled_tokens == eos_token_id)).any(-1))

    def check_block_should_continue(
        self, step_idx: int, masks_remaining: bool, editing_enabled: bool, editing_transfer_index: Tensor, post_steps: int, max_post_steps: int,
        finished: Tensor,
    ) -> bool:  # fmt: skip
        """Whether the block needs another step: while masks and steps remain, then while edits were made, at most `max_post_steps` of them."""
        if finished.all():
            return False
        if masks_remaining:
            return step_idx < (self.num_inference_steps or 0)
        return editing_enabled and bool(editing_transfer_index.any()) and post_steps <= max_post_steps

    def add_noise(
        self, original_samples: Tensor, attention_mask: Tensor, *, prompt_length: int, block_length: int, mask_token_id: int,
        generator: Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Tokens (B, N) with a random share of each block after the prompt masked, and the same with all other tokens masked; then the two masks.
        Padding, where `attention_mask` is 0, stays.
        """
        if block_length < 1:
            raise self._error("A block without tokens.", "add_noise, block_length", block_length, "at least 1")
        rows, length = original_samples.shape
        masked = torch.zeros_like(original_samples, dtype=torch.bool)
        for start in range(prompt_length, length, block_length):
            share = uniform((rows, 1), original_samples, generator)
            masked[:, start : start + block_length] = (
                uniform((rows, min(block_length, length - start)), original_samples, generator) < share
            )
        valid = attention_mask.bool()
        after = valid & (torch.arange(length, device=valid.device) >= prompt_length)
        chosen, others = masked & valid, ~masked & after
        noisy, reverse = (original_samples.masked_fill(view, mask_token_id) for view in (chosen, others))
        return noisy, reverse, chosen, others
