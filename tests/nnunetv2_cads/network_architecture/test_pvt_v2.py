"""The encoder against the recorded numbers of the published one, and its contract."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_cads.network_architecture import PVTv2Encoder
from nnunetv2_cads.network_architecture.ops.depthwise import depthwise_conv3d
from nnunetv2_cads.network_architecture.pvt_v2 import SIZES

MAX_ERROR, MEAN_ERROR = 1e-3, 1e-5
MAPS = ("stem", "stage1", "stage2", "stage3", "stage4")


def test_reference_keys_and_shapes(reference_dir):
    expected = json.loads((reference_dir / "encoder_keys.json").read_text())
    found = {key: list(value.shape) for key, value in PVTv2Encoder().state_dict().items()}
    assert found == expected


def test_reference_maps(reference_dir, set_reference_weights):
    recorded = np.load(reference_dir / "encoder_reference.npz")
    encoder = PVTv2Encoder().eval()
    set_reference_weights(encoder)
    cases = sorted({name.split(".")[0] for name in recorded})
    assert cases
    for case in cases:
        with torch.no_grad():
            maps = dict(zip(MAPS, encoder(torch.from_numpy(recorded[f"{case}.input"])), strict=True))
        for name in (n for n in MAPS if f"{case}.{n}" in recorded):
            error = np.abs(maps[name].numpy() - recorded[f"{case}.{name}"])
            assert error.max() <= MAX_ERROR and error.mean() <= MEAN_ERROR, (case, name, error.max(), error.mean())


def test_every_parameter_gets_a_gradient_from_ct_and_xray_together():
    encoder = PVTv2Encoder(drop_path_rate=0.0)
    maps = encoder(torch.randn(2, 1, 16, 48, 48)) + encoder(torch.randn(2, 1, 96, 96))
    # a random projection of each map: plain sums have no gradient through the normalisations
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # nothing attends to more than one key on such small deep maps, so only their queries have no effect
    assert all(".attn." in name for name in without), without
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_one_dimension_holds_only_its_modules(dims):
    encoder = PVTv2Encoder(spatial_dims=(dims,), drop_path_rate=0.0)
    both = PVTv2Encoder().state_dict()
    assert set(encoder.state_dict()) < set(both)
    x = torch.randn(1, 1, *(64,) * dims)
    sum((m * torch.randn_like(m)).sum() for m in encoder(x)).backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_those_of_timm(size):
    import timm  # nnU-Net's networks bring it

    with torch.device("meta"):
        ours, theirs = PVTv2Encoder(spatial_dims=(2,), size=size), timm.create_model(f"pvt_v2_{size}", num_classes=0)
    assert blocks_of(ours) == blocks_of(theirs)


def blocks_of(network):
    """Heads and shapes of weights of each block, in their order; kernels in space by their channels and edge."""
    blocks = [module for module in network.modules() if hasattr(module, "attn")]
    return [
        (
            block.attn.num_heads,
            tuple(block.attn.kv.weight.shape),
            tuple(block.mlp.fc1.weight.shape),
            *(tuple(p.shape) for name, p in block.attn.named_parameters() if name in ("sr.weight", "sr_2D.weight")),
        )
        for block in blocks
    ]


@pytest.mark.parametrize("size", ["b0", "b2"])
def test_other_sizes_run_in_both_dimensions(size):
    encoder, dims = PVTv2Encoder(size=size), SIZES[size].embed_dims
    noise = torch.rand(encoder.branches, 1)
    with torch.no_grad():
        for x in (torch.randn(1, 1, 16, 32, 32), torch.randn(1, 1, 32, 32)):
            assert tuple(m.shape[1] for m in encoder(x, noise)) == encoder.channels == (dims[0], *dims)


def test_the_published_size_is_the_default():
    encoder = PVTv2Encoder()
    assert (encoder.size, encoder.branches, encoder.channels) == ("b1", 16, (64, 64, 128, 320, 512))


def test_an_unknown_size_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="size must be one of b0, b1, b2, b3, b4, b5, got 'b6'"):
        PVTv2Encoder(size="b6")


@settings(max_examples=12)
@given(depth=st.integers(15, 40), height=st.integers(29, 75), width=st.integers(29, 75), channels=st.integers(1, 3))
def test_map_sizes_round_up(depth, height, width, channels):
    encoder = PVTv2Encoder(input_channels=channels, spatial_dims=(3,)).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(1, channels, depth, height, width))
    strides = [(2, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16), (16, 32, 32)]
    for feature_map, stride, dim in zip(maps, strides, encoder.channels, strict=True):
        expected = tuple(-(-size // s) for size, s in zip((depth, height, width), stride, strict=True))
        assert feature_map.shape == (1, dim, *expected)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((1, 1, 14, 48, 48), "at least (15, 29, 29)"),
        ((1, 1, 28, 48), "at least (29, 29)"),
        ((1, 2, 16, 48, 48), "got an input of shape (1, 2, 16, 48, 48)"),
        ((1, 48, 48), "got an input of shape (1, 48, 48)"),
    ],
)
def test_unfit_inputs_are_refused_with_their_shape(shape, part):
    with pytest.raises(ValueError) as error:
        PVTv2Encoder()(torch.zeros(shape))
    assert part in str(error.value)


def test_what_is_deeper_than_the_maps_that_are_asked_for_is_not_run():
    encoder, image = PVTv2Encoder(1, (3,), size="b0").eval(), torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        every = encoder(image)
        encoder.block4[0].mlp.fc1.weight.fill_(float("nan"))
        for levels in range(1, 5):
            maps = encoder(image, levels=levels)
            assert len(maps) == levels
            torch.testing.assert_close(maps, every[:levels], rtol=0, atol=0)
        assert encoder(image)[-1].isnan().any()


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    encoder = PVTv2Encoder(drop_path_rate=0.5)
    drop = encoder.block4[-1].drop_path
    x = torch.ones(4000, 3)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (y[:, 0] == y[:, 1]).all()
    assert abs(y.mean().item() - 1) < 0.1
    assert torch.equal(drop.eval()(x), x)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 6),
    depth=st.integers(1, 5),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels_last=st.booleans(),
)
def test_depthwise_convolution_equals_the_stock_operator(batch, channels, depth, height, width, channels_last):
    x = torch.randn(batch, channels, depth, height, width, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    inputs = [
        t.requires_grad_() for t in (x, torch.randn(channels, 1, 3, 3, 3).double(), torch.randn(channels).double())
    ]
    ours = depthwise_conv3d(*inputs)
    stock = F.conv3d(*inputs, padding=1, groups=channels)
    weights = torch.randn_like(stock)
    torch.testing.assert_close(ours, stock)
    for mine, expected in zip(
        torch.autograd.grad(ours, inputs, weights), torch.autograd.grad(stock, inputs, weights), strict=True
    ):
        torch.testing.assert_close(mine, expected)


def test_encoder_runs_in_bf16_autocast_and_stays_close():
    encoder = PVTv2Encoder(drop_path_rate=0.0)
    x = torch.randn(1, 1, 16, 48, 48)
    exact = encoder(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(x)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b.float()).abs().mean() < 0.05 * a.abs().mean() + 0.02
    sum(m.float().square().sum() for m in rough).backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
