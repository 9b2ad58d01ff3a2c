"""Convolution of kernel 3 with a correct weight gradient on every device and in every precision.

Ours. In bf16 on the CPU, oneDNN's weight gradient of 3 x 3 x 3 convolutions of maps of two slices, in any memory
layout, is wrong for the kernel's first two slices and may hold whatever lay in memory (PyTorch 2.14.1).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.fast_path import is_autocast_on_cpu


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x) for a convolution of kernel 3, stride 1 and padding 1: (B, C, [D,] H, W) -> (B, C', [D,] H, W).

    Where the gradient would be wrong, a third slice of zeros, the same as the padding, is appended to the two.
    """
    if x.dim() == 5 and x.shape[2] == 2 and is_autocast_on_cpu(x):
        return conv(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :, :2]
    return conv(x)
