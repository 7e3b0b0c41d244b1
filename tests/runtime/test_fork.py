"""Forks: shared weights, private everything else."""

from __future__ import annotations
import copy
import pytest
import torch
from torch import nn
from darkroom.runtime.fork import cast_copy, fork


def network():
    torch.manual_seed(0)
    tied = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(4, 4), tied, nn.BatchNorm1d(4), nn.Sequential(tied, nn.GELU()))


def test_same_result_and_same_tensors():
    a = network().eval()
    b = fork(a)
    x = torch.randn(3, 4)
    assert torch.equal(a(x), b(x))
    assert [id(p) for p in a.parameters()] == [id(p) for p in b.parameters()]
    assert [id(p) for p in a.buffers()] == [id(p) for p in b.buffers()]
    assert b[1] is b[3][0] and b[1] is not a[1]


CHANGES = {
    "layer": lambda m: m.__setitem__(0, nn.Linear(4, 4)),
    "inner layer": lambda m: m[3].__setitem__(1, nn.ReLU()),
    "hook": lambda m: m[0].register_forward_hook(lambda *a: a[-1] * 2),
    "pre-hook": lambda m: m[3].register_forward_pre_hook(lambda m, a: (a[0] + 1,)),
    "parameter": lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(4, 4))),
    "forward": lambda m: setattr(m[0], "forward", lambda x: x * 0),
    "attribute": lambda m: setattr(m[2], "eps", 5.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("side", ["child", "parent"])
def test_a_change_stays_on_its_side(change, side):
    a = network().eval()
    b = fork(a)
    changed, kept = (b, a) if side == "child" else (a, b)
    x = torch.randn(3, 4)
    before = kept(x)
    change(changed)
    assert not torch.equal(changed(x), before)
    assert torch.equal(kept(x), before)


def test_hooks_of_the_source_are_not_taken_along():
    a = network().eval()
    x = torch.randn(3, 4)
    plain = copy.deepcopy(a)(x)
    a[0].register_forward_hook(lambda *args: args[-1] * 2)
    assert torch.equal(fork(a)(x), plain)


def test_moving_one_moves_both():
    a = network()
    b = fork(a)
    b.to(torch.float64)
    assert {t.dtype for t in (*a.parameters(), *a.buffers())} == {torch.float64, torch.int64}
    assert [id(p) for p in a.parameters()] == [id(p) for p in b.parameters()]
    assert [id(p) for p in a.buffers()] == [id(p) for p in b.buffers()]


def test_cast_copy_leaves_the_source():
    a = network()
    b = cast_copy(a, torch.float64)
    assert {p.dtype for p in a.parameters()} == {torch.float32} and {p.dtype for p in b.parameters()} == {torch.float64}
    assert b[1].weight is b[3][0].weight
    assert next(cast_copy(a, torch.float32).parameters()) is next(a.parameters())
