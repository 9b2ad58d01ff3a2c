"""The 1x1x1 convolution of the segmentation heads: one function, the fastest exact path for each device.

Ours. On the CPU, PyTorch's convolution from 32 channels to a few classes is several times slower than the matrix
product that it is, and copies both maps. The product reads a channels-last map and writes class scores in the layout
that losses work on. Everywhere else this is PyTorch's convolution.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_cads.network_architecture.ops.fast_path import channels_last, is_eager_float32_on_cpu


def class_scores(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Apply a convolution with kernel 1 and bias: (B, C, [D,] H, W) -> (B, num_classes, [D,] H, W), contiguous."""
    if not is_eager_float32_on_cpu(x):
        return layer(x)
    voxels = channels_last(x).flatten(2).transpose(1, 2)
    return _Pointwise.apply(voxels, layer.weight.flatten(1), layer.bias).unflatten(2, x.shape[2:])


class _Pointwise(torch.autograd.Function):
    """(B, N, C) contiguous, (K, C), (K,) -> (B, K, N) contiguous; the gradient of the first is contiguous again."""

    @staticmethod
    def forward(ctx, voxels: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(voxels, matrix)
        batch = len(voxels)
        return torch.baddbmm(bias[:, None].expand(batch, -1, 1), matrix.expand(batch, -1, -1), voxels.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        voxels, matrix = ctx.saved_tensors
        grad_voxels = grad_matrix = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_voxels = gradient.transpose(1, 2) @ matrix.expand(len(voxels), -1, -1)
        if ctx.needs_input_grad[1]:
            grad_matrix = (gradient @ voxels).sum(0)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum((0, 2))
        return grad_voxels, grad_matrix, grad_bias
