"""The convolution whose stride is its kernel, of the attention's spatial reduction: one function, fastest exact path.

Ours. Such a convolution multiplies each patch of the map, as a vector, with one matrix. Of the few patches of a
pre-training view, oneDNN's convolution in bf16 takes three times as long as that product, most of it to bring the
matrix into a layout of its own. Everywhere else this is PyTorch's convolution; in float32, too, where the product
gains a hundredth of a step, and rounds otherwise for another number of patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.dimensions import space_axes, to_tokens
from nnunetv2_cads.network_architecture.ops.fast_path import is_autocast_on_cpu

MANY_PATCHES = 128
"""From about here on, the convolution is as fast: cutting the map into patches copies it."""


def reduce_patches(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """conv(x) for a convolution of stride = kernel, without padding, as tokens.

    Args:
        conv: from C to C' channels, kernel and stride r along each axis.
        x: (B, C, [D,] H, W); what does not fill a patch at the end of an axis is left out.

    Returns:
        (B, N, C'), where N = [D // r *] H // r * W // r.
    """
    edges = [n // k for n, k in zip(x.shape[2:], conv.kernel_size, strict=True)]
    are_few = len(x) * torch.Size(edges).numel() < MANY_PATCHES
    if are_few and is_autocast_on_cpu(x) and not torch.compiler.is_compiling():
        return multiply_patches(conv, x)
    return to_tokens(conv(x))


def multiply_patches(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """`reduce_patches` as a matrix product."""
    kernel, space = conv.kernel_size, space_axes(x)
    for axis, k in zip(reversed(space), reversed(kernel), strict=True):
        x = x.narrow(axis, 0, x.shape[axis] // k * k).unflatten(axis, (-1, k))
    where, within = (tuple(2 * axis - shift for axis in space) for shift in (2, 1))
    patches = x.permute(0, *where, 1, *within).flatten(len(kernel) + 1).flatten(1, len(kernel))
    return F.linear(patches, conv.weight.flatten(1), conv.bias)
