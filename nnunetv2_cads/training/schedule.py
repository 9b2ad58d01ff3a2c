"""Learning rates of fine-tuning: linear warm-up, then polynomial decay, as a pure function of the epoch.

Source: CADS method, "Downstream" (AdamW, polynomial decay); exponent 0.9 as in nnU-Net; the warm-up is ours.
nnU-Net saves no scheduler state, so nothing here remembers how often it was called.
"""

from collections.abc import Callable, Sequence

from torch.optim import Optimizer

POLY_EXPONENT = 0.9


def warmup_poly_factor(epoch: int, num_epochs: int, warmup_epochs: int, frozen_epochs: int = 0) -> float:
    """Factor on the base rate for the epochs 0 to ``num_epochs`` - 1.

    Is 0 in the frozen epochs. Over the rest it rises linearly during the warm-up, is 1 in the first epoch after it,
    then falls with (1 - t)^0.9 to its smallest, non-zero value in the last epoch.
    """
    if epoch < frozen_epochs:
        return 0.0
    epoch, num_epochs = epoch - frozen_epochs, num_epochs - frozen_epochs
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    return (1 - (epoch - warmup_epochs) / (num_epochs - warmup_epochs)) ** POLY_EXPONENT


def sawtooth_factor(epoch: int, num_epochs: int, warmup_epochs: int, first_epochs: int) -> float:
    """Factor on the base rate of a part that is trained alone at first: up and down in the first epochs, and once more,
    with all other parts, in the rest (as nnssl fine-tunes; Wald et al., 2025).

    Args:
        epoch: from 0 to ``num_epochs`` - 1.
        num_epochs: of the training.
        warmup_epochs: of each of the two curves.
        first_epochs: of the first one.
    """
    if epoch < first_epochs:
        return warmup_poly_factor(epoch, first_epochs, min(warmup_epochs, first_epochs - 1))
    return warmup_poly_factor(epoch, num_epochs, warmup_epochs, first_epochs)


class EpochSchedule:
    """Sets each parameter group's rate to its own base rate times its own ``factor(epoch)``.

    Called as nnU-Net calls its schedulers. Base rates are those the optimizer was built with: what a checkpoint
    restores into the optimizer is overwritten at the next `step`, so a resumed run has the rates of an unbroken one.
    """

    def __init__(self, optimizer: Optimizer, factors: Sequence[Callable[[int], float]]) -> None:
        self.optimizer, self.factors = optimizer, tuple(factors)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch: int) -> None:
        """Set the rates of ``epoch``."""
        for group, base_rate, factor in zip(self.optimizer.param_groups, self.base_rates, self.factors, strict=True):
            group["lr"] = base_rate * factor(epoch)
