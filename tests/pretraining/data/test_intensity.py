"""Intensity augmentation has the distribution of batchgenerators' transforms, from which the method took it."""

import random

import numpy as np
import pytest
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    BrightnessTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from scipy.stats import ks_2samp

from pretraining.data.intensity import INTENSITY_AUGMENTATIONS

DRAWS = 1000


def batchgenerators_transform(view: int) -> Compose:
    """CADS method, section 2.3, for view 0 or 1."""
    return Compose([
        GaussianNoiseTransform(noise_variance=(0, 0.1)),
        GaussianBlurTransform((0.1, 2.0), p_per_channel=(0.8, 0.5)[view], p_per_sample=0.8),
        BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=(0.8, 1.0)[view]),
        BrightnessTransform(0.0, 0.4, per_channel=True, p_per_sample=(0.8, 0.5)[view], p_per_channel=0.8),
        ContrastAugmentationTransform((0.75, 1.25), preserve_range=True),
        GammaTransform((0.7, 1.5), per_channel=True, retain_stats=True, p_per_sample=(0.8, 1.0)[view]),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def image():
    """A smooth picture with an edge, as HU / 1024."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (6, 14, 14)), indexing="ij")
    return np.where(x + 0.3 * y > 0.2, 0.05, -0.8).astype(np.float32) + (0.1 * np.sin(3 * z)).astype(np.float32)


def statistics(view: np.ndarray) -> list[float]:
    """Mean, spread, extremes and roughness."""
    return [view.mean(), view.std(), view.min(), view.max(), np.abs(np.diff(view, axis=2)).mean()]


@pytest.mark.parametrize("view", [0, 1])
def test_published_level_has_the_distribution_of_batchgenerators(image, view):
    ours = INTENSITY_AUGMENTATIONS["published"][view]
    rng = np.random.default_rng(1)
    mine = np.array([statistics(ours(image, rng)) for _ in range(DRAWS)])
    np.random.seed(2)  # noqa: NPY002 (batchgenerators draws from the global generators)
    random.seed(2)
    theirs_transform = batchgenerators_transform(view)
    theirs = np.array([statistics(theirs_transform(data=image[None, None].copy())["data"][0, 0]) for _ in range(DRAWS)])
    for column, name in enumerate(("mean", "std", "min", "max", "roughness")):
        assert ks_2samp(mine[:, column], theirs[:, column]).pvalue > 1e-3, name


def test_a_view_depends_on_its_generator_alone_and_stays_float32(image):
    for augmentation in INTENSITY_AUGMENTATIONS["published"] + INTENSITY_AUGMENTATIONS["weak"]:
        before = image.copy()
        first, again, other = (augmentation(image, np.random.default_rng(seed)) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        assert first.dtype == np.float32
        np.testing.assert_array_equal(image, before)


def test_a_constant_view_stays_finite():
    for augmentation in INTENSITY_AUGMENTATIONS["weak"]:
        for seed in range(20):
            assert np.isfinite(augmentation(np.full((4, 8, 8), -1.0, np.float32), np.random.default_rng(seed))).all()
