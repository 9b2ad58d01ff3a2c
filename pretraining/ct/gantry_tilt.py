"""Straightening scans that were taken with a tilted gantry (ours; the method does not speak of them).

Slices of such a scan are at right angles to the gantry and not to the table, on which the next slice is further
headward: slices and steps make a sheared grid, which DICOM and the sform of NIfTI state exactly. Each row of voxels is
shifted along the table by what the tilt has moved it; the grid then has the axes of table and patient.
"""

from dataclasses import dataclass

import numpy as np

from nnunetv2_cads.encoder_file.record import CLIP_HU
from pretraining.ct.checks import RIGHT_ANGLE, SKEWED
from pretraining.ct.geometry import canonical_axes, resampled_shape, spline_matrix
from pretraining.ct.scan import UnusableScanError

MAX_SINE = 0.65
"""Of 40 degrees; gantries tilt by up to 30."""
SLICES = 2
"""The index that counts slices, in DICOM and in what converters make of it."""


@dataclass(frozen=True)
class Tilt:
    """A shear of a canonical volume.

    Attributes:
        slices: the array's axis along the table.
        rows: its axis that is not at a right angle to that.
        sine: mm along the table for each mm along the rows, in the array's directions of both.
    """

    slices: int
    rows: int
    sine: float


def find_tilt(direction: np.ndarray) -> Tilt | None:
    """The tilt of a scan; None where its axes are at right angles.

    Args:
        direction: 3 x 3; column i is the direction of index i (x, y, z) in the patient.

    Raises:
        UnusableScanError: the axes are at no right angles, and not in the way of a gantry.
    """
    cosines = direction.T @ direction
    tilted = [row for row in range(SLICES) if abs(cosines[row, SLICES]) > RIGHT_ANGLE]
    if abs(cosines[0, 1]) > RIGHT_ANGLE or len(tilted) > 1:
        raise UnusableScanError(SKEWED)
    if not tilted:
        return None
    row, sine = tilted[0], float(cosines[tilted[0], SLICES])
    if abs(sine) > MAX_SINE:
        raise UnusableScanError(SKEWED)
    axes, reverse = canonical_axes(direction)
    place = {axis: number for number, axis in enumerate(axes)}
    slices, rows = place[2 - SLICES], place[2 - row]  # arrays have their axes in the order z, y, x
    return Tilt(slices, rows, -sine if reverse[slices] != reverse[rows] else sine)


def straighten(
    volume_hu: np.ndarray, spacing_mm: tuple[float, ...], tilt: Tilt, new_spacing_mm: float
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Undo a tilt, and resample along the table in the same step, since a second one would blur thick slices more.

    The volume has room for all that was scanned; what no slice has reached is air. Its centre stays where it is.

    Args:
        volume_hu: (z, y, x), canonical.
        spacing_mm: voxel edges in the order of the axes; between slices along the table.
        tilt: of the volume.
        new_spacing_mm: voxel edge along the table after it.

    Returns:
        The volume, float32, and its spacing; across the table rows are nearer to each other than they were.
    """
    moved = np.moveaxis(volume_hu, (tilt.slices, tilt.rows), (0, 1))
    slice_mm, row_mm = spacing_mm[tilt.slices], spacing_mm[tilt.rows]
    (count, rows), step_mm = moved.shape[:2], tilt.sine * row_mm
    length_mm = count * slice_mm + (rows - 1) * abs(step_mm)
    size = resampled_shape((1,), (length_mm,), new_spacing_mm)[0]
    result = np.full((size, *moved.shape[1:]), CLIP_HU[0], dtype=np.float32)
    table_mm = (np.arange(size) - (size - 1) / 2) * new_spacing_mm
    for row in range(rows):
        shift_mm = (row - (rows - 1) / 2) * step_mm
        places = (table_mm - shift_mm) / slice_mm + (count - 1) / 2
        scanned = (places >= -0.5) & (places <= count - 0.5)
        result[scanned, row] = spline_matrix(count, places[scanned]) @ np.clip(moved[:, row], *CLIP_HU)
    new = dict(enumerate(spacing_mm)) | {tilt.slices: new_spacing_mm, tilt.rows: row_mm * np.sqrt(1 - tilt.sine**2)}
    return np.moveaxis(result, (0, 1), (tilt.slices, tilt.rows)), tuple(new[axis] for axis in range(3))
