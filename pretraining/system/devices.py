"""The device of a run: which one it is, joining the ranks of torchrun, and what is set before its first operation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pretraining.system.errors import UserError
from pretraining.system.machine import core_count, keep_freed_memory
from pretraining.system.processes import SINGLE_PROCESS, Processes


def prepare_device(device: torch.device, tf32: bool = False) -> None:
    """Make ``device`` the one that everything of this process uses, and set how exactly and how fast it computes.

    Args:
        device: of the run, see `choose_device`.
        tf32: the setting. Without it, float32 keeps its 23 bits: by default, cuDNN's convolutions keep 10 of them.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type != "cuda":
        return
    if device.index is not None:  # streams and events without a device are those of the current one
        torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # shapes are the same in every step


@contextmanager
def start_processes(device: str) -> Iterator[Processes]:
    """Join the ranks that torchrun has started, or be a single process.

    Args:
        device: the setting; with "cuda", and with "auto" where there are GPUs, each rank takes one GPU.

    Raises:
        UserError: torchrun has not started this process, or this machine has too few GPUs.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield SINGLE_PROCESS
        return
    _check_environment()
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpu = _takes_gpu(device)
    if on_gpu:
        _take_gpu(local_rank, local_world_size)
    elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's own default, meant for one process per GPU
        torch.set_num_threads(max(1, core_count() // local_world_size))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(
            dist.get_rank(),
            dist.get_world_size(),
            local_rank,
            local_world_size,
            dist.new_group(backend="gloo") if on_gpu else dist.group.WORLD,
        )
    finally:
        dist.destroy_process_group()


def _check_environment() -> None:
    """Raise `UserError` unless torchrun's variables are there: some queues and images export WORLD_SIZE alone."""
    numbers = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    wrong = [name for name in numbers if not os.environ.get(name, "").isdecimal()]
    if not os.environ.get("MASTER_ADDR"):
        wrong.append("MASTER_ADDR")
    if wrong:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r} in the environment, but {', '.join(wrong)} cannot be used, so "
            "torchrun has not started this process; start it with torchrun, or unset WORLD_SIZE"
        )


def _take_gpu(local_rank: int, local_world_size: int) -> None:
    """Make the GPU of this rank the current one; where there is none, one rank of the machine reports it."""
    try:
        count = torch.cuda.device_count()
        if count >= local_world_size:
            torch.cuda.set_device(local_rank)
            return
        reason = f"PyTorch finds {count} here"
    except (RuntimeError, AssertionError) as error:
        count, reason = 0, str(error).splitlines()[0]
    fix = f"start torchrun with --nproc_per_node={count}, or" if count else "check the driver (nvidia-smi), or"
    sentence = f"{local_world_size} processes of this machine need a GPU each ({reason}); {fix} give --device cpu"
    raise UserError("" if local_rank else sentence)


def choose_device(name: str, processes: Processes = SINGLE_PROCESS) -> torch.device:
    """The device that the setting names; on GPUs, each rank of several takes that of its number.

    Raises:
        UserError: there is no such device.
    """
    try:
        if processes.world_size > 1 and _takes_gpu(name):
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


def _takes_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
