"""The ranks of a run: one process, or as many as torchrun starts (gloo on CPU, NCCL on CUDA).

Everything here works in a run of one process, too, where it changes nothing, so the training code has one path.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretraining.system.errors import UserError, environment_errors_as_sentences
from pretraining.system.torch_errors import is_lost_rank

T = TypeVar("T")


class LostRankError(Exception):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its machine.
        local_world_size: processes on this machine.
        control: group for short messages between the hosts, on CPU also where the training's group is on GPUs.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    control: Any = None

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes the run's files and reports to the user."""
        return self.rank == 0

    def data_parallel(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the ranks in its backward pass; itself where there is one rank."""
        if self.world_size == 1:
            return network
        # all ranks compute the same buffers, so none are sent; the setting's name since torch 2.13, and before
        names = inspect.signature(DistributedDataParallel).parameters
        send_buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        return DistributedDataParallel(network, gradient_as_bucket_view=True, **{send_buffers: False})

    def all_reduce(self, values: Tensor) -> Tensor:
        """Replace a tensor by its sum over the ranks."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max_over_ranks(self, value: int) -> int:
        """The largest of the ranks' values, on all of them."""
        if self.world_size == 1:
            return value
        largest = torch.tensor([value])
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.control)
        return int(largest)

    def min_over_ranks(self, value: int) -> int:
        """The smallest of the ranks' values, on all of them."""
        return -self.max_over_ranks(-value)

    @contextmanager
    def detect_lost_ranks(self) -> Iterator[None]:
        """Raise `LostRankError` where the block fails because another process of the run has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not is_lost_rank(error):
                raise
            raise LostRankError("another process of this run has ended") from error

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, on all ranks.

        Raises:
            UserError: ``make`` did, or the machine refused it something; the other ranks get it without a text, so
                that it is reported once.
        """
        if self.world_size == 1:
            return make()
        answer: list[Any] = [None, None]
        error = None
        if self.is_rank0:
            try:
                with environment_errors_as_sentences():
                    answer = [make(), None]
            except UserError as raised:
                error, answer = raised, [None, True]
        dist.broadcast_object_list(answer, group=self.control)
        if answer[1]:
            raise error or UserError("")
        return answer[0]

    def on_all_ranks(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, called on every rank.

        Raises:
            UserError: ``make`` did on some rank, or its machine refused it something; all ranks get it, and only the
                lowest of those has the text.
        """
        if self.world_size == 1:
            return make()
        result = error = None
        try:
            with environment_errors_as_sentences():
                result = make()
        except UserError as raised:
            error = raised
        first_failed = self.min_over_ranks(self.rank if error else self.world_size)
        if first_failed < self.world_size:
            raise error if error and first_failed == self.rank else UserError("")
        return result


SINGLE_PROCESS = Processes()
"""A run of one process."""
