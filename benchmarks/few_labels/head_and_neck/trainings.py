"""The fine-tunings of the benchmark, as data."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

RANDOM = "random"
TEST = "test"
"""The question that the test cases answer."""
WITH_DECODER = "+decoder"
"""Ends the name of a start that has the decoder of its pre-training, too."""
BUDGETS = (1, 2, 4, 8, 16)
SEEDS = 5
EPOCH = 25
"""Iterations between two changes of the rates."""
LENGTH = 1200
"""Iterations after which random weights with the largest budget are flat, as `TUNING`'s first one shows."""

RATES = (1e-3, 2e-3)
"""Of encoder and decoder: the better of the two of `TUNING` that are recorded so far, for random weights."""


@dataclass(frozen=True)
class Network:
    """A network from random weights.

    Attributes:
        trainer: name in `few_labels.finetune.CLASSES`.
        plans: name in `few_labels.plans.PLANS`.
    """

    trainer: str
    plans: str = "nnUNetPlans"


NETWORKS = {
    RANDOM: Network("nnUNetTrainerCADS_scratch"),
    "nnunet": Network("nnUNetTrainerNoMirroring"),
    "nnunet_adamw": Network("nnUNetTrainerAdamWNoMirroring"),
    "resenc_m": Network("nnUNetTrainerNoMirroring", "nnUNetResEncUNetMPlans"),
    "resenc_m_adamw": Network("nnUNetTrainerAdamWNoMirroring", "nnUNetResEncUNetMPlans"),
}
"""The starts that no pre-training made: PVT-UNet's random weights, and nnU-Net's default and ResEnc-M.

nnU-Net's SGD keeps its own rate, which is made for 250,000 iterations; AdamW has the rate of PVT-UNet's decoder."""
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "published_rates": {"encoder_lr": 1e-4, "initial_lr": 5e-4},
    "slow_encoder": {"encoder_lr": 1e-4},
    "decay": {"encoder_lr_decay": 0.75},
    "decay_to_deep": {"encoder_lr_decay": 1.33},
    "frozen_first": {"frozen_encoder_epochs": 3},
    "sawtooth": {"frozen_encoder_epochs": 3, "sawtooth": True},
}
"""Ways to fine-tune, as settings of `nnUNetTrainerCADS` that differ from the benchmark's; "" is its own."""
PRETRAINED = Network("nnUNetTrainerCADS")
"""The network of every other start."""


@dataclass(frozen=True)
class Training:
    """One fine-tuning.

    Attributes:
        question: what it is for; part of its name.
        start: name in `NETWORKS`, or of a pre-training, with `WITH_DECODER` or without.
        labels: number of labelled cases.
        seed: of the labelled cases, weights, order and augmentation.
        iterations: its length, a multiple of `EPOCH`.
        milestones: iterations after which some validation cases are scored, beside the end.
        encoder_lr: highest rate of the encoder.
        decoder_lr: of the decoder.
        tested: whether the test cases are scored, too; what tunes something must not look at them.
        window: HU that the network sees; None: as nnU-Net plans, which clips to the intensities of the labels.
        variant: name in `VARIANTS`.
    """

    question: str
    start: str
    labels: int
    seed: int
    iterations: int
    milestones: tuple[int, ...] = ()
    encoder_lr: float = RATES[0]
    decoder_lr: float = RATES[1]
    tested: bool = False
    window: tuple[float, float] | None = None
    variant: str = ""

    def __post_init__(self) -> None:
        for iterations in (self.iterations, *self.milestones):
            if iterations % EPOCH:
                raise ValueError(f"{iterations} iterations: lengths and milestones must be multiples of {EPOCH}")

    @property
    def network(self) -> Network:
        """What is trained."""
        return NETWORKS.get(self.start, PRETRAINED)

    @property
    def name(self) -> str:
        """Names its record."""
        window = f"__{self.window[0]:g}_{self.window[1]:g}" if self.window else ""
        rates = f"{self.encoder_lr:g}_{self.decoder_lr:g}"
        variant = f"__{self.variant}" if self.variant else ""
        return f"{self.question}__{self.start}__{self.labels}__{self.seed}__{self.iterations}__{rates}{window}{variant}"


TUNING = (
    Training("curve", RANDOM, labels=16, seed=0, iterations=LENGTH, milestones=(150, 300, 600, 900)),
    *(
        Training("rates", RANDOM, 2, 0, 300, (150,), encoder_lr, decoder_lr)
        for encoder_lr, decoder_lr in ((1e-3, 2e-3), (5e-4, 1e-3), (2e-3, 4e-3))
    ),
)
"""How long a training must be, and which rates suit random weights; every start is given these."""


def comparison(
    starts: Iterable[str],
    budgets: Iterable[int],
    seeds: Iterable[int],
    iterations: int,
    window: tuple[float, float] | None = None,
    question: str = TEST,
    rates: tuple[float, float] = RATES,
    variants: Iterable[str] = ("",),
) -> Iterator[Training]:
    """Starts side by side, seed after seed, so that pairs are complete as early as can be.

    What asks for something else than `TEST` is scored on the validation cases alone.
    """
    milestones = tuple(share * iterations // 4 // EPOCH * EPOCH for share in (1, 2, 3))
    for seed, labels, start, variant in itertools.product(seeds, budgets, starts, variants):
        yield Training(
            question, start, labels, seed, iterations, milestones, *rates,
            tested=question == TEST, window=window, variant=variant,
        )  # fmt: skip
