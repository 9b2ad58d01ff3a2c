"""Predicates that choose the CPU fast path (eager, float32, no autocast), and its channels-last layout."""

import torch
from torch import Tensor

from nnunetv2_cads.network_architecture.ops.dimensions import OPERATORS


def is_eager_float32_on_cpu(x: Tensor) -> bool:
    """Whether x is float32 on a CPU, outside of autocast and torch.compile."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def is_autocast_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU and under autocast, where convolutions round their operands."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def channels_last(x: Tensor) -> Tensor:
    """(B, C, [D,] H, W) in channels-last layout; copied only if it is not yet."""
    return x.contiguous(memory_format=OPERATORS[x.dim() - 2].channels_last)
