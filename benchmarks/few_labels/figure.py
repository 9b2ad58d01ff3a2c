"""A study's figure: Dice over label budgets, and Dice while training."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from few_labels.results import Runs
from few_labels.scores import scores_of
from few_labels.tasks import TORSOS
from nnunetv2_cads.comparison.gains import mean_and_sd
from pretraining.system.files import atomic_path


@dataclass(frozen=True)
class Line:
    """What is drawn of an arm.

    Attributes:
        by_budget: labelled cases, mean Dice, and its standard deviation over the seeds.
        by_iteration: iteration and mean Dice, of the trainings with as many labelled cases as the axis says.
    """

    by_budget: list[tuple[int, float, float]]
    by_iteration: list[tuple[int, float]]


def draw(path: Path, lines: Mapping[str, Line], held_out: str, budget: int) -> None:
    """Write a PNG.

    Args:
        path: of the PNG.
        lines: by name.
        held_out: what the test cases are, for the left axis.
        budget: labelled cases of the trainings in the right half.
    """
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (name, line) in enumerate(lines.items()):
        look = {"marker": "o", "color": f"C{number}", "label": name}
        budgets, means, spread = zip(*line.by_budget, strict=True)
        left.errorbar(budgets, means, np.nan_to_num(spread), capsize=3, **look)
        if line.by_iteration:
            right.plot(*zip(*line.by_iteration, strict=True), **look)
    budgets = sorted({n for line in lines.values() for n, _, _ in line.by_budget})
    left.set(xscale="log", xlabel="labelled cases", ylabel=f"mean Dice, held-out {held_out}")
    left.set_xticks(budgets, [str(n) for n in budgets])
    left.minorticks_off()
    right.set(xlabel="iteration", ylabel=f"mean Dice, {budget} labelled", title="a few held-out cases")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def mean_curve(curves: list[list[dict[str, float]]]) -> list[tuple[int, float]]:
    """Milestones of several trainings of one length -> iteration and mean Dice."""
    return [
        (points[0]["iteration"], float(np.mean([p["dice"] for p in points]))) for points in zip(*curves, strict=True)
    ]


def lines_of_torsos(runs: Runs, arms: Iterable[str], budgets: list[int]) -> dict[str, Line]:
    """A line for each arm that was trained on the torsos."""
    scores, lines = scores_of(runs, TORSOS), {}
    for arm in arms:
        means = [(n, *found) for n in budgets if (found := mean_and_sd(scores, arm, n))]
        curves = [r["milestones"] for r in runs if (r["task"], r["arm"], r["labels"]) == (TORSOS, arm, budgets[0])]
        if means:
            lines[arm] = Line(means, mean_curve(curves))
    return lines
