"""The convolution of a single small map, as a prediction's tiles have it, against PyTorch's."""

import pytest
import torch
from torch import nn

from nnunetv2_cads.network_architecture.ops.convolution import convolve


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 16, 8, 8, 8), (1, 16, 2, 16, 16), (2, 16, 8, 8, 8), (1, 16, 4, 4, 4), (1, 16, 32, 32)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_layer(shape, bias, gradients):
    conv = (nn.Conv3d if len(shape) == 5 else nn.Conv2d)(16, 8, 3, padding=1, bias=bias)
    x = torch.randn(shape).movedim(1, -1).contiguous().movedim(-1, 1)
    expected = conv.double()(x.double()).float()
    with torch.set_grad_enabled(gradients):
        y = convolve(conv.float(), x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.requires_grad == gradients
