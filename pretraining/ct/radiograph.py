"""The frontal radiograph of a CT volume (digitally reconstructed radiograph, DRR): method, section 1.2."""

import numpy as np

from nnunetv2_cads.encoder_file.record import CLIP_HU

FOCAL_DISTANCE_MM = 10_000.0
SLAB = 4  # voxels


class ConstantRadiographError(ValueError):
    """Every ray has the same integral, so the radiograph cannot be scaled to [-1, 1]."""


def frontal_radiograph(
    volume_hu: np.ndarray, spacing_mm: float = 1.0, focal_distance_mm: float = FOCAL_DISTANCE_MM
) -> np.ndarray:
    """Radiograph of a whole volume: integral of HU + 1024 along the rays, scaled to [-1, 1].

    The focal point is in front of the patient, ``focal_distance_mm`` from the volume's centre. The detector has
    slices x width pixels of a voxel's size, and is as far behind the centre as the volume is long. Instead of tracing
    rays, coronal slabs of 4 voxels are summed, each scaled by its own magnification: within a slab a ray of this nearly
    parallel beam moves sideways by less than a tenth of a voxel.

    Args:
        volume_hu: (slices, height, width) HU, not below -1024, axes (z headward, y to the back, x to the patient's
            left). Outside the volume is air.
        spacing_mm: edge of the cubic voxels.
        focal_distance_mm: distance of the focal point.

    Returns:
        float32 (slices, width), head up, the patient's right on the picture's left.

    Raises:
        ConstantRadiographError: all rays have the same integral.
    """
    slices, height, width = volume_hu.shape
    focal_distance = focal_distance_mm / spacing_mm  # this and all below in voxels
    detector = focal_distance + slices
    rows = np.arange(slices) - (slices - 1) / 2
    columns = np.arange(width) - (width - 1) / 2
    integral = np.zeros((slices, width))
    for first in range(0, height, SLAB):
        slab = volume_hu[:, first : first + SLAB]
        thickness = slab.shape[1]
        picture = slab.sum(axis=1, dtype=np.float32) - float(CLIP_HU[0]) * thickness
        distance = focal_distance + first + (thickness - 1) / 2 - (height - 1) / 2
        scale = distance / detector
        picture = _interpolate_rows(picture, rows * scale + (slices - 1) / 2)
        integral += _interpolate_rows(picture.T, columns * scale + (width - 1) / 2).T
    # An oblique ray has a longer path through each voxel of depth.
    integral *= np.sqrt(1 + (rows[:, None] ** 2 + columns**2) / detector**2)
    low, high = integral.min(), integral.max()
    if not high > low:
        raise ConstantRadiographError("every ray has the same integral")
    return np.flipud(2 * (integral - low) / (high - low) - 1).astype(np.float32)


def _interpolate_rows(picture: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation of the rows of (n, m) at (k,) positions; zero (air) beyond the first and the last."""
    below = np.floor(positions).astype(int)
    weight = (positions - below)[:, None]
    padded = np.pad(picture, ((1, 2), (0, 0)))
    below = np.clip(below + 1, 0, len(picture) + 1)
    return padded[below] * (1 - weight) + padded[below + 1] * weight
