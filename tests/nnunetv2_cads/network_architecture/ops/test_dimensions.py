"""Maps and tokens: the same numbers in the layout that PyTorch's convolutions take for channels-last."""

import pytest
import torch

from nnunetv2_cads.network_architecture.ops.dimensions import OPERATORS, to_map, to_tokens


@pytest.mark.parametrize("size", [(5, 7), (1, 7), (3, 4, 5), (1, 4, 5), (2, 1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_there_and_back_without_a_copy(size, batch):
    tokens = torch.randn(batch, torch.Size(size).numel(), 6)
    volume = to_map(tokens, size)
    assert volume.shape == (batch, 6, *size)
    assert torch.equal(volume[:, 2].flatten(1), tokens[..., 2])
    assert torch.equal(to_tokens(volume), tokens)
    assert {volume.data_ptr(), to_tokens(volume).data_ptr()} == {tokens.data_ptr()}


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions_and_gradients_stay_channels_last(size, batch):
    operators = OPERATORS[len(size)]
    tokens = torch.randn(batch, torch.Size(size).numel(), 16, requires_grad=True)
    volume = to_map(tokens, size)
    convolved = operators.convolve(volume, torch.randn(16, 1, *[3] * len(size)), padding=1, groups=16)
    usual = torch.empty(convolved.shape, memory_format=operators.channels_last).stride()
    assert volume.stride() == convolved.stride() == usual
    result = to_tokens(convolved)
    assert result.is_contiguous()
    of_gradients = []
    convolved.register_hook(lambda gradient: of_gradients.append(gradient.stride()))
    result.backward(torch.randn(result.shape))
    assert of_gradients == [usual]
