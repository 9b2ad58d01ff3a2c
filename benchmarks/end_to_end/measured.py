"""A command as a user runs it: its seconds, those of the processor, its peak memory, and when it printed what."""

import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.system.subcommand import find_command

LOOKS_PER_SECOND = 20
"""At the memory."""
LAST_LINES = 20


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        seconds: from its start to its end, loading included.
        cpu_seconds: of the command and of all processes that it started.
        peak_bytes: the most that they held together; pages that they share count in each.
        lines: seconds from the start, and what was printed then; each state of a progress bar is a line.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    lines: list[tuple[float, str]]

    def seconds_to(self, pattern: str) -> float:
        """Seconds to the first line in which a regular expression is found.

        Raises:
            ValueError: there is none.
        """
        for seconds, line in self.lines:
            if re.search(pattern, line):
                return seconds
        raise ValueError(f"no line with {pattern}; the last lines are:\n{_last(self.lines)}")


def measure(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> Measured:
    """Run a command to its end (Linux).

    Args:
        command: a console script, or a program of PATH, and its arguments.
        environment: added to this process's.
        folder: where to run it; here by default.

    Raises:
        RuntimeError: it ended with an exit code other than 0.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [find_command(command[0]) or command[0], *command[1:]],
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    peaks, ended = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
    watcher.start()
    try:
        lines = [(time.perf_counter() - started, line) for line in _lines(process.stdout.fileno())]
        _, status, used = os.wait4(process.pid, 0)
    finally:
        ended.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with exit code {process.returncode}:\n{_last(lines)}")
    return Measured(time.perf_counter() - started, used.ru_utime + used.ru_stime, max(peaks), lines)


def _lines(pipe: int) -> Iterator[str]:
    """Lines, and states of progress bars, as soon as they are printed."""
    rest = b""
    while block := os.read(pipe, 1 << 16):
        *whole, rest = re.split(rb"[\r\n]+", rest + block)
        yield from (line.decode(errors="replace") for line in whole if line)
        if re.search(rb"\d+/\d+ \[.*\]", rest):  # tqdm's bar, which has its return before it, not behind it
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")


def _watch(process: int, peaks: list[int], ended: threading.Event) -> None:
    while not ended.wait(1 / LOOKS_PER_SECOND):
        peaks.append(sum(map(_resident_bytes, _family(process))))


def _family(process: int) -> Iterator[int]:
    """A process and all that come from it."""
    yield process
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))
    except OSError:  # it has ended
        return


def _resident_bytes(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _last(lines: Sequence[tuple[float, str]]) -> str:
    return "\n".join(line for _, line in lines[-LAST_LINES:])
