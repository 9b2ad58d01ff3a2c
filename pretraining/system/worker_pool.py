"""A pool of worker processes in which a task that kills or hangs its worker costs itself alone.

`concurrent.futures` gives up all work when a worker is killed (out of memory) or crashes in a library, and leaves its
workers behind when the parent is killed. `pebble` survives that, but its workers share one pipe: now and then a worker
that dies takes another task along, or all of them. Here each worker has a pipe of its own: when it closes, its task
has died with it, and when the parent is gone, every worker leaves after its task.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from pretraining.system.errors import UserError
from pretraining.system.machine import keep_freed_memory

logger = logging.getLogger(__name__)

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLOSC_NTHREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
"""Numbers of threads that libraries read once, when they load."""
CANNOT_START = (
    "worker processes cannot start (exit code {}, their own message is above): in a script of your own, put the call "
    'below if __name__ == "__main__":, since workers import the script; otherwise install the module that is missing'
)
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
KEPT_BYTES = 2**30
"""How much freed memory a worker keeps for its next task; what a single large scan has needed goes back."""
_SECONDS_TO_END = 10
"""How long to wait for a killed worker: one that waits for a dead file server ends when the server answers."""


class WorkerDiedError(Exception):
    """A worker ended in the middle of a task.

    Attributes:
        crashed: whether by a fault of its own, such as a segmentation fault.
    """

    def __init__(self, how: str, crashed: bool = False):
        super().__init__(how)
        self.crashed = crashed


class TaskTimeoutError(Exception):
    """A task took longer than the limit, so its worker was killed.

    Attributes:
        seconds: the limit.
    """

    def __init__(self, seconds: float):
        super().__init__(f"{seconds:g} s")
        self.seconds = seconds


def run_in_processes(
    function: Callable[[Any], Any], tasks: Iterable[Any], processes: int, seconds: float | None = None
) -> Iterator[tuple[Any, Any]]:
    """Run ``function(task)`` for every task in spawned workers of one thread each.

    Closing the iterator, or leaving it by an exception, kills the workers.

    Args:
        function: importable by name; what it returns must pickle.
        tasks: what to call it with; they must pickle.
        processes: how many workers.
        seconds: the limit for one task, the loading of its worker included; none by default.

    Yields:
        Each task when it ends, and its outcome: what the function returned or the exception that it raised,
        or `WorkerDiedError` or `TaskTimeoutError`.

    Raises:
        UserError: a worker ended by itself before it could take a task, as every other would.
    """
    waiting = deque(tasks)
    busy: dict[Connection, _Worker] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < processes:
                worker = _Worker(function)
                busy[worker.connection] = worker
                worker.begin(waiting.popleft(), seconds)
            for worker in _ended(busy):
                if worker.has_only_started():
                    continue
                task, outcome = worker.task, worker.outcome()
                if waiting and not isinstance(outcome, WorkerDiedError | TaskTimeoutError):
                    worker.begin(waiting.popleft(), seconds)
                else:
                    del busy[worker.connection]
                    worker.kill()
                yield task, outcome
    finally:
        for worker in busy.values():
            worker.kill()


def _ended(busy: dict[Connection, "_Worker"]) -> list["_Worker"]:
    """The workers that have a result, have died, or are out of time; waits for the first one."""
    timeout = max(0.0, min(worker.deadline for worker in busy.values()) - time.monotonic())
    ready = [busy[connection] for connection in wait(list(busy), None if timeout == float("inf") else timeout)]
    return ready or [worker for worker in busy.values() if worker.deadline <= time.monotonic()]


class _Worker:
    """One process and the task that it works on; its connection carries tasks there and results back."""

    def __init__(self, function: Callable[[Any], Any]):
        context = multiprocessing.get_context("spawn")  # fork would copy the threads' locks, not the threads
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, function), daemon=True)
        with changed_environment(dict.fromkeys(THREAD_VARIABLES, "1")), _interrupts_blocked():
            self._process.start()
        theirs.close()
        self._is_started = False

    def begin(self, task: Any, seconds: float | None) -> None:
        """Send a task."""
        self.task, self._seconds = task, seconds
        self.deadline = float("inf") if seconds is None else time.monotonic() + seconds
        try:
            self.connection.send(task)
        except OSError:
            logger.debug("a worker died between two tasks; `outcome` finds its pipe closed")

    def has_only_started(self) -> bool:
        """Whether it has sent that it can take a task, and no outcome yet."""
        if self._is_started or not self.connection.poll():
            return False
        try:
            self._is_started = self.connection.recv()
        except (EOFError, OSError):
            return False
        return not self.connection.poll()

    def outcome(self) -> Any:
        """What the task came to; waits for it until the deadline has passed.

        Raises:
            UserError: it could not start.
        """
        try:
            if self._seconds is not None and not self.connection.poll():
                return TaskTimeoutError(self._seconds)
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            if not self._is_started and code >= 0:
                raise UserError(CANNOT_START.format(code)) from None
            return WorkerDiedError(f"signal {-code}" if code < 0 else f"exit code {code}", -code in CRASHES)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.join(_SECONDS_TO_END)


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


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker's life: take a task, do it, send the outcome, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    keep_freed_memory(KEPT_BYTES)
    try:
        connection.send(True)  # that it has started
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
