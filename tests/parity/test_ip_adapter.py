"""IP-Adapters beside the reference: adapters with random weights in the published layouts, the same pictures within 1e-4 in [0, 1]."""

from __future__ import annotations
import pickle
import warnings
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import controls, ip_adapters, tiny
from parity.test_pipelines import arguments, compare, generators, picture
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor
import darkroom
from darkroom import CheckpointError, InputError
from darkroom.core.attention import sdpa
from darkroom.models.ip_adapter import attention_layers, readers

TOLERANCE = 1e-4
DEEP = {"layers_per_block": 2}  # so that blocks have several transformers
CALL = {"prompt": "the cat", "num_inference_steps": 3, "output_type": "np"}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    @cache
    def write(kind: str = "sd") -> Path:
        folder = tmp_path_factory.mktemp(kind)
        return {"sd": tiny.sd, "sdxl": tiny.sdxl}[kind](folder, **DEEP)

    return write


@pytest.fixture(scope="session")
def repository(checkpoint, tmp_path_factory):
    """A folder with all kinds of adapters for a checkpoint, as .bin and .safetensors, and the image encoder."""

    @cache
    def write(kind: str = "sd") -> Path:
        unet, folder = darkroom.UNet2DConditionModel.from_pretrained(checkpoint(kind), subfolder="unet"), tmp_path_factory.mktemp("ip")
        for i, name in enumerate(ip_adapters.KINDS):
            tensors = ip_adapters.adapter(unet, name, seed=i)
            ip_adapters.write(folder, tensors, f"{name}.bin", image_encoder=not i)
            ip_adapters.write(folder, tensors, f"{name}.safetensors", image_encoder=False)
        return folder

    return write


@pytest.fixture
def pair(checkpoint, repository):
    """The same pipeline from both libraries, each with these adapters."""

    def load(name: str, *kinds: str, suffix: str = "safetensors", **components: Any) -> tuple[Any, Any]:
        family, found = "sdxl" if "XL" in name else "sd", []
        known = {} if "XL" in name else {"requires_safety_checker": False}
        for lib in (diffusers, darkroom):
            own = {n: getattr(lib, cls).from_pretrained(path) for n, (cls, path) in components.items()}
            pipe = getattr(lib, name).from_pretrained(checkpoint(family), **known, **own)
            pipe = with_level(pipe) if lib is diffusers else pipe
            if kinds:
                encoder = None if all("FaceID" in kind for kind in kinds) else "image_encoder"
                names = [f"{kind}.{suffix}" for kind in kinds]
                pipe.load_ip_adapter(str(repository(family)), "models", names if len(names) > 1 else names[0], image_encoder_folder=encoder)
            found.append(pipe)
        return tuple(found)

    return load


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", ["base", "plus", "full face"])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_kinds(pair, name, kind, suffix):
    pipes = pair(name, kind, suffix=suffix)
    with_picture = compare(pipes, CALL | {"ip_adapter_image": picture(5)})
    other = pipes[1](**CALL, ip_adapter_image=picture(6), generator=generators(0)).images
    assert abs(other - with_picture).max() > 0.01
    compare(pipes, CALL | {"ip_adapter_image": [[picture(5), picture(6)]], "guidance_scale": 1.0})


def face(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 1, ip_adapters.FACE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_face_embeddings(pair, name, scale):
    pipes = pair(name, "FaceID")
    compare(pipes, CALL | {"ip_adapter_image_embeds": [face(2 if scale > 1 else 1)], "guidance_scale": scale})


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_face_embeddings_with_lora_layers(pair, name):
    """Such files hold LoRA layers for all attention; unloading takes them out again, others stay."""
    pipes = pair(name)
    tensors = ip_adapters.adapter(pipes[1].unet, "FaceID", lora=True)
    plain = made(pipes[1])
    pipes[0].load_ip_adapter(tensors, None, None, image_encoder_folder=None)
    pipes[1].load_ip_adapter(tensors)
    with_lora = compare(pipes, CALL | {"ip_adapter_image_embeds": [face(2)]})
    pipes[1].load_ip_adapter(ip_adapters.adapter(pipes[1].unet, "FaceID"))
    assert abs(made(pipes[1], ip_adapter_image_embeds=[face(2)]) - with_lora).max() > 1e-3
    broken = {**tensors, "ip_adapter": {n: t for n, t in tensors["ip_adapter"].items() if n != "0.to_q_lora.up.weight"}}
    with pytest.raises(CheckpointError):
        pipes[1].load_ip_adapter([tensors, broken])
    assert not pipes[1].get_list_adapters()
    pipes[1].unload_ip_adapter()
    assert np.array_equal(made(pipes[1]), plain)


@pytest.mark.parametrize("shortcut", [None, 1.0, 0.4])
def test_face_embeddings_and_what_is_seen(pair, shortcut):
    pipes = pair("StableDiffusionPipeline", "FaceID plus")
    shape = (2, 1, ip_adapters.SEEN, ip_adapters.STATES)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for own in (pipes[0].unet.encoder_hid_proj.image_projection_layers[0], pipes[1].ip_adapters[0]):
        own.clip_embeds = states
        own.shortcut, own.shortcut_scale = shortcut is not None, shortcut or 1.0
    call = CALL | {"ip_adapter_image_embeds": [face(2)]}
    made = compare(pipes, call)
    pipes[1].ip_adapters[0].clip_embeds = None
    again = pipes[1](**call | {"ip_adapter_image_embeds": [(face(2), states)]}, generator=generators(0)).images
    assert np.array_equal(made, again)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_two_adapters(pair, name):
    pipes = pair(name, "base", "plus")
    images = [picture(5), [picture(6), picture(7)]]
    for scale in (None, [0.3, 0.8], [{"up": 1.0}, 0.5], [0.0, 0.7]):
        if scale is not None:
            for pipe in pipes:
                pipe.set_ip_adapter_scale(scale)
        compare(pipes, CALL | {"ip_adapter_image": images})


SCALES: dict[str, Any] = {
    "zero": 0,
    "half": 0.5,
    "negative": -0.5,
    "down": {"down": 0.7},
    "mid": {"mid": 1.0},
    "style": {"up": {"BLOCK": [0.0, 1.0, 0.5]}},
    "style and layout": {"down": {"LOWER": [0.0, 1.0]}, "up": {"BLOCK": [0.0, 1.0, 0.0]}, "mid": [0.3]},
    "a block": {"up": {"BLOCK": 0.4}, "down": {"LOWER": [0.6]}},
}


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_scales(pair, name, scale):
    lower, block = ("block_1", "block_0") if "XL" in name else ("block_0", "block_1")
    if isinstance(scale, dict):
        respell = {"BLOCK": block, "LOWER": lower}
        scale = {k: {respell[b]: s for b, s in v.items()} if isinstance(v, dict) else v for k, v in scale.items()}
    pipes = pair(name, "base")
    for pipe in pipes:
        pipe.set_ip_adapter_scale(scale)
    compare(pipes, CALL | {"ip_adapter_image": picture(5)})


def halves(height: int = 32, width: int = 32) -> list[Image.Image]:
    """Two masks: the left third, and the rest."""
    left = np.zeros((height, width), np.uint8)
    left[:, : width // 3] = 255
    return [Image.fromarray(left), Image.fromarray(255 - left)]


@pytest.mark.parametrize("size", [(None, None), (24, 40), (17, 33)], ids=str)
def test_masks_are_made_alike(size):
    height, width = size
    for source in (halves(20, 30), halves()[0], np.stack([np.array(m, np.float32) / 255 for m in halves()])):
        made = darkroom.IPAdapterMaskProcessor().preprocess(source, height, width)
        theirs = diffusers.image_processor.IPAdapterMaskProcessor().preprocess(source, height=height, width=width)
        assert made.dtype == theirs.dtype and torch.equal(made, theirs)
    for queries in (16, 60, 61, 100):
        one = torch.rand(1, 24, 40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, theirs = (
                c.downsample(one, 2, queries, 3)
                for c in (darkroom.IPAdapterMaskProcessor, diffusers.image_processor.IPAdapterMaskProcessor)
            )
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
def test_masks(pair, name, size):
    pipes, (height, width) = pair(name, "base", "plus"), size
    made = darkroom.IPAdapterMaskProcessor().preprocess(halves(height, width), height, width)  # (2, 1, H, W)
    call = CALL | {"ip_adapter_image": [picture(5), picture(6)], "height": height, "width": width}
    compare(pipes, call | {"cross_attention_kwargs": {"ip_adapter_masks": made}})
    compare(pipes, call | {"cross_attention_kwargs": {"ip_adapter_masks": [made[:1], None]}})
    call["ip_adapter_image"] = [[picture(5), picture(6)], picture(7)]
    both = made.reshape(1, 2, height, width)
    for scale in ([0.5, 0.9], [[0.5, 0.9], 0.3], [[0.0, 0.9], [0.0]]):
        for pipe in pipes:
            pipe.set_ip_adapter_scale(scale)
        compare(pipes, call | {"cross_attention_kwargs": {"ip_adapter_masks": [both, made[1:]]}})


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_embeddings(pair, scale):
    pipes = pair("StableDiffusionPipeline", "base", "plus")
    theirs, ours = (p.prepare_ip_adapter_image_embeds([picture(5), [picture(6), picture(7)]], None, "cpu", 1, scale > 1) for p in pipes)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    again, others = (p.prepare_ip_adapter_image_embeds(None, theirs, "cpu", 3, scale > 1) for p in pipes)
    assert all(torch.equal(a, b) for a, b in zip(again, others, strict=True))
    made = compare(pipes, CALL | {"ip_adapter_image_embeds": theirs, "guidance_scale": scale})
    seen = pipes[1](**CALL, ip_adapter_image=[picture(5), [picture(6), picture(7)]], guidance_scale=scale, generator=generators(0)).images
    np.testing.assert_allclose(made, seen, atol=TOLERANCE)


def test_encoded_pictures(pair):
    pipes = pair("StableDiffusionPipeline", "base")
    for states in (None, True):
        for a, b in zip(*(p.encode_image(picture(5), "cpu", 2, states) for p in pipes), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


TASKS = ["Img2Img", "Inpaint", "SAG", "PAG", "PAGImg2Img", "PAGInpaint"]
PIPELINES = [f"StableDiffusion{task}Pipeline" for task in TASKS]
PIPELINES += [f"StableDiffusionXL{task}Pipeline" for task in TASKS if task != "SAG"]


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}], ids=str)
def test_tasks_and_guidance(pair, name, changes):
    pipes = pair(name, "plus")
    if "SAG" in name and not changes:  # the reference gives both branches the positive tokens, cut in two: it is told to give each its own
        whole = pipes[0].prepare_ip_adapter_image_embeds
        halves = lambda *args: [SimpleNamespace(chunk=lambda _, x=x: (x.chunk(2)[0], x)) for x in whole(*args)]  # noqa: E731
        pipes[0].prepare_ip_adapter_image_embeds = halves
    compare(pipes, arguments(name, ip_adapter_image=picture(5), **changes))


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusionPAGPipeline"])
@pytest.mark.parametrize("kind", ["base", "plus"])
def test_batches(pair, name, kind):
    pipes, image = pair(name, kind), {"ip_adapter_image": [[picture(5), picture(6)]]}
    compare(pipes, CALL | image | {"prompt": ["a cat", "the red dog"], "negative_prompt": ["red", ""]}, seed=[4, 5])
    compare(pipes, CALL | image | {"num_images_per_prompt": 2})
    compare(pipes, CALL | image | {"prompt": ["a cat", "the red dog"], "num_images_per_prompt": 2, "guidance_scale": 1.0})


@pytest.mark.parametrize("name", ["StableDiffusionControlNet", "StableDiffusionControlNetPAG", "StableDiffusionXLControlNet"])
def test_controls(tmp_path, repository, checkpoint, name):
    net = controls.controlnet(
        diffusers.UNet2DConditionModel.from_pretrained(checkpoint("sdxl" if "XL" in name else "sd"), subfolder="unet")
    )
    net.save_pretrained(tmp_path)
    pipes = []
    for lib in (diffusers, darkroom):
        control = lib.ControlNetModel.from_pretrained(tmp_path)
        family = "sdxl" if "XL" in name else "sd"
        options = {} if family == "sdxl" else {"requires_safety_checker": False}
        pipe = getattr(lib, f"{name}Pipeline").from_pretrained(checkpoint(family), controlnet=control, **options)
        pipe.load_ip_adapter(str(repository(family)), "models", "base.safetensors")
        pipes.append(with_level(pipe) if lib is diffusers else pipe)
    compare(tuple(pipes), CALL | {"image": picture(), "ip_adapter_image": picture(5)})


OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {  # how the checkpoint is written, and further arguments
    "LatentConsistencyModelPipeline": (partial(tiny.neighbour, name="LatentConsistencyModelPipeline"), {}),
    "LatentConsistencyModelImg2ImgPipeline": (partial(tiny.neighbour, name="LatentConsistencyModelImg2ImgPipeline"), {"image": picture()}),
    "StableDiffusionInstructPix2PixPipeline": (
        partial(tiny.neighbour, name="StableDiffusionInstructPix2PixPipeline"), {"image": picture()},
    ),
    "StableDiffusionPanoramaPipeline": (
        partial(tiny.neighbour, name="StableDiffusionPanoramaPipeline", vae_levels=4), {"height": 64, "width": 8 * 80},
    ),
    "StableDiffusionXLAdapterPipeline": (controls.sdxl_adapter, {"image": picture()}),
    "StableDiffusionXLControlNetUnionPipeline": (controls.sdxl_union, {"control_image": [picture()], "control_mode": [1]}),
    "StableDiffusionXLControlNetPAGPipeline": (controls.sdxl_controlnet, {"image": picture()}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_pipelines(tmp_path, monkeypatch, name):
    write, call = OTHERS[name]
    path, pipes = write(tmp_path), []
    for lib in (diffusers, darkroom):
        pipe = getattr(lib, name).from_pretrained(path, **({} if "XL" in name else {"requires_safety_checker": False}))
        pipe.image_encoder, pipe.feature_extractor = ip_adapters.encoder(), CLIPImageProcessor(size=32, crop_size=32)
        pipes.append(pipe)
    tensors = ip_adapters.adapter(pipes[1].unet)
    for pipe in pipes:
        pipe.load_ip_adapter(tensors, None, None)
    if "Panorama" in name:  # the reference says that it never has guidance, and gives both branches the positive tokens, cut in two
        monkeypatch.setattr(type(pipes[0]), "do_classifier_free_guidance", property(lambda _: True))
    compare((with_level(pipes[0]), pipes[1]), {**CALL, "num_inference_steps": 2, "ip_adapter_image": picture(5), **call})


def test_views_share_the_picture(tmp_path):
    """However many views of a panorama are denoised at a time, each sees it. (The reference cuts its tokens apart.)"""
    path = tiny.neighbour(tmp_path, "StableDiffusionPanoramaPipeline", vae_levels=4)
    pipe = darkroom.StableDiffusionPanoramaPipeline.from_pretrained(path, requires_safety_checker=False)
    pipe.load_ip_adapter(ip_adapters.adapter(pipe.unet), image_encoder_folder=None)
    embeds = torch.randn(4, 1, ip_adapters.POOLED, generator=torch.Generator().manual_seed(1))  # for two prompts
    call = {"prompt": ["the cat", "a dog"], "height": 64, "width": 8 * 80, "ip_adapter_image_embeds": [embeds], "num_inference_steps": 2}
    one, four = (pipe(**CALL | call, view_batch_size=n, generator=generators([1, 2])).images for n in (1, 4))
    np.testing.assert_allclose(one, four, atol=TOLERANCE)


def with_level(pipe: Any) -> Any:
    """The reference looks for a level of Stable Diffusion's text encoder that transformers 5 does not have."""
    if not hasattr(pipe, "text_encoder_2"):
        pipe.text_encoder.__dict__.setdefault("text_model", pipe.text_encoder)
    return pipe


# ---- what has no counterpart in the reference
def load(checkpoint: Any, repository: Any, *kinds: str, name: str = "StableDiffusionPipeline") -> Any:
    pipe = getattr(darkroom, name).from_pretrained(checkpoint(), requires_safety_checker=False)
    if kinds:
        pipe.load_ip_adapter(repository(), "models", [f"{kind}.safetensors" for kind in kinds])
    return pipe


def made(pipe: Any, **changes: Any) -> np.ndarray:
    return pipe(**CALL | changes, generator=generators(0)).images


def test_layers_are_numbered_as_in_files():
    """Real sizes, without values: of Stable Diffusion 1.5 and of SDXL."""
    xl = dict(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
    )
    for options, count in ((dict(cross_attention_dim=768), 16), (xl, 70)):
        with torch.device("meta"):
            theirs, ours = (lib.UNet2DConditionModel(**options) for lib in (diffusers, darkroom))
        names = [name.removesuffix(".processor") for name in theirs.attn_processors]
        assert [name for name, _ in attention_layers(ours)] == names
        assert [layer.site for layer in readers(ours)] == names[1::2] and len(names) == 2 * count


def test_each_result_may_have_its_own_picture(checkpoint, repository):
    """Embeddings with a row for each prompt: what comes out is what single calls give."""
    pipe = load(checkpoint, repository, "base")
    embeds = [pipe.prepare_ip_adapter_image_embeds([picture(i)], None, None, 1, True)[0] for i in (5, 6)]
    both = torch.cat([*(e[:1] for e in embeds), *(e[1:] for e in embeds)])
    call = {"prompt": ["the cat"] * 2, "latents": torch.randn(1, 4, 16, 16).repeat(2, 1, 1, 1)}
    got = made(pipe, **call, ip_adapter_image_embeds=[both])
    for i, one in enumerate(embeds):
        alone = made(pipe, latents=call["latents"][:1], ip_adapter_image_embeds=[one])
        np.testing.assert_allclose(got[i], alone[0], atol=TOLERANCE)
    assert abs(got[0] - got[1]).max() > 0.01


def test_scale_zero_is_no_adapter(checkpoint, repository):
    pipe = load(checkpoint, repository)
    plain = made(pipe)
    pipe.load_ip_adapter(repository(), "models", ["base.bin", "plus.bin"])
    pipe.set_ip_adapter_scale(0)
    assert np.array_equal(made(pipe, ip_adapter_image=[picture(5), picture(6)]), plain)


def test_a_callback_ends_it_in_its_run_only(checkpoint, repository):
    pipe, image = load(checkpoint, repository, "base"), {"ip_adapter_image": picture(5)}
    whole = made(pipe, **image)

    def off(view, step, t, tensors):
        if step == 0:
            view.set_ip_adapter_scale(0.0)
        return tensors

    cut = made(pipe, **image, callback_on_step_end=off)
    assert abs(cut - whole).max() > 1e-3
    assert np.array_equal(made(pipe, **image), whole)


@pytest.mark.parametrize("guidance", [darkroom.NAG(4.0), darkroom.SLG(2.0, layers="up"), darkroom.SEG(2.0), darkroom.APG(5.0)], ids=str)
def test_with_other_guidance(checkpoint, repository, guidance):
    """Each differs with a picture, and is what it was at scale 0."""
    pipe = load(checkpoint, repository)
    guidance = guidance if isinstance(guidance, darkroom.CFG | darkroom.APG) else darkroom.CFG(5.0, terms=[guidance])
    plain = made(pipe, guidance=guidance)
    pipe.load_ip_adapter(repository(), "models", "base.safetensors")
    with_picture = made(pipe, guidance=guidance, ip_adapter_image=picture(5))
    assert abs(with_picture - plain).max() > 0.01
    pipe.set_ip_adapter_scale(0)
    assert np.array_equal(made(pipe, guidance=guidance, ip_adapter_image=picture(5)), plain)


def test_branches_are_computed_together(checkpoint, repository):
    """With guidance each layer attends to the prompt once and to the picture once, whatever the branches are."""
    pipe, calls = load(checkpoint, repository, "base", name="StableDiffusionPAGPipeline"), []

    def counted(q, k, v, *, mask=None, site=""):
        calls.append((site, q.shape[0]))
        return sdpa(q, k, v, mask=mask, site=site)

    pipe.unet.set_attention_backend(counted)
    projections = []
    for layer in pipe.ip_adapters[0].network.ip_adapter.values():
        layer.to_k_ip.register_forward_hook(lambda *_: projections.append(1))
    made(pipe, ip_adapter_image=picture(5), pag_scale=3.0)
    sites = readers(pipe.unet)
    for layer in sites:
        assert [rows for site, rows in calls if site == layer.site] == [3] * 2 * CALL["num_inference_steps"]
    assert len(projections) == len(sites)


def test_half_precision(checkpoint, repository):
    pipe = load(checkpoint, repository, "plus").to(torch.bfloat16)
    assert pipe.ip_adapters[0].network.dtype == torch.bfloat16
    pipe.vae.to(torch.float32)
    assert pipe(**CALL | {"output_type": "latent"}, ip_adapter_image=picture(5)).images.isfinite().all()


# ---- pipelines that share weights
def test_unloading_leaves_other_pipelines_alone(checkpoint, repository):
    image = {"ip_adapter_image": picture(5)}
    pipe = load(checkpoint, repository, "base")
    before = made(pipe, **image)
    pipe.unload_ip_adapter()
    plain = made(pipe)
    pipe.load_ip_adapter(repository(), "models", "base.safetensors")
    other = darkroom.StableDiffusionSAGPipeline.from_pipe(pipe)
    shared = zip(pipe.ip_adapters[0].network.parameters(), other.ip_adapters[0].network.parameters())
    assert all(a is b for a, b in shared)
    with_sag = made(other, **image)
    other.set_ip_adapter_scale(0.3)
    assert np.array_equal(made(pipe, **image), before) and not np.array_equal(made(other, **image), with_sag)
    other.unload_ip_adapter()
    assert other.image_encoder is None and pipe.image_encoder is not None and not other.ip_adapters
    assert np.array_equal(made(pipe, **image), before)
    made(other)  # goes without
    third = darkroom.StableDiffusionPipeline.from_pipe(pipe)
    pipe.unload_ip_adapter()
    assert np.array_equal(made(pipe), plain) and np.array_equal(made(third, **image), before)
    half = darkroom.StableDiffusionPipeline.from_pipe(third, dtype=torch.bfloat16)
    assert {p.ip_adapters[0].network.dtype for p in (third, half)} == {torch.float32, torch.bfloat16}


def test_saving_leaves_it_out(checkpoint, repository, tmp_path):
    pipe = load(checkpoint, repository, "base")
    pipe.save_pretrained(tmp_path)
    again = darkroom.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert not again.ip_adapters and again.image_encoder is not None
    again.load_ip_adapter(repository(), "models", "base.safetensors", image_encoder_folder=None)
    assert np.array_equal(made(again, ip_adapter_image=picture(5)), made(pipe, ip_adapter_image=picture(5)))
    again.unload_ip_adapter()
    assert again.image_encoder is not None  # it was there before
    made(again)


def test_a_unet_that_the_reference_saved_with_an_adapter(checkpoint, repository, tmp_path):
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint(), requires_safety_checker=False)
    theirs.load_ip_adapter(str(repository()), "models", "base.safetensors")
    theirs.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    theirs.unet.save_pretrained(tmp_path)
    ours = darkroom.UNet2DConditionModel.from_pretrained(tmp_path)
    assert ours.config.encoder_hid_dim_type == "ip_image_proj"
    plain = darkroom.UNet2DConditionModel.from_pretrained(checkpoint(), subfolder="unet")
    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 32)
    with torch.no_grad():
        assert torch.equal(ours(x, 5, context).sample, plain(x, 5, context).sample)


# ---- what is refused, and leaves the pipeline as it was
def spoiled(tensors: dict[str, Any], what: str) -> dict[str, Any]:
    projection, layers = tensors["image_proj"], tensors["ip_adapter"]
    if what == "NaN":
        layers["3.to_k_ip.weight"][0, 0] = float("nan")
    elif what == "a layer less":
        del layers["1.to_v_ip.weight"]
    elif what == "a layer more":
        layers["99.to_k_ip.weight"] = layers["1.to_k_ip.weight"].clone()
    elif what == "no projection":
        projection.clear()
    elif what == "unknown kind":
        projection["something.weight"] = projection.pop("proj.weight")
        projection["other.weight"] = projection.pop("norm.weight")
    elif what == "of two kinds":
        projection["latents"] = torch.zeros(1, 4, 8)
    elif what == "another encoder":
        projection["proj.weight"] = torch.zeros(projection["proj.weight"].shape[0], 40)
    elif what == "narrow tokens":
        projection |= {"norm.weight": torch.ones(16), "norm.bias": torch.ones(16)}
    elif what == "whole numbers":
        projection["norm.bias"] = projection["norm.bias"].long()
    elif what == "a scalar":
        projection["norm.weight"] = torch.tensor(1.0)
    return tensors


BAD = ["NaN", "a layer less", "a layer more", "no projection", "unknown kind", "of two kinds", "another encoder", "narrow tokens"]
BAD += ["whole numbers", "a scalar", "truncated", "no encoder", "no file", "of SDXL", "LoRA", "pickle"]


@pytest.mark.parametrize("what", BAD)
def test_bad_files(checkpoint, repository, tmp_path, what):
    pipe, image = load(checkpoint, repository, "plus"), {"ip_adapter_image": picture(5)}
    before, parts, adapters = made(pipe, **image), dict(pipe.components), pipe.ip_adapters
    unet = pipe.unet
    if what == "of SDXL":
        unet = darkroom.UNet2DConditionModel.from_pretrained(checkpoint("sdxl"), subfolder="unet")
    tensors = spoiled(ip_adapters.adapter(unet, "base"), what)
    if what == "no encoder":
        pipe.image_encoder = parts["image_encoder"] = None
    ip_adapters.write(tmp_path, tensors, "bad.safetensors", image_encoder=False)
    file = tmp_path / "models/bad.safetensors"
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif what == "no file":
        file.unlink()
    elif what == "LoRA":
        save_file({"unet.down.lora_A.weight": torch.ones(2, 2)}, file)
    elif what == "pickle":
        file.unlink()
        (tmp_path / "models/bad.bin").write_bytes(pickle.dumps({"image_proj": Path.home, "ip_adapter": {}}))
    name = "bad.bin" if what == "pickle" else "bad.safetensors"
    with pytest.raises(CheckpointError) as caught:
        if what == "no encoder":
            pipe.load_ip_adapter(tmp_path, "models", name)
        pipe.load_ip_adapter([repository(), tmp_path], "models", ["base.safetensors", name])
    if what == "of SDXL":
        assert "another base model" in str(caught.value)
    assert pipe.ip_adapters == adapters and pipe.components == parts
    if what != "no encoder":
        assert np.array_equal(made(pipe, **image), before)


REFUSED: dict[str, Any] = {
    "neither": {},
    "both": {"ip_adapter_image": picture(), "ip_adapter_image_embeds": [torch.zeros(2, 1, 24)]},
    "too many": {"ip_adapter_image": [picture(), picture()]},
    "embeddings of another width": {"ip_adapter_image_embeds": [torch.zeros(2, 1, 25)]},
    "embeddings without pictures": {"ip_adapter_image_embeds": [torch.zeros(2, 24)]},
    "three rows": {"ip_adapter_image_embeds": [torch.zeros(3, 1, 24)]},
    "rows for others": {"ip_adapter_image_embeds": [torch.zeros(6, 1, 24)]},
    "not a list": {"ip_adapter_image_embeds": torch.zeros(2, 1, 24)},
    "too many masks": {"ip_adapter_image": picture(), "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)] * 2}},
    "a mask for two": {"ip_adapter_image": picture(), "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 2, 8, 8)]}},
    "a flat mask": {"ip_adapter_image": picture(), "cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(8, 8)]}},
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_calls_that_are_refused(checkpoint, repository, call):
    pipe = load(checkpoint, repository, "base")
    with pytest.raises(InputError):
        made(pipe, **call)


WRONG: list[Any] = [[0.1, 0.2], {"left": 1.0}, {"up": {"block_7": 1.0}}, {"up": {"block_1": [1.0, 0.5]}}, {"mid": [1.0, 2.0]}, "much", None]
WRONG += [float("nan"), True, [[]]]


@pytest.mark.parametrize("scale", WRONG, ids=str)
def test_scales_that_are_refused(checkpoint, repository, scale):
    pipe = load(checkpoint, repository, "base")
    before = pipe.ip_adapters
    with pytest.raises(InputError):
        pipe.set_ip_adapter_scale(scale)
    assert pipe.ip_adapters == before


def test_without_an_adapter(checkpoint, repository):
    pipe = load(checkpoint, repository)
    for call in ({"ip_adapter_image": picture()}, {"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)]}}):
        with pytest.raises(InputError, match="No IP-Adapter"):
            made(pipe, **call)
    with pytest.raises(InputError, match="No IP-Adapter"):
        pipe.set_ip_adapter_scale(1.0)
    pipe.unload_ip_adapter()
    pipe.load_ip_adapter(repository(), "models", "FaceID.safetensors")
    assert pipe.image_encoder is None  # such adapters need none
    with pytest.raises(InputError, match="face embeddings"):
        made(pipe, ip_adapter_image=picture())
    pipe.load_ip_adapter(repository(), "models", "base.safetensors", image_encoder_folder=None)
    with pytest.raises(InputError, match="no image encoder"):
        made(pipe, ip_adapter_image=picture())


def test_sources(checkpoint, repository):
    """A file, tensors, and the encoder by its path in the repository."""
    pipe, image = load(checkpoint, repository, "plus"), {"ip_adapter_image": picture(5)}
    wanted = made(pipe, **image)
    pipe.unload_ip_adapter()
    pipe.load_ip_adapter(repository(), None, "models/plus.bin", image_encoder_folder="models/image_encoder")
    assert np.array_equal(made(pipe, **image), wanted)
    pipe.unload_ip_adapter()
    pipe.load_ip_adapter(repository() / "models/plus.safetensors")
    assert np.array_equal(made(pipe, **image), wanted)
    tensors = ip_adapters.adapter(pipe.unet, "plus", seed=1)
    pipe.load_ip_adapter(tensors)
    assert np.array_equal(made(pipe, **image), wanted)
    assert pipe.ip_adapters[0].network.state_dict().keys() == ip_adapters.flat(tensors).keys()
