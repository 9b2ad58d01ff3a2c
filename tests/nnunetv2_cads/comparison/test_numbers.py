"""Surface Dice of images, and the patches that a prediction takes."""

import numpy as np
import pytest
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

from nnunetv2_cads.comparison.cost import TILE_STEP, patches_of
from nnunetv2_cads.comparison.surface import normalised_surface_dice


def disc(radius, shift=0):
    y, x = np.ogrid[-20:21, -20:21]
    return (y**2 + (x - shift) ** 2 <= radius**2)[None]


def test_the_surface_of_an_image_is_its_outline():
    assert normalised_surface_dice(disc(12), disc(12), (999.0, 1.0, 1.0), 1.0) == 1
    assert normalised_surface_dice(disc(12), disc(6), (999.0, 1.0, 1.0), 1.0) == 0
    assert 0.2 < normalised_surface_dice(disc(12), disc(12, shift=4), (999.0, 1.0, 1.0), 1.0) < 0.6


@pytest.mark.parametrize(
    ("shape", "patch_size", "patches"),
    [
        ((24, 48, 48), (24, 48, 48), 1),
        ((36, 48, 72), (24, 48, 48), 4),
        ((10, 20, 96), (24, 48, 48), 3),  # padded where it is smaller than the patch
        ((100, 512, 512), (512, 512), 100),
        ((5, 40, 96), (48, 48), 15),
    ],
)
def test_patches_are_those_of_nnunet_on_the_padded_case(shape, patch_size, patches):
    assert patches_of(shape, patch_size) == patches
    if len(patch_size) == 3 and all(np.array(shape) >= patch_size):
        assert patches == np.prod([len(s) for s in compute_steps_for_sliding_window(shape, patch_size, TILE_STEP)])
