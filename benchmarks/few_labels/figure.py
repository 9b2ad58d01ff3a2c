"""The study's figure: Dice over label budgets, and Dice while training."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from few_labels.results import Runs, records_of
from few_labels.scores import case_scores, mean_and_sd
from few_labels.tasks import TORSOS


def draw(path: Path, runs: Runs, arms: Iterable[str], budgets: list[int]) -> None:
    """Write a PNG: left, mean Dice of the torsos by label budget; right, Dice at the milestones with fewest labels."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    by_budget, by_iteration = figure.subplots(1, 2)
    scores = case_scores(records_of(runs), TORSOS)
    for number, arm in enumerate(arms):
        color = f"C{number}"
        points = [(n, found) for n in budgets if (found := mean_and_sd(scores, arm, n))]
        if not points:
            continue
        spread = np.nan_to_num([sd for _, (_, sd) in points])
        by_budget.errorbar(
            [n for n, _ in points], [mean for _, (mean, _) in points], spread,
            marker="o", capsize=3, label=arm, color=color,
        )  # fmt: skip
        curves = [r["milestones"] for r in runs if (r["task"], r["arm"], r["labels"]) == (TORSOS, arm, budgets[0])]
        if curves and curves[0]:
            steps = [point["iteration"] for point in curves[0]]
            mean = np.mean([[point["dice"] for point in curve] for curve in curves], axis=0)
            by_iteration.plot(steps, mean, marker="o", label=arm, color=color)
    by_budget.set(xscale="log", xlabel="labelled cases", ylabel="mean Dice, held-out torsos")
    by_budget.set_xticks(budgets, [str(n) for n in budgets])
    by_budget.minorticks_off()
    by_iteration.set(xlabel="iteration", ylabel=f"mean Dice, {budgets[0]} labelled", title="a few held-out cases")
    for axes in (by_budget, by_iteration):
        axes.grid(alpha=0.3)
    figure.legend(*by_budget.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=90)
