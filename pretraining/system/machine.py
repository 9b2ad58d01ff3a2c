"""How this process gets memory from the system, and how much it has."""

import ctypes
import os
import resource
import sys
from pathlib import Path

import torch

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


MAX_DEFAULT_PROCESSES = 8
UNKNOWN_MEMORY = 2**40
"""Bytes taken as available where the system does not report them."""
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def core_count() -> int:
    """Cores that this process may use; on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_processes() -> int:
    """As many as there are cores, at most 8."""
    return min(core_count(), MAX_DEFAULT_PROCESSES)


def available_memory() -> int:
    """Bytes that new processes may use, under the limit that a queue or a container may set, or `UNKNOWN_MEMORY`.

    The file cache counts as free, which it is for whoever needs it.
    """
    free = UNKNOWN_MEMORY
    if _MEMINFO.exists():
        fields = dict(line.split(":") for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text(encoding="utf-8").strip()).isdecimal():
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        free = min(free, int(most) - used + int(fields["inactive_file"]))
    return max(0, free)
