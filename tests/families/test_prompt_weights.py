"""The syntax of weighted prompts, and windows of tokens."""

from __future__ import annotations
from pathlib import Path
import pytest
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st
import darkroom
from darkroom.families.prompt_weights import join_windows, parse_weights, windowed

EXAMPLES = {
    "a (red:1.3) house": [("a ", 1), ("red", 1.3), (" house", 1)],
    "(a) [b]": [("a", 1.1), (" ", 1), ("b", 1 / 1.1)],
    "((x))": [("x", 1.21)],
    "(a (b:2):3)": [("a ", 3), ("b", 6)],
    r"\(y\) \[z\] \\": [("(y) [z] \\", 1)],
    "(open": [("open", 1.1)],
    "closed)": [("closed)", 1)],
    "a:b (c: 0.5)": [("a:b ", 1), ("c", 0.5)],
    "[a:1.5]": [("a:1.5", 1 / 1.1)],
    "(a:b:1.2)": [("a:b", 1.2)],
    "(a)b)": [("a", 1.1), ("b)", 1)],
    "(a:x)": [("a:x", 1.1)],
    "": [],
}


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_syntax(prompt: str) -> None:
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in EXAMPLES[prompt]]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in EXAMPLES[prompt]])


@given(st.text())
def test_any_text_is_a_prompt(prompt: str) -> None:
    found = parse_weights(prompt)
    letters = [c for c in prompt if c not in "()[]\\:.0123456789+- \t\n"]
    assert all(c in "".join(text for text, _ in found) for c in letters)


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\")))
def test_plain_text_is_left_alone(prompt: str) -> None:
    assert parse_weights(prompt) == ([(prompt, 1.0)] if prompt else [])


def test_windows(tmp_path: Path) -> None:
    words = tiny.tokenizer(tmp_path)
    plain = words(["the cat and the dog", ""], padding="max_length", max_length=tiny.TOKENS, return_tensors="pt").input_ids
    ids, weights = windowed(words, ["the cat and the dog", ""])
    assert torch.equal(ids[:, 0], plain) and ids.shape == (2, 1, tiny.TOKENS) and (weights == 1).all()
    ids, weights = windowed(words, ["the (cat:1.5) and the dog " * 4, "red"])
    assert ids.shape == (2, 2, tiny.TOKENS) and (ids[..., 0] == words.bos_token_id).all()
    inner = tiny.TOKENS - 2
    whole = words("the cat and the dog " * 4, add_special_tokens=False).input_ids
    assert [*ids[0, 0, 1 : inner + 1].tolist(), *ids[0, 1, 1 : len(whole) - inner + 1].tolist()] == whole
    cat = words("cat", add_special_tokens=False).input_ids[0]
    assert torch.equal(weights == 1.5, ids == cat)
    assert ids[1, 1, 1] == words.eos_token_id  # an empty window
    assert windowed(words, ["red"], windows=3)[0].shape == (1, 3, tiny.TOKENS)


def test_weights_keep_the_mean() -> None:
    states = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)) + 2
    weights = torch.ones(2, 2, 5)
    weights[1, 0, 2] = 1.5
    joined = join_windows(states, weights)
    assert torch.equal(joined[0], states[:2].reshape(10, 3))
    torch.testing.assert_close(joined[1].mean(), states[2:].mean())
    ratio = joined[1] / states[2:].reshape(10, 3)
    torch.testing.assert_close(ratio[2] / ratio[0], torch.full((3,), 1.5))


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    options = {"requires_safety_checker": False} if request.param == "sd" else {}
    made = darkroom.DiffusionPipeline.from_pretrained(getattr(tiny, request.param)(tmp_path_factory.mktemp(request.param)), **options)
    made.set_progress_bar_config(disable=True)
    return made


def test_a_prompt_without_weights_is_itself(pipe) -> None:
    for prompt, negative in (("the cat", None), ("the cat", "a dog"), (["the cat", "a dog"], ["", "red"])):
        plain = pipe.encode_prompt(prompt, negative_prompt=negative)
        weighted = pipe.encode_prompt(prompt, negative_prompt=negative, prompt_syntax="weighted")
        assert all(torch.equal(a, b) for a, b in zip(plain, weighted))


def test_a_pipeline_reads_weights_and_long_prompts(pipe) -> None:
    call = {"num_inference_steps": 2, "output_type": "pt", "prompt_syntax": "weighted"}

    def run(prompt: object, **changes: object) -> torch.Tensor:
        return pipe(prompt, generator=torch.Generator().manual_seed(0), **{**call, **changes}).images

    long = "the cat and the dog " * 5
    kept = run("the cat and the red dog")
    assert torch.equal(kept, run("the cat and the red dog", prompt_syntax="plain"))
    assert not torch.equal(kept, run("the cat and the (red:1.6) dog"))
    assert not torch.equal(run(long), run(long[:60]))  # beyond the first window
    for negative in (None, "red", "the (red:0.5) dog " * 12):
        assert run([long, "a dog"], negative_prompt=negative).isfinite().all()
    states = pipe.encode_prompt(long, negative_prompt="red", prompt_syntax="weighted")
    assert states[0].shape == states[1].shape and states[0].shape[1] % tiny.TOKENS == 0 and states[0].shape[1] > tiny.TOKENS
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    assert torch.equal(run(None, **dict(zip(names, states))), run(long, negative_prompt="red"))
    again = pipe.encode_prompt(
        None, negative_prompt="red", prompt_syntax="weighted", **{names[0]: states[0], **dict(zip(names[2:3], states[2:3]))}
    )
    assert torch.equal(again[1], states[1])


def test_the_syntax_is_off_unless_asked_for(pipe, caplog: pytest.LogCaptureFixture) -> None:
    plain = pipe.encode_prompt("the (cat:1.5)")[0]
    assert plain.shape[1] == tiny.TOKENS and not torch.equal(plain, pipe.encode_prompt("the (cat:1.5)", prompt_syntax="weighted")[0])
    with pytest.raises(darkroom.InputError, match="plain or weighted"):
        pipe("the cat", prompt_syntax="fancy", num_inference_steps=1)
