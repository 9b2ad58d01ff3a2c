"""How many processes to use where the user does not say: cores and memory."""

import os
from pathlib import Path

MAX_DEFAULT_PROCESSES = 8


def core_count() -> int:
    """Cores that this process may use; on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_processes() -> int:
    """As many as there are cores, at most 8."""
    return min(core_count(), MAX_DEFAULT_PROCESSES)


def available_memory() -> int:
    """Bytes that new processes may use, under the limit that a queue or a container may set (2^40 if unknown)."""
    free = 2**40
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts the file cache as free, which it is for whoever needs it
        fields = dict(line.split(":") for line in meminfo.read_text(encoding="utf-8").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text(encoding="utf-8").strip().isdecimal():
        free = min(free, int(limit.read_text(encoding="utf-8")) - int(used.read_text(encoding="utf-8")))
    return max(0, free)
