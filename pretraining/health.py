"""Naming what is wrong with a run, from its metrics lines alone (docs/pretraining.md, "Is the run healthy?").

`alarms` is a pure function of the lines; `HealthWatch` says each of them once.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

Line = dict[str, Any]

LINES = 3
"""So many lines in a row must show it, so that one odd batch rings nothing."""
AT_CHANCE = 0.99
"""The loss sits at chance when it is above this part of ln K."""
NEARLY_UNIFORM = 0.9
"""Entropy of the teacher, as a part of ln K, above which its output is taken for uniform."""
LITTLE_INFORMATION = 0.05
"""Nats. Healthy runs of all sizes tried stayed above 0.4; collapsed ones fell below 0.02."""
ONE_POINT = 0.01
"""Spread of the features below which all samples are one point to the teacher."""
ONE_OUTPUT = 0.05
"""Entropy of the teacher, as a part of ln K, below which it always gives the same single output."""


def alarms(lines: Sequence[Line], out_dim: int) -> dict[str, str]:
    """What is wrong by the last lines, by name, with what to try; empty when nothing is.

    Args:
        lines: all lines of the run so far.
        out_dim: K.
    """
    chance = math.log(out_dim)
    return {
        name: advice
        for name, count, is_wrong, advice in _ALARMS
        if len(lines) >= count and all(is_wrong(line, chance) for line in lines[-count:])
    }


class HealthWatch:
    """Logs each alarm of a run when it rings first."""

    def __init__(self, out_dim: int) -> None:
        self._out_dim = out_dim
        self._told: set[str] = set()

    def look(self, lines: Sequence[Line]) -> None:
        """Take the lines so far, after a new one."""
        for name, advice in alarms(lines, self._out_dim).items():
            if name not in self._told:
                logger.warning("health, step %d: %s; %s", lines[-1]["step"] + 1, name, advice)
                self._told.add(name)


def _is_not_finite(line: Line, _chance: float) -> bool:
    numbers = (value for value in line.values() if isinstance(value, float))
    return line.get("skipped_steps", 0) > 0 or not all(map(math.isfinite, numbers))


def _is_uniform(line: Line, chance: float) -> bool:
    # the entropy, too: a rate that is far too high lifts the loss above ln K while the output is a single one
    is_at_chance = line["loss"] > AT_CHANCE * chance and line["teacher_entropy"] > NEARLY_UNIFORM * chance
    return line["mutual_information"] < LITTLE_INFORMATION and is_at_chance


def _is_one_output(line: Line, chance: float) -> bool:
    return line["mutual_information"] < LITTLE_INFORMATION and line["teacher_entropy"] < ONE_OUTPUT * chance


def _is_one_point(line: Line, _chance: float) -> bool:
    return line.get("feature_spread", 1.0) < ONE_POINT


_ALARMS: tuple[tuple[str, int, Callable[[Line, float], bool], str], ...] = (
    (
        "some steps had a loss or gradients that are not finite (NaN or infinity)",
        1,
        _is_not_finite,
        "if they come often, begin a run with a lower --lr or a longer --warmup-epochs, or --amp bf16 in place of fp16",
    ),
    (
        "the teacher gives every sample the same, uniform output (mutual information near 0, loss at ln K)",
        LINES,
        _is_uniform,
        "begin a run with --head-batch-norm, --intensity weak, a smaller --head-out-dim or a larger --batch-size: "
        "the presets small and demo have them",
    ),
    (
        "the teacher gives every sample the same single output (mutual information and entropy near 0)",
        LINES,
        _is_one_output,
        "begin a run with a lower --center-momentum, a higher --teacher-temp, a lower --lr or --head-batch-norm",
    ),
    (
        "all samples are one point to the teacher (spread of its features near 0)",
        LINES,
        _is_one_point,
        "begin a run with a lower --lr or a longer --warmup-epochs, and with --head-batch-norm",
    ),
)
"""Name, lines in a row that must show it, what shows it, what to try."""
