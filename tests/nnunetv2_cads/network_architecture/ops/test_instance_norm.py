"""Norm with activation, and the heads' product, against PyTorch's operators in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunetv2_cads.network_architecture.ops import instance_norm
from nnunetv2_cads.network_architecture.ops.instance_norm import (
    NEGATIVE_SLOPE,
    NO_ACTIVATION,
    instance_norm_leaky_relu,
)
from nnunetv2_cads.network_architecture.ops.pointwise import class_scores

LAYOUTS = {4: (torch.contiguous_format, torch.channels_last), 5: (torch.contiguous_format, torch.channels_last_3d)}
EDGE = st.integers(1, 6)


def plain(x, weight, bias, residual, slope=NEGATIVE_SLOPE):
    y = F.instance_norm(x, weight=weight, bias=bias)
    return F.leaky_relu(y if residual is None else y + residual, slope)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    size=st.one_of(st.tuples(EDGE, EDGE), st.tuples(EDGE, EDGE, EDGE)).filter(lambda s: max(s) > 1),
    last=st.booleans(),
    affine=st.booleans(),
    add=st.booleans(),
    slope=st.sampled_from([NEGATIVE_SLOPE, NO_ACTIVATION]),
    at_once=st.sampled_from([1, 20, 2**22]),
)
def test_equals_the_stock_operators_with_all_gradients(batch, channels, size, last, affine, add, slope, at_once):
    torch.manual_seed(0)
    layout = LAYOUTS[len(size) + 2][last]
    x = torch.randn(batch, channels, *size, dtype=torch.float64).contiguous(memory_format=layout) * 3 + 2
    weights = [torch.randn(channels, dtype=torch.float64) for _ in range(2)] if affine else [None, None]
    residual = torch.randn_like(x) if add else None
    gradient = torch.randn_like(x)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance_norm, "NUMBERS_AT_ONCE", at_once)
        for function, dtype in ((instance_norm_leaky_relu, torch.float32), (plain, torch.float64)):
            inputs = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (x, *weights, residual)]
            y = function(*inputs, slope)
            gradients = torch.autograd.grad(y, [t for t in inputs if t is not None], gradient.to(dtype))
            results.append([y, *gradients])
    for ours, expected in zip(*results, strict=True):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(4, 6), (2, 4, 6)])
def test_channels_last_gradients_are_right_without_the_fast_path(size, batch):
    x, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((batch, 8, *size), 8, 8))
    gradient = torch.randn_like(x)
    results = []
    for function, layout in ((instance_norm_leaky_relu, LAYOUTS[x.dim()][1]), (plain, torch.contiguous_format)):
        inputs = [t.clone().requires_grad_() for t in (x.contiguous(memory_format=layout), weight, bias)]
        y = function(*inputs, None, NO_ACTIVATION)
        results.append([y, *torch.autograd.grad(y, inputs, gradient.contiguous(memory_format=layout))])
    torch.testing.assert_close(*results)


def test_statistics_of_many_numbers_far_from_zero_are_exact():
    x = 50 + torch.randn(1, 2, 64, 96, 96, dtype=torch.float64)
    ours = instance_norm_leaky_relu(x.float()).double()
    assert (ours - plain(x.float().double(), None, None, None)).abs().max() < 5e-5


def test_without_gradients_the_result_is_the_same():
    x, weight, bias = torch.randn(2, 3, 4, 5, 6), torch.randn(3), torch.randn(3)
    expected = instance_norm_leaky_relu(x, weight, bias, x)
    with torch.inference_mode():
        assert torch.equal(instance_norm_leaky_relu(x.clone(), weight, bias, x), expected)


@pytest.mark.parametrize(("conv", "size"), [(nn.Conv3d, (3, 4, 5)), (nn.Conv2d, (7, 9))])
@pytest.mark.parametrize("last", [False, True])
def test_class_scores_are_those_of_the_layer_with_all_gradients(conv, size, last):
    layer = conv(6, 4, 1)
    x = torch.randn(2, 6, *size).contiguous(memory_format=LAYOUTS[len(size) + 2][last]).requires_grad_()
    inputs = [x, layer.weight, layer.bias]
    ours, stock = class_scores(layer, x), layer(x)
    gradient = torch.randn_like(stock).contiguous()
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, gradient), torch.autograd.grad(stock, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
