"""Dice and normalised surface Dice of every label or region in every held-out case."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_cads.comparison.dataset import Dataset
from nnunetv2_cads.comparison.surface import TOLERANCE_MM, dice, normalised_surface_dice

Rows = list[dict[str, Any]]
"""``case``, ``organ``, ``dice`` and ``nsd``; None where the truth lacks the organ: the same rows count for all arms."""


def score_folder(predicted: Path, dataset: Dataset, cases: Sequence[str]) -> Rows:
    """Compare segmentations with the dataset's labels, on the grid of the scans.

    Voxels that the labels ask to ignore do not count.

    Args:
        predicted: folder of the segmentations.
        dataset: that the cases are of.
        cases: their names.
    """
    reader = PlansManager(dataset.plans).image_reader_writer_class()
    organs, ignored = organs_of(dataset.description)
    tolerance_mm = surface_tolerance_mm(dataset)
    rows = []
    for case in cases:
        truth, spacing_mm = _read(reader, dataset.label(case))
        segmentation, _ = _read(reader, predicted / f"{case}{dataset.file_ending}")
        counts = np.ones_like(truth, dtype=bool) if ignored is None else truth != ignored
        for organ, values in organs.items():
            ours, theirs = (np.isin(array, values) & counts for array in (segmentation, truth))
            found = {"dice": None, "nsd": None}
            if theirs.any():
                surface = normalised_surface_dice(ours, theirs, spacing_mm, tolerance_mm)
                found = {"dice": dice(ours, theirs), "nsd": surface}
            rows.append({"case": case, "organ": organ, **found})
    return rows


def surface_tolerance_mm(dataset: Dataset) -> float:
    """Of the surface Dice: 1 mm, or the finest edge of the plans' voxels where that is more."""
    spacing_mm = dataset.plans["configurations"][dataset.configuration]["spacing"]
    return max(TOLERANCE_MM, round(float(min(spacing_mm)), 2))


def organs_of(description: dict[str, Any]) -> tuple[dict[str, list[int]], int | None]:
    """The values of each label or region of a dataset.json by name, and the value that is ignored, if any."""
    labels = dict(description["labels"])
    ignored = labels.pop("ignore", None)
    values = {name: list(value) if isinstance(value, (list, tuple)) else [value] for name, value in labels.items()}
    return {name: numbers for name, numbers in values.items() if numbers != [0]}, ignored


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All results of finished trainings, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def _read(reader: BaseReaderWriter, path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """A label map (D, H, W) and its spacing in mm in that order."""
    labels, properties = reader.read_seg(str(path))
    return labels[0].astype(np.int16), tuple(float(edge) for edge in properties["spacing"])
