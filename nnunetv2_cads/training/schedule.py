"""Learning rates of fine-tuning: linear warm-up, then polynomial decay, as a pure function of the epoch.

Source: CADS method, "Downstream" (AdamW, polynomial decay); exponent 0.9 as in nnU-Net; the warm-up is ours.
nnU-Net saves no scheduler state, so nothing here remembers how often it was called.
"""

from collections.abc import Callable

from torch.optim import Optimizer

POLY_EXPONENT = 0.9


def warmup_poly_factor(epoch: int, num_epochs: int, warmup_epochs: int) -> float:
    """Factor on the base rate, in (0, 1], for the epochs 0 to ``num_epochs`` - 1.

    Rises linearly over the warm-up, is 1 in the first epoch after it, then falls with
    (1 - t)^0.9 to its smallest, non-zero value in the last epoch.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    return (1 - (epoch - warmup_epochs) / (num_epochs - warmup_epochs)) ** POLY_EXPONENT


class EpochSchedule:
    """Sets each parameter group's rate to its own base rate times ``factor(epoch)``.

    Called as nnU-Net calls its schedulers. Base rates are those the optimizer was built with: what a checkpoint
    restores into the optimizer is overwritten at the next `step`, so a resumed run has the rates of an unbroken one.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer, self.factor = optimizer, factor
        self.base_rates = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the rates of ``epoch``."""
        factor = self.factor(epoch)
        for group, base_rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base_rate * factor
