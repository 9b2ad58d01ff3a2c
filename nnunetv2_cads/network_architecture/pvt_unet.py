"""PVT-UNet: the pre-trained pyramid vision transformer as the encoder of a segmentation network.

Paper: CADS, Ye, Zhang, Chen, Xia, IEEE TMI 44(1):118-129, 2025. Only the encoder was published.
Source: CADS method, "Downstream: PVT-UNet"; constructor and outputs follow nnU-Net's convention.
Deviations: inputs of any size are taken. Odd sizes round up in the encoder and are cut in the decoder; inputs below
the encoder's minimum are padded (`padding.py`).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunetv2_cads.network_architecture.decoder import PyramidDecoder
from nnunetv2_cads.network_architecture.ops.dimensions import OPERATORS, dimensions_of
from nnunetv2_cads.network_architecture.padding import repeat_last_voxels
from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE, PVTv2Encoder

STRIDES = {
    3: ((2, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    2: ((2, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
}
"""Strides of the encoder's steps, each relative to the map before it, by number of spatial dimensions."""


class PVTUNet(nn.Module):
    """Segmentation network of the CADS paper, constructed as nnU-Net constructs a network that plans name.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        conv_op: ``nn.Conv3d`` for volumes, ``nn.Conv2d`` for slices; the encoder holds only that dimension's modules.
        deep_supervision: return all resolutions instead of the full one; `decoder.deep_supervision` changes it later.
        drop_path_rate: stochastic depth of the encoder's last block.
        strides: as in plans: ones for the input's own resolution, then `STRIDES`. They are fixed, so others are
            refused; None skips the comparison.
        size: of the encoder, a key of `SIZES`.

    Raises:
        ValueError: another ``conv_op`` or ``size``, or ``strides`` that are not this network's.
    """

    key_to_encoder = "encoder"
    key_to_stem = "encoder.patch_embed1"
    keys_to_in_proj = ("encoder.patch_embed1.proj.0",)
    key_to_lpe = None
    """Where nnssl's loader finds the encoder, its stem and its first convolution; there is no position embedding."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        conv_op: type[nn.Module] = nn.Conv3d,
        deep_supervision: bool = True,
        drop_path_rate: float = 0.1,
        strides: Sequence[Sequence[int]] | None = None,
        size: str = "b1",
    ) -> None:
        super().__init__()
        dims = dimensions_of(conv_op)
        expected = ((1,) * dims, *STRIDES[dims])
        if strides is not None and tuple(tuple(stride) for stride in strides) != expected:
            raise ValueError(f"PVT-UNet has the strides {expected} in {dims}D, got {strides}")
        self.minimum_size = MINIMUM_SIZE[dims]
        self.encoder = PVTv2Encoder(input_channels, (dims,), drop_path_rate, size)
        self.decoder = PyramidDecoder(self.encoder.channels, STRIDES[dims], num_classes, conv_op, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment (B, C, D, H, W), or (B, C, H, W) where built for slices, of any size.

        Returns:
            Class scores (B, num_classes, [D,] H, W) of the input's size, without a final non-linearity; with deep
            supervision a list of five, full resolution first, of sizes `output_sizes(x.shape[2:], STRIDES[dims])`.
        """
        size = [max(n, least) for n, least in zip(x.shape[2:], self.minimum_size, strict=True)]
        return self.decoder(self.encoder(repeat_last_voxels(x, size)), x.shape[2:])


def plans_architecture(dims: int) -> dict[str, Any]:
    """PVTUNet as plans name a network; the strides, from the input's own on, set nnU-Net's deep supervision."""
    conv_op = OPERATORS[dims].conv
    return {
        "network_class_name": f"{PVTUNet.__module__}.{PVTUNet.__name__}",
        "arch_kwargs": {
            "conv_op": f"{conv_op.__module__}.{conv_op.__name__}",
            "strides": [[1] * dims, *(list(stride) for stride in STRIDES[dims])],
        },
        "_kw_requires_import": ["conv_op"],
    }
