"""Decoder of PVT-UNet: up-sampling steps that add the encoder's maps, with a segmentation head at every resolution.

Paper: CADS, Ye, Zhang, Chen, Xia, IEEE TMI 44(1):118-129, 2025, names PVT-UNet; its decoder was never published.
Source: CADS method, "Downstream: PVT-UNet"; the residual block is that of ResNet (He et al., CVPR 2016) with
instance norm.
Deviations: the method leaves open how many convolutions a block has (two here), the channels of the last step (32)
and how odd sizes are undone: every map is cut to the size of the encoder's map it is added to.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.convolution import convolve
from nnunetv2_cads.network_architecture.ops.dimensions import OPERATORS, dimensions_of
from nnunetv2_cads.network_architecture.ops.fast_path import channels_last, is_eager_float32_on_cpu
from nnunetv2_cads.network_architecture.ops.instance_norm import NEGATIVE_SLOPE, instance_norm_leaky_relu, norm_act_conv
from nnunetv2_cads.network_architecture.ops.pointwise import class_scores
from nnunetv2_cads.network_architecture.ops.recompute import keep_input_only

FULL_RESOLUTION_CHANNELS = 32


def output_sizes(input_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Sizes of the decoder's outputs, full resolution first.

    Args:
        input_size: (D, H, W) or (H, W) in voxels.
        strides: of the encoder's steps, each relative to the map before it; the last one has no output.

    Returns:
        One size per output: the input's size divided by the strides so far, rounded up.
    """
    totals = itertools.accumulate(strides[:-1], _multiply, initial=(1,) * len(input_size))
    return [tuple(math.ceil(n / s) for n, s in zip(input_size, total, strict=True)) for total in totals]


def _multiply(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(x * y for x, y in zip(a, b, strict=True))


class ResidualBlock(nn.Module):
    """Twice a convolution of kernel 3 and instance norm; LeakyReLU in between, and after the skip connection."""

    def __init__(self, channels: int, conv_op: type[nn.Module]) -> None:
        super().__init__()
        norm = OPERATORS[dimensions_of(conv_op)].instance_norm
        self.layers = nn.Sequential(
            conv_op(channels, channels, 3, padding=1, bias=False),
            norm(channels, affine=True),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            conv_op(channels, channels, 3, padding=1, bias=False),
            norm(channels, affine=True),
        )

    def forward(self, x: Tensor, head: nn.Module | None = None) -> Tensor:
        """(B, C, [D,] H, W) -> the same shape; with a segmentation head its scores instead, and no other map is kept.

        The backward pass computes norms and activations again from the convolutions' outputs.
        """
        conv_1, norm_1, _, conv_2, norm_2 = self.layers
        y = keep_input_only(norm_act_conv, convolve(conv_1, x), conv_2, norm_1.weight, norm_1.bias)
        if head is None:
            return instance_norm_leaky_relu(y, norm_2.weight, norm_2.bias, x)
        return keep_input_only(_norm_act_head, y, norm_2, x, head)


def _norm_act_head(y: Tensor, norm: nn.Module, residual: Tensor, head: nn.Module) -> Tensor:
    return class_scores(head, instance_norm_leaky_relu(y, norm.weight, norm.bias, residual))


class PyramidDecoder(nn.Module):
    """From the encoder's maps to class scores.

    Args:
        channels: of the encoder's maps, finest first.
        strides: of the encoder's steps, one per map, each relative to the map before it (the first to the input).
        num_classes: channels of each output.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        deep_supervision: whether forward returns all resolutions; may be changed at any time. The heads always
            exist, so weights load either way.

    Raises:
        ValueError: ``conv_op`` is another class, or there is not one stride per map.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        num_classes: int,
        conv_op: type[nn.Module],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        up = OPERATORS[dimensions_of(conv_op)].transposed_conv
        if len(channels) != len(strides):
            raise ValueError(f"one stride per map is needed, got {len(channels)} maps and {len(strides)} strides")
        self.strides = tuple(tuple(stride) for stride in strides)
        self.deep_supervision = deep_supervision
        widths = (*reversed(channels), FULL_RESOLUTION_CHANNELS)
        steps = list(zip(itertools.pairwise(widths), reversed(self.strides), strict=True))
        self.upsamplings = nn.ModuleList(up(i, o, stride, stride=stride) for (i, o), stride in steps)
        self.blocks = nn.ModuleList(ResidualBlock(o, conv_op) for (_, o), _ in steps)
        self.seg_layers = nn.ModuleList(conv_op(o, num_classes, 1) for (_, o), _ in steps)  # nnU-Net's name for heads
        self.apply(initialise)

    def forward(self, maps: Sequence[Tensor], input_size: Sequence[int]) -> Tensor | list[Tensor]:
        """Decode the encoder's maps, finest first, of an input of at least ``input_size``.

        Returns:
            Class scores (B, num_classes, [D,] H, W) of exactly ``input_size``; with deep supervision a list of
            them, full resolution first, whose sizes are `output_sizes` of ``input_size``.
        """
        *sizes, full = reversed(output_sizes(input_size, self.strides))
        outputs = []
        x = maps[-1]
        for i, (skip, size) in enumerate(zip(reversed(maps[:-1]), sizes, strict=True)):
            x = self.blocks[i](crop(upsample(self.upsamplings[i], x), skip.shape[2:]) + skip)
            if self.deep_supervision:
                outputs.append(crop(class_scores(self.seg_layers[i], x), size))
        outputs.append(self._full_resolution(x, full))
        return outputs[::-1] if self.deep_supervision else outputs[0]

    def _full_resolution(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """The last step, from (B, C, [D,] H, W) to class scores; it takes most of the network's memory.

        On the CPU it takes one sample at a time, which needs less memory; the result is the same, since instance norm
        is per sample.
        """
        if is_eager_float32_on_cpu(x) and len(x) > 1:
            return torch.cat([self._full_resolution(sample, size) for sample in x.split(1)])
        return self.blocks[-1](crop(upsample(self.upsamplings[-1], x), size), self.seg_layers[-1])


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The leading ``size`` voxels of (B, C, [D,] H, W) along each spatial axis, as a view."""
    for axis, length in enumerate(size, start=2):
        if x.shape[axis] != length:  # a view of all of it would cost a copy in the backward pass
            x = x.narrow(axis, 0, length)
    return x


def upsample(layer: nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor) -> Tensor:
    """Apply a transposed convolution with kernel = stride: (B, C, [D,] H, W) -> (B, C', [D',] H', W')."""
    if not is_eager_float32_on_cpu(x):
        return layer(x)
    # PyTorch's bias gradient of a channels-last transposed convolution takes twice as long as the rest of it
    y = OPERATORS[x.dim() - 2].transpose(channels_last(x), layer.weight, stride=layer.stride)
    return y.add_(layer.bias.view(1, -1, *(1,) * (x.dim() - 2)))


def initialise(module: nn.Module) -> None:
    """Normal after He et al. (ICCV 2015) for the LeakyReLU's slope, biases 0, as nnU-Net does for its decoders."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
