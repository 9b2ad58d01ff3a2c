"""Masked autoencoding of volumes on the encoder of CADS.

Paper: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022; for a pyramid of convolutions, masked
voxels are blanked instead of left out, as in Xie et al., SimMIM, CVPR 2022.
Source: written from the papers. The decoder is PVT-UNet's; only the encoder is kept.
Deviations: blocks of 8 x 16 x 16 voxels, the stride of stage 3; the loss is on masked voxels alone, in units of HU /
1024; one of CADS's two CT views is enough.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from few_labels.peers.training import Peer
from nnunetv2_cads.network_architecture import PVTv2Encoder
from nnunetv2_cads.network_architecture.decoder import PyramidDecoder
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from pretraining.run.estimate import forward_flops

MASK_RATIO = 0.75
BLOCK = (8, 16, 16)


class MaskedAutoencoder(Peer):
    """Encoder, a decoder to full resolution, and the value that stands where voxels are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PVTv2Encoder()
        # without deep supervision only the finest head takes part
        self.decoder = PyramidDecoder(self.encoder.channels, STRIDES[3], 1, nn.Conv3d, deep_supervision=False)
        self.mask_value = nn.Parameter(torch.zeros(()))

    def loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        """Mean squared error of the masked voxels of the first view (B, 1, D, H, W), ()."""
        masked = draw_mask(view_1.shape)
        maps = self.encoder(torch.where(masked, self.mask_value, view_1))
        restored = self.decoder(maps, view_1.shape[2:])
        return F.mse_loss(restored.float()[masked], view_1[masked])

    def step_flops(self, view_1: Tensor, view_2: Tensor) -> float:
        """Of a training step on two views (B, 1, D, H, W)."""
        return 3.0 * forward_flops(self.loss, view_1, view_2)


def draw_mask(shape: tuple[int, ...]) -> Tensor:
    """Which voxels (B, 1, D, H, W) to mask: `MASK_RATIO` of the blocks of each sample."""
    grid = [-(-size // block) for size, block in zip(shape[2:], BLOCK, strict=True)]
    blocks = grid[0] * grid[1] * grid[2]
    order = torch.rand(shape[0], blocks).argsort(1).argsort(1)
    mask = (order < round(MASK_RATIO * blocks)).view(shape[0], 1, *grid)
    for axis, (block, size) in enumerate(zip(BLOCK, shape[2:], strict=True), start=2):
        mask = mask.repeat_interleave(block, axis).narrow(axis, 0, size)
    return mask
