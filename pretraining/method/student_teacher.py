"""Student and teacher: the encoder with projection heads on its pooled stage maps.

Paper: CADS (IEEE TMI 2025); CADS method, section 4. The student has a head per stage, the teacher only the last
stage's, which teaches all of them (deep self-distillation). Keys are those of the published checkpoint.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.config import ModelConfig
from pretraining.method.heads import ProjectionHead
from pretraining.method.restoration import RestorationDecoder


class StudentOutput(NamedTuple):
    """What the student makes of a batch."""

    logits: list[Tensor]  # per stage (3B, K); empty where it has no heads
    restored: Tensor | None  # (B, 1, D, H, W), see `pretraining.method.restoration.target`


class Student(nn.Module):
    """Encoder with four heads: ``head_1`` to ``head_3`` for stages 1 to 3 and ``head`` for the last.

    Args:
        config: of encoder and heads.
        distils: whether it has heads; without them, its encoder takes CT alone.
        restores: whether it has a decoder for crops.
    """

    head_names = ("head_1", "head_2", "head_3", "head")

    def __init__(self, config: ModelConfig, distils: bool = True, restores: bool = False) -> None:
        super().__init__()
        dimensions = (2, 3) if distils else (3,)
        self.backbone = PVTv2Encoder(1, dimensions, config.drop_path_rate, config.encoder_size)
        if distils:
            for name, dim in zip(self.head_names, self.backbone.channels[1:], strict=True):
                self.add_module(name, ProjectionHead(dim, config))
        if restores:
            self.decoder = RestorationDecoder(self.backbone.channels)

    def forward(
        self,
        ct: Tensor | None,
        xray: Tensor | None,
        noise: Tensor | None = None,
        crops: Tensor | None = None,
        crop_noise: Tensor | None = None,
    ) -> StudentOutput:
        """Views to logits, corrupted crops to restored ones; either may be missing.

        Args:
            ct: CT views (2B, 1, D, H, W), view by view.
            xray: X-rays (B, 1, H, W).
            noise: (branches, 3B) uniform numbers for stochastic depth.
            crops: (B, 1, D, H, W), corrupted.
            crop_noise: (branches, B).
        """
        logits = [] if ct is None else self._logits(ct, xray, noise)
        return StudentOutput(logits, None if crops is None else self.restore(crops, crop_noise))

    def restore(self, crops: Tensor, noise: Tensor | None = None) -> Tensor:
        """Corrupted crops (B, 1, D, H, W) -> restored ones, in units of the window."""
        return self.decoder(self.backbone(crops, noise), crops.shape[2:])

    def _logits(self, ct: Tensor, xray: Tensor, noise: Tensor | None) -> list[Tensor]:
        ct_noise, xray_noise = (None, None) if noise is None else noise.split([len(ct), len(xray)], dim=1)
        maps = zip(self.backbone(ct, ct_noise)[1:], self.backbone(xray, xray_noise)[1:], strict=True)
        pooled = [torch.cat([pool(ct_map), pool(xray_map)]) for ct_map, xray_map in maps]
        return [getattr(self, name)(features) for name, features in zip(self.head_names, pooled, strict=True)]

    def drop_last_layer_gradients(self) -> None:
        """Freeze the heads' last layers for a step: AdamW skips what has no gradient, weight decay included."""
        for name in self.head_names:
            if hasattr(self, name):
                getattr(self, name).last_layer.weight_v.grad = None


class Teacher(nn.Module):
    """Encoder with the last stage's head: an exponential moving average of the student, without gradients.

    Where the student has no heads, the teacher is its encoder's average alone, which the run hands on.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(student.backbone)
        if hasattr(student, "head"):
            self.head = copy.deepcopy(student.head)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, ct: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """CT views (2B, 1, D, H, W) -> logits (2B, K) and the pooled features (2B, C) that they were made from.

        ``noise``: (branches, 2B) numbers for stochastic depth.
        """
        features = pool(self.backbone(ct, noise)[-1])
        return self.head(features), features

    @torch.no_grad()
    def update(self, student: Student, rate: Tensor) -> None:
        """Move every weight to (1 - ``rate``) x own + ``rate`` x the student's; ``rate``: () on the weights' device."""
        source = dict(student.named_parameters())
        own = dict(self.named_parameters())
        torch._foreach_lerp_(list(own.values()), [source[name].detach() for name in own], [rate] * len(own))


def pool(feature_map: Tensor) -> Tensor:
    """Mean over space: (B, C, [D,] H, W) -> (B, C)."""
    return feature_map.flatten(2).mean(2)
