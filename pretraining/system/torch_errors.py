"""Errors of PyTorch that have no type of their own, told by their text, and the sentences for them."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pretraining.system.errors import UserError

_NO_MEMORY = re.compile(
    rf"DefaultCPUAllocator|allocate memory|bad_alloc|{os.strerror(errno.ENOMEM)}"
    "|could not create a (memory|primitive(?! desc))"  # oneDNN; "descriptor" follows where it cannot do what is asked
)
"""What the errors of PyTorch's allocators and of the libraries under it say."""


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


def tells_of_lost_process(error: RuntimeError) -> bool:
    """Whether an error comes from torch.distributed: its backends raise types of their own only in part."""
    told = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in told for word in ("connection", "gloo", "nccl", "peer"))
