"""Pipelines with ControlNets and T2I-Adapters beside the reference, and what only darkroom composes."""

from __future__ import annotations
import inspect
from functools import cache
from pathlib import Path
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import controls
from families.side_by_side import TOLERANCE, both, compare, generators, mask, picture
import darkroom
import darkroom.families.controlled
from darkroom import CFG, PAG, SAG, DiffusionPipeline, InputError
from darkroom.core.control import ControlNets, T2IAdapters

STEPS = 4
SD = "StableDiffusion{}Pipeline".format
NETS = [SD(f"ControlNet{s}") for s in ("", "Img2Img", "Inpaint", "PAG", "PAGInpaint")]
NAMES = [*NETS, SD("Adapter")]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Checkpoints by their options, each written once."""

    @cache
    def write(kind: str, **options: Any) -> Path:
        return getattr(controls, kind)(tmp_path_factory.mktemp(kind), **options)

    return write


@pytest.fixture(scope="session")
def pair(checkpoint):
    """The same pipeline from both libraries."""

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        path = checkpoint("sd_adapter" if "Adapter" in name else "sd_controlnet", **options)
        return both(name, path, requires_safety_checker=False)

    return load


def hint(name: str) -> str:
    """The argument for the picture that the control looks at."""
    return "control_image" if "Img2Img" in name or "Inpaint" in name else "image"


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt": "the cat and the dog", "num_inference_steps": STEPS, "output_type": "np"}
    if hint(name) != "image":
        given |= {"image": picture(5), "strength": 0.8}
    if "Inpaint" in name:
        given["mask_image"] = mask()
    hints = changes.pop("hint", picture())
    return {**given, hint(name): hints, **changes}


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without guidance": {"guidance_scale": 1.0},
    "two prompts": {"prompt": ["a cat", "the red dog"], "negative_prompt": ["red", ""], "hint": [picture(1), picture(2)]},
    "two pictures": {"num_images_per_prompt": 2, "clip_skip": 1, "eta": 0.7},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls(pair, name, call):
    compare(pair(name), arguments(name, **call))


WINDOWS: dict[str, dict[str, Any]] = {
    "weak": {"controlnet_conditioning_scale": 0.3},
    "first half": {"control_guidance_end": 0.5},
    "in between": {"control_guidance_start": [0.25], "control_guidance_end": 0.75},
    "guess mode": {"guess_mode": True},
    "guess mode without guidance": {"guess_mode": True, "guidance_scale": 1.0},
    "guess mode for more": {"guess_mode": True, "prompt": ["a cat", "a dog"], "num_images_per_prompt": 2, "hint": [picture(1), picture(2)]},
}


OWN = {"controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end", "guess_mode"}


def comparable(calls: dict[str, dict[str, Any]]) -> Any:
    """Every class with every call; but for guess mode beside PAG, where the reference differs: test_guess_mode_beside_perturbed_attention."""
    pairs = [(n, c) for c in calls for n in NETS if not ("PAG" in n and "guess_mode" in calls[c])]
    return pytest.mark.parametrize("name, call", [pytest.param(n, calls[c], id=f"{n}-{c}") for n, c in pairs])


@comparable(WINDOWS)
def test_scales_windows_and_guesses(pair, name, call):
    steered = compare(pair(name), arguments(name, **call))
    plain = pair(name)[1](**arguments(name, **{k: v for k, v in call.items() if k not in OWN}), generator=generators(0)).images
    assert np.abs(steered - plain).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheduler", ["PNDM", "HeunDiscrete", "EulerAncestralDiscrete"])
def test_schedulers(pair, name, scheduler):
    window = {} if "Adapter" in name else {"control_guidance_end": 0.6}
    compare(pair(name, scheduler=f"{scheduler}Scheduler"), arguments(name, **window))


@pytest.mark.parametrize("name", NAMES)
def test_a_list_of_generators(pair, name):
    compare(pair(name), arguments(name, prompt=["a cat", "the red dog"], hint=[picture(1), picture(2)]), seed=[4, 5])


TWO = {"nets": 2}
SEVERAL: dict[str, dict[str, Any]] = {
    "one scale": {"controlnet_conditioning_scale": 0.7},
    "scales": {"controlnet_conditioning_scale": [0.2, 1.1]},
    "windows": {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]},
    "guess mode": {"guess_mode": True},
}


@comparable(SEVERAL)
def test_several_networks(pair, name, call):
    compare(pair(name, **TWO), arguments(name, hint=[picture(1), picture(2)], **call))


def test_several_networks_with_pictures_per_prompt(pair):
    rows = [[picture(1), picture(2)], [picture(3), picture(4)]]
    name, call = SD("ControlNet"), {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2}
    compare(pair(name, **TWO), arguments(name, hint=rows, **call))


@pytest.mark.parametrize("name", [SD("ControlNetInpaint"), SD("ControlNetPAGInpaint")])
@pytest.mark.parametrize("call", [{}, {"guidance_scale": 1.0}, {"strength": 1.0, "num_images_per_prompt": 2}], ids=str)
def test_nine_channels(pair, name, call):
    compare(pair(name, in_channels=9), arguments(name, **call))


OPTIONS = {"bgr": {"controlnet_conditioning_channel_order": "bgr"}, "pooled": {"global_pool_conditions": True}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", NETS[:3])
def test_options_of_the_network(pair, name, options):
    compare(pair(name, net_options=tuple(options.items())), arguments(name))


@pytest.mark.parametrize("name", [SD("ControlNet"), SD("ControlNetInpaint"), SD("ControlNetImg2Img")])
def test_the_picture_decides_the_size(pair, name):
    size = (40, 24)
    changes = {} if hint(name) == "image" else {"image": picture(5, size)}
    if "Inpaint" in name:
        changes["mask_image"] = mask().resize(size)
    assert compare(pair(name), arguments(name, hint=picture(1, size), **changes)).shape == (1, 24, 40, 3)
    given = {"height": 32, "width": 16}
    assert compare(pair(name), arguments(name, hint=picture(1, size), **changes, **given)).shape == (1, 32, 16, 3)


def test_the_adapter_s_picture_decides_the_size(pair):
    assert compare(pair(SD("Adapter")), arguments("Adapter", hint=picture(1, (24, 40)))).shape == (1, 40, 24, 3)


@pytest.mark.parametrize("padding", [0, 4])
def test_padding_mask_crop(pair, padding):
    call = arguments(SD("ControlNetInpaint"), padding_mask_crop=padding, output_type="pil")
    theirs, ours = (p(**call, generator=generators(0)).images for p in pair(SD("ControlNetInpaint")))
    for a, b in zip(ours, theirs, strict=True):
        assert a.size == b.size and np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max() <= 1


@pytest.mark.parametrize("kind", ["numpy", "tensor", "marked", "gray", "list of tensors"])
def test_pictures_in_other_forms(pair, kind):
    array = np.asarray(picture(), np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = {
        "numpy": array[None],
        "tensor": tensor[None],
        "marked": torch.where(torch.rand(1, 1, 32, 32, generator=generators(1)) < 0.3, -1.0, tensor[None]),  # inpainting ControlNets use -1
        "gray": picture(mode="L"),
        "list of tensors": [tensor[None], tensor[None].flip(-1)],
    }
    name = SD("ControlNet")
    compare(pair(name), arguments(name, hint=forms[kind], prompt=["a", "b"] if kind == "list of tensors" else "a"))


@pytest.mark.parametrize("name", [SD("ControlNet"), SD("ControlNetImg2Img"), SD("ControlNetInpaint"), SD("Adapter")])
def test_latents_and_embeddings_passed_in(pair, name):
    g = generators(5)
    embeds, other = torch.randn(2, 1, 16, 32, generator=g)
    latents = torch.randn(1, 4, 16, 16, generator=g)
    compare(pair(name), arguments(name, prompt=None, prompt_embeds=embeds, negative_prompt_embeds=other, latents=latents))


def test_a_schedule_of_ones_own(pair):
    pipes = pair(SD("ControlNet"), scheduler="EulerDiscreteScheduler")
    compare(pipes, arguments("", timesteps=[900, 500, 100], control_guidance_end=0.5))


@pytest.mark.parametrize("output_type", ["pil", "pt", "latent"])
def test_output_types(pair, output_type):
    theirs, ours = (p(**arguments("", output_type=output_type), generator=generators(0)).images for p in pair(SD("ControlNet")))
    if output_type == "pil":
        assert np.abs(np.asarray(ours[0], np.int16) - np.asarray(theirs[0], np.int16)).max() <= 1
    else:
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)


def test_outputs(pair):
    ours = pair(SD("Adapter"))[1](**arguments(""), generator=generators(0))
    theirs = pair(SD("Adapter"))[0](**arguments(""), generator=generators(0))
    assert type(ours).__name__ == type(theirs).__name__ and [*ours] == [*theirs]
    picture_only, flagged = pair(SD("ControlNet"))[1](**arguments(""), return_dict=False)
    assert picture_only.shape == (1, 32, 32, 3) and flagged is None


@pytest.mark.parametrize("nets", [1, 2])
def test_callbacks_see_and_replace_the_picture(pair, nets):
    seen = []

    def follow(pipe, step, timestep, tensors):
        mine = type(pipe).__module__.startswith("darkroom")
        shown = tensors["image"] if nets > 1 else [tensors["image"]]
        seen.append((mine, step, [s[-1:].clone() for s in shown], tensors["latents"].clone()))
        changed = [s.flip(-1) * 0.7 for s in shown]
        return {"latents": tensors["latents"] * 0.99, "image": changed if nets > 1 else changed[0]}

    pipes = pair(SD("ControlNet"), nets=nets)
    hints = [picture(1), picture(2)][:nets]
    call = arguments(
        "", hint=hints if nets > 1 else hints[0], callback_on_step_end=follow, callback_on_step_end_tensor_inputs=["latents", "image"]
    )
    compare(pipes, call)
    for a, b in zip([s for s in seen if not s[0]], [s for s in seen if s[0]], strict=True):
        assert a[1] == b[1]
        torch.testing.assert_close(b[2:], a[2:], atol=TOLERANCE, rtol=1e-4)


def test_older_callbacks(pair):
    steps: list[Any] = []
    for pipe in pair(SD("Adapter")):
        pipe(**arguments(""), callback=lambda i, t, latents: steps.append((i, int(t))), callback_steps=2)
    assert steps[: len(steps) // 2] == steps[len(steps) // 2 :] and steps


# ---- adapters

ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "scale": ({}, {"adapter_conditioning_scale": 0.4}),
    "light": ({"net_options": (("adapter_type", "light_adapter"), ("channels", (16, 32)), ("downscale_factor", 2))}, {}),
    "gray": ({"net_options": (("in_channels", 1),)}, {"hint": picture(mode="L")}),
    "tensor": ({}, {"hint": torch.rand(1, 3, 32, 32, generator=generators(1)), "height": 32, "width": 32}),
    "two": ({"nets": 2}, {"hint": [picture(1), picture(2)], "adapter_conditioning_scale": [0.5, 0.9]}),
    "three": ({"nets": 3}, {"hint": [picture(1), picture(2), picture(3)], "adapter_conditioning_scale": [0.5, 0.9, 0.1]}),
}


@pytest.mark.parametrize("options, call", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters(pair, checkpoint, options, call):
    name = SD("Adapter")
    if options.get("nets") == 3:  # the reference does not find the third adapter that it has written, darkroom does
        ours = pair(name, **options)[1]
        parts = {n: c for n, c in pair(name)[0].components.items() if n != "adapter"}
        theirs = diffusers.StableDiffusionAdapterPipeline(
            **parts,
            adapter=[diffusers.T2IAdapter.from_config(dict(a.config)) for a in ours.adapter.adapters],
            requires_safety_checker=False,
        )
        theirs.adapter.load_state_dict(ours.adapter.state_dict())
        assert len(ours.adapter.adapters) == 3
        compare((theirs, ours), arguments(name, **call))
    else:
        compare(pair(name, **options), arguments(name, **call))


def test_one_scale_for_several_adapters_and_pictures_for_each_prompt(pair):
    """The reference takes no single number for several adapters, and mixes up the pictures of several prompts with several pictures each."""
    pipe = pair(SD("Adapter"), nets=2)[1]
    run = lambda **c: pipe(**arguments("", hint=[picture(1), picture(2)], **c), generator=generators(0)).images  # noqa: E731
    assert np.array_equal(run(), run(adapter_conditioning_scale=[1.0, 1.0]))
    single = pair(SD("Adapter"))[1]
    both = {"prompt": ["a cat", "a dog"], "hint": [picture(1), picture(2)], "num_images_per_prompt": 2}
    images = single(**arguments("", **both), generator=generators([1, 2, 3, 4])).images
    for i, (prompt, seed) in enumerate([("a cat", 1), ("a cat", 2), ("a dog", 3), ("a dog", 4)]):
        alone = single(**arguments("", prompt=prompt, hint=both["hint"][i // 2]), generator=generators([seed])).images[0]
        np.testing.assert_allclose(images[i], alone, atol=1e-5)


def test_bytes_are_scaled(pair):
    """Arrays of bytes mean the same as the PIL image that they come from, in colour and in gray."""
    for name, options, mode in ((SD("ControlNet"), {}, "RGB"), (SD("Adapter"), ADAPTERS["gray"][0], "L")):
        pipe, hint_ = pair(name, **options)[1], picture(mode=mode)
        as_bytes = np.asarray(hint_).reshape(1, 32, 32, -1)
        images = [
            pipe(**arguments("", hint=h), generator=generators(0)).images
            for h in (hint_, as_bytes, torch.tensor(as_bytes).permute(0, 3, 1, 2))
        ]
        np.testing.assert_allclose(images[1], images[0], atol=1e-5)
        np.testing.assert_allclose(images[2], images[0], atol=1e-5)


def test_an_adapter_s_features_are_made_once(pair):
    pipe, calls = pair(SD("Adapter"))[1], []
    handle = pipe.adapter.register_forward_hook(lambda *_: calls.append(1))
    pipe(**arguments(""))
    handle.remove()
    assert len(calls) == 1


# ---- composition


def test_a_network_whose_time_is_over_does_not_run(pair):
    pipe, calls = pair(SD("ControlNet"))[1], []
    handle = pipe.controlnet.register_forward_hook(lambda *_: calls.append(1))
    pipe(**arguments("", control_guidance_end=0.5))
    handle.remove()
    assert len(calls) == STEPS // 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("term", [PAG, SAG])
def test_every_control_works_with_every_term(pair, name, term):
    pipe = pair(name)[1]
    run = lambda **c: pipe(**arguments(name), **c, generator=generators(0)).images  # noqa: E731
    plain, guided = run(guidance=CFG(7.5)), run(guidance=CFG(7.5, terms=[term(2.0)]))
    assert np.isfinite(guided).all() and np.abs(plain - guided).max() > 1e-4
    assert np.array_equal(plain, run(guidance=CFG(7.5, terms=[term(0.0)])))


def test_a_named_class_equals_the_composed_call(pair):
    pag, plain = pair(SD("ControlNetPAG"))[1], pair(SD("ControlNet"))[1]
    composed = plain(**arguments(""), guidance=CFG(7.5, terms=[PAG(3.0)]), generator=generators(0)).images
    assert np.array_equal(pag(**arguments(""), generator=generators(0)).images, composed)


def test_guess_mode_beside_perturbed_attention(pair):
    """Unconditional rows get no residuals whatever else is predicted; the reference forgets that where there is perturbed attention."""
    pipe, rows = pair(SD("ControlNetPAG"))[1], []

    def watch(unet, args, kwargs):
        rows.append([bool(row.any()) for row in kwargs["mid_block_additional_residual"]])

    handle = pipe.unet.register_forward_pre_hook(watch, with_kwargs=True)
    pipe(**arguments("", guess_mode=True))
    handle.remove()
    assert rows == [[False, True, True]] * STEPS
    run = lambda p, **c: p(**arguments("", guess_mode=True, **c), generator=generators(0)).images  # noqa: E731
    np.testing.assert_allclose(run(pipe, pag_scale=0.0), run(pair(SD("ControlNet"))[1]), atol=1e-6)


def test_a_class_of_ones_own_is_a_declaration(pair):
    class Mine(darkroom.families.controlled.WithAdapter, darkroom.families.controlled.StableDiffusionControlNet):
        task = darkroom.Image2Image(strength=0.7)
        terms = (SAG,)
        control = ControlNets("control_image")

    source, adapters = pair(SD("ControlNet"))[1], pair(SD("Adapter"))[1]
    mine = Mine.from_pipe(source, adapter=adapters.adapter)
    assert Mine.control.picture == "control_image" and isinstance(darkroom.StableDiffusionAdapterPipeline.control, T2IAdapters)
    images = mine(**arguments("Img2Img"), sag_scale=0.5, generator=generators(0)).images
    assert np.isfinite(images).all() and "sag_scale" in inspect.signature(Mine.__call__).parameters


def test_from_pipe_there_and_back(pair):
    pipe = darkroom.StableDiffusionPipeline.from_pipe(pair(SD("ControlNet"))[1])
    before = pipe("a cat", num_inference_steps=2, output_type="np", generator=generators(0)).images
    net = pair(SD("ControlNet"))[1].controlnet
    steered = darkroom.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=[net, net])
    assert type(steered.controlnet).__name__ == "MultiControlNetModel" and steered.config["controlnet"] == (
        "diffusers",
        "MultiControlNetModel",
    )
    once = pair(SD("ControlNet"))[1](**arguments(""), generator=generators(0)).images
    twice = steered(**arguments("", hint=[picture()] * 2), controlnet_conditioning_scale=0.5, generator=generators(0)).images
    np.testing.assert_allclose(twice, once, atol=1e-5)
    back = darkroom.StableDiffusionPipeline.from_pipe(steered)
    assert np.array_equal(back("a cat", num_inference_steps=2, output_type="np", generator=generators(0)).images, before)
    with pytest.raises(InputError, match="controlnet"):
        darkroom.StableDiffusionControlNetPipeline.from_pipe(pipe)


@pytest.mark.parametrize("kind, part", [("ControlNet", "controlnet"), ("Adapter", "adapter")])
def test_several_networks_are_saved_and_loaded(pair, tmp_path, kind, part):
    ours = pair(SD(kind), nets=2)[1]
    call = arguments("", hint=[picture(1), picture(2)], **({"adapter_conditioning_scale": [0.5, 1.0]} if part == "adapter" else {}))
    expected = ours(**call, generator=generators(0)).images
    ours.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / f"{part}_1" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    again = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    assert type(again) is type(ours) and type(getattr(again, part)) is type(getattr(ours, part))
    np.testing.assert_array_equal(again(**call, generator=generators(0)).images, expected)
    assert repr(again).replace(str(tmp_path), "") == repr(ours).replace(ours.config["_name_or_path"], "")
    listed = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", **{part: [*next(iter(getattr(ours, part).children()))]})
    np.testing.assert_array_equal(listed(**call, generator=generators(0)).images, expected)
    half = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert {p.dtype for p in getattr(half, part).parameters()} == {torch.float16}
    assert "MultiControlNetModel" in str(DiffusionPipeline.inspect(tmp_path, variant="fp16")) or part == "adapter"
    ours.save_pretrained(tmp_path / "plain")
    other = getattr(diffusers, SD(kind)).from_pretrained(tmp_path / "plain", requires_safety_checker=False)
    assert len(next(iter(getattr(other, part).children()))) == 2


# ---- what cannot be used

WRONG: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "no picture": ("ControlNet", {}, {"hint": None}, "image"),
    "no control picture": ("ControlNetImg2Img", {}, {"hint": None}, "control_image"),
    "no picture for the adapter": ("Adapter", {}, {"hint": None}, "image"),
    "a number": ("ControlNet", {}, {"hint": 3}, "image"),
    "two channels": ("ControlNet", {}, {"hint": torch.rand(1, 2, 32, 32)}, "image"),
    "three pictures for two prompts": ("ControlNet", {}, {"hint": [picture()] * 3, "prompt": ["a", "b"]}, "image"),
    "one picture for two networks": ("ControlNet", TWO, {}, "image"),
    "three pictures for two networks": ("ControlNet", TWO, {"hint": [picture()] * 3}, "image"),
    "lists of another length": ("ControlNet", TWO, {"hint": [[picture()] * 3]}, "image"),
    "three scales": (
        "ControlNet",
        TWO,
        {"hint": [picture()] * 2, "controlnet_conditioning_scale": [1.0] * 3},
        "controlnet_conditioning_scale",
    ),
    "a scale as text": ("ControlNet", {}, {"controlnet_conditioning_scale": "1"}, "controlnet_conditioning_scale"),
    "two scales for one": ("ControlNet", {}, {"controlnet_conditioning_scale": [1.0, 0.5]}, "controlnet_conditioning_scale"),
    "infinite": ("ControlNet", {}, {"controlnet_conditioning_scale": float("inf")}, "controlnet_conditioning_scale"),
    "end before start": ("ControlNet", {}, {"control_guidance_start": 0.6, "control_guidance_end": 0.5}, "control_guidance"),
    "start below 0": ("ControlNet", {}, {"control_guidance_start": -0.1}, "control_guidance"),
    "end above 1": ("ControlNet", TWO, {"hint": [picture()] * 2, "control_guidance_end": [0.5, 1.1]}, "control_guidance"),
    "two adapters' scales": ("Adapter", {}, {"adapter_conditioning_scale": [1.0, 0.5]}, "adapter_conditioning_scale"),
    "a size that the adapter cannot divide": (
        "Adapter",
        {"net_options": (("downscale_factor", 16),)},
        {"hint": picture(), "height": 24, "width": 32},
        "height",
    ),
    "a mask without a task": ("ControlNet", {}, {"mask_image": mask()}, "mask_image"),
    "a tensor that no one has": ("ControlNet", {}, {"callback_on_step_end_tensor_inputs": ["control_image"]}, "control_image"),
}


@pytest.mark.parametrize("kind, options, call, named", WRONG.values(), ids=WRONG)
def test_bad_input(pair, checkpoint, kind, options, call, named):
    path = checkpoint("sd_adapter" if kind == "Adapter" else "sd_controlnet", **options)
    with pytest.raises(InputError) as caught:
        getattr(darkroom, SD(kind)).from_pretrained(path)(**arguments(SD(kind), **call))
    text = str(caught.value)
    assert named in text and "where:" in text


def test_networks_of_another_kind(pair):
    pipe = pair(SD("ControlNet"))[1]
    with pytest.raises(InputError, match="ControlNetModel"):
        pipe.controlnet = [pipe.unet]
    with pytest.raises(InputError, match="MultiControlNetModel"):
        darkroom.StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=[])


def test_an_adapter_for_another_network(pair, checkpoint):
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd_adapter", net_options=(("channels", (16, 24)),)), requires_safety_checker=False)
    with pytest.raises(InputError, match="does not fit this network"):
        pipe(**arguments("Adapter"))
