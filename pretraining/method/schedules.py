"""Learning rate, weight decay, teacher momentum and teacher temperature: pure functions of the step or epoch.

Paper: CADS (IEEE TMI 2025); CADS method, sections 4 and 5. Checked against numbers of the published code.
"""

import math
from dataclasses import dataclass


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
