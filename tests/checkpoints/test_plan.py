"""Which files of a pipeline: variants, formats, shards, flat repositories, code; examples, and the reference's own rules as an oracle."""

from __future__ import annotations
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
import pytest
import torch
from checkpoints.toy import pipeline_files
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from darkroom.checkpoints.index import ModelIndex
from darkroom.checkpoints.plan import (
    PipelinePlan,
    available_variants,
    component_files,
    parse_weight_name,
    pipeline_variants,
    plan,
    plan_pipeline,
)
from darkroom.errors import CheckpointError, InputError

X, T = "diffusion_pytorch_model", "model"
SAFE, BIN = f"{X}.safetensors", f"{X}.bin"
FP16, BF16 = f"{X}.fp16.safetensors", f"{X}.bf16.safetensors"
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "PNDMScheduler"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
}


def index(*names: str, class_name: object = "StableDiffusionPipeline", **more: tuple[str, str] | None) -> ModelIndex:
    return ModelIndex(class_name, {**{name: CLASSES[name] for name in names}, **more})


def shards(pattern: str, n: int) -> list[str]:
    return [pattern.format(f"{i:05d}-of-{n:05d}") for i in range(1, n + 1)]


def weights(chosen: PipelinePlan) -> set[str]:
    return {path for name in chosen.weights for path in chosen.weight_files(name)}


SD = [  # as the well-known repository has them
    "README.md", "model_index.json", ".gitattributes", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-inference.yaml", "merged.png",
    "feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json",
    "safety_checker/config.json", "safety_checker/model.safetensors", "safety_checker/pytorch_model.bin", "safety_checker/flax_model.msgpack",
    "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin", "text_encoder/model.onnx", "text_encoder/weights.pb", "text_encoder/tf_model.h5",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json",
    *(f"{c}/{n}" for c in ("unet", "vae") for n in ("config.json", SAFE, BIN, FP16, f"{X}.fp16.bin", f"{X}.msgpack", f"{X}.non_ema.bin")),
]  # fmt: skip
LIGHT = {
    "README.md", "model_index.json", "feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json",
    *(f"{c}/config.json" for c in ("unet", "vae", "text_encoder", "safety_checker")),
    *(f"tokenizer/{n}" for n in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")),
}  # fmt: skip
ALL = index(*CLASSES)


def test_the_files_of_stable_diffusion() -> None:
    plain = {f"unet/{SAFE}", f"vae/{SAFE}", "text_encoder/model.safetensors", "safety_checker/model.safetensors"}
    chosen = plan_pipeline(SD, ALL)
    assert set(chosen.files) == LIGHT | plain and list(chosen.files) == sorted(chosen.files)
    assert chosen.variants == dict.fromkeys(("unet", "vae", "text_encoder", "safety_checker")) and chosen.notes == ()
    for order in (SD[::-1], SD + SD, set(SD), iter(SD)):
        assert plan_pipeline(order, ALL) == chosen  # type: ignore[arg-type]


def test_a_folder_as_the_reference_writes_it(tiny_sd: Path) -> None:
    paths = [path.relative_to(tiny_sd).as_posix() for path in tiny_sd.rglob("*") if path.is_file()]
    chosen = plan_pipeline(paths, ModelIndex.read(tiny_sd))
    assert set(chosen.files) == set(paths) and set(chosen.weights) >= {"unet", "vae", "text_encoder"} and not chosen.flat


def test_a_variant_with_one_component_that_falls_back() -> None:
    chosen = plan_pipeline(SD, ALL, variant="fp16")
    assert weights(chosen) == {f"unet/{FP16}", f"vae/{FP16}", "text_encoder/model.fp16.safetensors", "safety_checker/model.safetensors"}
    assert chosen.variants == {"unet": "fp16", "vae": "fp16", "text_encoder": "fp16", "safety_checker": None}
    assert chosen.notes == ("variant fp16: safety_checker has none, its plain weights are used",)
    chosen = plan_pipeline(SD, ALL, variant="non_ema")
    assert {n for n in weights(chosen) if "non_ema" in n} == {f"unet/{X}.non_ema.bin", f"vae/{X}.non_ema.bin"}
    assert chosen.notes == ("variant non_ema: text_encoder, safety_checker have none, their plain weights are used",)


def test_pickles_if_they_are_asked_for() -> None:
    chosen = plan_pipeline(SD, ALL, use_safetensors=False)
    assert weights(chosen) == {f"unet/{BIN}", f"vae/{BIN}", "text_encoder/pytorch_model.bin", "safety_checker/pytorch_model.bin"}
    assert {p.format for p in chosen.weights.values()} == {"bin"}
    assert "text_encoder/pytorch_model.fp16.bin" in plan_pipeline(SD, ALL, variant="fp16", use_safetensors=False).files


@pytest.mark.parametrize("variant", ["fp1", "fp", "fp16.", "f.16", "fp.*", "(", "", "FP16", "fp16-00001-of-00001", "nonema"])
def test_a_variant_is_its_whole_name(variant: str) -> None:
    with pytest.raises(CheckpointError, match="No component comes in this variant") as error:
        plan_pipeline(SD, ALL, variant=variant)
    assert "fp16 (unet, vae, text_encoder); non_ema (unet, vae); none (leave variant out)" in str(error.value)


def test_the_reference_takes_a_variant_by_its_beginning(tmp_path: Path) -> None:
    utils = pytest.importorskip("diffusers.pipelines.pipeline_loading_utils")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / FP16).touch()
    assert utils._identify_model_variants(tmp_path, "fp1", {"unet": ["diffusers", "U"]}) == {"unet": "fp1"}
    assert utils.variant_compatible_siblings({f"unet/{FP16}"}, variant="f.16")[0] == {f"unet/{FP16}"}  # and as an expression


def test_both_spellings_of_non_ema() -> None:
    for written, asked in itertools.product(("non_ema", "non-ema"), repeat=2):
        paths = [f"unet/{X}.{written}.safetensors", f"unet/{SAFE}", f"vae/{SAFE}"]
        chosen = plan_pipeline(paths, index("unet", "vae"), variant=asked)
        assert chosen.variants == {"unet": written, "vae": None}, (written, asked)
    both = [f"{X}.non_ema.safetensors", f"{X}.non-ema.safetensors"]
    assert [plan(both, variant=v).files for v in ("non_ema", "non-ema")] == [both[:1], both[1:]]


def test_variants_that_exist() -> None:
    assert pipeline_variants(SD, ALL) == {"fp16": ["unet", "vae", "text_encoder"], "non_ema": ["unet", "vae"]}
    assert pipeline_variants(["unet/config.json"], ALL) == {}
    assert pipeline_variants([FP16, f"{X}.safetensors.index.bf16.json"], index("unet")) == {
        "fp16": ["unet"]
    }  # flat; an index is no weights
    assert pipeline_variants(SD, index("vae", unet=None)) == {"fp16": ["vae"], "non_ema": ["vae"]}


def test_a_variant_that_only_a_passed_component_has() -> None:
    paths = [f"unet/{FP16}", f"vae/{SAFE}"]
    chosen = plan_pipeline(paths, index("unet", "vae"), variant="fp16", passed=["unet"])
    assert chosen.files == (f"vae/{SAFE}",) and chosen.notes == ("variant fp16: vae has none, its plain weights are used",)
    assert plan_pipeline(paths, index("unet", "vae"), variant="bf16", passed=["unet", "vae"]).files == ()  # nothing to have a variant of
    with pytest.raises(CheckpointError, match=r"fp16 \(unet\)"):
        plan_pipeline(paths, index("unet", "vae"), variant="bf16", passed=["unet"])


def test_a_component_in_another_variant_alone() -> None:
    paths = [f"unet/{FP16}", f"vae/{BF16}"]
    with pytest.raises(CheckpointError, match="vae") as error:
        plan_pipeline(paths, index("unet", "vae"), variant="fp16")
    assert "bf16" in str(error.value)
    with pytest.raises(CheckpointError, match="unet"):
        plan_pipeline(paths, index("unet", "vae"))
    assert plan_pipeline(paths, index("unet", "vae"), variant="auto").notes == ("variant auto: bf16 for vae; fp16 for unet",)


@pytest.mark.parametrize(
    ("names", "dtype", "taken"),
    [
        ([SAFE, FP16, BF16], torch.float16, "fp16"),
        ([SAFE, FP16, BF16], torch.bfloat16, "bf16"),
        ([SAFE, FP16], torch.bfloat16, "fp16"),
        ([SAFE, BF16], torch.float16, None),
        ([SAFE, FP16, BF16], torch.float32, None),
        ([SAFE, FP16], None, None),
        ([SAFE, FP16], "bfloat16", "fp16"),
        ([SAFE, FP16], "auto", None),
        ([FP16], torch.float32, "fp16"),
        ([FP16], None, "fp16"),
        ([BF16], torch.float16, "bf16"),
        ([f"{X}.non_ema.safetensors"], None, "non_ema"),
        ([SAFE, f"{X}.fp16.bin"], torch.float16, None),  # no pickle for the variant's sake
        ([BIN, FP16], None, "fp16"),  # nor for the plain weights' sake
        ([BIN, f"{X}.fp16.bin"], torch.float16, "fp16"),
        (shards(X + "-{}.fp16.safetensors", 2), torch.float16, "fp16"),
    ],
)
def test_auto(names: list[str], dtype: object, taken: str | None) -> None:
    chosen = plan(names, variant="auto", dtype=dtype)  # type: ignore[arg-type]
    assert chosen.variant == taken and chosen.files[0] in names
    assert (chosen.format == "safetensors") == any(n.endswith(".safetensors") for n in names)


def test_auto_is_decided_for_each_component() -> None:
    chosen = plan_pipeline(SD, ALL, variant="auto", dtype=torch.float16)
    assert chosen.variants == {"unet": "fp16", "vae": "fp16", "text_encoder": "fp16", "safety_checker": None}
    assert chosen.notes == ("variant auto: fp16 for unet, vae, text_encoder; plain weights for safety_checker",)
    assert plan_pipeline(SD, ALL, variant="auto") == plan_pipeline(SD, ALL)  # what is a matter of course makes no note
    chosen = plan_pipeline(SD, ALL, variant="auto", dtype={"vae": torch.float32, "default": torch.bfloat16})
    assert chosen.variants["vae"] is None and chosen.variants["unet"] == "fp16"
    assert plan_pipeline(SD, ALL, variant="auto", dtype={"unet": torch.float16}).variants["vae"] is None
    with pytest.raises(CheckpointError, match="variants only") as error:
        plan([FP16, f"{X}.non_ema.safetensors"], variant="auto")
    assert "fp16, non_ema" in str(error.value)


def test_the_format_is_each_components_own() -> None:
    paths = [f"unet/{SAFE}", f"unet/{BIN}", f"vae/{BIN}", "text_encoder/pytorch_model.bin", "text_encoder/model.safetensors"]
    three = index("unet", "vae", "text_encoder")
    chosen = plan_pipeline(paths, three)
    assert weights(chosen) == {f"unet/{SAFE}", f"vae/{BIN}", "text_encoder/model.safetensors"}
    with pytest.raises(CheckpointError, match="safetensors") as error:
        plan_pipeline(paths, three, use_safetensors=True)
    assert "vae" in str(error.value) and "unet" not in str(error.value)
    assert weights(plan_pipeline(paths, three, use_safetensors=True, passed={"vae"})) == {f"unet/{SAFE}", "text_encoder/model.safetensors"}
    with pytest.raises(CheckpointError, match="bin") as error:
        plan_pipeline([f"unet/{SAFE}", f"vae/{BIN}"], three, use_safetensors=False)
    assert "unet" in str(error.value)


def test_the_reference_gives_up_safetensors_for_all() -> None:
    utils = pytest.importorskip("diffusers.pipelines.pipeline_loading_utils")
    assert not utils.is_safetensors_compatible([f"unet/{SAFE}", f"unet/{BIN}", f"vae/{BIN}"], folder_names={"unet", "vae"})


def test_a_variant_that_is_only_pickled() -> None:
    names = [SAFE, f"{X}.fp16.bin"]
    assert plan(names, variant="fp16").files == [f"{X}.fp16.bin"]
    chosen = plan_pipeline([f"unet/{n}" for n in names] + [f"vae/{FP16}"], index("unet", "vae"), variant="fp16", use_safetensors=True)
    assert weights(chosen) == {f"unet/{SAFE}", f"vae/{FP16}"} and chosen.notes[0].startswith("variant fp16: unet has none")
    with pytest.raises(CheckpointError, match="use_safetensors=True") as error:
        plan_pipeline([f"unet/{n}" for n in names], index("unet"), variant="fp16", use_safetensors=True)
    assert "fp16 (unet)" in str(error.value)


@pytest.mark.parametrize("options", [{"variant": 16}, {"variant": ["fp16"]}, {"use_safetensors": "yes"}, {"variant": b"fp16"}])
def test_choices_that_are_none(options: dict) -> None:
    for call in (lambda: plan([SAFE], **options), lambda: plan_pipeline([f"unet/{SAFE}"], index("unet"), **options)):
        with pytest.raises(InputError, match=next(iter(options))):
            call()


P2, P3, N2, L2 = (
    shards(X + p, n) for p, n in (("-{}.safetensors", 2), ("-{}.safetensors", 3), (".fp16-{}.safetensors", 2), ("-{}.fp16.safetensors", 2))
)
PI, NI, LI = f"{X}.safetensors.index.json", f"{X}.safetensors.index.fp16.json", f"{X}.safetensors.fp16.index.json"


@pytest.mark.parametrize(
    ("names", "variant", "files", "index"),
    [
        ([*P3, PI, *P2[:1]], None, P3, PI),  # one set is whole
        ([*P2, PI, *P3[1:]], None, P2, PI),
        ([*P2, *P3, PI], None, [*P2, *P3], PI),  # the index will tell
        ([*P2, PI, SAFE], None, P2, PI),  # as diffusers does
        ([*P2[:1], PI, SAFE], None, [SAFE], None),
        ([*P2, SAFE], None, [SAFE], None),
        ([SAFE, PI], None, [SAFE], None),
        ([BIN, PI], None, [BIN], None),  # an index that was left behind
        ([*N2, NI, *L2, LI], "fp16", N2, NI),
        ([*N2[:1], NI, *L2, LI], "fp16", L2, LI),
        ([*L2, NI], "fp16", L2, None),
        ([FP16, *L2, LI], "fp16", [FP16], None),
        ([*shards("model-{}.safetensors", 2), "model.safetensors.index.json", "model.safetensors"], None,
         ["model.safetensors"], None),  # as transformers does
        (shards("pytorch_model-{}.bin", 2) + ["pytorch_model.bin.index.json"], None, shards("pytorch_model-{}.bin", 2),
         "pytorch_model.bin.index.json"),
        (shards("pytorch_model.fp16-{}.bin", 1), "fp16", ["pytorch_model.fp16-00001-of-00001.bin"], None),
        ([SAFE, "diffusion_pytorch_model-00003-of-00002.safetensors"], None, [SAFE], None),
    ],
)  # fmt: skip
def test_shards(names: list[str], variant: str | None, files: list[str], index: str | None) -> None:
    for order in (names, names[::-1]):
        chosen = plan(order, variant=variant)
        assert (chosen.files, chosen.index) == (sorted(files), index)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (P3[:2], [P3[2], "1 of 3"]),
        ([*P3[1:], PI, BIN], [P3[0], "1 of 3"]),  # no pickle for a broken set
        ([P3[1], FP16], [P3[0], P3[2], "2 of 3"]),  # nor another variant
        ([*P3[:2], P2[0]], [P3[2]]),
        (P2 + P3, ["Several sets of shards"]),
        ([PI], ["shards of the weights are missing"]),
        ([f"{X}-00003-of-00002.safetensors"], ["missing"]),
        ([f"{X}-00000-of-00000.safetensors"], ["missing"]),
        (shards(X + "-{}.safetensors", 99)[:1], ["98 of 99", "and 93 more"]),
    ],
)
def test_shards_that_are_missing(names: list[str], says: list[str]) -> None:
    with pytest.raises(CheckpointError) as error:
        plan(names, where="unet")
    assert all(text in str(error.value) for text in [*says, "unet"]) and len(str(error.value)) < 2000


def test_two_names_in_one_folder() -> None:
    names = [SAFE, "model.safetensors", "model.fp16.safetensors"]
    assert plan(names).files == [SAFE] and plan(names, stem="model").files == ["model.safetensors"]
    assert plan([SAFE], stem="model").files == [SAFE]
    assert available_variants(names) == () and available_variants(names, stem="model") == ("fp16",)
    paths = [f"{c}/{n}" for c in ("unet", "text_encoder") for n in names]
    assert weights(plan_pipeline(paths, index("unet", "text_encoder"))) == {f"unet/{SAFE}", "text_encoder/model.safetensors"}


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.safetensors", "weights.pb", "model.index.safetensors", f"{X}.a.b.safetensors",
                                  f"{X}.fp16-00001-of-00002.old.bin", f"{X}-1-of-2.bin", f"x{SAFE}", f"{SAFE}.bak",
                                  f"{X}.ﬀ16.safetensors", f"{X}.{'v' * 70}.safetensors", f"{X}.safetensors\n",
                                  "model." + "a-" * 5000 + ".bin"])  # fmt: skip
def test_names_that_are_no_weights(name: str) -> None:
    assert parse_weight_name(name) is None


def test_a_flat_repository_of_transformers() -> None:
    paths = [
        "README.md", "LICENSE.txt", "config.json", "generation_config.json", "model_index.json", "tokenizer.json", "tokenizer_config.json",
        "vocab.json", "merges.txt", "spiece.model", "preprocessor_config.json", "processor_config.json", "chat_template.jinja", "image.png",
        "model.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "original.ckpt", "modeling_x.py", "unet/config.json", f"unet/{SAFE}",
        "tf_model.h5", "assets/x.json", "onnx/model.onnx", "consolidated.00.pth",
    ]  # fmt: skip
    chosen = plan_pipeline(paths, index("unet", "text_encoder", "tokenizer"))
    assert chosen.flat == {"text_encoder", "tokenizer"} and set(chosen.weights) == {"unet", "text_encoder"}
    assert chosen.weight_files("text_encoder") == ["model.safetensors"]
    never = {"image.png", "pytorch_model.bin", "model.fp16.safetensors", "original.ckpt", "modeling_x.py", "tf_model.h5", "assets/x.json"}
    assert set(chosen.files) == set(paths) - never - {"onnx/model.onnx", "consolidated.00.pth"}
    assert plan_pipeline(paths, index("unet", "text_encoder"), variant="fp16").variants == {"unet": None, "text_encoder": "fp16"}
    only = plan_pipeline(paths, index("unet", "text_encoder"), passed=["text_encoder"])
    assert "model.safetensors" not in only.files and "vocab.json" not in only.files and only.flat == set()
    assert {"tokenizer.json", "generation_config.json", "chat_template.jinja"} <= set(only.files)  # as the reference: they are small


def test_a_scheduler_in_the_root_takes_no_weights() -> None:
    chosen = plan_pipeline(["scheduler_config.json", SAFE, f"unet/{SAFE}"], index("unet", "scheduler"))
    assert set(chosen.files) == {"scheduler_config.json", f"unet/{SAFE}"}


def test_components_that_are_not_loaded() -> None:
    null = index("unet", "tokenizer", safety_checker=None)
    chosen = plan_pipeline(SD, null)
    assert {p.split("/")[0] for p in chosen.files} == {"README.md", "model_index.json", "unet", "tokenizer"}
    assert {p.split("/")[0] for p in plan_pipeline(SD, ALL, passed=["unet", "vae"]).files} & {"unet", "vae"} == set()
    chosen = plan_pipeline(SD, index("safety_checker"))  # a library that is a module of pipelines
    assert weights(chosen) == {"safety_checker/model.safetensors"} and chosen.code == {}


def test_other_formats_are_never_fetched() -> None:
    other = [f"{c}/{n}" for c in ("unet", "text_encoder") for n in (
        "model.onnx", "model.onnx_data", "model.onnx.data", "weights.pb", "flax_model.msgpack", "tf_model.h5", "x.ckpt", "x.pt", "x.gguf",
        "rust_model.ot",
        "openvino_model.bin", "optimizer.bin", "random_states_0.pkl", "adapter_model.safetensors", "x.so", "x.py", "x.pyc", ".hidden.json",
        ".cache/x.json", "a/b/deep.json", "SHOUTED.SAFETENSORS", "x.tar.gz",
    )]  # fmt: skip
    other += ["model.safetensors", SAFE, "sd_xl_base_1.0.safetensors", "x.ckpt", "images/a.json", "unetx/config.json", f"unetx/{SAFE}"]
    good = ["unet/config.json", f"unet/{SAFE}", "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/a/b.json"]
    assert plan_pipeline([*other, *good], index("unet", "text_encoder")).files == tuple(sorted(good))


@pytest.mark.parametrize("name", ["model.onnx", "flax_model.msgpack", "tf_model.h5", "x.ckpt", "adapter_model.safetensors", "model.gguf"])
def test_weights_that_nothing_here_reads(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)no weights that can be read.*text_encoder.*" + name):
        plan_pipeline(["text_encoder/config.json", f"text_encoder/{name}"], index("text_encoder"))
    assert plan_pipeline([f"tokenizer/{name}", "tokenizer/vocab.json"], index("tokenizer")).files == ("tokenizer/vocab.json",)


def test_depth() -> None:
    paths = ["tokenizer/a.json", "tokenizer/sub/x.json", "tokenizer/sub/deeper/x.json", f"unet/sub/{SAFE}", f"unet/{SAFE}"]
    assert plan_pipeline(paths, index("tokenizer", "unet")).files == ("tokenizer/a.json", "tokenizer/sub/x.json", f"unet/{SAFE}")


@pytest.mark.parametrize("bad", ["unet/../../etc/passwd", "unet/..", "unet/a\\b.json", "unet/C:x.json", "unet/\x00.json", "unet//x.json/..",
                                 "/etc/passwd",
                                 "unet/__pycache__/x.json", "../x.json", "unet/" + "x" * 2000, "C:/x.json", "\\\\server\\x.json", ""])  # fmt: skip
def test_names_that_would_leave_the_folder(bad: str) -> None:
    assert plan_pipeline([bad, f"unet/{SAFE}"], index("unet", "tokenizer")).files == (f"unet/{SAFE}",)  # the tokenizer is flat


def test_ignored_files() -> None:
    paths = [f"unet/{SAFE}", f"unet/{BIN}", "unet/config.json", "unet/extra.json"]
    chosen = plan_pipeline(paths, index("unet"), ignore_files=[f"unet/{SAFE}", "unet/extra.json", 3, ["x"]])
    assert chosen.files == ("unet/config.json", f"unet/{BIN}")


CODE = ["pipeline.py", "my_pipeline.py", "helper.py", "sub/other.py", "unet/my_unet.py", "unet/blocks.py", "unet/__init__.py", "vae/stray.py",
        f"unet/{SAFE}", f"vae/{SAFE}", "model_index.json"]  # fmt: skip


def test_code_only_where_it_is_trusted_and_named() -> None:
    custom = index("vae", unet=("my_unet", "MyUNet"), class_name=["my_pipeline", "MyPipeline"])
    for trust in (False, None, 1, "yes"):
        chosen = plan_pipeline(CODE, custom, trust_remote_code=trust)  # type: ignore[arg-type]
        assert not [p for p in chosen.files if p.endswith(".py")]
        assert chosen.code == {"_class_name": "my_pipeline.py", "unet": "unet/my_unet.py"}
    chosen = plan_pipeline(CODE, custom, trust_remote_code=True)
    assert {p for p in chosen.files if p.endswith(".py")} == {
        "pipeline.py",
        "my_pipeline.py",
        "helper.py",
        "unet/my_unet.py",
        "unet/blocks.py",
    }
    assert weights(chosen) == {f"unet/{SAFE}", f"vae/{SAFE}"}
    assert not [p for p in plan_pipeline(CODE, index("unet", "vae"), trust_remote_code=True).files if p.endswith(".py")]
    assert "unet/my_unet.py" not in plan_pipeline(CODE, custom, trust_remote_code=True, passed=["unet"]).files


@pytest.mark.parametrize(("custom", "found"), [("my_pipeline", "my_pipeline.py"), ("pipeline", "pipeline.py"), ("sub/other", None), ("none", None),
                                               ("../evil", None), ("org/repo", None), ("my_pipeline.py", None), ("", None)])  # fmt: skip
def test_custom_pipelines_in_the_root(custom: str, found: str | None) -> None:
    chosen = plan_pipeline([*CODE, "../evil.py", ".py"], index("vae", "unet"), trust_remote_code=True, custom_pipeline=custom)
    assert chosen.code.get("_class_name") == found and ((found or "pipeline.py") in chosen.files) == (found is not None)


@pytest.mark.parametrize("library", ["../evil", "a/b", "a\\b", "", "..", "sub/evil", "C:evil"])
def test_odd_libraries_name_no_code(library: str) -> None:
    chosen = plan_pipeline([f"unet/{library}.py", "evil.py", f"unet/{SAFE}"], index(unet=(library, "X")), trust_remote_code=True)
    assert chosen.code == {} and chosen.files == (f"unet/{SAFE}",)


@pytest.mark.parametrize("name", [None, 3, [], [None, "X"], ["a", "b", "c"], {"a": 1}, ["../evil", "X"], [["a"], "X"]])
def test_odd_class_names(name: object) -> None:
    assert "_class_name" not in plan_pipeline([*CODE, "../evil.py"], index("vae", "unet", class_name=name), trust_remote_code=True).code


def test_a_single_network() -> None:
    names = ["README.md", "config.json", SAFE, FP16, BIN, "modeling.py", "images/a.png", ".gitattributes", "original.ckpt", "sub/x.json"]
    assert set(component_files(names)) == {"README.md", "config.json", SAFE, "sub/x.json"}
    assert FP16 in component_files(names, variant="fp16") and BIN in component_files(names, use_safetensors=False)
    assert component_files(["vocab.json", "merges.txt"]) == ["vocab.json", "merges.txt"]


def test_classes_that_are_not_known() -> None:
    light = {path for path in LIGHT if path.startswith(("unet", "tok", "R", "m"))}
    assert pipeline_files(SD, ["unet", "tokenizer"], variant="fp16") == sorted(light | {f"unet/{FP16}"})


def _adversarial() -> dict[str, Callable[[int], str]]:
    return {
        "plain": lambda i: f"unet/file_{i}.json",
        "variants": lambda i: f"unet/{X}.v{i}.safetensors",
        "one set": lambda i: f"unet/{X}-{i % 99998 + 1:05d}-of-99998.safetensors",
        "many sets": lambda i: f"unet/{X}-00001-of-{i % 99998 + 2:05d}.safetensors",
        "dashes": lambda i: "unet/model." + "a-" * 100 + f"-{i:05d}.bin",
        "almost shards": lambda i: "unet/model." + "a-00001-of-00002" * 12 + f"-{i:05d}.safetensors",
        "dots": lambda i: "unet/model." + "a" * 60 + "." + "b" * 60 + "." + "c" * 60 + f"-{i:05d}.safetensors",
        "indexes": lambda i: f"unet/{X}.safetensors.index.v{i}.json",
        "deep": lambda i: "unet/" + "x/" * 400 + f"{i}.json",
        "root": lambda i: f"{i}.safetensors",
        "long": lambda i: "unet/" + "a" * 900 + f"{i}.json",
    }


@pytest.mark.parametrize("kind", _adversarial())
def test_a_hundred_thousand_names(kind: str) -> None:
    paths = [f"vae/{SAFE}", *map(_adversarial()[kind], range(100_000)), f"unet/{SAFE}", f"unet/{FP16}"]
    before = time.process_time()
    chosen = plan_pipeline(paths, index("unet", "vae", "tokenizer"), variant="fp16")
    assert time.process_time() - before < 10  # each name looked at beside each would take hours
    assert {f"vae/{SAFE}", f"unet/{FP16}"} <= set(chosen.files)


@given(st.text(alphabet=".-_0123456789ofabinxdesjtr", max_size=60), st.sampled_from(["model", X, "pytorch_model", ""]))
def test_names_are_parsed_in_a_moment(tail: str, stem: str) -> None:
    before = time.process_time()
    parse_weight_name(stem + tail), parse_weight_name(f"{stem}.{tail * 4}.json"), parse_weight_name(stem + tail * 4 + ".bin")
    assert time.process_time() - before < 10  # trying every way to split a name would take longer than anyone waits


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, darkroom.checkpoints.plan, darkroom.checkpoints.index; print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    root = Path(__file__).parents[2] / "src"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)})
    assert done.stdout == "set()\n"


# The reference's rules. Each component has one layout at most of each (variant, format), and all shards: what it does otherwise is undefined there.

KEYS = st.tuples(st.sampled_from([None, None, "fp16", "fp16", "bf16", "fp1", "non_ema"]), st.sampled_from(["safetensors", "bin"]))
LAYOUTS = st.tuples(st.sampled_from(["one", "one", "new", "old"]), st.integers(1, 3), st.booleans())
FORMS = st.dictionaries(KEYS, LAYOUTS, max_size=4).map(lambda forms: {k: v for k, v in forms.items() if k[0] or v[0] != "old"})
CLUTTER = st.lists(
    st.sampled_from(["config.json", "flax_model.msgpack", "tf_model.h5", "model.onnx", "weights.pb", "x.fp16.txt"]), unique=True
)
LISTINGS = st.dictionaries(st.sampled_from(["unet", "vae", "text_encoder", "safety_checker"]), st.tuples(FORMS, CLUTTER), min_size=1)


def write(component: str, forms: dict, clutter: list[str]) -> list[str]:
    """A component's listing."""
    names = list(clutter)
    for (variant, ext), (layout, n, with_index) in forms.items():
        stem = X if component in ("unet", "vae") else {"bin": "pytorch_model", "safetensors": "model"}[ext]
        dot = f".{variant}" if variant else ""
        if layout == "one":
            names.append(f"{stem}{dot}.{ext}")
            continue
        names += shards(f"{stem}{dot}-{{}}.{ext}" if layout == "new" else f"{stem}-{{}}{dot}.{ext}", n)
        names += [f"{stem}.{ext}.index{dot}.json" if layout == "new" else f"{stem}.{ext}{dot}.index.json"] if with_index else []
    return [f"{component}/{name}" for name in names]


def siblings(files: list[str], variant: str | None, ignore: list[str]) -> set[str]:
    from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings

    found = variant_compatible_siblings(set(files), variant=variant, ignore_patterns=ignore)[0]
    return {f for f in found if not any(fnmatch(f, p + ".index.*json") or fnmatch(f, p + ".*.index.json") for p in ignore)}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(LISTINGS, st.sampled_from([None, "fp16", "bf16", "fp1", "non_ema"]), st.sampled_from([None, True, False]))
@example({"unet": ({(None, "bin"): ("one", 1, False), ("fp16", "safetensors"): ("old", 2, True)}, [])}, "fp16", None)
@example({"unet": ({(None, "safetensors"): ("one", 1, False), ("fp16", "bin"): ("one", 1, False)}, [])}, "fp16", True)
@example({"vae": ({(None, "bin"): ("one", 1, False)}, []), "unet": ({("fp16", "safetensors"): ("new", 2, True)}, [])}, "fp16", None)
def test_the_reference_chooses_the_same(listings: dict, variant: str | None, use_safetensors: bool | None) -> None:
    utils = pytest.importorskip("diffusers.pipelines.pipeline_loading_utils")
    files = {name: write(name, *given) for name, given in listings.items()}
    forms = {name: given[0] for name, given in listings.items() if given[0]}
    every, where = [path for paths in files.values() for path in paths], index(*forms)
    allowed = {True: ("safetensors",), False: ("bin",), None: ("safetensors", "bin")}[use_safetensors]

    def loadable(name: str) -> bool:  # by definition: the variant or the plain weights in a format that is allowed
        return any((v, e) in forms[name] for v in {variant, None} for e in allowed)

    somewhere = any((variant, e) in f for f in forms.values() for e in allowed)
    try:
        chosen = plan_pipeline(every, where, variant=variant, use_safetensors=use_safetensors)
    except CheckpointError as error:
        if variant and not somewhere:
            assert "No component comes in this variant" in str(error)
            if use_safetensors is None:
                with pytest.raises(ValueError, match="no such modeling files"):
                    siblings(every, variant, [])
        else:  # where the reference fetches nothing for a component, and fails later
            assert [name for name in forms if not loadable(name)]
        return
    assert set(chosen.weights) == set(forms) and (somewhere or not variant or not forms)
    for name, own in chosen.weights.items():
        mine = set(chosen.weight_files(name))
        ignore = ["*.bin" if own.format == "safetensors" else "*.safetensors", "*.msgpack", "*.onnx", "*.pb"]
        assert own.variant == (variant if any((variant, e) in forms[name] for e in allowed) else None)
        assert mine == siblings(files[name], own.variant, ignore)  # the files, given the format
        old = any(forms[name][variant, e][0] == "old" for e in ("safetensors", "bin") if (variant, e) in forms[name])
        if use_safetensors is None and not old:  # the format; the reference does not count the older spelling of variants as safetensors
            safe = utils.is_safetensors_compatible(files[name], folder_names={name}, variant=variant)
            assert own.format == ("safetensors" if safe else "bin")
        if use_safetensors and not old and not utils.is_safetensors_compatible(files[name], folder_names={name}, variant=variant):
            assert own.variant is None and variant and (variant, "bin") in forms[name]  # refused there; here the plain weights are taken
    if use_safetensors is None and not any(f[variant, e][0] == "old" for f in forms.values() for e in allowed if (variant, e) in f):
        if (
            utils.is_safetensors_compatible(every, folder_names=set(forms), variant=variant) and forms
        ):  # no mixture of formats: the whole pipeline
            if not variant or any((variant, "safetensors") in f for f in forms.values()):
                assert weights(chosen) == siblings(every, variant, ["*.bin", "*.msgpack", "*.onnx", "*.pb"])


def test_further_networks_of_a_component():
    """Several ControlNets are one component, whose folders stand beside each other; a pipeline of one has no use for a folder of such a name."""
    parts = ["controlnet", "controlnet_1", "controlnet_2", "unet", "controlnet_4"]
    paths = ["model_index.json", *(f"{part}/{name}" for part in parts for name in ("config.json", SAFE))]
    several = ModelIndex("P", {"unet": ("diffusers", "UNet2DConditionModel"), "controlnet": ("diffusers", "MultiControlNetModel")})
    chosen = plan_pipeline(paths, several)
    expected = {"controlnet_1": "controlnet", "controlnet_2": "controlnet"}
    assert chosen.further == expected and "controlnet_4" not in chosen.weights
    assert {f"{part}/{SAFE}" for part in parts[:4]} == weights(chosen)
    assert not any(path.startswith("controlnet") for path in plan_pipeline(paths, several, passed=["controlnet"]).files)
    one = ModelIndex("P", {"unet": ("diffusers", "UNet2DConditionModel"), "controlnet": ("diffusers", "ControlNetModel")})
    assert plan_pipeline(paths, one).further == {}
    old = ["adapter", "adapter_1", "adapter_1_2"]
    paths = [f"{part}/{name}" for part in old for name in ("config.json", SAFE)]
    assert plan_pipeline(paths, ModelIndex("P", {"adapter": ("diffusers", "MultiAdapter")})).further == dict.fromkeys(old[1:], "adapter")
