"""How this process gets memory from the system, and how much it has."""

import ctypes
import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pretraining.errors import UserError

_NO_MEMORY = re.compile(
    rf"DefaultCPUAllocator|allocate memory|bad_alloc|{os.strerror(errno.ENOMEM)}"
    "|could not create a (memory|primitive(?! desc))"  # oneDNN; "descriptor" follows where it cannot do what is asked
)
"""What the errors of PyTorch's allocators and of the libraries under it say."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, instead of returning large blocks to the system at once (glibc; else nothing).

    A training step on the CPU frees and takes the same few hundred megabytes again and again. Each time, the system
    maps and clears them page by page, which took a quarter of a step (docs/benchmarks.md).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # never trim


def tells_of_no_memory(error: BaseException) -> bool:
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
        if not tells_of_no_memory(error):
            raise
        where = "the GPU's memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        raise UserError(
            f"{where} does not suffice for a step; give --accumulate N, which takes a batch in N parts, or begin a run "
            "with a lower --batch-size or --amp bf16"
        ) from error


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new measurement of `peak_memory`, where the system allows that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes held since the last reset: of the GPU's memory, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        return 1024 * _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Bytes that this process holds now (Linux)."""
    return 1024 * _status("VmRSS")


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1])
