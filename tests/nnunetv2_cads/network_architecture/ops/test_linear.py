"""The linear layers' fast path against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunetv2_cads.network_architecture.ops.linear import (
    FEWEST_TOKENS,
    TokenLinear,
    convolution_is_faster,
    multiply,
    multiply_transposed,
)


@settings(max_examples=25)
@given(
    shape=st.sampled_from([(FEWEST_TOKENS,), (3, 100), (2, 4, 64), (1, 700), (5,), (2, 0)]),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    strided=st.booleans(),
)
def test_equals_the_stock_layer_with_all_gradients(shape, inputs, outputs, bias, strided):
    torch.manual_seed(0)
    ours = TokenLinear(inputs, outputs, bias)
    stock = nn.Linear(inputs, outputs, bias)
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, 2 * inputs)[..., ::2] if strided else torch.randn(*shape, inputs)
    results = []
    for layer in (ours, stock):
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        assert y.shape == (*shape, outputs)
        y.square().sum().backward()
        results.append([y, leaf.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_fast_path_is_taken_for_float32_on_the_cpu_alone():
    assert convolution_is_faster(torch.zeros(1))
    assert not convolution_is_faster(torch.zeros(1, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolution_is_faster(torch.zeros(1))


def test_autocast_gives_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        assert TokenLinear(8, 4)(torch.zeros(FEWEST_TOKENS, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("count", [1, 48, 1000])
def test_products_of_matrices(count):
    left, right, matrix = torch.randn(count, 7), torch.randn(count, 5), torch.randn(3, 7)
    torch.testing.assert_close(multiply(left, matrix), F.linear(left, matrix), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(multiply_transposed(left, right), left.T @ right, rtol=1e-5, atol=1e-4)
