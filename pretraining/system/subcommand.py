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
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 60  # for a command that was asked to stop: it may have to save its state
_TAIL_LINES = 20


class CommandFailed(Exception):
    """A command ended with an exit code other than 0; the message holds the end of its log."""


def find_command(name: str) -> str | None:
    """Path of a console script: beside this interpreter's own, else on PATH; None if it is not installed."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


def run_step(command: Sequence[str], environment: Mapping[str, str], log: Path, received: Sequence[int]) -> None:
    """Run a console script until it ends, or until this process has received a signal, which ends it.

    Args:
        command: the script and its arguments.
        environment: added to this process's.
        log: the file that takes its output.
        received: the signals that this process has received; grows meanwhile.

    Raises:
        CommandFailed: it ended with an exit code other than 0, and not for a signal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [find_command(command[0]) or command[0], *command[1:]],
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _watch(process, log, received)
    finally:  # a second Ctrl-C raises KeyboardInterrupt
        _stop(process)
    if process.returncode != 0 and not received:
        tail = "\n".join(f"    {line}" for line in last_lines(log, _TAIL_LINES))
        raise CommandFailed(f"{tail}\n{command[0]} ended with code {process.returncode}; its whole output is in {log}")


def _watch(process: subprocess.Popen, log: Path, received: Sequence[int]) -> None:
    """Wait for the end or a signal; on a terminal, show the elapsed time and the log's last line meanwhile."""
    started = time.monotonic()
    while process.poll() is None and not received:
        time.sleep(_POLL_SECONDS)
        if sys.stdout.isatty():
            line = f"{time.monotonic() - started:6.0f} s  {''.join(last_lines(log, 1))}"
            _show(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
    if sys.stdout.isatty():
        _show("\r\x1b[K")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _stop(process: subprocess.Popen) -> None:
    """Ask a command that still runs to stop, wait for it, and kill what is left of it and of processes it started."""
    if process.poll() is not None:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_SECONDS)
    with suppress(ProcessLookupError):  # workers that wait for a parent which is gone would wait for ever
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(log: Path, n: int) -> list[str]:
    """The last ``n`` lines of a log that are not empty; of a progress bar only the last state."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 20_000, 0))
        text = file.read().decode(errors="replace")
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    lines = [re.split(r"\r+", line.strip("\r\n "))[-1].strip() for line in text.split("\n")]
    return [line for line in lines if line][-n:]
