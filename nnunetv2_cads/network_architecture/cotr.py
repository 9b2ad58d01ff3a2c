"""CoTr: a convolutional encoder whose two coarsest maps pass a deformable transformer, and a convolutional decoder.

Paper: Xie, Zhang, Shen, Xia, "CoTr: Efficiently Bridging CNN and Transformer for 3D Medical Image Segmentation",
MICCAI 2021. A peer of PVT-UNet, to compare with; nothing of CADS is in it.
Source: our own implementation, written from a description of the published network, not from its code (GPL-3.0), and
under this project's licence (Apache-2.0). Keys, shapes and outputs are those of the published network.
Deviations: ``sampling_order`` "corrected", the default, undoes an exchange of axes in the published attention;
"published" keeps it (`deformable_transformer.py`). Inputs of any size and several channels are taken. The head of the
full resolution comes before the up-sampling, not after it: both are linear, so the result is the same, and the largest
map has the classes' channels instead of 64.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.decoder import crop, output_sizes
from nnunetv2_cads.network_architecture.deformable_transformer import DeformableTransformer
from nnunetv2_cads.network_architecture.ops.convolution import convolve
from nnunetv2_cads.network_architecture.ops.instance_norm import NO_ACTIVATION, instance_norm_leaky_relu
from nnunetv2_cads.network_architecture.ops.pointwise import class_scores
from nnunetv2_cads.network_architecture.padding import repeat_last_voxels

CHANNELS = (64, 192, 384, 384)
"""Of the encoder's four maps, finest first."""
STRIDES = {3: ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))}
"""Strides of the encoder's maps, each relative to the map before it, by number of spatial dimensions."""
TOTAL_STRIDE = tuple(math.prod(axis) for axis in zip(*STRIDES[3], strict=True))
BLOCKS = (3, 3, 2)
"""Residual blocks before each of the maps but the first."""


class ConvNormAct(nn.Module):
    """A convolution of kernel 3, instance norm and LeakyReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        return instance_norm_leaky_relu(convolve(self.conv, x), self.norm.weight, self.norm.bias)


class DecoderBlock(nn.Module):
    """Twice `ConvNormAct`, and the skip connection without an activation after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resconv1, self.resconv2 = ConvNormAct(channels), ConvNormAct(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> the same shape."""
        return x + self.resconv2(self.resconv1(x))


class EncoderBlock(nn.Module):
    """One convolution of kernel 3 with instance norm, the skip connection, and LeakyReLU after it.

    Where the block is the first of its map, it has stride 2, and a convolution and instance norm in its skip.
    """

    def __init__(self, input_channels: int, channels: int, first: bool) -> None:
        super().__init__()
        stride = 2 if first else 1
        self.conv1 = nn.Conv3d(input_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm3d(channels, affine=True)
        skip = (nn.Conv3d(input_channels, channels, 1, stride, bias=False), nn.InstanceNorm3d(channels, affine=True))
        self.downsample = nn.Sequential(*skip if first else ())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C', D', H', W')."""
        if self.downsample:
            conv, norm = self.downsample
            y, shortcut = self.conv1(x), instance_norm_leaky_relu(conv(x), norm.weight, norm.bias, slope=NO_ACTIVATION)
        else:
            y, shortcut = convolve(self.conv1, x), x
        return instance_norm_leaky_relu(y, self.norm1.weight, self.norm1.bias, shortcut)


class Backbone(nn.Module):
    """The convolutional encoder."""

    def __init__(self, input_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(input_channels, CHANNELS[0], 7, STRIDES[3][0], padding=3, bias=False)
        self.norm1 = nn.InstanceNorm3d(CHANNELS[0], affine=True)
        for i, depth in enumerate(BLOCKS, start=1):
            first = EncoderBlock(CHANNELS[i - 1], CHANNELS[i], first=True)
            others = (EncoderBlock(CHANNELS[i], CHANNELS[i], first=False) for _ in range(depth - 1))
            self.add_module(f"layer{i}", nn.Sequential(first, *others))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> four maps of `CHANNELS` and `STRIDES`, finest first; odd sizes round up."""
        maps = [instance_norm_leaky_relu(self.conv1(x), self.norm1.weight, self.norm1.bias)]
        for i in range(1, len(CHANNELS)):
            maps.append(getattr(self, f"layer{i}")(maps[-1]))
        return maps


class CoTr(nn.Module):
    """Segmentation network for volumes, constructed as nnU-Net constructs a network.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        conv_op: ``nn.Conv3d``; there is no network for slices.
        deep_supervision: return all resolutions instead of the full one; `decoder.deep_supervision` changes it later.
            The heads always exist, so weights load either way.
        sampling_order: "corrected" or "published", see `SAMPLING_ORDERS`. The weights have the same names and shapes,
            but fit only the order that they were trained with.

    Raises:
        ValueError: another ``conv_op`` or ``sampling_order``.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: type[nn.Module] = nn.Conv3d,
        deep_supervision: bool = True,
        sampling_order: str = "corrected",
    ) -> None:
        super().__init__()
        if conv_op is not nn.Conv3d:
            raise ValueError(f"CoTr segments volumes alone: conv_op must be nn.Conv3d, got {conv_op!r}")
        self.deep_supervision = deep_supervision
        self.backbone = Backbone(input_channels)
        self.encoder_Detrans = DeformableTransformer(sampling_order)
        for stage in range(len(CHANNELS) - 1):
            channels, coarser, stride = CHANNELS[stage], CHANNELS[stage + 1], STRIDES[3][stage + 1]
            up = nn.ConvTranspose3d(coarser, channels, stride, stride, bias=False)
            self.add_module(f"transposeconv_stage{stage}", up)
            self.add_module(f"stage{stage}_de", DecoderBlock(channels))
            self.add_module(f"ds{stage}_cls_conv", nn.Conv3d(channels, num_classes, 1))
        self.cls_conv = nn.Conv3d(CHANNELS[0], num_classes, 1)
        self.apply(_initialise)

    @property
    def encoder(self) -> nn.Module:
        """What an optimizer may give a learning rate of its own: convolutional encoder and transformer."""
        return nn.ModuleList([self.backbone, self.encoder_Detrans])

    @property
    def decoder(self) -> "CoTr":
        """Itself: nnU-Net sets `decoder.deep_supervision`, but the published keys have no decoder in their names."""
        return self

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment (B, C, D, H, W) of any size.

        Returns:
            Class scores (B, num_classes, D, H, W) of the input's size, without a final non-linearity; with deep
            supervision a list of four, full resolution first, of sizes `output_sizes(x.shape[2:], STRIDES[3])`.
        """
        full, *sizes = output_sizes(x.shape[2:], STRIDES[3])
        *skips, coarse, coarsest = self.backbone(repeat_last_voxels(x, padded_size(x.shape[2:])))
        coarse, x = self.encoder_Detrans([coarse, coarsest])
        skips.append(coarse)
        outputs = []
        for stage in reversed(range(len(skips))):
            x = getattr(self, f"transposeconv_stage{stage}")(x) + skips[stage]
            x = getattr(self, f"stage{stage}_de")(x)
            if self.deep_supervision:
                outputs.append(crop(class_scores(getattr(self, f"ds{stage}_cls_conv"), x), sizes[stage]))
        scores = F.interpolate(class_scores(self.cls_conv, x), scale_factor=STRIDES[3][0], mode="trilinear")
        outputs.append(crop(scores, full))
        return outputs[::-1] if self.deep_supervision else outputs[0]


def padded_size(size: Sequence[int]) -> tuple[int, ...]:
    """The size that an input of ``size`` (D, H, W) is padded to: the next multiples of the total stride.

    The coarsest map gets at least two voxels, without which there is no instance norm.
    """
    depth, *in_plane = (stride * math.ceil(n / stride) for n, stride in zip(size, TOTAL_STRIDE, strict=True))
    alone = (depth, *in_plane) == TOTAL_STRIDE
    return (2 * depth if alone else depth, *in_plane)


def _initialise(module: nn.Module) -> None:
    """Normal after He et al. (ICCV 2015), by outgoing connections; of a transposed convolution, by the incoming ones.

    PyTorch counts the first axis of a kernel as outgoing, as the published initialisation does.
    """
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
