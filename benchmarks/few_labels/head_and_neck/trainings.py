"""The fine-tunings of the benchmark, as data: which question each answers, and what it is made of."""

from collections.abc import Iterator
from dataclasses import dataclass

BUDGETS = (1, 2, 4, 8, 16)
SEEDS = 3
EPOCH = 25
"""Iterations between two changes of the rates."""
LENGTH = 1200
"""Iterations after which random weights with the largest budget are flat, as far as `CURVE` tells."""


@dataclass(frozen=True)
class Training:
    """One fine-tuning of PVT-UNet.

    Attributes:
        question: what it is for; part of its name.
        labels: number of labelled cases.
        seed: of the labelled cases, weights, order and augmentation.
        iterations: its length, a multiple of `EPOCH`.
        milestones: iterations after which some validation cases are scored, beside the end.
        encoder_lr: highest rate of the encoder.
        decoder_lr: of the decoder.
        tested: whether the test cases are scored, too; what tunes something must not look at them.
        start: ``random``, or the name of a pre-training.
    """

    question: str
    labels: int
    seed: int
    iterations: int
    milestones: tuple[int, ...]
    encoder_lr: float = 1e-3
    decoder_lr: float = 2e-3
    tested: bool = False
    start: str = "random"

    def __post_init__(self) -> None:
        for iterations in (self.iterations, *self.milestones):
            if iterations % EPOCH:
                raise ValueError(f"{iterations} iterations: lengths and milestones must be multiples of {EPOCH}")

    @property
    def name(self) -> str:
        """Names its record."""
        rates = f"{self.encoder_lr:g}_{self.decoder_lr:g}"
        return f"{self.question}__{self.start}__{self.labels}__{self.seed}__{self.iterations}__{rates}"


CURVE = (Training("curve", labels=16, seed=0, iterations=1200, milestones=(150, 300, 600, 900)),)
"""How long a training must be."""
RATES = tuple(
    Training("rates", 2, 0, 300, (150,), encoder_lr, decoder_lr)
    for encoder_lr, decoder_lr in ((1e-3, 2e-3), (5e-4, 1e-3), (2e-3, 4e-3))
)
"""Which rates suit random weights; every start is given these."""


def baselines(length: int = LENGTH, budgets: tuple[int, ...] = (1, 2, 8)) -> Iterator[Training]:
    """Random weights at half of ``length`` and at all of it, seed after seed, the fewest labels first."""
    for seed in range(SEEDS):
        for labels in budgets:
            for iterations in (length // 2, length):
                milestones = tuple(share * iterations // 4 // EPOCH * EPOCH for share in (1, 2, 3))
                yield Training("baselines", labels, seed, iterations, milestones, tested=True)


QUESTIONS = {"curve": CURVE, "rates": RATES, "baselines": tuple(baselines())}
"""In the order in which they are answered."""
