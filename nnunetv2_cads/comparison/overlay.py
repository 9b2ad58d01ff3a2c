"""One picture of some cases: the image, and label maps in colour over it, axial and coronal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import SimpleITK as sitk

CT_WINDOW_HU = (-200.0, 400.0)
BESIDE_COLUMNS = 3
"""Up to so many pictures of a plane, those of the other one are beside them."""
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "gold", "hotpink", "cyan")  # CT is grey


class OverlayRow(NamedTuple):
    """A case in the picture.

    Attributes:
        title: above it.
        image: file.
        maps: files of label maps by title, the truth first: the slices that show most of it are drawn.
    """

    title: str
    image: Path
    maps: Mapping[str, Path]


def write_overlay(
    file: Path | IO[bytes],
    rows: Sequence[OverlayRow],
    labels: Mapping[str, int],
    window: tuple[float, float] | None = CT_WINDOW_HU,
) -> None:
    """Write a PNG.

    Views are radiological: the patient's right is on the left, the front or the head is on top. The coronal ones are
    beside the axial ones, or below them where that would be too wide.

    Args:
        file: to write.
        rows: of the picture, all with the same titles of maps.
        labels: names and values in the maps; 0 is not drawn.
        window: intensities from black to white; None: nearly all of each image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    titles = list(rows[0].maps)
    columns = 1 + len(titles)
    beside = columns <= BESIDE_COLUMNS
    shape = (len(rows), 2 * columns) if beside else (2 * len(rows), columns)
    figure = Figure(figsize=(2.5 * shape[1], 2.6 * shape[0] + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(*shape, squeeze=False).reshape(len(rows), 2, columns)
    colours = _colours(max(labels.values()))
    for row, places in zip(rows, axes, strict=True):
        image, spacing = _read(row.image)
        maps = [_read(path)[0].astype(np.int64) for path in row.maps.values()]  # some labels are stored as floats
        low, high = window or np.percentile(image, (1, 99))
        for plane, of_plane in enumerate(places):
            index = _fullest(maps[0], plane)
            aspect = spacing[0] / spacing[2] if plane else spacing[1] / spacing[2]
            for axis, overlay in zip(of_plane, (None, *maps), strict=True):
                axis.imshow(_slice(image, plane, index), cmap="gray", vmin=low, vmax=high, aspect=aspect)
                if overlay is not None:
                    axis.imshow(colours[_slice(overlay, plane, index)], aspect=aspect, interpolation="nearest")
                axis.set_axis_off()
        places[0, 0].set_title(row.title, fontsize=9, loc="left")
    for plane, of_plane in enumerate(axes[0]):
        for axis, title in zip(of_plane[1:], titles, strict=True):
            if beside or not plane:
                axis.set_title(title, fontsize=9)
    handles = [Patch(color=colours[value][:3], label=name) for name, value in labels.items() if value]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9)
    figure.savefig(file, dpi=110, format="png")


def _colours(largest: int) -> np.ndarray:
    """One RGBA row per value up to ``largest``; the background is transparent."""
    from matplotlib.colors import to_rgba

    return np.array([(0, 0, 0, 0), *(to_rgba(_COLOURS[i % len(_COLOURS)], 0.6) for i in range(largest))])


def _read(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Array (z, y, x) that grows headward, to the back and to the left, and its spacing in that order."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def _fullest(truth: np.ndarray, plane: int) -> int:
    """The slice across axis ``plane`` with the most labels; of several, the one with the most labelled voxels."""
    slices = np.moveaxis(truth, plane, 0)
    return max(range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i])))


def _slice(array: np.ndarray, plane: int, index: int) -> np.ndarray:
    return array[index] if plane == 0 else array[::-1, index]
