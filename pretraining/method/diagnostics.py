"""What a training step reports: scalars on the device, so that nothing waits for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretraining.method.schedules import Rates


@dataclass(frozen=True)
class StepResult:
    """What a step reports; tensors stay on the device, so that nothing waits for them.

    Attributes:
        loss: total before the step's update.
        levels: (4,) losses of the stages, shallow to deep.
        gradient_norms: (number of gradients,) before clipping.
        finite: whether the step happened; where loss or gradients were NaN or infinite it changed nothing.
        teacher_entropy: mean entropy of the teacher's probabilities, in nats; ln K when they are uniform.
        mutual_information: entropy of their mean minus their mean entropy; near 0 when all samples look alike.
        view_agreement: fraction of samples whose two CT views have the same most probable teacher output.
        feature_spread: of the teacher's features, see `spread_and_rank`.
        feature_rank: of the teacher's features, see `spread_and_rank`.
        rates: the scheduled quantities used.
    """

    loss: Tensor
    levels: Tensor
    gradient_norms: Tensor
    finite: Tensor
    teacher_entropy: Tensor
    mutual_information: Tensor
    view_agreement: Tensor
    feature_spread: Tensor
    feature_rank: Tensor
    rates: Rates


def entropy_and_agreement(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Of (2B, K) probabilities, as (1,) each: sum of the entropies, number of samples whose views agree on the top."""
    first, second = probabilities.argmax(-1).chunk(2)
    return torch.special.entr(probabilities).sum().view(1), (first == second).sum().float().view(1)


def spread_and_rank(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """How much the features of a batch differ, and in how many directions.

    Args:
        mean: (C,) of the features.
        covariance: (C, C) of the features.

    Returns:
        Root mean square of their distance from the mean, as a fraction of their root mean square length: 0 when all
        are one point, 1 when their mean is 0. And the effective rank: the sum of the covariance's eigenvalues,
        squared, over the sum of their squares (which trace and entries give without a decomposition): 1 when all
        features lie on a line, n when they fill n directions alike. A batch of n views has at most n - 1.
    """
    variance = covariance.trace()
    tiny = torch.finfo(covariance.dtype).tiny
    spread = (variance / (variance + mean.square().sum()).clamp_min(tiny)).sqrt()
    # of the normalised matrix, since squares of small variances leave float32's range
    rank = 1 / (covariance / variance.clamp_min(tiny)).square().sum().clamp_min(tiny)
    return spread, torch.where(variance > 0, rank, torch.zeros_like(rank))


def step_is_finite(sums: Tensor, gradient_norms: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    """Whether a step may change the run: (), on the device, the same in all processes.

    With fp16, gradients overflow now and then, and the scaler leaves such a step out and halves its scale; only where
    it has fallen below 1 is something wrong with the gradients themselves.

    Args:
        sums: statistics of the step, summed over the processes, losses among them.
        gradient_norms: norms before clipping; the gradients are those of all processes.
        scaler: of the run.
    """
    gradients = gradient_norms.isfinite().all()
    if scaler.is_enabled():
        scale = scaler.scale(torch.ones((), device=sums.device))  # `get_scale` would wait for the device
        gradients = gradients | (scale >= 1)
    return sums.isfinite().all() & gradients
