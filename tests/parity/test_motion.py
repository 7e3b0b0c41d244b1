"""AnimateDiff beside the reference, on checkpoints that it wrote: the same array within 1e-4 in [0, 1]."""

from __future__ import annotations
import math
from functools import cache
from typing import Any
import diffusers
import numpy as np
import pytest
import torch
from families import motion, tiny
from families.side_by_side import TOLERANCE, both, compare, generators
from PIL import Image
import darkroom
from darkroom import InputError
from darkroom.core.free_init import METHODS, FreeInit
from darkroom.core.windows import FreeNoise, Windows

NAME = "AnimateDiff{}Pipeline".format
TEXT = [NAME(s) for s in ("", "PAG", "SDXL", "ControlNet", "SparseControlNet")]
VIDEO = [NAME(s) for s in ("VideoToVideo", "VideoToVideoControlNet")]
NAMES = [*TEXT, *VIDEO]


def quiet_codec(pipe: Any) -> None:
    """A posterior of next to no variance: sparse pictures are read by its mode here, by a sample of the global generator there."""
    half = pipe.vae.quant_conv.out_channels // 2
    pipe.vae.quant_conv.weight.data[half:] = 0
    pipe.vae.quant_conv.bias.data[half:] = -30


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The same pipeline from both libraries."""

    @cache
    def load(name: str, **options: Any) -> tuple[Any, Any]:
        path = getattr(motion, motion.KINDS[name])(tmp_path_factory.mktemp("checkpoint"), **options)
        pipes = both(name, path)
        for pipe in pipes if "Sparse" in name else ():
            quiet_codec(pipe)
        return pipes

    return load


def pictures(count: int = 4, seed: int = 3, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Smooth pictures of 32 x 32 pixels."""
    made = []
    for i in range(count):
        waves = np.random.default_rng(seed).uniform(1, 4, (3, 2))
        y, x = np.mgrid[0 : 1 : size[1] * 1j, 0 : 1 : size[0] * 1j]
        made.append(np.stack([0.5 + 0.5 * np.sin(6.3 * (a * x + b * y) + 0.4 * i) for a, b in waves], -1))
    return [Image.fromarray((picture * 255).astype(np.uint8)) for picture in made]


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    call = {"prompt": "the cat and the dog", "num_inference_steps": 4, "output_type": "np", "height": 32, "width": 32}
    if "VideoToVideo" in name:
        call["video"] = pictures()
    else:
        call["num_frames"] = 4
    if "Sparse" in name:
        call |= {"conditioning_frames": pictures(2, 5), "controlnet_frame_indices": [0, 3]}
    elif "ControlNet" in name:
        call["conditioning_frames"] = pictures(4, 5)
    return {**call, **changes}


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without guidance": {"guidance_scale": 1.0},
    "negative": {"negative_prompt": "red", "eta": 0.7},
    "clip skip": {"clip_skip": 1},
    "chunks": {"decode_chunk_size": 3},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls(pair, name, call):
    pipes = pair(name)
    if "decode_chunk_size" in call and ("SDXL" in name or "Sparse" in name):  # which the reference has no choice of
        theirs = pipes[0](**arguments(name), generator=generators(0)).frames
        np.testing.assert_allclose(pipes[1](**arguments(name, **call), generator=generators(0)).frames, theirs, atol=TOLERANCE)
        return
    compare(pipes, arguments(name, **call))


@pytest.mark.parametrize("name", [n for n in TEXT if "ControlNet" not in n])
@pytest.mark.parametrize("seed", [0, [4, 5]], ids=str)
def test_two_prompts(pair, name, seed):
    if name == NAME("SDXL") and seed == 0:
        seed = 7
    compare(pair(name), arguments(name, prompt=["a cat", "the red dog"], negative_prompt=["red", ""]), seed)


@pytest.mark.parametrize("seed", [0, [4, 5]], ids=str)
def test_two_videos(pair, seed):
    name = NAME("VideoToVideo")
    call = arguments(name, prompt=["a cat", "the red dog"], video=[pictures(3), pictures(3, 8)])
    compare(pair(name), call, seed)


@pytest.mark.parametrize("name", [NAME(""), NAME("VideoToVideo"), NAME("ControlNet")])
@pytest.mark.parametrize("scheduler", ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "PNDM", "LCM"])
def test_schedulers(pair, name, scheduler):
    pipes = pair(name)
    kept = [pipe.scheduler for pipe in pipes]
    try:
        for pipe, library in zip(pipes, (diffusers, darkroom), strict=True):
            made = getattr(library, f"{scheduler}Scheduler")
            pipe.scheduler = made.from_config(pipe.scheduler.config, beta_schedule="linear")
        compare(pipes, arguments(name))
    finally:
        for pipe, before in zip(pipes, kept, strict=True):
            pipe.scheduler = before


@pytest.mark.parametrize("name", [NAME(""), NAME("VideoToVideo"), NAME("SparseControlNet")])
@pytest.mark.parametrize("call", [{"height": 24, "width": 40}, {"output_type": "latent"}, {"output_type": "pt"}, {"cross_attention_kwargs": {}}],
                         ids=str)  # fmt: skip
def test_other_arguments(pair, name, call):
    compare(pair(name), arguments(name, **call))


def test_pictures_and_tuples(pair):
    theirs, ours = (pipe(**arguments("", output_type="pil"), generator=generators(0)).frames for pipe in pair(NAME("")))
    assert [type(video) for video in ours] == [list] and np.array_equal(np.asarray(ours[0]), np.asarray(theirs[0]))
    theirs, ours = (pipe(**arguments("", return_dict=False), generator=generators(0)) for pipe in pair(NAME("")))
    assert len(theirs) == len(ours) == 1
    np.testing.assert_allclose(ours[0], theirs[0], atol=TOLERANCE)


def test_latents_and_embeddings_passed_in(pair):
    g = torch.Generator().manual_seed(5)
    embeds, other = torch.randn(2, 2, 16, 32, generator=g)
    call = arguments("", prompt=None, prompt_embeds=embeds, negative_prompt_embeds=other)
    compare(pair(NAME("")), {**call, "latents": torch.randn(2, 4, 4, 16, 16, generator=g)})


def test_callbacks_see_and_replace_the_same_tensors(pair):
    seen: dict[str, list[Any]] = {"diffusers": [], "darkroom": []}

    def follow(pipe, step, timestep, tensors):
        record = seen[type(pipe).__module__.split(".")[0]]
        record.append((step, int(timestep), {name: tensor.clone() for name, tensor in tensors.items()}))
        return {"latents": tensors["latents"] * 0.99, "prompt_embeds": tensors["prompt_embeds"] * 1.1}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    compare(pair(NAME("")), arguments("", callback_on_step_end=follow, callback_on_step_end_tensor_inputs=names))
    for ours, theirs in zip(*seen.values(), strict=True):
        assert ours[:2] == theirs[:2] and ours[2].keys() == theirs[2].keys()
        for name in names if ours[0] == 0 else names[:2]:  # the negative rows are the same tensor here, and change with it
            torch.testing.assert_close(ours[2][name], theirs[2][name], atol=TOLERANCE, rtol=1e-4)


def test_the_motion_matters(pair):
    """A frame of a video is not what the frame alone would be."""
    (_, pipe), latents = pair(NAME("")), torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    whole = pipe(**arguments("", latents=latents)).frames
    alone = pipe(**arguments("", latents=latents[:, :, :1], num_frames=1)).frames
    assert np.abs(whole[:, :1] - alone).max() > 0.01


# ---- perturbed attention


@pytest.mark.parametrize("call", [{"pag_scale": 0.0}, {"pag_scale": 2.0, "pag_adaptive_scale": 0.003}, {"guidance_scale": 1.0}], ids=str)
def test_perturbed_attention(pair, call):
    compare(pair(NAME("PAG")), arguments("", **call))


@pytest.mark.parametrize("layers", ["mid_block.*attn1", ["mid"], "down_blocks.0.*motion", "up_blocks.1.attentions"], ids=str)
def test_layers_of_perturbed_attention(pair, layers):
    theirs, ours = (getattr(lib, NAME("PAG")).from_pipe(p) for lib, p in zip((diffusers, darkroom), pair(NAME("PAG")), strict=True))
    theirs.set_pag_applied_layers(layers)
    ours.pag_applied_layers = layers
    compare((theirs, ours), arguments("", pag_scale=3.0))


# ---- from a video


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("call", [{"strength": 0.4}, {"strength": 1.0}, {"enforce_inference_steps": True, "strength": 0.5},
                                  {"timesteps": [900, 700, 500, 300, 100], "scheduler": "EulerDiscrete"}], ids=str)  # fmt: skip
def test_strength_and_steps(pair, name, call):
    pipes, call = pair(name), dict(call)
    scheduler = call.pop("scheduler", None)
    if scheduler is None:
        compare(pipes, arguments(name, **call))
        return
    kept = [pipe.scheduler for pipe in pipes]
    try:
        for pipe, library in zip(pipes, (diffusers, darkroom), strict=True):
            pipe.scheduler = getattr(library, f"{scheduler}Scheduler").from_config(pipe.scheduler.config)
        compare(pipes, arguments(name, **call))
    finally:
        for pipe, before in zip(pipes, kept, strict=True):
            pipe.scheduler = before


@pytest.mark.parametrize("enforce", [False, True])
def test_from_latents(pair, enforce):
    latents = torch.randn(1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    compare(pair(NAME("VideoToVideo")), arguments("VideoToVideo", video=None, latents=latents, enforce_inference_steps=enforce))


@pytest.mark.parametrize("kind", ["array", "tensor", "five", "list of videos", "small pictures"])
def test_videos_in_other_forms(pair, kind):
    array = np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures()])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    video = {
        "array": [*array],
        "tensor": [*tensor],
        "five": tensor[None],
        "list of videos": [pictures()],
        "small pictures": pictures(size=(24, 20)),
    }
    compare(pair(NAME("VideoToVideo")), arguments("VideoToVideo", video=video[kind]))


def test_a_video_in_chunks_of_its_own(pair):
    compare(pair(NAME("VideoToVideo")), arguments("VideoToVideo", decode_chunk_size=3))


# ---- controls


STEERED: dict[str, dict[str, Any]] = {
    "scale": {"controlnet_conditioning_scale": 0.4},
    "window": {"control_guidance_start": 0.25, "control_guidance_end": 0.75},
    "guess mode": {"guess_mode": True, "guidance_scale": 1.0},
    "larger pictures": {"conditioning_frames": pictures(4, 5, (48, 40))},
}


@pytest.mark.parametrize("name", [NAME("ControlNet"), NAME("VideoToVideoControlNet")])
@pytest.mark.parametrize("call", STEERED.values(), ids=STEERED)
def test_controls(pair, name, call):
    compare(pair(name), arguments(name, **call))


def test_two_controls(pair):
    call = {"conditioning_frames": [pictures(4, 5), pictures(4, 6)], "controlnet_conditioning_scale": [0.5, 1.2]}
    compare(pair(NAME("ControlNet"), nets=2), arguments("ControlNet", **call))


SPARSE: dict[str, dict[str, Any]] = {
    "one": {"conditioning_frames": pictures(1), "controlnet_frame_indices": [2]},
    "a picture by itself": {"conditioning_frames": pictures(1)[0], "controlnet_frame_indices": [0]},
    "in another order": {"controlnet_frame_indices": [3, 1]},
    "more pictures than places": {"conditioning_frames": pictures(3), "controlnet_frame_indices": [1]},
    "scale": {"controlnet_conditioning_scale": 0.3},
    "guess mode": {"guess_mode": True, "guidance_scale": 1.0},
}


@pytest.mark.parametrize("call", SPARSE.values(), ids=SPARSE)
def test_sparse_controls(pair, call):
    compare(pair(NAME("SparseControlNet")), arguments("SparseControlNet", **call))


def test_sparse_controls_that_see_pixels(pair):
    options = {"use_simplified_condition_embedding": False, "conditioning_channels": 3, "conditioning_embedding_out_channels": (4, 8)}
    compare(pair(NAME("SparseControlNet"), net_options=tuple(options.items())), arguments("SparseControlNet"))


@pytest.mark.parametrize("name", [NAME("ControlNet"), NAME("SparseControlNet")])
def test_controls_where_the_reference_fails(pair, name):
    """Guess mode with guidance, two prompts: it adds residuals of half the rows, and stops. Here each video is what it is by itself."""
    _, pipe = pair(name)
    guessed = pipe(**arguments(name, guess_mode=True), generator=generators(0)).frames
    assert np.isfinite(guessed).all() and not np.allclose(guessed, pipe(**arguments(name), generator=generators(0)).frames)
    both = pipe(**arguments(name, prompt=["a cat", "the red dog"]), generator=generators([4, 5])).frames
    for i, prompt in enumerate(("a cat", "the red dog")):
        np.testing.assert_allclose(both[i : i + 1], pipe(**arguments(name, prompt=prompt), generator=generators([4 + i])).frames, atol=1e-5)


# ---- FreeInit


@pytest.mark.parametrize("name", [NAME(""), NAME("SDXL"), NAME("SparseControlNet"), NAME("VideoToVideo")])
@pytest.mark.parametrize("options", [{}, {"method": "gaussian", "use_fast_sampling": True, "num_iters": 2},
    {"method": "ideal", "num_iters": 2, "spatial_stop_frequency": 0.4, "temporal_stop_frequency": 0.3}], ids=str)  # fmt: skip
def test_free_init(pair, name, options):
    pipes, call = pair(name), arguments(name)
    if "Video" in name:  # where the reference takes the share of a share of the steps in each pass
        call, options = call | {"strength": 1.0}, options | {"use_fast_sampling": False}
    plain = pipes[1](**call, generator=generators(0)).frames
    try:
        for pipe in pipes:
            pipe.enable_free_init(**options)
            assert pipe.free_init_enabled
        assert not np.allclose(compare(pipes, call), plain)
    finally:
        for pipe in pipes:
            pipe.disable_free_init()
    assert not pipes[1].free_init_enabled and np.array_equal(pipes[1](**call, generator=generators(0)).frames, plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stops", [(0.25, 0.25), (0.4, 0.1), (0.0, 0.3)], ids=str)
def test_the_filter_of_free_init(method, stops):
    theirs = diffusers.pipelines.free_init_utils.FreeInitMixin()._get_free_init_freq_filter((1, 4, 5, 6, 7), "cpu", method, 4, *stops)
    mine = FreeInit(method=method, spatial_stop_frequency=stops[0], temporal_stop_frequency=stops[1]).low_pass((5, 6, 7))
    torch.testing.assert_close(mine, theirs[0, 0], atol=1e-6, rtol=1e-5)


def test_free_init_keeps_to_the_strength(pair):
    """The reference takes the share of the share of the steps in each pass; here all passes are as long as the first."""
    (_, pipe), seen = pair(NAME("VideoToVideo")), []
    pipe = type(pipe).from_pipe(pipe)
    pipe.enable_free_init(num_iters=3)
    call = arguments("VideoToVideo", strength=0.5, callback_on_step_end=lambda pipe, i, t, tensors: seen.append(int(t)) or {})
    pipe(**call, generator=generators(0))
    assert len(seen) == 6 and seen[:2] == seen[2:4] == seen[4:]


def test_free_init_stops_when_it_is_told_to(pair):
    (_, pipe), seen = pair(NAME("")), []
    pipe = type(pipe).from_pipe(pipe)
    pipe.enable_free_init(num_iters=3)

    def stop(view, i, t, tensors):
        seen.append(i)
        view.interrupt = True
        return {}

    pipe(**arguments("", callback_on_step_end=stop), generator=generators(0))
    assert seen == [0]


def test_free_init_refuses(pair):
    _, pipe = pair(NAME(""))
    for options in ({"num_iters": 0}, {"method": "none"}, {"spatial_stop_frequency": 2.0}, {"order": 0}):
        with pytest.raises(InputError):
            pipe.enable_free_init(**options)
    assert not pipe.free_init_enabled


# ---- FreeNoise


NOISY: dict[str, dict[str, Any]] = {
    "pyramid": {"context_stride": 2},
    "flat": {"context_stride": 3, "weighting_scheme": "flat"},
    "sawtooth": {"context_stride": 2, "weighting_scheme": "delayed_reverse_sawtooth"},
    "random": {"context_stride": 2, "noise_type": "random"},
}


def free_noise(pipes: Any, **options: Any) -> tuple[Any, Any]:
    """Pipelines of the same weights with windows of 6 frames; the reference's replace layers, so it gets a network of its own."""
    theirs = type(pipes[0])(**{**pipes[0].components, "unet": _copy(pipes[0].unet)})
    ours = type(pipes[1]).from_pipe(pipes[1])
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
        pipe.enable_free_noise(context_length=6, **options)
        assert pipe.free_noise_enabled
    return theirs, ours


def _copy(unet: Any) -> Any:
    made = type(unet).from_config(unet.config)
    made.load_state_dict(unet.state_dict())
    return made.eval()


@pytest.mark.parametrize("options", NOISY.values(), ids=NOISY)
def test_free_noise(pair, options):
    pipes = free_noise(pair(NAME("")), **options)
    compare(pipes, arguments("", num_frames=12))
    with pytest.raises(InputError, match="enable_free_noise"):
        pair(NAME(""))[1](**arguments("", num_frames=12))


def test_free_noise_of_a_video(pair):
    compare(free_noise(pair(NAME("VideoToVideo")), context_stride=3), arguments("VideoToVideo", video=pictures(9)))


PROMPTS = {0: "a cat", 5: "the red dog", 9: "the dog"}


@pytest.mark.parametrize("call", [{"prompt": PROMPTS}, {"prompt": PROMPTS, "negative_prompt": {0: "red", 7: "a cat"}},
    {"prompt": {0: "a cat", 11: "the dog"}, "negative_prompt": "red"}, {"prompt": PROMPTS, "guidance_scale": 1.0}], ids=str)  # fmt: skip
def test_prompts_by_frame(pair, call):
    compare(free_noise(pair(NAME("")), context_stride=2), arguments("", num_frames=12, **call))


def test_prompts_on_another_line(pair):
    def bend(start, end, a, b):
        share = torch.linspace(0, 1, end - start + 1)[:, None, None] ** 2
        return (1 - share) * a + share * b

    pipes = free_noise(pair(NAME("")), context_stride=2, prompt_interpolation_callback=bend)
    compare(pipes, arguments("", num_frames=12, prompt=PROMPTS))


def test_prompts_by_frame_that_do_not_fit(pair):
    _, pipe = pair(NAME(""))
    with pytest.raises(InputError, match="enable_free_noise"):
        pipe(**arguments("", prompt=PROMPTS))
    _, pipe = free_noise(pair(NAME("")), context_stride=2)
    for prompt in ({}, {1: "a cat"}, {0: "a cat", 12: "a dog"}, {0: 3}, {0: "a cat", "last": "a dog"}):
        with pytest.raises(InputError, match="prompt"):
            pipe(**arguments("", num_frames=12, prompt=prompt))


def test_noise_that_repeats():
    """The reference draws other noise for each frame here, whatever its documents say."""
    x = torch.randn(2, 4, 13, 3, 3)
    for frames in (13, 4):
        made = FreeNoise(Windows(6, 2), "repeat_context").noise(x[:, :, :frames], frames, None)
        assert torch.equal(made, torch.cat([x[:, :, : min(6, frames)]] * 3, 2)[:, :, :frames])


def test_noise_in_another_order():
    x = torch.randn(2, 4, 15, 3, 3)
    made = FreeNoise(Windows(6, 4)).noise(x, 15, generators(0))
    assert torch.equal(made[:, :, :6], x[:, :, :6])
    for start in (6, 10):  # each four frames are those of six before
        before, after = (sorted(part.flatten().tolist()) for part in (made[:, :, start - 6 : start - 2], made[:, :, start : start + 4]))
        assert before == after
    rows = FreeNoise(Windows(6, 4)).noise(x, 15, generators([3, 4]))
    for i in range(2):
        assert torch.equal(rows[i], FreeNoise(Windows(6, 4)).noise(x[i : i + 1], 15, generators(3 + i))[0])


def test_latents_of_one_window(pair):
    _, pipe = free_noise(pair(NAME("")), context_stride=2, noise_type="repeat_context")
    latents = torch.randn(1, 4, 6, 16, 16, generator=generators(2))
    long = pipe(**arguments("", num_frames=12, latents=latents), generator=generators(0)).frames
    assert np.array_equal(long, pipe(**arguments("", num_frames=12, latents=latents.repeat(1, 1, 2, 1, 1)), generator=generators(0)).frames)
    with pytest.raises(InputError, match="latents"):
        pipe(**arguments("", num_frames=12, latents=latents[:, :, :5]))


def test_parts_at_a_time_change_nothing(pair):
    _, pipe = free_noise(pair(NAME("")), context_stride=2)
    before = pipe(**arguments("", num_frames=12), generator=generators(0)).frames
    pipe.enable_free_noise_split_inference(spatial_split_size=50, temporal_split_size=5)
    np.testing.assert_allclose(pipe(**arguments("", num_frames=12), generator=generators(0)).frames, before, atol=1e-5)
    with pytest.raises(InputError):
        pipe.enable_free_noise_split_inference(0)


def test_what_is_enabled_belongs_to_one_pipeline(pair):
    _, pipe = pair(NAME(""))
    before = pipe(**arguments(""), generator=generators(0)).frames
    child = type(pipe).from_pipe(pipe)
    child.enable_free_init(num_iters=2)
    child.enable_free_noise(context_length=4, context_stride=1)
    heir = darkroom.AnimateDiffVideoToVideoPipeline.from_pipe(child)
    assert heir.free_init_enabled and heir.free_noise_enabled and not pipe.free_init_enabled and not pipe.free_noise_enabled
    child.disable_free_noise()
    child.disable_free_init()
    assert heir.free_init_enabled and heir.free_noise_enabled and not child.free_noise_enabled
    assert np.array_equal(pipe(**arguments(""), generator=generators(0)).frames, before)
    assert np.array_equal(child(**arguments(""), generator=generators(0)).frames, before)


# ---- from a picture pipeline


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A picture checkpoint, and a motion adapter, written by the reference."""
    base = tmp_path_factory.mktemp("still")
    tiny.sd(base / "sd")
    motion.adapter().save_pretrained(base / "adapter")
    return base / "sd", base / "adapter"


def animated(library: Any, still: Any, way: str) -> Any:
    adapter = library.MotionAdapter.from_pretrained(still[1])
    pipe = library.AnimateDiffPipeline
    if way == "from_pretrained":
        made = pipe.from_pretrained(still[0], motion_adapter=adapter)
    else:
        source = library.StableDiffusionPipeline.from_pretrained(still[0], requires_safety_checker=False)
        made = pipe.from_pipe(source, motion_adapter=adapter)
    made.scheduler = library.DDIMScheduler.from_config(made.scheduler.config, beta_schedule="linear")
    made.set_progress_bar_config(disable=True)
    made.text_encoder.__dict__.setdefault("text_model", made.text_encoder) if library is diffusers else None
    return made


@pytest.mark.parametrize("way", ["from_pretrained", "from_pipe"])
def test_a_picture_pipeline_is_animated(still, way):
    compare(tuple(animated(library, still, way) for library in (diffusers, darkroom)), arguments(""))


def test_an_adapter_costs_its_own_size(still):
    source = darkroom.StableDiffusionPipeline.from_pretrained(still[0], requires_safety_checker=False)
    before = source("the cat", num_inference_steps=2, output_type="np", generator=generators(0)).images
    adapter = darkroom.MotionAdapter.from_pretrained(still[1])
    pipes = [darkroom.AnimateDiffPipeline.from_pipe(source, motion_adapter=adapter)]
    pipes.append(darkroom.AnimateDiffVideoToVideoPipeline.from_pipe(pipes[0]))
    pipes.append(darkroom.AnimateDiffPAGPipeline.from_pipe(pipes[0]))

    def storages(parts: Any) -> dict[int, int]:
        every = [t.untyped_storage() for part in parts if isinstance(part, torch.nn.Module) for t in (*part.parameters(), *part.buffers())]
        return {storage.data_ptr(): storage.nbytes() for storage in every}

    both = storages([*source.components.values(), adapter])
    for pipe in pipes:
        assert storages(pipe.components.values()).keys() <= both.keys()
        frames = pipe(**arguments(type(pipe).__name__), generator=generators(0)).frames
        assert np.isfinite(frames).all()
    assert math.isclose(sum(both.values()) - sum(storages(source.components.values()).values()), sum(storages([adapter]).values()))
    after = source("the cat", num_inference_steps=2, output_type="np", generator=generators(0)).images
    assert np.array_equal(after, before) and type(source.unet).__name__ == "UNet2DConditionModel"


def test_a_unet_for_pictures_is_wrapped(still):
    source = darkroom.StableDiffusionPipeline.from_pretrained(still[0], requires_safety_checker=False)
    adapter = darkroom.MotionAdapter.from_pretrained(still[1])
    parts = {n: p for n, p in source.components.items() if n != "safety_checker"}
    pipe = darkroom.AnimateDiffPipeline(**parts, motion_adapter=adapter)
    assert type(pipe.unet).__name__ == "UNetMotionModel" and pipe.config["unet"] == ("diffusers", "UNetMotionModel")
    first = pipe(**arguments(""), generator=generators(0)).frames
    pipe.unet = source.unet
    assert type(pipe.unet).__name__ == "UNetMotionModel"
    assert np.array_equal(pipe(**arguments(""), generator=generators(0)).frames, first)


def test_a_unet_for_pictures_alone_is_refused(still):
    """The reference animates with layers of random weights, which shows in the frames only."""
    source = darkroom.StableDiffusionPipeline.from_pretrained(still[0], requires_safety_checker=False)
    for make in (lambda: darkroom.AnimateDiffPipeline.from_pipe(source), lambda: darkroom.AnimateDiffPipeline.from_pretrained(still[0])):
        with pytest.raises(InputError, match="motion modules"):
            make()


def test_auto_pipelines_find_them(still):
    adapter = darkroom.MotionAdapter.from_pretrained(still[1])
    pipe = darkroom.AutoPipelineForText2Video.from_pretrained(still[0], motion_adapter=adapter)
    assert type(pipe) is darkroom.AnimateDiffPipeline
    assert type(darkroom.AutoPipelineForVideo2Video.from_pipe(pipe)) is darkroom.AnimateDiffVideoToVideoPipeline
    assert type(darkroom.AutoPipelineForText2Video.from_pipe(pipe, enable_pag=True)) is darkroom.AnimateDiffPAGPipeline


def test_videos_that_cannot_be_used(pair):
    _, pipe = pair(NAME("VideoToVideo"))
    latents = torch.zeros(1, 4, 4, 16, 16)
    for change in ({"video": None}, {"latents": latents}, {"video": pictures()[0]}, {"video": torch.zeros(3, 32, 32)}, {"video": []},
                   {"video": None, "latents": latents[:, :3]}, {"video": [pictures(3), pictures(4)]}, {"strength": 0.0}):  # fmt: skip
        with pytest.raises(InputError):
            pipe(**arguments("VideoToVideo", **change))


def test_controls_that_cannot_be_used(pair):
    for name, change in (
        ("ControlNet", {"conditioning_frames": pictures(3)}), ("ControlNet", {"conditioning_frames": None}),
        ("SparseControlNet", {"controlnet_frame_indices": [4]}), ("SparseControlNet", {"controlnet_frame_indices": [0, 1, 2]}),
        ("SparseControlNet", {"controlnet_frame_indices": [1, 1]}), ("SparseControlNet", {"conditioning_frames": None}),
    ):  # fmt: skip
        with pytest.raises(InputError):
            pair(NAME(name))[1](**arguments(name, **change))


GUIDANCE: dict[str, Any] = {
    "APG": lambda d: d.APG(4.0), "CFGZeroStar": lambda d: d.CFGZeroStar(4.0), "FDG": lambda d: d.FDG((6.0, 3.0)),
    "MagnitudeAware": lambda d: d.MagnitudeAware(4.0), "TCFG": lambda d: d.TCFG(4.0), "rescaled": lambda d: d.CFG(4.0, 0.7),
    "DynamicThresholding": lambda d: d.DynamicThresholding(4.0),
} | {
    name: (lambda d, name=name: d.CFG(4.0, terms=[getattr(d, name)(2.0)])) for name in ("PAG", "SAG", "SEG", "NAG")
} | {"SLG": lambda d: d.CFG(4.0, terms=[d.SLG(2.0, stop=1.0)])}  # fmt: skip


@pytest.mark.parametrize("make", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize("name", [NAME(""), NAME("SDXL")])
def test_every_guidance(pair, name, make):
    _, pipe = pair(name)
    call = arguments(name, prompt=["a cat", "the red dog"], negative_prompt=["red", "a dog"])
    plain = pipe(**call, generator=generators([4, 5])).frames
    frames = pipe(**call, guidance=make(darkroom), generator=generators([4, 5])).frames
    assert np.isfinite(frames).all() and np.abs(frames - plain).max() > 1e-4
    for i in range(2):  # and each video is what it is by itself
        own = {name: [value[i]] for name, value in call.items() if isinstance(value, list)}
        alone = pipe(**call | own, guidance=make(darkroom), generator=generators([4 + i])).frames
        np.testing.assert_allclose(frames[i : i + 1], alone, atol=1e-4)


def test_half_precision(pair):
    _, pipe = pair(NAME(""))
    whole = pipe(**arguments(""), generator=generators(0)).frames
    child = type(pipe).from_pipe(pipe, torch_dtype=torch.bfloat16)
    half = child(**arguments(""), generator=generators(0)).frames
    assert half.dtype == np.float32 and half.shape == whole.shape and np.isfinite(half).all()
