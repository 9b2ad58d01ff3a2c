"""The 3x3x3 depthwise convolution of the MLPs, and its gradient on a CPU.

Ours. PyTorch's CPU backward is slow. The input gradient is again a depthwise convolution (with the kernel flipped),
whose channels-last *forward* is fast; the weight gradient is, for each of the three kernel slices, the weight gradient
of a 2D convolution over all slices at once. A volume of one slice needs only the middle one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_cads.network_architecture.ops.dimensions import OPERATORS
from nnunetv2_cads.network_architecture.ops.fast_path import is_autocast_on_cpu


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution with zero padding 1 and stride 1, by PyTorch's operators: for GPUs and compiled code.

    Args:
        x: (B, C, D, H, W). An X-ray is a volume of one slice (D = 1).
        weight: (C, 1, 3, 3, 3).
        bias: (C,).

    Returns:
        (B, C, D, H, W), equal to ``F.conv3d(x, weight, bias, padding=1, groups=C)`` up to rounding.
    """
    if x.shape[2] == 1:  # the kernel's outer slices see only padding
        return convolve(x[:, :, 0], weight[:, :, 1], bias).unsqueeze(2)
    if not is_autocast_on_cpu(x):
        return convolve(x, weight, bias)
    # in bf16 oneDNN's weight gradient of maps of two slices holds whatever lay in memory (see convolution.py), so:
    # float32, with operands rounded as autocast rounds them
    dtype = torch.get_autocast_dtype("cpu")
    x, weight, bias = (tensor.to(dtype).float() for tensor in (x, weight, bias))
    with torch.autocast("cpu", enabled=False):
        return convolve(x, weight, bias).to(dtype)


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Slices (B, C, H, W) with kernels (C, 1, 3, 3), or volumes (B, C, D, H, W) with kernels (C, 1, 3, 3, 3)."""
    return OPERATORS[x.dim() - 2].convolve(x, kernel, bias, padding=1, groups=x.shape[1])


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the kernel of `convolve`, from its input and the gradient of its output, both channels-last."""
    return _weight_gradient_2d(x, gradient) if x.dim() == 4 else _weight_gradient_3d(x, gradient)


def _weight_gradient_3d(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the (C, 1, 3, 3, 3) kernel.

    Kernel slice k pairs input slice d + k - 1 with output slice d. Over the flattened (B * D) slices such pairs are
    two views, without copies; the pairs that straddle two samples are computed apart and taken off again.
    """
    depth = x.shape[2]
    x, gradient = x.transpose(1, 2), gradient.transpose(1, 2)
    x_slices, gradient_slices = x.flatten(0, 1), gradient.flatten(0, 1)
    before = _weight_gradient_2d(x_slices[:-1], gradient_slices[1:])
    after = _weight_gradient_2d(x_slices[1:], gradient_slices[:-1])
    if len(x) > 1:
        before -= _weight_gradient_2d(x[:-1, depth - 1], gradient[1:, 0])
        after -= _weight_gradient_2d(x[1:, 0], gradient[:-1, depth - 1])
    return torch.stack([before, _weight_gradient_2d(x_slices, gradient_slices), after], dim=2)


def _weight_gradient_2d(x: Tensor, gradient: Tensor) -> Tensor:
    """(N, C, H, W) twice -> gradient of the (C, 1, 3, 3) kernel."""
    channels, rows = x.shape[1:3]
    if rows < 3:  # oneDNN takes 40 times as long for maps lower than the kernel; rows of zeros add nothing
        x, gradient = (F.pad(values, (0, 0, 0, 3 - rows)) for values in (x, gradient))
    return torch.nn.grad.conv2d_weight(x, (channels, 1, 3, 3), gradient, padding=1, groups=channels)
