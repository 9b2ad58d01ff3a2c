"""Instance norm followed by LeakyReLU: one function, the fastest exact path for each device.

Ours. On the CPU, PyTorch's instance norm copies a channels-last map to the other layout, and the convolution after it
copies it back; its own channels-last statistics sum a million numbers one after another in float32, which costs four
digits. Here both passes work on channels-last maps, on some slices at a time, so that little new memory is touched.
Everywhere else these are PyTorch's operators.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_cads.network_architecture.ops.convolution import convolve
from nnunetv2_cads.network_architecture.ops.dimensions import space_axes
from nnunetv2_cads.network_architecture.ops.fast_path import channels_last, is_eager_float32_on_cpu

NEGATIVE_SLOPE = 0.01
NO_ACTIVATION = 1.0
"""The slope with which LeakyReLU changes nothing. PyTorch's is applied all the same: it makes gradients contiguous, and
on the CPU instance norm alone has wrong ones where a single sample's gradient is channels-last (PyTorch 2.14.1)."""
EPS = 1e-5
"""PyTorch's default, and nnU-Net's."""
NUMBERS_AT_ONCE = 2**22
"""How many a pass works on at a time: 16 MiB of each map. From 32 MiB on, malloc clears new pages each time.
Smaller parts would fit a cache, but wait for all threads more often, which costs much more on a shared machine."""


def instance_norm_leaky_relu(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    slope: float = NEGATIVE_SLOPE,
) -> Tensor:
    """LeakyReLU(instance norm(x) * weight + bias + residual).

    Args:
        x: (B, C, [D,] H, W), which the caller must not use again: without gradients, it may be overwritten.
        weight: (C,), None for ones.
        bias: (C,), None for zeros; given together with ``weight``.
        residual: added before the activation, of the shape of x.
        slope: of the activation for negative numbers.

    Returns:
        (B, C, [D,] H, W).
    """
    if not is_eager_float32_on_cpu(x):
        y = F.instance_norm(x, weight=weight, bias=bias, eps=EPS)
        return F.leaky_relu(y if residual is None else y + residual, slope, inplace=True)
    x = channels_last(x)
    if residual is not None:
        residual = channels_last(residual)
    if torch.is_grad_enabled():
        return _InstanceNormLeakyReLU.apply(x, weight, bias, residual, slope)
    return _normalise(x, *_statistics(x), weight, bias, residual, slope, out=x)


def norm_act_conv(x: Tensor, conv: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """conv(`instance_norm_leaky_relu` (x, weight, bias)), one function that the backward pass can compute again."""
    return convolve(conv, instance_norm_leaky_relu(x, weight, bias))


class _InstanceNormLeakyReLU(torch.autograd.Function):
    """Keeps only its inputs: the sign that the activation's gradient depends on is computed from them again."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, slope: float
    ) -> Tensor:
        mean, inverse_std = _statistics(x)
        ctx.save_for_backward(x, mean, inverse_std, weight, bias, residual)
        ctx.slope = slope
        return _normalise(x, mean, inverse_std, weight, bias, residual, slope, out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse_std, weight, bias, residual = ctx.saved_tensors
        gradient = channels_last(gradient)
        scale, offset = _affine(mean, inverse_std, weight, bias)
        before = torch.empty_like(x)  # gradient of what the activation got, which is also the residual's
        total, covariance = torch.zeros_like(mean), torch.zeros_like(mean)
        for part, gradient_part, out, *added in _parts(x, gradient, before, *_if_given(residual)):
            centred = part - mean
            y = torch.addcmul(offset, centred, scale)
            for other in added:
                y += other
            torch.ops.aten.leaky_relu_backward.grad_input(gradient_part, y, ctx.slope, False, grad_input=out)
            total += out.sum(space_axes(x), keepdim=True)
            covariance += centred.mul_(out).sum(space_axes(x), keepdim=True)
        covariance *= inverse_std  # of the normalised map and its gradient
        slope = -scale * inverse_std * covariance / _voxels(x)
        constant = -scale * total / _voxels(x)
        grad_x = before if residual is None else torch.empty_like(x)
        for part, before_part, out in _parts(x, before, grad_x):
            torch.addcmul(constant, before_part, scale, out=out).addcmul_(part - mean, slope)
        return (
            grad_x,
            None if weight is None else covariance.sum(0).flatten(),
            None if bias is None else total.sum(0).flatten(),
            None if residual is None else before,
            None,
        )


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each sample's channels, (B, C, [1,] 1, 1) both; two passes, so exact."""
    mean = sum(part.sum(space_axes(x), keepdim=True) for (part,) in _parts(x)) / _voxels(x)
    variance = sum((part - mean).square_().sum(space_axes(x), keepdim=True) for (part,) in _parts(x)) / _voxels(x)
    return mean, (variance + EPS).rsqrt_()


def _normalise(
    x: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    slope: float,
    out: Tensor,
) -> Tensor:
    """The output from the statistics, written to ``out``, which may be x itself."""
    scale, offset = _affine(mean, inverse_std, weight, bias)
    for part, y, *added in _parts(x, out, *_if_given(residual)):
        torch.sub(part, mean, out=y)  # first, since a mean far from 0 would cost digits later
        torch.addcmul(offset, y, scale, out=y)
        for other in added:
            y += other
        F.leaky_relu_(y, slope)
    return out


def _parts(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same slices (along the first spatial axis) of all maps, `NUMBERS_AT_ONCE` numbers of each."""
    length = maps[0].shape[2]
    step = max(1, NUMBERS_AT_ONCE * length // max(1, maps[0].numel()))
    for start in range(0, length, step):
        yield tuple(m.narrow(2, start, min(step, length - start)) for m in maps)


def _voxels(x: Tensor) -> int:
    return x.shape[2:].numel()


def _affine(mean: Tensor, inverse_std: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and offset of the map after its mean was subtracted, in the shape of ``mean``."""
    scale = inverse_std if weight is None else inverse_std * weight.view_as(mean[:1])
    offset = torch.zeros_like(mean) if bias is None else bias.view_as(mean[:1]).expand_as(mean)
    return scale, offset


def _if_given(value: Tensor | None) -> tuple[Tensor, ...]:
    return () if value is None else (value,)
