"""Deep self-distillation loss with a running center.

Paper: CADS (IEEE TMI 2025), after DINO (Caron et al., ICCV 2021); CADS method, section 4.
Deviations: none in value. The cross-entropy is linear in the teacher's probabilities, so those that a student view is
paired with are added up first; each student output is then normalised once per stage, not once per pair. The weights
of the pairs with the X-ray and of the stages are for ablations: 1 as published.
"""

from collections.abc import Collection, Sequence
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
    stage_losses = _cross_entropies(student_logits, paired, student_temp) / ((2 + 2 * xray_weight) * len(first))
    return LossTerms(weighted_mean(stage_losses, stage_weights), stage_losses.detach(), targets)


def place_loss(
    student_logits: list[Tensor],
    teacher_logits: Tensor,
    center: Tensor,
    teacher_temp: float,
    student_temp: float,
    stage_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:
    """Cross-entropy between the teacher's last head and every head of the student, place by place of a crop; ().

    Ours, after the masked tokens of iBOT (Zhou et al., ICLR 2022).

    Args:
        student_logits: per stage (P, K), of P places.
        teacher_logits: (P, K) of the same places; takes no gradient.
        center: (K,) running mean of the teacher's logits of places.
        teacher_temp: temperature of the teacher's softmax.
        student_temp: temperature of the student's softmax.
        stage_weights: of the stage losses.
    """
    targets = F.softmax((teacher_logits.detach().float() - center) / teacher_temp, dim=-1)
    return weighted_mean(_cross_entropies(student_logits, targets, student_temp) / len(targets), stage_weights)


def _cross_entropies(student_logits: list[Tensor], targets: Tensor, student_temp: float) -> Tensor:
    """Per stage, the sum over all rows of the cross-entropy of its logits (N, K) with the targets (N, K); (S,)."""
    sums = []
    for logits in student_logits:
        log_probabilities = F.log_softmax(logits.to(targets.dtype) / student_temp, dim=-1)
        sums.append(-torch.linalg.vecdot(targets, log_probabilities).sum())
    return torch.stack(sums)


def weighted_mean(stage_losses: Tensor, weights: Collection[float]) -> Tensor:
    """The weighted mean of the losses of stages or levels (S,): ()."""
    # numbers, not a tensor of them: copying one to a GPU would wait for it
    return sum(weight * loss for weight, loss in zip(weights, stage_losses.unbind(), strict=True)) / sum(weights)


def update_center(center: Tensor, mean_logits: Tensor, momentum: float) -> Tensor:
    """New center: ``momentum`` x center + (1 - ``momentum``) x the teacher's logits, averaged over the batch, (K,)."""
    return center * momentum + mean_logits * (1.0 - momentum)
