"""Adapters on layers: what they carry, what a fork takes along, and bases that are no plain weights."""

from __future__ import annotations
import copy
import pickle
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from darkroom.core.strength import adapters_at
from darkroom.errors import InputError
from darkroom.runtime import lora
from darkroom.runtime.fork import cast_copy, fork
from darkroom.runtime.low_rank import LowRank


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Sequential(nn.Linear(4, 4, bias=False)))


def delta(out=4, wide=6, rank=2, seed=1, alpha=None):
    random = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, wide, generator=random), torch.randn(out, rank, generator=random), alpha)


def attach(net, name="a", **options):
    deltas = {"0": delta(**options), "2.0": delta(wide=4, **options)}
    with torch.no_grad(), lora.whole(lora.layers_of(net, deltas)):
        lora.attach(net, deltas, name)
    return net


@pytest.fixture
def x():
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def test_a_layer_with_an_adapter(x):
    net = network()
    names, tensors = list(net.state_dict()), dict(net.named_parameters())
    attach(net, alpha=1.0)
    first, d = net[0], delta(alpha=1.0)
    torch.testing.assert_close(first(x), F.linear(x, first.weight + d.up @ d.down / 2, first.bias))
    with adapters_at(0.5):
        torch.testing.assert_close(first(x), F.linear(x, first.weight + d.up @ d.down / 4, first.bias))
    assert isinstance(first, nn.Linear) and list(net.state_dict()) == names
    assert all(p is tensors[name] for name, p in net.named_parameters())
    lora.delete(net, ["a"])
    assert type(net[0]) is nn.Linear and net[0].__dict__.keys() == nn.Linear(1, 1).__dict__.keys()


COPIES = {"fork": fork, "copy": copy.copy, "deep copy": copy.deepcopy, "pickle": lambda net: pickle.loads(pickle.dumps(net))}


@pytest.mark.parametrize("ready", [False, True], ids=["", "to be swapped"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@torch.no_grad()
def test_copies_start_with_the_adapters_and_are_independent(x, copied, ready):
    net = network()
    if ready:
        lora.prepare_hotswap(net, 3)
    attach(net)
    with_a = net(x)
    twin = copied(net)
    assert torch.equal(twin(x), with_a)
    if copied is copy.copy:
        return  # the layers themselves are the same
    new = {"0": delta(seed=9), "2.0": delta(seed=9, wide=4)}
    with lora.whole(lora.layers_of(twin, new)):
        lora.swap(twin, new, "a")
    swapped = twin(x)
    assert torch.equal(net(x), with_a) and not torch.equal(swapped, with_a)
    with lora.whole(lora.layers_of(net, new)):
        lora.swap(net, {"0": delta(seed=11)}, "a")
    assert torch.equal(twin(x), swapped) and not torch.equal(net(x), with_a)
    lora.delete(net, ["a"])
    assert torch.equal(twin(x), swapped)


@torch.no_grad()
def test_fused_weights_of_forks(x):
    net = attach(network())
    with_a, own = net(x), net[0].weight
    child = fork(net)
    lora.fuse(child)
    assert net[0].weight is own and child[0].weight is not own
    grandchild = cast_copy(child, torch.float64)
    torch.testing.assert_close(grandchild(x.double()).float(), with_a)
    lora.unfuse(grandchild)
    assert grandchild[0].weight.dtype == torch.float64
    torch.testing.assert_close(grandchild(x.double()).float(), with_a)
    lora.unfuse(child)
    assert child[0].weight is own and torch.equal(child(x), with_a)
    lora.fuse(net)
    net.double()
    assert {p.dtype for p in child.parameters()} == {torch.float64}  # the originals are shared, and moved with the fork that keeps them
    lora.unfuse(net)
    assert net[0].weight is own


@torch.no_grad()
def test_parts_of_another_network(x):
    """A network that is made of another's layers knows of the adapters on them."""
    net = attach(attach(network(), "a"), "b", seed=3)
    lora.update(net, lora.Network({"a": 0.5, "b": {"2.0": 0.25}}, ("a", "b")))
    lora.fuse(net, ["b"])
    other = lora.adopt(nn.Sequential(*fork(net).children()))
    found = lora.network_of(other)
    assert list(found.weights) == ["a", "b"] and found.active == ("a",) and found.fused == ("b",)
    torch.testing.assert_close(other(x), net(x))
    lora.update(other, found)
    torch.testing.assert_close(other(x), net(x))
    lora.unfuse(other)
    assert other[0].weight is net[0]._lora.base["weight"]


class Quantised(nn.Module):
    """Weights as whole numbers, as quantising libraries keep them."""

    def __init__(self, layer):
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        self.register_buffer("weight", (layer.weight.detach() * 127).round().clamp(-127, 127).to(torch.int8))
        self.bias = layer.bias

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) / 127, self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_quantised_weights(x, dtype):
    net = nn.Sequential(Quantised(network()[0])).to(dtype)
    x, plain, kept = x.to(dtype), net(x.to(dtype)), net[0].weight.clone()
    deltas = {"0": delta()}
    with lora.whole(lora.layers_of(net, deltas)):
        lora.attach(net, deltas, "a")
    d = delta().to(dtype=dtype)
    torch.testing.assert_close(
        net(x), plain + F.linear(F.linear(x, d.down), d.up), atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0.05
    )
    assert torch.equal(net[0].weight, kept)
    with pytest.raises(InputError, match="quantised"):
        lora.fuse(net)
    assert torch.equal(net[0].weight, kept) and lora.network_of(net).fused == ()


@torch.no_grad()
def test_autocast(x):
    net = attach(network())
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), net(x), atol=0.1, rtol=0.1)
    assert net[0]._lora.active[0].probe.dtype == torch.float32


@torch.no_grad()
def test_an_error_takes_everything_back(x):
    net = attach(network())
    before, state = net(x), lora.network_of(net)
    with pytest.raises(RuntimeError, match="stop"), lora.whole(lora.layers_of(net, {})):
        lora.delete(net, ["a"])
        raise RuntimeError("stop")
    assert torch.equal(net(x), before) and lora.network_of(net) is state


@torch.no_grad()
def test_an_error_takes_weights_back_that_are_written_in_place(x):
    net = network()
    lora.prepare_hotswap(net, 4)
    before, state = attach(net)(x), lora.network_of(net)
    with pytest.raises(RuntimeError, match="stop"), lora.whole(lora.layers_of(net, {})):
        lora.update(net, lora.Network({"a": 0.5}, ("a",), target_rank=4))
        assert not torch.equal(net(x), before)
        raise RuntimeError("stop")
    assert torch.equal(net(x), before) and lora.network_of(net) is state


def test_a_rank_beyond_what_was_prepared():
    net = network()
    lora.prepare_hotswap(net, 2)
    with pytest.raises(InputError, match="rank"):
        attach(net, rank=3)
    assert not list(lora.adapted_layers(net)) and lora.network_of(net).weights == {}


@torch.no_grad()
def test_a_layer_that_stands_in_two_places(x):
    """It carries an adapter once, under the first of its names."""
    layer = nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(6, 4), layer, layer)
    plain = net(x)
    deltas = {"1": delta(wide=4)}
    with lora.whole(lora.layers_of(net, deltas)):
        lora.attach(net, deltas, "a")
    assert not torch.equal(net(x), plain)
    lora.fuse(net)
    fused = net(x)
    lora.unfuse(net)
    torch.testing.assert_close(net(x), fused)
    lora.delete(net, ["a"])
    assert torch.equal(net(x), plain)
