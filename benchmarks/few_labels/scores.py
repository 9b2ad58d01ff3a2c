"""Scores of cases, means over seeds, and paired differences between arms."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Records = list[dict[str, Any]]
"""One row per task, arm, label budget, seed, case and organ, with Dice and normalised surface Dice."""


def case_scores(records: Iterable[dict[str, Any]], task: str, metric: str = "dice") -> dict[tuple, float]:
    """Mean over the organs, by (arm, labels, seed, case); organs that are nowhere (NaN) do not count."""
    values = defaultdict(list)
    for row in records:
        if row["task"] == task and row[metric] is not None and not math.isnan(row[metric]):
            values[row["arm"], row["labels"], row["seed"], row["case"]].append(row[metric])
    return {key: float(np.mean(scores)) for key, scores in values.items()}


def mean_and_sd(scores: dict[tuple, float], arm: str, labels: int) -> tuple[float, float] | None:
    """Of an arm at a label budget: mean over the cases and seeds, standard deviation of the seeds' means."""
    by_seed = defaultdict(list)
    for (of_arm, of_labels, seed, _), value in scores.items():
        if (of_arm, of_labels) == (arm, labels):
            by_seed[seed].append(value)
    if not by_seed:
        return None
    means = [np.mean(values) for values in by_seed.values()]
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


class Difference(NamedTuple):
    """Between two arms, over what both have of cases and seeds.

    Attributes:
        mean: of the pairs.
        sd: standard deviation of the seeds' means; NaN for one seed. Cases share a training, so this, not ``p``, says
            what another three seeds would give.
        p: Wilcoxon's, two-sided, of the pairs.
        pairs: their number.
    """

    mean: float
    sd: float
    p: float
    pairs: int

    def __str__(self) -> str:
        spread = "" if math.isnan(self.sd) else f" ± {100 * self.sd:.1f}"
        return f"{100 * self.mean:+.1f}{spread} (p = {self.p:.2g}, n = {self.pairs})"


def paired(scores: dict[tuple, float], arm: str, other: str, labels: int) -> Difference | None:
    """The scores of ``arm`` less those of ``other`` at a label budget; None where there are no pairs."""
    by_seed = defaultdict(list)
    for key, value in scores.items():
        if key[0] == arm and key[1] == labels and (other, *key[1:]) in scores:
            by_seed[key[2]].append(value - scores[(other, *key[1:])])
    if not by_seed:
        return None
    differences, means = np.concatenate(list(by_seed.values())), [np.mean(values) for values in by_seed.values()]
    sd = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    p = float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0
    return Difference(float(differences.mean()), sd, p, len(differences))


def iterations_to_reach(runs: list[dict[str, Any]], task: str, arm: str, goal: str, labels: int) -> str:
    """The first milestone at which the mean of an arm's runs is at the mean of the last milestone of ``goal``."""
    curves = {
        name: [r["milestones"] for r in runs if (r["task"], r["arm"], r["labels"]) == (task, name, labels)]
        for name in (arm, goal)
    }
    if not all(found and all(found) for found in curves.values()):
        return "not measured"
    target = np.mean([curve[-1]["dice"] for curve in curves[goal]])
    for step in zip(*curves[arm], strict=True):
        if np.mean([point["dice"] for point in step]) >= target:
            return f"{step[0]['iteration']} of {curves[goal][0][-1]['iteration']}"
    return f"not within {curves[arm][0][-1]['iteration']}"
