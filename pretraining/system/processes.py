"""The processes of a run: one, or as many as torchrun starts (gloo on CPU, NCCL on CUDA).

Every function works in a run of one process, too, where it changes nothing, so the training code has one path.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretraining.system.errors import UserError, environment_errors_as_sentences
from pretraining.system.torch_errors import tells_of_lost_process

T = TypeVar("T")


class LostProcessError(Exception):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine.
        local_size: processes on this machine.
        control: group for short messages between the hosts, on CPU also where the training's group is on GPUs.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files and speaks to the user."""
        return self.rank == 0

    def sum_(self, values: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: int) -> int:
        """The largest of the processes' flags, known to all of them."""
        if self.size == 1:
            return flag
        largest = torch.tensor([flag])
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return int(largest)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn what happens when another process of the run has ended into a `LostProcessError`."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not tells_of_lost_process(error):
                raise
            raise LostProcessError("another process of this run has ended") from error

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process, in all of them.

        Raises:
            UserError: ``make`` did, or the machine refused it something; the other processes get it without a text,
                so that one of them speaks.
        """
        if self.size == 1:
            return make()
        answer: list[Any] = [None, None]
        error = None
        if self.is_first:
            try:
                with environment_errors_as_sentences():
                    answer = [make(), None]
            except UserError as raised:
                error, answer = raised, [None, True]
        dist.broadcast_object_list(answer, group=self.control)
        if answer[1]:
            raise error or UserError("")
        return answer[0]

    def in_all(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, called in every process.

        Raises:
            UserError: ``make`` did in some process, or its machine refused it something; all processes get it, and
                only the first of those has the text.
        """
        if self.size == 1:
            return make()
        result = error = None
        try:
            with environment_errors_as_sentences():
                result = make()
        except UserError as raised:
            error = raised
        speaker = self.any(self.size - self.rank if error else 0)
        if speaker:
            raise error if error and speaker == self.size - self.rank else UserError("")
        return result


ALONE = Processes()
"""A run of one process."""
