"""SDXL with ControlNets, Union ControlNets and T2I-Adapters beside the reference."""

from __future__ import annotations
from functools import cache
from pathlib import Path
from typing import Any
import numpy as np
import pytest
from families import controls
from families.side_by_side import both, compare, generators, mask, picture
import darkroom
from darkroom import CFG, PAG, InputError

STEPS = 4
XL = "StableDiffusionXL{}Pipeline".format
NAMES = [XL(f"ControlNet{s}") for s in ("", "Img2Img", "Inpaint", "PAG", "PAGImg2Img", "Union", "UnionImg2Img", "UnionInpaint")]
NAMES.append(XL("Adapter"))


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The same pipeline from both libraries, over checkpoints that are written once."""

    @cache
    def write(kind: str, **options: Any) -> Path:
        return getattr(controls, kind)(tmp_path_factory.mktemp(kind), **options)

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        path = write("sdxl_adapter" if "Adapter" in name else "sdxl_union" if "Union" in name else "sdxl_controlnet", **options)
        return both(name, path)

    return load


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"prompt": "the cat and the dog", "num_inference_steps": STEPS, "output_type": "np"}
    task = "Img2Img" in name or "Inpaint" in name
    if task:
        given |= {"image": picture(5), "strength": 0.8}
    if "Inpaint" in name:
        given["mask_image"] = mask()
    hint = changes.pop("hint", picture())
    given["control_image" if task or "Union" in name else "image"] = hint
    return {**given, **({"control_mode": 2} if "Union" in name else {}), **changes}


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without guidance": {"guidance_scale": 1.0},
    "negative and sizes": {
        "negative_prompt": "red",
        "original_size": (64, 48),
        "crops_coords_top_left": (4, 8),
        "num_images_per_prompt": 2,
    },
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls(pair, name, call):
    compare(pair(name), arguments(name, **call))


NO_GUIDANCE = {"guidance_scale": 1.0}  # the reference counts rows wrongly where unions guess beside unconditional rows, and breaks off


@pytest.mark.parametrize("name", [n for n in NAMES if "Adapter" not in n and "PAG" not in n])
@pytest.mark.parametrize("call", [{"guess_mode": True}, {"control_guidance_end": 0.5, "controlnet_conditioning_scale": 0.6}], ids=str)
def test_windows_and_guesses(pair, name, call):
    if "Union" in name and "guess_mode" in call:
        call = call | NO_GUIDANCE
    compare(pair(name), arguments(name, **call))


@pytest.mark.parametrize("name", [XL("ControlNet"), XL("ControlNetInpaint"), XL("Adapter")])
def test_the_end_of_denoising(pair, name):
    """Windows are shares of the whole schedule, however soon the run ends."""
    window = {"adapter_conditioning_factor": 0.5} if "Adapter" in name else {"control_guidance_end": 0.5}
    compare(pair(name), arguments(name, num_inference_steps=8, denoising_end=0.6, output_type="latent", **window))


def test_an_adapter_for_a_part_of_the_steps(pair):
    compare(pair(XL("Adapter")), arguments("Adapter", adapter_conditioning_factor=0.5))


@pytest.mark.parametrize("name", [XL(f"ControlNet{s}") for s in ("", "Img2Img", "Inpaint", "PAG")])
def test_several_networks(pair, name):
    compare(pair(name, nets=2), arguments(name, hint=[picture(1), picture(2)], controlnet_conditioning_scale=[0.5, 0.8]))


def test_several_adapters(pair):
    compare(pair(XL("Adapter"), nets=2), arguments("Adapter", hint=[picture(1), picture(2)], adapter_conditioning_scale=[0.5, 0.8]))


UNIONS = [XL(f"ControlNetUnion{s}") for s in ("", "Img2Img", "Inpaint")]
KINDS: dict[str, dict[str, Any]] = {
    "scales": {"controlnet_conditioning_scale": [0.4, 0.9]},
    "one scale": {},
    "windows": {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]},
    "over": {"control_guidance_end": 0.5},
    "guess mode": {"guess_mode": True, **NO_GUIDANCE},
}


@pytest.mark.parametrize("name", UNIONS)
@pytest.mark.parametrize("call", KINDS.values(), ids=KINDS)
def test_several_kinds(pair, name, call):
    compare(pair(name), arguments(name, hint=[picture(1), picture(2)], control_mode=[1, 4], **call))


def test_guess_mode_leaves_unconditional_rows_alone(pair):
    pipe, rows = pair(XL("ControlNetUnion"))[1], []

    def watch(unet, args, kwargs):
        rows.append([bool(row.any()) for row in kwargs["mid_block_additional_residual"]])

    handle = pipe.unet.register_forward_pre_hook(watch, with_kwargs=True)
    images = pipe(**arguments("Union", guess_mode=True), generator=generators(0)).images
    handle.remove()
    assert rows == [[False, True]] * STEPS and np.isfinite(images).all()


def test_several_unions(pair, tmp_path):
    """The reference writes such a checkpoint, and cannot name the class when it reads it again."""
    ours, one = pair(XL("ControlNetUnion"))[1], pair(XL("ControlNetUnion"))[0]
    nets = [controls.controlnet(one.unet, seed=i, union=True) for i in (1, 2)]
    theirs = type(one)(**{**one.components, "controlnet": nets})
    own = [darkroom.ControlNetUnionModel.from_config(dict(n.config)) for n in nets]
    for mine, net in zip(own, nets, strict=True):
        mine.load_state_dict(net.state_dict())
    ours = type(ours)(**{**ours.components, "controlnet": own})
    call = arguments("Union", hint=[picture(1), picture(2)], control_mode=[1, 4], controlnet_conditioning_scale=[0.4, 0.9])
    expected = compare((theirs, ours), call | {"control_guidance_end": [1.0, 0.5]})
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert type(again.controlnet).__name__ == "MultiControlNetUnionModel"
    images = again(**call, control_guidance_end=[1.0, 0.5], generator=generators(0)).images
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_control_works_with_perturbed_attention(pair, name):
    pipe = pair(name)[1]
    run = lambda **c: pipe(**arguments(name), **c, generator=generators(0)).images  # noqa: E731
    guided = run(guidance=CFG(5.0, terms=[PAG(3.0)]))
    assert np.isfinite(guided).all() and np.abs(guided - run(guidance=CFG(5.0))).max() > 1e-4


@pytest.mark.parametrize(
    "changes",
    [{"control_mode": None}, {"control_mode": 6}, {"control_mode": [1, 2]}, {"hint": [picture()] * 2}],
    ids=lambda change: " ".join(f"{k} {type(v).__name__}" for k, v in change.items()) if isinstance(change, dict) else str(change),
)
def test_bad_input(pair, changes):
    with pytest.raises(InputError) as caught:
        pair(XL("ControlNetUnion"))[1](**arguments("Union", **changes))
    assert "control_mode" in str(caught.value)
