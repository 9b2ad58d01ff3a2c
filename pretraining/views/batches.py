"""Taking batches from a loader whose worker processes may fail: every failure ends as one sentence, and none hangs.

`torch.utils.data` wraps what a worker raises into its own text, and raises the death of a worker from a signal handler,
that is, anywhere in the training process. A worker ignores SIGTERM (`pretraining.views.loader`), so workers that an
exception leaves behind would keep the process from ending. And a worker without a file handle left for its batch loses
it, and the training process would wait for it for ever; so handles are counted before any worker starts.
"""

import errno
import multiprocessing
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from pretraining.system.errors import UserError
from pretraining.system.torch_errors import tells_of_no_memory

_DEATH = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: (?P<signal>[^.]+)|exited unexpectedly)")
_OF_WORKER = "in DataLoader worker process"
_FEWER = "give a lower --num-workers (0 needs no other process)"
_OPEN_FILES = Path("/dev/fd")
_TENSORS = 3
"""Of a batch: two CT views and the X-ray. Each is a file in /dev/shm, which both processes hold open."""
_PIPES_OF_WORKER, _OTHER_FILES = 8, 16


def collate(samples: list[Any] | UserError) -> Any:
    """A batch of samples; a `UserError` in their place travels as it is, and `batches` raises it."""
    return samples if isinstance(samples, UserError) else default_collate(samples)


def batches(loader: DataLoader) -> Iterator[list[Tensor]]:
    """The batches of a loader with `collate`; its workers end with the iteration, however that ends.

    Raises:
        UserError: a sample could not be read, or there are too few file handles for the workers.
    """
    _check_file_handles(loader)
    others, iterator = set(multiprocessing.active_children()), None
    try:
        iterator = iter(loader)  # starts the workers; where the second cannot start, the first one is left behind
        for batch in iterator:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        if loader.num_workers and iterator is not None:
            # torch does so only when nothing refers to the iterator any more, which the traceback of an error does
            iterator._shutdown_workers()
        for worker in set(multiprocessing.active_children()) - others:  # or it hangs in a read from a dead disk
            worker.kill()


def _check_file_handles(loader: DataLoader) -> None:
    """Compare the limit on open files with what the loader may need, counted generously."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not loader.num_workers or not _OPEN_FILES.exists() or limit == resource.RLIM_INFINITY:
        return
    batches_ahead = loader.num_workers * loader.prefetch_factor
    needed = sum(1 for _ in _OPEN_FILES.iterdir()) + _OTHER_FILES
    needed += _PIPES_OF_WORKER * loader.num_workers + 2 * _TENSORS * (batches_ahead + 1)
    if limit < needed:
        raise UserError(
            f"only {limit} files may be open at once, and --num-workers {loader.num_workers} needs {needed}: raise the "
            f"limit (ulimit -n 4096), or {_FEWER}; then start again with --c"
        )


@contextmanager
def worker_failures_as_errors(go_on: str) -> Iterator[None]:
    """Turn the failures of loader processes, which may come at any moment, into a `UserError`.

    Args:
        go_on: what to do when the cause is removed, as the message's last part.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise UserError(f"{reason}; {go_on}") from error


def _reason(error: Exception) -> str | None:
    """What befell a loader process and what to do about it; None where the error is no such failure."""
    text = str(error)
    if death := _DEATH.search(text):
        how = death["signal"] or ""
        if how == signal.strsignal(signal.SIGBUS):
            return f"a process that prepares views ended ({how}): shared memory is full; {_more_shared_memory()}"
        how = f" ({how})" if how else ""
        return f"a process that prepares views was ended{how}, most likely for want of memory; {_FEWER} or free memory"
    if _OF_WORKER in text and ("MemoryError" in text or tells_of_no_memory(error)):
        return f"a process that prepares views has no memory left; {_FEWER} or free memory"
    if "shared memory" in text or "shm" in text:
        return f"/dev/shm has no room for the batches of the processes that prepare views; {_more_shared_memory()}"
    if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in text or "ancdata" in text:
        return f"too many files are open; raise the limit (ulimit -n 4096), or {_FEWER}"
    return None


def _more_shared_memory() -> str:
    return f"enlarge /dev/shm (docker run --shm-size=8g), or {_FEWER}"
