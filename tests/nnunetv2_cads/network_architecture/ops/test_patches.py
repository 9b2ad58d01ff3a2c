"""The reduction of patches against PyTorch's convolution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nnunetv2_cads.network_architecture.ops import patches
from nnunetv2_cads.network_architecture.ops.patches import multiply_patches, reduce_patches


@given(
    batch=st.integers(1, 3),
    size=st.lists(st.integers(4, 11), min_size=2, max_size=3),
    edge=st.sampled_from([1, 2, 4]),
    channels_last=st.booleans(),
)
def test_tokens_and_gradients_equal_the_convolution(batch, size, edge, channels_last):
    conv = (nn.Conv2d, nn.Conv3d)[len(size) - 2](3, 5, edge, stride=edge).double()
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    inputs = (x.requires_grad_(), conv.weight, conv.bias)
    stock = conv(x).flatten(2).transpose(1, 2)
    ours = multiply_patches(conv, x)
    torch.testing.assert_close(ours, stock)
    torch.testing.assert_close(reduce_patches(conv, x), stock)
    weights = torch.randn_like(stock)
    gradients = [torch.autograd.grad(tokens, inputs, weights) for tokens in (ours, stock)]
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("most", [0, 1000])  # by convolution, by product
def test_under_autocast_tokens_are_rounded_and_near(monkeypatch, most):
    monkeypatch.setattr(patches, "MANY_PATCHES", most)
    torch.manual_seed(0)
    conv, x = nn.Conv3d(8, 8, 2, stride=2), torch.randn(2, 8, 5, 6, 7)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = reduce_patches(conv, x)
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), conv(x).flatten(2).transpose(1, 2), rtol=0.05, atol=0.03)
