"""A pool of processes that survives the death of one of them.

`concurrent.futures` gives up all work when a process is killed (out of memory) or crashes in a library, and leaves its
workers behind when the parent is killed. Here each process has a pipe of its own: its end names the task that died
with it, and the parent's end makes every process leave after its task.
"""

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

logger = logging.getLogger(__name__)

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLOSC_NTHREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
"""What libraries read once, when they load."""

CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


class WorkerDiedError(Exception):
    """A process ended in the middle of a task.

    Attributes:
        crashed: whether by a fault of its own, such as a segmentation fault.
    """

    def __init__(self, how: str, crashed: bool = False):
        super().__init__(how)
        self.crashed = crashed


def run_in_processes(function: Callable[[Any], Any], tasks: Iterable[Any], processes: int) -> Iterator[tuple[Any, Any]]:
    """Run ``function(task)`` for every task in spawned processes of one thread each.

    Closing the iterator, or leaving it by an exception, ends the processes at once.

    Args:
        function: importable by name; what it returns must pickle.
        tasks: what to call it with; they must pickle.
        processes: how many at a time.

    Yields:
        Each task as it comes to an end, and its outcome: what the function returned or the exception that it raised,
        or `WorkerDiedError`.
    """
    waiting = deque(tasks)
    busy: dict[Connection, tuple[BaseProcess, Any]] = {}
    try:
        while waiting and len(busy) < processes:
            connection, process = _start(function)
            busy[connection] = (process, _hand_out(connection, waiting))
        while busy:
            for connection in wait(list(busy)):
                process, task = busy.pop(connection)
                outcome = _result(connection, process)
                if waiting and isinstance(outcome, WorkerDiedError):
                    connection, process = _start(function)
                if waiting:
                    busy[connection] = (process, _hand_out(connection, waiting))
                else:
                    connection.close()
                yield task, outcome
    finally:
        for connection, (process, _task) in busy.items():
            connection.close()
            process.terminate()
            process.join()


def _start(function: Callable[[Any], Any]) -> tuple[Connection, BaseProcess]:
    """Start one process; the connection carries tasks there and results back."""
    context = multiprocessing.get_context("spawn")  # fork would copy the threads' locks, not the threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function), daemon=True)
    with changed_environment(dict.fromkeys(THREAD_VARIABLES, "1")), _interrupts_blocked():
        process.start()
    theirs.close()
    return ours, process


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let processes that start meanwhile never see Ctrl-C, not even before `_work`; the parent gets it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # when it starts, it unblocks what is blocked
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_out(connection: Connection, waiting: deque) -> Any:
    """Send the next task and return it."""
    task = waiting.popleft()
    try:
        connection.send(task)
    except OSError:
        logger.debug("a process died between two tasks; its end of the pipe will say so")
    return task


def _result(connection: Connection, process: BaseProcess) -> Any:
    """What became of the task that a process had."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        connection.close()
        process.join()
        how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        return WorkerDiedError(how, -process.exitcode in CRASHES)


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A process's life: take a task, do it, report, until the other end of the pipe is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        while True:
            task = connection.recv()
            try:
                outcome = function(task)
            except Exception as raised:
                outcome = raised
            connection.send(outcome)
    except (EOFError, OSError):
        return


@contextmanager
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set some variables while the block runs; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
