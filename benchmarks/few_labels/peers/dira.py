"""DiRA on the encoder of CADS: discriminative, restorative and adversarial learning together.

Paper: Haghighi, Hosseinzadeh Taher, Gotway, Liang, DiRA: Discriminative, Restorative, and Adversarial Learning for
Self-supervised Medical Image Analysis, CVPR 2022; its published variant, in 2D with MoCo v2.
Source: own implementation from a description; the authors' code was not used. The method is patent pending (their
"Tech ID M22-158L"): this is for comparison in research only, and not in the wheel.
Fault not repeated: the published target is the view before mirroring, so that half of the samples are to be restored as
their mirror image. Here views come mirrored, and the target is the same view.
Deviations, and why:
- the discriminative part is the MoCo v3 peer: both views are queries, and negatives are the batch instead of a queue,
  which would be longer than these runs. So the batch does not shrink in the second phase. The mean InfoNCE of both
  directions has the published weight. The first view alone is restored, as published;
- the decoder is PVT-UNet's, which fine-tuning can take; the momentum half has none, as its output was never used;
- views are CADS's, with the weak augmentation of the preset `cads` in place of jitter and blur, before the distortions
  (`distortions.py`). A run must leave that to this file (``intensity: none``): the target has none;
- 3D convolutions (`discriminator.py`);
- AdamW and schedules, that of the momentum among them, are CADS's, as of all peers. The published phases of 1,200 and
  400 epochs are shares of the steps, and the second one has the schedules again, as a second run has. AdamW keeps its
  moments, so that it needs no warm-up, which would be longer than it;
- the last weights are kept, not those of the lowest validation loss: as of all peers.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from few_labels.peers.discriminator import Discriminator
from few_labels.peers.distortions import corrupt
from few_labels.peers.moco_v3 import TEMPERATURE, MoCoV3
from few_labels.peers.training import Peer
from nnunetv2_cads.network_architecture.decoder import PyramidDecoder
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from pretraining.run.estimate import forward_flops

RESTORATION_WEIGHT = 10.0
"""Against an InfoNCE of weight 1, with intensities from 0 to 1."""
ADVERSARIAL_WEIGHT = 0.001
MOCO_TO_MEAN = 1 / (4 * TEMPERATURE)
"""MoCo v3 adds two directions, each times twice the temperature."""
ADVERSARIAL = 1
"""The phase in which the discriminator takes part."""


class DiRA(Peer):
    """MoCo v3 whose encoder also restores what was distorted, at last against a discriminator.

    Attributes:
        moco: encoder, heads and their momentum copies.
        decoder: from the encoder's maps of a distorted view to the sound one.
        discriminator: tells restored views from sound ones; with its optimizer.
    """

    phases = (0.75, 0.25)

    def __init__(self) -> None:
        super().__init__()
        self.moco = MoCoV3()
        # without deep supervision only the finest head takes part
        self.decoder = PyramidDecoder(self.encoder.channels, STRIDES[3], 1, nn.Conv3d, deep_supervision=False)
        self.discriminator = Discriminator()
        self._judged: tuple[Tensor, Tensor] | None = None  # what the discriminator learns from after the step

    @property
    def encoder(self) -> nn.Module:
        """MoCo v3's."""
        return self.moco.encoder

    def loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        """Of two views (B, 1, D, H, W) in [-1, 1], mirrored but with their intensities as they are, ()."""
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        views = torch.cat([corrupt(view_1, rng), corrupt(view_2, rng)])
        maps = self.encoder(views)
        scores = self.decoder([of_both[: len(view_1)] for of_both in maps], view_1.shape[2:])
        restored, sound = scores.float().sigmoid(), (view_1 + 1) / 2
        loss = MOCO_TO_MEAN * self.moco.loss_of_maps(views, maps[-1])
        loss = loss + RESTORATION_WEIGHT * F.mse_loss(restored, sound)
        if self.phase == ADVERSARIAL:
            loss = loss + ADVERSARIAL_WEIGHT * self.discriminator.loss_of_fooling(restored)
            self._judged = restored.detach(), sound
        return loss

    def after_step(self, momentum: float) -> None:
        """Move the momentum copies; in the second phase, a step of the discriminator on the same views, in float32."""
        self.moco.after_step(momentum)
        if self._judged:
            self.discriminator.learn(*self._judged)
            self._judged = None

    def step_flops(self, view_1: Tensor, view_2: Tensor) -> float:
        """Of a training step on two views (B, 1, D, H, W), the mean over the phases.

        A step against the discriminator has eight of its forward passes: one and one back to the restored view for the
        loss, and three each, with the backward pass, for what it learns from restored and sound views.
        """
        maps = self.encoder(view_1)
        decoding = forward_flops(lambda *of_view: self.decoder(of_view, view_1.shape[2:]), *maps)
        judging = forward_flops(self.discriminator, view_1)
        adversarial = self.phases[ADVERSARIAL] * 8.0 * judging
        return self.moco.step_flops(view_1, view_2) + 3.0 * decoding + adversarial
