"""Ending a run before its end: signals and the time limit, for all processes of the run at the same step."""

import signal
import time
from contextlib import AbstractContextManager

from pretraining.system.processes import Processes
from pretraining.system.signals import stop_signals_collected

_TIME_IS_UP = 1000
_NOT_FINITE = 2000


class StopRequest:
    """Whether the run should stop, asked after every step.

    Args:
        received: numbers of the signals that this process has received; grows while the run goes on.
        processes: the processes of the run; what one of them has received stops all.
        deadline: `time.monotonic` after which to stop, or None.

    Attributes:
        reason: what stopped the run; empty as long as nothing did.
        exit_code: exit code that tells of it.
        not_finite: whether NaN or infinity did.
    """

    def __init__(self, received: list[int], processes: Processes, deadline: float | None) -> None:
        self._received, self._processes, self._deadline = received, processes, deadline
        self.reason, self.exit_code, self.not_finite = "", 0, False

    def asked(self, not_finite: bool) -> bool:
        """Agree with the other processes on whether to stop after this step.

        ``not_finite``: whether NaN or infinity must end the run, as far as this process knows.
        """
        is_over = self._deadline is not None and time.monotonic() > self._deadline
        own = self._received[0] if self._received else _TIME_IS_UP * is_over
        number = self._processes.any(_NOT_FINITE if not_finite else own)
        if number == _NOT_FINITE:
            self.reason, self.not_finite = "a loss or gradients that are not finite", True
        elif number == _TIME_IS_UP:
            self.reason = "the limit of --max-hours"
        elif number:
            self.reason, self.exit_code = signal.Signals(number).name, 128 + number
        return bool(number)


def stop_signals() -> AbstractContextManager[list[int]]:
    """Collect the numbers of stop signals, so that the running step can finish; a second one ends the process."""
    return stop_signals_collected("finishing the running step, then saving")
