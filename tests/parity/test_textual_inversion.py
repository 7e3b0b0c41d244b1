"""Learned words: beside the reference on the same files, private to a pipeline, all or nothing."""

from __future__ import annotations
import copy
import warnings
from pathlib import Path
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import tiny
from safetensors.torch import save_file
import darkroom
from darkroom.errors import CheckpointError, InputError
from darkroom.runtime.textual_inversion import LearnedEmbedding, expand

WIDTH, WIDTH_2 = 32, 24


def vectors(count: int, width: int = WIDTH, seed: int = 0, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def xl(tmp_path_factory) -> Path:
    return tiny.sdxl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Each layout, as trainers write them."""
    folder = tmp_path_factory.mktemp("files")
    for name, count in (("single", 1), ("multi", 3)):
        (folder / name).mkdir()
        torch.save({"<cat>": vectors(count)[0] if count == 1 else vectors(count)}, folder / name / "learned_embeds.bin")
    (folder / "safe").mkdir()
    save_file({"<cat>": vectors(2)}, folder / "safe/learned_embeds.safetensors")
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.nn.Parameter(vectors(2))},
            "name": "kitty",
            "step": 9,
            "sd_checkpoint": None,
        },
        folder / "a1111.pt",
    )
    save_file({"emb_params": vectors(2)}, folder / "nameless.safetensors")
    save_file({"clip_l": vectors(2), "clip_g": vectors(2, WIDTH_2, 1)}, folder / "both.safetensors")
    return folder


def load(path: Path, kind: str = "StableDiffusionPipeline") -> tuple[Any, Any]:
    options = {"requires_safety_checker": False} if "XL" not in kind else {"add_watermarker": False}
    pipes = tuple(getattr(lib, kind).from_pretrained(path, **options) for lib in (diffusers, darkroom))
    for name in ("text_encoder", "text_encoder_2"):
        if (encoder := getattr(pipes[0], name, None)) is not None and not hasattr(encoder, "text_model"):
            encoder.__dict__["text_model"] = encoder  # the reference looks there; transformers 5 has no such level
    return pipes


def ours_of(path: Path, kind: str = "StableDiffusionPipeline") -> Any:
    return getattr(darkroom, kind).from_pretrained(path, **({} if "XL" in kind else {"requires_safety_checker": False}))


def embeds(pipe: Any, prompt: Any, **options: Any) -> tuple[torch.Tensor, ...]:
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True, **options}
    with torch.no_grad():
        return tuple(x for x in pipe.encode_prompt(prompt, **options) if x is not None)


def same(pipes: Any, prompt: Any, **options: Any) -> tuple[torch.Tensor, ...]:
    theirs, ours = (embeds(pipe, prompt, **options) for pipe in pipes)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-6)
    return ours


def picture(pipe: Any, prompt: str, **options: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return np.asarray(pipe(prompt, num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0), **options).images)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "single": ({"of": "single"}, "a <cat> and the dog"),
    "multi": ({"of": "multi"}, "a <cat> and the dog"),
    "safetensors": ({"of": "safe"}, "the dog, a <cat>, red"),
    "renamed": ({"of": "multi", "token": "kitty-cat"}, "red kitty-cat"),
    "a1111": ({"of": "a1111.pt"}, "a kitty and kitty"),
    "weight name": ({"of": ".", "weight_name": "a1111.pt", "token": "<k>"}, "a <k>"),
    "nameless": ({"of": "nameless.safetensors", "token": "<n>"}, "the <n>"),
}


@pytest.mark.parametrize("case", CASES)
def test_files(sd, files, case):
    options, prompt = CASES[case]
    pipes = load(sd)
    source = str(files / options["of"])
    others = {name: value for name, value in options.items() if name != "of"}
    for pipe in pipes:
        pipe.load_textual_inversion(source, **others)
    assert len(pipes[1].tokenizer) == len(pipes[0].tokenizer)
    with_word = same(pipes, prompt)[0]
    same(pipes, [prompt, "a dog"], clip_skip=1)
    assert not torch.equal(with_word, embeds(ours_of(sd), prompt)[0])
    theirs, ours = (picture(pipe, prompt, negative_prompt=prompt.split()[-1]) for pipe in pipes)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert pipes[1].maybe_convert_prompt([prompt], pipes[1].tokenizer) == pipes[0].maybe_convert_prompt([prompt], pipes[0].tokenizer)


def test_lists_dictionaries_and_tensors(sd, files):
    pipes = load(sd)
    for pipe in pipes:
        pipe.load_textual_inversion([{"<a>": vectors(2, seed=3)}, str(files / "multi")], token=["<b>", "<c>"])
        pipe.load_textual_inversion(vectors(2, seed=4), token=["<d>", "<e>"])
        pipe.load_textual_inversion(vectors(2, seed=5), token="<f>")
    same(pipes, "a <b>, <c>, <d> and <e>, <f>")
    for pipe in pipes:
        pipe.unload_textual_inversion(["<c>", "<c>_1", "<c>_2"] if pipe is pipes[0] else "<c>")
    same(pipes, "a <b>, <c>, <d> and <e>, <f>")
    for pipe in pipes:
        pipe.unload_textual_inversion()
    torch.testing.assert_close(same(pipes, "a <b>")[0], embeds(ours_of(sd), "a <b>")[0], atol=0, rtol=0)


def test_sdxl(xl, files):
    pipes = load(xl, "StableDiffusionXLPipeline")
    pipes[1].load_textual_inversion(files / "both.safetensors", token=["<s0>", "<s1>"])
    for name, count in (("", 0), ("_2", 1)):
        parts = {"tokenizer": getattr(pipes[0], f"tokenizer{name}"), "text_encoder": getattr(pipes[0], f"text_encoder{name}")}
        pipes[0].load_textual_inversion(vectors(2, (WIDTH, WIDTH_2)[count], count), token=["<s0>", "<s1>"], **parts)
    same(pipes, "a <s0> <s1> dog")
    theirs, ours = (picture(pipe, "a <s0> <s1>") for pipe in pipes)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    for pipe in pipes:  # one encoder after the other, as programs for the reference do
        for end in ("", "_2"):
            pipe.unload_textual_inversion(
                ["<s0>", "<s1>"], text_encoder=getattr(pipe, f"text_encoder{end}"), tokenizer=getattr(pipe, f"tokenizer{end}")
            )
    same(pipes, "a <s0> <s1> dog")
    assert all(torch.equal(a, b) for a, b in zip(embeds(pipes[1], "a <s0>"), embeds(ours_of(xl, "StableDiffusionXLPipeline"), "a <s0>")))
    pipes[1].load_textual_inversion(files / "both.safetensors", token="<s>")
    assert pipes[1].maybe_convert_prompt("a <s>", pipes[1].tokenizer_2) == "a <s> <s>_1"
    pipes[1].load_textual_inversion(vectors(1, WIDTH_2), "<t>", pipes[1].tokenizer_2, pipes[1].text_encoder_2)
    assert "<t>" not in pipes[1].tokenizer.get_vocab()
    pipes[1].unload_textual_inversion()
    assert all(torch.equal(a, b) for a, b in zip(embeds(pipes[1], "a <s>"), embeds(ours_of(xl, "StableDiffusionXLPipeline"), "a <s>")))


def test_weighted_prompts(sd, files):
    pipe = ours_of(sd)
    pipe.load_textual_inversion(files / "multi")
    plain = embeds(pipe, "a <cat> dog")[0]
    torch.testing.assert_close(embeds(pipe, "a <cat> dog", prompt_syntax="weighted")[0], plain, atol=0, rtol=0)
    heavy = embeds(pipe, "a (<cat>:1.4) dog", prompt_syntax="weighted")[0]
    written = embeds(pipe, "a (<cat> <cat>_1 <cat>_2:1.4) dog", prompt_syntax="weighted")[0]
    assert torch.equal(heavy, written) and not torch.equal(heavy, plain)
    long = embeds(pipe, ", ".join(["a <cat>"] * 5), prompt_syntax="weighted")[0]  # more than one window
    assert long.shape[1] == 2 * tiny.TOKENS


def test_words_of_several_vectors(sd, files):
    pipe = ours_of(sd)
    pipe.load_textual_inversion([{"<a>": vectors(3)}, {"b\\c": vectors(2)}, {"xyz": vectors(1)}])
    tokenizer = pipe.tokenizer
    for prompt, wanted in {
        "a <a> cat": "a <a> <a>_1 <a>_2 cat",
        "<A>, <a>": "<a> <a>_1 <a>_2, <a> <a>_1 <a>_2",
        "<a> <a>_1 <a>_2, <a>": "<a> <a>_1 <a>_2, <a> <a>_1 <a>_2",  # the reference writes out what is written out already
        "<a>_1": "<a>_1",
        "b\\c xyz": "b\\c b\\c_1 xyz",
        "": "",
    }.items():
        assert expand(prompt, tokenizer) == wanted
        assert expand(wanted, tokenizer) == wanted
    assert expand("a dog", ours_of(sd).tokenizer) == "a dog"


def test_words_are_private(sd, files):
    """Pipelines that share weights know their own words only, and their results stay the same to the bit."""
    parent = ours_of(sd)
    sibling = darkroom.StableDiffusionPipeline(**parent.components, requires_safety_checker=False)
    base, embedding = picture(parent, "a <cat>"), parent.text_encoder.get_input_embeddings()
    child = darkroom.StableDiffusionPAGPipeline.from_pipe(parent)
    child.load_textual_inversion(files / "multi")
    learned = picture(child, "a <cat>", pag_scale=0.0)
    for pipe in (parent, sibling):
        assert np.array_equal(picture(pipe, "a <cat>"), base)
        assert pipe.text_encoder.get_input_embeddings() is embedding and "<cat>" not in pipe.tokenizer.get_vocab()
    assert not np.array_equal(learned, base)
    grandchild = darkroom.StableDiffusionPipeline.from_pipe(child)
    assert np.array_equal(picture(grandchild, "a <cat>"), learned)
    grandchild.load_textual_inversion({"<dog>": vectors(1)})
    child.unload_textual_inversion("<cat>")
    assert np.array_equal(picture(child, "a <cat>", pag_scale=0.0), base)
    assert np.array_equal(picture(grandchild, "a <cat>"), learned)
    grandchild.unload_textual_inversion()
    assert np.array_equal(picture(grandchild, "a <cat>"), base)
    assert type(grandchild.text_encoder.get_input_embeddings()) is torch.nn.Embedding
    assert parent.text_encoder.config.vocab_size == grandchild.text_encoder.config.vocab_size == len(parent.tokenizer)


def test_memory(sd, files):
    """No base weight is copied: the words cost what they hold."""
    pipe = ours_of(sd)
    before = {id(p): p for p in pipe.text_encoder.parameters()}
    pipe.load_textual_inversion(files / "multi")
    assert {id(p) for p in pipe.text_encoder.parameters()} == before.keys()
    embedding = pipe.text_encoder.get_input_embeddings()
    assert sum(b.numel() for b in embedding.buffers()) == 3 * WIDTH


def test_moving_and_casting(sd, files):
    pipe = ours_of(sd)
    pipe.load_textual_inversion(files / "multi")
    child = darkroom.StableDiffusionPipeline.from_pipe(pipe, dtype=torch.float64)
    assert child.text_encoder.get_input_embeddings().added.dtype == torch.float64
    torch.testing.assert_close(embeds(child, "a <cat>")[0].float(), embeds(pipe, "a <cat>")[0], atol=1e-5, rtol=1e-5)
    pipe.to(torch.bfloat16)
    assert pipe.text_encoder.get_input_embeddings().added.dtype == torch.bfloat16
    assert embeds(pipe, "a <cat>")[0].isfinite().all()
    half = ours_of(sd).to(torch.float16)
    half.load_textual_inversion(files / "multi")
    assert half.text_encoder.get_input_embeddings().added.dtype == torch.float16


def test_an_encoder_on_another_device_stays_reachable(sd, files):
    pipe = ours_of(sd)
    pipe.load_textual_inversion(files / "multi")
    wanted = embeds(pipe, "a <cat>")
    placed = ours_of(sd)
    placed.__dict__["device_plan"] = {"text_encoder": torch.device("cpu", 0), "unet": torch.device("cpu")}
    placed.load_textual_inversion(files / "multi")
    assert placed.text_encoder._forward_pre_hooks and not pipe.text_encoder._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(embeds(placed, "a <cat>"), wanted, strict=True))


def test_a_saved_pipeline_keeps_its_words(sd, files, tmp_path):
    pipe = ours_of(sd)
    pipe.load_textual_inversion(files / "multi")
    pipe.save_pretrained(tmp_path / "saved")
    pipes = load(tmp_path / "saved")
    assert torch.equal(embeds(pipes[1], "a <cat>")[0], embeds(pipe, "a <cat>")[0])
    same(pipes, "a <cat>")


def test_bad_files(sd, files, tmp_path):
    pipe = ours_of(sd)
    pipe.load_textual_inversion(files / "single", token="<mine>")
    before, state = picture(pipe, "a <mine> <bad>"), dict(pipe.components)
    whole = (files / "safe/learned_embeds.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[:-40])
    nan = vectors(2)
    nan[1, 3] = torch.nan
    (tmp_path / "empty").mkdir()

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "payload",))

    torch.save({"<bad>": Payload()}, tmp_path / "payload.bin")
    good = {"<good>": vectors(1)}
    wrong: list[tuple[Any, dict[str, Any], type, str]] = [
        (tmp_path / "half.safetensors", {}, CheckpointError, "half.safetensors"),
        (tmp_path / "payload.bin", {}, CheckpointError, "payload.bin"),
        (tmp_path / "empty", {}, CheckpointError, "no adapter"),
        (tmp_path / "missing.pt", {}, CheckpointError, "missing.pt"),
        ({"<bad>": nan}, {}, CheckpointError, "finite"),
        ({"<bad>": vectors(2, 48)}, {}, CheckpointError, "another base model"),
        ({"<bad>": vectors(1)[None]}, {}, CheckpointError, "no vectors"),
        ({"<bad>": torch.ones(1, WIDTH, dtype=torch.int64)}, {}, CheckpointError, "no vectors"),
        ({"<bad>": torch.ones(0, WIDTH)}, {}, CheckpointError, "no vectors"),
        ({"a.lora_down.weight": vectors(1), "a.lora_up.weight": vectors(1)}, {}, CheckpointError, "Not a file of textual inversion"),
        (files / "both.safetensors", {"token": "<bad>"}, CheckpointError, "text_encoder_2"),
        ({"ca": vectors(1)}, {}, InputError, "knows this word"),
        ({"<mine>": vectors(1)}, {}, InputError, "knows this word"),
        ({"<MINE>": vectors(1)}, {}, InputError, "knows this word"),
        ({"<mine>_1": vectors(1)}, {}, InputError, "further vector"),
        (files / "nameless.safetensors", {}, InputError, "word is missing"),
        (vectors(1), {}, InputError, "word is missing"),
        ({"<bad>": vectors(1)}, {"token": " x"}, InputError, "word is missing"),
        (vectors(3), {"token": ["<bad>", "<worse>"]}, InputError, "Not one word for each"),
        ([good, good], {}, InputError, "given twice"),
        ([good, good], {"token": ["<bad>"]}, InputError, "Not one word for each"),
        ([good, {"<bad>": vectors(1, 40)}], {}, CheckpointError, "another width"),
        ([good, tmp_path / "half.safetensors"], {}, CheckpointError, "half.safetensors"),
        (good, {"text_encoder": copy.deepcopy(pipe.text_encoder)}, InputError, "No such encoder"),
    ]  # fmt: skip
    for source, options, kind, said in wrong:
        with pytest.raises(kind, match=said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.load_textual_inversion(source, **options)
        assert all(state[name] is component for name, component in pipe.components.items()), said
    for words in ("<bad>", ["<mine>", "<bad>"], "<mine>_1"):
        with pytest.raises(InputError, match="No such word"):
            pipe.unload_textual_inversion(words)
    assert np.array_equal(picture(pipe, "a <mine> <bad>"), before) and not (tmp_path / "payload").exists()


def test_unloading_nothing(sd):
    pipe = ours_of(sd)
    state = dict(pipe.components)
    pipe.unload_textual_inversion()
    assert all(state[name] is component for name, component in pipe.components.items())


def test_an_embedding_with_rows_to_spare():
    """Ids of words follow the tokenizer's tokens, not the rows of the weight."""
    plain = torch.nn.Embedding(10, 4)
    learned = LearnedEmbedding.beside(plain, {"x": torch.ones(2, 4)}, range(7))
    ids = torch.tensor([[0, 6, 7, 8]])
    assert torch.equal(learned(ids)[0, :2], plain(ids)[0, :2]) and torch.equal(learned(ids)[0, 2:], torch.ones(2, 4))
    assert torch.equal(torch.nn.functional.embedding(ids, learned.state_dict()["weight"]), learned(ids))
    assert torch.equal(learned.plain().weight, plain.weight) and learned.plain().num_embeddings == 10
