"""Our views have the distribution of plain CADS's, whose intensity augmentation is batchgenerators'.

Both draw views of the same sub-volume, and two-sample Kolmogorov-Smirnov tests compare statistics of them: each
statistic, and its distance from the plain median, which shows a change of spread. Seeds are fixed. The last test shows
that wrong pipelines are found. What this size of sample cannot show is a small change of a range, such as noise up to
0.11 instead of 0.1; `test_intensity.py` checks the steps themselves exactly.
"""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp

from pretraining.config import ViewConfig
from pretraining.plain.loader import Views, list_subvolumes
from pretraining.store.store import Store
from pretraining.views import make_views as views_module
from pretraining.views import subvolumes
from pretraining.views.intensity import INTENSITY_AUGMENTATIONS
from pretraining.views.make_views import make_views
from pretraining.views.subvolumes import SubVolume

DRAWS = 800
DRAWS_OF_WRONG_ONES = 300
P_VALUE = 1e-4  # for each of some fifty comparisons, most of them correlated
SHAPE = (24, 90, 100)
WINDOW = SubVolume("volume", (0, 24), (0, 90), (0, 100))
# half of the published crop in-plane, for speed: all ranges are relative to it, but for the blur's, which is in voxels
CONFIG = ViewConfig(crop_size=(16, 48, 48))


def texture_hu() -> np.ndarray:
    """Blobs of three densities, alike everywhere, so that the place of a crop hides nothing of its intensities."""
    field = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1.5, mode="wrap")
    field /= field.std()
    return np.rint(700 * np.sign(field) * (np.abs(field) > 0.6) + 60 * field).clip(-1024, 1024).astype(np.int16)


def our_views(config, volume_hu, seed):
    radiograph = np.zeros((SHAPE[0], SHAPE[2]), np.float32)
    store = SimpleNamespace(window=lambda _, region: volume_hu[region], radiograph=lambda _: radiograph)
    return [view[0].numpy() for view in make_views(store, WINDOW, config, np.random.default_rng(seed))[:2]]


def plain_views(views, volume_hu, seed):
    np.random.seed(seed)  # noqa: NPY002 (it and batchgenerators draw from the global generators)
    random.seed(seed)
    return [view[0] for view in views.ct_views(volume_hu)]


def intensity_statistics(view: np.ndarray) -> dict[str, float]:
    """Of a sampled view: moments, extremes, quantiles, and the steps between neighbours within the patches."""
    mean, std = view.mean(), view.std()
    unit = (view - mean) / std
    low, middle, high = np.percentile(unit, (5, 50, 95))
    result = {
        "mean": mean, "std": std, "min": view.min(), "max": view.max(), "range": unit.max() - unit.min(),
        "skewness": (unit**3).mean(), "kurtosis": (unit**4).mean(), "median": (middle - low) / (high - low),
    }  # fmt: skip
    for axis, patch in enumerate(CONFIG.sampling_patch_size):
        within = np.arange(1, view.shape[axis]) % patch > 0
        steps = np.diff(view, axis=axis).compress(within, axis=axis)
        result[f"gradient energy {axis}"] = np.square(steps).mean()
        result[f"autocorrelation {axis}"] = 1 - np.square(steps).mean() / (2 * std**2)
        result[f"median step {axis}"] = np.median(np.abs(steps))
    return result


def position_statistics(views_of_ramps: list[list[np.ndarray]]) -> dict[str, float]:
    """Edges, centres and mirroring of both views, from what they show of the ramp along each axis (8 HU per voxel)."""
    result = {}
    for axis, pair in enumerate(views_of_ramps):
        for number, view in enumerate(pair):
            profile = 128 * view.mean(tuple({0, 1, 2} - {axis}))  # in voxels of the volume
            slope = (profile[-4] - profile[3]) / (len(profile) - 7)
            result |= {f"edge {number} {axis}": abs(slope) * len(profile), f"mirrored {number} {axis}": slope < 0}
            result[f"centre {number} {axis}"] = profile.mean()
        result[f"distance {axis}"] = result[f"centre 0 {axis}"] - result[f"centre 1 {axis}"]
    return result


def p_values(ours: list[dict], theirs: list[dict]) -> dict[str, float]:
    result = {}
    for name in ours[0]:
        mine, plains = (np.array([float(statistics[name]) for statistics in side]) for side in (ours, theirs))
        result[name] = ks_2samp(mine, plains, method="asymp").pvalue
        centre = np.median(plains)
        result[f"{name}, spread"] = ks_2samp(np.abs(mine - centre), np.abs(plains - centre), method="asymp").pvalue
    return result


@pytest.fixture(scope="module")
def plain_statistics():
    """Statistics of the plain pipeline's views 1, and of its views 2."""
    views, volume = Views(CONFIG), texture_hu()
    drawn = [plain_views(views, volume, seed) for seed in range(DRAWS)]
    return [[intensity_statistics(pair[view]) for pair in drawn] for view in range(2)]


def our_p_values(plain_statistics, draws: int) -> list[dict[str, float]]:
    volume = texture_hu()
    drawn = [our_views(CONFIG, volume, seed) for seed in range(draws)]
    return [p_values([intensity_statistics(pair[view]) for pair in drawn], plain_statistics[view]) for view in range(2)]


def test_intensities_have_the_distribution_of_the_plain_pipeline(plain_statistics):
    for view, result in enumerate(our_p_values(plain_statistics, DRAWS), 1):
        assert min(result.values()) > P_VALUE, f"view {view}: {result}"


def test_weak_intensities_have_the_distribution_of_the_plain_pipeline():
    config = dataclasses.replace(CONFIG, intensity="weak")
    volume, views, seeds = texture_hu(), Views(config), range(DRAWS_OF_WRONG_ONES)
    ours = [our_views(config, volume, seed) for seed in seeds]
    theirs = [plain_views(views, volume, seed) for seed in seeds]
    for view in range(2):
        result = p_values(*([intensity_statistics(pair[view]) for pair in side] for side in (ours, theirs)))
        assert min(result.values()) > P_VALUE, f"view {view + 1}: {result}"


def test_places_have_the_distribution_of_the_plain_pipeline():
    config = dataclasses.replace(CONFIG, crop_size=(16, 32, 32), intensity="none", uniform_sampling=False)
    ramps = [np.broadcast_to(8 * index, SHAPE).astype(np.int16) for index in np.indices(SHAPE, sparse=True)]
    views = Views(config)
    ours = [position_statistics([our_views(config, ramp, seed) for ramp in ramps]) for seed in range(DRAWS)]
    theirs = [position_statistics([plain_views(views, ramp, seed) for ramp in ramps]) for seed in range(DRAWS)]
    result = p_values(ours, theirs)
    assert min(result.values()) > P_VALUE, result
    narrower = dataclasses.replace(config, view_scale=(0.85, 1.15), mirror_probability=0.6)
    wrong = [position_statistics([our_views(narrower, ramp, seed) for ramp in ramps]) for seed in range(DRAWS)]
    result = p_values(wrong, theirs)
    assert max(result[name] for name in ("edge 0 1", "edge 1 2", "mirrored 0 0", "mirrored 1 2")) < P_VALUE, result


@pytest.mark.parametrize(
    "change",
    [{"noise_p": 0.0}, {"noise": (0.0, 0.3)}, {"blur_p": 0.0}, {"add_p": 0.0}, {"gamma": (0.7, 1.2)}],
    ids=str,
)
def test_a_wrong_pipeline_is_found(plain_statistics, monkeypatch, change):
    wrong = tuple(dataclasses.replace(augmentation, **change) for augmentation in INTENSITY_AUGMENTATIONS["published"])
    monkeypatch.setitem(views_module.INTENSITY_AUGMENTATIONS, "published", wrong)
    for view, result in enumerate(our_p_values(plain_statistics, DRAWS_OF_WRONG_ONES), 1):
        assert min(result.values()) < P_VALUE / 100, f"view {view}: {result}"


def test_the_subvolumes_are_those_of_plain_cads(small_store):
    store, config = Store.open(small_store), ViewConfig()
    regions = [
        (one.volume_id, (slice(*one.slices), slice(*one.rows), slice(*one.columns)))
        for one in subvolumes.SubVolumes(store, config)
    ]
    assert regions == list_subvolumes(store, config) and len(regions) > len(store)
