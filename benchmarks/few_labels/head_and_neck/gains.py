"""What a start adds to random weights; its interval does not count the cases of one training as independent."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from few_labels.head_and_neck.data import TASK
from few_labels.head_and_neck.trainings import RANDOM
from nnunetv2_cads.comparison.gains import Gain as ArmGain
from nnunetv2_cads.comparison.gains import case_scores, gain_over

BEST = "best"


@dataclass(frozen=True)
class Gain:
    """Of a start at a budget, over the seeds that it and random weights have both; in points of Dice.

    Attributes:
        task: name.
        start: name of the pre-training.
        window: HU that the network sees; None: as nnU-Net plans.
        iterations: length of the fine-tunings.
        labels: budget.
        mean: Dice of the start.
        gain: over random weights.
        low: lower end of the gain's 95% interval.
        high: its upper end.
        seeds_ahead: on how many seeds the gain is above 0.
        seeds: their number.
    """

    task: str
    start: str
    window: tuple[float, float] | None
    iterations: int
    labels: int
    mean: float
    gain: float
    low: float
    high: float
    seeds_ahead: int
    seeds: int


def gains(runs: Iterable[dict[str, Any]]) -> list[Gain]:
    """Of all starts, windows, lengths and budgets among the records of tested trainings."""
    scores: dict[tuple, dict[int, dict[str, float]]] = defaultdict(dict)
    for run in runs:
        rates = run["encoder_lr"], run["decoder_lr"]
        key = run["start"], tuple(run["window"] or ()), run["iterations"], run["labels"], rates, run.get("variant", "")
        scores[key][run["seed"]] = case_means(run["test"])
    found = []
    for (start, *setting), by_seed in sorted(scores.items()):
        window, iterations, labels, *_ = setting
        pair = {(start, labels): by_seed, (RANDOM, labels): scores.get((RANDOM, *setting), {})}
        gain = gain_over(pair, RANDOM, start, labels)
        if start == RANDOM or gain is None:
            continue
        numbers = gain.mean, gain.gain, gain.low, gain.high, gain.seeds_ahead, gain.seeds
        found.append(Gain(TASK, start, window or None, iterations, labels, *numbers))
    return found


def variant_gains(runs: Iterable[dict[str, Any]]) -> list[tuple[str, ArmGain]]:
    """Of all ways to fine-tune a start, over the benchmark's own way from the same start, on the validation cases.

    Returns:
        Name of the start, and the gain, whose ``arm`` is the name of the variant.
    """
    of_setting: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        rates = run["encoder_lr"], run["decoder_lr"]
        setting = run["start"], tuple(run["window"] or ()), run["iterations"], run["labels"], rates
        training = {"arm": run.get("variant", ""), "budget": run["labels"], "scores": run["validation"]}
        of_setting[setting].append(run | training)
    return [
        (setting[0], gain)
        for setting, trainings in sorted(of_setting.items())
        for scores in [case_scores(trainings, "dice")]
        for variant, labels in sorted(scores)
        if variant and (gain := gain_over(scores, "", variant, labels))
    ]


def case_means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean Dice over the organs of each case."""
    values = defaultdict(list)
    for row in rows:
        values[row["case"]].append(row["dice"])
    return {case: float(np.mean(of_case)) for case, of_case in values.items()}


def summary(found: Iterable[Gain]) -> list[dict[str, Any]]:
    """As plain rows, numbers to two digits; ``start`` of the one that gains most, over its budgets, is `BEST`."""
    of_start = defaultdict(list)
    for gain in (found := list(found)):
        of_start[gain.start].append(gain.gain)
    best = max(of_start, key=lambda start: np.mean(of_start[start]), default=None)
    rows = [{k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(gain).items()} for gain in found]
    return [
        row | {"start": BEST if row["start"] == best else row["start"], "pretraining": row["start"]} for row in rows
    ]
