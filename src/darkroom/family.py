"""Family: a pipeline class as a declaration. Components, how prompts are encoded, one denoiser call; task and guidance are composed in."""

from __future__ import annotations
import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self
import torch
from torch import Generator, Tensor
from .adapters.decorators import Decorated
from .adapters.lora import LoraPipeline
from .core.codec import LatentCodec
from .core.guidance import CFG
from .core.inputs import Inputs, combine, field, signature
from .core.loop import batched, denoise
from .core.media import tensor_to_images
from .core.strength import adapters_at, scale_in
from .core.types import Branch, Conditioning, Control, Guidance, Run, Task
from .errors import InputError
from .outputs import Output
from .pipeline import DiffusionPipeline

__all__ = ["CallInputs", "Family", "ImagePipelineOutput"]


@dataclass
class ImagePipelineOutput(Output):
    """`images`: a list of PIL pictures, or an array (B, H, W, 3) in [0, 1], a tensor (B, 3, H, W) in [0, 1], or latents.
    `nsfw_content_detected`: for each picture whether a safety checker blacked it out; None without a checker.
    """

    images: Any
    nsfw_content_detected: list[bool] | None = None


@dataclass(kw_only=True)
class CallInputs(Inputs):
    """Arguments of every pipeline that runs a scheduler's steps."""

    num_inference_steps: int = field("Denoising steps: more are slower and finer.", 50, minimum=1, integer=True)
    generator: Generator | list[Generator] | None = field("Source of random numbers; a list has one per picture.")
    guidance: Guidance | None = field("A guidance object, such as CFG(5, terms=[PAG(3)]), in place of the scales.")
    callback_on_step_end: Callable[..., dict[str, Any]] | None = field("After each step: f(pipe, step, timestep, tensors) -> new tensors.")
    callback_on_step_end_tensor_inputs: list[str] = field("Which tensors the callback gets.", ["latents"])
    callback: Callable[..., None] | None = field("Older form: called as f(step, timestep, latents).")
    callback_steps: int = field("Call `callback` every so many steps.", 1, minimum=1, integer=True)


class Family(Decorated, LoraPipeline, DiffusionPipeline):
    """The base of darkroom's pipelines.
    A family sets components (annotations), `codec`, `inputs`, and implements `encode` and `denoise_once`. A concrete class adds a `task` and,
    where it has them, guidance `terms`. From these follow the signature of the call, its checks, and the loop.
    """

    family: ClassVar[str] = ""  # what checkpoints of this kind are called: an AutoPipeline looks for another task in the same family
    codec: ClassVar[LatentCodec]
    task: ClassVar[Any]
    tasks: ClassVar[Mapping[str, Task]] = {}  # tasks that a further argument switches to, by its name
    terms: ClassVar[Sequence[Any]] = ()
    control: ClassVar[Control | None] = None
    inputs: ClassVar[type[Inputs]] = CallInputs
    arguments: ClassVar[Mapping[str, str]] = {}  # positional arguments in order, by name of the task
    defaults: ClassVar[Mapping[str, Any]] = {}
    predict: ClassVar[Any] = staticmethod(batched)
    callback_tensors: ClassVar[tuple[str, ...]] = ("latents",)
    size_step: ClassVar[int] = 1  # height and width are multiples of this and of the codec's factor
    in_run: ClassVar[Mapping[str, str]] = {}  # methods that in a callback act on the run alone, by another that receives it
    middle_site: ClassVar[str] = ""  # the self-attention layer in the middle of the denoiser
    Output: ClassVar[type[Output]] = ImagePipelineOutput
    Inputs: ClassVar[type[Inputs]]

    if TYPE_CHECKING:  # at run time an annotation is a component, and each class gets a call of its own
        scheduler: Any
        __call__: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = cls.__dict__.get("settings", {})
        for term in cls.__dict__.get("terms", ()):
            cls.settings = {**cls.settings, **term.settings, **own}
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "task") and "__call__" not in cls.__dict__:
            parts = [cls.inputs, cls.task.inputs, *(part.Inputs for part in (cls.control, *cls.terms) if part is not None)]
            cls.Inputs = combine(f"{cls.__name__}Inputs", parts, {**cls.task.defaults, **cls.defaults})
            order = cls.arguments.get(cls.task.name, "")
            if "arguments" not in cls.__dict__:
                extra = [f.name for term in cls.terms for f in dataclasses.fields(term.Inputs)]
                order = " ".join([order, *(n for n in extra if n not in Inputs.__dataclass_fields__)])
            cls.__call__ = _call_of(signature(cls.Inputs, order))  # type: ignore[method-assign]

    @property
    def denoiser(self) -> Any:
        """The network that predicts."""
        raise AttributeError(f"{type(self).__name__} names no denoiser")

    def with_denoiser(self, network: Any) -> Self:
        """This pipeline with another network in the denoiser's place; all else is shared."""
        twin, own = copy.copy(self), self.denoiser
        twin.__dict__.update({name: network for name, component in self.components.items() if component is own})
        return twin

    @property
    def guidance_distilled(self) -> bool:
        """Whether guidance is distilled into the denoiser, so that there is no negative branch."""
        return False

    def count(self, inputs: Any) -> int:
        """How many pictures the inputs ask for."""
        return inputs.batch_size

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        return Conditioning(Branch({}, self.denoiser.attend))

    def adapt(self, inputs: Any, cond: Conditioning) -> Conditioning:
        """The conditions with what the pipeline's adapters add to them and to their attention, before controls and guidance see them."""
        return cond

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        raise AttributeError(f"{type(self).__name__} does not say how it calls its denoiser")

    def residuals(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Mapping[str, Any]:
        """What the control adds to the arguments of the denoiser; `denoise_once` passes it on."""
        return {} if self.control is None else self.control.residuals(self, x, t, branch, run)

    def check(self, inputs: Any) -> None:
        """Raise InputError for arguments that do not go together."""

    def guidance(self, inputs: Any) -> Any:
        """The guidance that the scales among the inputs ask for."""
        terms = [made for term in self.terms if (made := term.from_inputs(inputs)) is not None]
        return CFG(max(getattr(inputs, "guidance_scale", 1.0), 0.0), getattr(inputs, "guidance_rescale", 0.0), terms)

    def step_options(self, run: Run) -> dict[str, Any]:
        """Keyword arguments for those schedulers whose `step` takes them."""
        return {"generator": run.inputs.generator}

    def schedule_options(self, run: Run) -> dict[str, Any]:
        """Further keyword arguments of the scheduler's `set_timesteps`; None is not passed."""
        return {}

    def passes(self, run: Run) -> Iterator[None]:
        """Once for each time that the steps are run, as a rule one; before each, `run.x` and `run.timesteps` may be set anew."""
        yield

    def named_tensors(self, run: Run) -> dict[str, Tensor]:
        """What a callback may read and replace, by public name."""
        return {"latents": run.x, **run.tensors}

    def replace_tensors(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        run.x = tensors.get("latents", run.x)
        run.tensors |= {name: tensors[name] for name in run.tensors if name in tensors}

    def decode(self, run: Run) -> dict[str, Any]:
        """The fields of the output, from the final latents."""
        if run.inputs.output_type == "latent":
            return {"images": self.result(run)}
        pixels, flagged = self.screened(self.pixels(run))
        return {"images": self.to_images(pixels, run)} | ({} if flagged is None else {"nsfw_content_detected": flagged})

    def attach_safety_checker(self, checker: Any, feature_extractor: Any = None) -> None:
        """From now on pictures go past this checker, and those that it flags are black; None takes it away. Pipelines made from this one
        inherit it. It takes the place of a checker that came with the checkpoint.
        Args:
            checker: such as a StableDiffusionSafetyChecker; called with `clip_input`, (B, 3, 224, 224), and `images`, (B, 3, H, W) in [0, 1],
                it gives the images and, for each, whether it is flagged.
            feature_extractor: what makes `clip_input` of PIL pictures, such as a CLIPImageProcessor.
        Raises InputError for a checker without feature extractor, and for pipelines that make no pictures.
        """
        if not issubclass(self.Output, ImagePipelineOutput):
            raise InputError("This pipeline makes no pictures.", where="attach_safety_checker", got=type(self).__name__)
        if checker is not None and not (callable(checker) and callable(feature_extractor)):
            expected, got = "a CLIPImageProcessor", type(feature_extractor).__name__
            raise InputError("The safety checker lacks its feature extractor.", where="feature_extractor", got=got, expected=expected)
        self.__dict__["_screen"] = None if checker is None else (checker, feature_extractor)

    @property
    def screen(self) -> tuple[Any, Any] | None:
        """The safety checker and its feature extractor."""
        return self.__dict__.get("_screen")

    def inherit(self, source: DiffusionPipeline) -> None:
        super().inherit(source)
        self.__dict__["_screen"] = source.__dict__.get("_screen")

    def screened(self, pixels: Tensor) -> tuple[Tensor, list[bool] | None]:
        """Pictures (B, 3, H, W) in [-1, 1] with those black that the safety checker flags, and which; without a checker all pass."""
        if self.screen is None:
            return pixels, None
        checker, extractor = self.screen
        home = next(iter(checker.parameters()), pixels) if hasattr(checker, "parameters") else pixels
        seen = extractor(tensor_to_images(pixels), return_tensors="pt").pixel_values.to(home)
        checked, flagged = checker(clip_input=seen, images=tensor_to_images(pixels, "pt"))
        return checked * 2 - 1, flagged

    def result(self, run: Run) -> Tensor:
        """The latents of the result."""
        return run.x

    def pixels(self, run: Run) -> Tensor:
        """The result as pictures (B, 3, fH, fW) in [-1, 1]."""
        return self.codec.decode(self, self.result(run))

    def to_images(self, pixels: Tensor, run: Run) -> Any:
        return self.task.finish(tensor_to_images(pixels, run.inputs.output_type), run)

    def self_attention_sites(self) -> list[str]:
        """The dotted names of the denoiser's layers that attend to the picture itself."""
        modules = self.denoiser.named_modules()
        return [name for name, m in modules if hasattr(m, "site") and not getattr(m, "is_cross_attention", False)]

    def residual_sites(self) -> list[str]:
        """The dotted names of the denoiser's layers that add to what they read: attention and feed-forward networks."""
        return [name for name, m in self.denoiser.named_modules() if getattr(m, "skippable", hasattr(m, "site"))]

    def run_dtype(self, run: Run) -> torch.dtype:
        """The dtype of the latents: that of the conditions that are no whole numbers, else of the denoiser."""
        return next((c.dtype for c in run.cond.positive.cond.values() if c.is_floating_point()), self.denoiser.dtype)

    def set_timesteps(self, run: Run, steps: int | None = None) -> Tensor:
        """Set the run's scheduler to the timesteps that the inputs ask for, or to so many: (steps,)."""
        inputs, scheduler = run.inputs, run.scheduler
        custom = {n: v for n in ("timesteps", "sigmas") if (v := getattr(inputs, n, None)) is not None}
        options = {n: v for n, v in self.schedule_options(run).items() if v is not None}
        if len(custom) > 1:
            raise InputError("Timesteps are given twice.", where="timesteps, sigmas", expected="one of the two")
        for name in (custom | options).keys() - inspect.signature(scheduler.set_timesteps).parameters.keys():
            got, expected = type(scheduler).__name__, "one whose set_timesteps has this argument, such as EulerDiscreteScheduler"
            raise InputError("This scheduler takes no schedule of one's own.", where=name, got=got, expected=expected)
        steps = steps or inputs.num_inference_steps
        scheduler.set_timesteps(*(() if custom else (steps,)), **custom, **options, device=self.device)
        run.steps = len(scheduler.timesteps) if custom else steps
        return scheduler.timesteps

    @torch.no_grad()
    def generate(self, inputs: Any) -> Any:
        """Everything behind the call: check, encode, denoise, decode."""
        inputs.check()
        rows = self.count(inputs)
        self.check(inputs)
        self.task.check(self, inputs, rows)
        if self.control is not None:
            inputs = self.control.fit(self, inputs, rows)
        allowed = (*self.callback_tensors, *self.task.tensors, *(self.control.tensors if self.control is not None else ()))
        if unknown := [n for n in inputs.callback_on_step_end_tensor_inputs if n not in allowed]:
            raise InputError("No such tensor.", where="callback_on_step_end_tensor_inputs", got=unknown, expected=", ".join(allowed))
        if inputs.guidance is not None and not callable(inputs.guidance):
            got, fix = type(inputs.guidance).__name__, "A term goes into one: CFG(5, terms=[PAG(3)])."
            raise InputError("This is no guidance.", where="guidance", got=got, expected="such as CFG(5)", fix=fix)
        guidance = copy.deepcopy(inputs.guidance) or self.guidance(inputs)  # terms keep what they record, so a call has its own
        guidance = self.decorated(guidance)
        branch = guidance.needs_negative and not self.guidance_distilled
        with adapters_at(scale_in(getattr(inputs, "cross_attention_kwargs", None))):
            cond = self.adapt(inputs, self.encode(inputs, branch or getattr(guidance, "reads_negative", False)))
        if self.control is not None:
            cond = self.control.prepare(self, inputs, cond)
        cond = guidance.prepare(cond, self)
        run = Run(inputs, rows, cond, scheduler=copy.copy(self.scheduler))
        self.task.start(self, run)
        if self.control is not None:
            self.control.start(self, run)
        for _ in self.passes(run):
            with self._running(run), self.progress_bar(total=len(run.timesteps)) as bar:
                for _ in denoise(self, run, guidance):
                    bar.update()
                    self._after_step(run, guidance)
        fields = self.decode(run)
        return self.Output(**fields) if inputs.return_dict else tuple(fields.values())

    def _after_step(self, run: Run, guidance: Any) -> None:
        inputs, t = run.inputs, run.timesteps[run.index]
        if inputs.callback_on_step_end is not None:
            tensors = self.named_tensors(run)
            wanted = {n: tensors[n] for n in inputs.callback_on_step_end_tensor_inputs if n in tensors}
            self.replace_tensors(run, inputs.callback_on_step_end(RunView(self, run, guidance), run.index, t, wanted) or {})
            if run.cond.negative is not None and not guidance.needs_negative:
                run.cond = guidance.prepare(Conditioning(run.cond.positive), self)
        if inputs.callback is not None and run.index % inputs.callback_steps == 0:
            inputs.callback(run.index // run.scheduler.order, t, self.named_tensors(run)["latents"])

    @classmethod
    @functools.cache
    def with_task(cls, name: str) -> type[Family]:
        """This family, with these terms, at the task that belongs to an argument."""
        return type(f"{cls.__name__}[{name}]", (cls,), {"task": cls.tasks[name], "terms": cls.terms, "control": cls.control})


class RunView:
    """The pipeline as a callback sees it: scheduler, scales, arguments and interruption are those of its own run."""

    def __init__(self, pipe: Family, run: Run, guidance: Any):
        self.__dict__.update(_pipe=pipe, _run=run, _guidance=guidance)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        return type(self._pipe)

    def _home(self, name: str) -> tuple[Any, str]:
        """The object that holds what the reference calls `name`, with or without an underscore, and its name there."""
        run, plain = self._run, name.removeprefix("_")
        own = {"interrupt": (run, "stop"), "scheduler": (run, "scheduler")}
        own |= {f"guidance_{part}": (self._guidance, part) for part in ("scale", "rescale")}
        own |= {"image_guidance_scale": (self._guidance, "image_scale")} if hasattr(self._guidance, "image_scale") else {}
        return own.get(plain) or ((run.inputs, plain) if plain in type(run.inputs).__dataclass_fields__ else (self._pipe, name))

    def __getattr__(self, name: str) -> Any:
        if name.removeprefix("_") == "num_timesteps":
            return len(self._run.timesteps)
        if name == "do_classifier_free_guidance":
            return self._run.cond.negative is not None
        if name in self._pipe.in_run:
            return functools.partial(getattr(self._pipe, self._pipe.in_run[name]), self._run)
        return getattr(*self._home(name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(*self._home(name), value)


def _call_of(call_signature: inspect.Signature) -> Any:
    """The `__call__` of a class with this signature."""

    def __call__(self: Family, *args: Any, **kwargs: Any) -> Any:
        for name in self.tasks:
            if kwargs.get(name) is not None and name not in call_signature.parameters:
                pipe = copy.copy(self)
                pipe.__class__ = type(self).with_task(name)
                return pipe(*args, **kwargs)
        try:
            bound = call_signature.bind(self, *args, **kwargs)
        except TypeError as error:
            where, known = type(self).__name__, ", ".join([*call_signature.parameters][1:])
            raise InputError("These arguments do not fit the call.", where=where, got=str(error), expected=known) from None
        return self.generate(self.Inputs(**{n: v for n, v in bound.arguments.items() if n != "self"}))

    __call__.__signature__ = call_signature  # type: ignore[attr-defined]
    __call__.__doc__ = "Make pictures. `help(type(pipe).Inputs)` and the command line list what each argument means."
    return __call__
