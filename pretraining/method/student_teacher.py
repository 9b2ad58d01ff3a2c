"""Student and teacher: the encoder with projection heads on its pooled stage maps.

Paper: CADS (IEEE TMI 2025); CADS method, section 4. The student has a head per stage, the teacher only the last
stage's, which teaches all of them (deep self-distillation). Keys are those of the published checkpoint.
"""

import copy

import torch
from torch import Tensor, nn

from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.config import ModelConfig
from pretraining.method.heads import ProjectionHead


class Student(nn.Module):
    """Encoder with four heads: ``head_1`` to ``head_3`` for stages 1 to 3 and ``head`` for the last."""

    head_names = ("head_1", "head_2", "head_3", "head")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = PVTv2Encoder(drop_path_rate=config.drop_path_rate)
        for name, dim in zip(self.head_names, self.backbone.channels[1:], strict=True):
            self.add_module(name, ProjectionHead(dim, config))

    def forward(self, ct: Tensor, xray: Tensor, noise: Tensor | None = None) -> list[Tensor]:
        """CT views (2B, 1, D, H, W), view by view, and X-rays (B, 1, H, W) -> per stage, logits (3B, K).

        ``noise``: (`BRANCHES`, 3B) uniform numbers for stochastic depth.
        """
        ct_noise, xray_noise = (None, None) if noise is None else noise.split([len(ct), len(xray)], dim=1)
        maps = zip(self.backbone(ct, ct_noise)[1:], self.backbone(xray, xray_noise)[1:], strict=True)
        pooled = [torch.cat([pool(ct_map), pool(xray_map)]) for ct_map, xray_map in maps]
        return [getattr(self, name)(features) for name, features in zip(self.head_names, pooled, strict=True)]

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """The trained weights of the heads' last layers (frozen in the first epochs)."""
        return [getattr(self, name).last_layer.weight_v for name in self.head_names]


class Teacher(nn.Module):
    """Encoder with the last stage's head: an exponential moving average of the student, without gradients."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(student.backbone)
        self.head = copy.deepcopy(student.head)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, ct: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """CT views (2B, 1, D, H, W) -> logits (2B, K) and the pooled features (2B, C) that they were made from.

        ``noise``: (`BRANCHES`, 2B) numbers for stochastic depth.
        """
        features = pool(self.backbone(ct, noise)[-1])
        return self.head(features), features

    @torch.no_grad()
    def update(self, student: Student, share: Tensor) -> None:
        """Move every weight to (1 - ``share``) x own + ``share`` x student's; ``share``: () on the weights' device."""
        source = dict(student.named_parameters())
        own = dict(self.named_parameters())
        torch._foreach_lerp_(list(own.values()), [source[name].detach() for name in own], [share] * len(own))


def pool(feature_map: Tensor) -> Tensor:
    """Mean over space: (B, C, [D,] H, W) -> (B, C)."""
    return feature_map.flatten(2).mean(2)
