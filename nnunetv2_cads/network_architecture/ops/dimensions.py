"""The operators of each number of spatial dimensions, in one table; the axes of a map, and its tokens."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Operators(NamedTuple):
    """What differs between slices and volumes."""

    conv: type[nn.Module]
    convolve: Callable[..., Tensor]
    transposed_conv: type[nn.Module]
    transpose: Callable[..., Tensor]
    instance_norm: type[nn.Module]
    channels_last: torch.memory_format


OPERATORS = {
    2: Operators(nn.Conv2d, F.conv2d, nn.ConvTranspose2d, F.conv_transpose2d, nn.InstanceNorm2d, torch.channels_last),
    3: Operators(
        nn.Conv3d, F.conv3d, nn.ConvTranspose3d, F.conv_transpose3d, nn.InstanceNorm3d, torch.channels_last_3d
    ),
}
"""Number of spatial dimensions -> operators."""


def dimensions_of(conv_op: type[nn.Module]) -> int:
    """2 or 3.

    Raises:
        ValueError: ``conv_op`` is another class than ``nn.Conv2d`` and ``nn.Conv3d``.
    """
    for dims, operators in OPERATORS.items():
        if conv_op is operators.conv:
            return dims
    raise ValueError(f"conv_op must be nn.Conv2d or nn.Conv3d, got {conv_op!r}")


def space_axes(x: Tensor) -> tuple[int, ...]:
    """The axes of (B, C, [D,] H, W) that are space."""
    return tuple(range(2, x.dim()))


# Both move the channels before they join or split the axes of space, and the other way round in the backward pass. In
# another order, PyTorch gives a map of a single sample strides that its convolutions do not take for channels-last:
# they copy it there and back, which made the depthwise ones thirty times as slow (PyTorch 2.14.1, CPU).


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, [D,] H, W) -> (B, N, C); a view when the map is channels-last."""
    return x.movedim(1, -1).flatten(1, -2)


def to_map(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, N, C) -> (B, C, *size), a channels-last view."""
    return tokens.unflatten(1, size).movedim(-1, 1)
