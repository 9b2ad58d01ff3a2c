"""Names in a folder, listed once: to list a folder for each of its files takes hours where it holds 100,000."""

import functools
import os
from bisect import bisect_left
from itertools import islice, takewhile
from pathlib import Path

FOLDERS_KEPT = 2


def names_that_begin(folder: Path, start: str) -> list[str]:
    """The names in a folder that begin with ``start``, sorted. The folder is listed again when it has changed."""
    names = _listed(folder, folder.stat().st_mtime_ns)
    return list(takewhile(lambda name: name.startswith(start), islice(names, bisect_left(names, start), None)))


@functools.lru_cache(maxsize=FOLDERS_KEPT)
def _listed(folder: Path, mtime_ns: int) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 (names alone; a Path for each takes five times the memory)
