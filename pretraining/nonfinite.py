"""What a run does about steps whose loss or gradients are NaN or infinite (``--on-nan``).

The step itself decides on the device and changes nothing (`Pretrainer.train_step`). Here the host takes notice.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.errors import UserError
from pretraining.step_result import StepResult

logger = logging.getLogger(__name__)

MOST_SKIPPED = 10
"""With ``skip``: so many in a row end the run, for then it is not single samples."""


class _Flag:
    """A flag on its way to the host. On CUDA the copy runs behind the step's kernels, and nobody waits for it yet."""

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
    """Counts steps that were not finite and says when the run must end.

    On CUDA a step's flag is read when the next step has been queued: the GPU has that one to work on meanwhile, so it
    never waits for the host. On a CPU it is read at once.

    Args:
        on_nan: the setting; ``stop`` ends the run at the first such step.
        speaks: whether this process tells the user.
    """

    def __init__(self, on_nan: str, speaks: bool) -> None:
        self.on_nan, self.speaks = on_nan, speaks
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
        if self.speaks and self.on_nan == "skip":
            logger.warning("step %d is skipped: its loss or gradients are not finite (NaN or infinity)", known[0])
        return self.on_nan == "stop" or self.in_a_row >= MOST_SKIPPED


def not_finite_error(checkpoint: Path, step: int, config: PretrainConfig) -> UserError:
    """The end of a run whose loss, gradients or weights are not finite."""
    if checkpoint.exists():
        saved = f"{checkpoint} is as it was before and can be gone on with (--c)"
    else:
        saved = "there is no checkpoint yet, so begin anew in another folder"
    try_ = "a lower --lr, a longer --warmup-epochs" + (", --amp bf16 or none" if config.run.amp == "fp16" else "")
    if config.run.on_nan == "stop":
        again = f"where it is but a few samples, --on-nan skip passes over them; otherwise begin a run with {try_}"
    else:
        again = f"--on-nan skip gave up after {MOST_SKIPPED} steps in a row or on weights; begin a run with {try_}"
    return UserError(
        f"step {step}: loss, gradients or weights are not finite (NaN or infinity), and the run ends without saving "
        f"them; {saved}; {again}"
    )
