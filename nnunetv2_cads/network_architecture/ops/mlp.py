"""The MLP of a block on a CPU: linear, depthwise convolution, GELU and linear as one function of few samples at a time.

Ours. The hidden map has four or eight times the channels of the tokens, and a CPU waits for memory in every layer that
reads it. Of few samples it stays in the cache from one layer to the next, in both passes. In half precision the first
layer's output is kept for the backward pass. In float32, of which it would be twice as large, only the input is kept,
and the hidden map is made again, a few samples at a time.

PyTorch's CPU backward of a depthwise 3D convolution took 40% of a whole training step for 2% of its arithmetic, so it
is written out in `depthwise.py`, and with it the backward pass of the rest.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_cads.network_architecture.ops.depthwise import convolve, weight_gradient
from nnunetv2_cads.network_architecture.ops.dimensions import space_axes, to_map, to_tokens
from nnunetv2_cads.network_architecture.ops.fast_path import is_autocast_on_cpu
from nnunetv2_cads.network_architecture.ops.linear import linear, linear_weight_gradient

HIDDEN_BYTES_AT_ONCE = 5 * 2**20
"""Of the hidden map; five or six maps of this size are at work. From 2 to 12 MiB, no difference was measured."""


class Weights(NamedTuple):
    """Of the MLP, in the precision in which it computes.

    Attributes:
        in_matrix: (hidden, C).
        in_bias: (hidden,).
        kernel: (hidden, 1, [3,] 3, 3).
        kernel_bias: (hidden,).
        out_matrix: (C, hidden).
        out_bias: (C,).
    """

    in_matrix: Tensor
    in_bias: Tensor
    kernel: Tensor
    kernel_bias: Tensor
    out_matrix: Tensor
    out_bias: Tensor


def runs_in_parts(x: Tensor) -> bool:
    """Whether `mlp_in_parts` is the fastest path: on a CPU, outside of torch.compile."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def mlp_in_parts(x: Tensor, size: tuple[int, ...], fc1: nn.Linear, dwconv: nn.Conv3d, fc2: nn.Linear) -> Tensor:
    """fc2(GELU(dwconv(fc1(x)))), up to rounding.

    Args:
        x: tokens (B, N, C) of maps with the spatial ``size``, on a CPU.
        size: (D, H, W), or (H, W) of an X-ray, which is a volume of one slice.
        fc1: from C to hidden channels.
        dwconv: depthwise convolution of kernel 3, stride 1 and padding 1.
        fc2: from hidden to C channels.

    Returns:
        (B, N, C), under autocast in its precision.
    """
    dtype = torch.get_autocast_dtype("cpu") if is_autocast_on_cpu(x) else x.dtype
    kernel = dwconv.weight
    if len(size) == 2 or size[0] == 1:  # the kernel's outer slices see only padding
        kernel, size = kernel[:, :, 1], size[-2:]
    keep_hidden = torch.is_grad_enabled() and dtype.itemsize < 4
    return _MLPInParts.apply(
        x, size, dtype, keep_hidden, fc1.weight, fc1.bias, kernel, dwconv.bias, fc2.weight, fc2.bias
    )


class _MLPInParts(torch.autograd.Function):
    """Gradients of the weights add up in their own precision, also under autocast."""

    @staticmethod
    def forward(
        ctx, x: Tensor, size: tuple[int, ...], dtype: torch.dtype, keep_hidden: bool, *parameters: Tensor
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x, weights = x.to(dtype), Weights(*(parameter.to(dtype) for parameter in parameters))
            y = torch.empty_like(x, memory_format=torch.contiguous_format)
            samples, kept = _samples_at_once(x, weights), []
            for part, out in zip(x.split(samples), y.split(samples), strict=True):
                hidden = _hidden_map(part, size, weights)
                mixed = _mix(hidden, weights)
                out.copy_(linear(F.gelu(mixed), weights.out_matrix, weights.out_bias))
                if keep_hidden:
                    kept.append(hidden)
        ctx.save_for_backward(x, *weights, *kept)
        ctx.size, ctx.parameter_dtype = size, parameters[0].dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        weights, kept = Weights(*saved[: len(Weights._fields)]), saved[len(Weights._fields) :]
        sums = Weights(*(torch.zeros(w.shape, dtype=ctx.parameter_dtype) for w in weights))
        to_input, to_hidden = (matrix.T.contiguous() for matrix in (weights.in_matrix, weights.out_matrix))
        flipped = weights.kernel.flip(space_axes(weights.kernel))
        grad_x = torch.empty_like(x)
        samples = _samples_at_once(x, weights)
        parts = zip(*(tensor.split(samples) for tensor in (x, gradient, grad_x)), strict=True)
        with torch.autocast("cpu", enabled=False):
            for part, grad_y, out in parts:
                hidden = kept.pop(0) if kept else _hidden_map(part, ctx.size, weights)
                mixed = _mix(hidden, weights)
                grad_mixed = torch.ops.aten.gelu_backward(linear(grad_y, to_hidden), mixed)
                grad_mixed_map = to_map(grad_mixed, ctx.size)
                grad_hidden = to_tokens(convolve(grad_mixed_map, flipped))
                out.copy_(linear(grad_hidden, to_input))
                of_part = Weights(
                    linear_weight_gradient(grad_hidden, part),
                    grad_hidden.sum((0, 1)),
                    weight_gradient(hidden, grad_mixed_map),
                    grad_mixed.sum((0, 1)),
                    linear_weight_gradient(grad_y, F.gelu(mixed)),
                    grad_y.sum((0, 1)),
                )
                for total, summand in zip(sums, of_part, strict=True):
                    total += summand
        return grad_x, None, None, None, *sums


def _samples_at_once(x: Tensor, weights: Weights) -> int:
    bytes_per_sample = x.shape[1] * len(weights.in_matrix) * x.element_size()
    return max(1, HIDDEN_BYTES_AT_ONCE // max(1, bytes_per_sample))


def _hidden_map(x: Tensor, size: tuple[int, ...], weights: Weights) -> Tensor:
    """What the first layer makes of tokens, as a channels-last map."""
    return to_map(linear(x, weights.in_matrix, weights.in_bias), size)


def _mix(hidden: Tensor, weights: Weights) -> Tensor:
    """What the depthwise convolution makes of the hidden map, as tokens."""
    return to_tokens(convolve(hidden, weights.kernel, weights.kernel_bias))
