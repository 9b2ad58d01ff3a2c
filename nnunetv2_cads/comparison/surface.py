"""Dice and normalised surface Dice of one organ."""

import numpy as np
from scipy import ndimage

TOLERANCE_MM = 1.0


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Dice, in [0, 1], of two masks (bool) of one shape; NaN where both are empty."""
    total = predicted.sum() + truth.sum()
    return float(2 * (predicted & truth).sum() / total) if total else float("nan")


def normalised_surface_dice(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, ...], tolerance_mm: float = TOLERANCE_MM
) -> float:
    """Share of both surfaces' voxels that lie within ``tolerance_mm`` of the other surface.

    A surface is the organ's voxels that touch, by a face, one outside of it. (Nikolov et al., 2021, weigh surface
    elements by area; here each voxel counts alike.)

    Args:
        predicted: (D, H, W) bool; with one slice an image, whose surface is the outline in it.
        truth: same shape.
        spacing_mm: of the voxels.
        tolerance_mm: largest distance that still counts.

    Returns:
        In [0, 1]; NaN where neither has the organ.
    """
    if len(predicted) == 1 and predicted.ndim == 3:
        return normalised_surface_dice(predicted[0], truth[0], spacing_mm[1:], tolerance_mm)
    either = predicted | truth
    if not either.any():
        return float("nan")
    if not predicted.any() or not truth.any():
        return 0.0
    # distances are wanted up to the tolerance only, so what is far from both does not matter
    box = tuple(slice(s.start, s.stop) for s in ndimage.find_objects(either.astype(np.uint8))[0])
    surfaces = [_surface(np.pad(mask[box], 1)) for mask in (predicted, truth)]
    near = 0
    for one, other in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~other, sampling=spacing_mm)
        near += np.count_nonzero(distance[one] <= tolerance_mm)
    return near / sum(map(np.count_nonzero, surfaces))


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)
