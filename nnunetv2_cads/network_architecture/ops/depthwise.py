"""The 3x3x3 depthwise convolution of the MLPs: one function, the fastest exact path for each device.

Ours. PyTorch's CPU backward of a depthwise 3D convolution took 40% of a whole training step for 2% of its
arithmetic. Its input gradient is again a depthwise convolution (with the kernel flipped), whose channels-last
*forward* is fast; its weight gradient is, for each of the three kernel slices, the weight gradient of a 2D
convolution over all slices at once. A volume of one slice needs only the middle one. CUDA keeps the stock operators.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunetv2_cads.network_architecture.ops.dimensions import OPERATORS, space_axes
from nnunetv2_cads.network_architecture.ops.fast_path import channels_last, is_autocast_on_cpu


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise convolution with zero padding 1 and stride 1.

    Args:
        x: (B, C, D, H, W). An X-ray is a volume of one slice (D = 1).
        weight: (C, 1, 3, 3, 3).
        bias: (C,).

    Returns:
        (B, C, D, H, W), equal to ``F.conv3d(x, weight, bias, padding=1, groups=C)`` up to rounding.
    """
    if x.shape[2] == 1:  # the kernel's outer slices see only padding
        return _depthwise_conv(x[:, :, 0], weight[:, :, 1], bias).unsqueeze(2)
    if is_autocast_on_cpu(x) and torch.compiler.is_compiling():
        return _compiled_on_cpu(x, weight, bias)
    return _depthwise_conv(x, weight, bias)


def _depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of slices (B, C, H, W) with kernels (C, 1, 3, 3), or of volumes with kernels (C, 1, 3, 3, 3)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return _convolve(x, weight, bias)
    if is_autocast_on_cpu(x):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    return _DepthwiseConvCPU.apply(x, weight, bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return OPERATORS[x.dim() - 2].convolve(x, weight, bias, padding=1, groups=x.shape[1])


def _compiled_on_cpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The stock operator in float32, with operands rounded as autocast rounds them.

    In bf16 oneDNN's weight gradient of maps of two slices holds whatever lay in memory (see convolution.py).
    """
    dtype = torch.get_autocast_dtype("cpu")
    x, weight, bias = (tensor.to(dtype).float() for tensor in (x, weight, bias))
    with torch.autocast("cpu", enabled=False):
        return F.conv3d(x, weight, bias, padding=1, groups=x.shape[1]).to(dtype)


class _DepthwiseConvCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = channels_last(gradient)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _convolve(gradient, weight.flip(space_axes(x)))
        if ctx.needs_input_grad[1]:
            weight_gradient = _weight_gradient_2d if x.dim() == 4 else _weight_gradient_3d
            grad_weight = weight_gradient(x, gradient).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient.sum((0, *space_axes(x)))
        return grad_x, grad_weight, grad_bias


def _weight_gradient_3d(x: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the (C, 1, 3, 3, 3) kernel; x and gradient are (B, C, D, H, W), channels last.

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
    """(N, C, H, W) twice, channels last -> gradient of the (C, 1, 3, 3) kernel."""
    channels, rows = x.shape[1:3]
    if rows < 3:  # oneDNN takes 40 times as long for maps lower than the kernel; rows of zeros add nothing
        x, gradient = (F.pad(values, (0, 0, 0, 3 - rows)) for values in (x, gradient))
    return torch.nn.grad.conv2d_weight(x, (channels, 1, 3, 3), gradient, padding=1, groups=channels)
