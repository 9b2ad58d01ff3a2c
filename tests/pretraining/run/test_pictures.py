"""What the curves of a run show: of a run's first epoch as of its last."""

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from scipy import ndimage

from pretraining.config import PretrainConfig
from pretraining.run.pictures import plot_progress

BLUE = np.array((31, 119, 180)) / 255
"""matplotlib's first colour: of the first curve of each panel."""


def points_drawn(path) -> int:
    """Blobs of 5 x 5 blue pixels, which no line is wide enough for."""
    blue = np.abs(matplotlib.image.imread(path)[..., :3] - BLUE).max(-1) < 0.02
    return ndimage.label(ndimage.binary_erosion(blue, np.ones((5, 5))))[1]


def line(step: int, **values) -> dict:
    return {"step": step, "loss": 5.0, "points_found_stem": 0.1, "gradient_norm": 2.0, "lr": 1e-3} | values


@pytest.mark.parametrize(
    ("lines", "panels"),
    [
        ([line(9)], ("points", "gradient", "rate")),
        ([line(9), line(19), line(29)], ()),
        ([line(9), line(19, gradient_norm=None), line(29), line(39)], ("gradient",)),
    ],
    ids=["one line", "three lines", "a point between gaps"],
)
def test_a_value_without_neighbours_is_a_point(lines, panels, tmp_path):
    config = PretrainConfig().replace(point_weight=1.0, distillation_weight=0.0)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nnU-Net's pictures change the colours of a process
        plot_progress(lines, config, tmp_path / "progress.png")
    assert points_drawn(tmp_path / "progress.png") == 2 * len(panels)  # in the panel, and in its legend
