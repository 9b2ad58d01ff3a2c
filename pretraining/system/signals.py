"""What SIGINT (Ctrl-C) and SIGTERM (a queue's) do to a command: one of two context managers decides."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal(BaseException):
    """SIGINT or SIGTERM arrived; no `Exception`, so that nothing on the way takes it for a failure.

    Attributes:
        exit_code: of a command that it stopped, 130 or 143.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def stop_signals_raised() -> Iterator[None]:
    """Raise `StopSignal` at the first stop signal; ignore further ones until the block ends, which may tidy up."""

    def stop(number: int) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, _ignore)
        raise StopSignal(number)

    with _stops_handled(stop):
        yield


@contextmanager
def stop_signals_collected(note: str) -> Iterator[list[int]]:
    """Yield a list that gets the number of a stop signal, so that the running step can finish; the same one again
    ends the process at once.

    Args:
        note: what to write to the terminal at the first one.
    """
    received: list[int] = []

    def remember(number: int) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.write(2, f"\n{note}\n".encode())  # print must not be called in a signal handler

    with _stops_handled(remember):
        yield received


def _ignore(_number: int, _frame: object) -> None:
    """Handle a signal by nothing. With `signal.SIG_IGN`, Python reports one that came with the first as an error."""


@contextmanager
def _stops_handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Call ``handle`` with the number of a stop signal while the block runs."""
    before = {number: signal.signal(number, lambda number, _frame: handle(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
