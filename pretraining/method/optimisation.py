"""Parameter groups and gradient clipping of pre-training (CADS method, section 5)."""

from collections.abc import Iterable

import torch
from torch import nn

from pretraining.method.schedules import Rates

GROUP_SETTINGS = ("params", "decayed", "lr", "weight_decay", "betas", "eps")
"""What a run sets in each group of AdamW; PyTorch's versions differ in what else a group holds."""


def parameter_groups(model: nn.Module) -> list[dict]:
    """Two AdamW groups: tensors with weight decay (``decayed``), and biases and 1-D tensors without."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.dim() == 1 else decayed).append(parameter)
    return [{"params": decayed, "decayed": True}, {"params": plain, "decayed": False, "weight_decay": 0.0}]


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Give the groups of `parameter_groups` the learning rate and weight decay of a step."""
    for group in optimizer.param_groups:
        group["lr"] = rates.lr
        group["weight_decay"] = rates.weight_decay if group["decayed"] else 0.0


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale each tensor's gradient to a norm of at most ``max_norm``, on its own; 0 leaves the gradients alone.

    All norms are taken in one go and never leave the device, so a GPU is not made to wait.

    Returns:
        (number of gradients,) norms before clipping.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    if max_norm > 0:
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
    return norms
