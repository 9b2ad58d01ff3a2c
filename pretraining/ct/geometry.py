"""One grid for every scan: canonical axes first, then cubic voxels.

Axes are reordered before anything is interpolated, so that the result does not depend on the orientation in which a
scan is stored (method, section 1). The published code does not do this.
"""

from itertools import permutations

import numpy as np
from scipy.sparse import csr_array

from nnunetv2_cads.encoder_file.record import CLIP_HU

# A cubic spline's response to one voxel falls by 0.27 per voxel: 14 voxels away it is 1e-8, less than float32's
# rounding, and is left out.
SPLINE_REACH = 14
BLOCK_ROWS = 32


def canonical_axes(direction: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which array axes, and which of them reversed, give (z headward, y to the back, x to the patient's left).

    An oblique scan keeps its voxel grid: each array axis goes to the body axis it is nearest to.

    Args:
        direction: 3 x 3 direction cosines as SimpleITK gives them: column i is the direction of index i (x, y, z) in
            the patient, in the order left, back, head.

    Returns:
        For each canonical axis the axis of the array, which SimpleITK orders (z, y, x), and whether it is reversed.
    """
    nearest = max(permutations(range(3)), key=lambda order: sum(abs(direction[k, order[k]]) for k in range(3)))
    axes = tuple(2 - nearest[body_axis] for body_axis in (2, 1, 0))
    reverse = tuple(bool(direction[body_axis, nearest[body_axis]] < 0) for body_axis in (2, 1, 0))
    return axes, reverse


def to_canonical(
    volume: np.ndarray, spacing_xyz_mm: tuple[float, float, float], direction: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Reorder and flip a volume's axes to (z headward, y to the back, x to the patient's left).

    Args:
        volume: array of 3 axes, ordered (z, y, x) as SimpleITK gives it.
        spacing_xyz_mm: voxel edges in mm along the stored x, y, z.
        direction: 3 x 3 direction cosines, see `canonical_axes`.

    Returns:
        A view of the volume, and its voxel edges in mm in the same order as its axes.
    """
    axes, reverse = canonical_axes(direction)
    view = volume.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in reverse)]
    # Formats differ in the last digits of a spacing (float32, text, lengths of vectors): one scan, one grid.
    spacing_zyx_mm = tuple(round(float(spacing_xyz_mm[2 - axis]), 5) for axis in axes)
    return view, spacing_zyx_mm


def resampled_shape(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], new_spacing_mm: float = 1.0
) -> tuple[int, ...]:
    """Voxels along each axis after resampling: the extent in mm, rounded, at least 1."""
    return tuple(
        max(1, round(edge * spacing / new_spacing_mm)) for edge, spacing in zip(shape, spacing_mm, strict=True)
    )


def resample_cubic(
    volume: np.ndarray, spacing_mm: tuple[float, float, float], new_spacing_mm: float = 1.0
) -> np.ndarray:
    """Resample to cubic voxels with interpolating cubic B-splines, the centre of the volume staying where it is.

    The spline's transform and its evaluation are linear and separable, so each axis is one banded matrix product:
    the same numbers as SimpleITK's `sitkBSpline`, in float32 and a fraction of the time. The edge is mirrored. There
    is no low-pass filter before downsampling (method, section 1.1: cubic interpolation).

    Args:
        volume: (z, y, x), any real type.
        spacing_mm: voxel edges in mm, in the order of the axes.
        new_spacing_mm: edge of the cubic voxels.

    Returns:
        float32, shape as `resampled_shape` gives it, contiguous.
    """
    result = np.ascontiguousarray(volume, dtype=np.float32)
    target = resampled_shape(volume.shape, spacing_mm, new_spacing_mm)
    # The axis that shrinks most comes first: the others then have fewer voxels to resample.
    for axis in sorted(range(3), key=lambda k: target[k] / volume.shape[k]):
        result = _resample_axis(result, axis, spacing_mm[axis] / new_spacing_mm, target[axis])
    return result


def resample_hu(
    volume_hu: np.ndarray, spacing_mm: tuple[float, float, float], new_spacing_mm: float = 1.0
) -> np.ndarray:
    """`resample_cubic` for CT, clipped to `CLIP_HU` before and after.

    A spline swings over at an edge, by a part of its height: next to padding of -3024 HU or metal of 20,000, tissue
    would be hundreds of HU off (docs/preprocessing.md has the numbers).
    """
    clipped = np.clip(np.asarray(volume_hu, dtype=np.float32), *CLIP_HU)
    return np.clip(resample_cubic(clipped, spacing_mm, new_spacing_mm), *CLIP_HU)


def _resample_axis(volume: np.ndarray, axis: int, spacing: float, size: int) -> np.ndarray:
    """Resample one axis from voxels of ``spacing`` to ``size`` voxels of 1 about the same centre."""
    old_size = volume.shape[axis]
    positions = (np.arange(size) - (size - 1) / 2) / spacing + (old_size - 1) / 2
    if size == old_size and np.array_equal(positions, np.arange(size)):
        return volume
    matrix = spline_matrix(old_size, positions).astype(np.float32)
    shape = list(volume.shape)
    shape[axis] = size
    result = np.empty(shape, dtype=np.float32)
    for first in range(0, size, BLOCK_ROWS):
        rows = slice(first, min(first + BLOCK_ROWS, size))
        start = max(0, int(positions[rows][0]) - SPLINE_REACH)
        columns = slice(start, int(positions[rows][-1]) + SPLINE_REACH + 1)
        band = matrix[rows, columns]
        if axis == 2:
            result[:, :, rows] = volume[:, :, columns] @ band.T
        elif axis == 1:
            result[:, rows] = band @ volume[:, columns]
        else:
            part = volume[columns]
            result[rows] = (band @ part.reshape(len(part), -1)).reshape(-1, *volume.shape[1:])
    return result


def spline_matrix(size: int, positions: np.ndarray) -> np.ndarray:
    """The matrix that maps ``size`` samples to the values of their interpolating cubic spline at ``positions``.

    Args:
        size: number of samples, at the positions 0 .. size - 1; the signal is mirrored about the first and the last.
        positions: (n,) where to evaluate.

    Returns:
        (n, size) float64; rows sum to 1.
    """
    # B-splines do not pass through their coefficients: the samples are the spline's values at 0 .. size - 1.
    at_samples, at_positions = (b_splines(size, places).toarray() for places in (np.arange(size), positions))
    return np.linalg.solve(at_samples.T, at_positions.T).T


def b_splines(size: int, positions: np.ndarray) -> csr_array:
    """Values of cubic B-splines, by which their coefficients become the values of a spline.

    Args:
        size: number of splines, centred on 0 .. size - 1 and mirrored at both ends.
        positions: (n,) where to evaluate.

    Returns:
        (n, size), four of a row at most not 0.
    """
    nearest = np.floor(positions).astype(int)
    offset = positions - nearest
    weights = (
        (1 - offset) ** 3 / 6,
        2 / 3 - offset**2 + offset**3 / 2,
        2 / 3 - (1 - offset) ** 2 + (1 - offset) ** 3 / 2,
        offset**3 / 6,
    )
    period = max(1, 2 * (size - 1))
    index = (nearest[:, None] + np.arange(-1, 3)) % period
    columns = np.minimum(index, period - index) % size
    rows = np.repeat(np.arange(len(positions)), len(weights))
    return csr_array((np.stack(weights, 1).ravel(), (rows, columns.ravel())), shape=(len(positions), size))
