"""Smooth random fields: the warp of the body, the texture of tissue and the noise of the scanner."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def smooth_field(rng: np.random.Generator, shape: Sequence[int], cells: int = 4) -> np.ndarray:
    """Slowly varying field (float32) of the given shape: standard normal values on ``cells``³ knots, cubic between."""
    field = rng.normal(size=(cells,) * 3).astype(np.float32)
    for size in shape:  # a spline is separable: one axis after the other is forty times faster
        basis = ndimage.zoom(np.eye(cells, dtype=np.float32), (size / cells, 1), order=3, mode="nearest")
        field = np.tensordot(field, basis, axes=(0, 1))
    return field


def correlated_noise(rng: np.random.Generator, shape: Sequence[int], sigma_voxels: Sequence[float]) -> np.ndarray:
    """Gaussian noise (float32) of mean 0 and standard deviation 1, correlated over ``sigma_voxels`` along each axis."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_voxels, mode="wrap")
    return noise / noise.std()
