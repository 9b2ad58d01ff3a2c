"""Canonical axes and 1 mm resampling, against SimpleITK's own reorientation and B-splines."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pretraining.ct.geometry import resample_cubic, resample_hu, resampled_shape, to_canonical

ORIENTATIONS = ["".join(letters) for axes in permutations(("RL", "AP", "IS")) for letters in product(*axes)]


def image_of(shape, spacing=(1.0, 1.0, 1.0), seed=0):
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32))
    image.SetSpacing(spacing)
    return image


def canonical(image):
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return to_canonical(sitk.GetArrayFromImage(image), image.GetSpacing(), direction)


def test_all_48_orientations_come_to_the_same_axes():
    image = image_of((4, 5, 6), (0.7, 0.8, 2.5))
    for orientation in ORIENTATIONS:
        volume, spacing = canonical(sitk.DICOMOrient(image, orientation))
        np.testing.assert_array_equal(volume, sitk.GetArrayFromImage(image), err_msg=orientation)
        assert spacing == (2.5, 0.8, 0.7)
    assert len(set(ORIENTATIONS)) == 48


@settings(max_examples=50)
@given(
    st.tuples(*[st.floats(-25, 25)] * 3),
    st.sampled_from(ORIENTATIONS),
)
def test_oblique_scan_keeps_the_nearest_axes(angles_degrees, orientation):
    image = image_of((4, 5, 6), (0.7, 0.8, 2.5))
    expected = sitk.GetArrayFromImage(image)
    stored = sitk.DICOMOrient(image, orientation)
    tilt = Rotation.from_euler("xyz", angles_degrees, degrees=True).as_matrix()
    direction = tilt @ np.array(stored.GetDirection()).reshape(3, 3)
    volume, _ = to_canonical(sitk.GetArrayFromImage(stored), stored.GetSpacing(), direction)
    np.testing.assert_array_equal(volume, expected)


spacings = st.tuples(*[st.floats(0.3, 6).map(lambda edge: round(edge, 3))] * 3)
shapes = st.tuples(*[st.integers(5, 14)] * 3)  # ITK mirrors an index only once, which is too little below 5


@settings(max_examples=40)
@given(shapes, spacings, st.integers(0, 5))
def test_resampling_equals_simpleitk_b_spline(shape, spacing_zyx, seed):
    image = image_of(shape, spacing_zyx[::-1], seed)
    result = resample_cubic(sitk.GetArrayFromImage(image), spacing_zyx)
    size = resampled_shape(shape, spacing_zyx)
    assert result.shape == size
    assert result.dtype == np.float32
    corner_mm = [
        ((edge - 1) * spacing - (new - 1)) / 2 for edge, spacing, new in zip(shape, spacing_zyx, size, strict=True)
    ]
    outside = -1e6
    expected = sitk.GetArrayFromImage(
        sitk.Resample(
            image, size[::-1], sitk.Transform(), sitk.sitkBSpline, corner_mm[::-1], (1, 1, 1),
            (1, 0, 0, 0, 1, 0, 0, 0, 1), outside, sitk.sitkFloat64,
        )
    )  # fmt: skip
    inside = expected > outside / 2  # ITK has no value more than half a voxel beyond the outermost centres
    assert inside.any()
    np.testing.assert_allclose(result[inside], expected[inside], atol=0.01)


@settings(max_examples=30)
@given(shapes, spacings, st.integers(0, 2))
def test_mirrored_scan_gives_mirrored_volume(shape, spacing_zyx, axis):
    volume = sitk.GetArrayFromImage(image_of(shape))
    there = resample_cubic(np.flip(volume, axis), spacing_zyx)
    np.testing.assert_allclose(np.flip(there, axis), resample_cubic(volume, spacing_zyx), atol=0.01)


def test_voxels_of_1_mm_are_left_as_they_are():
    volume = sitk.GetArrayFromImage(image_of((70, 9, 8)))
    np.testing.assert_array_equal(resample_cubic(volume, (1.0, 1.0, 1.0)), volume)


@pytest.mark.parametrize("axis", range(3))
def test_long_axis_is_resampled_without_seams(axis):
    """The matrix product goes by blocks of rows; a smooth signal shows no step where they meet."""
    position_mm = (np.arange(160) - 79.5) * 2
    wave = 500 * np.sin(position_mm / 15)
    shape = [1, 1, 1]
    shape[axis] = 160
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 2.0
    volume = np.broadcast_to(wave.reshape(shape), [160 if k == axis else 3 for k in range(3)])
    result = np.moveaxis(resample_cubic(volume, tuple(spacing)), axis, 0)
    expected = 500 * np.sin((np.arange(320) - 159.5) / 15)
    np.testing.assert_allclose(result[10:-10, 1, 1], expected[10:-10], atol=0.05)


def body_hu(spacing_mm, shape, metal_hu):
    """A slab of tissue with a rod, by its analytic edges: the share of tissue and rod in each voxel, (z, y, x)."""
    edges = [(np.arange(edge + 1) - edge / 2) * spacing for edge, spacing in zip(shape, spacing_mm, strict=True)]

    def covered(axis, low, high):
        inside = np.clip(edges[axis], low, high)
        return (inside[1:] - inside[:-1]) / spacing_mm[axis]

    tissue = np.ones(shape[0])[:, None, None] * covered(1, -25, 25)[None, :, None] * covered(2, -30, 30)
    rod = covered(0, -20, 20)[:, None, None] * covered(1, -4, 4)[None, :, None] * covered(2, 6, 14)
    return np.rint(-1000 + 1040 * tissue + (metal_hu - 40) * rod).astype(np.int32)


@pytest.mark.parametrize("metal_hu", [20_000, 8_000])
@pytest.mark.parametrize("padding_hu", [None, -3024])
def test_tissue_beside_metal_and_padding_is_right(metal_hu, padding_hu):
    spacing_mm, shape = (2.5, 0.7, 0.7), (24, 100, 110)
    scan, new = body_hu(spacing_mm, shape, metal_hu), (60, 70, 77)
    if padding_hu is not None:
        scan[:, :, :8] = padding_hu  # in air, up to 8 mm from tissue
    truth = np.clip(body_hu((1.0, 1.0, 1.0), new, metal_hu), -1024, 1024)
    difference = np.abs(resample_hu(scan, spacing_mm) - truth)[:, 12:-12, 12:-12]
    tissue = (np.abs(truth - 40) < 1)[:, 12:-12, 12:-12]
    assert np.sqrt((difference[tissue] ** 2).mean()) < 25
    late = np.abs(np.clip(resample_cubic(scan, spacing_mm), -1024, 1024) - truth)[:, 12:-12, 12:-12]
    assert (difference[tissue] > 100).sum() < 0.7 * (late[tissue] > 100).sum()
