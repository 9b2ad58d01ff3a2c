"""Learning rate, weight decay, teacher momentum and teacher temperature: pure functions of the step or epoch.

Paper: CADS (IEEE TMI 2025); CADS method, sections 4 and 5. Checked against numbers of the published code.
"""

import math
from dataclasses import dataclass

from pretraining.config import PretrainConfig


def linspace(start: float, end: float, count: int, index: int) -> float:
    """Value ``index`` of ``count`` evenly spaced ones from ``start`` to ``end``, both included; ``end`` beyond them."""
    if index >= count - 1:
        return end if count > 1 or index >= count else start
    return start + (end - start) * index / (count - 1)


def cosine(start: float, end: float, count: int, index: int) -> float:
    """Value ``index`` of a half cosine over ``count`` steps; it begins at ``start`` and nears ``end``."""
    return end + (start - end) * (1.0 + math.cos(math.pi * index / count)) / 2.0


def warmup_cosine(peak: float, end: float, warmup_steps: int, total_steps: int, step: int) -> float:
    """Linear warm-up from 0 to ``peak`` over ``warmup_steps`` (both ends included), then a half cosine to ``end``."""
    if step < warmup_steps:
        return linspace(0.0, peak, warmup_steps, step)
    return cosine(peak, end, total_steps - warmup_steps, step - warmup_steps)


@dataclass(frozen=True)
class Rates:
    """The scheduled quantities of one step."""

    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float
    last_layers_frozen: bool


def rates(config: PretrainConfig, step: int, steps_per_epoch: int) -> Rates:
    """The scheduled quantities of a step (from 0)."""
    optim, loss, epoch = config.optim, config.loss, step // steps_per_epoch
    warmup_steps, total_steps = optim.warmup_epochs * steps_per_epoch, optim.epochs * steps_per_epoch
    return Rates(
        lr=warmup_cosine(config.peak_lr, optim.min_lr, warmup_steps, total_steps, step),
        weight_decay=cosine(*optim.weight_decay, total_steps, step),
        teacher_momentum=cosine(*optim.teacher_momentum, total_steps, step),
        teacher_temp=linspace(*loss.teacher_temp, loss.warmup_teacher_temp_epochs, epoch),
        last_layers_frozen=epoch < optim.freeze_last_layer_epochs,
    )
