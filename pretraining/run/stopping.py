"""Why a run ends before its last step, and the signals that ask for it."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class StopReason(IntEnum):
    """Why a run ends early. Where the ranks have different reasons, the highest holds for all of them."""

    NONE = 0
    SIGINT = 1
    SIGTERM = 2
    MAX_HOURS = 3
    NOT_FINITE = 4

    @classmethod
    def of_signal(cls, number: int) -> "StopReason":
        """The reason that SIGINT or SIGTERM is."""
        return cls[signal.Signals(number).name]

    @property
    def exit_code(self) -> int:
        """Of a run that has saved and ended for this reason."""
        is_signal = self in (StopReason.SIGINT, StopReason.SIGTERM)
        return 128 + signal.Signals[self.name] if is_signal else 0

    def __str__(self) -> str:
        return "the limit of --max-hours" if self is StopReason.MAX_HOURS else self.name


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the numbers of SIGINT and SIGTERM, so that the running step can finish; a second one ends the process."""
    received: list[int] = []

    def remember(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.write(2, b"\nfinishing the running step, then saving\n")

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
