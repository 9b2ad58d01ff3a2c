"""What makes a DICOM series unusable: another modality, missing slices, a tilted gantry. Judged by headers alone."""

import numpy as np

from pretraining.ct.checks import same_spacing
from pretraining.ct.dicom_series import Slice, numbers
from pretraining.ct.scan import UnusableScanError

# OT (other): secondary captures, and what converters write. Whether those are CT is seen by their values.
MODALITIES = ("CT", "OT", "")
SLICE_GAP_TOLERANCE = 0.1
MAX_TILT = 0.05


def check_series(slices: list[Slice]) -> None:
    """Raise `UnusableScanError` unless slices, in order along the patient, are of CT and lie in one grid.

    Raises:
        ValueError: a position, orientation or pixel spacing is no number.
    """
    for each in slices:
        if each.modality not in MODALITIES:
            raise UnusableScanError(f"is of modality {each.modality}, not CT; leave it out")
    if len(slices) > 1:
        _check_grid_of(slices)


def _check_grid_of(slices: list[Slice]) -> None:
    """Refuse slices that are missing or there twice, that differ, or that a tilted gantry has shifted."""
    stated = [(each.position, each.orientation, each.pixel_spacing) for each in slices]
    if not all(text for texts in stated for text in texts):
        raise UnusableScanError(
            "has slices without position, orientation or pixel spacing; export the original CT series"
        )
    positions, cosines, edges = (np.array([numbers(text) for text in column]) for column in zip(*stated, strict=True))
    if not same_spacing(edges, edges[0]):
        raise UnusableScanError("has slices that differ in pixel spacing; export the whole series again")
    if not np.allclose(cosines, cosines[0], rtol=0, atol=MAX_TILT):
        raise UnusableScanError("has slices that differ in orientation; export each orientation as a series of its own")
    normal = np.cross(cosines[0, :3], cosines[0, 3:])
    steps = np.diff(positions, axis=0)
    if np.linalg.norm(steps - np.outer(steps @ normal, normal)) > MAX_TILT * np.linalg.norm(steps):
        raise UnusableScanError("was taken with a tilted gantry; straighten it (resample it to upright slices)")
    gaps = np.abs(steps @ normal)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if not usual > 0 or not abs(gaps[worst] - usual) <= SLICE_GAP_TOLERANCE * usual:  # also where one is NaN
        raise UnusableScanError(
            f"has slices {usual:g} mm apart but {gaps[worst]:g} mm between slices {worst + 1} and {worst + 2}: slices "
            "are missing or there twice; export the whole series again"
        )
