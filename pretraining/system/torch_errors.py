"""Errors of PyTorch that have no type of their own: recognised by their text, and reported as a sentence.

All texts were seen in PyTorch 2.14.1. A text that another version words differently is not recognised: the error then
keeps its traceback.
"""

import errno
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pretraining.system.errors import UserError

FEWER_WORKERS = "give a lower --num-workers (0 needs no other process)"
_MORE_SHARED_MEMORY = f"enlarge /dev/shm (docker run --shm-size=8g), or {FEWER_WORKERS}"

_NO_MEMORY = re.compile(
    rf"DefaultCPUAllocator|allocate memory|bad_alloc|{os.strerror(errno.ENOMEM)}"
    "|could not create a (memory|primitive(?! desc))"  # oneDNN; "descriptor" follows where it cannot do what is asked
)
"""PyTorch 2.14.1: its allocators and the libraries under it."""
_LOST_RANK = ("connection", "gloo", "nccl", "peer")
"""PyTorch 2.14.1: torch.distributed, in lower case."""
_WORKER_ENDED = re.compile(
    r"DataLoader worker \(pid.*?\) (?:is killed by signal: (?P<signal>[^.]+)|exited unexpectedly)"
)
"""PyTorch 2.14.1: the signal handler of torch.utils.data, which raises anywhere in the training process."""
_RAISED_IN_WORKER = "in DataLoader worker process"
"""PyTorch 2.14.1: how torch.utils.data words what a worker has raised."""
_SHARED_MEMORY = ("shared memory", "shm")
_OPEN_FILES = ("Too many open files", "ancdata")
"""PyTorch 2.14.1: handing a tensor from one process to another."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU or the machine has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


@contextmanager
def no_memory_as_error() -> Iterator[None]:
    """Turn a step for which there is not enough memory into a `UserError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where = "the GPU's memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        raise UserError(
            f"{where} does not suffice for a step; give --accumulate N, which takes a batch in N parts, or begin a run "
            "with a lower --batch-size or --amp bf16"
        ) from error


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error comes from torch.distributed: its backends raise types of their own only in part."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _LOST_RANK)


@contextmanager
def worker_failures_as_errors(how_to_resume: str) -> Iterator[None]:
    """Turn the failures of loader workers, which may come at any moment, into a `UserError`.

    Args:
        how_to_resume: what to do when the cause is removed, as the message's last part.
    """
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        reason = _worker_failure(error)
        if reason is None:
            raise
        raise UserError(f"{reason}; {how_to_resume}") from error


def _worker_failure(error: Exception) -> str | None:
    """What happened to a loader worker and how to fix it; None where the error is no such failure."""
    text = str(error)
    if ended := _WORKER_ENDED.search(text):
        if ended["signal"] == signal.strsignal(signal.SIGBUS):
            how = ended["signal"]
            return f"a process that prepares views ended ({how}): shared memory is full; {_MORE_SHARED_MEMORY}"
        how = f" ({ended['signal']})" if ended["signal"] else ""
        return (
            f"a process that prepares views was ended{how}, most likely for want of memory; {FEWER_WORKERS} or free "
            "memory"
        )
    if _RAISED_IN_WORKER in text and ("MemoryError" in text or is_out_of_memory(error)):
        return f"a process that prepares views has no memory left; {FEWER_WORKERS} or free memory"
    if any(word in text for word in _SHARED_MEMORY):
        return f"/dev/shm has no room for the batches of the processes that prepare views; {_MORE_SHARED_MEMORY}"
    if getattr(error, "errno", None) == errno.EMFILE or any(word in text for word in _OPEN_FILES):
        return f"too many files are open; raise the limit (ulimit -n 4096), or {FEWER_WORKERS}"
    return None
