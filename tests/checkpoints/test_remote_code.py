"""Code that comes with a checkpoint: runs for a caller who trusts it, and for nobody else."""

from __future__ import annotations
import ast
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
import numpy as np
import pytest
from darkroom import DiffusionPipeline
from darkroom.checkpoints import remote_code
from darkroom.checkpoints.files import inside
from darkroom.checkpoints.remote_code import PREFIX, custom_file, load_custom_class
from darkroom.errors import CheckpointError, DarkroomError, MissingDependencyError
from darkroom.models.base import Model
from darkroom.schedulers.base import Scheduler

PIPELINE = """
from pathlib import Path
from diffusers import DiffusionPipeline
(Path(__file__).parent / "ran.txt").open("a").write("x")

class Custom(DiffusionPipeline):
    def __init__(self, unet, scheduler, strength=0.5):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(strength=strength)

    def __call__(self):
        return "called"
"""
SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DARKROOM_DISABLE_REMOTE_CODE", "DIFFUSERS_DISABLE_REMOTE_CODE"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return folder / f"{next(iter(files))}.py"


def load(path: Path, **options: object) -> type:
    return load_custom_class(path, trust_remote_code=True, **options)  # type: ignore[arg-type]


def runs(folder: Path) -> int:
    return len((folder / "ran.txt").read_text()) if (folder / "ran.txt").exists() else 0


@pytest.mark.parametrize("trust", [False, None, 1, "True", "yes", np.True_, [True]], ids=repr)
def test_only_true_is_trust(tmp_path: Path, trust: object) -> None:
    path = write(tmp_path, pipeline=PIPELINE)
    with pytest.raises(CheckpointError, match="not run") as error:
        load_custom_class(path, class_name="Custom", trust_remote_code=trust)  # type: ignore[arg-type]
    assert (
        all(text in str(error.value) for text in ("Custom in pipeline.py", str(path), "trust_remote_code=True"))
        and len(str(error.value)) < 2000
    )
    assert runs(tmp_path) == 0
    with pytest.raises(TypeError):  # there is no default
        load_custom_class(path)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["DARKROOM_DISABLE_REMOTE_CODE", "DIFFUSERS_DISABLE_REMOTE_CODE"])
def test_the_environment_forbids_and_never_allows(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, pipeline=PIPELINE)
    for value in ("1", "true", "YES", " on "):
        monkeypatch.setenv(name, value)
        with pytest.raises(CheckpointError, match=name):
            load(path)
    assert runs(tmp_path) == 0
    for value in ("0", "", "false", "no"):
        monkeypatch.setenv(name, value)
        with pytest.raises(CheckpointError, match="not run"):
            load_custom_class(path, trust_remote_code=False)
        assert load(path).__name__ == "Custom"
    monkeypatch.setenv(name, "1")  # also what ran before
    with pytest.raises(CheckpointError, match=name):
        load(path)


AUDIT = """
import sys
from pathlib import Path
from darkroom.checkpoints.remote_code import custom_file, load_custom_class
from darkroom.checkpoints.plan import plan_pipeline
from darkroom.checkpoints.index import ModelIndex
from darkroom.errors import CheckpointError
folder, trust, seen = Path(sys.argv[1]), sys.argv[2] == "yes", []
def hook(event, args):
    if event in ("open", "exec", "compile", "import", "os.listdir", "os.scandir", "marshal.loads", "os.system", "subprocess.Popen"):
        seen.append((event, str(args[0])[:200]))
sys.addaudithook(hook)
before = set(sys.modules)
plan_pipeline(["pipeline.py", "unet/my_unet.py"], ModelIndex(["pipeline", "Custom"], {"unet": ("my_unet", "U")}), trust_remote_code=False)
try:
    load_custom_class(custom_file(folder), class_name="Custom", trust_remote_code=True if trust else False)
except CheckpointError as error:
    assert not trust, error
print(sorted({event for event, name in seen if str(folder) in name or event in ("exec", "compile", "import")}), sorted(set(sys.modules) - before))
"""


def test_nothing_is_opened_imported_or_run_without_trust(tmp_path: Path) -> None:
    write(tmp_path, pipeline=PIPELINE)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = [
        subprocess.run([sys.executable, "-c", AUDIT, tmp_path, trust], capture_output=True, text=True, timeout=120, env=environment)
        for trust in ("no", "yes")
    ]
    assert not any(d.returncode for d in done), done[1].stderr[-2000:]
    assert done[0].stdout == "[] []\n" and runs(tmp_path) == 1  # by the second, which shows that the hook sees it:
    assert done[1].stdout.startswith("['compile', 'exec', 'import'") and PREFIX in done[1].stdout


def test_a_pipeline_in_the_style_of_diffusers(tmp_path: Path) -> None:
    cls = load(write(tmp_path, pipeline=PIPELINE))
    assert issubclass(cls, DiffusionPipeline)
    pipe = cls(unet=None, scheduler=None, strength=0.25)
    assert pipe() == "called" and pipe.config.strength == 0.25 and cls.declared().components == ("unet", "scheduler")
    assert "register_modules" in inspect.getsource(cls) and pickle.loads(pickle.dumps(cls)) is cls


NO_DIFFUSERS = """
import sys, json
from pathlib import Path
sys.modules["diffusers"] = None  # as if it were not installed
from darkroom.checkpoints.remote_code import load_custom_class
from darkroom.errors import DarkroomError
for name in ("pipeline", "deep", "whole", "other"):
    try:
        cls = load_custom_class(Path(sys.argv[1]) / f"{name}.py", trust_remote_code=True)
        print(name, cls.__mro__[1].__module__, cls.__mro__[1].__name__)
    except DarkroomError as error:
        print(name, type(error).__name__, type(error.__cause__).__name__, "diffusers" in str(error))
"""


def test_diffusers_need_not_be_installed(tmp_path: Path) -> None:
    write(
        tmp_path,
        pipeline=PIPELINE,
        deep="from diffusers.schedulers import DDIMScheduler\nclass A(DDIMScheduler): pass",
        whole="import diffusers\nimport diffusers.pipelines as p\nclass A(diffusers.UNet2DModel): pass",
        other="from diffusers.models.modeling_utils import ModelMixin\nclass A(ModelMixin): pass",
    )
    done = subprocess.run(
        [sys.executable, "-c", NO_DIFFUSERS, tmp_path], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert done.stdout.splitlines() == [
        "pipeline darkroom.pipeline DiffusionPipeline",
        "deep darkroom.schedulers.ddim DDIMScheduler",
        "whole MissingDependencyError ModuleNotFoundError True",  # asks for diffusers.pipelines, of which darkroom has no namesake
        "other MissingDependencyError ModuleNotFoundError True",
    ], done.stderr[-2000:]


def test_what_darkroom_lacks_comes_from_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    path = write(tmp_path, pipeline="""
        from diffusers import DiffusionPipeline, utils
        from diffusers.utils import logging, torch_utils
        logger = logging.get_logger(__name__)
        class A(DiffusionPipeline):
            tools = torch_utils
    """)  # fmt: skip
    cls = load(path)
    assert cls.__base__ is DiffusionPipeline and cls.tools.randn_tensor.__module__ == "diffusers.utils.torch_utils"
    path = write(tmp_path, pipeline="from diffusers import ModelMixin\nclass A(ModelMixin): pass")
    with pytest.raises(CheckpointError, match="no class of the kind"):
        load(path)
    with pytest.raises(CheckpointError, match="ImportError"):
        load(write(tmp_path, pipeline="from diffusers import no_such_name"))
    code = "import diffusers; from diffusers import DiffusionPipeline; print(DiffusionPipeline.__module__)"
    assert (
        "diffusers.pipelines" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    )  # nobody else's import changes


def test_files_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path, my_net="""
        from .blocks import WIDTH
        from . import blocks
        class Net(blocks.Base):
            width = WIDTH
            def later(self):
                from .late import ANSWER
                return ANSWER
    """, blocks="from darkroom.models.base import Model\nfrom .sizes import WIDTH\nclass Base(Model): pass", sizes="WIDTH = 7", late="ANSWER = 42",
    broken="1 +")  # fmt: skip
    paths, listed = list(sys.path), sorted(os.listdir(tmp_path))
    cls = load(path)
    assert issubclass(cls, Model) and cls.width == 7 and cls.__name__ == "Net"
    (tmp_path / "late.py").unlink()
    assert cls.later(cls) == 42  # as it was read
    listed.remove("late.py")
    assert sys.path == paths and sorted(os.listdir(tmp_path)) == listed  # nothing was written
    assert not {"blocks", "sizes", "my_net"} & set(sys.modules)
    with pytest.raises(CheckpointError, match="does not define"):  # it is another file's
        load(path, class_name="Base")
    assert load(path, class_name="Net").__base__.__name__ == "Base"
    with pytest.raises(CheckpointError, match="ModuleNotFoundError"):
        load(write(tmp_path, alone="from .nowhere import x"))
    with pytest.raises(MissingDependencyError, match="blocks"):  # the folder is not on the path
        load(write(tmp_path, alone="import blocks"))


def test_code_runs_once_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path, pipeline=PIPELINE, other="X = 1")
    first = load(path)
    assert load(path) is first and load(path, class_name="Custom") is first and runs(tmp_path) == 1
    write(tmp_path, other="X = 2")
    second = load(path)
    assert second is not first and runs(tmp_path) == 2
    write(tmp_path, other="X = 1")
    assert load(path) is first and runs(tmp_path) == 2
    (tmp_path / "copy").mkdir()
    third = load(write(tmp_path / "copy", pipeline=PIPELINE))
    assert third is not first and third.__module__ != first.__module__ and runs(tmp_path / "copy") == 1
    found = []
    write(tmp_path, other="X = 3")
    threads = [threading.Thread(target=lambda: found.append(load(path))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(found)) == 1 and len(found) == 8 and runs(tmp_path) == 3


def test_compiled_files_are_not_read(tmp_path: Path) -> None:
    import py_compile

    path = write(tmp_path, pipeline=PIPELINE.replace("called", "hidden"))
    compiled = py_compile.compile(str(path), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert compiled
    write(tmp_path, pipeline=PIPELINE)
    assert load(path)(unet=None, scheduler=None)() == "called"


def test_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, (name, text) in enumerate({"pipeline": PIPELINE + "from .tool import T\n", "tool": "T = 1"}.items()):
        (blobs / f"{i:040x}").write_text(text)
        (snapshot / f"{name}.py").symlink_to(f"../../blobs/{i:040x}")
    assert load(custom_file(snapshot)).__name__ == "Custom"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "cause", "says"),
    [
        ("x = 1\n1 +", SyntaxError, "line 2"),
        ("x = 1\n\nraise RuntimeError('secret ' * 1000)", RuntimeError, "line 3"),
        ("import sys; sys.exit(0)", SystemExit, "SystemExit"),
        ("def f(): g()\ndef g(): 1 / 0\nf()", ZeroDivisionError, "line 2"),
        ("\x00", (SyntaxError, ValueError), "null"),
        ("def f(): f()\nf()", RecursionError, "RecursionError"),
        ("(" * 500 + ")" * 500, (SyntaxError, MemoryError, RecursionError), "failed"),
        ("from darkroom import nothing_of_the_kind", ImportError, "nothing_of_the_kind"),
        ("from darkroom.errors import InputError\nraise InputError('x')", DarkroomError, "InputError"),
    ],
    ids=range(9),
)
def test_code_that_fails(tmp_path: Path, code: str, cause: type, says: str) -> None:
    path = write(tmp_path, pipeline=code)
    for _ in range(2):  # nothing is left of the first attempt
        with pytest.raises(CheckpointError, match="failed") as error:
            load(path)
        assert isinstance(error.value.__cause__, cause) and says in str(error.value) and "pipeline.py" in str(error.value)
        assert len(str(error.value)) < 2000
        assert not [name for name in sys.modules if name.startswith(PREFIX) and getattr(sys.modules[name], "__file__", "") == str(path)]
    write(tmp_path, pipeline=PIPELINE)
    assert load(path).__name__ == "Custom"


def test_an_interrupt_is_no_error_of_the_code(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(write(tmp_path, pipeline="raise KeyboardInterrupt"))


def test_a_package_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"needs no_such_package,") as error:
        load(write(tmp_path, pipeline="import no_such_package.sub"))
    assert isinstance(error.value.__cause__, ModuleNotFoundError) and "pipeline.py, line 1" in str(error.value)


TWO = """
import torch
from torch.nn import Linear
from darkroom import DiffusionPipeline, DDIMScheduler as Renamed
class A(DiffusionPipeline): pass
class B(A): pass
class S(Renamed): pass
class Plain: pass
Alias = A
number = 3
"""


def test_which_class(tmp_path: Path) -> None:
    path = write(tmp_path, two=TWO)
    with pytest.raises(CheckpointError, match=r"(?s)several.*A, B, S"):
        load(path)
    assert load(path, class_name="B").__name__ == "B" and load(path, class_name="Alias").__name__ == "A"
    assert load(path, base=Scheduler).__name__ == "S" and load(path, base=(Scheduler, Model)).__name__ == "S"
    with pytest.raises(CheckpointError, match=r"no class of the kind") as error:
        load(path, base=Model)
    assert "A, B, Plain, S" in str(error.value) and "Model" in str(error.value)
    for name, kind in (("Plain", None), ("Linear", None), ("B", Model), ("Renamed", DiffusionPipeline)):
        with pytest.raises(CheckpointError, match="another kind"):
            load(path, class_name=name, base=kind)
    for name in ("number", "torch", "Gone", "", "__builtins__"):
        with pytest.raises(CheckpointError, match="does not define"):
            load(path, class_name=name)
    with pytest.raises(CheckpointError, match="no class"):
        load(write(tmp_path, empty="x = 1"))


def test_classes_of_transformers(tmp_path: Path) -> None:
    path = write(tmp_path, encoder="from transformers import CLIPTextModel\nclass Mine(CLIPTextModel): pass")
    assert load(path).__name__ == "Mine"


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint, code = tmp_path / "checkpoint", tmp_path / "code"
    for folder in (checkpoint, code):
        folder.mkdir()
    write(checkpoint, mine="x = 1")
    write(tmp_path, evil="x = 1")
    assert custom_file("mine", checkpoint) == checkpoint / "mine.py"
    assert custom_file("code") == Path("code/pipeline.py") and custom_file(code, checkpoint) == code / "pipeline.py"
    assert custom_file("code/x.py", checkpoint) == Path("code/x.py") and custom_file(code / "x.py") == code / "x.py"
    for other in ("mine", "org/name", "community_name", "../evil", "/evil"):
        assert custom_file(other, code) is None
    assert custom_file("../evil", checkpoint) is None


def test_files_that_are_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "text.txt").write_text(PIPELINE)
    for name in ("none.py", "folder.py", "pipe.py", "text.txt"):
        with pytest.raises(CheckpointError, match=name):
            load(tmp_path / name)
    path = write(tmp_path, pipeline=PIPELINE)
    assert load(path)  # what else lies in the folder is no matter
    monkeypatch.setattr(remote_code, "LIMIT", 100)
    with pytest.raises(CheckpointError, match="too long"):
        load(path)


def test_odd_names_and_encodings(tmp_path: Path) -> None:
    folder = tmp_path / "a b ü 'x' (1)"
    folder.mkdir()
    path = folder / "my-pipeline v1.5.py"
    path.write_bytes(
        "# -*- coding: latin-1 -*-\r\nfrom darkroom import DiffusionPipeline\r\nclass P(DiffusionPipeline):\r\n    x = 'é'\r\n".encode(
            "latin-1"
        )
    )
    cls = load(path)
    assert cls.x == "é" and cls.__module__.startswith(PREFIX)
    os.chmod(folder, 0o555)
    path = inside(folder, path.name)
    assert load(path) is cls
    os.chmod(folder, 0o755)


def test_only_this_module_runs_code() -> None:
    names = {
        "exec",
        "eval",
        "compile",
        "__import__",
        "exec_module",
        "spec_from_file_location",
        "run_path",
        "run_module",
        "SourceFileLoader",
    }
    found = {}
    for file in (SOURCE / "darkroom" / "checkpoints").glob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call)]
        called = {
            f.id if isinstance(f, ast.Name) else f"{getattr(f.value, 'id', '')}.{f.attr}"
            for f in calls
            if isinstance(f, ast.Name | ast.Attribute)
        }
        found[file.name] = {c for c in called if c.removeprefix("builtins.").removeprefix("util.") in names}
    assert found.pop("remote_code.py") >= {"exec", "compile", "spec_from_file_location", "builtins.__import__"}
    assert {name: calls for name, calls in found.items() if calls} == {}
