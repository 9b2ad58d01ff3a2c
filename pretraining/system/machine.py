"""What the machine offers this process, cores and memory, and how much memory the process takes.

PyTorch is loaded only where a GPU is asked about: workers that prepare scans do without it.
"""

import ctypes
import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_DEFAULT_PROCESSES = 8
UNKNOWN_MEMORY = 2**40
"""What `available_memory` returns where the system does not report it."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMINFO, _CGROUP, _OWN_CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def keep_freed_memory(at_most_bytes: int = -1) -> None:
    """Let malloc keep what is freed, instead of returning large blocks to the system at once (glibc; else nothing).

    A training step on the CPU frees and takes the same few hundred megabytes again and again, and so does resampling,
    scan by scan. Each time, the system maps and clears them page by page, which took a quarter of a step.

    Args:
        at_most_bytes: what is freed is returned once it is more than this, below 2 GiB; -1 for never.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, at_most_bytes)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keep Python from searching for cyclic garbage while many objects are made, none of which is in a cycle.

    Each search looks at all objects there are, PyTorch's among them. For a manifest of 100,000 volumes, that takes as
    long as reading it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def reset_peak_memory(device: "torch.device") -> None:
    """Begin a new measurement of `peak_memory`, where the system allows that."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5", encoding="ascii")


def peak_memory(device: "torch.device") -> int:
    """Largest number of bytes held since the last reset: of the GPU's memory, or by this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        return _table(_STATUS)["VmHWM"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Bytes that this process holds now (Linux)."""
    return _table(_STATUS)["VmRSS"]


def core_count() -> int:
    """Cores that this process may use; on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_processes() -> int:
    """As many as there are cores, at most 8."""
    return min(core_count(), MAX_DEFAULT_PROCESSES)


def available_memory() -> int:
    """Bytes that new processes may use, within the limits that a container or a queue sets (cgroup v2).

    The file cache counts as free, since the system gives it up to whoever needs memory. `UNKNOWN_MEMORY` where the
    system does not report any.
    """
    free = _table(_MEMINFO).get("MemAvailable", UNKNOWN_MEMORY) if _MEMINFO.exists() else UNKNOWN_MEMORY
    for group in _cgroups():
        limit = group / "memory.max"
        if limit.exists() and (most := limit.read_text(encoding="utf-8").strip()).isdecimal():
            used = int((group / "memory.current").read_text(encoding="utf-8"))
            free = min(free, int(most) - used + _table(group / "memory.stat")["inactive_file"])
    return max(0, free)


def _cgroups() -> list[Path]:
    """The folders of this process's cgroup and of those that hold it: a limit of each counts."""
    lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines() if _OWN_CGROUP.exists() else []
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    parts = Path(own).parts
    return [_CGROUP.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _table(path: Path) -> dict[str, int]:
    """Bytes by name, from lines such as "VmRSS: 12 kB" or "inactive_file 12288"; other lines are left out."""
    values = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match line.replace(":", " ").split():
            case [name, number, "kB"]:
                values[name] = 1024 * int(number)
            case [name, number] if number.isdecimal():
                values[name] = int(number)
    return values
