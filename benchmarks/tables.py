"""What the benchmarks share: Markdown tables, and measuring in a process of its own."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""malloc then gives back every block of more than 64 KiB at once, so that a peak is what was in use."""


def row(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def heading(heads: Sequence[str]) -> str:
    """The first two lines of a Markdown table."""
    return f"{row(heads)}\n{row(['---'] * len(heads))}"


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    return "\n".join([heading(heads), *map(row, rows)])


def in_new_process(function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None) -> Future:
    """Start ``function(*arguments)`` in a new process, so that its peak memory is nobody else's.

    Args:
        function: of a module, so that the process can import it.
        arguments: for it.
        environment: variables of the process, beside those of this one; this one keeps them, too.

    Returns:
        Its ``result()`` waits, and raises what the function raised, or `BrokenProcessPool` where its process died.
    """
    os.environ.update(environment or {})
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


def print_json(result: dict[str, Any]) -> None:
    """The last line of a benchmark, for whoever compares runs."""
    print(json.dumps(result))
