"""The picture of `cads_probe`: how well labels are told apart by each map of each encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretraining.probing.features import MAPS
from pretraining.system.files import atomic_path

PANELS = {"linear": "logistic regression", "knn": "nearest neighbours"}


def draw_probes(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write a PNG: a line for each encoder, over the maps from the stem to stage 4 and all of them together.

    Args:
        path: to write.
        results: as `pretraining.probe` has them, random weights first.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        keys = [*(f"{kind}_{name}" for name in MAPS), kind]
        for result in results:
            axes.plot(
                [*MAPS, "all maps"], [result[key] for key in keys], marker="o", label=Path(result["encoder"]).name
            )
        axes.axhline(results[0]["chance"], color="black", linewidth=0.8, linestyle=":")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("balanced accuracy; dotted: guessing")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
