"""How many processes to use where the user does not say: cores and memory."""

import os
from pathlib import Path

MAX_DEFAULT_PROCESSES = 8
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def core_count() -> int:
    """Cores that this process may use; on a cluster fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_processes() -> int:
    """As many as there are cores, at most 8."""
    return min(core_count(), MAX_DEFAULT_PROCESSES)


def available_memory() -> int:
    """Bytes that new processes may use, under the limit that a queue or a container may set (2^40 if unknown).

    The file cache counts as free, which it is for whoever needs it.
    """
    free = 2**40
    if _MEMINFO.exists():
        fields = dict(line.split(":") for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _CGROUP / "memory.max"
    if limit.exists() and (most := limit.read_text(encoding="utf-8").strip()).isdecimal():
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        free = min(free, int(most) - used + int(fields["inactive_file"]))
    return max(0, free)
