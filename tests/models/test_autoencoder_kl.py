"""AutoencoderKL beside the reference's, on tiny random weights."""

from __future__ import annotations
import copy
import inspect
import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file
from darkroom.errors import ConfigError, InputError
from darkroom.models.autoencoder_kl import AutoencoderKL, AutoencoderKLOutput, DecoderOutput, DiagonalGaussian

TINY = {
    "block_out_channels": (8, 12),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}
CONFIGS = {
    "stable diffusion": TINY,
    "flux": TINY | {"latent_channels": 5, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1},
    "no attention": TINY | {"mid_block_add_attention": False, "layers_per_block": 2, "act_fn": "gelu", "out_channels": 1},
    "attention": TINY
    | {
        "block_out_channels": (8, 16, 12),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        "layers_per_block": 2,
        "in_channels": 4,
    },
}


def pair(config: dict) -> tuple[diffusers.AutoencoderKL, AutoencoderKL]:
    """The reference and darkroom's network, with equal weights none of which is zero or one."""
    torch.manual_seed(0)
    reference, mine = diffusers.AutoencoderKL(**config).eval(), AutoencoderKL(**config).eval()
    for p in reference.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)
    mine.load_state_dict(reference.state_dict())
    return reference, mine


@pytest.fixture(params=CONFIGS, scope="module")
def both(request):
    return pair(CONFIGS[request.param])


@pytest.fixture
def tiny():
    return pair(TINY)


def images(network, *size: int) -> torch.Tensor:
    return torch.randn(2, network.config.in_channels, *size, generator=torch.Generator().manual_seed(1))


def latents(network, *size: int) -> torch.Tensor:
    return torch.randn(2, network.config.latent_channels, *size, generator=torch.Generator().manual_seed(2))


def close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def test_options_are_the_references():
    expected = list(inspect.signature(diffusers.AutoencoderKL).parameters.values())
    got = list(inspect.signature(AutoencoderKL).parameters.values())
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 24), (18, 13)])
def test_encodes(both, size):
    reference, mine = both
    x = images(mine, *size)
    expected, got = reference.encode(x).latent_dist, mine.encode(x).latent_dist
    close(got.mean, expected.mean)
    close(got.logvar, expected.logvar)
    close(got.mode(), expected.mode())
    close(mine.encode(x, return_dict=False)[0].mean, expected.mean)


@torch.no_grad()
def test_draws(both):
    reference, mine = both
    x = images(mine, 16, 16)
    expected, got = reference.encode(x).latent_dist, mine.encode(x).latent_dist
    close(got.sample(torch.Generator().manual_seed(3)), expected.sample(torch.Generator().manual_seed(3)))
    each = [[torch.Generator().manual_seed(s) for s in (4, 5)] for _ in range(2)]
    close(got.sample(each[0]), expected.sample(each[1]))
    torch.manual_seed(6)
    first = got.sample()
    torch.manual_seed(6)
    close(first, expected.sample())


@torch.no_grad()
def test_decodes(both):
    reference, mine = both
    z = latents(mine, 5, 7)
    close(mine.decode(z).sample, reference.decode(z).sample)
    close(mine.decode(z, return_dict=False)[0], reference.decode(z).sample)


@torch.no_grad()
def test_reconstructs(both):
    reference, mine = both
    x = images(mine, 16, 16)
    close(mine(x).sample, reference(x).sample)
    drawn = [net(x, sample_posterior=True, generator=torch.Generator().manual_seed(7)).sample for net in both]
    close(drawn[1], drawn[0])
    assert not torch.allclose(drawn[1], mine(x).sample)
    (as_tuple,) = mine(x, return_dict=False)
    close(as_tuple, mine(x).sample)


@torch.no_grad()
def test_slices(tiny):
    reference, mine = tiny
    rows = []
    mine.encoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    mine.decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for network in tiny:
        network.enable_slicing()
    x, z = images(mine, 16, 16), latents(mine, 8, 8)
    close(mine.encode(x).latent_dist.mean, reference.encode(x).latent_dist.mean)
    close(mine.decode(z).sample, reference.decode(z).sample)
    mine.disable_slicing()
    mine.encode(x), mine.decode(z)
    assert rows == [1, 1, 1, 1, 2, 2]


@torch.no_grad()
@pytest.mark.parametrize("size", [(28, 40), (52, 8)])
@pytest.mark.parametrize("tile,overlap", [(16, 0.25), (24, 0.5)])
def test_tiles(both, size, tile, overlap):
    reference, mine = both
    f = mine.scale_factor
    x, z = images(mine, *size), latents(mine, size[0] // f, size[1] // f)
    whole = mine.encode(x).latent_dist.mean, mine.decode(z).sample
    for network in both:
        network.tile_sample_min_size, network.tile_latent_min_size, network.tile_overlap_factor = (tile, tile // f, overlap)
        network.enable_tiling()
    try:
        got, expected = mine.encode(x).latent_dist, reference.encode(x).latent_dist
        close(got.mean, expected.mean)
        close(got.logvar, expected.logvar)
        pixels = mine.decode(z).sample
        close(pixels, reference.decode(z).sample)
    finally:
        for network in both:
            network.disable_tiling()
    assert not torch.allclose(whole[0], got.mean, atol=1e-3)
    assert not torch.allclose(whole[1], pixels, atol=1e-3)


@torch.no_grad()
def test_what_fits_a_tile_is_not_tiled(tiny):
    _, mine = tiny
    x, z = images(mine, 16, 12), latents(mine, 8, 6)
    whole = mine.encode(x).latent_dist.mean, mine.decode(z).sample
    mine.enable_tiling()
    assert torch.equal(mine.encode(x).latent_dist.mean, whole[0])
    assert torch.equal(mine.decode(z).sample, whole[1])


def test_tile_sizes_are_the_references():
    reference, mine = pair(TINY | {"sample_size": 50})
    for name in ("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor", "use_slicing", "use_tiling"):
        assert getattr(mine, name) == getattr(reference, name), name
    assert AutoencoderKL(**TINY | {"sample_size": [48, 64]}).tile_latent_min_size == 24


def test_switches_belong_to_one_module(tiny):
    _, mine = tiny
    twin = copy.copy(mine)
    twin.enable_tiling()
    twin.enable_slicing()
    assert not mine.use_tiling and not mine.use_slicing


@pytest.mark.parametrize("tiling", [False, True])
def test_gradients(both, tiling):
    x = images(both[1], 16, 20)
    for network in both:
        network.zero_grad(), network.requires_grad_(True)
        network.tile_sample_min_size, network.tile_latent_min_size = 16, 16 // both[1].scale_factor
        network.use_tiling = tiling
        posterior = network.encode(x).latent_dist
        z = posterior.sample(torch.Generator().manual_seed(8))
        (network.decode(z).sample.square().mean() + 1e-2 * posterior.kl().mean()).backward()
        network.disable_tiling()
    expected = {name: p.grad for name, p in both[0].named_parameters()}
    for name, p in both[1].named_parameters():
        close(p.grad, expected[name], 1e-4)


def test_loads_old_attention_names(tiny, tmp_path):
    reference, _ = tiny
    reference.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in reference.state_dict().items():
        for new, former in old.items():
            if f"attentions.0.{new}.weight" in name:
                tensor = tensor[..., None, None].contiguous()  # once a 1x1 convolution
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        state[name] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in state and not any("to_q" in name for name in state)
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    loaded = AutoencoderKL.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == reference.state_dict().keys()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


@torch.no_grad()
def test_attention_can_be_replaced(tiny):
    reference, mine = tiny
    x = images(mine, 16, 16)
    sites = []

    def attend(q, k, v, *, mask, site):
        sites.append((site, tuple(q.shape)))
        return v * 0

    mine.set_attention_backend("eager")
    close(mine(x).sample, reference(x).sample)
    mine.set_attention_backend(attend)
    assert not torch.allclose(mine(x).sample, reference(x).sample, atol=1e-3)
    assert sites == [(f"{part}.mid_block.attentions.0", (2, 1, 64, 12)) for part in ("encoder", "decoder")]


@pytest.mark.parametrize("size", [(2, 3), (3, 16, 16), (2, 4, 16, 16), (2, 3, 1, 16, 16)])
def test_refuses_other_images(tiny, size):
    with pytest.raises(InputError, match=r"expected: \(batch, 3, height, width\)"):
        tiny[1].encode(torch.zeros(size))


def test_refuses_other_latents(tiny):
    with pytest.raises(InputError, match=r"latents(.|\n)*expected: \(batch, 4, height, width\)"):
        tiny[1].decode(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    "field,value", [("down_block_types", ("DownBlock2D",) * 2), ("up_block_types", ("UpDecoderBlock2D",)), ("act_fn", "sine")]
)
def test_refuses_configurations_without_meaning(field, value):
    with pytest.raises(ConfigError, match=field):
        AutoencoderKL(**TINY | {field: value})


@pytest.mark.parametrize("config", [{"latent_channels": 4}, {"latent_channels": 16, "use_quant_conv": False}])
def test_full_size_has_the_references_tensors(config):
    config = config | {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        reference, mine = diffusers.AutoencoderKL(**config), AutoencoderKL(**config)
    assert {n: t.shape for n, t in mine.state_dict().items()} == {n: t.shape for n, t in reference.state_dict().items()}
    assert mine.scale_factor == 8


def test_results_answer_to_names_and_indexes(tiny):
    _, mine = tiny
    encoded = mine.encode(images(mine, 16, 16))
    assert isinstance(encoded, AutoencoderKLOutput) and encoded[0] is encoded["latent_dist"] is encoded.latent_dist
    decoded = mine.decode(encoded.latent_dist.mode())
    assert isinstance(decoded, DecoderOutput) and decoded[0] is decoded.sample


def test_distribution():
    a, b = torch.randn(2, 2, 6, 3, 5, generator=torch.Generator().manual_seed(9)) * 30
    p, q, rp, rq = DiagonalGaussian(a), DiagonalGaussian(b / 9), *map(DiagonalGaussianDistribution, (a, b / 9))
    assert p.logvar.max() <= 20 and p.logvar.min() >= -30 and (a.chunk(2, 1)[1].abs() > 30).any()
    x = torch.randn_like(p.mean)
    for got, expected in [
        (p.std, rp.std),
        (p.var, rp.var),
        (p.kl(), rp.kl()),
        (p.kl(q), rp.kl(rq)),
        (q.nll(x), rq.nll(x)),
        (q.nll(x, dims=[1]), rq.nll(x, dims=[1])),
    ]:
        close(got, expected)
    assert torch.equal(q.kl(q), torch.zeros(2))
