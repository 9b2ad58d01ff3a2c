"""What an arm gains over the baseline: paired differences, with the spread over trainings and over cases."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

DRAWS = 10_000
INTERVAL = (2.5, 97.5)
ALL = None
"""In place of an organ: the mean over all organs of each case."""

Scores = dict[tuple[str, int], dict[int, dict[str, float]]]
"""By arm and budget, then by seed: the score of each case."""


@dataclass(frozen=True)
class Gain:
    """Of an arm at a budget over the baseline, on the seeds that both have; in points (hundredths).

    Attributes:
        arm: its name.
        budget: number of labelled cases.
        mean: of the arm.
        gain: mean of the differences.
        low: lower end of its 95% interval.
        high: upper end.
        seeds_ahead: on how many seeds the gain is above 0.
        seeds: their number.
        cases: number of held-out cases.
        patients: number of held-out patients.
    """

    arm: str
    budget: int
    mean: float
    gain: float
    low: float
    high: float
    seeds_ahead: int
    seeds: int
    cases: int
    patients: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out, and there is more than one seed and more than one patient."""
        return self.seeds > 1 and self.patients > 1 and (self.low > 0 or self.high < 0)

    @property
    def span(self) -> str:
        """The interval in a table; empty for one seed, whose spread nobody knows."""
        return f"{self.low:+.1f} to {self.high:+.1f}" if self.seeds > 1 else ""


def case_scores(results: Iterable[dict[str, Any]], metric: str, organ: str | None = ALL) -> Scores:
    """Scores by arm, budget, seed and case, in [0, 1].

    Args:
        results: of trainings, as `comparison.training` writes them.
        metric: ``dice`` or ``nsd``.
        organ: its name, or `ALL`. An organ does not count in the cases whose truth lacks it.
    """
    scores: Scores = defaultdict(dict)
    for result in results:
        values = defaultdict(list)
        for row in result["scores"]:
            if row[metric] is not None and organ in (ALL, row["organ"]):
                values[row["case"]].append(row[metric])
        means = {case: float(np.mean(of_case)) for case, of_case in values.items()}
        scores[result["arm"], result["budget"]][result["seed"]] = means
    return scores


def mean_and_sd(scores: Scores, arm: str, budget: int) -> tuple[float, float] | None:
    """Of an arm at a budget: mean over the seeds' means, and their standard deviation, NaN for one seed; None where
    nothing is scored."""
    means = [np.mean(list(cases.values())) for cases in scores.get((arm, budget), {}).values() if cases]
    if not means:
        return None
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


def gain_over(
    scores: Scores, baseline: str, arm: str, budget: int, patients: Mapping[str, str] | None = None
) -> Gain | None:
    """The gain of an arm, on the seeds and cases that it and the baseline have both; None where there are none.

    Args:
        scores: of `case_scores`.
        baseline: the arm that it is compared with.
        arm: name.
        budget: number of labelled cases.
        patients: patient by case; None: every case is a patient.
    """
    ours, theirs = scores.get((arm, budget), {}), scores.get((baseline, budget), {})
    seeds = sorted(ours.keys() & theirs.keys())
    cases = sorted(set.intersection(*(set(of[seed]) for of in (ours, theirs) for seed in seeds))) if seeds else []
    if not cases:
        return None
    table, other = (np.array([[of[seed][case] for case in cases] for seed in seeds]) for of in (ours, theirs))
    differences = 100 * (table - other)
    ahead = int((differences.mean(1) > 0).sum())
    patient_of = [patients[case] if patients else case for case in cases]
    means = 100 * float(table.mean()), float(differences.mean()), *interval(differences, patient_of)
    return Gain(arm, budget, *means, ahead, len(seeds), len(cases), len(set(patient_of)))


def interval(differences: np.ndarray, patients: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """95% of the mean of ``differences`` (seeds, cases): of three intervals the widest end, each way.

    One draws seeds and patients anew, a patient with all cases. The cases are the same for all seeds, so the draws of
    both cross: neither the cases of one training nor the trainings of one case count as independent (Owen, The
    pigeonhole bootstrap, 2007). With few seeds or patients that is too narrow, three of them having ten different
    draws; the others are Student's, of the seeds' means and of the patients' shares in the mean.

    Args:
        differences: of each training and case.
        patients: of each case; None: every case is a patient.
    """
    seeds, cases = differences.shape
    _, group = np.unique(np.arange(cases) if patients is None else np.array(patients), return_inverse=True)
    count, mean, rng = group.max() + 1, differences.mean(), np.random.default_rng(0)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    of_cases = rng.multinomial(count, np.full(count, 1 / count), DRAWS)[:, group].astype(float)
    of_cases /= of_cases.sum(1, keepdims=True)
    low, high = np.percentile(np.einsum("ds,sc,dc->d", of_seeds, differences, of_cases), INTERVAL)
    shares_of_patients = np.bincount(group, (differences.mean(0) - mean) / cases)  # a patient with more cases has more
    for shares in ((differences.mean(1) - mean) / seeds, shares_of_patients):
        if (n := len(shares)) > 1:
            reach = stats.t.ppf(INTERVAL[1] / 100, n - 1) * np.sqrt(n / (n - 1) * (shares**2).sum())
            low, high = min(low, mean - reach), max(high, mean + reach)
    return float(low), float(high)


def sentence(gain: Gain) -> str:
    """A gain in plain words."""
    cases = f"{gain.budget} labelled case{'s' * (gain.budget > 1)}"
    interval_text = f"95% interval {gain.low:.1f} to {gain.high:.1f}"
    tested = f"{gain.seeds} seed{'s' * (gain.seeds > 1)}, {gain.cases} test case{'s' * (gain.cases > 1)}"
    if gain.patients < gain.cases:
        tested += f" of {gain.patients} patient{'s' * (gain.patients > 1)}"
    if gain.seeds == 1:
        return (
            f"With {cases}, {gain.arm} is {gain.gain:+.1f} points of Dice from the baseline in one pair of trainings "
            f"({tested}); another pair may say something else."
        )
    ahead = f"ahead on {gain.seeds_ahead} of {tested}"
    verb = "shows no clear gain:"
    if gain.is_clear:
        verb = "gains" if gain.gain > 0 else "loses"
    points = f"{abs(gain.gain):.1f}" if gain.is_clear else f"{gain.gain:+.1f}"
    return f"With {cases}, {gain.arm} {verb} {points} points of Dice ({interval_text}; {ahead})."
