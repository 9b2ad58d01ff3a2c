"""The pictures of a run: its curves, what it makes of some crops to restore, and where it finds points.

Imported with the first picture: matplotlib takes half a second to load. Margins are given, not fitted to the text by
a layout, which would draw everything twice.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.system.files import atomic_path
from pretraining.views.point_pairs import PointPair


def plot_progress(lines: Iterable[dict[str, Any]], config: PretrainConfig, path: Path) -> None:
    """Draw loss, health and learning rate over the steps; a loss that stays at chance means collapse.

    What the run has not, its lines have not, and no panel shows; runs begun by earlier versions lack some, too.
    """
    lines = list(lines)
    if not lines:
        return
    steps, chance = [line["step"] for line in lines], math.log(config.model.head_out_dim)

    def curve(axes: Axes, name: str, label: str, style: str = "-", scale: float = 1.0) -> None:
        if name in lines[-1]:
            values = np.array([math.nan if line.get(name) is None else scale * line[name] for line in lines])
            known = np.pad(np.isfinite(values), 1)
            alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:]).tolist()  # no line would show these
            width = 0.8 if name.startswith("loss_stage") else 1.5
            axes.plot(steps, values, style, marker="o" if alone else "", markevery=alone, lw=width, label=label)

    distils = "mutual_information" in lines[-1]
    panels = ["loss", *(["restoration"] if "loss_restoration" in lines[-1] else [])]
    levels = [name for name in lines[-1] if name.startswith("points_found_")]
    panels += ["points"] if levels else []
    panels += [*(["health", "rank"] if distils else []), "gradient", "rate"]
    figure = Figure(figsize=(10, 2.6 * len(panels)))
    FigureCanvasAgg(figure)
    axes = dict(zip(panels, figure.subplots(len(panels), 1, sharex=True), strict=True))
    figure.subplots_adjust(0.09, 0.2 / len(panels), 0.98, 1 - 0.05 / len(panels), hspace=0.1)
    curve(axes["loss"], "loss", "total", "k")  # first, so that a loss that is all of it is seen on it
    for stage in range(1, 5):
        curve(axes["loss"], f"loss_stage{stage}", f"stage {stage}")
    curve(axes["loss"], "loss_tokens", "places of crops", "--")
    curve(axes["loss"], "loss_rays", "places of X-rays", ":")
    if levels:
        axes["loss"].axhline(
            math.log(count := config.point.point_count), color="grey", ls=":", label=f"chance: ln {count}"
        )
        curve(axes["loss"], "loss_points", "points", "-.")
    if distils:
        axes["loss"].axhline(chance, color="grey", ls="--", label=f"chance: ln {config.model.head_out_dim}")
        curve(axes["health"], "teacher_entropy", "teacher entropy / ln K", scale=1 / chance)
        curve(axes["health"], "mutual_information", "mutual information (nats)")
        curve(axes["health"], "view_agreement", "agreement of the views")
        curve(axes["health"], "feature_spread", "spread of the features")
        curve(axes["rank"], "feature_rank", "effective rank of the features")
    if "restoration" in axes:
        curve(axes["restoration"], "loss_restoration", "restoration")
    for name in levels:
        curve(axes["points"], name, f"found by {name.removeprefix('points_found_')}")
    curve(axes["gradient"], "gradient_norm", "norm of the gradient before clipping")
    axes["gradient"].set_yscale("log")
    curve(axes["rate"], "lr", "learning rate")
    axes["rate"].set_xlabel("step")
    for name, panel in axes.items():
        panel.set_ylabel(name)
        panel.legend(fontsize="small")
        panel.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def plot_restored(seen: Tensor, restored: Tensor, truth: Tensor, limit: float, path: Path) -> None:
    """Draw the middle slices of crops: what the student saw, what it made of it, the truth; a crop in each row.

    Args:
        seen: (B, 1, D, H, W), as the other two in units of the window.
        restored: by the student.
        truth: of the scans.
        limit: the window's end in these units; its other end is the negative of it.
        path: of the picture.
    """
    with _grid(["seen", "restored", "truth"], len(seen), path) as grid:
        for row, axes_of_row in enumerate(grid):
            for axes, crops in zip(axes_of_row, (seen, restored, truth), strict=True):
                axes.imshow(crops[row, 0, crops.shape[2] // 2], cmap="gray", vmin=-limit, vmax=limit)


def plot_points(pair: PointPair, levels: Sequence[str], similarity: Tensor, path: Path) -> None:
    """Draw a point in crop 1 and where in crop 2 each level finds it; a pair in each row.

    Args:
        pair: with one point each, (B, 1, 3).
        levels: names of the levels.
        similarity: cosines (L, B, H, W) of the point and the voxels of its slice of crop 2.
        path: of the picture.
    """
    with _grid(["a point", "in the other crop", *levels], len(pair.crop_1), path) as grid:
        for row, axes_of_row in enumerate(grid):
            ones = (pair.crop_1[row, 0], pair.points_1[row, 0]), (pair.crop_2[row, 0], pair.points_2[row, 0])
            for axes, (crop, (z, _, _)) in zip(axes_of_row, ones, strict=False):
                axes.imshow(crop[round(z.item())], cmap="gray", vmin=-1, vmax=1)
            for axes, cosines in zip(axes_of_row[len(ones) :], similarity[:, row], strict=True):
                axes.imshow(cosines, cmap="viridis", vmin=-1, vmax=1)
            for number, axes in enumerate(axes_of_row):
                _, y, x = ones[min(number, 1)][1]
                axes.plot(x, y, "r+", ms=12)


@contextmanager
def _grid(titles: Sequence[str], rows: int, path: Path) -> Iterator[np.ndarray]:
    """Axes (rows, titles) without scales to draw on; the picture is written afterwards."""
    height = 2.2 * rows + 0.3
    figure = Figure(figsize=(2.2 * len(titles), height))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.3 / height, wspace=0.03, hspace=0.03)
    grid = figure.subplots(rows, len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="medium")
    for axes in grid.flat:
        axes.set_axis_off()
    yield grid
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
