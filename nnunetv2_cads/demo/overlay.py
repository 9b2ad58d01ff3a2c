"""One picture of held-out cases: CT, truth and prediction, axial and coronal."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.system.files import atomic_path

_WINDOW_HU = (-200, 400)
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "gold", "hotpink", "cyan")  # CT is grey


def write_overlay(
    path: Path, images: Path, truths: Path, predictions: Path, labels: Mapping[str, int], limit: int = 4
) -> None:
    """Write a PNG with one row for each of the first ``limit`` cases of ``truths`` (nnU-Net's file names).

    Views are radiological: the patient's right is on the left, the front or the head is on top.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    paths = sorted(truths.glob("*.nii.gz"))[:limit]
    figure = Figure(figsize=(15, 2.6 * len(paths) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(paths), 6, squeeze=False)
    colours = _colours(len(labels))
    for row, truth_path in zip(axes, paths, strict=True):
        case = truth_path.name.removesuffix(".nii.gz")
        image, spacing = _read(images / f"{case}_0000.nii.gz")
        truth, prediction = _read(truth_path)[0], _read(predictions / truth_path.name)[0]
        for start, plane in ((0, 0), (3, 1)):
            index = _fullest(truth, plane)
            ct = _slice(image, plane, index)
            aspect = spacing[0] / spacing[2] if plane else spacing[1] / spacing[2]
            for axis, overlay in zip(row[start : start + 3], (None, truth, prediction), strict=True):
                axis.imshow(ct, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1], aspect=aspect)
                if overlay is not None:
                    axis.imshow(colours[_slice(overlay, plane, index)], aspect=aspect, interpolation="nearest")
                axis.set_axis_off()
        row[0].set_title(case, fontsize=9, loc="left")
    for axis, title in zip(axes[0][1:], ("truth", "prediction", "CT", "truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=9)
    handles = [Patch(color=colours[label][:3], label=name) for name, label in labels.items() if label]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _colours(n: int) -> np.ndarray:
    """One RGBA row per label; the background is transparent."""
    from matplotlib.colors import to_rgba

    return np.array([(0, 0, 0, 0), *(to_rgba(_COLOURS[i % len(_COLOURS)], 0.6) for i in range(n - 1))])


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
