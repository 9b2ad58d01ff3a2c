"""Running one command: its output goes to a log file, its last line to the terminal while it runs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 60  # for a command that was told to stop: it may have to save its state
_TAIL_LINES = 20


class CommandFailed(Exception):
    """A command ended with a code other than 0; the message holds the end of its log."""


def find_command(name: str) -> str | None:
    """Path of a console script: beside this interpreter's own, else on PATH; None where it is not installed."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def run_command(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a console script to its end with ``environment`` added to this process's.

    A stop of this process (Ctrl-C, SIGTERM) is passed on, and the command gets a minute to save its state.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, _StopsHeldBack() as held_back:
        process = subprocess.Popen(
            [find_command(command[0]) or command[0], *command[1:]],
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            held_back.release()
            _watch(process, log)
        finally:
            _stop(process)
    if process.returncode != 0:
        tail = "\n".join(f"    {line}" for line in last_lines(log, _TAIL_LINES))
        raise CommandFailed(f"{tail}\n{command[0]} ended with code {process.returncode}; its whole output is in {log}")


class _StopsHeldBack:
    """Keeps a stop waiting while a process is being started: answered then, it would leave that process alone."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "_StopsHeldBack":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, lambda number, _: self._came.append(number))
        return self

    def release(self) -> None:
        """Let stops through again, the one that came meanwhile first."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())
        while self._came:
            signal.raise_signal(self._came.pop())

    def __exit__(self, *_: object) -> None:
        self.release()


def last_lines(log: Path, n: int) -> list[str]:
    """The last ``n`` lines of a log that are not empty; what a progress bar wrote over is left out."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 20_000, 0))
        text = file.read().decode(errors="replace")
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [re.split(r"\r+", line.strip("\r\n "))[-1].strip() for line in text.split("\n")]
    return [line for line in lines if line][-n:]


def _watch(process: subprocess.Popen, log: Path) -> None:
    """Wait for the end; on a terminal, show elapsed time and the log's last line meanwhile."""
    live, start = sys.stdout.isatty(), time.monotonic()
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        if live:
            width = shutil.get_terminal_size().columns - 1
            line = "".join(last_lines(log, 1))
            sys.stdout.write(f"\r{f'{time.monotonic() - start:6.0f} s  {line}'[:width]}\x1b[K")
            sys.stdout.flush()
    if live:
        sys.stdout.write("\r\x1b[K")


def _stop(process: subprocess.Popen) -> None:
    """Ask a command that still runs to stop; end it, with the processes it started, where it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
