"""Sub-volumes, crops and views of a real store."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretraining.config import PretrainConfig, ViewConfig
from pretraining.ct.radiograph import frontal_radiograph
from pretraining.store.store import Store
from pretraining.system.processes import Processes
from pretraining.views.loader import ViewStream, make_loader, sample_numbers, steps_per_epoch
from pretraining.views.make_views import (
    draw_common_crop,
    draw_view_box,
    draw_window,
    make_views,
    read_box,
    resize_in_plane,
)
from pretraining.views.subvolumes import SubVolumes


@pytest.fixture(scope="module")
def store(small_store):
    return Store.open(small_store)


def read_common_crop(store, subvolume, config, rng):
    """The whole common crop, (D, H, W) in HU."""
    return read_box(store, subvolume.volume_id, *draw_common_crop(subvolume, config, rng))


def test_windows_cover_every_slice_and_wide_volumes_only_their_middle(store):
    subvolumes = SubVolumes(store, ViewConfig())
    slices = {name: [s.slices for s in subvolumes if s.volume_id == name] for name in store.ids}
    assert slices["middle"] == [(0, 24), (12, 36), (24, 48), (36, 60), (37, 61)]
    assert slices["small"] == [(0, 24), (6, 30)]
    assert slices["wide"] == [(0, 24), (12, 36)]
    wide = next(s for s in subvolumes if s.volume_id == "wide")
    assert wide.rows == (17, 153) and wide.columns == (33, 297)
    assert next(s for s in subvolumes if s.volume_id == "middle").columns == (0, 150)


def test_a_volume_of_few_slices_is_one_window():
    thin = SimpleNamespace(ids=["thin"], spacing_mm=1.0, shape=lambda _: (20, 50, 60))
    assert [s.slices for s in SubVolumes(thin, ViewConfig())] == [(0, 20)]


def test_common_crop_has_the_edges_of_the_method_and_the_voxels_of_the_store(store):
    config = ViewConfig(common_crop_scale=(1.0, 1.3))
    middle = [s for s in SubVolumes(store, config) if s.volume_id == "middle"][1]
    volume = store.volume("middle")[12:36]
    edges = set()
    for seed in range(40):
        crop = read_common_crop(store, middle, config, np.random.default_rng(seed))
        assert crop.dtype == np.int16 and crop.shape[0] == 24
        edges.add(crop.shape[1:])
        assert all(96 <= edge <= 125 for edge in crop.shape[1:])
        window = np.lib.stride_tricks.sliding_window_view(volume[5], crop.shape[1:])
        assert (window == crop[5]).all((2, 3)).any()
    assert len(edges) > 20 and any(height != width for height, width in edges)


def test_an_edge_that_does_not_fit_falls_back_to_the_crop_size(store):
    config = ViewConfig()
    middle = next(s for s in SubVolumes(store, config) if s.volume_id == "middle")  # 130 rows, 150 columns
    heights = {read_common_crop(store, middle, config, np.random.default_rng(i)).shape[1] for i in range(20)}
    assert heights == {96}


def test_volumes_smaller_than_a_crop_are_padded_with_air(store):
    config = ViewConfig()
    small = next(s for s in SubVolumes(store, config) if s.volume_id == "small")  # 60 x 70 in-plane
    crop = read_common_crop(store, small, config, np.random.default_rng(0))
    assert crop.shape == (24, 96, 96)
    assert (crop[:, :18] == -1024).all() and (crop[:, -18:] == -1024).all() and crop.max() > 0
    volume = store.volume("small")[slice(*small.slices)]
    np.testing.assert_array_equal(crop[:, 18:78, 13:83], volume)


def test_a_box_reads_as_the_same_part_of_the_whole_crop(store):
    config = ViewConfig()
    for subvolume in SubVolumes(store, config):
        crop, filled = draw_common_crop(subvolume, config, np.random.default_rng(1))
        whole = read_box(store, subvolume.volume_id, crop, filled)
        for seed in range(5):
            box = draw_view_box(crop, config, np.random.default_rng(seed))
            part = tuple(slice(low - first, high - first) for (low, high), (first, _) in zip(box, crop, strict=True))
            np.testing.assert_array_equal(read_box(store, subvolume.volume_id, box, filled), whole[part])


def test_a_box_of_padding_alone_is_air(store):
    image = read_box(store, "small", [(0, 24), (-10, 0), (0, 70)], [(0, 24), (0, 60), (0, 70)])
    assert image.shape == (24, 10, 70) and (image == -1024).all()


@pytest.mark.parametrize(("sampled", "shape"), [(True, (1, 16, 48, 48)), (False, (1, 16, 96, 96))])
def test_views_have_their_shape_and_differ(store, sampled, shape):
    config = ViewConfig(uniform_sampling=sampled)
    first, second, _ = make_views(store, SubVolumes(store, config)[0], config, np.random.default_rng(0))
    assert first.shape == second.shape == shape
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)


def test_mirroring_is_drawn_for_each_axis_with_its_probability(store):
    config = ViewConfig(
        uniform_sampling=False, intensity="none", view_scale=(1.0, 1.0), window_slices=16,
        common_crop_scale=(1.0, 1.0), mirror_probability=0.8,
    )  # fmt: skip
    middle = next(s for s in SubVolumes(store, config) if s.volume_id == "middle")
    counts = np.zeros(3)
    for seed in range(150):
        crop = read_common_crop(store, middle, config, np.random.default_rng(seed))
        view = make_views(store, middle, config, np.random.default_rng(seed))[0][0].numpy() * 1024
        candidates = [axes for axes in np.ndindex(2, 2, 2) if np.allclose(np.flip(crop, np.flatnonzero(axes)), view)]
        assert len(candidates) == 1
        counts += candidates[0]
    assert (np.abs(counts / 150 - 0.8) < 0.13).all()


def test_a_sampled_view_shows_patches_of_the_whole_one_in_order(store):
    sampled, whole = ViewConfig(intensity="none"), ViewConfig(intensity="none", uniform_sampling=False)
    subvolume = SubVolumes(store, sampled)[2]
    for seed in range(5):  # the generators of both go apart after view 1
        view = make_views(store, subvolume, sampled, np.random.default_rng(seed))[0][0].numpy()
        full = make_views(store, subvolume, whole, np.random.default_rng(seed))[0][0].numpy()
        patches = full.reshape(4, 4, 12, 8, 12, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 4, 8, 8)
        shown = view.reshape(4, 4, 6, 8, 6, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 4, 8, 8)
        same = (shown[:, None] == patches[None]).all((2, 3, 4))
        assert (same.sum(1) == 1).all() and (np.diff(same.argmax(1)) > 0).all()


UNCHANGED = {"uniform_sampling": False, "intensity": "none", "mirror_probability": 0.0}


def test_a_window_is_shown_as_minus_1_to_1_and_clipped(store):
    whole, window = (ViewConfig(**UNCHANGED, intensity_window=limits) for limits in ((-1024, 1024), (-100.0, 300.0)))
    subvolume = SubVolumes(store, whole)[2]
    for seed in range(3):
        hu = 1024 * make_views(store, subvolume, whole, np.random.default_rng(seed)).ct_1.numpy()
        shown = make_views(store, subvolume, window, np.random.default_rng(seed)).ct_1.numpy()
        np.testing.assert_allclose(shown, np.clip((hu - 100) / 200, -1, 1), atol=1e-5)


def test_random_windows_differ_between_views_and_show_a_part_of_what_the_encoder_sees(store):
    config = ViewConfig(**UNCHANGED, random_window_probability=1.0)
    windows = {draw_window(config, np.random.default_rng(seed)) for seed in range(200)}
    assert len(windows) == 200 and all(-1024 <= low < high <= 1024 for low, high in windows)
    widths = np.array([high - low for low, high in windows])
    assert widths.min() < 200 and widths.max() > 1200 and 350 < np.median(widths) < 800
    rare = ViewConfig(**UNCHANGED, random_window_probability=0.25)
    drawn = [draw_window(rare, np.random.default_rng(seed)) for seed in range(400)]
    assert np.mean([window != (-1024, 1024) for window in drawn]) == pytest.approx(0.25, abs=0.07)
    views = make_views(store, SubVolumes(store, config)[2], config, np.random.default_rng(0))
    assert all(view.min() >= -1 and view.max() <= 1 for view in views)
    assert (views.ct_1.mean() - views.ct_2.mean()).abs() > 0.1


@given(low=st.floats(-1024, 1000), width=st.floats(1, 2048), seed=st.integers(0, 2**32))
def test_a_random_window_lies_within_what_the_encoder_sees(low, width, seed):
    limits = (low, min(low + width, 1024.0))
    first, last = draw_window(
        ViewConfig(intensity_window=limits, random_window_probability=1.0), np.random.default_rng(seed)
    )
    assert limits[0] - 1e-6 <= first < last <= limits[1] + 1e-6
    assert last - first >= min(149.9, 0.999 * (limits[1] - limits[0]))


def test_a_local_xray_tells_where_it_lies_and_that_of_the_scan_does_not(store):
    for xray, tells in (("scan", False), ("local", True)):
        config = ViewConfig(xray=xray)
        of_middle = [subvolume for subvolume in SubVolumes(store, config) if subvolume.volume_id == "middle"]
        xrays = [make_views(store, s, config, np.random.default_rng(0)).xray for s in of_middle[:2]]
        assert all(image.shape == (1, 96, 96) and image.min() >= -1 and image.max() <= 1 for image in xrays)
        assert torch.equal(*xrays) != tells


def test_a_local_xray_is_the_radiograph_of_its_slices_and_columns(store):
    config = ViewConfig(xray="local")
    subvolume = next(s for s in SubVolumes(store, config) if s.volume_id == "wide")
    _, (slices, _, columns) = draw_common_crop(subvolume, config, np.random.default_rng(1))
    part = store.volume("wide")[slice(*slices), :, slice(*columns)]
    expected = resize_in_plane(frontal_radiograph(part)[None], (96, 96))
    assert torch.equal(make_views(store, subvolume, config, np.random.default_rng(1)).xray, expected)


def test_resize_keeps_a_ramp_straight():
    ramp = np.broadcast_to(np.linspace(0, 1, 80, dtype=np.float32), (2, 50, 80))
    resized = resize_in_plane(ramp.copy(), (96, 96)).numpy()
    assert resized.shape == (2, 96, 96)
    inner = np.diff(resized[0, 0, 2:-2])
    np.testing.assert_allclose(inner, inner.mean(), rtol=1e-3)


def test_an_epoch_shows_no_subvolume_twice_and_leaves_out_what_fills_no_batch(store):
    config = PretrainConfig().replace(batch_size=4)
    stream = ViewStream(store, config)
    assert len(stream.subvolumes) == 9 and steps_per_epoch(stream, config) == 2
    ranks = [Processes(rank=rank, world_size=2) for rank in range(2)]
    numbers = [[n for rank in ranks for n in sample_numbers(step, 4, rank)] for step in range(6)]
    for epoch in range(3):
        seen = [stream.subvolume_index(n) for step in numbers[2 * epoch : 2 * epoch + 2] for n in step]
        assert len(seen) == len(set(seen)) == 8
    assert [n for step in numbers for n in step] == list(range(24))


def test_an_epoch_of_a_given_length_leaves_nothing_out(store):
    config = PretrainConfig().replace(batch_size=4, epoch_samples=20)
    stream = ViewStream(store, config)
    assert steps_per_epoch(stream, config) == 5
    seen = [stream.subvolume_index(n) for n in range(18)]
    assert sorted(seen[:9]) == sorted(seen[9:]) == list(range(9))
    assert seen[:9] != seen[9:]


def test_a_store_smaller_than_a_batch(store):
    config = PretrainConfig().replace(batch_size=16)
    stream = ViewStream(store, config)
    assert steps_per_epoch(stream, config) == 1
    assert {stream.subvolume_index(n) for n in range(16)} == set(range(9))


def test_batches_are_the_same_whatever_the_workers_and_wherever_a_run_goes_on(store):
    config = PretrainConfig().replace(batch_size=2, num_workers=0)
    stream = ViewStream(store, config)
    whole = list(make_loader(stream, config, 0, 5, torch.device("cpu")))
    parallel = list(make_loader(stream, config.replace(num_workers=2), 2, 5, torch.device("cpu")))
    assert len(whole) == 5 and len(parallel) == 3
    for ours, theirs in zip(whole[2:], parallel, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
        assert ours[3] is theirs[3] is None
    other = ViewStream(store, config.replace(seed=1))
    assert not torch.equal(stream[0][0], other[0][0])
    assert whole[0][2].shape == (2, 1, 96, 96)


def test_making_batches_leaves_the_global_generator_alone(store):
    config = PretrainConfig().replace(batch_size=2, num_workers=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(iter(make_loader(ViewStream(store, config), config, 0, 1, torch.device("cpu"))))
    assert torch.equal(torch.rand(3), expected)
