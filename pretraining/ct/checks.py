"""What makes a scan of any format unusable. Each reason says what was found, what is needed and what to do.

What only DICOM can have (missing slices, a tilted gantry) is in `pretraining.ct.dicom_checks`.
"""

import math
from collections.abc import Sequence

import numpy as np

from pretraining.ct.geometry import resampled_shape
from pretraining.ct.scan import UnusableScanError

MIN_SPACING_MM, MAX_SPACING_MM = 0.05, 20.0
SPACING_TOLERANCE = 0.01
"""How far two statements of one spacing may be apart, as a fraction."""
# Sub-volumes are windows of 24 slices. In-plane, training pads with air up to its crop of 96, so 24 will do there too.
MIN_EDGE_VOXELS = 24
# 1 m x 1 m x 1 m at 1 mm, 4 GB while it is resampled: a whole body is half of that. Stored voxels can be finer.
MAX_RESAMPLED_VOXELS = 10**9
MAX_STORED_VOXELS = 4 * 10**9
# gzip's best; of the encodings that JPEG files use, only that of one value everywhere does better.
MAX_COMPRESSION = 1100

RIGHT_ANGLE = 0.002
"""Cosines up to this, 0.1 degrees, are those of axes at right angles; what is more is no rounding."""
SKEWED = "has axes that are not at right angles according to its header; correct its header or resample it"

AIR_BELOW_HU = -200
SOFT_TISSUE_HU = (-200, 300)
MIN_FRACTION = 0.001
# Inverted CT has the air around the body here. No more than a tenth of a skull is as dense.
DENSE_ABOVE_HU, MAX_DENSE_FRACTION = 700, 0.3
MAX_HU = 31000
"""No CT has more, not even in metal: extended scales end at 30710 HU."""
# Metal and bone beyond the scale are less than this of a scan, all at its highest value.
CONSTANT_ABOVE_HU, MAX_CONSTANT_FRACTION = 2000, 0.05
MAX_NORMALISED_RANGE = 20
"""Largest difference of two values that is taken for a mask's, or for normalised intensities."""


def spacing_text(spacing_mm: Sequence[float]) -> str:
    """Voxel edges in words: "0.7 x 0.7 x 2.5 mm"."""
    return " x ".join(f"{edge:g}" for edge in spacing_mm) + " mm"


def same_spacing(one_mm: np.ndarray | Sequence[float], other_mm: np.ndarray | Sequence[float]) -> bool:
    """Whether two statements of one spacing agree."""
    return np.allclose(one_mm, other_mm, rtol=SPACING_TOLERANCE, atol=0)


def check_pixels(dimension: int, size: tuple[int, ...], components: int, pixel_type: str) -> None:
    """Raise `UnusableScanError` unless the image has 3 dimensions and one real number per voxel."""
    if dimension != 3:
        shape = " x ".join(map(str, size))
        raise UnusableScanError(f"has {dimension} dimensions ({shape}), a CT volume has 3; export it as one 3D volume")
    if components != 1 or "complex" in pixel_type:
        raise UnusableScanError(
            f"has {components} values per voxel ({pixel_type}), CT has one; export the original scan, not a picture"
        )


def check_grid(size: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> None:
    """Raise `UnusableScanError` where spacing or size are impossible; both in the same order of the axes.

    To be called before the voxels are read: a header can announce more than the memory holds.
    """
    if min(size) < 1:
        raise UnusableScanError(f"has {' x '.join(map(str, size))} voxels, so it is empty; export it again")
    if not all(np.isfinite(edge) and MIN_SPACING_MM <= edge <= MAX_SPACING_MM for edge in spacing_mm):
        raise UnusableScanError(
            f"has a voxel spacing of {spacing_text(spacing_mm)}, possible are {MIN_SPACING_MM:g} to "
            f"{MAX_SPACING_MM:g} mm; correct the spacing in its header or export it again"
        )
    voxels = int(np.prod([int(edge) for edge in size], dtype=object))
    resampled = int(np.prod(resampled_shape(size, spacing_mm), dtype=object))
    if voxels > MAX_STORED_VOXELS or resampled > MAX_RESAMPLED_VOXELS:
        raise UnusableScanError(
            f"claims {' x '.join(map(str, size))} voxels of {spacing_text(spacing_mm)}, more than any CT has (at most "
            f"{MAX_RESAMPLED_VOXELS:.0e} voxels at 1 mm); correct its header or crop it"
        )


def check_stated_spacing(stated_mm: Sequence[float] | None, read_mm: Sequence[float]) -> None:
    """Raise `UnusableScanError` unless a header states the spacing that ITK has read; ``None`` where it states none.

    ITK takes 1 mm, without a word, where a header states no spacing or one that it cannot compute with.
    """
    if stated_mm is None:
        raise UnusableScanError("states no voxel spacing; export it again, with its geometry")
    if not same_spacing(stated_mm, read_mm):
        raise UnusableScanError(
            f"states a voxel spacing of {spacing_text(stated_mm)}, which ITK reads as {spacing_text(read_mm)}; "
            "correct its header"
        )


def check_stored_bytes(size: tuple[int, int, int], stored: int) -> None:
    """Raise `UnusableScanError` where a header announces more voxels than ``stored`` bytes can hold, even compressed.

    To be called before memory is taken for them.
    """
    voxels = int(np.prod([int(edge) for edge in size], dtype=object))
    if voxels > stored * MAX_COMPRESSION:
        raise UnusableScanError(
            f"claims {' x '.join(map(str, size))} voxels, far more than its {stored} bytes can hold; it is truncated "
            "or damaged, copy or export it again"
        )


def check_right_angles(direction: np.ndarray) -> None:
    """Raise `UnusableScanError` where the axes of a volume (columns of the 3 x 3 cosines) are not at right angles."""
    if not np.allclose(direction.T @ direction, np.eye(3), rtol=0, atol=RIGHT_ANGLE):
        raise UnusableScanError(SKEWED)


def check_extent(shape: tuple[int, int, int], spacing_mm: float) -> None:
    """Raise `UnusableScanError` where a canonical volume is too small or too large.

    Args:
        shape: (slices, height, width) in voxels.
        spacing_mm: their edge.
    """
    least_mm, sizes_mm = MIN_EDGE_VOXELS * spacing_mm, [edge * spacing_mm for edge in shape]
    if shape[0] < MIN_EDGE_VOXELS:
        raise UnusableScanError(
            f"covers {sizes_mm[0]:g} mm from its lowest to its highest slice, a sub-volume needs {least_mm:g} mm; "
            "leave out localizers and single slices"
        )
    if min(shape) < MIN_EDGE_VOXELS:
        raise UnusableScanError(
            f"is {' x '.join(f'{edge:g}' for edge in sizes_mm)} mm (slices x height x width), every edge must have at "
            f"least {least_mm:g} mm; leave it out"
        )
    if math.prod(shape) > MAX_RESAMPLED_VOXELS:
        raise UnusableScanError(
            f"would have {' x '.join(map(str, shape))} voxels at {spacing_mm:g} mm, more than the "
            f"{MAX_RESAMPLED_VOXELS:.0e} that memory is planned for; crop it, or give a larger --spacing-mm"
        )


def check_values(values: np.ndarray, may_be_clipped: bool = False) -> None:
    """Raise `UnusableScanError` unless the voxels can be HU of a body in or with air.

    HU are recognised by air (below -200 HU: around the body, in lungs and bowel) and soft tissue (-200 to 300 HU),
    each in at least a thousandth of the voxels. Label maps, MR, 8-bit pictures, normalised intensities and CT stored
    with an offset of 1024 have no voxel as low as air.

    Args:
        values: of all voxels.
        may_be_clipped: accept what was clipped to any window that begins below 0 HU, too.
    """
    low, high = float(values.min()), float(values.max())  # NaN where one voxel is NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise UnusableScanError(f"has {count} voxels that are NaN or infinite; write a number there, -1024 for air")
    if low == high:
        raise UnusableScanError(f"has the same value {low:g} in every voxel; export it again")
    if may_be_clipped and low < 0 and high - low > MAX_NORMALISED_RANGE:
        return
    wanted = MIN_FRACTION * values.size
    beyond = np.count_nonzero(values > MAX_HU) if high > MAX_HU else 0
    if beyond > wanted:
        raise UnusableScanError(
            f"has {beyond / values.size:.1%} of its voxels above {MAX_HU} HU (up to {high:g}), which no CT has: they "
            "are padding that is not declared, or low values stored without their sign; set them to -1024"
        )
    constant = np.count_nonzero(values == values.max()) if high > CONSTANT_ABOVE_HU else 0
    if constant > MAX_CONSTANT_FRACTION * values.size:
        raise UnusableScanError(
            f"has {constant / values.size:.1%} of its voxels at {high:g} HU, which no CT has: they are padding that is "
            "not declared, or its intensities are inverted; set padding to -1024"
        )
    if np.count_nonzero(values < AIR_BELOW_HU) < wanted:
        raise UnusableScanError(
            f"has values from {low:g} to {high:g} and no air, so they are not HU; {_advice(low, high)}"
        )
    tissue = np.count_nonzero((values >= SOFT_TISSUE_HU[0]) & (values <= SOFT_TISSUE_HU[1]))
    if tissue < wanted:
        raise UnusableScanError(
            f"has values from {low:g} to {high:g} but no soft tissue ({SOFT_TISSUE_HU[0]} to {SOFT_TISSUE_HU[1]} HU), "
            "so they are not HU; apply the rescale slope and intercept exactly once"
        )
    if np.count_nonzero(values > DENSE_ABOVE_HU) > MAX_DENSE_FRACTION * values.size:
        raise UnusableScanError(
            f"has more than {MAX_DENSE_FRACTION:.0%} of its voxels above {DENSE_ABOVE_HU} HU, as dense bone, so its "
            "intensities are most likely inverted; export the original CT"
        )


def _advice(low: float, high: float) -> str:
    """What values without air most likely are, and what to do about it."""
    if high - low <= MAX_NORMALISED_RANGE:
        return "they look like a mask or normalised: leave it out or give the original scan"
    if low >= 0 and high <= 255:
        return "they look like labels or an 8-bit picture: leave it out or give the original scan"
    if low >= 0 and high > 1000:
        return "give CT, with the rescale intercept (often -1024) applied if that is missing"
    return "give the original CT, not windowed and not of another modality"
