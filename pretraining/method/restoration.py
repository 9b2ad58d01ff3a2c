"""Restoration of corrupted crops: the decoder that does it, thrown away after pre-training, and its loss.

Ours, beside the paper's distillation. The target is clipped to a window of soft tissue and its unit is a part of that
window: organs differ by 5 to 15% of HU / 1024, air and bone by 100 to 200%, so that errors in that unit are silhouettes
(docs/pretraining.md).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.decoder import PyramidDecoder
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from pretraining.config import RestorationConfig

UNITS_OF_WINDOW = 6
"""The unit of the target is this part of the window: 102 HU of the default one."""
_ERRORS = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}


def restoration_decoder(channels: tuple[int, ...]) -> PyramidDecoder:
    """PVT-UNet's decoder with one output, of the full resolution alone.

    Args:
        channels: of the encoder's maps.
    """
    decoder = PyramidDecoder(channels, STRIDES[3], 1, nn.Conv3d, deep_supervision=False)
    decoder.seg_layers[:-1].requires_grad_(False)  # never used; ranks would wait for their gradients
    return decoder


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
