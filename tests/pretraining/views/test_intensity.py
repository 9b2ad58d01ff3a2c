"""Intensity augmentation has the semantics of batchgenerators' transforms, from which the method took it.

That the published level as a whole has their distribution is tested in `test_views_distribution.py`.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgenerators.augmentations.color_augmentations import augment_contrast, augment_gamma
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from pretraining.views.intensity import INTENSITY_AUGMENTATIONS, IntensityAugmentation

NEVER = {
    "noise": (0.0, 0.1), "noise_p": 0.0, "blur_sigma": (0.1, 2.0), "blur_p": 0.0, "multiply": (1.0, 1.0),
    "multiply_p": 0.0, "add_sigma": 0.4, "add_p": 0.0, "contrast": (0.75, 1.25), "contrast_p": 0.0,
    "gamma": (0.7, 1.5), "gamma_p": 0.0,
}  # fmt: skip


def everything(view):
    return view


def quarter(view):
    return view[::2, ::2].clone()


@pytest.fixture(scope="module")
def image():
    """A smooth picture with an edge, as HU / 1024."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (6, 30, 40)), indexing="ij")
    return np.where(x + 0.3 * y > 0.2, 0.05, -0.8).astype(np.float32) + (0.1 * np.sin(3 * z)).astype(np.float32)


def augmented(augmentation, image, seed=0, keep=everything):
    return augmentation(torch.from_numpy(image.copy()), np.random.default_rng(seed), keep).numpy()


def test_noise_is_normal_and_another_in_every_view(image):
    noisy = IntensityAugmentation(**NEVER | {"noise_p": 1.0, "noise": (0.07, 0.07)})
    noises = np.stack([(augmented(noisy, image, seed) - image).ravel() for seed in range(8)])
    assert kstest(noises.ravel() / 0.07, "norm").pvalue > 1e-3
    unrelated = ~np.eye(8, dtype=bool)
    assert np.abs(np.corrcoef(noises)[unrelated]).max() < 0.06  # five standard deviations
    assert np.abs(np.corrcoef(noises[:, 1:].ravel(), noises[:, :-1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("sigma", [0.1, 0.13, 0.5, 1.3, 2.0])
@pytest.mark.parametrize("shape", [(16, 96, 96), (6, 14, 25), (4, 8, 3)])  # the last: kernels longer than the picture
def test_blur_is_that_of_scipy(shape, sigma):
    picture = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    blur = IntensityAugmentation(**NEVER | {"blur_p": 1.0, "blur_sigma": (sigma, sigma)})
    np.testing.assert_allclose(augmented(blur, picture), gaussian_filter(picture, sigma), atol=2e-6)


@pytest.mark.parametrize("gamma", [None, 0.7, 1.5])
@pytest.mark.parametrize("contrast", [None, 0.75, 1.25])
@pytest.mark.parametrize("brightness", [(1.0, 0.0), (0.8, 0.3)])
def test_brightness_contrast_and_gamma_are_those_of_batchgenerators(image, monkeypatch, brightness, contrast, gamma):
    multiplier, added = brightness
    ours = IntensityAugmentation(**NEVER | {
        "multiply_p": 1.0, "multiply": (multiplier, multiplier), "add_p": 1.0,
        "contrast_p": float(contrast is not None), "contrast": (contrast, contrast),
        "gamma_p": float(gamma is not None), "gamma": (gamma, gamma),
    })  # fmt: skip
    rng = SimpleNamespace(random=lambda: 0.0, uniform=lambda low, high: low, normal=lambda mean, sigma: added)
    view = ours(torch.from_numpy(image.copy()), rng, everything).numpy()
    expected = (multiplier * image.astype(np.float64) + added)[None]
    if contrast is not None:
        expected = augment_contrast(expected, lambda: contrast, preserve_range=True)
    if gamma is not None:
        monkeypatch.setattr(np.random, "uniform", lambda low, high: gamma)
        expected = augment_gamma(expected, (0.7, 1.5), per_channel=True, retain_stats=True)
    np.testing.assert_allclose(view, expected[0], atol=3e-6)


def test_keeping_a_part_changes_nothing_of_it(image):
    for augmentation in INTENSITY_AUGMENTATIONS["published"] + INTENSITY_AUGMENTATIONS["weak"]:
        for seed in range(5):
            whole = augmented(augmentation, image, seed)
            np.testing.assert_array_equal(augmented(augmentation, image, seed, quarter), whole[::2, ::2])


def test_a_view_depends_on_its_generator_alone_and_stays_float32(image):
    for augmentation in INTENSITY_AUGMENTATIONS["published"] + INTENSITY_AUGMENTATIONS["weak"]:
        first, again, other = (augmented(augmentation, image, seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        assert first.dtype == np.float32


def test_the_order_of_the_axes_in_memory_does_not_matter(image):
    for augmentation in INTENSITY_AUGMENTATIONS["published"] + INTENSITY_AUGMENTATIONS["weak"]:
        for seed in range(10):
            channels_last = torch.from_numpy(image.transpose(1, 2, 0).copy()).permute(2, 0, 1)
            view = augmentation(channels_last, np.random.default_rng(seed), everything)
            np.testing.assert_array_equal(view.numpy(), augmented(augmentation, image, seed))


def test_a_constant_view_stays_finite():
    for augmentation in INTENSITY_AUGMENTATIONS["weak"]:
        for seed in range(20):
            assert np.isfinite(augmented(augmentation, np.full((4, 8, 8), -1.0, np.float32), seed)).all()
