"""The algebra of adapters: beside PEFT's layers, and against formulas written out."""

from __future__ import annotations
import copy
from dataclasses import replace
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from darkroom.runtime.adapter_names import parse
from darkroom.runtime.low_rank import OFT, Difference, LoHa, LoKr, LowRank, weight_shape

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's
SCALES = (0.0, 0.5, 1.0)
LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (2, 5, 12)),
    "plain": (lambda: nn.Linear(12, 8, bias=False), (3, 12)),
    "conv": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 7)),
    "point": (lambda: nn.Conv2d(8, 12, 1), (2, 8, 5, 5)),
}
ALL = list(LAYERS)
PEFT = {
    "lora": (LoraConfig, {"r": 4, "lora_alpha": 3, "init_lora_weights": False}),
    "bias": (
        LoraConfig,
        {"r": 4, "lora_alpha": 3, "lora_bias": True, "init_lora_weights": False, "target_modules": ["linear", "conv", "point"]},
    ),
    "rank-stabilized": (LoraConfig, {"r": 4, "lora_alpha": 3, "use_rslora": True, "init_lora_weights": False}),
    "patterns": (LoraConfig, {"r": 4, "rank_pattern": {"conv": 2}, "alpha_pattern": {"^conv": 7, "point": 1}, "init_lora_weights": False}),
    "dora": (LoraConfig, {"r": 4, "lora_alpha": 3, "use_dora": True, "init_lora_weights": False}),
    "loha": (LoHaConfig, {"r": 3, "alpha": 2, "init_weights": False}),
    "loha-core": (LoHaConfig, {"r": 3, "alpha": 2, "use_effective_conv2d": True, "init_weights": False}),
    "lokr": (LoKrConfig, {"r": 4, "alpha": 3, "init_weights": False}),
    "lokr-low": (LoKrConfig, {"r": 1, "alpha": 3, "decompose_both": True, "init_weights": False}),
    "lokr-core": (LoKrConfig, {"r": 1, "alpha": 3, "use_effective_conv2d": True, "init_weights": False}),
    "oft": (OFTConfig, {"r": 0, "oft_block_size": 4, "init_weights": False}),
    "oft-cayley": (OFTConfig, {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False, "init_weights": False}),
    "oft-3-terms": (OFTConfig, {"r": 0, "oft_block_size": 2, "num_cayley_neumann_terms": 3, "init_weights": False}),
    "oft-shared": (OFTConfig, {"r": 0, "oft_block_size": 2, "block_share": True, "init_weights": False}),
}


def same(ours, theirs, tolerance=2e-6):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=tolerance)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({name: make() for name, (make, _) in LAYERS.items()}).requires_grad_(False)


def inputs():
    torch.manual_seed(7)
    return {name: torch.randn(shape) for name, (_, shape) in LAYERS.items()}


def adapted(*cases, names=("default", "second")):
    """PEFT's network with an adapter for each case, whatever is drawn at random drawn anew, and our changes, by layer."""
    model, found = None, []
    for case, name in zip(cases, names):
        make, options = PEFT[case]
        config = make(**{"target_modules": ALL, **options})
        torch.manual_seed(len(found) + 3)
        if model is None:
            model = get_peft_model(network(), config, name)
        else:
            model.add_adapter(name, config)
        for key, p in model.named_parameters():
            if name in key.split("."):
                with torch.no_grad():
                    p.mul_(1 + torch.rand_like(p)) if "magnitude" in key else p.copy_(torch.randn_like(p) * 0.3)
        state = get_peft_model_state_dict(model, adapter_name=name)
        found.append(parse(state, {"net": network()}, metadata=config.to_dict()).deltas["net"])
    model.base_model.set_adapter(list(names[: len(cases)]))
    return model.base_model.model, found


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", [case for case in PEFT if not case.startswith("oft")])
@torch.no_grad()
def test_layers_as_peft_has_them(case, scale):
    model, [deltas] = adapted(case)
    base = network()
    for name in deltas:
        x, layer = inputs()[name], model[name]
        layer.set_scale("default", scale)
        same(deltas[name].add(base[name], x, base[name](x), scale), layer(x))
        layer.merge(safe_merge=True)
        weight, bias = deltas[name].merged(base[name].weight, base[name].bias, scale)
        same(weight, layer.base_layer.weight)
        assert (bias is None) == (layer.base_layer.bias is None)
        if bias is not None:
            same(bias, layer.base_layer.bias)


@pytest.mark.parametrize("case", [case for case in PEFT if case.startswith("oft")])
@torch.no_grad()
def test_rotations_as_peft_has_them(case):
    """Forward passes of 1x1 layers, and merged weights of all. (PEFT's own forward pass of a larger kernel adds overlapping patches up, and is
    not the base layer's even with the identity.)"""
    model, [deltas] = adapted(case)
    base = network()
    for name in deltas:
        x, layer = inputs()[name], model[name]
        if name != "conv":
            same(deltas[name].add(base[name], x, base[name](x), 1.0), layer(x))
        layer.merge(safe_merge=True)
        same(deltas[name].merged(base[name].weight, base[name].bias, 1.0)[0], layer.base_layer.weight)


PAIRS = [("lora", "lora"), ("lora", "dora"), ("dora", "lora"), ("dora", "dora"), ("loha", "loha-core"), ("lokr", "lokr-low")]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
@torch.no_grad()
def test_two_adapters_as_peft_has_them(pair):
    model, (first, second) = adapted(*pair)
    base = network()
    for name in first:
        x, layer = inputs()[name], model[name]
        layer.set_scale("default", 0.5)
        out = first[name].add(base[name], x, base[name](x), 0.5)
        same(second[name].add(base[name], x, out, 1.0, [(first[name], 0.5)]), layer(x))
        layer.merge(safe_merge=True)
        weight, _ = first[name].merged(base[name].weight, None, 0.5)
        same(second[name].merged(weight, None, 1.0, base[name].weight)[0], layer.base_layer.weight)


@torch.no_grad()
def test_two_rotations():
    """Unfused as fused, which is as PEFT fuses. (PEFT's own forward pass turns in the other order.)"""
    model, (first, second) = adapted("oft", "oft-shared")
    base = network()
    for name in first:
        x, layer = inputs()[name], model[name]
        out = first[name].add(base[name], x, base[name](x), 1.0)
        ours = second[name].add(base[name], x, out, 1.0, [(first[name], 1.0)])
        layer.merge(safe_merge=True)
        same(ours, layer.base_layer(x))


# ---- formulas


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 0.5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


def kron(a, b):
    """sum over the products of entries, as Kronecker has it."""
    out = torch.zeros(a.shape[0] * b.shape[0], a.shape[1] * b.shape[1], *b.shape[2:], dtype=a.dtype)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[i * b.shape[0] : (i + 1) * b.shape[0], j * b.shape[1] : (j + 1) * b.shape[1]] = a[i, j] * b
    return out


def core(c, a, b):
    return torch.einsum("rskl,ro,si->oikl", c, a, b)


def skew(groups, n):
    return random(groups, n, n)


def cayley(q):
    q, one = q - q.mT, torch.eye(q.shape[-1], dtype=q.dtype)
    return torch.stack([(one + part) @ torch.linalg.inv(one - part) for part in q])


def test_changes_of_matrices():
    a, b, c, d, base = random(6, 2), random(2, 12), random(6, 2), random(2, 12), random(6, 12)
    cases = {
        LowRank(b, a, 3.0): a @ b * 3 / 2,
        LowRank(b, a): a @ b,
        LowRank(b, a, 3.0, rank_stabilized=True): a @ b * 3 / 2**0.5,
        LoHa(a, b, c, d, 3.0): (a @ b) * (c @ d) * 3 / 2,
        LoKr(w1 := random(2, 3), w2 := random(3, 4)): kron(w1, w2),
        LoKr(w1, alpha=3.0, w2_a=(u := random(3, 2)), w2_b=(v := random(2, 4))): kron(w1, u @ v) * 3 / 2,
        LoKr(None, w2, 3.0, w1_a=(s := random(2, 1)), w1_b=(t := random(1, 3))): kron(s @ t, w2) * 3,
        Difference(full := random(6, 12)): full,
        Difference(None, random(6)): torch.zeros(6, 12).double(),
    }
    for delta, wanted in cases.items():
        assert delta.weight(base).dtype == torch.float64
        torch.testing.assert_close(delta.weight(base), wanted)
        torch.testing.assert_close(delta.merged(base, None, 0.5)[0], base + wanted / 2)
        assert delta.weight(base.bfloat16()).dtype == torch.float32


def test_changes_of_convolutions():
    base, down, up, mid = random(6, 4, 3, 3), random(2, 4, 1, 1), random(6, 2, 1, 1), random(2, 2, 3, 3)
    a, b, c, d, t, s = random(2, 6), random(2, 4), random(2, 6), random(2, 4), random(2, 2, 3, 3), random(2, 2, 3, 3)
    w1, w2, wide = random(2, 2), random(3, 2, 3, 3), random(2, 4, 3, 3)
    cases = {
        LowRank(wide, up, 1.0): torch.einsum("or,rikl->oikl", up[:, :, 0, 0], wide) / 2,
        LowRank(down, up, 1.0, mid): torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0]) / 2,
        LoHa(a, b, c, d, 1.0, t, s): core(t, a, b) * core(s, c, d) / 2,
        LoKr(w1, w2): kron(w1, w2),
        LoKr(w1, alpha=1.0, w2_a=(u := random(2, 3)), w2_b=(v := random(2, 2)), t2=t): kron(w1, core(t, u, v)) / 2,
        LoKr(w1, alpha=1.0, w2_a=(u := random(3, 1)), w2_b=(v := random(1, 18))): kron(w1, (u @ v).view(3, 2, 3, 3)),
        Difference(base.flip(0)): base.flip(0),
    }
    for delta, wanted in cases.items():
        torch.testing.assert_close(delta.weight(base), wanted)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3, 3)])
@pytest.mark.parametrize("scale", SCALES)
def test_norms(shape, scale):
    """DoRA, eq. 5, for norms of rows and of columns."""
    base, ones = random(*shape), (1,) * (len(shape) - 2)
    down, up = random(2, *shape[1:]), random(6, 2, *ones)
    for wanted in (random(6), random(6, 1, *ones), random(1, 8, *ones)):
        delta = LowRank(down, up, 1.0, dora_scale=wanted)
        new = base + scale * (up.flatten(1) @ down.flatten(1)).view(shape) / 2
        columns = wanted.shape[0] == 1
        flat = new.transpose(0, 1).flatten(1) if columns else new.flatten(1)
        norms = wanted.flatten() / flat.square().sum(1).sqrt()
        torch.testing.assert_close(
            delta.merged(base, None, scale)[0], new * (norms.view(1, 8, *ones) if columns else norms.view(6, 1, *ones))
        )
        if scale == 1:
            torch.testing.assert_close(base + delta.weight(base), delta.merged(base, None, 1.0)[0])


def test_rotations():
    base, blocks, rescale = random(6, 8), skew(2, 3), 1 + random(6, 1)
    turn = torch.block_diag(*cayley(blocks))
    torch.testing.assert_close(turn @ turn.T, torch.eye(6).double())
    torch.testing.assert_close(OFT(blocks).merged(base, None, 1.0)[0], turn.T @ base)
    torch.testing.assert_close(OFT(cayley(blocks), form="blocks").merged(base, None, 1.0)[0], turn.T @ base)
    torch.testing.assert_close(OFT(blocks, rescale=rescale).merged(base, None, 1.0)[0], rescale * (turn.T @ base))
    half = (torch.eye(6).double() + turn) / 2
    torch.testing.assert_close(OFT(blocks).merged(base, None, 0.5)[0], half.T @ base)
    assert torch.equal(OFT(blocks, rescale=rescale).merged(base, None, 0.0)[0], base)


def test_the_norm_of_a_rotation_has_a_bound():
    blocks = skew(2, 3)
    q = blocks - blocks.mT
    bounded = q * (0.1 * 6 / q.norm())
    torch.testing.assert_close(OFT(blocks, 0.1).rotation, cayley(bounded / 2))
    torch.testing.assert_close(OFT(blocks, 100.0).rotation, cayley(blocks))
    torch.testing.assert_close(OFT(blocks, 0.0).rotation, cayley(blocks))


# ---- unfused as fused

KINDS = {
    "lora": lambda out, inner, k: LowRank(random(3, inner, *k), random(out, 3, *[1] * len(k)), 2.0),
    "bias": lambda out, inner, k: LowRank(random(3, inner, *k), random(out, 3, *[1] * len(k)), 2.0, bias=random(out)),
    "mid": lambda out, inner, k: LowRank(random(3, inner, *[1] * len(k)), random(out, 3, *[1] * len(k)), 2.0, random(3, 3, *k)),
    "dora rows": lambda out, inner, k: LowRank(random(3, inner, *k), random(out, 3, *[1] * len(k)), 2.0, dora_scale=random(out)),
    "dora columns": lambda out, inner, k: LowRank(
        random(3, inner, *k), random(out, 3, *[1] * len(k)), 2.0, dora_scale=random(1, inner, *[1] * len(k)), bias=random(out)
    ),
    "loha": lambda out, inner, k: LoHa(
        random(out, 2), w := random(2, inner * 3 ** len(k)), random(out, 2), w.flip(0), dora_scale=random(out)
    ),
    "lokr": lambda out, inner, k: LoKr(random(2, 2), random(out // 2, inner // 2, *k), bias=random(out)),
    "difference": lambda out, inner, k: Difference(random(out, inner, *k), random(out)),
    "bias alone": lambda out, inner, k: Difference(None, random(out)),
    "turned rows": lambda out, inner, k: OFT(skew(out // 2, 2), rescale=random(out)),
    "turned columns": lambda out, inner, k: OFT(random(inner * 3 ** len(k) // 4, 6), form="in"),
}
SHAPES = {
    "linear": (lambda: nn.Linear(8, 6), (2, 5, 8)),
    "vector": (lambda: nn.Linear(8, 6), (8,)),
    "without bias": (lambda: nn.Linear(8, 6, bias=False), (4, 8)),
    "1d": (lambda: nn.Conv1d(8, 6, 3), (2, 8, 9)),
    "2d": (lambda: nn.Conv2d(8, 6, 3, 2, 1, dilation=2, padding_mode="circular"), (2, 8, 9, 7)),
    "3d": (lambda: nn.Conv3d(8, 6, 3, padding=1, bias=False), (2, 8, 3, 4, 5)),
}


def wide(make):
    return make().double().requires_grad_(False)


def fused(layer, delta, scale, base=None):
    twin = copy.deepcopy(layer)
    weight, bias = delta.merged(layer.weight, layer.bias, scale, base)
    twin.weight, twin.bias = nn.Parameter(weight, False), None if bias is None else nn.Parameter(bias, False)
    return twin


def make(kind, layer):
    shape = layer.weight.shape
    return KINDS[kind](shape[0], shape[1], tuple(shape[2:]))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_unfused_as_fused(kind, shape, gradients):
    layer, x = wide(SHAPES[shape][0]), random(*SHAPES[shape][1])
    delta = make(kind, layer)
    with torch.set_grad_enabled(gradients):
        for scale in (*SCALES, torch.tensor(0.25, dtype=torch.float64)):
            torch.testing.assert_close(delta.add(layer, x, layer(x), scale), fused(layer, delta, scale)(x))


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", ["lora", "loha", "dora columns", "turned rows", "turned columns"])
def test_one_adapter_after_another(first, second):
    for shape in ("linear", "2d"):
        layer, x = wide(SHAPES[shape][0]), random(*SHAPES[shape][1])
        one, two = replace(make(first, layer), bias=None), make(second, layer)
        out = two.add(layer, x, one.add(layer, x, layer(x), 0.5), 1.0, [(one, 0.5)])
        torch.testing.assert_close(out, fused(fused(layer, one, 0.5), two, 1.0, layer.weight)(x))


def test_layers_whose_weights_are_no_plain_matrices():
    """Groups of channels, and norms."""
    grouped, x = wide(lambda: nn.Conv2d(8, 6, 3, groups=2)), random(2, 8, 5, 5)
    delta = LowRank(random(2, 4, 3, 3), random(6, 2, 1, 1), 3.0)
    torch.testing.assert_close(delta.add(grouped, x, grouped(x), 0.5), fused(grouped, delta, 0.5)(x))
    for norm, x in (
        (nn.LayerNorm(8), random(2, 3, 8)),
        (nn.GroupNorm(2, 8), random(2, 8, 4, 4)),
        (nn.GroupNorm(2, 8), random(2, 8, 3, 4, 4)),
    ):
        norm, delta = norm.double(), Difference(random(8), random(8))
        torch.testing.assert_close(delta.add(norm, x, norm(x), 0.5), fused(norm, delta, 0.5)(x))


def test_shapes_of_layers():
    shapes = {nn.Linear(8, 6): (6, 8), nn.Conv2d(8, 6, 3, groups=2): (6, 4, 3, 3), nn.Conv1d(8, 6, 5): (6, 8, 5), nn.LayerNorm(8): (8,)}
    shapes |= {nn.GroupNorm(2, 8, affine=False): None, nn.ConvTranspose2d(8, 6, 3): None, nn.Embedding(10, 8): None, nn.GELU(): None}
    for layer, shape in shapes.items():
        assert weight_shape(layer) == shape


def test_group_norms_of_tokens():
    from darkroom.models.layers.attention import TokenGroupNorm

    norm, x, delta = TokenGroupNorm(2, 8).double(), random(2, 8, 8), Difference(random(8), random(8))
    torch.testing.assert_close(delta.add(norm, x, norm(x), 0.5), fused(norm, delta, 0.5)(x))


# ---- dtypes, copies, gradients


@pytest.mark.parametrize("shape", ["linear", "2d"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_bfloat16(kind, shape, own):
    layer, x = wide(SHAPES[shape][0]), random(*SHAPES[shape][1])
    delta = make(kind, layer)
    wanted = fused(layer, delta, 1.0)(x)
    layer, x, delta = layer.bfloat16(), x.bfloat16(), delta.to("cpu", own)
    out, merged = delta.add(layer, x, layer(x), 1.0), fused(layer, delta, 1.0)
    assert out.dtype == merged(x).dtype == torch.bfloat16
    for made in (out, merged(x)):
        assert (made - wanted).norm() < 0.02 * wanted.norm()


def test_to_and_tensors():
    delta = LowRank(random(2, 8), random(6, 2), 3.0, bias=random(6))
    assert set(delta.tensors()) == {"down", "up", "bias"}
    moved = delta.to(dtype=torch.float32)
    assert {t.dtype for t in moved.tensors().values()} == {torch.float32}
    assert (moved.alpha, moved.rank, moved.gain) == (3.0, 2, 1.5)
    assert delta.down.dtype == torch.float64
    turn = OFT(skew(2, 3))
    assert set(turn.tensors()) == {"blocks"}
    half = turn.to(dtype=torch.bfloat16)
    torch.testing.assert_close(half.rotation @ half.rotation.mT, torch.eye(3).expand(2, 3, 3))  # orthogonal in any dtype
    assert torch.equal(replace(turn, blocks=turn.blocks * 0).rotation, torch.eye(3).double().expand(2, 3, 3))


def test_gradients_reach_the_adapter_and_the_output_is_left_alone():
    layer, x = wide(lambda: nn.Linear(8, 6)), random(2, 8)
    delta = LowRank(random(2, 8).requires_grad_(), random(6, 2).requires_grad_(), 3.0)
    out = layer(x)
    before = out.clone()
    delta.add(layer, x, out, 1.0).sum().backward()
    assert torch.equal(out, before)
    assert delta.down.grad.abs().sum() > 0 and delta.up.grad.abs().sum() > 0


@torch.no_grad()
def test_nothing_of_the_size_of_the_output_is_made_without_gradients():
    layer, x = nn.Linear(8, 6), torch.randn(2, 8)
    out = layer(x)
    assert LowRank(torch.randn(2, 8), torch.randn(6, 2)).add(layer, x, out, 1.0).data_ptr() == out.data_ptr()


def test_what_has_no_weight_is_not_read():
    """The unfused path of what does not depend on the weight works for layers that keep theirs elsewhere."""

    class Hidden(nn.Linear):
        weight = property(lambda self: pytest.fail("the weight was read"))

    hidden = Hidden.__new__(Hidden)
    nn.Module.__init__(hidden)
    hidden.in_features, hidden.out_features, hidden.bias = 8, 6, None
    layer, x = wide(lambda: nn.Linear(8, 6, bias=False)), random(2, 8)
    for kind in ("lora", "bias", "loha", "lokr", "difference", "turned rows"):
        delta = replace(make(kind, layer), dora_scale=None)
        torch.testing.assert_close(delta.add(hidden, x, layer(x), 0.5), fused(layer, delta, 0.5)(x))
