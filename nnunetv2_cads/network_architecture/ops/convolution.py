"""Convolution of kernel 3: one function, with a correct weight gradient in every precision, and fast for one sample.

Ours. In bf16 on the CPU, oneDNN's weight gradient of 3 x 3 x 3 convolutions of maps of two slices, in any memory
layout, is wrong for the kernel's first two slices and may hold whatever lay in memory (PyTorch 2.14.1).

PyTorch leaves small maps of a single sample to its own convolution, which takes five times as long as oneDNN's. The
tiles of a prediction are single samples: those of 32 x 64 x 64 voxels took 15% longer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.fast_path import is_autocast_on_cpu, is_eager_float32_on_cpu

FEWEST_VOXELS = 512
"""Of a map with fewer, oneDNN takes as long: most of it to bring the weights into a layout of its own."""


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x) for a convolution of kernel 3, stride 1 and padding 1: (B, C, [D,] H, W) -> (B, C', [D,] H, W).

    Where the gradient would be wrong, a third slice of zeros, the same as the padding, is appended to the two.
    """
    if x.dim() == 5 and x.shape[2] == 2 and is_autocast_on_cpu(x):
        return conv(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :, :2]
    if _is_one_small_map(x):
        return torch.mkldnn_convolution(x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, 1)
    return conv(x)


def _is_one_small_map(x: Tensor) -> bool:
    """Whether oneDNN, called by its name, is faster than what PyTorch chooses for x.

    Only without gradients: for the backward pass PyTorch would choose again.
    """
    return (
        x.dim() == 5
        and len(x) == 1
        and x.shape[2:].numel() >= FEWEST_VOXELS
        and is_eager_float32_on_cpu(x)
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.is_available()
    )
