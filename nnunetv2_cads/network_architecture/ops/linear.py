"""The linear layers of the encoder and the heads: one class, the fastest exact path for each device.

Ours. In float32 on a CPU, PyTorch multiplies matrices with MKL and convolves with oneDNN, and on the CPUs that we
measured (AMD, AVX2 and AVX-512) the latter is twice as fast. A linear layer on tokens is a 1x1 convolution of a
channels-last image one voxel wide, without any copy. Everywhere else this is PyTorch's linear layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.fast_path import is_eager_float32_on_cpu

FEWEST_TOKENS = 256
"""With fewer, preparing the convolution costs more than it saves."""


class TokenLinear(nn.Linear):
    """`torch.nn.Linear`, with its keys, for many tokens at once."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x matrix^T + bias: (..., I), (O, I), (O,) -> (..., O)."""
    tokens = x.shape[:-1].numel()
    if tokens < FEWEST_TOKENS or not convolution_is_faster(x):
        return F.linear(x, matrix, bias)
    return multiply(x.reshape(tokens, -1), matrix, bias).view(*x.shape[:-1], len(matrix))


def linear_weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of `linear`'s matrix, from that of its output (..., O) and its input (..., I): (O, I)."""
    gradient, x = gradient.flatten(0, -2), x.flatten(0, -2)
    if len(x) < FEWEST_TOKENS or not convolution_is_faster(x):
        return gradient.T @ x
    return multiply_transposed(gradient, x)


def convolution_is_faster(x: Tensor) -> bool:
    """Whether `multiply` and `multiply_transposed` are faster than PyTorch's operators for tensors like ``x``."""
    return is_eager_float32_on_cpu(x)


def multiply(tokens: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """tokens matrix^T + bias, as a convolution: (N, I), (O, I), (O,) -> (N, O)."""
    y = F.conv2d(_as_image(tokens), matrix[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(len(tokens), len(matrix))


def multiply_transposed(left: Tensor, right: Tensor) -> Tensor:
    """left^T right, as the weight gradient of a convolution: (N, O), (N, I) -> (O, I). Not differentiable."""
    shape = (left.shape[1], right.shape[1], 1, 1)
    return torch.nn.grad.conv2d_weight(_as_image(right), shape, _as_image(left)).view(shape[:2])


def _as_image(tokens: Tensor) -> Tensor:
    """(N, C) -> (1, C, N, 1), a channels-last view."""
    return tokens.view(1, len(tokens), 1, -1).permute(0, 3, 1, 2)
