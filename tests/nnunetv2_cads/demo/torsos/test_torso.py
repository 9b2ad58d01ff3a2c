"""The synthetic torsos: reproducible, anatomically in order, and with HU that fit the labels."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_cads.demo.torsos.torso import LABELS, Torso, TorsoConfig, make_torso

SHARP = TorsoConfig(slice_spacing_mm=(3.0, 3.0), pixel_spacing_mm=(2.5, 2.5))
EQUAL_ORGANS = ("liver", "spleen", "kidney_right", "kidney_left")


@pytest.fixture(scope="module")
def torsos() -> list[Torso]:
    return [make_torso(seed=(7, i)) for i in range(8)]


def organ(torso: Torso, name: str) -> np.ndarray:
    return torso.labels == LABELS[name]


def centre(torso: Torso, name: str) -> np.ndarray:
    """Centre of mass in voxels along (z, y, x)."""
    return np.argwhere(organ(torso, name)).mean(axis=0)


def test_a_seed_gives_one_torso():
    first, second, other = make_torso(seed=(3, 1)), make_torso(seed=(3, 1)), make_torso(seed=(3, 2))
    np.testing.assert_array_equal(first.image_hu, second.image_hu)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.spacing_mm == second.spacing_mm
    assert first.spacing_mm != other.spacing_mm


def test_noise_leaves_the_anatomy_as_it_is():
    noisy = make_torso(replace(SHARP, noise_hu=(60.0, 60.0)), 5)
    clean = make_torso(replace(SHARP, noise_hu=(0.0, 0.0)), 5)
    np.testing.assert_array_equal(noisy.labels, clean.labels)
    assert noisy.image_hu[organ(noisy, "liver")].std() > 2 * clean.image_hu[organ(clean, "liver")].std()


def test_arrays_and_spacing_keep_their_contract(torsos):
    config = TorsoConfig()
    for torso in torsos:
        assert torso.image_hu.dtype == np.int16
        assert torso.labels.dtype == np.uint8
        assert torso.image_hu.shape == torso.labels.shape
        assert torso.image_hu.min() >= -1024
        assert config.slice_spacing_mm[0] <= torso.spacing_mm[0] <= config.slice_spacing_mm[1]
        assert config.pixel_spacing_mm[0] <= torso.spacing_mm[1] <= config.pixel_spacing_mm[1]
        assert torso.spacing_mm[1] == torso.spacing_mm[2]
    assert len({torso.spacing_mm for torso in torsos}) == len(torsos)


def test_every_organ_is_there(torsos):
    for torso in torsos:
        counts = np.bincount(torso.labels.ravel(), minlength=len(LABELS))
        assert counts.size == len(LABELS)
        assert counts.min() >= 60


def test_organs_lie_where_they_belong(torsos):
    for torso in torsos:
        place = {name: centre(torso, name) for name in LABELS if name != "background"}
        up, back, left = (np.eye(3)[i] for i in range(3))
        assert place["liver"] @ left < place["spleen"] @ left
        assert place["kidney_right"] @ left < place["spine"] @ left < place["kidney_left"] @ left
        assert place["spine"] @ back > place["aorta"] @ back
        assert place["spine"] @ back > place["liver"] @ back
        assert place["lungs"] @ up > place["liver"] @ up > place["kidney_right"] @ up


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("lungs", -870, -620),
        ("liver", 50, 140),
        ("spleen", 50, 140),
        ("kidney_right", 50, 140),
        ("kidney_left", 50, 140),
        ("spine", 150, 700),
        ("ribs", 220, 800),
        ("aorta", 90, 340),
    ],
)
def test_hu_are_plausible(torsos, name, lowest, highest):
    for torso in torsos:
        assert lowest < torso.image_hu[organ(torso, name)].mean() < highest


def test_air_surrounds_the_body(torsos):
    for torso in torsos:
        corner = torso.image_hu[:, :3, :3]
        assert -1024 <= corner.mean() < -950


def test_organs_of_equal_hu_cannot_be_told_apart_by_intensity():
    for seed in range(3):
        torso = make_torso(SHARP, (1, seed))
        inside = {name: torso.image_hu[ndimage.binary_erosion(organ(torso, name))] for name in EQUAL_ORGANS}
        medians = [np.median(values) for values in inside.values()]
        assert np.ptp(medians) < inside["liver"].std()


def test_voxels_on_an_edge_are_mixed():
    torso = make_torso(replace(SHARP, noise_hu=(0.0, 0.0)), 2)
    lungs = organ(torso, "lungs")
    edge = lungs & ~np.roll(lungs, 1, axis=1)
    mixed = (torso.image_hu[edge] > -600) & (torso.image_hu[edge] < 0)
    assert mixed.mean() > 0.2


def test_low_contrast_brings_the_surroundings_close_to_the_organs():
    def contrast(config: TorsoConfig) -> float:
        torso = make_torso(replace(config, noise_hu=(0.0, 0.0)), 4)
        kidney = organ(torso, "kidney_left")
        neighbours = np.zeros_like(kidney)
        for axis in range(3):
            for step in (-2, 2):
                neighbours |= np.roll(kidney, step, axis=axis)
        neighbours &= torso.labels == 0
        return float(np.median(torso.image_hu[kidney]) - np.median(torso.image_hu[neighbours]))

    assert contrast(replace(SHARP, organ_contrast_hu=(30.0, 30.0))) < 50
    assert contrast(replace(SHARP, organ_contrast_hu=(150.0, 150.0))) > 80


def test_without_variation_only_noise_and_texture_differ():
    config = replace(SHARP, variation=0.0)
    first, second = (make_torso(config, (0, i)) for i in range(2))
    for name in ("liver", "lungs", "spleen"):
        overlap = (organ(first, name) & organ(second, name)).sum()
        assert 2 * overlap > 0.95 * (organ(first, name).sum() + organ(second, name).sum())


def test_body_scale_sets_the_size_of_the_field():
    small, large = make_torso(replace(SHARP, body_scale=0.4), 0), make_torso(replace(SHARP, body_scale=0.8), 0)
    np.testing.assert_allclose(np.array(large.labels.shape) / small.labels.shape, 2, rtol=0.05)


def test_a_scan_of_a_part_shows_slices_of_the_whole_body():
    whole = make_torso(SHARP, 6)
    part = make_torso(replace(SHARP, shown_part=(0.4, 0.6)), 6)
    count = len(part.labels)
    assert 0.4 * len(whole.labels) - 1 <= count <= 0.6 * len(whole.labels) + 1
    starts = [
        i for i in range(len(whole.labels) - count + 1) if np.array_equal(whole.labels[i : i + count], part.labels)
    ]
    assert len(starts) == 1 and np.array_equal(whole.image_hu[starts[0] : starts[0] + count], part.image_hu)
