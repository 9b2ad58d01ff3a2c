"""Clipping before or after resampling: how far tissue is from the analytic truth.

    python benchmarks/clip_order.py

A phantom of tissue, bone, gas and a metal rod, whose voxels are shares of its parts, on three grids, with padding or
without. Each is resampled to 1 mm with values clipped to a range before, and compared with the phantom's own voxels at
1 mm, all clipped to what a store holds. Of the voxels that are tissue: the root mean square difference in HU, and how
many are more than 100 HU off.
"""

import itertools

import numpy as np

from nnunetv2_cads.encoder_file.record import CLIP_HU
from pretraining.ct.geometry import resample_cubic, resampled_shape

EXTENT_MM = (60, 130, 140)
SPACINGS_MM = ((2.5, 0.7, 0.7), (1.25, 0.9, 0.9), (5.0, 0.5, 0.5))
RANGES_HU = {"after alone": (-np.inf, np.inf), "-1024 to 3071": (-1024, 3071), "-1024 to 1024": CLIP_HU}
METAL_AND_PADDING_HU = ((20_000, None), (8_000, None), (3_071, None), (40, -3_024), (40, -2_000), (40, None))
SCANNED_MM = 50
"""Radius beyond which there is padding."""
POINTS = 3
"""Along each edge of a voxel, whose mean it is."""


def phantom_hu(z, y, x, metal_hu: float) -> np.ndarray:
    """The phantom at points in mm."""
    hu = np.full(np.broadcast(z, y, x).shape, -1000.0)
    parts = (
        ((x / 60) ** 2 + (y / 45) ** 2 < 1, 40),
        (x**2 + (y - 20) ** 2 < 14**2, 900),
        ((x - 25) ** 2 + (y + 5) ** 2 + z**2 < 15**2, -850),
        (((x + 25) ** 2 + (y + 10) ** 2 < 5**2) & (np.abs(z) < 20), metal_hu),
    )
    for inside, value in parts:
        hu[np.broadcast_to(inside, hu.shape)] = value
    return hu


def voxels_hu(shape, spacing_mm, metal_hu: float) -> tuple[np.ndarray, np.ndarray]:
    """Means over voxels, and the distance of each from the axis in mm, both (z, y, x)."""
    offsets = (np.arange(POINTS) - (POINTS - 1) / 2) / POINTS
    total = np.zeros(shape)
    for shift in itertools.product(offsets, repeat=3):
        total += phantom_hu(*points_mm(shape, spacing_mm, shift), metal_hu)
    _, y, x = points_mm(shape, spacing_mm)
    return total / POINTS**3, np.broadcast_to(np.hypot(x, y), shape)


def points_mm(shape, spacing_mm, shift=(0, 0, 0)):
    """Coordinates of a grid about its centre, moved by ``shift`` voxels."""
    edges = zip(shape, spacing_mm, shift, strict=True)
    return np.meshgrid(*((np.arange(n) - (n - 1) / 2 + s) * mm for n, mm, s in edges), indexing="ij", sparse=True)


def main() -> None:
    print("spacing, metal, padding:", *RANGES_HU, sep="  |  ")
    for spacing_mm, (metal_hu, padding_hu) in itertools.product(SPACINGS_MM, METAL_AND_PADDING_HU):
        shape = tuple(round(edge / mm) for edge, mm in zip(EXTENT_MM, spacing_mm, strict=True))
        scan, radius_mm = voxels_hu(shape, spacing_mm, metal_hu)
        if padding_hu is not None:
            scan[radius_mm > SCANNED_MM] = padding_hu
        truth, radius_mm = voxels_hu(resampled_shape(shape, spacing_mm), (1.0, 1.0, 1.0), metal_hu)
        truth = np.clip(truth, *CLIP_HU)
        tissue = (truth > -200) & (truth < 300)
        if padding_hu is not None:
            tissue &= radius_mm < SCANNED_MM - 1
        cells = []
        for low, high in RANGES_HU.values():
            resampled = np.clip(resample_cubic(np.clip(np.rint(scan), low, high), spacing_mm), *CLIP_HU)
            off = np.abs(resampled - truth)[tissue]
            cells.append(f"{np.sqrt((off**2).mean()):5.1f} HU {np.count_nonzero(off > 100):6d}")
        print(spacing_mm, metal_hu, padding_hu, *cells, sep="  |  ", flush=True)


if __name__ == "__main__":
    main()
