"""model_index.json, classes, networks and components out of folders, and the hub."""

from __future__ import annotations
import http.server
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
import pytest
import torch
from checkpoints.toy import Toy, download_pipeline, pipeline_files, same, toy
from darkroom import _public
from darkroom.checkpoints import hub, models
from darkroom.checkpoints.hub import locate
from darkroom.checkpoints.index import ModelIndex, component_class, library_of, quiet_transformers
from darkroom.checkpoints.models import load_model
from darkroom.errors import CheckpointError, ConfigError, InputError
from darkroom.models.auto import AutoModel

X = "diffusion_pytorch_model"


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy network among darkroom's own."""
    monkeypatch.setitem(_public.NAMES, "Toy", "models.toy")
    monkeypatch.setitem(sys.modules, "darkroom.models.toy", sys.modules[Toy.__module__])


def load_component(name: str, library: str, class_name: str, folder: Path, **options: object):
    return models.load_component(name, component_class(name, library, class_name), folder / name, **options)


def clip(folder: Path, seed: int = 0, **options: object):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
        "max_position_embeddings": 8,
    }
    model = CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1))
    with quiet_transformers():
        model.save_pretrained(folder, **options)
    return model


# ---- model_index.json


def test_index(tmp_path: Path) -> None:
    content = {
        "_class_name": "P", "_diffusers_version": "0.1", "unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": [None, None],
        "requires_safety_checker": False, "sizes": [0.5, 1], "boundary": None, "_ignore_files": ["x"],
    }  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    index = ModelIndex.read(tmp_path)
    assert index.class_name == "P" and index.components == {"unet": ("diffusers", "UNet2DConditionModel"), "safety_checker": None}
    assert index.options == {"requires_safety_checker": False, "sizes": [0.5, 1], "boundary": None}


@pytest.mark.parametrize("name", ["__init__", "__class__", "../unet", "a/b", "", "a b", "1", "é"])
def test_component_names(name: str) -> None:
    with pytest.raises(CheckpointError, match="name"):
        ModelIndex.parse({"_class_name": "P", name: ["diffusers", "UNet2DModel"]})


def test_bad_index(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        ModelIndex.parse({"unet": ["diffusers", None]})
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        ModelIndex.read(tmp_path)


# ---- classes


def test_classes_of_transformers() -> None:
    import transformers

    with quiet_transformers():
        assert component_class("t", "transformers", "CLIPTextModel") is transformers.CLIPTextModel
        assert component_class("t", "transformers", "CLIPTokenizer") is transformers.CLIPTokenizer
        assert component_class("f", "transformers", "CLIPFeatureExtractor") is transformers.CLIPImageProcessor
        assert library_of(transformers.CLIPImageProcessor) == ("transformers", "CLIPImageProcessor")
    assert library_of(transformers.CLIPTextModel) == ("transformers", "CLIPTextModel")


def test_own_classes() -> None:
    from darkroom.models.safety_checker import StableDiffusionSafetyChecker
    from darkroom.schedulers.ddim import DDIMScheduler

    for library in ("diffusers", "darkroom"):
        assert component_class("s", library, "DDIMScheduler") is DDIMScheduler
    assert component_class("s", "diffusers", "FlashPackDDIMScheduler") is DDIMScheduler
    assert component_class("s", "stable_diffusion", "StableDiffusionSafetyChecker") is StableDiffusionSafetyChecker
    assert library_of(StableDiffusionSafetyChecker) == ("stable_diffusion", "StableDiffusionSafetyChecker")
    assert library_of(DDIMScheduler) == ("diffusers", "DDIMScheduler")
    assert component_class("u", *library_of(Toy)) is Toy and library_of(Toy) == (
        Toy.__module__,
        "Toy",
    )  # of a module that was imported before


PAIRS = [
    ("os", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("torch", "load"), ("torch.nn", "Linear"), ("transformers", "pipeline"),
    ("transformers", "AutoModel"), ("transformers", "__loader__"), ("transformers", "no_such"), ("transformers", "utils"),
    ("diffusers", "Nothing"),
    ("antigravity", "x"), ("this", "Toy"), ("stable_diffusion", "Popen"),
    ("unet.evil", "Toy"), ("diffusers.models", "UNet2DModel"), ("darkroom", "load_image"),
    ("pathlib", "Path"), ("collections", "OrderedDict"),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_unknown_pairs(pair: tuple[str, str]) -> None:
    with pytest.raises(CheckpointError, match="unet"):
        component_class("unet", *pair)


def test_refusals_import_nothing() -> None:
    code = f"""
import sys
import darkroom.checkpoints.index as index
from darkroom.errors import CheckpointError
import darkroom._public
seen = []
sys.addaudithook(lambda event, args: seen.append(args[0]) if event == "import" else None)
for pair in {[p for p in PAIRS if p[0] not in ("transformers",) and p != ("darkroom", "load_image")]}:
    try:
        index.component_class("unet", *pair)
    except CheckpointError:
        continue
    raise SystemExit(f"accepted {{pair}}")
own = [name for name in seen if not name.startswith(("transformers", "darkroom"))]
assert not set(own) & {{p.split(".")[0] for p, _ in {PAIRS}}} - set("torch os collections pathlib".split()), own
assert "transformers" not in sys.modules and "antigravity" not in sys.modules and "this" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=_environment())
    assert done.returncode == 0, done.stderr[-1500:]


def _environment() -> dict[str, str]:
    import os

    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root / "tests")]), "OMP_NUM_THREADS": "1"}


# ---- networks


def test_model_from_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = toy()
    source.half().save_pretrained(tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**config, "strange": [1], "odd": 2}))
    model = Toy.from_pretrained(tmp_path, subfolder="unet")
    assert model.dtype == torch.float32 and torch.equal(model.norm.bias, source.norm.bias.float())
    assert [r.getMessage().rsplit(": ")[-1] for r in caplog.records] == ["odd, strange"]
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["strange"] == [1]
    half = Toy.from_pretrained(tmp_path / "unet", torch_dtype=torch.bfloat16, low_cpu_mem_usage=True)
    assert half.blocks[0].weight.dtype == torch.bfloat16 and half.norm.weight.dtype == torch.float32
    with pytest.raises(CheckpointError, match="shape"):
        Toy.from_pretrained(tmp_path / "unet", width=16)
    with pytest.raises(ConfigError, match="widht"):
        Toy.from_pretrained(tmp_path / "unet", widht=16)
    with pytest.raises(InputError, match="dtype"):
        Toy.from_pretrained(tmp_path / "unet", dtype="float16")


def test_bad_folders(tmp_path: Path) -> None:
    def refused(says: str, **options: object) -> None:
        with pytest.raises(CheckpointError, match=says) as error:
            Toy.from_pretrained(folder, **options)
        assert str(folder) in str(error.value) and len(str(error.value)) < 2000

    folder = tmp_path / "none"
    refused("Neither an existing folder nor a valid hub id")
    folder = tmp_path / "m"
    folder.mkdir()
    refused(r"config\.json")
    with pytest.raises(CheckpointError, match="subfolder"):
        Toy.from_pretrained(tmp_path, subfolder="unet")
    with pytest.raises(CheckpointError):
        Toy.from_pretrained(tmp_path, subfolder="../..")
    toy().save_pretrained(folder)
    refused_variant = pytest.raises(CheckpointError, match="leave variant out")
    with refused_variant:
        Toy.from_pretrained(folder, variant="fp16")
    weights, config = folder / f"{X}.safetensors", folder / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    refused("wrong length")
    weights.write_bytes(b"\0" * 5)
    refused("safetensors")
    weights.write_bytes(content)
    config.write_text('{"layers": "many"}')
    refused("does not describe")
    config.write_text(f'{{"width": {2**62}}}')
    refused("config|shape")
    config.write_text('{"width": 16}')
    refused("shape")
    config.write_text('{"architectures": ["CLIPTextModel"]}')
    refused("transformers")
    weights.unlink()
    config.write_text("{}")
    with pytest.raises(CheckpointError, match="no weights"):
        Toy.from_pretrained(folder)


def test_config_is_kept_from_taking_memory(tmp_path: Path) -> None:
    import tracemalloc

    toy().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"width": 100000}')  # 40 GB a layer
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="shape"):
        load_model(Toy, tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_auto_model(tmp_path: Path, public: None, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    toy().save_pretrained(tmp_path / "p" / "unet")
    text = clip(tmp_path / "text")
    assert same(AutoModel.from_pretrained(tmp_path / "p", subfolder="unet"), toy())
    loaded = AutoModel.from_pretrained(tmp_path / "text", torch_dtype=torch.float16)
    assert type(loaded) is type(text) and loaded.dtype == torch.float16
    for content in ("{}", '{"_class_name": "Popen"}', '{"architectures": ["pipeline"]}', '{"architectures": [1]}'):
        (tmp_path / "text" / "config.json").write_text(content)
        with pytest.raises(CheckpointError):
            AutoModel.from_pretrained(tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        AutoModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="variant"):
        AutoModel.from_pretrained(tmp_path / "p" / "unet", variant="fp16")


# ---- components


def test_transformers_components(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture) -> None:
    model = clip(tmp_path / "text_encoder")
    clip(tmp_path / "text_encoder", 1, variant="fp16", max_shard_size=1000)
    capfd.readouterr()
    loaded = load_component("text_encoder", "transformers", "CLIPTextModel", tmp_path)
    assert same(model, loaded) and not loaded.training
    assert not same(model, load_component("text_encoder", "transformers", "CLIPTextModel", tmp_path, variant="fp16"))
    assert same(model, load_component("text_encoder", "transformers", "CLIPTextModel", tmp_path, variant="bf16"))  # falls back
    assert load_component("text_encoder", "transformers", "CLIPTextModel", tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    out, err = capfd.readouterr()
    assert out == "" and err == "" and not caplog.records


def test_side_by_side(tmp_path: Path, public: None) -> None:
    """transformers changes settings of the whole process while it builds; nothing of that may leak, whatever runs beside it."""
    from concurrent.futures import ThreadPoolExecutor

    models = {"a": clip(tmp_path / "a", 1), "b": clip(tmp_path / "b", 2)}
    toy(layers=20).save_pretrained(tmp_path / "c")
    init = torch.nn.init.kaiming_uniform_

    def load(name: str) -> object:
        library, cls = ("diffusers", "Toy") if name == "c" else ("transformers", "CLIPTextModel")
        return load_component(name, library, cls, tmp_path, dtype=torch.float16)

    with ThreadPoolExecutor(4) as pool:
        for name, loaded in zip("abc" * 8, pool.map(load, "abc" * 8)):
            assert loaded.dtype == torch.float16
            if name == "c":
                assert loaded.table.dtype == torch.float32
            else:
                assert same(models[name].half(), loaded)
    assert torch.get_default_dtype() == torch.float32 and torch.nn.init.kaiming_uniform_ is init


@pytest.mark.parametrize("name", ["T5EncoderModel", "CLIPTextModelWithProjection", "StableDiffusionSafetyChecker"])
def test_text_encoders_are_whole(tmp_path: Path, name: str) -> None:
    import transformers

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 4}
    if name == "T5EncoderModel":
        config = transformers.T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
        cls = transformers.T5EncoderModel
    elif name == "CLIPTextModelWithProjection":
        config, cls = transformers.CLIPTextConfig(**sizes, vocab_size=32), transformers.CLIPTextModelWithProjection
    else:
        text = {**sizes, "vocab_size": 32}
        config = transformers.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=4)
        cls = component_class("c", "stable_diffusion", name)
    with quiet_transformers():
        model = cls(config)
        model.save_pretrained(tmp_path / "c")
    library = "stable_diffusion" if name.startswith("Stable") else "transformers"
    assert same(model, load_component("c", library, name, tmp_path))


def _small(name: str):
    """A network of transformers with random weights, and what it is called with."""
    import transformers as tf

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    image = {"image_size": 8, "patch_size": 4}
    configs = {
        "CLIPTextModel": lambda: tf.CLIPTextConfig(**sizes, **ids),
        "CLIPVisionModelWithProjection": lambda: tf.CLIPVisionConfig(**sizes, **image),
        "SiglipVisionModel": lambda: tf.SiglipVisionConfig(**sizes, **image),
        "T5EncoderModel": lambda: tf.T5Config(
            d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32, feed_forward_proj="gated-gelu"
        ),
        "Qwen2ForCausalLM": lambda: tf.Qwen2Config(**sizes, **ids, num_key_value_heads=1, tie_word_embeddings=True),
        "GPT2LMHeadModel": lambda: tf.GPT2Config(n_embd=8, n_layer=1, n_head=2, **ids),
        "BertModel": lambda: tf.BertConfig(**sizes, **ids),
    }
    torch.manual_seed(3)
    model = getattr(tf, name)(configs[name]()).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model, torch.rand(1, 3, 8, 8) if "Vision" in name else torch.tensor([[0, 5, 7, 1]])


NETWORKS = [
    "CLIPTextModel",
    "CLIPVisionModelWithProjection",
    "SiglipVisionModel",
    "T5EncoderModel",
    "Qwen2ForCausalLM",
    "GPT2LMHeadModel",
    "BertModel",
]


@pytest.mark.parametrize("dtype", [None, "auto", torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_transformers_are_what_it_would_load(tmp_path: Path, name: str, dtype: object) -> None:
    model, x = _small(name)
    with quiet_transformers():
        model.half().save_pretrained(tmp_path / "part")
        theirs = type(model).from_pretrained(tmp_path / "part", dtype=dtype)
    ours = load_component("part", "transformers", name, tmp_path, dtype=dtype)
    assert ours.dtype == theirs.dtype and ours.config.dtype == theirs.config.dtype and not ours.training
    found, wanted = ({**dict(m.named_buffers()), **m.state_dict()} for m in (ours, theirs))
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
    ties = [len({id(p) for p in m.state_dict(keep_vars=True).values()}) for m in (ours, theirs)]
    assert ties[0] == ties[1]
    x = x.to(ours.dtype) if x.is_floating_point() else x
    with torch.no_grad():
        a, b = ours(x, output_hidden_states=True), theirs(x, output_hidden_states=True)
    assert torch.equal(a[0], b[0]) and all(map(torch.equal, a.hidden_states, b.hidden_states))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_transformers_stay_mapped(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose tensors are in the files as they are take the way of darkroom's own, and are built once."""
    model, _ = _small(name)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "part")
    monkeypatch.setattr(type(model), "from_pretrained", None)
    done: list[int] = []
    ours = load_component("part", "transformers", name, tmp_path, progress=done.append)
    assert same(ours, model) and sum(done) == sum(p.nbytes for p in {id(p): p for p in ours.parameters()}.values())


def test_broken_components_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def refused(says: str, library: str = "transformers", cls: str = "CLIPTextModel") -> None:
        with pytest.raises(CheckpointError, match=says) as error:
            load_component("text_encoder", library, cls, tmp_path)
        assert "text_encoder" in str(error.value) and len(str(error.value)) < 2000

    folder = tmp_path / "text_encoder"
    clip(folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(k for k in tensors if k.endswith("q_proj.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, weights, metadata={"format": "pt"})
    refused("1 tensors are not in")
    save_file({**tensors, name: torch.zeros(4, 4)}, weights, metadata={"format": "pt"})
    refused("another shape")
    save_file(tensors, weights, metadata={"format": "pt"})
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    refused("model.safetensors")
    weights.unlink()
    refused("no weights")
    refused("merges.txt, vocab.json", cls="CLIPTokenizer")
    (folder / "vocab.json").write_text('{"<|startoftext|>": 0, "<|endoftext|>": 1}')
    refused("merges.txt", cls="CLIPTokenizer")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    assert len(load_component("text_encoder", "transformers", "CLIPTokenizer", tmp_path)) == 2
    refused("scheduler_config", library="diffusers", cls="DDIMScheduler")
    refused("config", library="diffusers", cls="UNet2DConditionModel")
    (folder / "config.json").write_text("{")
    refused("text_encoder")


def test_a_pipeline_is_no_component(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "StableDiffusionPipeline"]}'
    )
    with pytest.raises(CheckpointError, match="unet"):
        load_component("unet", "diffusers", "StableDiffusionPipeline", tmp_path)


def test_quiet_restores() -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    with quiet_transformers(), quiet_transformers():
        assert theirs.get_verbosity() == logging.ERROR and not theirs.is_progress_bar_enabled()
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


# ---- the hub

INDEX = {
    "_class_name": "P",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text": ["transformers", "CLIPTextModel"],
    "tok": ["transformers", "CLIPTokenizer"],
    "gone": [None, None],
}
REPO = [
    "README.md", "model_index.json", ".gitattributes", "v1.safetensors", "v1.ckpt", "image.png", "unet/config.json", f"unet/{X}.safetensors",
    f"unet/{X}.fp16.safetensors", f"unet/{X}.bin", "text/config.json", "text/model.safetensors", "text/pytorch_model.bin", "text/flax_model.msgpack",
    "tok/vocab.json", "tok/merges.txt", "gone/model.safetensors", "gone/config.json",
]  # fmt: skip


def test_files_of_a_pipeline() -> None:
    index = [name for name, entry in ModelIndex.parse(INDEX).components.items() if entry]
    always = {"README.md", "model_index.json", "tok/vocab.json", "tok/merges.txt"}
    assert set(pipeline_files(REPO, index)) == always | {
        "unet/config.json",
        f"unet/{X}.safetensors",
        "text/config.json",
        "text/model.safetensors",
    }
    chosen = set(pipeline_files(REPO, ["unet", "tok"], variant="fp16"))
    assert chosen == always | {"unet/config.json", f"unet/{X}.fp16.safetensors"}
    assert f"unet/{X}.bin" in pipeline_files(REPO, index, use_safetensors=False)
    with pytest.raises(CheckpointError, match="fp16"):
        pipeline_files(REPO, index, variant="bf16")
    assert set(pipeline_files(["config.json", "model.safetensors", "x.ckpt", "model_index.json"], ["text"])) == {
        "config.json",
        "model.safetensors",
        "model_index.json",
    }


@pytest.mark.parametrize("name", ["a/b/c", "./x", "../x", "a//b", "-a", "a--b", "a/b..c", "x" * 200, "", "a b", "http://x/y", "a/"])
def test_no_hub_id(name: str) -> None:
    if name:
        with pytest.raises(CheckpointError, match="Neither"):
            locate(name, files=[])
    with pytest.raises(CheckpointError, match="Neither"):
        locate(Path("surely") / "no-folder", files=[])


class Hub(http.server.BaseHTTPRequestHandler):
    """Just enough of the hub's API for one repository."""

    commit, files, log = "a" * 40, {}, []

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.commit, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.log.append((self.command, path, self.headers.get("Authorization")))
        if path.startswith("/api/models/org/repo/tree/"):
            tree = [{"type": "file", "path": n, "size": len(b), "oid": f"{hash(n) & 0xFFFF:040x}"} for n, b in self.files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith("/api/models/org/repo"):
            siblings = [{"rfilename": n} for n in self.files]
            self.answer(200, json.dumps({"id": "org/repo", "sha": self.commit, "siblings": siblings}).encode())
        elif path.startswith("/org/repo/resolve/") and path.split("/", 5)[5] in self.files:
            body = self.files[path.split("/", 5)[5]]
            self.answer(200, body, ETag=f'"{hash(body) & 0xFFFFFFFF:040x}"')
        else:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


CLIENT = """
import sys, json
from pathlib import Path
from darkroom.checkpoints.hub import locate, fetch_pipeline
from darkroom.checkpoints.plan import component_files
from darkroom.errors import CheckpointError
assert "torch" not in sys.modules
def files(root): return sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*") if p.is_file())
out = []
for call in json.loads(sys.argv[1]):
    name, args, options = call
    if options.pop("choose", False):
        options |= {"files": ["config.json"], "choose": lambda names, folder: component_files(names)}
    try:
        if name == "pipeline":
            options |= {"passed": options.pop("skip", ()), **options.pop("choice", {})}
        found = locate(*args, **options) if name == "locate" else fetch_pipeline(*args, **options)[0]
        out.append(files(found))
    except CheckpointError as error:
        out.append(str(error))
print(json.dumps(out))
"""


@pytest.fixture
def server():
    Hub.files, Hub.log = {n: n.encode() for n in REPO} | {"model_index.json": json.dumps(INDEX).encode()}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def client(endpoint: str, cache: Path, *calls: object) -> list:
    environment = _environment() | {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_environmentsecret",
    }
    done = subprocess.run([sys.executable, "-c", CLIENT, json.dumps(calls)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_download(tmp_path: Path, server: str) -> None:
    wanted = sorted(["README.md", "model_index.json", "tok/vocab.json", "tok/merges.txt", "unet/config.json", f"unet/{X}.fp16.safetensors"])
    token = "hf_mysecrettoken"
    got = client(
        server, tmp_path,
        ("pipeline", ["org/repo"], {"choice": {"variant": "fp16"}, "skip": ["text"], "token": token}),
        ("locate", ["org/repo"], {"subfolder": "text", "choose": True}),
        ("locate", ["org/repo"], {"subfolder": "tok", "files": ["vocab.json"], "local_files_only": True}),
        ("pipeline", ["org/none"], {"token": token}),
        ("pipeline", ["org/repo"], {"choice": {"variant": "bf16"}}),
        ("locate", ["org/repo"], {"subfolder": "nowhere", "choose": True}),
    )  # fmt: skip
    assert got[0] == wanted
    assert got[1] == ["config.json", "model.safetensors"] and got[2] == ["merges.txt", "vocab.json"]
    assert "no such repository" in got[3] and "org/none" in got[3] and "secret" not in got[3]
    assert "fp16" in got[4] and "subfolder" in got[5]
    fetched = [path for method, path, _ in Hub.log if method == "GET" and "/resolve/" in path]
    assert all(path.split("/")[4] == Hub.commit for path in fetched) and len(fetched) == len(set(fetched))
    assert not any(path.endswith((".ckpt", ".bin", "v1.safetensors", "msgpack")) for path in fetched)
    # without the hub: what is there is found, what is not is said
    dead = "http://127.0.0.1:9"
    calls = [
        ("pipeline", ["org/repo"], {"choice": {"variant": "fp16"}, "skip": ["text"], "local_files_only": local}) for local in (True, False)
    ]
    online = len(Hub.log)
    got = client(
        dead,
        tmp_path,
        *calls,
        ("locate", ["org/other"], {"choose": True, "token": token}),
        ("pipeline", ["org/repo"], {"revision": "none"}),
    )
    assert all(set(wanted) <= set(files) for files in got[:2]) and len(Hub.log) == online
    assert "could not be fetched" in got[2] and "org/other" in got[2] and "secret" not in got[2] and "none" in got[3]


def test_local_folders_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("network"))
    monkeypatch.setattr(hub, "_fetch", lambda *a, **k: pytest.fail("hub"))
    toy().save_pretrained(tmp_path / "unet")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "P", "unet": ["diffusers", "Toy"]}))
    assert download_pipeline(tmp_path) == tmp_path and locate(tmp_path, files=[], subfolder="unet") == tmp_path / "unet"
    with pytest.raises(CheckpointError, match="variant"):
        download_pipeline(tmp_path, choice={"variant": "fp16"})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="folder"):
        locate(tmp_path / "file", files=[])


def test_networks_that_the_reference_wrote(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from darkroom.models.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    options = {
        "block_out_channels": (8,),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "norm_num_groups": 2,
    }
    theirs = diffusers.AutoencoderKL(**options)
    theirs.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    ours = AutoModel.from_pretrained(tmp_path / "a")
    assert type(ours) is AutoencoderKL and same(ours, theirs)
    ours.save_pretrained(tmp_path / "b", max_shard_size="20KB", variant="x")
    assert same(diffusers.AutoencoderKL.from_pretrained(tmp_path / "b", variant="x"), theirs)
