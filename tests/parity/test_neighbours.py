"""The pipelines beside Stable Diffusion next to the reference's, on checkpoints that it wrote: the same array within 1e-4 in [0, 1]."""

from __future__ import annotations
import inspect
from functools import cache
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import side_by_side, tiny
from families.side_by_side import TOLERANCE, both, generators, mask, picture, tensor
from PIL import Image
import darkroom
from darkroom import ConfigError, InputError

NAMES = ["".join(n) for n in tiny.KINDS if n not in ("DDPMPipeline", "DDIMPipeline")]


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The same pipeline from both libraries."""

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        path = getattr(tiny, tiny.KINDS[name])(tmp_path_factory.mktemp("checkpoint"), **options)
        return both(name, path)

    return load


def raw(seed: int, rows: int = 1, side: int = 32) -> torch.Tensor:
    return tensor(rows, 3, side, side, seed=seed).clamp(-1, 1)


CALLS: dict[str, dict[str, dict[str, Any]]] = {
    "LDMPipeline": {
        "plain": {},
        "batch": {"batch_size": 2, "num_inference_steps": 4},
    },
    "LDMSuperResolutionPipeline": {
        "picture": {"image": picture()},
        "picture of an odd size": {"image": picture(size=70)},
        "tensor": {"image": raw(1, 2, 16), "num_inference_steps": 3},
    },
    "LDMTextToImagePipeline": {
        "plain": {"prompt": "the cat"},
        "guidance": {"prompt": ["the cat", "a red dog"], "guidance_scale": 6.0},
        "guidance below 1": {"prompt": "the cat", "guidance_scale": 0.4},
        "size": {"prompt": "the cat", "height": 48, "width": 16, "guidance_scale": 3.0},
        "latents": {"prompt": "the cat", "latents": tensor(1, 4, 4, 4)},
    },
    "ConsistencyModelPipeline": {
        "one step": {"num_inference_steps": 1},
        "several steps": {"num_inference_steps": 4, "batch_size": 2},
        "timesteps": {"num_inference_steps": None, "timesteps": [22, 0]},
        "timesteps and steps": {"num_inference_steps": 3, "timesteps": [30, 11, 0]},
        "latents": {"num_inference_steps": 2, "latents": tensor(1, 3, 16, 16)},
        "a class that it does not know": {"num_inference_steps": 2, "class_labels": 3},
    },
    "DiTPipeline": {
        "plain": {"class_labels": [3]},
        "two": {"class_labels": [3, 998], "guidance_scale": 2.0},
        "without guidance": {"class_labels": [3, 4], "guidance_scale": 1.0},
    },
    "RePaintPipeline": {
        "pictures": {"image": picture(), "mask_image": mask(0), "num_inference_steps": 6, "jump_length": 2, "jump_n_sample": 3},
        "long jumps": {"image": picture(), "mask_image": mask(0), "num_inference_steps": 9, "jump_length": 4, "jump_n_sample": 2, "eta": 0.6},
        "no jumps": {"image": picture(), "mask_image": mask(0), "num_inference_steps": 4, "jump_length": 5, "jump_n_sample": 1, "eta": 1.0},
        "tensors": {
            "image": raw(2, 2, 16), "mask_image": (raw(3, 1, 16)[:, :1] > 0).float(), "num_inference_steps": 5, "jump_length": 1,
            "jump_n_sample": 2,
        },
        "lists": {"image": [picture(), picture(seed=4)], "mask_image": mask(0), "num_inference_steps": 3},
    },
    "StableVideoDiffusionPipeline": {
        "plain": {},
        "arguments": {
            "num_frames": 4, "min_guidance_scale": 2.0, "max_guidance_scale": 5.0, "fps": 12, "motion_bucket_id": 30,
            "noise_aug_strength": 0.3, "decode_chunk_size": 2,
        },
        "without guidance": {"max_guidance_scale": 1.0},
        "falling guidance": {"min_guidance_scale": 4.0, "max_guidance_scale": 1.5},
        "another size": {"height": 24, "width": 40},
        "two videos": {"num_videos_per_prompt": 2},
        "two pictures": {"image": [picture(), picture(seed=5)]},
        "sigmas": {"sigmas": [700.0, 20.0, 1.0, 0.0]},
        "latents": {"latents": tensor(1, 3, 4, 16, 16)},
        "a large picture": {"image": picture(size=300)},
        "a tensor": {"image": raw(4, 1, 224) * 0.5 + 0.5},
    },
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {"StableVideoDiffusionPipeline": {"image": picture(), "height": 32, "width": 32}}


def whole(pipes: tuple[Any, Any], call: dict[str, Any]) -> dict[str, Any]:
    return {"output_type": "np", **DEFAULTS.get(type(pipes[1]).__name__, {}), "num_inference_steps": 3, **call}


def results(pipes: tuple[Any, Any], call: dict[str, Any], seed: int | list[int] = 0) -> list[Any]:
    return [pipe(**whole(pipes, call), generator=generators(seed))[0] for pipe in pipes]


def compare(pipes: tuple[Any, Any], call: dict[str, Any], seed: int | list[int] = 0) -> np.ndarray:
    return side_by_side.compare(pipes, whole(pipes, call), seed)


@pytest.mark.parametrize("name, call", [pytest.param(n, c, id=f"{n}-{k}") for n in NAMES for k, c in CALLS[n].items()])
def test_calls(pair, name, call):
    compare(pair(name), call)


@pytest.mark.parametrize("name", NAMES)
def test_positional_arguments_and_defaults(name):
    theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
    ours = inspect.signature(getattr(darkroom, name).__call__).parameters
    expected = [(n, p.default) for n, p in theirs.items() if n not in ("self", "kwargs")]
    assert [(n, p.default) for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD and n != "self"] == expected


FIRST = {name: next(iter(calls.values())) for name, calls in CALLS.items()}
OUTPUTS = {name: ["pil", "np", "pt"] for name in NAMES} | {
    "LDMPipeline": ["pil"],
    "RePaintPipeline": ["pil"],
}  # the reference's others have no "pt"


@pytest.mark.parametrize("name, output", [(n, o) for n in NAMES for o in OUTPUTS[n] if o != "np"])
def test_output_types_and_tuples(pair, name, output):
    theirs, ours = results(pair(name), {**FIRST[name], "output_type": output})
    assert type(ours) is type(theirs) and len(ours) == len(theirs)
    flat = [
        np.asarray(x if output == "pt" else [np.asarray(i) for v in x for i in (v if isinstance(v, list) else [v])]) for x in (ours, theirs)
    ]
    np.testing.assert_allclose(flat[0].astype(float), flat[1].astype(float), atol=1 if output == "pil" else TOLERANCE)
    call = {**DEFAULTS.get(name, {}), **FIRST[name], "num_inference_steps": 2, "return_dict": False, "output_type": "np"}
    pairs = [pipe(**call, generator=generators(0)) for pipe in pair(name)]
    assert type(pairs[0]) is type(pairs[1])
    np.testing.assert_allclose(pairs[1][0], pairs[0][0], atol=TOLERANCE)


LISTS: dict[str, dict[str, Any]] = {
    "LDMPipeline": {"batch_size": 2},
    "LDMSuperResolutionPipeline": {"image": raw(1, 2, 16)},
    "LDMTextToImagePipeline": {"prompt": ["the cat", "a red dog"]},
    "ConsistencyModelPipeline": {"batch_size": 2},
    "DiTPipeline": {"class_labels": [1, 2]},
    "StableVideoDiffusionPipeline": {"image": [picture(), picture(seed=5)]},
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_generators(pair, name):
    compare(pair(name), LISTS[name], [4, 5])


@pytest.mark.parametrize("name", ["LDMSuperResolutionPipeline", "DiTPipeline"])
@pytest.mark.parametrize("scheduler", ["PNDM", "DPMSolverMultistep"])
def test_schedulers(pair, name, scheduler):
    pipes = pair(name)
    kept = [p.scheduler for p in pipes]
    try:
        for pipe, library in zip(pipes, (diffusers, darkroom), strict=True):
            pipe.scheduler = getattr(library, f"{scheduler}Scheduler").from_config(pipe.scheduler.config)
        compare(pipes, {**FIRST[name], "num_inference_steps": 5})
    finally:
        for pipe, scheduler in zip(pipes, kept, strict=True):
            pipe.scheduler = scheduler


# ---- latent diffusion


@pytest.mark.parametrize("name", ["LDMPipeline", "LDMSuperResolutionPipeline", "LDMTextToImagePipeline"])
def test_eta(pair, name):
    """The reference draws the noise of steps from the global generator, even where it is given another one; ours draws from the given one."""
    pipes, call = pair(name), {**FIRST[name], "num_inference_steps": 3, "eta": 0.8, "output_type": "np"}
    found = []
    for pipe in pipes:
        torch.manual_seed(1)
        found.append(pipe(**call).images)
    np.testing.assert_allclose(found[1], found[0], atol=TOLERANCE)
    again = [pipe(**call, generator=torch.Generator().manual_seed(2)).images for pipe in pipes for _ in range(2)]
    assert not np.array_equal(again[0], again[1]) and np.array_equal(again[2], again[3])


def test_text_with_a_codebook(pair):
    compare(pair("LDMTextToImagePipeline", vq=True), {"prompt": "the cat", "guidance_scale": 4.0})


def test_a_picture_is_upscaled_more_than_once(pair):
    ours = pair("LDMSuperResolutionPipeline")[1]
    out = ours(picture(), batch_size=2, num_inference_steps=2, output_type="np", generator=generators([1, 2])).images
    single = ours(picture(), num_inference_steps=2, output_type="np", generator=generators([2])).images
    assert out.shape == (2, 64, 64, 3)
    np.testing.assert_allclose(out[1], single[0], atol=1e-5)


def with_euler(pair, name):
    """Both pipelines with a scheduler of sigmas, and what their networks receive."""
    pipes, seen = [type(p)(**p.components) for p in pair(name)], ([], [])
    for pipe, library, kept in zip(pipes, (diffusers, darkroom), seen, strict=True):
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = library.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        network = getattr(pipe, "unet", None) or pipe.transformer
        network.register_forward_pre_hook(lambda m, args, kept=kept: kept.append(args[0]))
    return pipes, seen


@pytest.mark.parametrize("name", ["LDMTextToImagePipeline", "DiTPipeline"])
def test_schedulers_of_sigmas(pair, name):
    """With sigmas the reference starts from noise that is far too small, and text to image does not scale what the network receives, DiT steps on
    from it. Ours does as all other pipelines do: the network's input has unit variance at the start, and steps are from the sample itself."""
    (theirs, ours), (_, inputs) = with_euler(pair, name)
    call = {**FIRST[name], "guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent"}
    latents = torch.randn(1, 4, *[ours.denoiser.config.sample_size] * 2, generator=torch.Generator().manual_seed(0))
    out = ours(**call, latents=latents).images
    torch.testing.assert_close(inputs[0], latents, atol=0.01, rtol=0.01)
    scheduler = ours.scheduler
    scheduler.set_timesteps(2)
    x = latents * scheduler.init_noise_sigma
    known = (
        [torch.tensor([3])]
        if name == "DiTPipeline"
        else [ours.bert(ours.tokenizer("the cat", padding="max_length", return_tensors="pt").input_ids)[0]]
    )
    with torch.no_grad():
        for t in scheduler.timesteps:
            pred = ours.denoiser(scheduler.scale_model_input(x, t), t, *known).sample[:, :4]
            x = scheduler.step(pred, t, x).prev_sample
    torch.testing.assert_close(out, x, atol=1e-4, rtol=1e-4)
    pictures = [pipe(**call | {"output_type": "np"}, generator=generators(0)).images for pipe in (theirs, ours)]
    assert not np.allclose(*pictures, atol=0.01)


def test_the_small_picture_is_not_scaled(pair):
    """With sigmas the reference scales the picture together with the noise, which the network has not been trained for."""
    pipes, seen = with_euler(pair, "LDMSuperResolutionPipeline")
    for pipe in pipes:
        pipe(image=raw(1), num_inference_steps=2, generator=generators(0))
    assert torch.equal(seen[1][0][:, 3:], raw(1)) and not torch.allclose(seen[0][0][:, 3:], raw(1), atol=0.1)
    torch.testing.assert_close(seen[1][0][:, :3], seen[0][0][:, :3], atol=1e-4, rtol=1e-4)


# ---- classes


@pytest.mark.parametrize("labels", [None, 4, [4, 9], torch.tensor([0, 1])], ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_consistency_models_with_classes(pair, labels, steps):
    rows = len(labels) if isinstance(labels, (list, torch.Tensor)) else 1
    found = []
    for pipe in pair("ConsistencyModelPipeline", classes=10):
        torch.manual_seed(7)  # classes that are not given come from here, after the noise
        call = {"class_labels": labels, "batch_size": rows, "num_inference_steps": steps, "output_type": "np"}
        found.append(pipe(**call, generator=None if labels is None else generators(2)).images)
    np.testing.assert_allclose(found[1], found[0], atol=TOLERANCE)


def test_one_class_for_all(pair):
    ours = pair("ConsistencyModelPipeline", classes=10)[1]
    call = {"batch_size": 2, "num_inference_steps": 2, "output_type": "np"}
    images = [ours(**call, class_labels=c, generator=generators(2)).images for c in (3, [3, 3], [3, 4])]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_random_classes_are_those_of_the_seed(pair):
    """The reference draws them from the global generator, even where it is given another one."""
    ours = pair("ConsistencyModelPipeline", classes=10)[1]
    seen: list[Any] = []
    hook = ours.unet.class_embedding.register_forward_pre_hook(lambda m, args: seen.append(args[0].tolist()))
    for seed in ([1, 2], [1, 2], [2], 5):
        ours(len(seed) if isinstance(seed, list) else 3, num_inference_steps=1, generator=generators(seed))
    hook.remove()
    assert seen[0] == seen[1] and seen[2] == seen[0][1:] and len(seen[3]) == 3


def test_callbacks_of_consistency_models(pair):
    seen: list[list[Any]] = [[], []]
    for pipe, kept in zip(pair("ConsistencyModelPipeline"), seen, strict=True):
        pipe(
            num_inference_steps=4,
            callback=lambda i, t, x, kept=kept: kept.append((i, float(t), x)),
            callback_steps=2,
            generator=generators(0),
        )
    assert [s[:1] for s in seen[0]] == [s[:1] for s in seen[1]] == [(0,), (2,)]
    for a, b in zip(*seen, strict=True):
        assert a[1] == pytest.approx(b[1])
        torch.testing.assert_close(a[2], b[2], atol=TOLERANCE, rtol=1e-4)


def test_words_for_classes(pair):
    theirs, ours = pair("DiTPipeline", words=True)
    assert type(ours.transformer).__name__ == type(theirs.transformer).__name__ == "DiTTransformer2DModel"
    assert ours.labels == theirs.labels == {"Tinca tinca": 0, "goldfish": 1, "tench": 0}
    assert ours.get_label_ids(["goldfish", "tench"]) == theirs.get_label_ids(["goldfish", "tench"]) == [1, 0]
    assert ours.get_label_ids("goldfish") == [1]
    compare((theirs, ours), {"class_labels": [1]})
    with pytest.raises(InputError, match="shark"):
        ours.get_label_ids(["shark"])


def test_words_are_saved(pair, tmp_path):
    ours = pair("DiTPipeline", words=True)[1]
    ours.save_pretrained(tmp_path)
    assert darkroom.DiffusionPipeline.from_pretrained(tmp_path).labels == ours.labels
    assert darkroom.DiTPipeline.from_pipe(ours).labels == ours.labels and pair("DiTPipeline")[1].labels == {}


def test_a_transformer_without_variance(pair):
    compare(pair("DiTPipeline", learned_variance=False), {"class_labels": [7, 8]})


def test_dit_at_another_size(pair):
    image = pair("DiTPipeline")[1]([3], height=24, width=8, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 24, 8, 3)


# ---- RePaint


def test_generators_of_repaint(pair):
    """The reference takes all noise but the first from the first generator of a list; ours gives each picture what its own seed gives."""
    theirs, ours = pair("RePaintPipeline")
    call = {"num_inference_steps": 4, "jump_length": 1, "jump_n_sample": 2, "output_type": "np"}
    both = {"image": [picture(), picture(seed=4)], "mask_image": mask(0)}
    together = ours(**both, **call, generator=generators([1, 2])).images
    alone = [ours(image=i, mask_image=mask(0), **call, generator=generators([s])).images for i, s in zip(both["image"], (1, 2))]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    single = theirs(image=picture(seed=4), mask_image=mask(0), **call, generator=generators([2])).images
    np.testing.assert_allclose(together[1:], single, atol=TOLERANCE)
    assert not np.allclose(theirs(**both, **call, generator=generators([1, 2])).images[1], single[0], atol=0.01)


def test_each_picture_has_a_mask_of_its_own(pair):
    """The reference takes a list of masks for channels."""
    ours, call = pair("RePaintPipeline")[1], {"num_inference_steps": 3, "output_type": "np"}
    pictures, masks = [picture(), picture()], [mask(0), mask(0).transpose(Image.Transpose.ROTATE_90)]
    together = ours(pictures, masks, **call, generator=generators([1, 1])).images
    np.testing.assert_allclose(together[1:], ours(pictures[1], masks[1], **call, generator=generators([1])).images, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=0.01)


def test_the_known_part_stays(pair):
    ours, call = pair("RePaintPipeline")[1], {"num_inference_steps": 30, "jump_length": 5, "jump_n_sample": 2, "output_type": "np"}
    out = ours(picture(), mask(0), **call, generator=generators(0)).images[0]
    kept, known = np.asarray(mask(0)) > 0, np.asarray(picture()) / 255
    assert np.abs(out - known)[kept].max() < 0.02 and np.abs(out - known)[~kept].mean() > 0.1


# ---- video


def test_latents_of_videos(pair):
    theirs, ours = results(pair("StableVideoDiffusionPipeline"), {"output_type": "latent"})
    assert ours.shape == (1, 3, 4, 16, 16)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_callbacks_of_videos(pair):
    seen: dict[str, list[Any]] = {}

    def halve(pipe, i, t, tensors):
        kept = seen.setdefault(type(pipe).__module__.partition(".")[0], [])
        kept.append((i, float(t), tensors["latents"].clone(), pipe.do_classifier_free_guidance, pipe.num_timesteps))
        return {"latents": tensors["latents"] * 0.5}

    compare(pair("StableVideoDiffusionPipeline"), {"callback_on_step_end": halve})
    for a, b in zip(seen["darkroom"], seen["diffusers"], strict=True):
        assert a[0] == b[0] and a[1] == pytest.approx(b[1]) and a[3:] == (bool(b[3]), b[4])
        torch.testing.assert_close(a[2], b[2], atol=1e-2, rtol=1e-4)


def test_each_picture_with_its_own_embedding(pair):
    """With several pictures and several videos of each, the reference mixes them up: embeddings go picture by picture, latents by turns."""
    ours = pair("StableVideoDiffusionPipeline")[1]
    latents = tensor(1, 3, 4, 16, 16).repeat(4, 1, 1, 1, 1)
    call = {"height": 32, "width": 32, "num_inference_steps": 2, "noise_aug_strength": 0.0, "output_type": "np"}
    four = ours([picture(), picture(seed=5)], num_videos_per_prompt=2, latents=latents, **call).frames
    np.testing.assert_allclose(four[0], four[1], atol=1e-5)
    np.testing.assert_allclose(four[2:3], ours(picture(seed=5), latents=latents[:1], **call).frames, atol=TOLERANCE)
    assert not np.allclose(four[0], four[2], atol=0.01)


def test_half_precision_autoencoders_encode_in_single(pair, monkeypatch):
    ours = darkroom.StableVideoDiffusionPipeline.from_pipe(pair("StableVideoDiffusionPipeline")[1], torch_dtype=torch.float16)
    seen = []
    encode = type(ours.vae).encode
    monkeypatch.setattr(type(ours.vae), "encode", lambda self, x: seen.append((self.dtype, x.dtype)) or encode(self, x))
    latents = ours._picture_latents(ours.Inputs(image=picture(), height=32, width=32))
    assert seen == [(torch.float32, torch.float32)] and ours.vae.dtype == torch.float16 and latents.shape == (1, 3, 4, 16, 16)


# ---- bad input

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("LDMPipeline", {"batch_size": 0}, "batch_size"),
    ("LDMPipeline", {"eta": 2.0}, "eta"),
    ("LDMSuperResolutionPipeline", {}, "image"),
    ("LDMSuperResolutionPipeline", {"image": "picture.png"}, "image"),
    ("LDMSuperResolutionPipeline", {"image": torch.zeros(3, 16, 16)}, "image"),
    ("LDMSuperResolutionPipeline", {"image": raw(1, 2, 16), "batch_size": 3}, "image"),
    ("LDMTextToImagePipeline", {}, "prompt"),
    ("LDMTextToImagePipeline", {"prompt": 3}, "prompt"),
    ("LDMTextToImagePipeline", {"prompt": "a", "height": 20}, "height"),
    ("LDMTextToImagePipeline", {"prompt": "a", "latents": torch.zeros(1, 4, 5, 5)}, "latents"),
    ("LDMTextToImagePipeline", {"prompt": ["a", "a"], "generator": [torch.Generator()]}, "generator"),
    ("ConsistencyModelPipeline", {"num_inference_steps": None}, "timesteps"),
    ("ConsistencyModelPipeline", {"latents": torch.zeros(1, 3, 8, 8)}, "latents"),
    ("DiTPipeline", {}, "class_labels"),
    ("DiTPipeline", {"class_labels": [1001]}, "class_labels"),
    ("DiTPipeline", {"class_labels": ["cat"]}, "class_labels"),
    ("DiTPipeline", {"class_labels": [0.5]}, "class_labels"),
    ("DiTPipeline", {"class_labels": []}, "class_labels"),
    ("RePaintPipeline", {"image": picture()}, "mask_image"),
    ("RePaintPipeline", {"image": picture(), "mask_image": picture(size=48, mode="L")}, "mask_image"),
    ("RePaintPipeline", {"image": picture(), "mask_image": [mask(0), mask(0)]}, "mask_image"),
    ("RePaintPipeline", {"image": picture(), "mask_image": mask(0), "jump_length": 0}, "jump_length"),
    ("StableVideoDiffusionPipeline", {"image": 3}, "image"),
    ("StableVideoDiffusionPipeline", {"height": 30}, "height"),
    ("StableVideoDiffusionPipeline", {"num_frames": 0}, "num_frames"),
    ("StableVideoDiffusionPipeline", {"latents": torch.zeros(1, 2, 4, 16, 16)}, "latents"),
    ("StableVideoDiffusionPipeline", {"decode_chunk_size": 0}, "decode_chunk_size"),
    ("StableVideoDiffusionPipeline", {"max_guidance_scale": float("nan")}, "max_guidance_scale"),
]


@pytest.mark.parametrize("name, call, named", [pytest.param(*b, id=f"{b[0]}-{b[2]}-{i}") for i, b in enumerate(BAD)])
def test_bad_input(pair, name, call, named):
    with pytest.raises(InputError) as caught:
        pair(name)[1](**{**DEFAULTS.get(name, {}), "num_inference_steps": 2, **call})
    assert named in str(caught.value) and "where:" in str(caught.value)


@pytest.mark.parametrize("labels, batch", [([1, 2], 1), ([10], 1), (-1, 1)], ids=str)
def test_classes_that_there_are_not(pair, labels, batch):
    with pytest.raises(InputError, match="class_labels"):
        pair("ConsistencyModelPipeline", classes=10)[1](batch, labels)


def test_repaint_needs_its_scheduler(pair):
    ours = darkroom.RePaintPipeline.from_pipe(pair("RePaintPipeline")[1])
    ours.scheduler = darkroom.DDPMScheduler()
    with pytest.raises(ConfigError, match="RePaintScheduler"):
        ours(picture(), mask(0))


def test_a_network_that_takes_other_numbers(pair):
    ours = darkroom.StableVideoDiffusionPipeline.from_pipe(pair("StableVideoDiffusionPipeline")[1])
    ours.unet.config = ours.unet.config.replace(addition_time_embed_dim=16)
    with pytest.raises(ConfigError, match="projection_class_embeddings_input_dim"):
        ours(picture(), 32, 32)
