"""Taking batches from a loader whose workers may fail: no failure makes the run hang.

A worker ignores SIGTERM (`pretraining.views.loader`), so workers that an exception leaves behind would keep the process
from ending. And a worker without a file handle left for its batch loses it, and the training process would wait for it
for ever; so handles are counted before any worker starts. Workers that die: `pretraining.system.torch_errors`.
"""

import multiprocessing
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from pretraining.system.errors import UserError
from pretraining.system.torch_errors import FEWER_WORKERS

_OPEN_FILES = Path("/dev/fd")
_TENSORS = 11
"""Of a batch at most: two CT views, X-ray, four of a crop, four of a pair. Each is a file in /dev/shm, which both
processes hold open."""
_PIPES_OF_WORKER, _OTHER_FILES = 8, 16


@dataclass(frozen=True)
class ReadFailure:
    """Why a batch could not be read, in its place.

    An exception would come from a worker as torch's text of its traceback, in which the sentence for the user is lost.
    """

    reason: str


def collate(samples: list[Any] | ReadFailure) -> Any:
    """A batch of samples; a `ReadFailure` stays as it is, and `batches` raises it."""
    return samples if isinstance(samples, ReadFailure) else join(samples)


def join(samples: Sequence[Any]) -> Any:
    """Samples as a batch, with a first axis B: tensors, tuples of what can be joined, or None, which stays None."""
    first = samples[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return type(first)(*map(join, zip(*samples, strict=True)))
    return default_collate(samples)


def in_parts(batch: Any, count: int) -> Sequence[Any]:
    """What `join` made, in ``count`` parts of its first axis."""
    if batch is None:
        return [None] * count
    if isinstance(batch, tuple):
        parts = zip(*(in_parts(values, count) for values in batch), strict=True)
        return [type(batch)(*part) for part in parts]
    return batch.chunk(count)


def to_device(batch: Any, device: torch.device) -> Any:
    """What `join` made, or a plain tuple of such, on a device; from pinned memory it is not waited for."""
    if batch is None:
        return None
    if isinstance(batch, tuple):
        moved = (to_device(values, device) for values in batch)
        return tuple(moved) if type(batch) is tuple else type(batch)(*moved)
    return batch.to(device, non_blocking=True)


def batches(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader with `collate`: samples with a first axis B.

    The loader's workers end with the iteration, however that ends.

    Raises:
        UserError: a sample could not be read, or there are too few file handles for the workers.
    """
    _check_file_handles(loader)
    others, iterator = set(multiprocessing.active_children()), None
    try:
        iterator = iter(loader)  # starts the workers; where the second cannot start, the first one is left behind
        for batch in iterator:
            if isinstance(batch, ReadFailure):
                raise UserError(batch.reason)
            yield batch
    finally:
        if loader.num_workers and iterator is not None:
            # torch does so only when nothing refers to the iterator any more; the traceback of an error does
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
            f"limit (ulimit -n 4096), or {FEWER_WORKERS}; then start again with --c"
        )
