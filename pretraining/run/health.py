"""What is wrong with a run: alarms from its metrics lines alone, and the end of a run that is not finite.

`alarms` is a pure function of the lines (docs/pretraining.md, "Is the run healthy?"); `HealthWatch` logs each once.
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.method.diagnostics import StepResult
from pretraining.system.errors import UserError

logger = logging.getLogger(__name__)

Line = dict[str, Any]
_STAGE_LOSSES = tuple(f"loss_stage{stage}" for stage in range(1, 5))

LINES = 3
"""So many lines in a row must show it, so that one odd batch raises no alarm."""
AT_CHANCE = 0.99
"""The loss is at chance when it is above this fraction of ln K."""
NEARLY_UNIFORM = 0.9
"""Entropy of the teacher, as a fraction of ln K, above which its output counts as uniform."""
LITTLE_INFORMATION = 0.05
"""Nats. Healthy runs of all sizes tried stayed above 0.4; collapsed ones fell below 0.02."""
ONE_POINT = 0.01
"""Spread of the features below which all samples are one point to the teacher."""
NOTHING_FOUND = 2.0
"""Times chance, below which points count as not found: of 256, random weights find 60 times as many at the stem, and 10
times as many at stage 3."""
ONE_OUTPUT = 0.05
"""Entropy of the teacher, as a fraction of ln K, below which it always gives the same single output."""


class Chance(NamedTuple):
    """What a run shows that has learnt nothing."""

    entropy: float  # ln K of uniform outputs, in nats; the loss, too
    found: float  # fraction of points


def alarms(lines: Sequence[Line], out_dim: int, point_count: int) -> dict[str, str]:
    """What is wrong by the last lines, by name, with what to try; empty when nothing is.

    Args:
        lines: all lines of the run so far.
        out_dim: K.
        point_count: points of a pair.
    """
    chance = Chance(math.log(out_dim), 1 / point_count)
    return {
        name: advice
        for name, count, is_wrong, advice in _ALARMS
        if len(lines) >= count and all(is_wrong(line, chance) for line in lines[-count:])
    }


class HealthWatch:
    """Logs each alarm of a run when it is raised first."""

    def __init__(self, out_dim: int, point_count: int) -> None:
        self._sizes = out_dim, point_count
        self._logged: set[str] = set()

    def look(self, lines: Sequence[Line]) -> None:
        """Take the lines so far, after a new one."""
        for name, advice in alarms(lines, *self._sizes).items():
            if name not in self._logged:
                logger.warning("health, step %d: %s; %s", lines[-1]["step"] + 1, name, advice)
                self._logged.add(name)


def _is_not_finite(line: Line, _chance: Chance) -> bool:
    numbers = (value for value in line.values() if isinstance(value, float))
    return line.get("skipped_steps", 0) > 0 or not all(map(math.isfinite, numbers))


def _is_uniform(line: Line, chance: Chance) -> bool:
    # the entropy, too: a rate that is far too high lifts the loss above ln K while the output is a single one
    losses = [line[name] for name in _STAGE_LOSSES if name in line] or [line["loss"]]
    return (
        _has_little_information(line)
        and line["teacher_entropy"] > NEARLY_UNIFORM * chance.entropy
        and sum(losses) / len(losses) > AT_CHANCE * chance.entropy
    )


def _has_little_information(line: Line) -> bool:
    """Never of a run that does not distil, whose lines do not say."""
    return line.get("mutual_information", math.inf) < LITTLE_INFORMATION


def _is_one_output(line: Line, chance: Chance) -> bool:
    return _has_little_information(line) and line["teacher_entropy"] < ONE_OUTPUT * chance.entropy


def _is_one_point(line: Line, _chance: Chance) -> bool:
    return line.get("feature_spread", 1.0) < ONE_POINT


def _finds_no_point(line: Line, chance: Chance) -> bool:
    found = [value for name, value in line.items() if name.startswith("points_found_")]
    return bool(found) and max(found) < NOTHING_FOUND * chance.found


_ALARMS: tuple[tuple[str, int, Callable[[Line, Chance], bool], str], ...] = (
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
        "the preset cads has them",
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
    (
        "hardly any point is found in the other crop, at any level",
        LINES,
        _finds_no_point,
        "begin a run with a lower --lr or a longer --warmup-epochs; if points.png shows air alone, look at the store",
    ),
)
"""Name, lines in a row that must show it, what shows it, what to try."""


MOST_SKIPPED = 10
"""With ``skip``: so many in a row end the run, since single samples are then not the cause."""


class _Flag:
    """A flag on its way to the host. On CUDA it is copied after the step's kernels, without waiting for them."""

    def __init__(self, flag: Tensor) -> None:
        self._event = None
        if flag.is_cuda:
            self._value = torch.empty((), dtype=flag.dtype, pin_memory=True)
            self._value.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._value = flag

    def read(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)


class FiniteGuard:
    """Counts steps that were not finite and decides when the run must end.

    On CUDA a step's flag is read when the next step has been queued: the GPU has that one to work on meanwhile, so it
    never waits for the host. On a CPU it is read at once.

    Args:
        on_nan: the setting; ``stop`` ends the run at the first such step.
        reports: whether this process warns of skipped steps.
    """

    def __init__(self, on_nan: str, reports: bool) -> None:
        self.on_nan, self.reports = on_nan, reports
        self.in_a_row = 0
        self._before: tuple[int, _Flag] | None = None

    def must_end(self, step: int, result: StepResult) -> bool:
        """Take one step's result; whether what is known by now must end the run."""
        now = step, _Flag(result.finite)
        known, self._before = (self._before, now) if result.finite.is_cuda else (now, None)
        if known is None:
            return False
        if known[1].read():
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if self.reports and self.on_nan == "skip":
            logger.warning("step %d is skipped: its loss or gradients are not finite (NaN or infinity)", known[0])
        return self.on_nan == "stop" or self.in_a_row >= MOST_SKIPPED


def not_finite_error(checkpoint: Path, step: int, config: PretrainConfig) -> UserError:
    """The end of a run whose loss, gradients or weights are not finite."""
    if checkpoint.exists():
        saved = f"{checkpoint} is unchanged; resume from it with --c"
    else:
        saved = "there is no checkpoint yet, so begin a new run in another folder"
    try_ = "a lower --lr, a longer --warmup-epochs" + (", --amp bf16 or none" if config.run.amp == "fp16" else "")
    if config.run.on_nan == "stop":
        again = f"if only a few samples are the cause, add --on-nan skip; otherwise begin a new run with {try_}"
    else:
        again = f"--on-nan skip ends after {MOST_SKIPPED} such steps in a row; begin a new run with {try_}"
    return UserError(
        f"step {step}: loss, gradients or weights are not finite (NaN or infinity), and the run ends without saving "
        f"them; {saved}; {again}"
    )
