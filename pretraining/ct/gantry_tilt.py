"""Straightening scans that were taken with a tilted gantry (ours; the method does not speak of them).

Slices of such a scan are at right angles to the gantry and not to the table, on which the next slice is further
headward: slices and steps make a sheared grid, which DICOM and the sform of NIfTI state exactly. Rows of voxels are
moved along the table by what the tilt has moved them; the grid then has the axes of table and patient.

A gantry that is swivelled, too, has sheared the columns as well. Moved along the table, rows and columns of its slices
are not at right angles to each other any more, which is a third shear, within the plane.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_cads.encoder_file.record import CLIP_HU
from pretraining.ct.checks import RIGHT_ANGLE, SKEWED
from pretraining.ct.geometry import b_splines, canonical_axes, resample_hu, resampled_shape
from pretraining.ct.scan import UnusableScanError

MAX_DEGREES = 40
"""Gantries tilt by up to 30."""
SLICES = 2
"""The index that counts slices, in DICOM and in what converters make of it."""


@dataclass(frozen=True)
class Shear:
    """One shear of a canonical volume.

    Attributes:
        along: the array's axis along which rows have been moved.
        across: the axis that counts these rows.
        sine: mm along the former for each mm along the latter, in the array's directions of both.
    """

    along: int
    across: int
    sine: float


def find_tilt(direction: np.ndarray) -> tuple[Shear, ...]:
    """The shears to undo, in this order, of a tilted, a swivelled, or a tilted and swivelled gantry.

    Args:
        direction: 3 x 3; column i is the direction of index i (x, y, z) in the patient.

    Returns:
        None where all axes are at right angles; one along the table for each axis of the slices that is not at a right
        angle to it; where both are not, one within the slices, too, which leaves the one nearest to a body axis as it
        is.

    Raises:
        UnusableScanError: the axes are at no right angles, and not in the way of a gantry.
    """
    axes, reverse = canonical_axes(direction)
    vectors = direction[:, [2 - axis for axis in axes]].T * np.where(reverse, -1, 1)[:, None]  # arrays are (z, y, x)
    table = axes.index(2 - SLICES)
    within = [axis for axis in range(3) if axis != table]
    sines = vectors @ vectors[table]
    tilted = [axis for axis in within if abs(sines[axis]) > RIGHT_ANGLE]
    if abs(vectors[within[0]] @ vectors[within[1]]) > RIGHT_ANGLE:
        raise UnusableScanError(SKEWED)
    degrees = np.degrees(np.arcsin(min(1.0, np.linalg.norm(sines[within]))))
    if degrees > MAX_DEGREES:
        raise UnusableScanError(
            f"has slices that are {90 - degrees:.0f} degrees from the line along which they follow each other, and no "
            f"gantry tilts them by more than {MAX_DEGREES} from the right angle; correct its header or resample it"
        )
    shears = [Shear(table, axis, float(sines[axis])) for axis in tilted]
    if len(tilted) > 1:
        moved = {axis: vectors[axis] - sines[axis] * vectors[table] for axis in tilted}
        moved = {axis: vector / np.linalg.norm(vector) for axis, vector in moved.items()}
        other, kept = sorted(tilted, key=lambda axis: np.abs(moved[axis]).max())
        shears.append(Shear(kept, other, float(moved[kept] @ moved[other])))
    return tuple(shears)


def straight_shape(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], shears: Sequence[Shear], new_spacing_mm: float
) -> tuple[int, ...]:
    """The shape of what `straighten` makes of a volume of ``shape``; the other arguments are the same."""
    for shear in shears:
        shape, spacing_mm = _grid_without(shear, shape, spacing_mm, new_spacing_mm)
    return resampled_shape(shape, spacing_mm, new_spacing_mm)


def straighten(
    volume_hu: np.ndarray, spacing_mm: tuple[float, ...], shears: Sequence[Shear], new_spacing_mm: float
) -> np.ndarray:
    """Undo shears, and resample to cubic voxels.

    The volume has room for all that was scanned, and its centre stays where it is. What was not scanned is air; until
    all is resampled, the outermost slice goes on there, since a spline swings over at an edge.

    Args:
        volume_hu: (z, y, x), canonical.
        spacing_mm: voxel edges in the order of the axes; between slices along the table.
        shears: of the volume.
        new_spacing_mm: edge of the cubic voxels.

    Returns:
        float32 in `CLIP_HU`, shape as `straight_shape` gives it.
    """
    size_mm = [edge * spacing for edge, spacing in zip(volume_hu.shape, spacing_mm, strict=True)]
    for shear in shears:
        volume_hu, spacing_mm = _without(shear, volume_hu, spacing_mm, new_spacing_mm)
    result = resample_hu(volume_hu, spacing_mm, new_spacing_mm)
    del volume_hu
    _set_air_outside(result, new_spacing_mm, size_mm, shears)
    return result


def _grid_without(
    shear: Shear, shape: tuple[int, ...], spacing_mm: tuple[float, ...], new_spacing_mm: float
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing of a volume without a shear: longer along it, and rows nearer to each other than they were."""
    row_mm = spacing_mm[shear.across]
    length_mm = shape[shear.along] * spacing_mm[shear.along] + (shape[shear.across] - 1) * row_mm * abs(shear.sine)
    size = resampled_shape((1,), (length_mm,), new_spacing_mm)[0]
    sizes = dict(enumerate(shape)) | {shear.along: size}
    edges_mm = dict(enumerate(spacing_mm)) | {
        shear.along: new_spacing_mm,
        shear.across: row_mm * np.sqrt(1 - shear.sine**2),
    }
    return tuple(sizes[axis] for axis in range(3)), tuple(edges_mm[axis] for axis in range(3))


def _without(
    shear: Shear, volume_hu: np.ndarray, spacing_mm: tuple[float, ...], new_spacing_mm: float
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Undo one shear, and resample along it in the same step, since a second one would blur thick slices more.

    Returns:
        The volume, float32, and its spacing.
    """
    from scipy.ndimage import spline_filter1d  # slow to load, and hardly ever needed

    new_shape, new_edges_mm = _grid_without(shear, volume_hu.shape, spacing_mm, new_spacing_mm)
    clipped = np.clip(volume_hu, *CLIP_HU)
    coefficients = spline_filter1d(clipped, axis=shear.along, output=np.float32, mode="mirror")
    del clipped
    result = np.empty(new_shape, dtype=np.float32)
    rows, moved = (np.moveaxis(each, (shear.along, shear.across), (0, 1)) for each in (coefficients, result))
    (count, row_count), size = rows.shape[:2], len(moved)
    along_mm = (np.arange(size) - (size - 1) / 2) * new_spacing_mm
    for row in range(row_count):
        shift_mm = (row - (row_count - 1) / 2) * spacing_mm[shear.across] * shear.sine
        places = (along_mm - shift_mm) / spacing_mm[shear.along] + (count - 1) / 2
        moved[:, row] = b_splines(count, np.clip(places, 0, count - 1)).astype(np.float32) @ rows[:, row]
    return result, new_edges_mm


def _set_air_outside(
    volume_hu: np.ndarray, spacing_mm: float, size_mm: Sequence[float], shears: Sequence[Shear]
) -> None:
    """Set to air, in place, the voxels of a straight volume whose centres are outside of what was scanned.

    Args:
        volume_hu: (z, y, x).
        spacing_mm: edge of its cubic voxels.
        size_mm: of the sheared volume, along its own axes.
        shears: that were undone, in this order.
    """
    z_mm, y_mm, x_mm = ((np.arange(edge) - (edge - 1) / 2) * spacing_mm for edge in volume_hu.shape)
    for place_mm, plane in zip(z_mm, volume_hu, strict=True):
        places_mm = [place_mm, y_mm[:, None], x_mm[None]]
        for shear in reversed(shears):  # back to where the voxel was in the sheared volume
            places_mm[shear.across] = places_mm[shear.across] / np.sqrt(1 - shear.sine**2)
            places_mm[shear.along] = places_mm[shear.along] - shear.sine * places_mm[shear.across]
        outside = [np.abs(place) > edge / 2 for place, edge in zip(places_mm, size_mm, strict=True)]
        plane[outside[0] | outside[1] | outside[2]] = CLIP_HU[0]
