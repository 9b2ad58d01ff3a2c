"""Where the exact rewritings for the CPU apply, and the layout that they work on."""

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_eager_float32_on_cpu(x: Tensor) -> bool:
    """Whether x is computed with in float32 on a CPU, operator by operator: no autocast, no torch.compile."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def is_autocast_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU and convolutions round their operands."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def channels_last(x: Tensor) -> Tensor:
    """(B, C, [D,] H, W) with the channels' numbers side by side; copied only where they are not yet."""
    return x.contiguous(memory_format=_CHANNELS_LAST[x.dim()])
