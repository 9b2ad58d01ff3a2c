"""How many processes to use where the user does not say."""

import os

MAX_DEFAULT_PROCESSES = 8


def default_processes() -> int:
    """As many as this process may use cores (on a cluster fewer than the machine has), at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_DEFAULT_PROCESSES)
