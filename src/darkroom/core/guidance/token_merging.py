"""Token merging: fewer tokens in self-attention, for speed."""

from __future__ import annotations
import re
from functools import partial
from typing import Any, NamedTuple
import torch
import torch.nn.functional as F
from torch import Tensor
from ...errors import InputError
from ..attention import Attend, Patch
from ..types import Branch, Conditioning, Step
from .common import Addend, check

__all__ = ["Merge", "TokenMerging", "destinations", "plan_merge"]

_SITE = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(?!.*temporal)")


class Merge(NamedTuple):
    """Which tokens join which: `targets` (D,) and `sources` (S,) are places on the map; of the sources `kept` (B, S - r) stay alone, and `gone`
    (B, r) join the targets `into` (B, r). Both count within `sources`, the last within `targets`."""

    targets: Tensor
    sources: Tensor
    kept: Tensor
    gone: Tensor
    into: Tensor

    @staticmethod
    def _wide(index: Tensor, x: Tensor) -> Tensor:
        return index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])

    def merge(self, x: Tensor) -> Tensor:
        """(B, h, N, d) to (B, h, N - r, d): a target becomes the mean of itself and of all that join it."""
        sources, targets = x[:, :, self.sources], x[:, :, self.targets]
        joining = sources.gather(2, self._wide(self.gone, x))
        targets = targets.scatter_reduce(2, self._wide(self.into, x), joining, "mean")
        return torch.cat([sources.gather(2, self._wide(self.kept, x)), targets], 2)

    def unmerge(self, x: Tensor) -> Tensor:
        """(B, h, N - r, d) to (B, h, N, d): what joined a target gets what it gets."""
        kept, targets = x.split([self.kept.shape[1], len(self.targets)], 2)
        sources = x.new_empty(*x.shape[:2], len(self.sources), x.shape[3])
        sources = sources.scatter(2, self._wide(self.kept, x), kept)
        sources = sources.scatter(2, self._wide(self.gone, x), targets.gather(2, self._wide(self.into, x)))
        out = x.new_empty(*x.shape[:2], len(self.sources) + len(self.targets), x.shape[3])
        out[:, :, self.sources], out[:, :, self.targets] = sources, targets
        return out


def destinations(height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """One place of each 2 x 2 cell of a map, at random: (H//2 W//2,), counted row by row. A row or column too many has none."""
    down, across = height // 2, width // 2
    inside = torch.randint(4, (down, across), generator=generator)
    rows = 2 * torch.arange(down)[:, None] + inside // 2
    return (rows * width + 2 * torch.arange(across) + inside % 2).flatten()


def plan_merge(keys: Tensor, targets: Tensor, count: int) -> Merge:
    """Bipartite soft matching (Bolya et al. 2023, alg. 1): of the tokens that are no targets, the `count` whose keys (B, h, N, d) are most alike to
    a target's, by the cosine of all heads, join the target that they are most alike to."""
    x = F.normalize(keys.transpose(1, 2).flatten(2), dim=-1)  # (B, N, h d)
    free = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    free[targets] = False
    sources = free.nonzero()[:, 0]
    best, into = (x[:, sources] @ x[:, targets].transpose(1, 2)).max(-1)  # (B, S)
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone, kept = order[:, :count], order[:, count:]
    return Merge(targets, sources, kept, gone, into.gather(1, gone))


class TokenMerging(Addend):
    """Self-attention over the largest maps with the tokens that are most alike merged (Bolya & Hoffman 2023): faster, with a little less detail.
    A term that adds nothing and asks for no further prediction. Layers that another term changes are left to it.
    Args:
        ratio: the share of tokens that are merged away, in [0, 0.75]; 0 is exactly no merging. 0.5 is usual.
        levels: of how many resolutions with self-attention, from the largest map on.
        seed: of the targets, which are drawn anew at each step, the same for all pictures.
        start, stop: the part of the run, in [0, 1].
    Raises InputError for values outside these ranges, and for networks without such layers.
    """

    def __init__(self, ratio: float = 0.5, levels: int = 1, *, seed: int = 0, start: float = 0.0, stop: float = 1.0):
        super().__init__(1.0, start, stop)
        check("TokenMerging.ratio", ratio, high=0.75)
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
            raise InputError("Not a number of resolutions.", where="TokenMerging.levels", got=levels, expected="1 or more")
        self.ratio, self.levels, self.seed = ratio, levels, seed
        self.sites = frozenset[str]()
        self.generator: torch.Generator | None = None

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        found = [(match[1], int(match[2]), site) for site in pipe.self_attention_sites() if (match := _SITE.match(site))]
        deepest = len(getattr(pipe.denoiser, "down_blocks", ())) - 1
        by_level = [(number if way == "down" else deepest - number, site) for way, number, site in found]
        chosen = sorted({level for level, _ in by_level})[: self.levels]
        if not chosen:
            got, expected = type(pipe.denoiser).__name__, "a UNet with self-attention"
            raise InputError("There is nothing to merge in.", where="TokenMerging", got=got, expected=expected)
        self.sites = frozenset(site for level, site in by_level if level in chosen)
        self.generator = torch.Generator().manual_seed(self.seed)
        return cond

    def active(self, step: Step) -> bool:
        return self.ratio > 0 and super().active(step)

    def wrap(self, step: Step) -> Conditioning:
        places: dict[int, Tensor | None] = {}  # of this step, by the number of tokens
        made: dict[int, Attend] = {}  # branches with one attention keep one

        def merging(branch: Branch) -> Branch:
            base = branch.attend
            replacement = partial(self._merged, step, places, base)
            return branch.with_attention(made.setdefault(id(base), Patch(base, self.sites, replacement)))

        return Conditioning(merging(step.cond.positive), step.cond.negative and merging(step.cond.negative))

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Any) -> Tensor:
        return cond.new_zeros(())

    def _merged(
        self, step: Step, places: dict[int, Tensor | None], attend: Attend, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None,
        site: str = "",
    ) -> Tensor:  # fmt: skip
        tokens = q.shape[2]
        if tokens not in places:
            height, width = step.x.shape[-2:]
            sizes = [(-(-height // f), -(-width // f)) for f in (1, 2, 4, 8, 16, 32)]
            size = next((size for size in sizes if size[0] * size[1] == tokens), (0, 0))
            places[tokens] = destinations(*size, self.generator).to(q.device) if min(size) > 1 else None
        targets = places[tokens]
        if targets is None or mask is not None or k.shape[2] != tokens:
            return attend(q, k, v, mask=mask, site=site)
        merge = plan_merge(k, targets, min(int(self.ratio * tokens), tokens - len(targets)))
        return merge.unmerge(attend(merge.merge(q), merge.merge(k), merge.merge(v), site=site))
