"""A voxel grid onto which implicit shapes are painted one over the other, with partial volume at their edges."""

from dataclasses import dataclass

import numpy as np

from nnunetv2_cads.demo.torsos.shapes import Implicit

_STRIDE = 4  # the search for a part's box looks at every fourth voxel


@dataclass(frozen=True)
class Part:
    """One thing to paint: a shape, its HU, the label of the voxels it fills, and the box (mm) that contains it."""

    shape: Implicit
    hu: float
    label: int = 0
    centre_mm: tuple[float, float, float] | None = None
    half_size_mm: tuple[float, float, float] | None = None


class Canvas:
    """HU (float32) and labels (uint8) on a grid whose voxel centres lie at ``x, y, z`` of the anatomy (mm).

    ``x, y, z``: float32 arrays of the grid's shape, in (z, y, x) axis order; they may be rotated or warped.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, background_hu: float):
        self.coordinates = (x, y, z)
        self.hu = np.full(x.shape, background_hu, dtype=np.float32)
        self.labels = np.zeros(x.shape, dtype=np.uint8)

    def paint(self, part: Part) -> None:
        """Blend the part over what is there; voxels that it fills by more than a half take its label.

        The filled share of a voxel is the share of the range of the shape's values over that voxel which is
        negative, so one rule serves every spacing, slice thickness, rotation and warp.
        """
        block = self._block(part)
        if block is None:
            return
        values = part.shape(*(axis[block] for axis in self.coordinates)).astype(np.float32, copy=False)
        slopes = np.gradient(values)
        span = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2)
        share = np.clip(0.5 - values / np.maximum(span, 1e-3), 0, 1)
        hu = self.hu[block]
        hu += share * (np.float32(part.hu) - hu)
        self.labels[block][share > 0.5] = part.label

    def _block(self, part: Part) -> tuple[slice, slice, slice] | None:
        """The slices of the grid around the part's box; None where the box lies outside the grid."""
        if part.centre_mm is None:
            return (slice(None),) * 3
        inside = np.ones_like(self.hu[::_STRIDE, ::_STRIDE, ::_STRIDE], dtype=bool)
        for axis, centre, half in zip(self.coordinates, part.centre_mm, part.half_size_mm, strict=True):
            coarse = axis[::_STRIDE, ::_STRIDE, ::_STRIDE]
            inside &= np.abs(coarse - centre) < half * 1.25 + 30  # room for the surface's wobble and the coarse steps
        if not inside.any():
            return None
        block = []
        for i, size in enumerate(self.hu.shape):
            hit = np.flatnonzero(inside.any(axis=tuple(j for j in range(3) if j != i)))
            # np.gradient needs two voxels along each axis
            start = max(int(hit[0]) * _STRIDE - _STRIDE, 0)
            block.append(slice(min(start, size - 2), min((int(hit[-1]) + 2) * _STRIDE, size)))
        return tuple(block)
