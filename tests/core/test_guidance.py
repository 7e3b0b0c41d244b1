"""Guidance and the loop on a toy denoiser: pred = w * mean(context) + attention of the latents with themselves."""

from __future__ import annotations
from types import SimpleNamespace
import pytest
import torch
from darkroom import CFG, PAG, SAG, DDIMScheduler, InputError
from darkroom.core.attention import Patch, by_rows, eager, nothing, sdpa, unless_skipped
from darkroom.core.guidance import rescale
from darkroom.core.guidance.common import Addend
from darkroom.core.loop import batched, denoise, one_call_per_branch
from darkroom.core.types import Branch, Conditioning, Run


class Toy:
    """Three lines of denoiser, with what the loop asks of a pipeline."""

    middle_site = "mid.attn1"
    pag_applied_layers = "mid"
    predict = staticmethod(batched)

    class task:
        model_input = staticmethod(lambda x, run: x)
        after_step = staticmethod(lambda pipe, run: None)

    def denoise_once(self, x, t, branch, run):
        tokens = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, HW, C)
        mixed = branch.attend(tokens, tokens, tokens, site="mid.attn1")[:, 0].transpose(1, 2).reshape(x.shape)
        return 0.3 * mixed + branch.cond["context"].mean((1, 2))[:, None, None, None] * x

    def self_attention_sites(self):
        return ["down.attn1", "mid.attn1"]

    def step_options(self, run):
        return {}


class OneByOne(Toy):
    predict = staticmethod(one_call_per_branch)


def sample(pipe, guidance, negative=True, steps=4):
    g = torch.Generator().manual_seed(0)
    context, other = torch.randn(2, 2, 5, 3, generator=g, dtype=torch.float64)  # rounding is not what is tested here
    cond = Conditioning(Branch({"context": context}), Branch({"context": other}) if negative else None)
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(steps)
    run = Run(SimpleNamespace(generator=None), 2, guidance.prepare(cond, pipe), scheduler)
    run.x, run.timesteps = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64), scheduler.timesteps
    for _ in denoise(pipe, run, guidance):
        pass
    return run.x


@pytest.mark.parametrize("terms", [[], ["pag"], ["sag"], ["pag", "sag"]])
@pytest.mark.parametrize("negative", [True, False])
def test_batched_equals_one_call_per_branch(terms, negative):
    def make():
        return [{"pag": PAG(3.0), "sag": SAG(0.75)}[name] for name in terms]

    a = sample(Toy(), CFG(4.0, terms=make()), negative)
    b = sample(OneByOne(), CFG(4.0, terms=make()), negative)
    torch.testing.assert_close(a, b)


def test_a_term_of_weight_zero_is_no_term():
    plain = sample(Toy(), CFG(4.0))
    assert torch.equal(plain, sample(Toy(), CFG(4.0, terms=[PAG(0.0), SAG(0.0)])))
    assert not torch.equal(plain, sample(Toy(), CFG(4.0, terms=[PAG(1.0)])))
    assert not torch.equal(plain, sample(Toy(), CFG(4.0, terms=[SAG(1.0)])))


def test_terms_add_up():
    """One step of CFG with both terms is CFG plus what each adds alone."""
    plain, pag, sag, both = (sample(Toy(), CFG(4.0, terms=t), steps=1) for t in ([], [PAG(2.0)], [SAG(1.0)], [PAG(2.0), SAG(1.0)]))
    torch.testing.assert_close(both - plain, (pag - plain) + (sag - plain))


def test_scale_one_is_the_conditional_prediction():
    torch.testing.assert_close(sample(Toy(), CFG(1.0), negative=True), sample(Toy(), CFG(1.0), negative=False))


def test_rescale_keeps_the_spread_of_the_condition():
    cond, guided = torch.randn(2, 4, 8, 8), 3 * torch.randn(2, 4, 8, 8)
    full = rescale(guided, cond, 1.0)
    torch.testing.assert_close(full.std((1, 2, 3)), cond.std((1, 2, 3)))
    assert torch.equal(rescale(guided, cond, 0.0), guided)


def test_pag_names_the_layers_it_does_not_find():
    with pytest.raises(InputError, match="pag_applied_layers"):
        sample(Toy(), CFG(4.0, terms=[PAG(1.0, layers=["nowhere"])]))


def test_by_rows_runs_each_branch_with_its_own_attention():
    q, k, v = torch.randn(3, 6, 2, 5, 4)
    seen = []

    def spy(q, k, v, *, mask=None, site=""):
        seen.append(q.shape[0])
        return v

    out = by_rows([sdpa, sdpa, spy])(q, k, v)
    torch.testing.assert_close(out, torch.cat([eager(q[:4], k[:4], v[:4]), v[4:]]))
    assert seen == [2]


def test_a_skipped_layer_adds_nothing_to_its_rows():
    added = torch.randn(6, 5, 4)
    skip = Patch(sdpa, frozenset({"ff", "attn"}), nothing)
    joint = by_rows([sdpa, skip, sdpa])
    assert unless_skipped(added, joint, "elsewhere") is added and unless_skipped(added, sdpa, "ff") is added
    for site in skip.sites:
        out = unless_skipped(added, joint, site)
        assert torch.equal(out[[0, 1, 4, 5]], added[[0, 1, 4, 5]]) and not out[2:4].any()
    assert not unless_skipped(added, skip, "ff").any()
    nested = Patch(skip, frozenset({"ff"}), eager)  # the outermost patch of a layer holds
    assert unless_skipped(added, nested, "ff") is added and not unless_skipped(added, nested, "attn").any()


def test_an_interval_is_a_share_of_the_run():
    whole, none = sample(Toy(), CFG(4.0, terms=[PAG(2.0)])), sample(Toy(), CFG(1.0))
    assert torch.equal(whole, sample(Toy(), CFG(4.0, terms=[PAG(2.0, start=0.0, stop=1.0)], start=0.0, stop=1.0)))
    assert torch.equal(none, sample(Toy(), CFG(4.0, terms=[PAG(2.0, stop=0.0)], stop=0.0)))
    parts = [sample(Toy(), CFG(4.0, start=start, stop=stop)) for start, stop in ((0.0, 0.5), (0.5, 1.0), (0.25, 0.75))]
    assert not any(torch.equal(a, b) for a, b in ((parts[0], parts[1]), (parts[1], parts[2]), (parts[0], sample(Toy(), CFG(4.0)))))


def test_a_term_and_a_guidance_of_ones_own():
    class Push(Addend):
        def push(self, step, base, cond, extra):
            return self.weight(step) * (cond - base)

    class Halved(CFG):
        def combine(self, step, uncond, cond, scale):
            return super().combine(step, uncond, cond, 0.5 * scale)

    expected = sample(Toy(), CFG(4.0))
    torch.testing.assert_close(sample(Toy(), CFG(3.0, terms=[Push(1.0)])), expected)
    torch.testing.assert_close(sample(Toy(), Halved(8.0)), expected)
    torch.testing.assert_close(sample(Toy(), Halved(lambda t: 6.0, terms=[Push(lambda t: 1.0)])), expected)
