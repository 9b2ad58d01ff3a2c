"""Pairs of crops: their points are the same places of the scan, however the crops are turned, scaled and augmented."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F

import pretraining.views.point_pairs
from pretraining.config import PretrainConfig
from pretraining.preprocess import main as preprocess
from pretraining.store.store import Store
from pretraining.views.point_pairs import (
    LARGEST_SHIFT,
    MARGIN,
    PointPair,
    make_point_pair,
    point_in_the_middle,
    rotation,
)
from pretraining.views.subvolumes import SubVolume, SubVolumes

SIZE = (16, 40, 36)
SETTINGS = {"point_crop_size": SIZE, "point_count": 64}
SLOPES = np.array([-9.0, 5.0, 3.0])
"""HU per slice, row and column of the scan `ramp`: a linear function, which linear interpolation leaves as it is."""


@pytest.fixture(scope="module")
def ramp(tmp_path_factory) -> Store:
    """A store of a scan without air whose HU tell where a voxel is."""
    folder = tmp_path_factory.mktemp("archive")
    hu = np.einsum("a,azyx->zyx", SLOPES, np.indices((70, 100, 110))) - 300
    sitk.WriteImage(sitk.GetImageFromArray(hu.astype(np.int16)), str(folder / "ramp.nii.gz"))
    assert preprocess([str(folder), str(folder / "store"), "-np", "1"]) == 0
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def tissue(tmp_path_factory) -> Store:
    """A store of a scan of tissue with air at its far end, where no crop of these tests is."""
    folder = tmp_path_factory.mktemp("archive")
    hu = np.full((70, 100, 110), 40, np.int16)
    hu[-10:] = -1000
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(folder / "tissue.nii.gz"))
    assert preprocess([str(folder), str(folder / "store"), "-np", "1"]) == 0
    return Store.open(folder / "store")


def pair_of(store: Store, subvolume: SubVolume, seed: int, **settings) -> PointPair:
    config = PretrainConfig().replace(**SETTINGS | settings)
    return make_point_pair(store, subvolume, config, np.random.default_rng(seed))


def at(crop: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """A crop's values at its points."""
    grid = 2 * points / (torch.tensor(crop.shape[1:]) - 1) - 1
    return F.grid_sample(crop[None], grid.flip(-1)[None, None, None], align_corners=True)[0, 0, 0, 0]


def as_map(pair: PointPair) -> tuple[np.ndarray, float]:
    """The matrix that maps points of crop 1 to crop 2, less a shift, and the largest error of the fit in voxels."""
    known = np.c_[pair.points_1.numpy(), np.ones(len(pair.points_1))]
    solution = np.linalg.lstsq(known, pair.points_2.numpy(), rcond=None)[0]
    return solution[:3].T, float(np.abs(known @ solution - pair.points_2.numpy()).max())


@pytest.mark.parametrize("seed", range(12))
def test_the_points_are_the_same_places_in_both_crops(ramp, seed, monkeypatch):
    monkeypatch.setattr(pretraining.views.point_pairs, "INTENSITY", lambda shown, rng, keep: keep(shown))
    pair = pair_of(ramp, SubVolume("ramp", (20, 44), (30, 70), (30, 80)), seed)
    assert pair.crop_1.shape == pair.crop_2.shape == (1, *SIZE) and pair.points_1.shape == (64, 3)
    one, two = at(pair.crop_1, pair.points_1), at(pair.crop_2, pair.points_2)
    assert one.std() > 0.03
    torch.testing.assert_close(one, two, rtol=0, atol=2e-4)
    for points in (pair.points_1, pair.points_2):
        assert (points > MARGIN - 1e-3).all() and (points < torch.tensor(SIZE) - 1 - MARGIN + 1e-3).all()
    moved, error = as_map(pair)
    assert error < 1e-3
    scales = np.linalg.svd(moved)[1]
    assert np.linalg.det(moved) > 0  # nothing is mirrored
    assert np.allclose(scales, scales[0], rtol=1e-3) and 0.78 / 1.28 < scales[0] < 1.28 / 0.78
    assert not torch.equal(pair.crop_1, pair.crop_2)


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_crops_are_scaled(ramp, scale, monkeypatch):
    monkeypatch.setattr(pretraining.views.point_pairs, "INTENSITY", lambda shown, rng, keep: keep(shown))
    subvolume = SubVolume("ramp", (20, 44), (30, 70), (30, 80))
    pair = pair_of(ramp, subvolume, 0, point_rotation=(0.0, 0.0, 0.0), point_scale=(scale, scale))
    for crop in pair[:2]:
        for axis, slope in enumerate(SLOPES):
            step = 1024 * crop[0].diff(dim=axis)
            torch.testing.assert_close(step, torch.full_like(step, scale * slope), rtol=0, atol=0.2)


def test_crops_lie_within_a_scan_that_is_larger(tissue, monkeypatch):
    """Around a place at its very corner, too: but for the shift of each crop no air is shown."""
    monkeypatch.setattr(pretraining.views.point_pairs, "INTENSITY", lambda shown, rng, keep: keep(shown))
    corner, upright = (
        SubVolume("tissue", (0, 2), (0, 3), (0, 3)),
        {"point_rotation": (0.0,) * 3, "point_scale": (1.0, 1.0)},
    )
    pairs = [pair_of(tissue, corner, seed, **upright) for seed in range(10)]
    shown = torch.stack([crop for pair in pairs for crop in pair[:2]]) > -0.5
    most_shift = [int(LARGEST_SHIFT * edge) + 1 for edge in SIZE]
    inside = shown[:, 0, most_shift[0] :, most_shift[1] :, most_shift[2] :]
    assert inside.all() and not shown.all()


@pytest.mark.parametrize("axis", range(3))
def test_crops_turn_about_the_axes_as_far_as_they_may(ramp, axis):
    degrees = [40.0 if k == axis else 0.0 for k in range(3)]
    subvolume, angles = SubVolume("ramp", (20, 44), (30, 70), (30, 80)), []
    for seed in range(20):
        moved, _ = as_map(pair_of(ramp, subvolume, seed, point_rotation=degrees, point_scale=(1.0, 1.0)))
        fixed = np.eye(3)[axis]
        np.testing.assert_allclose(moved @ fixed, fixed, atol=1e-3)
        angles.append(np.degrees(np.arccos(np.clip((np.trace(moved) - 1) / 2, -1, 1))))
    assert 40 < max(angles) <= 80  # of two crops against each other


def test_a_rotation_turns_and_does_nothing_else():
    turned = rotation(np.array([0.4, -0.3, 0.2]))
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turned) == pytest.approx(1)
    np.testing.assert_allclose(rotation(np.array([np.pi / 2, 0, 0])) @ [0, 1, 0], [0, 0, 1], atol=1e-12)


def test_points_are_of_tissue_where_there_is_some(small_store, monkeypatch):
    monkeypatch.setattr(pretraining.views.point_pairs, "INTENSITY", lambda shown, rng, keep: keep(shown))
    store, config = Store.open(small_store), PretrainConfig().replace(**SETTINGS)
    of_tissue = []
    for seed, subvolume in enumerate(SubVolumes(store, config.view)):
        pair = pair_of(store, subvolume, seed, intensity_window=(-800.0, 0.0))  # 0 is TISSUE_HU
        of_tissue.append((at(pair.crop_1, pair.points_1) > -0.1).float().mean().item())
    assert np.mean(of_tissue) > 0.95


@pytest.mark.parametrize("edges", [((40, 60), (55, 90), (55, 90)), ((0, 8), (0, 9), (0, 9))], ids=["air", "corner"])
def test_a_place_of_air_gives_a_pair_all_the_same(tmp_path, edges):
    hu = np.full((60, 90, 90), -1000, np.int16)
    hu[2:20, 2:40, 2:40] = 40
    (tmp_path / "archive").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(hu), str(tmp_path / "archive" / "scan.nii.gz"))
    assert preprocess([str(tmp_path / "archive"), str(tmp_path / "store"), "-np", "1"]) == 0
    for seed in range(8):
        pair = pair_of(Store.open(tmp_path / "store"), SubVolume("scan", *edges), seed)
        assert all(values.isfinite().all() for values in pair) and pair.points_1.shape == (64, 3)


def test_crops_reach_beyond_a_scan_that_is_smaller(small_store):
    place, size = SubVolume("small", (0, 24), (0, 60), (0, 70)), (32, 96, 96)
    pair = pair_of(Store.open(small_store), place, 0, point_crop_size=size, point_scale=(1.0, 1.0))
    assert all(values.isfinite().all() for values in pair) and pair.crop_1.shape == (1, *size)
    corners = pair.crop_1[0][np.ix_([0, -1], [0, -1], [0, -1])]
    assert (corners < -0.8).all()  # air


def test_crops_that_do_not_meet_still_have_a_point_to_draw(ramp, monkeypatch):
    monkeypatch.setattr(pretraining.views.point_pairs, "LARGEST_SHIFT", 2.0)
    place = SubVolume("ramp", (20, 44), (30, 70), (30, 80))
    pairs = [pair_of(ramp, place, seed, point_scale=(0.2, 0.3)) for seed in range(10)]
    batch = PointPair(*map(torch.stack, zip(*pairs, strict=True)))
    last = torch.tensor(SIZE) - 1
    assert ((batch.points_1 < 0) | (batch.points_1 > last)).any()
    for points in point_in_the_middle(batch)[2:]:
        assert points.shape == (10, 1, 3) and (points >= 0).all() and (points <= last).all()


def test_a_pair_depends_on_its_seed_alone(ramp):
    subvolume = SubVolume("ramp", (20, 44), (30, 70), (30, 80))
    threads = torch.get_num_threads()
    one = pair_of(ramp, subvolume, 3)
    torch.set_num_threads(1 if threads > 1 else 2)
    torch.manual_seed(99)
    two = pair_of(ramp, subvolume, 3)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.points_1, pair_of(ramp, subvolume, 4).points_1)


def test_the_point_in_the_middle_stays_with_its_partner(ramp):
    pairs = [pair_of(ramp, SubVolume("ramp", (20, 44), (30, 70), (30, 80)), seed) for seed in range(3)]
    batch = PointPair(*map(torch.stack, zip(*pairs, strict=True)))
    chosen = point_in_the_middle(batch)
    for row, pair in enumerate(pairs):
        place = (pair.points_1 == chosen.points_1[row]).all(1).nonzero().item()
        assert torch.equal(pair.points_2[place], chosen.points_2[row, 0])
        assert (pair.points_1 - (torch.tensor(SIZE) - 1) / 2).norm(dim=1).argmin() == place
