"""What is set in PyTorch before a run's first operation on its device."""

import torch

from pretraining.memory import keep_freed_memory


def prepare_device(device: torch.device, amp: str) -> None:
    """Make ``device`` the one that everything of this process uses, and set how exactly and how fast it computes.

    Args:
        device: of the run, see `pretraining.distributed.choose_device`.
        amp: the setting; with "none", float32 is float32: by default, cuDNN's convolutions keep 10 bits of 23.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type != "cuda":
        return
    if device.index is not None:  # streams and events without a device are those of the current one
        torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = amp != "none"
    torch.backends.cudnn.benchmark = True  # shapes are the same in every step
