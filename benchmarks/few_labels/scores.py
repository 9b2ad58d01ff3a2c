"""Scores, and gains with intervals, of the study's fine-tunings."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from nnunetv2_cads.comparison.gains import Scores, case_scores, gain_over


def scores_of(runs: Iterable[dict[str, Any]], task: str, metric: str = "dice") -> Scores:
    """Means over the organs, by arm and number of labels, seed and case."""
    return case_scores(({**run, "budget": run["labels"]} for run in runs if run["task"] == task), metric)


def difference(scores: Scores, arm: str, other: str, labels: int) -> str:
    """An arm less another at a label budget, in points, with its 95% interval where there are several seeds; empty
    where they have no seed in common."""
    gain = gain_over(scores, other, arm, labels)
    if gain is None:
        return ""
    return f"{gain.gain:+.1f}{f' ({gain.span})' if gain.span else ''}"


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
