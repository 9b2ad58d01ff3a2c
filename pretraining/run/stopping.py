"""Why a run ends before its last step."""

import signal
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
