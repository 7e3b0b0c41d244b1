"""Token merging and prompt fusion: the algorithms against plain loops, exactness where nothing is to be done, pipelines apart."""

from __future__ import annotations
import threading
from types import SimpleNamespace
from typing import Any
import numpy as np
import pytest
import torch
from families import tiny
import darkroom
from darkroom import CFG, PAG, SAG, SEG, SLG, PromptFusion, PromptPart, TokenMerging
from darkroom.core.attention import Patch, by_rows, sdpa
from darkroom.core.guidance.token_merging import destinations, plan_merge
from darkroom.errors import InputError


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return tiny.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return tiny.sdxl(tmp_path_factory.mktemp("xl"))


def load(path: Any, kind: str = "StableDiffusionPipeline", **options: Any) -> Any:
    pipe = getattr(darkroom, kind).from_pretrained(
        path, **{"requires_safety_checker": False, **options} if kind.startswith("StableDiffusionP") else options
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, prompt: Any = "the cat", steps: int = 4, **options: Any) -> np.ndarray:
    call = {"output_type": "np", "generator": torch.Generator().manual_seed(0), **options}
    return np.asarray(pipe(prompt, num_inference_steps=steps, **call).images)


# ---- the algorithm


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (7, 3), (2, 2)], ids=str)
def test_one_target_of_each_cell(size):
    height, width = size
    places = destinations(height, width, torch.Generator().manual_seed(1)).tolist()
    cells = [(place // width // 2, place % width // 2) for place in places]
    assert cells == [(y, x) for y in range(height // 2) for x in range(width // 2)]
    drawn = {tuple(destinations(4, 4, torch.Generator().manual_seed(seed)).tolist()) for seed in range(9)}
    assert len(drawn) > 4


def merged_by_loops(q, k, v, targets: list[int], count: int) -> torch.Tensor:
    """The same, token by token."""
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        keys = torch.nn.functional.normalize(k[b].transpose(0, 1).flatten(1), dim=-1)
        free = [i for i in range(q.shape[2]) if i not in targets]
        best = {i: max(targets, key=lambda j: float(keys[i] @ keys[j])) for i in free}
        gone = sorted(free, key=lambda i: -float(keys[i] @ keys[best[i]]))[:count]
        groups = [[i] for i in free if i not in gone] + [[j, *(i for i in gone if best[i] == j)] for j in targets]
        means = [torch.stack([x[b][:, group].mean(1) for group in groups], 1) for x in (q, k, v)]
        result = sdpa(*(m[None] for m in means))[0]
        for g, group in enumerate(groups):
            out[b][:, group] = result[:, g : g + 1]
    return out


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)], ids=str)
def test_merging_is_the_papers(size, ratio):
    torch.manual_seed(0)
    tokens = size[0] * size[1]
    q, k, v = torch.randn(3, 2, 4, tokens, 8)
    targets = destinations(*size, torch.Generator().manual_seed(0))
    count = min(int(ratio * tokens), tokens - len(targets))
    plan = plan_merge(k, targets, count)
    assert plan.merge(q).shape[2] == tokens - count
    ours = plan.unmerge(sdpa(plan.merge(q), plan.merge(k), plan.merge(v)))
    torch.testing.assert_close(ours, merged_by_loops(q, k, v, targets.tolist(), count), atol=1e-6, rtol=1e-5)


def test_merging_nothing_is_exact():
    q = torch.randn(2, 4, 24, 8)
    plan = plan_merge(q, destinations(4, 6), 0)
    assert torch.equal(plan.unmerge(plan.merge(q)), q)


# ---- in pipelines


def test_ratio_zero_is_exact(sd):
    pipe = load(sd)
    base = picture(pipe)
    pipe.enable_token_merging(0.0)
    assert np.array_equal(picture(pipe), base)


def test_merging_changes_little_and_is_repeatable(sd):
    pipe = load(sd)
    base = picture(pipe)
    pipe.enable_token_merging(0.5)
    merged = picture(pipe)
    assert 0 < np.abs(merged - base).mean() < 0.1
    assert np.array_equal(picture(pipe), merged)
    pipe.enable_token_merging(0.5, seed=1)
    assert not np.array_equal(picture(pipe), merged)
    pipe.disable_token_merging()
    assert np.array_equal(picture(pipe), base)


def test_fewer_tokens_are_attended_to(sd):
    """At the largest map only, for both branches of guidance in one call."""
    pipe, seen = load(sd), set()

    def attend(q, k, v, *, mask=None, site=""):
        seen.add((site.split(".attentions")[0], site.rsplit(".", 1)[-1], q.shape[0], q.shape[2]))
        return sdpa(q, k, v, mask=mask, site=site)

    pipe.unet.set_attention_backend(attend)
    pipe.enable_token_merging(0.5)
    picture(pipe, height=32, width=24)
    tokens = 16 * 12
    whole = {("down_blocks.0", "attn2", 2, tokens), ("up_blocks.1", "attn2", 2, tokens)}
    middle = {("mid_block", name, 2, tokens // 4) for name in ("attn1", "attn2")}
    assert seen == whole | middle | {(block, "attn1", 2, tokens // 2) for block in ("down_blocks.0", "up_blocks.1")}


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"])
def test_merging_where_the_largest_map_has_no_attention(xl, kind):
    pipe = load(xl, kind)
    options = {"image": torch.rand(1, 3, 32, 32), "strength": 0.9} if "Img2Img" in kind else {}
    base = picture(pipe, **options)
    pipe.enable_token_merging(0.5)
    assert 0 < np.abs(picture(pipe, **options) - base).mean() < 0.1


@pytest.mark.parametrize(
    "term",
    [PAG(3.0), SAG(0.75), SEG(3.0, layers="attn1"), SLG(2.0, stop=1.0), PAG(2.0, layers="down_blocks.0")],
    ids=lambda t: type(t).__name__,
)
def test_merging_beside_other_terms(sd, term):
    pipe = load(sd)
    pipe.enable_token_merging(0.5)
    guided = picture(pipe, guidance=CFG(5.0, terms=[term]))
    assert np.isfinite(guided).all() and not np.array_equal(guided, picture(pipe, guidance=CFG(5.0)))


def test_merging_without_a_prompt(tiny_ddpm):
    pipe = load(tiny_ddpm, "DDPMPipeline")
    call = {"num_inference_steps": 3, "output_type": "np"}
    base = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    pipe.enable_token_merging(0.5)
    merged = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    assert 0 < np.abs(merged - base).mean() < 0.1


def test_a_batch_is_like_single_pictures(sd):
    pipe = load(sd)
    pipe.enable_token_merging(0.5)
    pipe.enable_prompt_fusion([PromptPart("red", 0.5)])
    seeds = [torch.Generator().manual_seed(s) for s in (1, 2)]
    both = picture(pipe, ["the cat", "a dog"], generator=seeds)
    for i, prompt in enumerate(("the cat", "a dog")):
        np.testing.assert_allclose(picture(pipe, prompt, generator=torch.Generator().manual_seed(i + 1))[0], both[i], atol=1e-5)


def test_pipelines_are_apart(sd):
    parent = load(sd)
    base = picture(parent)
    parent.enable_token_merging(0.5)
    merged = picture(parent)
    child = darkroom.StableDiffusionPipeline.from_pipe(parent)
    child.set_progress_bar_config(disable=True)
    assert np.array_equal(picture(child), merged)
    child.disable_token_merging()
    child.enable_prompt_fusion(["a dog"])
    fused = picture(child)
    assert np.array_equal(picture(parent), merged) and not np.array_equal(fused, base)
    parent.disable_token_merging()
    assert np.array_equal(picture(parent), base) and np.array_equal(picture(child), fused)
    child.disable_prompt_fusion()
    assert np.array_equal(picture(child), base)


def test_threads(sd):
    """Each call has terms of its own."""
    pipe = load(sd)
    pipe.enable_token_merging(0.5)
    pipe.enable_prompt_fusion([PromptPart("red dog", 1.0, start=0.5)])
    wanted = [picture(pipe, prompt) for prompt in ("the cat", "a dog")]
    got: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: picture(pipe, ("the cat", "a dog")[i % 2])})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[i], wanted[i % 2]) for i in range(4))


# ---- fusion


def test_fusion_of_one_prompt_is_that_prompt(sd, xl):
    pipe = load(sd)
    for text, prompt in ((None, "the cat"), ("the cat", "a dog")):
        pipe.enable_prompt_fusion(
            [PromptPart(text, 0.7), PromptPart(None, 0.0)] if text else [PromptPart(None, 0.3), PromptPart("red", 0.0)]
        )
        fused = picture(pipe, prompt, negative_prompt="red")
        pipe.disable_prompt_fusion()
        np.testing.assert_allclose(fused, picture(pipe, "the cat", negative_prompt="red"), atol=1e-5)
    pipe = load(xl, "StableDiffusionXLPipeline")
    base = picture(pipe, "the cat")
    pipe.enable_prompt_fusion([PromptPart("the cat", 2.0)])
    np.testing.assert_allclose(picture(pipe, "the cat"), base, atol=1e-5)
    pipe.enable_prompt_fusion(["a red dog"])
    assert np.abs(picture(pipe, "the cat") - base).max() > 1e-4


def test_fusion_is_a_mean_of_what_each_prompt_gives():
    """At a layer, against the plain formula."""
    torch.manual_seed(0)
    layer = darkroom.models.layers.attention.Attention(8, 12, heads=2, dim_head=4)
    layer.site = "blocks.attn2"
    contexts = {"a": torch.randn(1, 5, 12), "b": torch.randn(1, 7, 12)}
    denoiser = torch.nn.ModuleDict({"blocks": torch.nn.ModuleDict({"attn2": layer})})
    pipe = SimpleNamespace(denoiser=denoiser, encode_prompt=lambda prompt, **_: (contexts[prompt], None))
    own, x = torch.randn(2, 5, 12), torch.randn(2, 9, 8)
    cond = darkroom.core.types.Conditioning(darkroom.core.types.Branch({"context": own}))
    term = PromptFusion([PromptPart(None, 0.5), PromptPart("a", 1.0, stop=0.5), PromptPart("b", lambda t: t / 100)])
    term.prepare(cond, pipe)
    calls: list[int] = []
    layer.to_k.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for index, weights in ((0, {None: 0.5, "a": 1.0, "b": 2.0}), (1, {None: 0.5, "b": 2.0}), (1, {None: 0.5, "b": 0.0})):
            time = 100 * weights["b"]
            run = SimpleNamespace(timesteps=[0, 0], index=index)
            step = SimpleNamespace(run=run, t=torch.tensor(time), cond=cond)
            out = layer(x, own, attend=term.wrap(step).positive.attend)
            each = {text: layer(x, own if text is None else contexts[text].expand(2, -1, -1)) for text in weights}
            wanted = sum(weight * each[text] for text, weight in weights.items()) / sum(weights.values())
            torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-5)
    assert len(calls) == 3 + 3 + 2 + 2 + 2  # of own prompts and of the formula; the term's two are made once
    assert set(term.read) == {("a", layer.site), ("b", layer.site)}


def test_prompts_in_turn(sd):
    """The first half of one prompt and the second of another is neither of them."""
    pipe = load(sd)
    cat, dog = picture(pipe, "the cat"), picture(pipe, "a red dog")
    pipe.enable_prompt_fusion([PromptPart(None, stop=0.5), PromptPart("a red dog", start=0.5)])
    turned = picture(pipe, "the cat")
    assert min(np.abs(turned - cat).max(), np.abs(turned - dog).max()) > 1e-4
    pipe.enable_prompt_fusion([PromptPart("a red dog", start=0.0, stop=0.0)])  # never
    assert np.array_equal(picture(pipe, "the cat"), cat)
    as_term = picture(
        load(sd), "the cat", guidance=CFG(7.5, terms=[PromptFusion([PromptPart(None, stop=0.5), PromptPart("a red dog", start=0.5)])])
    )
    assert np.array_equal(as_term, turned)


def test_options_of_fusion(sd):
    pipe = load(sd)
    base = picture(pipe)
    pictures = [base]
    for options in ({}, {"layers": "mid"}, {"clip_skip": 1}, {"prompt_syntax": "weighted"}):
        pipe.enable_prompt_fusion(["a (red:1.5) dog"], **options)
        pictures.append(picture(pipe))
    assert all(not np.array_equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_fusion_beside_other_terms(sd):
    pipe = load(sd)
    for term in (PAG(3.0), SAG(0.75), darkroom.NAG(4.0)):
        base = picture(pipe, guidance=CFG(3.0, terms=[term]))
        pipe.enable_prompt_fusion(["red dog"])
        fused = picture(pipe, guidance=CFG(3.0, terms=[term]))
        pipe.disable_prompt_fusion()
        assert np.isfinite(fused).all() and not np.array_equal(fused, base)


def test_branches_with_one_attention_keep_one():
    """So that they are computed together."""
    branch = darkroom.core.types.Branch({})
    term = TokenMerging()
    term.prepare(
        None, SimpleNamespace(self_attention_sites=lambda: ["down_blocks.0.attentions.0.attn1"], denoiser=SimpleNamespace(down_blocks=[0]))
    )
    wrapped = term.wrap(SimpleNamespace(cond=darkroom.core.types.Conditioning(branch, branch)))
    assert isinstance(by_rows([wrapped.negative.attend, wrapped.positive.attend]), Patch)


# ---- errors


def test_errors(sd, tiny_ddpm):
    pipe = load(sd)
    base = picture(pipe)
    wrong = [
        lambda: pipe.enable_token_merging(0.8),
        lambda: pipe.enable_token_merging(-0.1),
        lambda: pipe.enable_token_merging(0.5, levels=0),
        lambda: pipe.enable_prompt_fusion([]),
        lambda: pipe.enable_prompt_fusion([3]),
        lambda: PromptPart("a", -1.0),
        lambda: PromptPart("a", start=0.7, stop=0.2),
        lambda: PromptPart(3),
        lambda: load(tiny_ddpm, "DDPMPipeline").enable_prompt_fusion(["a"]),
    ]
    for call in wrong:
        with pytest.raises(InputError):
            call()
    assert np.array_equal(picture(pipe), base)
    pipe.enable_prompt_fusion(["a dog"], layers="nothing")
    with pytest.raises(InputError, match="nothing"):
        picture(pipe)
    pipe.disable_prompt_fusion()
    pipe.enable_token_merging()
    with pytest.raises(InputError, match="takes no terms"):
        picture(pipe, guidance=Alone())


class Alone:
    needs_negative = False

    def prepare(self, cond, pipe):
        return cond

    def __call__(self, step):
        return step.predict([step.cond.positive])[0]
