"""AutoPipelineFor...: the class that does a task with a checkpoint, found by what the classes say of themselves."""

from __future__ import annotations
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, NamedTuple
from ._public import NAMES
from .checkpoints.files import PathLike
from .checkpoints.hub import HUB_OPTIONS, locate
from .checkpoints.index import INDEX_NAME, ModelIndex
from .errors import InputError
from .family import Family
from .pipeline import DiffusionPipeline

__all__ = [
    "AutoPipelineForImage2Image", "AutoPipelineForImage2Video", "AutoPipelineForInpainting", "AutoPipelineForText2Image",
    "AutoPipelineForText2Video", "AutoPipelineForVideo2Video", "PipelineRow", "pipelines",
]  # fmt: skip


class PipelineRow(NamedTuple):
    """One pipeline class: the family of checkpoints, what it starts from, the terms of its guidance, and its control; "" where there is none."""

    name: str
    family: str
    task: str
    guidance: str
    control: str


def _row(cls: type[Family]) -> PipelineRow:
    control = "" if cls.control is None else cls.control.name
    return PipelineRow(cls.__name__, cls.family, cls.task.name, " ".join(term.__name__ for term in cls.terms), control)


@cache
def _classes() -> dict[PipelineRow, type[Family]]:
    found = (getattr(import_module(f"darkroom.{module}"), name) for name, module in NAMES.items() if module.startswith("families."))
    return {_row(cls): cls for cls in found if isinstance(cls, type) and issubclass(cls, Family) and hasattr(cls, "task")}


def pipelines() -> list[PipelineRow]:
    """Every pipeline class, by family, task, guidance and control."""
    return sorted(_classes(), key=lambda row: (row.family, row.task, row.control, row.guidance, row.name))


def _class_for(source: type, task: str, enable_pag: bool | None, changes: dict[str, Any], strip: bool) -> type[Family]:
    """The class of the family of `source` for a task. Guidance and control stay, unless `enable_pag` or a component among `changes` says otherwise;
    `strip`: a component that is None takes its control away.
    """
    known = {cls: row for row, cls in _classes().items()}
    row = known.get(source)
    if row is None or not row.family:
        raise InputError("No family of pipelines belongs to this class.", where=source.__name__, fix=f"Load {source.__name__} itself.")
    guidance, control = row.guidance if enable_pag is None else "PAG" if enable_pag else "", row.control
    controls = {cls.control.component: cls.control for cls in known if cls.control is not None and cls.family == row.family}
    for component in controls.keys() & changes.keys():
        if changes[component] is not None:
            fitting = [c for cls in known if (c := cls.control) and cls.family == row.family and c.fits(changes[component])]
            control = fitting[0].name if fitting else component
        elif strip:
            control = ""
    wanted = [r for r in _classes() if r.family == row.family and r.task == task and r.control == control]
    if exact := [r for r in wanted if r.guidance == guidance]:
        return _classes()[exact[0]]
    there = [r for r in pipelines() if r.family == row.family]
    got = " with ".join(filter(None, (task, control, guidance)))
    expected = "; ".join(" with ".join(filter(None, r[2:])) for r in there)
    raise InputError(f"No pipeline of the family {row.family} does this.", where=source.__name__, got=got, expected=expected)


class _AutoPipeline:
    """Not a pipeline itself: `from_pretrained` and `from_pipe` return one."""

    task: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any):
        name = type(self).__name__
        raise OSError(f"{name} makes no pipelines of its own: use {name}.from_pretrained(path) or {name}.from_pipe(pipeline)")

    @classmethod
    def from_pretrained(cls, pretrained_model_or_path: PathLike, *, enable_pag: bool = False, **kwargs: Any) -> Any:
        """The pipeline for this task out of a checkpoint of any task of its family.

        `enable_pag=True` adds perturbed-attention guidance, a `controlnet` or `adapter` its control; all else goes to the class's own
        `from_pretrained`. Raises InputError if the family has no such pipeline, with those that it has.
        """
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        index = ModelIndex.read(locate(pretrained_model_or_path, files=[INDEX_NAME], **hub))
        named = NAMES.get(index.class_name) if isinstance(index.class_name, str) else None
        if named is None:
            where, fix = (
                f"{pretrained_model_or_path}, {INDEX_NAME}",
                "Load it with the pipeline class of darkroom that fits its components.",
            )
            raise InputError("A pipeline of a class that darkroom does not know.", where=where, got=index.class_name, fix=fix)
        source = getattr(import_module(f"darkroom.{named}"), index.class_name)
        found = _class_for(source, cls.task, enable_pag or None, kwargs, strip=False)
        return found.from_pretrained(pretrained_model_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, *, enable_pag: bool | None = None, **kwargs: Any) -> Any:
        """The pipeline for this task over the weights of another one, as `DiffusionPipeline.from_pipe` makes it.

        `enable_pag` adds or takes away perturbed-attention guidance, `controlnet` a control (None takes it away).
        """
        found = _class_for(type(pipeline), cls.task, enable_pag, kwargs, strip=True)
        names = found.declared().components
        return found.from_pipe(pipeline, **{n: v for n, v in kwargs.items() if v is not None or n in names})


class AutoPipelineForText2Image(_AutoPipeline):
    """Text to image."""

    task = "text2image"


class AutoPipelineForImage2Image(_AutoPipeline):
    """Image to image."""

    task = "image2image"


class AutoPipelineForInpainting(_AutoPipeline):
    """Filling in the masked part of an image."""

    task = "inpaint"


class AutoPipelineForText2Video(_AutoPipeline):
    """Text to video."""

    task = "text2video"


class AutoPipelineForImage2Video(_AutoPipeline):
    """Image to video."""

    task = "image2video"


class AutoPipelineForVideo2Video(_AutoPipeline):
    """Video to video."""

    task = "video2video"
