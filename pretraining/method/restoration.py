"""Restoration of corrupted crops: the decoder that does it, thrown away after pre-training, and its loss.

Ours, beside the paper's distillation. The target is clipped to a window of soft tissue and its unit is a part of that
window: organs differ by 5 to 15% of HU / 1024, air and bone by 100 to 200%, so that errors in that unit are silhouettes
(docs/pretraining.md).
"""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.decoder import ResidualBlock, crop, initialise, upsample
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from pretraining.config import RestorationConfig

UNITS_OF_WINDOW = 6
"""The unit of the target is this part of the window: 102 HU of the default one."""
_ERRORS = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}


class RestorationDecoder(nn.Module):
    """PVT-UNet's decoder up to half resolution; from there one transposed convolution makes the voxels.

    PVT-UNet's last step, at full resolution, would take 40% of the FLOPs of a restoration and is thrown away with the
    rest. The other steps have PVT-UNet's names.

    Args:
        channels: of the encoder's maps, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        last, *others = STRIDES[3]
        steps = list(zip(itertools.pairwise(reversed(channels)), reversed(others), strict=True))
        self.upsamplings = nn.ModuleList(nn.ConvTranspose3d(i, o, stride, stride=stride) for (i, o), stride in steps)
        self.blocks = nn.ModuleList(ResidualBlock(o, nn.Conv3d) for (_, o), _ in steps)
        self.voxels = nn.ConvTranspose3d(channels[0], 1, last, stride=last)
        self.apply(initialise)

    def forward(self, maps: Sequence[Tensor], input_size: Sequence[int]) -> Tensor:
        """The encoder's maps, finest first, of an input of ``input_size`` -> (B, 1, *input_size)."""
        x = maps[-1]
        for upsampling, block, skip in zip(self.upsamplings, self.blocks, reversed(maps[:-1]), strict=True):
            x = block(crop(upsample(upsampling, x), skip.shape[2:]) + skip)
        return crop(upsample(self.voxels, x), input_size)


def restoration_loss(restored: Tensor, truth: Tensor, judged: Tensor, config: RestorationConfig) -> Tensor:
    """Mean error over the judged voxels of each crop, and over the crops; ().

    Args:
        restored: (B, 1, D, H, W) in units of the window, see `target`.
        truth: (B, 1, D, H, W) HU.
        judged: (B, 1, D, H, W) bool.
        config: window and kind of error.
    """
    errors = _ERRORS[config.restoration_error](restored.float(), target(truth, config), reduction="none")
    return ((errors * judged).flatten(1).sum(1) / judged.flatten(1).sum(1)).mean()


def target(hu: Tensor, config: RestorationConfig) -> Tensor:
    """HU clipped to the window, in its units: 0 at its middle, -3 and 3 at its ends."""
    low, high = config.restoration_window
    return (hu.clamp(low, high) - (low + high) / 2) * (UNITS_OF_WINDOW / (high - low))
