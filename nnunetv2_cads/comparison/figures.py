"""The figures of a report: Dice by labelled cases, gains with their intervals, learning curves."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from nnunetv2_cads.comparison.gains import Gain, Scores

WIDTH, HEIGHT = 5.2, 3.6  # inches


def dice_by_budget(scores: Scores, arms: Sequence[str]) -> bytes:
    """SVG: mean Dice of the held-out cases by number of labelled cases; a small point for each training."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        budgets = sorted({budget for _, budget in scores})
        for number, arm in enumerate(arms):
            found = [n for n in budgets if scores.get((arm, n))]
            means = [[np.mean(list(cases.values())) for cases in scores[arm, n].values()] for n in found]
            axes.plot(found, [np.mean(of_seeds) for of_seeds in means], marker="o", color=f"C{number}", label=arm)
            for n, of_seeds in zip(found, means, strict=True):
                axes.plot([n] * len(of_seeds), of_seeds, ".", color=f"C{number}", alpha=0.4)
        axes.set(xscale="log", xlabel="labelled cases", ylabel="mean Dice of the test cases")
        axes.set_xticks(budgets, [str(n) for n in budgets])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return _svg(draw, HEIGHT)


def gains_with_intervals(gains: Sequence[Gain], arms: Sequence[str]) -> bytes:
    """SVG: a line for each gain, with its 95% interval; 0 is the baseline."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, gain in enumerate(reversed(gains)):
            colour = f"C{arms.index(gain.arm)}"
            if gain.seeds > 1:
                axes.plot([gain.low, gain.high], [place, place], color=colour)
            axes.plot(gain.gain, place, "o", color=colour)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(gains)), [f"{gain.arm}, {gain.budget} labelled" for gain in reversed(gains)])
        axes.set(xlabel="gain in points of Dice, 95% interval")
        axes.grid(alpha=0.3, axis="x")

    return _svg(draw, 1.2 + 0.28 * len(gains))


def learning_curves(results: Sequence[dict[str, Any]], arms: Sequence[str], budget: int) -> bytes:
    """SVG: Dice of patches of the test cases by epoch, mean over the seeds, at one budget."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, arm in enumerate(arms):
            curves = [r["curve"]["patch_dice"] for r in results if (r["arm"], r["budget"]) == (arm, budget)]
            if curves:
                table = np.array(curves, dtype=float)  # None becomes NaN
                shown = ~np.isnan(table).all(0)
                epochs = np.arange(1, table.shape[1] + 1)
                axes.plot(epochs[shown], np.nanmean(table[:, shown], 0), ".-", color=f"C{number}", label=arm)
        axes.set(xlabel="epoch", ylabel="Dice of patches", title=f"{budget} labelled")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return _svg(draw, HEIGHT)


def _svg(draw: Callable[[Figure], None], height: float) -> bytes:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    draw(figure)
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
