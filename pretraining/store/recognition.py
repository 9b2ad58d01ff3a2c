"""Whether two volumes show the same scan, though one was cropped, resampled, clipped, shifted or made noisy.

Both are reduced to the pattern of their soft tissue: the window -160 to 240 HU, which most conversions keep, in voxels
of 4 mm, which hold what slices of 5 mm still show; and of that only what is between about 4 and 12 mm wide
(a difference of Gaussians), since the wide shapes of a region are alike in all people. The pattern of one is then
shifted over that of the other (Padfield, Masked object registration in the Fourier domain, IEEE TIP 2012; the masks
are boxes here and the patterns' means are nearly 0, so one FFT and running sums are enough): at 8 mm over all shifts,
and at 4 mm around the best.

The correlations that decide were measured: docs/compare.md, benchmarks/leaks.py.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

WINDOW_HU = (-160, 240)
FINE_MM = 4.0
"""Edge of a pattern's voxels; a store of larger voxels does not show the pattern."""
SIGMAS_FINE, SIGMAS_COARSE = (1.0, 3.0), (0.7, 2.0)
"""Of the difference of Gaussians, in voxels of 4 and of 8 mm."""
BODY_ABOVE_HU = -150
"""Means of 4 mm that are part of the body, within the window."""
LEAST_BODY_ML, LEAST_COMMON_ML = 1100, 1000
"""Of what each of two scans shows, and of what they have in common: less is alike by chance. The second is smaller,
since voxels of 4 mm on the rim are body in one scan and not in the other."""
WORTH_A_LOOK = 0.7
"""Correlation at 8 mm above which 4 mm decides."""
SAME_SCAN, PERHAPS = 0.84, 0.8
"""Correlation at 4 mm from which two volumes are the same scan, and from which it cannot be told."""
LEAST_SHARE = 0.4
"""Of the energy of one of the two patterns, that must be where they overlap."""
LEAST_RATIO = 0.05
"""Of their energies there: one scan has nearly the same, and what shows next to nothing correlates by chance."""
SLAB = 32  # voxels that are reduced at once


class Pattern(NamedTuple):
    """The soft tissue of a volume, without its wide shapes.

    Attributes:
        fine: float16 (z, y, x), voxels of 4 mm.
        coarse: float32, the same at 8 mm.
        body: bool, where the fine one shows the body.
    """

    fine: np.ndarray
    coarse: np.ndarray
    body: np.ndarray

    @property
    def body_ml(self) -> float:
        """Millilitres of body."""
        return _millilitres(self.body)


def pattern_of(volume_hu: np.ndarray, spacing_mm: float) -> Pattern:
    """The pattern of a volume.

    Args:
        volume_hu: (z, y, x) HU, in a store's axes.
        spacing_mm: edge of its cubic voxels, at most `FINE_MM`.
    """
    means = _means(volume_hu, spacing_mm)
    coarse = means
    for axis in range(3):
        coarse = np.moveaxis(np.tensordot(_overlaps(coarse.shape[axis], 1, 2), coarse, (1, axis)), 0, axis)
    return Pattern(
        _between(means, *SIGMAS_FINE).astype(np.float16), _between(coarse, *SIGMAS_COARSE), means > BODY_ABOVE_HU
    )


def correlation(one: Pattern, other: Pattern) -> float:
    """How alike two patterns are where they match best: 1 for the same scan, 0 where they have too little in common.

    Only shifts are looked at where at least half of the smaller extent overlaps along each axis.
    """
    rough, shift = _best_shift(one.coarse, other.coarse)
    if rough < WORTH_A_LOOK:
        return 0.0
    return max(
        _correlation_at(one, other, [2 * first + step for first, step in zip(shift, steps, strict=True)])
        for steps in itertools.product(range(-2, 3), repeat=3)
    )


def _means(volume_hu: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Means of the window in voxels of `FINE_MM`, float32."""
    slices, height, width = volume_hu.shape
    rows, columns = (_overlaps(edge, spacing_mm, FINE_MM) for edge in (height, width))
    reduced = np.empty((slices, len(rows), len(columns)), np.float32)
    for first in range(0, slices, SLAB):
        slab = np.clip(volume_hu[first : first + SLAB], *WINDOW_HU).astype(np.float32)
        reduced[first : first + SLAB] = rows @ (slab @ columns.T)
    return np.tensordot(_overlaps(slices, spacing_mm, FINE_MM), reduced, 1)


def _overlaps(size: int, spacing: float, new_spacing: float) -> np.ndarray:
    """The matrix that takes the means of ``size`` voxels in larger ones; the last may be filled in part."""
    count = max(1, int(np.ceil(size * spacing / new_spacing - 1e-6)))
    left, new_left = np.arange(size) * spacing, np.arange(count)[:, None] * new_spacing
    shared = np.minimum(left + spacing, new_left + new_spacing) - np.maximum(left, new_left)
    weights = np.maximum(shared, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _between(means: np.ndarray, narrow: float, wide: float) -> np.ndarray:
    first, second = (ndimage.gaussian_filter(means, sigma, mode="nearest", truncate=3) for sigma in (narrow, wide))
    return first - second


def _best_shift(one: np.ndarray, other: np.ndarray) -> tuple[float, list[int]]:
    """The best correlation over all shifts, and the shift: voxel i of ``other`` is voxel i + shift of ``one``."""
    least = [(min(edges) + 1) // 2 for edges in zip(one.shape, other.shape, strict=True)]
    spans = [
        np.arange(need - second, first - need + 1)
        for first, second, need in zip(one.shape, other.shape, least, strict=True)
    ]
    # Long enough that of all these shifts none wraps around into another.
    size = [
        fft.next_fast_len(first + second - need, real=True)
        for first, second, need in zip(one.shape, other.shape, least, strict=True)
    ]
    products = fft.irfftn(fft.rfftn(one, size) * fft.rfftn(other, size).conj(), size)[np.ix_(*spans)]
    energy = _running_sums(one**2, spans, other.shape)
    other_energy = _running_sums(other**2, [-span for span in spans], one.shape)
    enough = (energy >= LEAST_SHARE * np.sum(one**2)) | (other_energy >= LEAST_SHARE * np.sum(other**2))
    enough &= np.minimum(energy, other_energy) > LEAST_RATIO * np.maximum(energy, other_energy)
    found = np.where(enough, products, 0) / np.sqrt(np.where(enough, energy * other_energy, 1))
    place = np.unravel_index(found.argmax(), found.shape)
    return float(found[place]), [int(span[k]) for span, k in zip(spans, place, strict=True)]


def _running_sums(values: np.ndarray, spans: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Sums of ``values`` over a box of ``shape`` that starts at each of the shifts in ``spans``."""
    sums = values.astype(np.float64)
    for axis, (span, edge) in enumerate(zip(spans, shape, strict=True)):
        size = values.shape[axis]
        total = np.insert(np.cumsum(sums, axis), 0, 0, axis)
        sums = np.take(total, np.clip(span + edge, 0, size), axis) - np.take(total, np.clip(span, 0, size), axis)
    return sums


def _correlation_at(one: Pattern, other: Pattern, shift: list[int]) -> float:
    """At one shift in voxels of 4 mm; 0 where the two have too little in common."""
    here, there = [], []
    for step, size, edge in zip(shift, one.fine.shape, other.fine.shape, strict=True):
        start, stop = max(0, step), min(size, step + edge)
        here.append(slice(start, max(start, stop)))
        there.append(slice(start - step, max(start, stop) - step))
    here, there = tuple(here), tuple(there)
    if _millilitres(one.body[here] & other.body[there]) < LEAST_COMMON_ML:
        return 0.0
    first, second = (part.astype(np.float32).ravel() for part in (one.fine[here], other.fine[there]))
    scale = np.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / scale if scale else 0.0


def _millilitres(body: np.ndarray) -> float:
    return np.count_nonzero(body) * FINE_MM**3 / 1000
