"""What makes a DICOM series unusable: another modality, missing slices, no common grid. Judged by headers alone."""

import numpy as np

from pretraining.ct.checks import same_spacing
from pretraining.ct.dicom_grid import rounding_mm, step_mm, uneven_gap
from pretraining.ct.dicom_series import Slice, numbers
from pretraining.ct.scan import UnusableScanError

# OT (other): secondary captures, and what converters write. Whether those are CT is seen by their values.
MODALITIES = ("CT", "OT", "")
MAX_TURN = 0.05
"""How far cosines may differ from slice to slice, and steps from the direction of all, as a fraction."""


def check_series(slices: list[Slice]) -> None:
    """Raise `UnusableScanError` unless slices, in order along the patient, are of CT and lie in one grid.

    Raises:
        ValueError: a position, orientation or pixel spacing is no number.
    """
    for each in slices:
        if each.modality not in MODALITIES:
            raise UnusableScanError(f"is of modality {each.modality}, not CT; leave it out")
    if len({bool(each.pixels.slope and each.pixels.intercept) for each in slices}) > 1:
        raise UnusableScanError(
            "has slices without rescale slope and intercept among others with them; export the original CT series"
        )
    if len(slices) > 1:
        _check_grid_of(slices)


def is_grid(slices: list[Slice]) -> bool:
    """Whether slices, in order along the patient, lie in one grid."""
    try:
        if len(slices) > 1:
            _check_grid_of(slices)
    except (UnusableScanError, ValueError):
        return False
    return True


def _check_grid_of(slices: list[Slice]) -> None:
    """Refuse slices that are missing or there twice, that differ, or that do not follow each other along a line."""
    stated = [(each.position, each.orientation, each.pixel_spacing) for each in slices]
    if not all(text for texts in stated for text in texts):
        raise UnusableScanError(
            "has slices without position, orientation or pixel spacing; export the original CT series"
        )
    positions, cosines, edges = (np.array([numbers(text) for text in column]) for column in zip(*stated, strict=True))
    if not same_spacing(edges, edges[0]):
        raise UnusableScanError("has slices that differ in pixel spacing; export the whole series again")
    if not np.allclose(cosines, cosines[0], rtol=0, atol=MAX_TURN):
        raise UnusableScanError("has slices that differ in orientation; export each orientation as a series of its own")
    normal = np.cross(cosines[0, :3], cosines[0, 3:])
    steps = np.diff(positions, axis=0)
    step = step_mm(positions)  # not along the normal where the gantry is tilted
    sideways = steps - np.outer(steps @ step, step) / max(step @ step, np.finfo(float).tiny)
    if np.linalg.norm(sideways) > MAX_TURN * np.linalg.norm(steps) + 2 * rounding_mm(positions) * len(steps) ** 0.5:
        raise UnusableScanError("has slices that are shifted against each other; export the original CT series")
    worst = uneven_gap(positions, normal)
    if worst is not None:
        gaps = np.abs(steps @ normal)
        raise UnusableScanError(
            f"has slices {np.median(gaps):g} mm apart but {gaps[worst]:g} mm between slices {worst + 1} and "
            f"{worst + 2}: slices are missing or there twice; export the whole series again"
        )
