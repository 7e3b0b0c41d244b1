"""A network of two layers, with everything that loading has to care about."""

from __future__ import annotations
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
import torch
from torch import Tensor, nn
from darkroom.checkpoints.hub import fetch_pipeline
from darkroom.checkpoints.index import ModelIndex
from darkroom.checkpoints.plan import plan_pipeline
from darkroom.config import Config
from darkroom.models.base import Model
from darkroom.outputs import Output


@dataclass
class ToyOutput(Output):
    sample: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class ToyConfig(Config):
    width: int = 8
    layers: int = 2
    bias: bool = True


class Toy(Model):
    Config = ToyConfig
    Result = ToyOutput
    keep_in_float32 = ("norm",)

    def build(self, config: ToyConfig) -> None:
        self.blocks = nn.ModuleList(nn.Linear(config.width, config.width, bias=config.bias) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.conv = nn.Conv2d(config.width, config.width, 1)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.arange(4, dtype=torch.float32, device="cpu"), persistent=False)

    @staticmethod
    def rename_key(name: str) -> str:
        return name.replace("old_norm.", "norm.")

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Tied(Model):
    Config = ToyConfig
    Result = ToyOutput

    def build(self, config: ToyConfig) -> None:
        self.a, self.b = nn.Linear(config.width, config.width), nn.Linear(config.width, config.width)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def toy(seed: int = 0, **options: object) -> Toy:
    torch.manual_seed(seed)
    model = Toy(**options)
    for p in model.parameters():
        nn.init.normal_(p)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left)


def download_pipeline(source: object, *, skip: Collection[str] = (), choice: Mapping[str, Any] = {}, **hub: Any) -> Path:
    return fetch_pipeline(source, passed=skip, **choice, **hub)[0]


def pipeline_files(paths: Collection[str], components: Collection[str], **choice: Any) -> list[str]:
    """The files of a pipeline that has these components, of classes that are not known."""
    return list(plan_pipeline(paths, ModelIndex(None, dict.fromkeys(components, ("", ""))), **choice).files)
