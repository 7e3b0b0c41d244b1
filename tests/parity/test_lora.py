"""LoRA beside the reference with PEFT: the same array within 1e-4 in [0, 1], whatever scheme the file's names follow."""

from __future__ import annotations
import copy
import json
import pickle
import threading
from functools import cache
from pathlib import Path
from typing import Any
import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from families import tiny
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
import darkroom
from darkroom import InputError
from darkroom.checkpoints.layouts import NAMES
from darkroom.errors import AdapterError, CheckpointError
from darkroom.runtime.lora import Adapted, adapted_layers

TOLERANCE = 1e-4
KINDS = {"sd": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj"]
EVERYTHING += ["conv", "conv_in", "conv_out", "linear_1"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Checkpoints by kind, each written once: on two levels with attention, so that blocks differ."""

    @cache
    def write(kind: str) -> Path:
        if kind == "sd":
            blocks = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
            return tiny.sd(tmp_path_factory.mktemp("sd"), **blocks)
        return tiny.sdxl(tmp_path_factory.mktemp("sdxl"))

    return write


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pair(checkpoint):
    """The same pipeline from both libraries."""

    def load(kind: str) -> tuple[Any, Any]:
        known = {"requires_safety_checker": False} if kind == "sd" else {"add_watermarker": False}
        return tuple(quiet(getattr(lib, KINDS[kind]).from_pretrained(checkpoint(kind), **known)) for lib in (diffusers, darkroom))

    return load


@pytest.fixture
def ours(pair):
    return pair("sd")[1]


def trained(network: Any, seed: int, targets: list[str], rank: int, **options: Any) -> dict[str, Tensor]:
    """The tensors of an adapter, as PEFT names them, on layers of a network; the network is left with it."""
    config = {"r": rank, "lora_alpha": options.pop("alpha", rank), "target_modules": targets, **options}
    torch.manual_seed(seed)
    network.add_adapter(LoraConfig(**config))
    for name, tensor in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.25)
        elif "magnitude" in name:
            tensor.data *= torch.rand_like(tensor) + 0.5
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(network).items()}


@pytest.fixture(scope="session")
def layers(checkpoint):
    """The tensors of an adapter by component, each trained once."""

    @cache
    def make(
        kind: str, seed: int = 1, targets: tuple[str, ...] = tuple(ATTENTION), text: bool = True, rank: int = 4, **options: Any
    ) -> Any:
        known = {"requires_safety_checker": False} if kind == "sd" else {}
        pipe = getattr(diffusers, KINDS[kind]).from_pretrained(checkpoint(kind), **known)
        found = {"unet": trained(pipe.unet, seed, list(targets), rank, **options)}
        for name in ("text_encoder", "text_encoder_2") if text else ():
            if getattr(pipe, name, None) is not None:
                found[name] = trained(getattr(pipe, name), seed + 10, TEXT[:4], rank)
        return found

    return make


def flat(found: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{component}.{key}": tensor for component, own in found.items() for key, tensor in own.items()}


def kohya(found: dict[str, dict[str, Tensor]], alpha: float) -> dict[str, Tensor]:
    """The same tensors as kohya's trainer names them."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if "text_encoder_2" in found else "lora_te", "text_encoder_2": "lora_te2"}
    state: dict[str, Tensor] = {}
    for component, own in found.items():
        level = "text_model_" if component != "unet" else ""
        for key, tensor in own.items():
            layer, _, tail = key.rpartition(".lora_")
            name = f"{prefixes[component]}_{level}{layer.removeprefix('text_model.').replace('.', '_')}"
            state[f"{name}.lora_{'down' if tail.startswith('A') else 'up'}.weight"] = tensor
            state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def old(found: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The same tensors as older versions of diffusers name them."""
    state = {}
    for component, own in found.items():
        for key, tensor in own.items():
            layer, _, tail = key.rpartition(".lora_")
            way = "down" if tail.startswith("A") else "up"
            if component == "unet":
                block, _, leaf = layer.removesuffix(".0").rpartition(".")
                state[f"unet.{block}.processor.{leaf}_lora.{way}.weight"] = tensor
            else:
                state[f"{component}.text_model.{layer.removeprefix('text_model.')}.lora_linear_layer.{way}.weight"] = tensor
    return state


FORMATS = {
    "PEFT": lambda found: (flat(found), {}),
    "PEFT, with alpha in the metadata": lambda found: (flat(found), {"lora_adapter_metadata": json.dumps(notes(found))}),
    "kohya": lambda found: (kohya(found, 4.0), {}),
    "kohya, with another alpha": lambda found: (kohya(found, 1.5), {}),
    "older diffusers": lambda found: (old(found), {}),
}


def notes(found: dict[str, Any]) -> dict[str, Any]:
    own = {"r": 4, "lora_alpha": 10, "target_modules": ATTENTION, "peft_type": "LORA"}
    return {f"{part}.{k}": TEXT[:4] if part != "unet" and k == "target_modules" else v for part in found for k, v in own.items()}


def write(folder: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    state = {k: t.contiguous() for k, t in state.items()}
    safetensors.torch.save_file(state, folder / "pytorch_lora_weights.safetensors", {"format": "pt", **(metadata or {})})
    return folder


def run(pipe: Any, seed: int = 0, **call: Any) -> np.ndarray:
    call = {"prompt": "the cat and the dog", "num_inference_steps": 2, "output_type": "np", **call}
    return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(seed)).images)


def same(pipes: tuple[Any, Any], **call: Any) -> np.ndarray:
    theirs, ours = (run(pipe, **call) for pipe in pipes)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)
    return ours


def both(pipes: tuple[Any, Any], method: str, *args: Any, **options: Any) -> None:
    for pipe in pipes:
        getattr(pipe, method)(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_formats(pair, layers, tmp_path, kind, name):
    found = layers(kind)
    folder = write(tmp_path, *FORMATS[name](found))
    pipes = pair(kind)
    plain = run(pipes[1])
    both(pipes, "load_lora_weights", str(folder))
    whole = same(pipes)
    half = same(pipes, cross_attention_kwargs={"scale": 0.5})
    assert abs(whole - plain).max() > 0.02 and abs(half - whole).max() > 0.01
    np.testing.assert_array_equal(run(pipes[1], cross_attention_kwargs={"scale": 0.0}), plain)
    pipes[1].unload_lora_weights()
    np.testing.assert_array_equal(run(pipes[1]), plain)


def test_names_of_original_blocks(pair, layers, tmp_path):
    """SDXL files whose layers are called as in its first program: input_blocks and so on."""
    found = {"unet": layers("xl")["unet"]}
    pipes = pair("xl")
    names = {name: theirs for theirs, name in NAMES["unet"](pipes[1].unet.state_dict()).items()}
    state = {}
    for key, tensor in kohya(found, 3.0).items():
        layer, _, tail = key.removeprefix("lora_unet_").partition(".")
        theirs = next(t for n, t in names.items() if n.removesuffix(".weight").replace(".", "_") == layer)
        state[f"lora_unet_{theirs.removesuffix('.weight').replace('.', '_')}.{tail}"] = tensor
    assert any("input_blocks" in key for key in state) and any("output_blocks" in key for key in state)
    both(pipes, "load_lora_weights", str(write(tmp_path, state)))
    same(pipes)


def test_the_line_that_counts(pair, layers, tmp_path, capsys):
    _, pipe = pair("xl")
    folder = write(tmp_path, flat(layers("xl")))
    done = pipe.load_lora_weights(folder)
    counts = {name: len(own) for name, own in layers("xl").items()}
    line = ", ".join(f"{n} of {n}{' tensors' if name == 'unet' else ''} to {name}" for name, n in counts.items())
    assert str(done) == f"applied {line}, ignored 0" and done.adapter_name == "default_0"
    assert capsys.readouterr().out == ""
    pipe.set_progress_bar_config()
    pipe.load_lora_weights(folder)
    assert capsys.readouterr().out == f"{done}\n"
    assert pipe.get_list_adapters() == {name: ["default_0", "default_1"] for name in counts}
    assert pipe.get_active_adapters() == ["default_1"]


WEIGHTS: dict[str, Any] = {
    "none": None,
    "a number": 0.3,
    "one each": [0.3, -0.6],
    "by component": {"unet": 0.4, "text_encoder": 1.5},
    "one component": {"text_encoder": 0.0},
    "by block": {"unet": {"down": 0.9, "mid": 0.2, "up": {"block_0": 0.6, "block_1": [0.4, 0.8]}}},
    "some blocks": [{"unet": {"down": {"block_1": 0.1}}}, 0.5],
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_two_adapters(pair, layers, tmp_path, weights):
    pipes = pair("sd")
    first, second = write(tmp_path / "a", flat(layers("sd"))), write(tmp_path / "b", kohya(layers("sd", seed=2, rank=2, text=False), 3.0))
    both(pipes, "load_lora_weights", str(first), adapter_name="a")
    same(pipes)
    both(pipes, "load_lora_weights", str(second), adapter_name="b")
    same(pipes)
    pipes[1].set_adapters(["a", "b"], weights)
    # the reference uses up a dictionary with the first adapter, and gives the others 1
    pipes[0].set_adapters(["a", "b"], [weights, copy.deepcopy(weights)] if isinstance(weights, dict) else weights)
    a = same(pipes)
    assert pipes[1].get_active_adapters() == ["a", "b"]
    assert pipes[1].get_list_adapters() == pipes[0].get_list_adapters() == {"unet": ["a", "b"], "text_encoder": ["a"]}
    both(pipes, "set_adapters", "b")
    assert abs(same(pipes) - a).max() > 0.01
    both(pipes, "delete_adapters", "b")
    assert pipes[1].get_active_adapters() == pipes[0].get_active_adapters() == ["a"]
    same(pipes)


def test_weights_of_every_kind_of_layer(pair, layers, tmp_path):
    """Convolutions, feed-forward networks and embeddings too; those beside attention take the weight of the block's attention."""
    pipes = pair("sd")
    targets = tuple(t for t in EVERYTHING if t not in ("conv_in", "conv_out", "linear_1"))  # which the reference cannot weigh by block
    folder = write(tmp_path, flat(layers("sd", seed=3, targets=targets, text=False)))
    both(pipes, "load_lora_weights", str(folder), adapter_name="a")
    same(pipes)
    both(pipes, "set_adapters", "a", {"unet": {"down": {"block_0": 0.2, "block_1": [0.7]}, "mid": [0.5], "up": [0.3, 0.9]}})
    same(pipes)
    both(pipes, "fuse_lora", components=["unet"])
    same(pipes)


@pytest.mark.parametrize("options", [{}, {"lora_bias": True}, {"use_dora": True}, {"use_rslora": True, "alpha": 3}], ids=str)
def test_kinds_of_lora(pair, layers, tmp_path, options):
    pipes = pair("sd")
    found = layers("sd", seed=4, targets=tuple(EVERYTHING), text=False, **options)
    config = {
        "r": 4,
        "lora_alpha": options.get("alpha", 4),
        "target_modules": EVERYTHING,
        **{k: v for k, v in options.items() if k != "alpha"},
    }
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()})}
    folder = write(tmp_path, flat(found), metadata)
    plain = run(pipes[1])
    both(pipes, "load_lora_weights", str(folder), adapter_name="a")
    assert abs(same(pipes) - plain).max() > 0.02
    both(pipes, "set_adapters", "a", 0.5)
    same(pipes)
    if "lora_bias" not in options:  # the reference cannot fuse it into layers without a bias
        both(pipes, "fuse_lora", components=["unet"])
        same(pipes)


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionPAGPipeline"])
def test_other_tasks_and_guidance(checkpoint, layers, tmp_path, name):
    pipes = tuple(
        quiet(getattr(lib, name).from_pretrained(checkpoint("sd"), requires_safety_checker=False)) for lib in (diffusers, darkroom)
    )
    both(pipes, "load_lora_weights", str(write(tmp_path, flat(layers("sd")))))
    picture = {"image": torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32), "num_inference_steps": 4} if "Img2Img" in name else {}
    same(pipes, cross_attention_kwargs={"scale": 0.7}, **picture)


# ---- fused


def test_fusing(pair, layers, tmp_path):
    pipes = pair("sd")
    plain = run(pipes[1])
    before = dict(pipes[1].unet.named_parameters())
    both(pipes, "load_lora_weights", str(write(tmp_path / "a", flat(layers("sd")))), adapter_name="a")
    both(pipes, "load_lora_weights", str(write(tmp_path / "b", flat(layers("sd", seed=2, text=False)))), adapter_name="b")
    both(pipes, "set_adapters", ["a", "b"], [0.5, 0.7])
    unfused = same(pipes)
    both(pipes, "fuse_lora", lora_scale=0.8)
    fused = same(pipes)
    assert abs(fused - unfused).max() > 1e-3
    assert pipes[1].fused_loras == pipes[0].fused_loras == {"a", "b"} and pipes[1].num_fused_loras == 2
    same(pipes, cross_attention_kwargs={"scale": 0.1})  # no matter any more
    pipes[1].unfuse_lora()
    assert pipes[1].num_fused_loras == 0
    after = dict(pipes[1].unet.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is p for name, p in before.items())
    np.testing.assert_array_equal(run(pipes[1]), unfused)
    pipes[1].fuse_lora()
    pipes[1].unload_lora_weights()
    np.testing.assert_allclose(run(pipes[1]), unfused, atol=TOLERANCE, rtol=0)  # what is fused stays
    assert pipes[1].fused_loras == {"a", "b"} and pipes[1].get_list_adapters() == {}
    pipes[1].unfuse_lora()
    np.testing.assert_array_equal(run(pipes[1]), plain)
    assert all(p is before[name] for name, p in pipes[1].unet.named_parameters())
    assert not any(isinstance(m, Adapted) for m in pipes[1].unet.modules())


def test_fusing_some(pair, layers, tmp_path):
    """Only one of two, and only in one component: the other goes on as it is, also where the first is fused."""
    pipe = pair("sd")[1]
    pipe.load_lora_weights(write(tmp_path / "a", flat(layers("sd"))), adapter_name="a")
    pipe.load_lora_weights(write(tmp_path / "b", flat(layers("sd", seed=2))), adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 0.7])
    unfused = run(pipe)
    pipe.fuse_lora(["unet"], adapter_names=["a"], safe_fusing=True)
    np.testing.assert_allclose(run(pipe), unfused, atol=1e-5, rtol=0)
    pipe.fuse_lora(adapter_names="b")
    np.testing.assert_allclose(run(pipe), unfused, atol=1e-5, rtol=0)
    pipe.disable_lora()
    assert pipe.num_fused_loras == 0
    pipe.unload_lora_weights()
    plain = run(pipe)
    pipe.load_lora_weights(flat(layers("sd")), adapter_name="a")
    pipe.disable_lora()
    np.testing.assert_array_equal(run(pipe), plain)
    pipe.enable_lora()
    assert abs(run(pipe) - plain).max() > 0.01


def test_fusing_refuses_what_is_not_finite(ours, layers):
    state = {key: tensor * 1e30 for key, tensor in flat(layers("sd")).items()}
    ours.load_lora_weights(state)
    weights = dict(ours.unet.named_parameters())
    with pytest.raises(InputError, match="finite"):
        ours.fuse_lora(safe_fusing=True)
    assert all(p is weights[name] for name, p in ours.unet.named_parameters()) and ours.num_fused_loras == 0


def test_disabling(pair, layers, tmp_path):
    pipes = pair("sd")
    plain = run(pipes[1])
    both(pipes, "load_lora_weights", str(write(tmp_path, flat(layers("sd")))))
    with_lora = same(pipes)
    both(pipes, "disable_lora")
    np.testing.assert_array_equal(same(pipes), plain)
    both(pipes, "enable_lora")
    np.testing.assert_array_equal(same(pipes), with_lora)


# ---- one pipeline among others


def test_pipelines_that_share_weights(ours, layers):
    """What is loaded, weighed, fused or unloaded in one leaves the other bit for bit as it is, in both directions."""
    plain = run(ours)
    child = quiet(darkroom.StableDiffusionPAGPipeline.from_pipe(ours))
    ours.load_lora_weights(flat(layers("sd")), adapter_name="a")
    with_a = run(ours)
    np.testing.assert_array_equal(run(child, pag_scale=0.0), plain)
    heir = quiet(darkroom.StableDiffusionPipeline.from_pipe(ours))
    np.testing.assert_array_equal(run(heir), with_a)
    assert heir.get_active_adapters() == ["a"]
    heir.load_lora_weights(flat(layers("sd", seed=2)), adapter_name="b")
    heir.set_adapters(["a", "b"], 0.5)
    mixed = run(heir)
    np.testing.assert_array_equal(run(ours), with_a)
    heir.fuse_lora()
    np.testing.assert_array_equal(run(ours), with_a)
    np.testing.assert_array_equal(run(child, pag_scale=0.0), plain)
    ours.unload_lora_weights()
    np.testing.assert_array_equal(run(ours), plain)
    heir.unfuse_lora()
    np.testing.assert_array_equal(run(heir), mixed)
    late = quiet(darkroom.StableDiffusionPipeline.from_pipe(heir))
    late.fuse_lora()
    fused = run(late)
    heir.delete_adapters(["a", "b"])
    np.testing.assert_array_equal(run(heir), plain)
    np.testing.assert_array_equal(run(late), fused)
    late.unfuse_lora()
    np.testing.assert_array_equal(run(late), mixed)
    np.testing.assert_array_equal(run(child, pag_scale=0.0), plain)


def storages(*pipes: Any) -> dict[int, int]:
    """Bytes of every tensor's storage that modules of these pipelines hold, adapters too, each once."""
    found: dict[int, int] = {}
    for pipe in pipes:
        for module in pipe._modules():
            tensors = [*module.parameters(), *module.buffers()]
            for _, layer in adapted_layers(module):
                tensors += [t for slot in layer._lora.slots.values() for t in slot.delta.tensors().values()]
                tensors += [p for p in layer._lora.base.values() if p is not None]
            found |= {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return found


def test_memory(ours, layers, tmp_path):
    """An adapter costs its own size, a pipeline made of one with adapters nothing, a fused one the weights that it changes."""
    before = sum(storages(ours).values())
    state = flat(layers("sd"))
    own = sum(t.nbytes for t in state.values())
    ours.load_lora_weights(write(tmp_path, state), adapter_name="a")
    assert sum(storages(ours).values()) - before == own
    child = darkroom.StableDiffusionPipeline.from_pipe(ours)
    assert storages(ours, child).keys() == storages(ours).keys()
    ours.load_lora_weights(state, adapter_name="b")
    assert sum(storages(ours, child).values()) - before <= 2 * own
    changed = sum(layer.weight.nbytes for m in ours._modules() for _, layer in adapted_layers(m))
    ours.fuse_lora()
    assert sum(storages(ours, child).values()) - before <= 2 * own + changed
    ours.unfuse_lora()
    ours.unload_lora_weights()
    assert sum(storages(ours).values()) == before


def test_threads_with_scales_of_their_own(ours, layers):
    ours.load_lora_weights(flat(layers("sd")))
    scales = [0.0, 0.25, 0.5, 1.0]
    alone = {s: run(ours, cross_attention_kwargs={"scale": s}) for s in scales}
    found: dict[float, list[np.ndarray]] = {s: [] for s in scales}

    def work(scale: float) -> None:
        for _ in range(3):
            found[scale].append(run(ours, cross_attention_kwargs={"scale": scale}))

    threads = [threading.Thread(target=work, args=(s,)) for s in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scale, pictures in found.items():
        assert len(pictures) == 3
        for picture in pictures:
            np.testing.assert_array_equal(picture, alone[scale])


def test_lora_scale_of_a_prompt(pair, layers, tmp_path):
    for kind in KINDS:
        pipes = pair(kind)
        both(pipes, "load_lora_weights", str(write(tmp_path / kind, flat(layers(kind)))))
        for scale in (0.3, None):
            call = {
                "prompt": "a cat",
                "device": "cpu",
                "num_images_per_prompt": 1,
                "do_classifier_free_guidance": True,
                "lora_scale": scale,
            }
            theirs, mine = (pipe.encode_prompt(**call) for pipe in pipes)
            for a, b in zip(theirs, mine):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_moving_and_casting(ours, layers):
    plain = dict(ours.unet.named_parameters())
    ours.load_lora_weights(flat(layers("sd")))
    wanted = run(ours)
    ours.to(torch.bfloat16)
    assert {t.dtype for _, layer in adapted_layers(ours.unet) for t in layer._lora.slots["default_0"].delta.tensors().values()} == {
        torch.bfloat16
    }
    np.testing.assert_allclose(run(ours), wanted, atol=0.2)
    ours.to(torch.float32)
    np.testing.assert_allclose(run(ours), wanted, atol=0.1)
    other = quiet(darkroom.StableDiffusionPipeline.from_pipe(ours, torch_dtype=torch.float64))
    assert run(other).shape == wanted.shape
    ours.set_lora_device(["default_0"], "cpu")
    assert all(p is plain[name] for name, p in ours.unet.named_parameters())


# ---- files written


def test_saved_files(pair, layers, tmp_path):
    """What is saved is read by the reference, and by darkroom, and gives the same picture."""
    for kind, state in {"sd": kohya(layers("sd", seed=5, rank=3), 2.0), "xl": flat(layers("xl"))}.items():
        pipes = pair(kind)
        pipes[1].load_lora_weights(state, adapter_name="mine")
        wanted = run(pipes[1])
        pipes[1].save_lora_weights(tmp_path / kind)
        pipes[0].load_lora_weights(str(tmp_path / kind))
        np.testing.assert_allclose(run(pipes[0]), wanted, atol=TOLERANCE, rtol=0)
        pipes[1].unload_lora_weights()
        pipes[1].load_lora_weights(tmp_path / kind, adapter_name="again")
        np.testing.assert_array_equal(run(pipes[1]), wanted)
        (tmp_path / kind / "notes.txt").write_text("kept")
        pipes[1].save_lora_weights(tmp_path / kind, weight_name="other.safetensors", adapter_name="again")
        assert {p.name for p in (tmp_path / kind).iterdir()} == {"pytorch_lora_weights.safetensors", "other.safetensors", "notes.txt"}


def rand(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.2


def parts_of(kind: str, layer: Any) -> dict[str, Tensor]:
    (out, wide, *kernel), flat = layer.weight.shape, layer.weight[0].numel()
    ones = [1] * len(kernel)
    if kind == "loha":
        return {"hada_w1_a": rand(out, 2), "hada_w1_b": rand(2, flat), "hada_w2_a": rand(out, 2), "hada_w2_b": rand(2, flat)}
    if kind == "lokr":
        return {"lokr_w1": rand(4, 4), "lokr_w2_a": rand(out // 4, 2), "lokr_w2_b": rand(2, flat // 4)}
    if kind == "tucker":
        core = {"lora_mid.weight": rand(2, 2, *kernel)} if kernel else {}
        return {"lora_down.weight": rand(2, wide, *ones), "lora_up.weight": rand(out, 2, *ones), **core}
    if kind == "columns":
        pair = {"lora_down.weight": rand(2, wide, *kernel), "lora_up.weight": rand(out, 2, *ones)}
        return {**pair, "dora_scale": torch.rand(1, wide, *ones) + 0.5}
    if kind == "oft":
        return {"oft_blocks": rand(4, out // 4, out // 4)}
    return {"diff": rand(*layer.weight.shape), **({} if layer.bias is None else {"diff_b": rand(out)})}


def lycoris(network: Any, kind: str) -> dict[str, Tensor]:
    """An adapter of another kind on some layers of a UNet, as LyCORIS names its tensors."""
    torch.manual_seed(7)
    state: dict[str, Tensor] = {}
    for name, layer in network.named_modules():
        if name.endswith(("to_q", "to_k", "conv1")):
            key, alpha = f"lora_unet_{name.replace('.', '_')}", {} if kind == "diff" else {"alpha": torch.tensor(1.0)}
            state |= {f"{key}.{tail}": tensor for tail, tensor in (parts_of(kind, layer) | alpha).items()}
    return state


@pytest.mark.parametrize("kind", ["loha", "lokr", "tucker", "columns", "diff", "oft"])
def test_other_kinds(ours, tmp_path, kind):
    """They change the picture, unfused as fused, and come back from a file."""
    plain, state = run(ours), lycoris(ours.unet, kind)
    done = ours.load_lora_weights(state, adapter_name="x")
    assert done.counts["unet"] == (len(state), len(state)) and not done.ignored
    with_x = run(ours)
    assert abs(with_x - plain).max() > 0.01
    if kind != "columns":  # norms are kept at any scale, as PEFT does
        np.testing.assert_allclose(run(ours, cross_attention_kwargs={"scale": 0.0}), plain, atol=TOLERANCE if kind == "oft" else 0)
    ours.fuse_lora()
    np.testing.assert_allclose(run(ours), with_x, atol=TOLERANCE, rtol=0)
    ours.unfuse_lora()
    ours.save_lora_weights(tmp_path)
    ours.unload_lora_weights()
    ours.load_lora_weights(tmp_path)
    np.testing.assert_allclose(run(ours), with_x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("safe", [True, False])
def test_layers_saved_by_the_class(pair, layers, tmp_path, safe):
    pipes, found = pair("sd"), layers("sd")
    for pipe, name in zip(pipes, "ab"):
        options = {"unet_lora_layers": found["unet"], "text_encoder_lora_layers": found["text_encoder"], "safe_serialization": safe}
        type(pipe).save_lora_weights(str(tmp_path / name), **options)
    file = f"pytorch_lora_weights.{'safetensors' if safe else 'bin'}"
    if safe:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    pipes[1].load_lora_weights(tmp_path / "a", adapter_name="a")
    one = run(pipes[1])
    pipes[1].delete_adapters("a")
    pipes[1].load_lora_weights(tmp_path / "b", adapter_name="b")
    np.testing.assert_array_equal(run(pipes[1]), one)


def test_a_network_alone(pair, layers, tmp_path):
    pipes, found = pair("sd"), layers("sd")
    for pipe, name in zip(pipes, "ab"):
        pipe.unet.load_lora_adapter(found["unet"], prefix=None, adapter_name="x")
        pipe.unet.set_adapters("x", 0.6)
        pipe.unet.save_lora_adapter(str(tmp_path / name), adapter_name="x")
    same(pipes)
    a, b = (safetensors.torch.load_file(tmp_path / n / "pytorch_lora_weights.safetensors") for n in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    pipe = pipes[1]
    assert pipe.unet.active_adapters() == ["x"] and pipe.get_list_adapters() == {"unet": ["x"]}
    with_x = run(pipe)
    pipe.unet.fuse_lora()
    np.testing.assert_allclose(run(pipe), with_x, atol=1e-5, rtol=0)
    pipe.unet.unfuse_lora()
    pipe.unet.disable_lora()
    plain = run(pipe)
    pipe.unet.enable_lora()
    np.testing.assert_array_equal(run(pipe), with_x)
    pipe.unet.load_lora_adapter(tmp_path / "b", adapter_name="y")
    assert pipe.unet.active_adapters() == ["y"]
    pipe.unet.set_adapter(["x"])
    np.testing.assert_array_equal(run(pipe), with_x)
    pipe.unet.delete_adapters(["x", "y"])
    np.testing.assert_array_equal(run(pipe), plain)
    state, alphas = pipe.lora_state_dict(write(tmp_path / "whole", flat(found)))
    pipe.load_lora_into_unet(state, alphas, pipe.unet, adapter_name="x")
    pipe.load_lora_into_text_encoder(state, alphas, pipe.text_encoder, prefix="text_encoder", adapter_name="x")
    assert pipe.get_list_adapters() == {"unet": ["x"], "text_encoder": ["x"]}
    pipe.unet.set_adapters("x", {"mid": 0.0})
    pipe.unet.unload_lora()
    assert pipe.get_list_adapters() == {"text_encoder": ["x"]}


def test_checkpoints_are_saved_without_adapters(ours, checkpoint, layers, tmp_path):
    names = list(ours.unet.state_dict())
    ours.load_lora_weights(flat(layers("sd")))
    assert list(ours.unet.state_dict()) == names
    ours.save_pretrained(tmp_path / "saved")
    for file in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        a, b = (safetensors.torch.load_file(folder / file) for folder in (tmp_path / "saved", checkpoint("sd")))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- swapping


def test_swapping(pair, layers, tmp_path):
    pipes = pair("sd")
    both(pipes, "enable_lora_hotswap", target_rank=6)
    first = write(tmp_path / "a", flat(layers("sd", text=False)))
    second = write(tmp_path / "b", kohya(layers("sd", seed=2, rank=6, text=False), 2.0))
    both(pipes, "load_lora_weights", str(first), adapter_name="x")
    one = same(pipes)
    both(pipes, "load_lora_weights", str(second), adapter_name="x", hotswap=True)
    two = same(pipes)
    assert abs(one - two).max() > 0.01
    pipes[1].set_adapters("x", 0.5)
    pipes[0].set_adapters("x", 0.5 * 2 / 6)  # the reference still reckons with the alpha and rank of the first
    same(pipes)
    child = quiet(darkroom.StableDiffusionPipeline.from_pipe(pipes[1]))
    half = run(child)
    both(pipes, "load_lora_weights", str(first), adapter_name="x", hotswap=True)
    np.testing.assert_array_equal(run(child), half)
    pipes[1].set_adapters("x", 1.0)
    np.testing.assert_array_equal(run(pipes[1]), one)
    pipes[1].save_lora_weights(tmp_path / "c")
    assert safetensors.torch.load_file(tmp_path / "c/pytorch_lora_weights.safetensors").keys() == flat(layers("sd", text=False)).keys()


def test_swapping_without_preparation(ours, layers):
    first, second = flat(layers("sd")), kohya(layers("sd", seed=2, rank=6, text=False), 2.0)
    ours.load_lora_weights(second, adapter_name="x")
    wanted = run(ours)
    ours.unload_lora_weights()
    ours.load_lora_weights(first, adapter_name="x")
    ours.load_lora_weights(second, adapter_name="x", hotswap=True)
    np.testing.assert_array_equal(run(ours), wanted)
    with pytest.raises(InputError, match="layers"):
        ours.load_lora_weights(first, adapter_name="x", hotswap=True)
    np.testing.assert_array_equal(run(ours), wanted)
    with pytest.raises(InputError, match="No such adapter"):
        ours.load_lora_weights(first, adapter_name="y", hotswap=True)
    ours.fuse_lora()
    with pytest.raises(InputError, match="fused"):
        ours.load_lora_weights(second, adapter_name="x", hotswap=True)
    ours.unload_lora_weights()
    with pytest.raises(InputError, match="still fused"):
        ours.load_lora_weights(second, adapter_name="x")
    ours.unfuse_lora()
    ours.load_lora_weights(second, adapter_name="x")
    np.testing.assert_array_equal(run(ours), wanted)


@pytest.mark.parametrize("inplace", [True, False])
def test_swapping_compiles_nothing(ours, layers, inplace):
    """Another adapter, another weight, another scale of a call: the compiled graph stays, without a break in it."""
    counts = []

    def backend(graph: Any, _: Any) -> Any:
        counts.append(graph)
        return graph

    torch._dynamo.reset()
    states = [flat(layers("sd", text=False)), kohya(layers("sd", seed=2, rank=6, text=False), 2.0)]
    pictures = []
    for state in states:
        ours.load_lora_weights(state, adapter_name="x")
        pictures.append(run(ours))
        ours.unload_lora_weights()
    ours.enable_lora_hotswap(target_rank=8)
    ours.load_lora_weights(states[0], adapter_name="x")
    if inplace:
        ours.unet.compile(backend=backend, fullgraph=True)
    else:
        ours.unet = torch.compile(ours.unet, backend=backend, fullgraph=True)
    np.testing.assert_allclose(run(ours), pictures[0], atol=1e-5)
    made = len(counts)
    assert made
    ours.load_lora_weights(states[1], adapter_name="x", hotswap=True)
    np.testing.assert_allclose(run(ours), pictures[1], atol=1e-5)
    ours.set_adapters("x", 0.5)
    half = run(ours)
    assert len(counts) == made
    ours.set_adapters("x", 1.0)
    np.testing.assert_allclose(run(ours, cross_attention_kwargs={"scale": 0.5}), half, atol=1e-5)
    torch._dynamo.reset()


# ---- what is refused


def broken(state: dict[str, Tensor], change: Any) -> dict[str, Tensor]:
    state = dict(state)
    change(state, next(iter(state)))
    return state


def half_of_a_pair(state: dict[str, Tensor], key: str) -> None:
    del state[key]


def nan(state: dict[str, Tensor], key: str) -> None:
    state[key] = state[key] * float("nan")


def another_width(state: dict[str, Tensor], key: str) -> None:
    state[key] = state[key].repeat(1, 2)


def another_rank(state: dict[str, Tensor], key: str) -> None:
    state[key] = state[key][:2]


def another_key(state: dict[str, Tensor], key: str) -> None:
    state["unet.nothing.lora_A.weight"] = state[key]


def two_schemes(state: dict[str, Tensor], key: str) -> None:
    layer = key.removeprefix("unet.").removesuffix(".lora_A.weight").replace(".", "_")
    state[f"lora_unet_{layer}.lora_down.weight"] = torch.zeros_like(state[key])


CHANGES = [half_of_a_pair, nan, another_width, another_rank, another_key, two_schemes]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_bad_tensors_change_nothing(ours, layers, change):
    ours.load_lora_weights(flat(layers("sd", seed=2)), adapter_name="good")
    before, parts = run(ours), [type(m) for m in ours.unet.modules()]
    with pytest.raises(CheckpointError):
        ours.load_lora_weights(broken(flat(layers("sd")), change), adapter_name="bad")
    assert ours.get_list_adapters() == {"unet": ["good"], "text_encoder": ["good"]} and ours.get_active_adapters() == ["good"]
    assert [type(m) for m in ours.unet.modules()] == parts
    np.testing.assert_array_equal(run(ours), before)


owned: list[int] = []


class Payload:
    def __reduce__(self) -> Any:
        return owned.append, (1,)


def test_bad_files_change_nothing(ours, layers, tmp_path):
    before = run(ours)
    good = (write(tmp_path / "good", flat(layers("sd"))) / "pytorch_lora_weights.safetensors").read_bytes()
    files = {
        "truncated.safetensors": good[:-10],
        "empty.safetensors": b"",
        "short.safetensors": good[:100],
        "payload.bin": pickle.dumps(Payload()),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            ours.load_lora_weights(tmp_path / name)
    assert not owned
    with pytest.raises(CheckpointError):
        ours.load_lora_weights(flat(layers("xl")))  # another base model
    with pytest.raises(AdapterError) as none:
        ours.load_lora_weights({"unet.nothing.lora_A.weight": torch.ones(1, 2), "unet.nothing.lora_B.weight": torch.ones(2, 1)})
    assert "unet.nothing.lora_A.weight" in str(none.value)
    with pytest.raises(CheckpointError):
        ours.load_lora_weights(tmp_path / "nowhere")
    assert ours.get_list_adapters() == {}
    np.testing.assert_array_equal(run(ours), before)


def test_a_part_of_a_file(ours, layers):
    state = flat(layers("sd")) | {"unet.nothing.lora_A.weight": torch.ones(1, 2)}
    done = ours.load_lora_weights(state, strict=False)
    count = len(layers("sd")["unet"])
    assert str(done).startswith(f"applied {count} of {count + 1} tensors to unet") and str(done).endswith("ignored 1")
    assert list(done.ignored) == ["unet.nothing.lora_A.weight"]


@pytest.mark.parametrize("moment", range(0, 60, 7))
def test_an_interrupt_changes_nothing(ours, layers, monkeypatch, moment):
    """Whenever it comes while layers are being changed."""
    from darkroom.runtime import lora

    ours.load_lora_weights(flat(layers("sd", seed=2)), adapter_name="good")
    before, state = run(ours), flat(layers("sd", seed=1, targets=tuple(EVERYTHING)))
    put, calls = lora._put, iter(range(1000))

    def interrupted(*args: Any) -> None:
        put(*args)
        if next(calls) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(lora, "_put", interrupted)
    for work in (lambda: ours.load_lora_weights(state, adapter_name="bad"), lambda: ours.unload_lora_weights()):
        calls = iter(range(1000))
        with pytest.raises(KeyboardInterrupt):
            work()
        assert ours.get_list_adapters() == {"unet": ["good"], "text_encoder": ["good"]}
        np.testing.assert_array_equal(run(ours), before)


ARGUMENTS = {
    "unknown name": lambda p: p.set_adapters("b"),
    "number of weights": lambda p: p.set_adapters("a", [1.0, 2.0]),
    "no number": lambda p: p.set_adapters("a", "much"),
    "not finite": lambda p: p.set_adapters("a", float("nan")),
    "scale of a call": lambda p: run(p, cross_attention_kwargs={"scale": "much"}),
    "unknown component": lambda p: p.set_adapters("a", {"vae": 1.0}),
    "unknown part": lambda p: p.set_adapters("a", {"unet": {"side": 1.0}}),
    "unknown block": lambda p: p.set_adapters("a", {"unet": {"down": {"block_7": 1.0}}}),
    "length of a block": lambda p: p.set_adapters("a", {"unet": {"up": [1.0, 1.0, 1.0]}}),
    "length of the middle": lambda p: p.set_adapters("a", {"unet": {"mid": [1.0, 1.0]}}),
    "blocks of an encoder": lambda p: p.set_adapters("a", {"text_encoder": {"down": 1.0}}),
    "name taken": lambda p: p.load_lora_weights({"x": torch.ones(1)}, adapter_name="a"),
    "name with a dot": lambda p: p.load_lora_weights({"x": torch.ones(1)}, adapter_name="a.b"),
    "fuse what is not there": lambda p: p.fuse_lora(adapter_names=["b"]),
    "fuse another component": lambda p: p.fuse_lora(["vae"]),
    "fuse no component": lambda p: p.fuse_lora([]),
    "fuse by no number": lambda p: p.fuse_lora(lora_scale="x"),
    "delete what is not there": lambda p: p.delete_adapters("b"),
    "prepare late": lambda p: p.enable_lora_hotswap(8),
    "prepare oddly": lambda p: p.enable_lora_hotswap(8, check_compiled="maybe"),
    "no rank": lambda p: p.enable_lora_hotswap(0, check_compiled="ignore"),
    "save nothing": lambda p: type(p).save_lora_weights("nowhere"),
    "save what is not there": lambda p: p.save_lora_weights("nowhere", adapter_name="b"),
    "device of what is not there": lambda p: p.set_lora_device(["b"], "cpu"),
}


@pytest.fixture(scope="module")
def loaded(checkpoint, layers):
    pipe = quiet(darkroom.StableDiffusionPipeline.from_pretrained(checkpoint("sd"), requires_safety_checker=False))
    pipe.load_lora_weights(flat(layers("sd")), adapter_name="a")
    return pipe, run(pipe)


@pytest.mark.parametrize("work", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_are_refused(loaded, work):
    pipe, before = loaded
    with pytest.raises(InputError):
        work(pipe)
    assert pipe.get_active_adapters() == ["a"]
    np.testing.assert_array_equal(run(pipe), before)
