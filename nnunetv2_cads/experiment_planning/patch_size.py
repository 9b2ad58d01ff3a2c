"""Patch sizes that suit PVT-UNet's strides, the data's extent and a memory target.

Source: nnU-Net's planner (Isensee et al., Nature Methods 2021): start from the largest patch in the aspect ratio of the
spacing, cut to the median image, make it smaller until it fits. Deviations: axes are multiples of the network's total
stride wherever the images are that large, so that no map is rounded up; and the axis that is longest in millimetres is
made smaller, so that patches stay cubes of tissue, as those of pre-training were, however long the scans are.
"""

import itertools
import math
from collections.abc import Callable, Sequence

from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES

LARGEST_PATCH_VOXELS = {3: 256**3, 2: 2048**2}
"""Where the search starts, by number of dimensions; nnU-Net's numbers."""

SMALLEST_EDGE = 4
"""No axis is halved to less; nnU-Net's number."""


def total_strides(dims: int) -> tuple[int, ...]:
    """Factor by which the network reduces each axis: (16, 32, 32) or (32, 32)."""
    return tuple(math.prod(axis) for axis in zip(*STRIDES[dims], strict=True))


def plan_patch_size(
    spacing_mm: Sequence[float], median_shape: Sequence[float], fits: Callable[[tuple[int, ...]], bool]
) -> tuple[int, ...]:
    """The largest patch that fits.

    Args:
        spacing_mm: of the resampled images, per axis; two or three.
        median_shape: of the resampled images, in voxels; more axes than ``spacing_mm`` has are ignored.
        fits: whether a patch can be trained on. If even the smallest cannot, it is planned all the same.
    """
    dims = len(spacing_mm)
    shape = [max(1, math.floor(n + 0.5)) for n in median_shape[:dims]]
    edge_mm = (LARGEST_PATCH_VOXELS[dims] * math.prod(spacing_mm)) ** (1 / dims)
    steps = total_strides(dims)
    patch = tuple(
        _suitable_length(round(edge_mm / mm), n, axis, dims)
        for axis, (mm, n) in enumerate(zip(spacing_mm, shape, strict=True))
    )
    while not fits(patch):
        reducible = [axis for axis in range(dims) if patch[axis] > steps[axis]]
        if not reducible:
            break
        longest = max(reducible, key=lambda axis: patch[axis] * spacing_mm[axis])
        patch = tuple(n - steps[axis] if axis == longest else n for axis, n in enumerate(patch))
    return patch


def _suitable_length(length: int, extent: int, axis: int, dims: int) -> int:
    """The multiple of the axis' total stride nearest to ``length`` in ``extent``; `_short_length` of a short extent."""
    step = total_strides(dims)[axis]
    if extent < step:
        return _short_length(min(length, extent), axis, dims)
    return step * max(1, math.floor(min(length, extent) / step + 0.5))


def _short_length(length: int, axis: int, dims: int) -> int:
    """A short axis by nnU-Net's rule, then rounded up to a length that its own trainer can take.

    The rule: a multiple of two to the number of halvings that leave at least `SMALLEST_EDGE`. nnU-Net's trainer scales
    labels to round(length x scale), but the network rounds up: this is the first length at which the two agree.
    """
    halvings = max(0, int(math.log2(max(1, length) / SMALLEST_EDGE))) if length >= SMALLEST_EDGE else 0
    multiple = 2**halvings
    candidates = itertools.count(multiple * math.ceil(length / multiple), multiple)
    return next(n for n in candidates if _labels_agree(n, axis, dims))


def _labels_agree(length: int, axis: int, dims: int) -> bool:
    ours = [size[axis] for size in output_sizes((length,) * dims, STRIDES[dims])]
    strides = itertools.accumulate((stride[axis] for stride in STRIDES[dims][:-1]), int.__mul__, initial=1)
    return ours == [round(length / stride) for stride in strides]
