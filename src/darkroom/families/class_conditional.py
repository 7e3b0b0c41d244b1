"""Pictures of a class: consistency models and DiT."""

from __future__ import annotations
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
import torch
from torch import Tensor
from ..core.codec import ScaledCodec
from ..core.inputs import REQUIRED, field
from ..core.tasks import Text2Image
from ..core.types import Branch, Conditioning, Run
from ..errors import InputError
from ..family import CallInputs, Family
from .unconditional import BatchInputs, Unconditional

if TYPE_CHECKING:
    from ..models.autoencoder_kl import AutoencoderKL
    from ..models.dit_transformer_2d import DiTTransformer2DModel
    from ..models.unet_2d import UNet2DModel
    from ..schedulers.base import Scheduler
    from ..schedulers.consistency_models import CMStochasticIterativeScheduler

__all__ = ["ConsistencyModelPipeline", "DiTPipeline"]


def labels_of(value: Any, most: int) -> Tensor:
    """Classes, one or several, as (B,). Raises InputError for what is no class from 0 to `most`."""
    try:
        labels = torch.as_tensor(value).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        labels = torch.empty(0)
    if labels.is_floating_point() or labels.is_complex() or len(labels) == 0 or labels.min() < 0 or labels.max() > most:
        raise InputError("Not classes of this network.", where="class_labels", got=value, expected=f"whole numbers from 0 to {most}")
    return labels.long()


@dataclass(kw_only=True)
class ConsistencyInputs(BatchInputs):
    class_labels: Tensor | list[int] | int | None = field("Class of each picture, where the network knows classes; random if not given.")
    num_inference_steps: int = field("Steps: one is enough, a second and third make it finer.", 1, minimum=1, integer=True)
    timesteps: list[int] | None = field("A schedule of one's own, in the place of the number of steps: positions in the table, falling.")


class ClassPicture(Text2Image):
    """Start from noise, with a random class for each picture if none is given. Random numbers: the noise, then the classes."""

    def start(self, pipe: Any, run: Run) -> None:
        super().start(pipe, run)
        classes, given = pipe.unet.config.num_class_embeds, run.inputs.class_labels
        if classes is not None:
            labels = self._drawn(classes, run) if given is None else labels_of(given, classes - 1)
            run.cond = Conditioning(run.cond.positive.with_cond(class_labels=labels.expand(run.rows).to(pipe.device)))

    @staticmethod
    def _drawn(classes: int, run: Run) -> Tensor:
        sources = run.inputs.generator if isinstance(run.inputs.generator, (list, tuple)) else [run.inputs.generator]
        part = (run.rows // len(sources),)
        return torch.cat([torch.randint(0, classes, part, generator=g, device=g and g.device).cpu() for g in sources])


class ConsistencyModelPipeline(Unconditional):
    """One step, or a few, with a network that predicts x0 from any level of noise (Song et al. 2023)."""

    unet: UNet2DModel
    scheduler: CMStochasticIterativeScheduler
    task = ClassPicture()
    inputs = ConsistencyInputs
    arguments = {
        "text2image": "batch_size class_labels num_inference_steps timesteps generator latents output_type return_dict callback callback_steps"
    }

    def check(self, inputs: Any) -> None:
        if inputs.num_inference_steps is None and inputs.timesteps is None:
            where = "num_inference_steps, timesteps"
            raise InputError("There is no number of steps.", where=where, expected="one of the two")
        classes = self.unet.config.num_class_embeds
        if classes is not None and inputs.class_labels is not None:
            if (got := len(labels_of(inputs.class_labels, classes - 1))) not in (1, inputs.batch_size):
                raise InputError("There must be one class per picture.", where="class_labels", got=got, expected=inputs.batch_size)

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        return self.unet(x, t, branch.cond.get("class_labels"), attend=branch.attend).sample


@dataclass(kw_only=True)
class DiTInputs(CallInputs):
    class_labels: list[int] = field("The class of each picture, by number; see `get_label_ids`.", REQUIRED)
    guidance_scale: float = field("Weight of the class; 1 or less switches guidance off.", 4.0)


class DiTPipeline(Family):
    """A transformer over latents, conditioned on a class (Peebles & Xie 2023). `labels` maps words to classes, where the checkpoint has them."""

    transformer: DiTTransformer2DModel
    vae: AutoencoderKL
    scheduler: Scheduler
    settings: ClassVar[Mapping[str, Any]] = {"id2label": None}
    codec = ScaledCodec("vae")
    task = Text2Image()
    inputs = DiTInputs
    arguments = {"text2image": "class_labels guidance_scale generator num_inference_steps output_type return_dict"}

    if TYPE_CHECKING:
        id2label: Mapping[str, str] | None

    def __init__(self, *args: Any, **values: Any):
        super().__init__(*args, **values)
        if self.id2label is not None:
            self.register_to_config(id2label=self.id2label)  # a checkpoint without words does not mention them

    @property
    def labels(self) -> dict[str, int]:
        """Class by word; several words, between commas, may mean one class."""
        words = {word.strip(): int(number) for number, words in (self.id2label or {}).items() for word in words.split(",")}
        return dict(sorted(words.items()))

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """The classes that words mean. Raises InputError for a word that means none."""
        words, labels = [label] if isinstance(label, str) else list(label), self.labels
        if unknown := [word for word in words if word not in labels]:
            raise InputError(
                "No class of that name.", where="label", got=unknown, expected=", ".join(labels)[:1000] or "this checkpoint has no words"
            )
        return [labels[word] for word in words]

    @property
    def denoiser(self) -> Any:
        return self.transformer

    def count(self, inputs: Any) -> int:
        return len(labels_of(inputs.class_labels, self.transformer.config.num_embeds_ada_norm))

    def encode(self, inputs: Any, needs_negative: bool) -> Conditioning:
        none = self.transformer.config.num_embeds_ada_norm  # the class that stands for none is the last
        labels = labels_of(inputs.class_labels, none).to(self.device)
        positive = Branch({"class_labels": labels}, self.transformer.attend)
        return Conditioning(positive, positive.with_cond(class_labels=torch.full_like(labels, none)) if needs_negative else None)

    def denoise_once(self, x: Tensor, t: Tensor, branch: Branch, run: Run) -> Tensor:
        pred = self.transformer(x, t, branch.cond["class_labels"], attend=branch.attend).sample
        channels = x.shape[1]
        return pred[:, :channels] if pred.shape[1] == 2 * channels else pred  # the other half would be the variance
