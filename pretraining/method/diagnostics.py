"""What a training step reports about itself. Tensors stay on the device, so that nothing waits for a GPU."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from pretraining.method.loss import LossTerms
from pretraining.method.schedules import Rates
from pretraining.method.student_teacher import TeacherOutput
from pretraining.system.processes import Processes


class TeacherHealth(NamedTuple):
    """What shows a collapse; of the whole batch, () each."""

    entropy: Tensor  # mean of the teacher's probabilities, in nats; ln K when they are uniform
    mutual_information: Tensor  # entropy of their mean minus their mean entropy; near 0 when all samples look alike
    view_agreement: Tensor  # fraction of samples whose two CT views have the same most probable teacher output
    feature_spread: Tensor  # of the teacher's features, see `spread_and_rank`
    feature_rank: Tensor


@dataclass(frozen=True)
class StepResult:
    """What a step reports."""

    loss: Tensor  # (), before the step's update
    losses: dict[str, Tensor]  # () each, of which it is the weighted sum, by the names of `PretrainConfig.weights`
    stage_losses: Tensor  # (4,), of the distillation, shallow to deep; (0,) where the run does not distil
    points_found: dict[str, Tensor]  # () each: fraction of points that are found, by the level's name
    gradient_norms: Tensor  # (number of gradients,), before clipping
    finite: Tensor  # whether the step happened; where loss or gradients were NaN or infinite it changed nothing
    health: TeacherHealth | None  # None where the run does not distil
    rates: Rates  # as used


@dataclass(frozen=True)
class StepSums:
    """Sums over the views of a part of a batch, of the teacher where nothing else is said. What a run lacks is (0,)."""

    losses: Tensor  # (number of losses,), means over the part
    points_found: Tensor  # (L,), means over the part, of the student, see `pretraining.method.points.contrast`
    logits: Tensor  # (K,)
    probabilities: Tensor  # (K,)
    entropy: Tensor  # (), of the probabilities, in nats
    agreeing: Tensor  # (), number of samples whose two views share the argmax
    stage_losses: Tensor  # (4,), means over the part
    features: Tensor  # (C,)
    place_logits: Tensor  # (K,), mean over the part's places

    @classmethod
    def of_part(
        cls,
        losses: Iterable[Tensor],
        terms: LossTerms | None = None,
        teacher: TeacherOutput | None = None,
        points_found: Tensor | None = None,
    ) -> "StepSums":
        """Add up a part.

        Args:
            losses: () each.
            terms: of the distillation.
            teacher: what it made of the part.
            points_found: (L,).
        """
        stacked = torch.stack([loss.detach() for loss in losses])
        nothing = stacked.new_empty(0)
        found = nothing if points_found is None else points_found
        if terms is None or teacher is None:
            return cls(stacked, found, *[nothing] * 7)
        of_places = [logits for logits in teacher.places if logits is not None]
        probabilities = terms.teacher_probabilities
        first, second = probabilities.argmax(-1).chunk(2)
        return cls(
            stacked,
            found,
            teacher.logits.float().sum(0),
            probabilities.sum(0),
            torch.special.entr(probabilities).sum(),
            (first == second).sum().float(),
            terms.stage_losses,
            teacher.features.float().sum(0),
            torch.cat(of_places).float().mean(0) if of_places else nothing,
        )

    def pack(self) -> Tensor:
        """All fields in one tensor, for one exchange."""
        return torch.cat([getattr(self, field.name).view(-1) for field in fields(self)])

    def unpack(self, packed: Tensor) -> "StepSums":
        """The record of this one's shapes that `pack` made ``packed`` of."""
        own = [getattr(self, field.name) for field in fields(self)]
        values = packed.split([value.numel() for value in own])
        return StepSums(*(value.view(mine.shape) for value, mine in zip(values, own, strict=True)))


class BatchStatistics(NamedTuple):
    """Of the whole batch, over all parts and ranks."""

    sums: Tensor  # packed `StepSums`; not finite where a loss or output is not
    losses: Tensor  # (number of losses,)
    points_found: Tensor  # (L,) or (0,)
    mean_logits: Tensor | None  # (K,), of the teacher; None where the run does not distil
    stage_losses: Tensor  # (4,) or (0,)
    mean_place_logits: Tensor | None  # (K,), of the teacher; None where the run does not distil place by place
    health: TeacherHealth | None


def gather_statistics(parts: list[tuple[StepSums, Tensor | None]], processes: Processes) -> BatchStatistics:
    """Exchange what the ranks have added up: once the sums, once the covariance of the features.

    Args:
        parts: of this rank's batch, with the teacher's features (2b, C) of each, where there are any.
        processes: the ranks of the run.
    """
    packed = torch.stack([sums.pack() for sums, _ in parts]).sum(0) if len(parts) > 1 else parts[0][0].pack()
    sums = parts[0][0].unpack(processes.all_reduce(packed))
    count = len(parts) * processes.world_size
    means = sums.losses / count, sums.points_found / count
    stage_losses, place_logits = sums.stage_losses / count, sums.place_logits / count
    features = [features for _, features in parts if features is not None]
    if not features:
        return BatchStatistics(packed, *means, None, stage_losses, None, None)
    own_features = torch.cat(features).float()
    views = len(own_features) * processes.world_size
    mean_features = sums.features / views
    centred = own_features - mean_features  # first, since almost collapsed features hardly differ
    covariance = processes.all_reduce(centred.T @ centred) / views
    entropy = sums.entropy / views
    health = TeacherHealth(
        entropy,
        torch.special.entr(sums.probabilities / views).sum() - entropy,
        2 * sums.agreeing / views,
        *spread_and_rank(mean_features, covariance),
    )
    return BatchStatistics(
        packed, *means, sums.logits / views, stage_losses, place_logits if len(place_logits) else None, health
    )


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
    """Whether a step may change the run: (), on the device, the same on all ranks.

    With fp16, gradients overflow now and then, and the scaler leaves such a step out and halves its scale; only where
    it has fallen below 1 is something wrong with the gradients themselves.

    Args:
        sums: statistics of the step, summed over the ranks, losses among them.
        gradient_norms: norms before clipping; the gradients are those of all ranks.
        scaler: of the run.
    """
    gradients = gradient_norms.isfinite().all()
    if scaler.is_enabled():
        scale = scaler.scale(torch.ones((), device=sums.device))  # `get_scale` would wait for the device
        gradients = gradients | (scale >= 1)
    return sums.isfinite().all() & gradients
