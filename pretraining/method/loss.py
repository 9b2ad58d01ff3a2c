"""Deep self-distillation loss with a running center.

Paper: CADS (IEEE TMI 2025), after DINO (Caron et al., ICCV 2021); CADS method, section 4.
Deviations: none in value. The cross-entropy is linear in the teacher's probabilities, so those that a student view is
paired with are added up first; each student output is then normalised once per stage, not once per pair. The weights
of the pairs with the X-ray and of the stages are for ablations: 1 as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """Loss of one step.

    Attributes:
        total: (weighted) mean over the stages, with gradient.
        stage_losses: (S,) losses of the stages, shallow to deep, detached.
        teacher_probabilities: (2B, K), for the diagnostics.
    """

    total: Tensor
    stage_losses: Tensor
    teacher_probabilities: Tensor


def deep_distillation_loss(
    student_logits: list[Tensor],
    teacher_logits: Tensor,
    center: Tensor,
    teacher_temp: float,
    student_temp: float,
    xray_weight: float = 1.0,
    stage_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> LossTerms:
    """Cross-entropy between the teacher's last head and every head of the student, over the pairs of unlike views.

    The pairs (teacher view, student view) are CT1-CT2, CT2-CT1, CT1-X, CT2-X.

    Args:
        student_logits: per stage (3B, K): CT view 1, CT view 2, X-ray.
        teacher_logits: (2B, K): CT view 1, CT view 2; takes no gradient.
        center: (K,) running mean of the teacher's logits; not changed here (see `update_center`).
        teacher_temp: temperature of the teacher's softmax.
        student_temp: temperature of the student's softmax.
        xray_weight: of the pairs CT1-X and CT2-X against the other two.
        stage_weights: of the stage losses in the total.
    """
    targets = F.softmax((teacher_logits.detach().float() - center) / teacher_temp, dim=-1)
    first, second = targets.chunk(2)
    # each student view against the sum of the teacher views it is paired with: one, one and two
    paired = torch.cat([second, first, xray_weight * (first + second)])
    pairs = (2 + 2 * xray_weight) * len(first)
    stage_losses = []
    for logits in student_logits:
        log_probabilities = F.log_softmax(logits.to(paired.dtype) / student_temp, dim=-1)
        stage_losses.append(-torch.linalg.vecdot(paired, log_probabilities).sum() / pairs)
    stacked = torch.stack(stage_losses)
    return LossTerms(weighted_mean(stacked, stage_weights), stacked.detach(), targets)


def weighted_mean(stage_losses: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean of the stage losses (S,): ()."""
    # numbers, not a tensor of them: copying one to a GPU would wait for it
    return sum(weight * loss for weight, loss in zip(weights, stage_losses.unbind(), strict=True)) / sum(weights)


def update_center(center: Tensor, mean_logits: Tensor, momentum: float) -> Tensor:
    """New center: ``momentum`` x center + (1 - ``momentum``) x the teacher's logits, averaged over the batch, (K,)."""
    return center * momentum + mean_logits * (1.0 - momentum)
