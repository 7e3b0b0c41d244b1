"""Names of adapter files: each scheme from a small pipeline's own layers, and files that are wrong."""

from __future__ import annotations
import json
from functools import cache
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from darkroom.checkpoints.layouts import NAMES
from darkroom.errors import AdapterError, CheckpointError
from darkroom.models.unet_2d_condition import UNet2DConditionModel
from darkroom.runtime.adapter_names import parse
from darkroom.runtime.low_rank import OFT, Difference, LoHa, LoKr, LowRank

TEXT = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "bos_token_id": 0,
    "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 8, "sample_size": 16}
CROSS = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
CROSS_XL = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
XL = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "transformer_layers_per_block": (1, 2),
}
XL |= {"projection_class_embeddings_input_dim": 40, "cross_attention_dim": 64, **CROSS_XL}


@cache
def components(kind="one"):
    """The networks of Stable Diffusion ("one"), or of SDXL ("two")."""
    torch.manual_seed(0)
    first = CLIPTextModel(CLIPTextConfig(**TEXT))
    if kind == "one":
        return {"unet": UNet2DConditionModel(cross_attention_dim=32, **CROSS, **BLOCKS), "text_encoder": first}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, projection_dim=16))
    return {"unet": UNet2DConditionModel(**XL, **BLOCKS), "text_encoder": first, "text_encoder_2": second}


def layers(kind="one", kernels=True):
    """(component, name, module) of linear layers, and of convolutions."""
    kinds = (nn.Linear, nn.Conv2d) if kernels else nn.Linear
    return [(c, name, part) for c, net in components(kind).items() for name, part in net.named_modules() if isinstance(part, kinds)]


def halves(layer, rank=2):
    shape = layer.weight.shape
    return torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *[1] * (len(shape) - 2))


def attention(name):
    return name.endswith(("to_q", "to_k", "to_v", "to_out.0"))


def original_names(kind):
    """Our layers' names -> those of the original layout."""
    found = NAMES["unet"](list(components(kind)["unet"].state_dict()))
    return {ours.removesuffix(".weight"): theirs.removesuffix(".weight") for theirs, ours in found.items()}


ORIGINAL = {kind: original_names(kind) for kind in ("one", "two")}
ENCODERS = {"one": {"text_encoder": "lora_te"}, "two": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}}


def flat(name):
    return name.replace(".", "_")


def with_level(name):
    """A text encoder's layer as files name it, with the level that some classes of transformers do without."""
    return name if name.startswith("text_") else "text_model." + name


def diffusers_new(kind, c, name):
    return f"{c}.{name if c == 'unet' else with_level(name)}", "lora_A.weight", "lora_B.weight"


def peft_named(kind, c, name):
    return f"{c}.base_model.model.{name}", "lora_A.default.weight", "lora_B.default.weight"


def diffusers_middle(kind, c, name):
    tail = "lora" if c == "unet" else "lora_linear_layer"
    return f"{c}.{name if c == 'unet' else with_level(name)}", f"{tail}.down.weight", f"{tail}.up.weight"


def diffusers_old(kind, c, name):
    """The oldest: attention is a processor's, and text encoders' is named like a UNet's."""
    head, _, last = name.rpartition(".")
    if attention(name):
        name = name.removesuffix(".0")
        head, _, last = name.rpartition(".")
        return f"{c}.{head}.processor.{last}_lora", "down.weight", "up.weight"
    if c != "unet" and "self_attn" in name:
        return f"{c}.{with_level(head)}.to_{last.removesuffix('_proj')}_lora", "down.weight", "up.weight"
    return diffusers_middle(kind, c, name)


def kohya(kind, c, name):
    prefix = "lora_unet" if c == "unet" else ENCODERS[kind][c]
    return f"{prefix}_{flat(name if c == 'unet' else with_level(name))}", "lora_down.weight", "lora_up.weight"


def kohya_original(kind, c, name):
    return kohya(kind, c, ORIGINAL[kind][name] if c == "unet" else name)


def comfy(kind, c, name):
    prefix = {"unet": "diffusion_model", "text_encoder": "text_encoders.clip_l.transformer", "text_encoder_2": "clip_g.transformer"}[c]
    return f"{prefix}.{ORIGINAL[kind][name] if c == 'unet' else with_level(name)}", "lora_down.weight", "lora_up.weight"


def dotted_kohya(kind, c, name):
    return f"{'lora_unet' if c == 'unet' else ENCODERS[kind][c]}.{name}", "lora_down.weight", "lora_up.weight"


def without_prefix(kind, c, name):
    return (name if c == "unet" else f"{c}.{name}"), "lora_A.weight", "lora_B.weight"


SCHEMES = [diffusers_new, peft_named, diffusers_middle, diffusers_old, kohya, kohya_original, comfy, dotted_kohya, without_prefix]


def file_of(scheme, kind="one", kernels=True, alpha=None):
    """A file with every layer, and what it holds by component and layer."""
    torch.manual_seed(1)
    state, held = {}, {}
    for c, name, layer in layers(kind, kernels):
        base, *tails = scheme(kind, c, name)
        down, up = halves(layer)
        held[c, name] = (down, up)
        state |= {f"{base}.{tail}": value for tail, value in zip(tails, (down, up))}
        if alpha is not None:
            state[f"{base.removesuffix('_lora')}.alpha"] = torch.tensor(alpha)
    return state, held


def flattened(parsed):
    return {(c, name): delta for c, found in parsed.deltas.items() for name, delta in found.items()}


def check(parsed, held, alpha=None):
    found = flattened(parsed)
    assert found.keys() == held.keys()
    for place, (down, up) in held.items():
        assert torch.equal(found[place].down, down) and torch.equal(found[place].up, up)
        assert found[place].alpha == alpha


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("kind", ["one", "two"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.__name__)
def test_every_layer_by_every_scheme(scheme, kind, alpha):
    state, held = file_of(scheme, kind, alpha=alpha)
    parsed = parse(state, components(kind), originals=NAMES)
    check(parsed, held, alpha)
    assert parsed.ignored == {} and parsed.total == len(state)
    for c, (applied, meant) in parsed.counts.items():
        assert applied == meant == (2 if alpha is None else 3) * sum(place[0] == c for place in held)
    assert parsed.format == {"lora_A": "PEFT", "lora_d": "kohya"}.get(scheme(kind, "unet", "conv_in")[1][:6], "diffusers")


@settings(deadline=None, max_examples=50)
@given(st.randoms(use_true_random=False), st.sampled_from(SCHEMES), st.integers(1, 60))
def test_order_and_number_of_keys_do_not_matter(random, scheme, number):
    state, held = file_of(scheme, "two", kernels=False)
    chosen = random.sample(sorted(held), number)
    keys = [f"{base}.{tail}" for base, *tails in (scheme("two", *place) for place in chosen) for tail in tails]
    random.shuffle(keys)
    check(parse({key: state[key] for key in keys}, components("two"), originals=NAMES), {place: held[place] for place in chosen})


def test_the_reference_own_files():
    """What its functions make of PEFT's tensors, in all of its schemes."""
    utils = pytest.importorskip("diffusers.utils.state_dict_utils")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1"], init_lora_weights=False)
    model = inject_adapter_in_model(config, CLIPTextModel(CLIPTextConfig(**TEXT)))
    peft = get_peft_model_state_dict(model)
    wanted = flattened(parse(peft, {"text_encoder": components()["text_encoder"]}))
    assert len(wanted) == 10
    files = [{f"text_encoder.{key}": value for key, value in utils.convert_state_dict_to_diffusers(dict(peft)).items()}]
    files.append(utils.convert_state_dict_to_kohya({f"text_encoder.{key}": value for key, value in peft.items()}))
    for state in files:
        found = flattened(parse(state, components()))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[place].up, wanted[place].up) for place in wanted)


@pytest.mark.parametrize("kind", ["one", "two"])
def test_original_blocks_as_the_reference_reads_them(kind):
    """Its conversion of attention layers' names, which goes by counting, leads to the same layers as our table."""
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    state, held = file_of(kohya_original, kind, kernels=False, alpha=0.5)
    places = [place for place in held if "attentions" in place[1] or "self_attn" in place[1]]
    bases = {kohya_original(kind, *place)[0] for place in places}
    state = {key: value for key, value in state.items() if key.partition(".")[0] in bases}
    turned = utils._maybe_map_sgm_blocks_to_diffusers(dict(state), components(kind)["unet"].config)
    theirs, alphas = utils._convert_non_diffusers_lora_to_diffusers(turned)
    wanted = {place: held[place] for place in places}
    check(parse(state, components(kind), originals=NAMES), wanted, 0.5)
    check(parse(theirs, components(kind), alphas=alphas), wanted, 0.5)


# ---- scales


def one(tails, layer="down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", prefix="unet.", **options):
    """What a file with these tensors for one layer of the UNet says."""
    state = {f"{prefix}{layer}.{tail}": value for tail, value in tails.items()}
    return parse(state, components(), **options).deltas["unet"][layer]


PAIR = {"lora_A.weight": torch.ones(4, 16), "lora_B.weight": torch.ones(16, 4)}


def test_where_alpha_comes_from():
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    header = {"format": "pt", "alpha": "text of another program"}

    def packed(**options):
        return header | {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in options.items()})}

    assert one(PAIR).gain == one(PAIR, metadata=header).gain == 1
    assert one(PAIR | {"alpha": torch.tensor(2)}).gain == 0.5
    assert one(PAIR, metadata=packed(r=4, lora_alpha=8)).gain == 2
    assert one(PAIR, metadata=packed(r=4, lora_alpha=8, use_rslora=True)).gain == 4
    assert one(PAIR, metadata=header | {"adapter_config.json": {"r": 4, "lora_alpha": 12}}).gain == 3
    assert one(PAIR, metadata={"r": 4, "lora_alpha": 12}).gain == 3
    assert one(PAIR | {"alpha": torch.tensor(2.0)}, metadata=packed(lora_alpha=8)).gain == 0.5
    for pattern in ("attn1.to_q", f"^{layer}", r"down_blocks\..*\.to_q", "attn[0-9].to_q", r"attn\d\.to_q$"):
        assert one(PAIR, metadata=packed(lora_alpha=8, alpha_pattern={"to_k": 1, pattern: 6})).gain == 1.5
    assert one(PAIR, metadata=packed(lora_alpha=8, alpha_pattern={"n1.to_q": 6})).gain == 2
    for key in (f"unet.{layer}.alpha", f"unet.{layer}.lora_A.weight.alpha", f"unet.{layer}.lora.down.weight.alpha"):
        assert one(PAIR, alphas={key: 6}).gain == 1.5
    assert one({"lora.down.weight.alpha": torch.tensor(6.0), **PAIR}).gain == 1.5


def test_metadata_is_of_a_component():
    state = {
        f"{c}.{n}.{tail}": value
        for c, n, layer in layers(kernels=False)
        for tail, value in zip(("lora_A.weight", "lora_B.weight"), halves(layer))
    }
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "text_encoder.lora_alpha": 6})}
    parsed = parse(state, components(), metadata=metadata)
    assert {d.gain for d in parsed.deltas["unet"].values()} == {2} and {d.gain for d in parsed.deltas["text_encoder"].values()} == {3}


# ---- other kinds

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_conv_in"
W1, W2 = torch.randn(4, 2), torch.randn(4, 8)


def lycoris(base, tails):
    state = {f"{base}.{tail}": value for tail, value in tails.items()}
    [delta] = flattened(parse(state, components())).values()
    return delta


def test_kinds_of_lycoris():
    a, b = torch.randn(16, 2), torch.randn(2, 16)
    hada = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": -a, "hada_w2_b": b, "alpha": torch.tensor(1.0)}
    base = torch.randn(16, 16)
    made = lycoris(TO_Q, hada)
    assert isinstance(made, LoHa)
    torch.testing.assert_close(made.weight(base), -((a @ b) ** 2) / 2)
    made = lycoris(TO_Q, {"lokr_w1": W1, "lokr_w2": W2, "alpha": torch.tensor(9.0)})
    assert isinstance(made, LoKr) and made.gain == 1  # two whole factors are not scaled
    torch.testing.assert_close(made.weight(base), torch.kron(W1, W2))
    made = lycoris(TO_Q, {"lokr_w1": W1, "lokr_w2_a": torch.ones(4, 2), "lokr_w2_b": torch.ones(2, 8), "alpha": torch.tensor(1.0)})
    torch.testing.assert_close(made.weight(base), torch.kron(W1, torch.ones(4, 8)))
    made = lycoris(
        CONV,
        {"lora_down.weight": torch.ones(2, 4, 1, 1), "lora_mid.weight": torch.ones(2, 2, 3, 3), "lora_up.weight": torch.ones(16, 2, 1, 1)},
    )
    assert isinstance(made, LowRank)
    torch.testing.assert_close(made.weight(torch.zeros(16, 4, 3, 3)), torch.full((16, 4, 3, 3), 4.0))
    full = torch.randn(16, 16)
    for tails in ({"diff": full}, {"weight": full}, {"diff": full, "alpha": torch.tensor(3.0)}):
        made = lycoris(TO_Q, tails)
        assert isinstance(made, Difference) and torch.equal(made.weight(base), full)
    made = lycoris(TO_Q.replace("to_q", "to_out_0"), {"diff": full, "diff_b": full[0]})
    assert torch.equal(made.bias, full[0])
    assert torch.equal(lycoris(CONV, {"diff_b": full[0]}).merged(torch.zeros(16, 4, 3, 3), full[0], 1.0)[1], 2 * full[0])
    made = lycoris("lora_unet_down_blocks_0_resnets_0_norm1", {"w_norm": full[0], "b_norm": full[1]})
    assert torch.equal(made.weight(base[0]), full[0]) and torch.equal(made.bias, full[1])


def test_a_bias_beside_a_pair_is_not_scaled_by_alpha():
    bias = torch.randn(16)
    pair = {"lora_down.weight": torch.ones(4, 4, 3, 3), "lora_up.weight": torch.ones(16, 4, 1, 1), "diff_b": bias}
    for alpha in (1.0, 0.0):
        made = lycoris(CONV, pair | {"alpha": torch.tensor(alpha)})
        torch.testing.assert_close(made.merged(torch.zeros(16, 4, 3, 3), torch.zeros(16), 0.5)[1], bias / 2)
    peft = one(
        {
            "lora_A.weight": torch.ones(4, 4, 3, 3),
            "lora_B.weight": torch.ones(16, 4, 1, 1),
            "lora_B.bias": bias,
            "alpha": torch.tensor(1.0),
        },
        "conv_in",
    )
    torch.testing.assert_close(peft.merged(torch.zeros(16, 4, 3, 3), torch.zeros(16), 1.0)[1], bias / 4)


def test_norms_of_rows_and_of_columns():
    down, up = torch.randn(2, 32), torch.randn(16, 2)
    key, pair = TO_Q.replace("attn1_to_q", "attn2_to_k"), {"lora_down.weight": down, "lora_up.weight": up}  # (16, 32)
    for value, shape in ((torch.ones(16, 1), (16, 1)), (torch.ones(16), (16, 1)), (torch.ones(1, 32), (1, 32))):
        assert lycoris(key, pair | {"dora_scale": value}).dora_scale.shape == shape
    kernel = {"lora_down.weight": torch.randn(2, 4, 3, 3), "lora_up.weight": torch.randn(16, 2, 1, 1)}
    for value, shape in ((torch.ones(16, 1, 1, 1), (16, 1, 1, 1)), (torch.ones(1, 4, 1, 1), (1, 4, 1, 1))):
        assert lycoris(CONV, kernel | {"dora_scale": value}).dora_scale.shape == shape
    for tail in ("lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight"):
        for value in (torch.ones(16), torch.ones(1, 16, 1, 1)):
            made = one({"lora_A.weight": kernel["lora_down.weight"], "lora_B.weight": kernel["lora_up.weight"], tail: value}, "conv_in")
            assert made.dora_scale.shape == (16, 1, 1, 1)


def test_rotations():
    blocks = torch.randn(4, 4, 4)
    made = lycoris(TO_Q, {"oft_blocks": blocks, "alpha": torch.tensor(0.5), "rescale": torch.ones(16, 1)})
    assert isinstance(made, OFT) and (made.form, made.alpha) == ("skew", 0.5)
    assert made.rescale.shape == (16,)
    assert torch.equal(lycoris(TO_Q, {"oft_diag": blocks}).rotation, blocks)
    peft = one({"oft_R.default.weight": torch.randn(4, 6)})
    assert (peft.form, peft.terms) == ("in", 5)
    assert one({"oft_R.weight": torch.randn(1, 6)}, metadata={"use_cayley_neumann": False}).terms == 0


# ---- shapes


def test_matrices_for_1x1_kernels_and_the_reverse():
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    point = "down_blocks.0.attentions.0.proj_in"  # a 1x1 convolution here
    assert components()["unet"].get_submodule(point).weight.ndim == 4
    assert one({"lora_A.weight": down, "lora_B.weight": up}, point).down.shape == (2, 16, 1, 1)
    made = one({"lora_A.weight": down[:, :, None, None], "lora_B.weight": up[:, :, None, None]})
    assert made.down.shape == (2, 16) and torch.equal(made.up, up)


def test_motion_modules():
    """AnimateDiff's motion LoRAs, with the reference's names of its layers and with its authors'."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_out = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8)])

    block = nn.ModuleDict({"attn1": Attention(), "attn2": Attention()})
    module = nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})
    net = nn.ModuleDict({"down_blocks": nn.ModuleList([nn.ModuleDict({"motion_modules": nn.ModuleList([module])})])})
    theirs = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.processor"
    authors = "module.down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.processor"
    for base in (theirs, authors):
        state = {f"{base}.{part}_lora.{half}.weight": torch.ones(8, 8) for part in ("to_q", "to_out") for half in ("down", "up")}
        found = parse(state, {"unet": net}).deltas["unet"]
        assert set(found) == {f"down_blocks.0.motion_modules.0.transformer_blocks.0.attn2.{part}" for part in ("to_q", "to_out.0")}


def test_layers_that_keep_their_weight_otherwise():
    """Shapes are those that a layer says it has."""

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 8, 6
            self.register_buffer("weight", torch.zeros(24, 1, dtype=torch.uint8))

    state = {"lora_A.weight": torch.ones(2, 8), "lora_B.weight": torch.ones(6, 2)}
    assert parse({f"unet.proj.{tail}": value for tail, value in state.items()}, {"unet": nn.ModuleDict({"proj": Packed()})}).counts[
        "unet"
    ] == (2, 2)


# ---- bad files

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
GOOD = {f"{QUERY}.{tail}": value for tail, value in PAIR.items()}
LONG = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def hada(rank=2, last=2, out=16):
    shapes = {"w1_a": (out, rank), "w1_b": (rank, 16), "w2_a": (out, rank), "w2_b": (last, 16)}
    return {f"{TO_Q}.hada_{role}": torch.ones(shape) for role, shape in shapes.items()}


BAD = {  # a file -> what the error says
    "empty": ({}, "empty"),
    "zero matches": ({"unet.down_blocks.7.attn.to_q.lora_A.weight": torch.ones(4, 16)}, "1 of 1 tensors .* belong to no layer"),
    "another naming": ({"something.else": torch.ones(2)}, "no tensor of an adapter"),
    "partial": (GOOD | {"unet.nothing.lora_A.weight": torch.ones(4, 16)}, "1 of 3 tensors"),
    "no such component": (GOOD | {"transformer.blocks.0.to_q.lora_A.weight": torch.ones(4, 16)}, "there is no transformer"),
    "second encoder": (GOOD | {"lora_te2_text_projection.lora_up.weight": torch.ones(4, 4)}, "there is no text_encoder_2"),
    "whole network": ({f"{QUERY}.weight": torch.ones(16, 16)}, "a weight, not a change of one"),
    "whole checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 4, 3, 3)}, "a weight, not a change of one"),
    "half a pair": ({f"{QUERY}.lora_A.weight": torch.ones(4, 16)}, "Half of a pair"),
    "other half": ({f"{QUERY}.lora_B.weight": torch.ones(16, 4)}, "Half of a pair"),
    "alpha alone": ({f"{QUERY}.alpha": torch.tensor(1.0)}, "Half of a pair"),
    "norms alone": ({f"{QUERY}.dora_scale": torch.ones(16, 1)}, "Half of a pair"),
    "ranks": (GOOD | {f"{QUERY}.lora_B.weight": torch.ones(16, 8)}, "different ranks"),
    "rank 0": ({f"{QUERY}.lora_A.weight": torch.ones(0, 16), f"{QUERY}.lora_B.weight": torch.ones(16, 0)}, "different ranks"),
    "wrong base, in": (GOOD | {f"{QUERY}.lora_A.weight": torch.ones(4, 640)}, "does not fit its layer"),
    "wrong base, out": (GOOD | {f"{QUERY}.lora_B.weight": torch.ones(640, 4)}, "does not fit its layer"),
    "wrong context": ({f"{LONG}.lora_A.weight": torch.ones(4, 2048), f"{LONG}.lora_B.weight": torch.ones(16, 4)}, "2048"),
    "kernel": ({f"{CONV}.lora_down.weight": torch.ones(4, 4, 5, 5), f"{CONV}.lora_up.weight": torch.ones(16, 4, 1, 1)}, "does not fit"),
    "kernel for a matrix": (GOOD | {f"{QUERY}.lora_A.weight": torch.ones(4, 16, 3, 3)}, "does not fit"),
    "numbers for tensors": (GOOD | {f"{QUERY}.alpha": 4.0}, "No tensor"),
    "one axis": (GOOD | {f"{QUERY}.lora_A.weight": torch.ones(16)}, "different ranks"),
    "not a number": (GOOD | {f"{QUERY}.lora_A.weight": torch.full((4, 16), torch.nan)}, "not finite"),
    "infinite alpha": (GOOD | {f"{QUERY}.alpha": torch.tensor(torch.inf)}, "not finite"),
    "two alphas": (GOOD | {f"{QUERY}.alpha": torch.ones(2)}, "no number"),
    "whole numbers": (GOOD | {f"{QUERY}.lora_A.weight": torch.ones(4, 16, dtype=torch.int8)}, "whole numbers"),
    "two adapters": (GOOD | {f"{QUERY}.lora_A.second.weight": torch.zeros(4, 16)}, "Two tensors for one place"),
    "two namings": (GOOD | {f"{TO_Q}.lora_down.weight": torch.zeros(4, 16), f"{TO_Q}.lora_up.weight": torch.ones(16, 4)}, "Two tensors"),
    "halves of two namings": ({f"{QUERY}.lora_A.weight": torch.ones(4, 16), f"{TO_Q}.lora_up.weight": torch.ones(16, 4)}, "More than one naming"),
    "two kinds": ({f"{TO_Q}.lora_down.weight": torch.ones(4, 16), f"{TO_Q}.diff": torch.ones(16, 16)}, "More than one kind"),
    "norms of a difference": ({f"{TO_Q}.diff": torch.ones(16, 16), f"{TO_Q}.dora_scale": torch.ones(16, 1)}, "nothing together"),
    "norms of a rotation": ({f"{TO_Q}.oft_blocks": torch.ones(4, 4, 4), f"{TO_Q}.dora_scale": torch.ones(16, 1)}, "nothing together"),
    "norms twice": (GOOD | {f"{QUERY}.{tail}": torch.ones(16, 1) for tail in ("dora_scale", "lora_magnitude_vector")}, "nothing together"),
    "lokr, whole and not": ({f"{TO_Q}.lokr_w1": W1, f"{TO_Q}.lokr_w2": W2, f"{TO_Q}.lokr_w1_a": torch.ones(4, 2)}, "nothing together"),
    "oft and a bias": ({f"{TO_Q}.oft_blocks": torch.ones(4, 4, 4), f"{TO_Q}.diff_b": torch.ones(16)}, "nothing together"),
    "number of norms": (GOOD | {f"{QUERY}.lora_magnitude_vector": torch.ones(8)}, "another number of rows"),
    "number of norms, kohya": (GOOD | {f"{QUERY}.dora_scale": torch.ones(8, 1)}, "another number of rows"),
    "difference": ({f"{TO_Q}.diff": torch.ones(8, 16)}, "does not fit"),
    "bias": ({f"{TO_Q}.diff_b": torch.ones(8)}, "does not fit"),
    "loha, half": ({f"{TO_Q}.hada_w1_a": torch.ones(16, 2), f"{TO_Q}.hada_w1_b": torch.ones(2, 16)}, "Half of a pair"),
    "loha, ranks": (hada(last=3), "different ranks"),
    "loha, size": (hada(out=8), "does not fit"),
    "loha, one core": ({f"{CONV}.hada_w1_a": torch.ones(2, 16), f"{CONV}.hada_t1": torch.ones(2, 2, 3, 3)}, "Half of a pair"),
    "lokr, half": ({f"{TO_Q}.lokr_w1": W1}, "Half of a pair"),
    "lokr, divisors": ({f"{TO_Q}.lokr_w1": torch.ones(5, 2), f"{TO_Q}.lokr_w2": W2}, "does not divide"),
    "lokr, size": ({f"{TO_Q}.lokr_w1": W1, f"{TO_Q}.lokr_w2": torch.ones(4, 4)}, "does not fit"),
    "lokr, scalar": ({f"{TO_Q}.lokr_w1": torch.tensor(1.0), f"{TO_Q}.lokr_w2": W2}, "does not divide"),
    "oft, groups": ({f"{TO_Q}.oft_blocks": torch.ones(3, 4, 4)}, "another number of rows"),
    "oft, butterfly": ({f"{TO_Q}.oft_blocks": torch.ones(2, 4, 4, 4)}, "another number of rows"),
    "oft, triangle": ({f"{QUERY}.oft_R.weight": torch.ones(4, 7)}, "another number of columns"),
    "oft, columns": ({f"{QUERY}.oft_R.weight": torch.ones(3, 6)}, "another number of columns"),
    "oft, factors alone": ({f"{TO_Q}.rescale": torch.ones(16, 1)}, "Half of a pair"),
    "matrices for a norm": ({f"unet.conv_norm_out.{tail}": value for tail, value in PAIR.items()}, "has none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case):
    state, message = BAD[case]
    for strict in (True, False) if case not in ("partial", "no such component", "second encoder") else (True,):
        with pytest.raises(AdapterError, match=message) as error:
            parse(state, components(), strict=strict)
        assert isinstance(error.value, CheckpointError)


@pytest.mark.parametrize("case", ["partial", "no such component", "second encoder"])
def test_what_does_match_may_be_enough(case):
    state, _ = BAD[case]
    parsed = parse(state, components(), strict=False)
    assert list(parsed.ignored) == list(state)[2:] and len(flattened(parsed)) == 1
    assert parsed.counts["unet"] == (2, 3 if case == "partial" else 2)


def test_an_error_shows_keys_and_the_nearest_layers():
    state, _ = file_of(diffusers_new)
    with pytest.raises(AdapterError) as error:
        parse({key.replace("attentions", "attention"): value for key, value in state.items()}, components())
    assert "unet.down_blocks.0.attention.0.proj_in.lora_A.weight (no such layer in unet)" in str(error.value)
    assert "unet.down_blocks.0.attentions.0.proj_in" in error.value.expected
    near = parse(state, components()).nearest("lora_unet_down_blocks_0_attention_0_transformer_blocks_0_attn1_to_q.lora_up.weight")
    assert near[0] == "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def test_an_adapter_for_the_other_model():
    for ours, theirs in (("one", "two"), ("two", "one")):
        for scheme in (kohya, diffusers_new):
            with pytest.raises(AdapterError, match="for another"):
                parse(file_of(scheme, ours)[0], components(theirs), originals=NAMES)


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_adapter_metadata": "{"},
        {"lora_alpha": float("nan"), "r": 4},
        {"lora_alpha": [1], "r": 4},
        {"alpha_pattern": {"(a+)+$": 4}, "r": 4},
        {"alpha_pattern": {".*.*.*": 4}, "r": 4},
        {"alpha_pattern": ["to_q"], "r": 4},
        {"alpha_pattern": {"to_q": "4"}, "r": 4},
        {"lora_adapter_metadata": "[" * 100_000},
        {"lora_alpha": 10**400, "r": 4},
    ],
)
def test_bad_metadata(metadata):
    with pytest.raises(AdapterError):
        parse(GOOD, components(), metadata=metadata)


def test_bad_metadata_of_other_kinds():
    with pytest.raises(AdapterError):
        one({"oft_R.weight": torch.randn(1, 6)}, metadata={"num_cayley_neumann_terms": 10**9})
    with pytest.raises(AdapterError):
        one({"lokr_w1": W1, "lokr_w2": W2}, metadata={"r": 0, "alpha": 3})
    assert one({"lokr_w1": W1, "lokr_w2": W2}, metadata={"r": 6, "alpha": 3}).gain == 0.5


def test_what_wraps_a_network_is_at_the_front():
    """A layer's name may have the same words in it."""
    net = nn.ModuleDict({"motion_module": nn.Linear(4, 4), "module": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})
    state = {
        f"unet.{name}.{tail}": torch.ones(4, 4) for name in ("motion_module", "module.to_q") for tail in ("lora_A.weight", "lora_B.weight")
    }
    assert set(parse(state, {"unet": net}).deltas["unet"]) == {"motion_module", "module.to_q"}


def test_eight_bits():
    state = {key: value.to(torch.float8_e4m3fn) for key, value in GOOD.items()}
    assert parse(state, components()).counts["unet"] == (2, 2)
    with pytest.raises(AdapterError, match="not finite"):
        parse(GOOD | {f"{QUERY}.lora_A.weight": torch.full((4, 16), torch.nan).to(torch.float8_e4m3fn)}, components())


def test_two_copies_of_the_same():
    """Some files hold each tensor under two names; that is no contradiction, and both count."""
    parsed = parse(GOOD | {f"base_model.model.{key}": value.clone() for key, value in GOOD.items()}, components())
    assert parsed.counts["unet"] == (4, 4)


def test_layers_of_one_flat_name_are_none():
    net = nn.ModuleDict({"a_b": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Linear(4, 4)})})
    pair = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2)}
    assert len(parse({f"unet.a.b.{tail}": value for tail, value in pair.items()}, {"unet": net}).deltas["unet"]) == 1
    with pytest.raises(AdapterError, match="belong to no layer"):
        parse({f"lora_unet_a_b.{tail}": value for tail, value in pair.items()}, {"unet": net})
