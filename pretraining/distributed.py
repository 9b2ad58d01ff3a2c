"""The processes of a run: one, or as many as torchrun starts (gloo on CPU, NCCL on CUDA).

Every function works in a run of one process, too, where it changes nothing, so the training code has one path.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.data.cores import core_count
from pretraining.errors import UserError, environment_errors_as_sentences

T = TypeVar("T")

_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets beside WORLD_SIZE."""


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
            if self.size == 1 or not _tells_of_lost_process(error):
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


@contextmanager
def start_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun has started, or be the only one.

    Args:
        device: the setting; "cuda" or "auto" where there are GPUs take one GPU per process.

    Raises:
        UserError: torchrun has not started this process, or this machine has too few GPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    _check_environment()
    rank, size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = _takes_gpu(device)
    if on_gpu:
        _take_gpu(rank, size)
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's own default, meant for one process per GPU
        torch.set_num_threads(max(1, core_count() // size))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(
            dist.get_rank(),
            dist.get_world_size(),
            rank,
            size,
            dist.new_group(backend="gloo") if on_gpu else dist.group.WORLD,
        )
    finally:
        dist.destroy_process_group()


def _check_environment() -> None:
    """Raise `UserError` unless torchrun's variables are there: some queues and images export WORLD_SIZE alone."""
    numbers = ("WORLD_SIZE", *(name for name in _OF_TORCHRUN if name != "MASTER_ADDR"))
    wrong = [name for name in numbers if not os.environ.get(name, "").isdecimal()]
    wrong += ["MASTER_ADDR"] * (not os.environ.get("MASTER_ADDR"))
    if wrong:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r} in the environment, but {', '.join(wrong)} cannot be used, so "
            "torchrun has not started this process; start it with torchrun, or unset WORLD_SIZE"
        )


def _take_gpu(local_rank: int, local_size: int) -> None:
    """Make the GPU of this process's number the current one; one process of the machine speaks where there is none."""
    try:
        count = torch.cuda.device_count()
        if count >= local_size:
            torch.cuda.set_device(local_rank)
            return
        reason = f"PyTorch finds {count} here"
    except (RuntimeError, AssertionError) as error:
        count, reason = 0, str(error).splitlines()[0]
    remedy = f"start torchrun with --nproc_per_node={count}, or" if count else "check the driver (nvidia-smi), or"
    sentence = f"{local_size} processes of this machine need a GPU each ({reason}); {remedy} give --device cpu"
    raise UserError("" if local_rank else sentence)


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """The device that the setting names; each process of a run on GPUs takes that of its number.

    Raises:
        UserError: there is no such device.
    """
    try:
        if processes.size > 1 and _takes_gpu(name):
            device = torch.device("cuda", processes.local_rank)
        else:
            device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:  # lists every device that PyTorch was ever built for
        raise UserError(f"device '{name}' is unknown; use cpu, cuda or auto") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device '{name}' cannot be used ({reason}); use cpu, cuda or auto") from error
    return device


def check_shares(config: PretrainConfig, processes: Processes) -> None:
    """Raise `UserError` unless every process can take its batch in equal parts."""
    size, accumulate = processes.size, config.run.accumulate
    parts = size * accumulate
    if config.optim.batch_size % parts:
        among = f"{size} processes" * (size > 1) + " with " * (size > 1 < accumulate)
        among += f"--accumulate {accumulate}" * (accumulate > 1)
        raise UserError(
            f"batch_size {config.optim.batch_size} cannot be divided by {among}; choose a multiple of {parts}"
        )


def _takes_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _tells_of_lost_process(error: RuntimeError) -> bool:
    """Whether an error comes from torch.distributed: its backends raise types of their own only in part."""
    told = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in told for word in ("connection", "gloo", "nccl", "peer"))
