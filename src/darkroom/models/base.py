"""The base of darkroom's networks: a configuration, the public calling convention, loading and saving."""

from __future__ import annotations
import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar
import torch
from torch import Tensor, nn
from ..adapters.lora import LoraNetwork
from ..checkpoints.files import PathLike
from ..config import Configurable, check_network
from ..core.attention import Attend, backend, sdpa
from ..core.strength import adapters_at, scale_in
from ..errors import ConfigError, InputError
from ..outputs import Output

__all__ = ["Model", "as_batch", "choose"]

T = TypeVar("T")


class Model(Configurable, LoraNetwork, nn.Module):
    """A network over a frozen configuration.
    A subclass sets `Config` and `Result` and implements `build(config)`, which creates the submodules, and `forward`, which returns a
    plain tensor, or a tuple of some. Calling the network wraps them in `Result`, or in a tuple with `return_dict=False`.
    """

    Result: ClassVar[type[Output]]
    weights_name: ClassVar[str] = "diffusion_pytorch_model"
    keep_in_float32: ClassVar[tuple[str, ...]] = ()  # parts of dotted names that stay float32 at any requested dtype
    attend: Attend = staticmethod(sdpa)  # what attention layers use when the caller passes nothing

    def _assemble(self, config: Any) -> None:
        nn.Module.__init__(self)
        self.config = config
        check_network(config, type(self).__name__)
        self.build(config)
        self._name_sites()

    def _name_sites(self) -> None:
        """Tell attention layers their dotted names in this network, by which they are looked up."""
        for name, module in self.named_modules():
            if "site" in module.__dict__:
                module.site = name

    def build(self, config: Any) -> None:
        raise TypeError(f"{type(self).__name__} does not say how it is built")

    def __call__(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        with adapters_at(scale_in(kwargs.get("cross_attention_kwargs"))):
            out = super().__call__(*args, **kwargs)
        parts = out if isinstance(out, tuple) else (out,)
        return self.Result(*parts) if return_dict else parts

    @staticmethod
    def rename_key(name: str) -> str:
        """The present name of a tensor that an old checkpoint calls `name`."""
        return name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def num_parameters(self, only_trainable: bool = False) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def set_attention_backend(self, choice: str | Attend) -> None:
        """Use this attention for calls that pass none: "native", "eager" or a function (see `darkroom.core.attention`)."""
        self.attend = backend(choice)

    def fuse_qkv_projections(self) -> None:
        """Compute the projections to queries, keys and values as one where they read the same input, to keys and values else. This takes a copy
        of their weights; the weights themselves stay. Raises InputError for networks whose layers have further projections.
        """
        layers = [m for m in self.modules() if hasattr(m, "fused")]
        if not layers or not all(m.joinable for m in layers):
            got, expected = type(self).__name__, "attention layers with one projection each to queries, keys and values"
            raise InputError("These projections cannot be joined.", where="fuse_qkv_projections", got=got, expected=expected)
        for layer in layers:
            layer.fused = True

    def unfuse_qkv_projections(self) -> None:
        """Compute projections one by one, and drop the copies."""
        for layer in (m for m in self.modules() if hasattr(m, "fused")):
            layer.fused, layer.joined = False, None

    @classmethod
    def from_pretrained(
        cls, path: PathLike, *, subfolder: str | None = None, dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None, variant: str | None = None, use_safetensors: bool | None = None, **options: Any,
    ) -> Self:  # fmt: skip
        """Load a network from a folder with `config.json` and weights, or a hub id; `subfolder` is the component's inside it.
        `dtype` is the result's, "auto" for what is stored, float32 if not given (`torch_dtype` is its older name); `variant` the weight files',
        such as "fp16", or "auto". `use_safetensors` True refuses `.bin` files, False reads them. `options` are `device` (where the weights go),
        `disable_mmap=True` to read them instead of mapping them, `strict=False` to allow missing tensors, `revision`, `cache_dir`, `token`,
        `local_files_only`, `force_download` and `proxies` for the hub, and keys of the configuration to override.
        Raises CheckpointError if the folder, its configuration or its weights cannot be used.
        """
        from ..checkpoints.models import load_model

        options |= {"subfolder": subfolder, "variant": variant, "use_safetensors": use_safetensors}
        return load_model(cls, path, dtype=dtype or torch_dtype, **options)

    def save_pretrained(
        self, save_directory: PathLike, *, variant: str | None = None, max_shard_size: int | str = "10GB", safe_serialization: bool = True
    ) -> None:
        """Write `config.json` and the weights, whole or not at all."""
        from ..checkpoints.save import save_model

        save_model(self, save_directory, variant=variant, max_shard_size=max_shard_size, safe_serialization=safe_serialization)

    @classmethod
    def from_single_file(
        cls, path: PathLike, *, dtype: torch.dtype | None = None, torch_dtype: torch.dtype | None = None, **options: Any
    ) -> Self:
        """Load this network out of a file in the original layout, of the network alone or of a whole checkpoint: a
        UNet2DConditionModel, AutoencoderKL, ControlNetModel, SparseControlNetModel or MotionAdapter. Keyword arguments override keys of its
        configuration, which is read off the tensors; for the others see `DiffusionPipeline.from_single_file`. Raises CheckpointError if the file
        is of another kind, InputError for another class."""
        from ..checkpoints.single_file import load_single_file

        return load_single_file(cls, path, dtype=dtype or torch_dtype, **options)

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Save into a repository of the hub; `private`, `token`, `commit_message`, `revision`, `create_pr`. Returns the commit's address."""
        from ..checkpoints.hub import push_folder

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(folder, repo_id, **hub)


def as_batch(timestep: Tensor | float | int, sample: Tensor) -> Tensor:
    """A timestep given as a number or a tensor of one element, as one value per row of `sample`: (B,)."""
    if not isinstance(timestep, Tensor):
        dtype = torch.float32 if isinstance(timestep, float) else torch.int64
        timestep = torch.tensor([timestep], dtype=dtype, device=sample.device)
    return timestep.reshape(-1).to(sample.device).expand(sample.shape[0])


def choose(field: str, value: object, table: Mapping[Any, T]) -> T:
    """The entry of `table` that a configuration names in `field`. A ConfigError lists what there is."""
    if value not in tuple(table):
        raise ConfigError("This option has no such value.", where=field, got=value, expected=", ".join(map(str, table)))
    return table[value]
