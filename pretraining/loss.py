"""Deep self-distillation loss with a running center.

Paper: CADS (IEEE TMI 2025), after DINO (Caron et al., ICCV 2021); CADS method, section 4.
Deviations: none in value. Because teacher probabilities sum to 1, the cross-entropy of a pair is
logsumexp(student) - <teacher, student>; so each student output is normalised once per stage, not once per pair.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """Loss of one step.

    Attributes:
        total: mean over the stages, with gradient.
        levels: (L,) the stages' losses, shallow to deep, detached.
        teacher_probabilities: (2B, K), for the record of the run's health.
    """

    total: Tensor
    levels: Tensor
    teacher_probabilities: Tensor


def deep_distillation_loss(
    student_logits: list[Tensor], teacher_logits: Tensor, center: Tensor, teacher_temp: float, student_temp: float
) -> LossTerms:
    """Cross-entropy between the teacher's last head and every head of the student, over the pairs of unlike views.

    The pairs (teacher view, student view) are CT1-CT2, CT2-CT1, CT1-X, CT2-X.

    Args:
        student_logits: per stage (3B, K): CT view 1, CT view 2, X-ray.
        teacher_logits: (2B, K): CT view 1, CT view 2; takes no gradient.
        center: (K,) running mean of the teacher's logits; not changed here (see `update_center`).
        teacher_temp: temperature of the teacher's softmax.
        student_temp: temperature of the student's softmax.
    """
    targets = F.softmax((teacher_logits.detach().float() - center) / teacher_temp, dim=-1)
    first, second = targets.chunk(2)
    # each student view against the sum of the teacher views it is paired with, and how many those are
    paired = torch.cat([second, first, first + second])
    count = torch.ones(3, device=targets.device).index_fill_(0, torch.tensor(2, device=targets.device), 2.0)
    count = count.repeat_interleave(len(first))
    levels = []
    for logits in student_logits:
        scaled = logits.float() / student_temp
        per_view = count * torch.logsumexp(scaled, dim=-1) - (paired * scaled).sum(-1)
        levels.append(per_view.sum() / count.sum())
    stacked = torch.stack(levels)
    return LossTerms(stacked.mean(), stacked.detach(), targets)


def update_center(center: Tensor, teacher_logits: Tensor, momentum: float) -> Tensor:
    """New center: ``momentum`` x center + (1 - ``momentum``) x mean of the teacher's logits (N, K) over the batch."""
    return center * momentum + teacher_logits.detach().float().mean(0) * (1.0 - momentum)
