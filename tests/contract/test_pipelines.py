"""What every public pipeline keeps to. The classes are found by subclassing; components are tiny and real."""

from __future__ import annotations
import inspect
import threading
from functools import cache
from pathlib import Path
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import controls, films, motion, tiny
from PIL import Image
import darkroom
from darkroom import DiffusionPipeline, Family, InputError
from darkroom._public import NAMES

CLASSES = sorted(
    (c for n in NAMES if inspect.isclass(c := getattr(darkroom, n)) and issubclass(c, Family) and c is not Family), key=lambda c: c.__name__
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    @cache
    def write(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind)
        if kind in tiny.NEIGHBOURS:
            return tiny.neighbour(path, kind)
        return getattr(next(home for home in (controls, films, motion, tiny) if kind in home.__all__), kind)(path)

    return write


@pytest.fixture(params=CLASSES, ids=lambda c: c.__name__)
def pipe(request, folder):
    cls = request.param
    parts = cls.declared().annotations or dict.fromkeys(cls.declared().components)
    kind = "sd" if "text_encoder_2" not in parts else "sdxl_edit" if cls.task.name == "edit" else "sdxl"
    steered = [name for name in ("controlnet", "adapter") if name in parts]
    steered = ["union" if "Union" in str(parts[name]) else name for name in steered]
    other = cls.__name__ if cls.__name__ in tiny.NEIGHBOURS else "_".join([kind, *steered])
    made = cls.from_pretrained(folder({**tiny.KINDS, **motion.KINDS, **films.KINDS}.get(cls.__name__, other)))
    made.set_progress_bar_config(disable=True)
    return made


def picture() -> Image.Image:
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    return Image.fromarray(np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[:, None], (1, 32)), np.full((32, 32), 90, np.uint8)], -1))


def call(pipe: Any, seed: Any = 0, **changes: Any) -> Any:
    names = inspect.signature(type(pipe).__call__).parameters
    area = Image.new("L", (32, 32))
    area.paste(255, (8, 8, 24, 24))
    possible = {"prompt": "the red cat", "image": picture(), "mask_image": area, "control_image": picture(), "control_mode": 1}
    possible |= {
        "class_labels": [3],
        "num_frames": 2,
        "video": [picture()] * 2,
        "video_length": 2,
        "t0": 0,
        "t1": 1,
        "conditioning_frames": [picture()] * 2,
        **({"height": 32, "width": 32} if "num_frames" in names or pipe.task.name == "panorama" else {}),
    }
    seen = pipe.task.name != "text2image" or pipe.control is not None
    arguments = {k: v for k, v in possible.items() if k in names and (k != "image" or seen)}
    arguments |= {"strength": 0.8} if pipe.task.name == "image2image" else {}
    seeds = [torch.Generator().manual_seed(s) for s in seed] if isinstance(seed, list) else torch.Generator().manual_seed(seed)
    return pipe(**{**arguments, "num_inference_steps": 3, "output_type": "np", "generator": seeds, **changes})


def reference_of(pipe: Any, folder: Any, kind: Any = diffusers.DiffusionPipeline) -> Any:
    """The checkpoint as the reference loads it. Of some pipelines it wants to be told what there is none of."""
    return kind.from_pretrained(folder, **{n: None for n, part in pipe.components.items() if part is None})


def test_the_signature_is_the_reference_s(pipe):
    theirs = inspect.signature(getattr(diffusers, type(pipe).__name__).__call__).parameters
    ours = inspect.signature(type(pipe).__call__).parameters
    expected = [(n, p.default) for n, p in theirs.items() if n not in ("self", "kwargs")]
    got = [(n, p.default) for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD and n != "self"]
    assert got == expected


def test_the_constructor_takes_the_reference_s_components(pipe):
    theirs = set(inspect.signature(getattr(diffusers, type(pipe).__name__).__init__).parameters) - {"self"}
    assert theirs == {*type(pipe).declared().components, *type(pipe).declared().options}


def test_the_same_seed_gives_the_same_picture(pipe):
    assert np.array_equal(call(pipe)[0], call(pipe)[0])
    assert not np.array_equal(call(pipe)[0], call(pipe, seed=1)[0])


def test_a_batch_equals_its_pictures_one_by_one(pipe):
    names = pipe.Inputs.__dataclass_fields__
    changes = {n: 2 for n in ("batch_size", "num_images_per_prompt", "num_videos_per_prompt") if n in names}
    if pipe.task.name in ("inpaint", "repaint"):
        changes |= {"image": [picture()] * 2, "mask_image": [Image.new("L", (32, 32), 255)] * 2}
    if not changes:
        changes = {"class_labels": [[3], [3]]} if "class_labels" in names else {"prompt": ["the red cat"] * 2}
    together = call(pipe, seed=[3, 4], **changes)[0]
    single = {k: v[0] if isinstance(v, list) else 1 for k, v in changes.items()}
    for half, seed in zip(np.split(np.asarray(together), 2), (3, 4)):
        np.testing.assert_allclose(half, call(pipe, seed=[seed], **single)[0], atol=1e-5)


def test_save_and_load(pipe, tmp_path):
    before = call(pipe)[0]
    pipe.save_pretrained(tmp_path / "mine")
    again = DiffusionPipeline.from_pretrained(tmp_path / "mine")
    again.set_progress_bar_config(disable=True)
    assert type(again) is type(pipe)
    assert np.array_equal(call(again)[0], before)
    assert {k: v for k, v in again.config.items() if k != "_name_or_path"} == {k: v for k, v in pipe.config.items() if k != "_name_or_path"}


def test_the_reference_loads_what_is_saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "mine")
    theirs = reference_of(pipe, tmp_path / "mine")
    assert type(theirs).__name__ == type(pipe).__name__
    (name,) = (n for n, component in pipe.components.items() if component is pipe.denoiser)
    ours, other = pipe.denoiser.state_dict(), getattr(theirs, name).state_dict()
    assert ours.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in ours.items())


def test_variants(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16")
    names = [f.name for f in tmp_path.rglob("*.safetensors")]
    assert names and all(".fp16." in name for name in names)
    again = type(pipe).from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    assert again.dtype == torch.float16
    with pytest.raises(darkroom.CheckpointError, match="fp16"):
        type(pipe).from_pretrained(tmp_path, variant="bf16")


def test_dtype_by_component(pipe, tmp_path):
    kept = {"unet": torch.bfloat16, "default": torch.float16}
    again = type(pipe).from_pretrained(pipe.config["_name_or_path"], torch_dtype=kept)
    for name, component in again.components.items():
        if isinstance(component, torch.nn.Module):
            assert component.dtype == kept.get(name, kept["default"])


def test_printed_as_the_reference_prints_it(pipe):
    theirs = reference_of(pipe, pipe.config["_name_or_path"], getattr(diffusers, type(pipe).__name__))
    assert repr(pipe) == repr(theirs).replace("ImageProcessorPil", "ImageProcessor")  # which backend it has is no matter of the checkpoint


def test_interrupt_from_a_callback(pipe):
    steps = []

    def stop(view, i, t, tensors):
        steps.append(i)
        view._interrupt = i == 1
        return tensors

    call(pipe, num_inference_steps=6, callback_on_step_end=stop)
    assert steps == [0, 1]
    assert not pipe.interrupt


def test_interrupt_from_outside(pipe):
    steps = []

    def stop(view, i, t, tensors):
        steps.append(i)
        pipe.interrupt = True
        return tensors

    call(pipe, num_inference_steps=6, callback_on_step_end=stop)
    assert steps == [0]


def test_a_call_leaves_nothing_on_the_pipeline(pipe):
    before = {k: id(v) for k, v in vars(pipe).items()}
    timesteps = pipe.scheduler.timesteps
    call(pipe)
    assert {k: id(v) for k, v in vars(pipe).items()} == before
    assert pipe.scheduler.timesteps is timesteps
    assert all(p.grad is None for p in pipe.denoiser.parameters())


def test_two_threads_at_once(pipe):
    alone = [call(pipe, seed=s, num_inference_steps=4 + s)[0] for s in (0, 1)]
    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda s=s: results.update({s: call(pipe, seed=s, num_inference_steps=4 + s)[0]})) for s in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for s in (0, 1):
        np.testing.assert_array_equal(results[s], alone[s])


def test_moves_and_reports_dtype_and_device(pipe):
    assert pipe.device.type == "cpu" and pipe.dtype == torch.float32
    assert pipe.to(torch.float64) is pipe and pipe.dtype == torch.float64
    assert pipe.to("cpu", torch.float32).dtype == torch.float32
    with pytest.raises(InputError, match="twice"):
        pipe.to("cpu", "cpu")


def test_assignment_of_a_component_updates_the_configuration(pipe):
    new = darkroom.DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = new
    assert pipe.config["scheduler"] == ("diffusers", "DDPMScheduler") and '"DDPMScheduler"' in repr(pipe)
    assert pipe.components["scheduler"] is new


# ---- from_pipe


def change_attention(p):
    p.denoiser.set_attention_backend(lambda q, k, v, **_: v.mean(2, keepdim=True).expand_as(q) * 3)


def change_layer(p):
    name, old = next((n, m) for n, m in p.denoiser.named_modules() if isinstance(m, torch.nn.Conv2d))
    new = torch.nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    p.denoiser.set_submodule(name, new)


def change_deep_layer(p):
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    layers = [(n, m) for n, m in p.denoiser.named_modules() if isinstance(m, kinds) and "blocks.0." in n and n.count(".") > 2]
    name, old = next((n, m) for n, m in layers if "attn" not in n and "emb" not in n)
    wide = old.weight.shape[0]
    p.denoiser.set_submodule(
        name, torch.nn.Sequential(old, torch.nn.Conv2d(wide, wide, 1) if isinstance(old, kinds[0]) else torch.nn.Linear(wide, wide))
    )


def change_scheduler(p):
    if isinstance(p.scheduler, darkroom.RePaintScheduler):  # no other class can jump back
        p.scheduler = darkroom.RePaintScheduler.from_config(p.scheduler.config, beta_end=0.01)
    else:
        p.scheduler = darkroom.EulerAncestralDiscreteScheduler.from_config(p.scheduler.config)


def add_hook(p):
    [*p.denoiser.children()][-1].register_forward_hook(lambda m, a, out: out * 1.5)


CHANGES = [change_attention, change_layer, change_deep_layer, change_scheduler, add_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("side", ["child", "parent"])
def test_from_pipe_keeps_changes_apart(pipe, change, side):
    child = type(pipe).from_pipe(pipe)
    kept, changed = (pipe, child) if side == "child" else (child, pipe)
    before = call(kept)[0]
    assert np.array_equal(call(changed)[0], before)
    change(changed)
    assert not np.array_equal(call(changed)[0], before)
    assert np.array_equal(call(kept)[0], before)


def test_from_pipe_shares_the_weights(pipe):
    before = {n: p.dtype for n, p in pipe.denoiser.named_parameters()}
    child = type(pipe).from_pipe(pipe)
    for name, a in pipe.components.items():
        if isinstance(a, torch.nn.Module):
            b = child.components[name]
            assert a is not b and [id(p) for p in a.parameters()] == [id(p) for p in b.parameters()]
            storages = {t.untyped_storage().data_ptr() for t in (*a.parameters(), *a.buffers())}
            assert {t.untyped_storage().data_ptr() for t in (*b.parameters(), *b.buffers())} == storages
    pipe.to(torch.float16)
    type(pipe).from_pipe(pipe)
    assert {p.dtype for p in pipe.denoiser.parameters()} == {torch.float16}
    pipe.to(torch.float32)
    assert {n: p.dtype for n, p in pipe.denoiser.named_parameters()} == before


def test_from_pipe_with_a_dtype_copies(pipe):
    child = type(pipe).from_pipe(pipe, torch_dtype=torch.float16)
    assert child.dtype == torch.float16 and pipe.dtype == torch.float32
    assert call(pipe)[0].dtype == np.float32


def first_is_bad(clip_input: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """A safety checker that flags the first picture."""
    assert clip_input.shape[1:] == (3, 224, 224) and images.amin() >= 0 and images.amax() <= 1
    flagged = [i == 0 for i in range(len(images))]
    return torch.stack([image * (not bad) for image, bad in zip(images, flagged, strict=True)]), flagged


def test_a_safety_checker_attaches(pipe):
    from transformers import CLIPImageProcessor

    if not issubclass(pipe.Output, darkroom.family.ImagePipelineOutput):
        with pytest.raises(InputError, match="makes no pictures"):
            pipe.attach_safety_checker(first_is_bad, CLIPImageProcessor())
        return
    with pytest.raises(InputError, match="feature_extractor"):
        pipe.attach_safety_checker(first_is_bad)
    plain = call(pipe)
    child = type(pipe).from_pipe(pipe)
    child.attach_safety_checker(first_is_bad, CLIPImageProcessor())
    black = call(child)
    flagged = [i == 0 for i in range(len(black.images))]
    assert black.nsfw_content_detected == flagged and not black.images[0].any()
    assert call(child, return_dict=False)[1] == flagged
    heir = type(pipe).from_pipe(child)
    child.attach_safety_checker(None)
    assert call(heir).nsfw_content_detected == flagged
    for free in (pipe, child):
        out = call(free)
        assert out.nsfw_content_detected is None
        np.testing.assert_array_equal(out.images, plain.images)
