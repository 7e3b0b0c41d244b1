"""IP-Adapters of a pipeline: pictures beside the prompt (Ye et al. 2023). Nothing in the pipeline's networks changes: attention is passed down."""

from __future__ import annotations
import copy
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
import torch
from torch import Tensor, nn
from ..core.attention import Attend, Patch, resolve
from ..core.types import Branch, Conditioning, Run
from ..errors import CheckpointError, InputError
from ..models.ip_adapter import FaceIDPlus, IPAdapter, attention_layers, readers
from ..runtime.fork import cast_copy
from ..runtime.ip_adapter import Decoupled, ImagePrompts, Scale, check_masks
from .blocks import by_transformer

if TYPE_CHECKING:
    from ..checkpoints.files import PathLike
    from ..pipeline import DiffusionPipeline

    Base = DiffusionPipeline
else:
    Base = object

__all__ = ["IPAdapters", "LoadedIPAdapter"]

logger = logging.getLogger("darkroom")
CLIP_SIZE = 224  # pixels, where no image encoder says it
WIDTHS = {"pooled": "projection_dim", "states": "hidden_size"}  # of an image encoder, by what an adapter reads


@dataclass(eq=False)
class LoadedIPAdapter:
    """One adapter of a pipeline. The kind "FaceID plus" reads, beside the face embeddings of the call, what the pipeline's image encoder sees in the
    face: `clip_embeds`, with the negative half first where there is guidance, (1 or 2, n, N, d), as `prepare_ip_adapter_image_embeds` gives it.
    `shortcut` is for its version 2, and `shortcut_scale` how much what is seen counts there.
    """

    network: IPAdapter
    scale: Mapping[str, Scale]
    clip_embeds: Tensor | None = None
    shortcut: bool = False
    shortcut_scale: float = 1.0

    @property
    def kind(self) -> str:
        return self.network.kind

    def tokens(self, embeds: Tensor, states: Tensor | None) -> Tensor:
        """(S, R, n, ...) to (S, R, n, T, C)."""
        network, many = self.network.image_proj, embeds.shape[:3]
        x = embeds.to(self.network.device, self.network.dtype).flatten(0, 2)
        if not isinstance(network, FaceIDPlus):
            return network(x).unflatten(0, many)
        if states is None:
            fix = "pipe.ip_adapters[0].clip_embeds = ..., or a pair (face, states) in ip_adapter_image_embeds."
            raise InputError("This adapter reads an image encoder's states beside the face.", where="clip_embeds", got=None, fix=fix)
        rows = states.ndim == 5 and states.shape[0] == many[0] and states.shape[1] in (1, many[1]) and states.shape[2] == many[2]
        if not rows or states.shape[-1] != network.perceiver_resampler.width:
            expected = f"as many rows and pictures as the face embeddings, {network.perceiver_resampler.width} wide"
            raise InputError("States that do not fit the faces.", where="clip_embeds", got=tuple(states.shape[1:]), expected=expected)
        seen = states.to(x).expand(*many, *states.shape[3:]).flatten(0, 2)
        return network(x, seen, self.shortcut_scale if self.shortcut else None).unflatten(0, many)


@dataclass(frozen=True)
class Brought:
    """What loading put into the pipeline, to be taken out again."""

    components: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()


class IPAdapters(Base):
    """A mixin for pipelines whose denoiser reads prompts in transformer blocks."""

    in_run: ClassVar[Mapping[str, str]] = {"set_ip_adapter_scale": "_scale_in_run"}
    frames_inside: ClassVar[bool] = False  # layers over pictures have a row for each frame of a result, beside each other
    _ip_adapters: tuple[LoadedIPAdapter, ...] = ()
    _ip_brought = Brought()

    if TYPE_CHECKING:
        denoiser: Any
        image_encoder: Any
        feature_extractor: Any

    @property
    def ip_adapters(self) -> tuple[LoadedIPAdapter, ...]:
        """The adapters that are loaded, in order."""
        return self._ip_adapters

    def _modules(self) -> list[nn.Module]:
        return [*super()._modules(), *(loaded.network for loaded in self._ip_adapters)]

    def load_ip_adapter(
        self, pretrained_model_name_or_path_or_dict: PathLike | Mapping[str, Any] | list[Any], subfolder: str | list[str | None] | None = None,
        weight_name: str | list[str | None] | None = None, image_encoder_folder: str | None = "image_encoder", **hub: Any,
    ) -> None:  # fmt: skip
        """Load one adapter, or with lists several, in place of those that are loaded. Scales begin at 1. All or nothing.
        Args:
            pretrained_model_name_or_path_or_dict: a folder, a hub id, a file, or the tensors.
            subfolder, weight_name: where the file lies there; a list has one for each adapter.
            image_encoder_folder: where the image encoder lies, in `subfolder`, or, with a slash in it, in the repository; used if the pipeline has no
                encoder. None goes without: pass embeddings to the call then. Adapters for face embeddings need none.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` and `proxies`, and `use_safetensors`.
        Raises:
            CheckpointError: a file that is missing, damaged, of an unknown kind, or for another base model; no image encoder, or another one.
        """
        from ..checkpoints.adapters import read_adapter

        given = [v if isinstance(v, list) else [v] for v in (pretrained_model_name_or_path_or_dict, subfolder, weight_name)]
        if {len(v) for v in given} - {1, many := max(map(len, given))}:
            got, expected = [len(v) for v in given], "one entry per adapter, or one for all"
            raise InputError("Lists of several lengths.", where="load_ip_adapter", got=got, expected=expected)
        hub.pop("low_cpu_mem_usage", None)  # accepted from older programs
        layers, before, found, loras = readers(self.denoiser), self._ip_brought, [], []
        parts = {n: getattr(self, n, None) for n in ("image_encoder", "feature_extractor") if n in self.declared().components}
        new = {n: None if n in before.components else part for n, part in parts.items()}  # what an earlier load brought may be replaced
        for source, folder, name in zip(*(v * many if len(v) == 1 else v for v in given)):
            tensors = read_adapter(source, subfolder=folder, weight_name=name, default_names=(), **hub)
            network = IPAdapter.from_tensors(tensors, layers, tensors.where)
            found.append(LoadedIPAdapter(network.to(self.denoiser.device, self.denoiser.dtype), dict.fromkeys(network.homes, 1.0)))
            loras.append(self._lora_of(tensors))
            if network.image_proj.reads != "face" and "image_encoder" in new:
                encoder = new["image_encoder"]
                if encoder is None and self._fits(network, parts["image_encoder"]):
                    encoder = parts["image_encoder"]
                elif encoder is None and image_encoder_folder is not None:
                    encoder = self._load_encoder(source, folder, image_encoder_folder, hub)
                if encoder is not None and not self._fits(network, encoder):
                    what, fix = "The adapter reads another image encoder.", 'Such as image_encoder_folder="models/image_encoder".'
                    got, where = {n: getattr(encoder.config, n) for n in WIDTHS.values()}, f"{tensors.where}, image_encoder"
                    raise CheckpointError(what, where=where, got=got, expected=network.image_proj.width, fix=fix)
                new["image_encoder"] = encoder
        if "feature_extractor" in new and new["feature_extractor"] is None:
            from transformers import CLIPImageProcessor

            encoder = new.get("image_encoder")
            size = CLIP_SIZE if encoder is None else encoder.config.image_size
            new["feature_extractor"] = CLIPImageProcessor(size=size, crop_size=size)
        names = self._load_loras(loras)
        self._drop_loras(before.loras)
        self.register_modules(**new)
        brought = [n for n, part in new.items() if part is not None and (n in before.components or parts[n] is None)]
        self.__dict__.update(_ip_adapters=tuple(found), _ip_brought=Brought(tuple(brought), names))

    def unload_ip_adapter(self) -> None:
        """Forget the adapters, and what was loaded with them: image encoder, preprocessing and LoRA layers. Other pipelines keep theirs."""
        self._drop_loras(self._ip_brought.loras)
        self.register_modules(**dict.fromkeys(n for n in self._ip_brought.components if n in self.components))
        self.__dict__.update(_ip_adapters=(), _ip_brought=Brought())

    def inherit(self, source: DiffusionPipeline) -> None:
        super().inherit(source)
        if not isinstance(source, IPAdapters) or not source._ip_adapters:
            return
        if any(loaded.network.layers != tuple(readers(self.denoiser)) for loaded in source._ip_adapters):
            logger.warning("%s: the IP-Adapters of the source do not fit the denoiser, and are left out.", type(self).__name__)
            return
        mine = tuple(copy.copy(loaded) for loaded in source._ip_adapters)
        if self.denoiser.dtype != source.denoiser.dtype:
            mine = tuple(replace(loaded, network=cast_copy(loaded.network, self.denoiser.dtype)) for loaded in mine)
        self.__dict__.update(_ip_adapters=mine, _ip_brought=source._ip_brought)

    def _load_encoder(self, source: Any, subfolder: str | None, folder: str, hub: Mapping[str, Any]) -> Any:
        """The image encoder beside an adapter's file."""
        from transformers import CLIPVisionModelWithProjection
        from ..checkpoints.hub import HUB_OPTIONS, locate
        from ..checkpoints.models import load_component
        from ..checkpoints.plan import component_files

        fix = "Say where it lies: image_encoder_folder=..., or None to pass ip_adapter_image_embeds; or set pipe.image_encoder before."
        if isinstance(source, Mapping):
            raise CheckpointError("There is no image encoder beside tensors.", where="image_encoder", got=None, fix=fix)
        path = Path(source)
        root, beside = (path.parent, None) if path.is_file() else (source, subfolder)
        place = folder if "/" in folder or not beside else f"{beside}/{folder}"
        options = {name: hub[name] for name in HUB_OPTIONS if name in hub}
        try:
            found = locate(root, files=["config.json"], choose=lambda n, where: component_files(n, where=where), subfolder=place, **options)
            return load_component("image_encoder", CLIPVisionModelWithProjection, found, dtype=self.dtype, device=self.device)
        except CheckpointError as error:
            what, where = f"The image encoder of the IP-Adapter cannot be loaded: {error.what}", error.where or place
            raise CheckpointError(what, where=where, got=error.got or place, expected=error.expected, fix=error.fix or fix) from error

    @staticmethod
    def _fits(network: IPAdapter, encoder: Any) -> bool:
        """Whether an image encoder is one that an adapter reads."""
        return encoder is not None and getattr(encoder.config, WIDTHS[network.image_proj.reads]) == network.image_proj.width

    def _lora_of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The LoRA layers in an adapter's file, which numbers all attention layers, by the names that LoRA files give them."""
        sites, found = [site for site, _ in attention_layers(self.denoiser)], {}
        for name, tensor in tensors.items():
            if match := re.fullmatch(r"ip_adapter\.(\d{1,4})\.(\w+_lora\..+)", name):
                if (number := int(match[1])) >= len(sites):
                    raise CheckpointError("The adapter is for another base model.", got=name, expected=f"{len(sites)} attention layers")
                found[f"unet.{sites[number]}.processor.{match[2]}"] = tensor
        return found

    def _load_loras(self, states: Sequence[Mapping[str, Tensor]]) -> tuple[str, ...]:
        """Load what is not empty as LoRA adapters, and return their names."""
        names: list[str] = []
        try:
            for i, state in enumerate(states):
                if state:
                    taken, active = self.get_list_adapters().get("unet", []), self.denoiser.active_adapters()
                    name = next(n for j in count() if (n := f"faceid_{i}" + f"_{j}" * (j > 0)) not in taken)
                    self.load_lora_weights(state, adapter_name=name)
                    names.append(name)
                    self.denoiser.set_adapter([*active, name])  # beside what is there
        except BaseException:
            self._drop_loras(names)
            raise
        return tuple(names)

    def _drop_loras(self, names: Sequence[str]) -> None:
        if names:
            self.delete_adapters(list(names))

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """How much the pictures count: a number (0 not at all, 1 as trained), or a list with one entry for each adapter.
        An entry is a number; a list with one number for each picture, with masks; or a dictionary of blocks, those left out being 0:
        `{"down": 0.5, "mid": 1.0, "up": {"block_0": [0.0, 1.0, 0.0]}}`, where a block has one entry, or one for each transformer in it.
        In a callback it holds for the rest of that run. Raises InputError for what is none of these, or names what the denoiser does not have.
        """
        for loaded, own in zip(self._ip_adapters, self._expanded(scale)):
            loaded.scale = own

    def _scale_in_run(self, run: Run, scale: Any) -> None:
        scales = self._expanded(scale)
        for prompts in {p.prompts for b in (run.cond.positive, run.cond.negative) if b is not None for p in decoupled(b.attend, scales[0])}:
            prompts.scales = scales

    def _expanded(self, scale: Any) -> list[dict[str, Scale]]:
        """For each adapter its scale at every layer."""
        entries = scale if isinstance(scale, list) else [scale]
        if not self._ip_adapters:
            raise InputError("No IP-Adapter is loaded.", where="set_ip_adapter_scale", fix="Call load_ip_adapter first.")
        if len(entries) not in (1, len(self._ip_adapters)):
            raise InputError("Not one scale per adapter.", where="set_ip_adapter_scale", got=len(entries), expected=len(self._ip_adapters))
        entries = entries * (len(self._ip_adapters) // len(entries))
        return [per_layer(entry, list(loaded.network.homes), self.denoiser) for entry, loaded in zip(entries, self._ip_adapters)]

    @torch.no_grad()
    def encode_image(
        self, image: Any, device: torch.device | str | None = None, num_images_per_prompt: int = 1, output_hidden_states: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the image encoder sees in n pictures and, of the same shape, in none: (n, d), or its states (n, N, d)."""
        encoder = self.image_encoder
        if not isinstance(image, Tensor):
            image = self.feature_extractor(image, return_tensors="pt").pixel_values
        image = image.to(device or self.device, encoder.dtype)
        if not output_hidden_states:
            embeds = encoder(image).image_embeds.repeat_interleave(num_images_per_prompt, 0)
            return embeds, torch.zeros_like(embeds)
        states = encoder(torch.cat([image, torch.zeros_like(image[:1])]), output_hidden_states=True).hidden_states[-2]
        seen = states[:-1].repeat_interleave(num_images_per_prompt, 0)
        return seen, states[-1:].expand_as(seen)

    @torch.no_grad()
    def prepare_ip_adapter_image_embeds(
        self, ip_adapter_image: Any, ip_adapter_image_embeds: Any, device: torch.device | str | None, num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> list[Tensor]:  # fmt: skip
        """For each adapter what `ip_adapter_image_embeds` takes: (rows, n, d) or (rows, n, N, d), with guidance the negative half first."""
        found = [pair[0] for pair in self._embeds(ip_adapter_image, ip_adapter_image_embeds, do_classifier_free_guidance)]
        repeated = [x.repeat(1, num_images_per_prompt, *[1] * (x.ndim - 2)).flatten(0, 1) for x in found]
        return [x.to(device or self.device) for x in repeated]

    def _embeds(self, images: Any, embeds: Any, guided: bool) -> list[tuple[Tensor, Tensor | None]]:
        """For each adapter its embeddings (S, R, n, ...), where S is 2 with guidance, negative first, and 1 without, and states of a face."""
        where, many = "ip_adapter_image" if embeds is None else "ip_adapter_image_embeds", len(self._ip_adapters)
        given = embeds if embeds is not None else images if isinstance(images, list) else [images]
        if not isinstance(given, (list, tuple)) or len(given) != many:
            got = len(given) if isinstance(given, (list, tuple)) else type(given).__name__
            fix = "Several pictures for one adapter are a list in the list." if embeds is None else None
            raise InputError("There must be one entry per IP-Adapter.", where=where, got=got, expected=f"a list of {many}", fix=fix)
        if embeds is None:
            if getattr(self, "image_encoder", None) is None:
                fix = "Pass ip_adapter_image_embeds, or load the adapter with its encoder."
                raise InputError("The pipeline has no image encoder.", where=where, expected="pipe.image_encoder", fix=fix)
            pairs = [self.encode_image(x, None, 1, own.network.image_proj.reads != "pooled") for x, own in zip(given, self._ip_adapters)]
            return [(torch.stack([no, seen] if guided else [seen])[:, None], None) for seen, no in pairs]
        found = []
        for entry, own in zip(given, self._ip_adapters):
            pair = isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(own.network.image_proj, FaceIDPlus)
            entry, states = entry if pair else (entry, own.clip_embeds)
            reads, width = own.network.image_proj.reads, own.network.image_proj.width
            expected = f"(rows, pictures, {'tokens, ' * (reads == 'states')}{width})"
            fits = (
                isinstance(entry, Tensor) and entry.ndim == (4 if reads == "states" else 3) and entry.shape[-1] == width and entry.numel()
            )
            if not fits:
                got = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
                raise InputError(f"Embeddings that the adapter ({own.kind}) does not read.", where=where, got=got, expected=expected)
            if guided and len(entry) == 1 and reads != "states":
                entry = torch.cat([torch.zeros_like(entry), entry])  # what no picture looks like to these
            if guided and (len(entry) % 2 or (states is not None and len(states) % 2)):
                what, fix = "With guidance the first half of the rows is for no picture.", "Use prepare_ip_adapter_image_embeds."
                raise InputError(what, where=where, got=tuple(entry.shape), expected=f"two halves, {expected}", fix=fix)
            halves = [x if x is None else x.unflatten(0, (2 if guided else 1, -1)) for x in (entry, states)]
            found.append((halves[0], halves[1]))
        return found

    def check_ip_adapter(self, inputs: Any) -> None:
        """Raise InputError for pictures without an adapter, an adapter without pictures, or both pictures and embeddings."""
        image, embeds, kinds = inputs.ip_adapter_image, inputs.ip_adapter_image_embeds, [own.kind for own in self._ip_adapters]
        masks = (inputs.cross_attention_kwargs or {}).get("ip_adapter_masks")
        if not kinds and any(value is not None for value in (image, embeds, masks)):
            fix = "Call load_ip_adapter first."
            raise InputError("No IP-Adapter is loaded.", where="ip_adapter_image", expected="None", fix=fix)
        if kinds and (image is None) == (embeds is None):
            got, expected = "neither" if image is None else "both", "ip_adapter_image or ip_adapter_image_embeds"
            fix = "unload_ip_adapter() goes without." if image is None else None
            raise InputError("An IP-Adapter is loaded: it reads a picture.", where="ip_adapter_image", got=got, expected=expected, fix=fix)
        if image is not None and (faces := [kind for kind in kinds if "FaceID" in kind]):
            fix = "Pass what the face recognition network says as ip_adapter_image_embeds."
            raise InputError("This adapter reads face embeddings.", where="ip_adapter_image", got=f"a picture, for {faces[0]}", fix=fix)

    def adapt(self, inputs: Any, cond: Conditioning) -> Conditioning:
        cond = super().adapt(inputs, cond)  # type: ignore[misc]
        if not self._ip_adapters:
            return cond
        pairs = self._embeds(inputs.ip_adapter_image, inputs.ip_adapter_image_embeds, cond.negative is not None)
        rows, tokens = next(iter(cond.positive.cond.values())).shape[0], []
        for (embeds, states), own in zip(pairs, self._ip_adapters):
            made = own.tokens(embeds, states)  # (S, R, n, T, C)
            if rows % made.shape[1]:
                what, where, got = "Embeddings for another number of results.", "ip_adapter_image_embeds", made.shape[1]
                fix = None if cond.negative is not None else "Without guidance there is no negative half."
                raise InputError(what, where=where, got=got, expected=f"1, or a part of {rows}", fix=fix)
            tokens.append(made if made.shape[1] == 1 else made.repeat_interleave(rows // made.shape[1], 1))
        scales = [own.scale for own in self._ip_adapters]
        masks = check_masks((inputs.cross_attention_kwargs or {}).get("ip_adapter_masks"), [t.shape[2] for t in tokens], scales)
        images = ImagePrompts([own.network for own in self._ip_adapters], tokens, scales, masks, self.frames_inside)
        sites = frozenset(self._ip_adapters[0].network.homes)

        def reading(branch: Branch, side: int) -> Branch:
            return branch.with_attention(Patch(branch.attend, sites, Decoupled(images, (side,), branch.attend)))

        if cond.negative is None:
            return Conditioning(reading(cond.positive, 0))
        return Conditioning(reading(cond.positive, 1), reading(cond.negative, 0))


def decoupled(attend: Attend, sites: Iterable[str]) -> list[Decoupled]:
    """The attention to pictures that this comes down to at any of these layers."""
    return [found for site in sites if isinstance(found := resolve(attend, site), Decoupled)]


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def one_scale(value: Any, where: str = "set_ip_adapter_scale") -> Scale:
    """A number, or a list of one for each picture. InputError for anything else."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(map(number, values)):
        raise InputError("Not a scale.", where=where, got=value, expected="a number, or a list of one per picture")
    return tuple(map(float, values)) if isinstance(value, (list, tuple)) else float(value)


def per_layer(entry: Any, sites: Sequence[str], denoiser: nn.Module) -> dict[str, Scale]:
    """A scale at every layer, from a number, a list with one for each picture, or a dictionary of blocks; see `set_ip_adapter_scale`."""
    if not isinstance(entry, Mapping):
        return dict.fromkeys(sites, one_scale(entry))
    scales = by_transformer(denoiser, entry, one_scale, 0.0, "set_ip_adapter_scale")
    return {site: scales.get(site.partition(".transformer_blocks.")[0], 0.0) for site in sites}
