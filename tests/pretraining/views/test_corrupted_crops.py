"""Crops to restore: what is corrupted, how, and that nothing else is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretraining.config import PretrainConfig, RestorationConfig
from pretraining.store.store import Store
from pretraining.views.corrupted_crops import draw_blocks, intensity_curve, make_crop
from pretraining.views.subvolumes import SubVolume, SubVolumes

SIZES = {"restored_crop_size": (16, 40, 36), "corrupted_block": (4, 8, 8)}


def crop_of(small_store, **settings):
    store, config = Store.open(small_store), PretrainConfig().replace(**SIZES | settings)
    crop = make_crop(store, SubVolumes(store, config.view)[2], config, np.random.default_rng(0))
    return crop, crop.truth / 1024, config.restoration


@pytest.mark.parametrize("corruption", ["blank", "noise", "shuffle"])
def test_blocks_are_corrupted_and_the_rest_is_as_it_is(small_store, corruption):
    crop, sound, _ = crop_of(small_store, corruption=corruption)
    assert all(part.shape == (1, 16, 40, 36) for part in crop[:3])
    assert torch.equal(crop.seen[~crop.judged], sound[~crop.judged])
    assert (crop.seen[crop.judged] != sound[crop.judged]).float().mean() > 0.5
    assert crop.judged.float().mean().item() == pytest.approx(0.6, abs=0.05)


def test_blank_blocks_are_0_hu_and_noise_is_like_the_crop(small_store):
    blank, _, _ = crop_of(small_store, corruption="blank")
    assert (blank.seen[blank.judged] == 0).all()
    noise, sound, _ = crop_of(small_store, corruption="noise")
    drawn = noise.seen[noise.judged]
    assert drawn.mean().item() == pytest.approx(sound.mean().item(), abs=0.02)
    assert drawn.std().item() == pytest.approx(sound.std(correction=0).item(), rel=0.05)


def test_shuffling_keeps_the_voxels_of_each_block(small_store):
    crop, sound, config = crop_of(small_store, corruption="shuffle")
    depth, height, width = config.corrupted_block
    changed = 0
    for z in range(0, 16, depth):
        for y in range(0, 40, height):
            for x in range(0, 36, width):
                block = (0, slice(z, z + depth), slice(y, y + height), slice(x, x + width))
                seen, truth = crop.seen[block].flatten(), sound[block].flatten()
                assert torch.equal(seen.sort().values, truth.sort().values)
                changed += not torch.equal(seen, truth)
    assert changed > 10


@given(seed=st.integers(0, 2**32))
def test_a_curve_keeps_the_order_or_turns_it_over(seed):
    rng = np.random.default_rng(seed)
    intensities = np.linspace(-1, 1, 50, dtype=np.float32)
    steps = np.diff(intensity_curve(intensities, rng))
    assert (steps >= 0).all() or (steps <= 0).all()
    assert np.abs(intensity_curve(intensities, rng)).max() <= 1


def test_a_curve_is_judged_everywhere(small_store):
    crop, sound, _ = crop_of(small_store, corruption="curve")
    assert crop.judged.all() and (crop.seen != sound).float().mean() > 0.5


@given(
    ratio=st.floats(0.01, 1.0),
    size=st.tuples(*[st.integers(16, 40)] * 3),
    block=st.tuples(*[st.integers(1, 9)] * 3),
    seed=st.integers(0, 9),
)
def test_as_many_blocks_as_the_ratio_says(ratio, size, block, seed):
    config = RestorationConfig(restored_crop_size=size, corrupted_block=block, corrupted_ratio=ratio)
    voxels = draw_blocks(config, np.random.default_rng(seed))
    assert voxels.shape == size
    corners = voxels[:: block[0], :: block[1], :: block[2]]
    assert corners.sum() == max(round(ratio * corners.size), 1)
    whole = corners.repeat(block[0], 0).repeat(block[1], 1).repeat(block[2], 2)
    assert np.array_equal(whole[tuple(map(slice, size))], voxels)


def test_air_is_beyond_a_scan_that_is_smaller_than_a_crop(small_store):
    store = Store.open(small_store)
    subvolume = SubVolume("small", (0, 24), (0, 60), (0, 70))
    config = PretrainConfig().replace(restored_crop_size=(24, 64, 70))
    crop = make_crop(store, subvolume, config, np.random.default_rng(0))
    assert (crop.truth[0, :, 60:] == -1024).all()
    hu = torch.from_numpy(store.volume("small")[:24, :60, :70].astype(np.float32))
    assert torch.equal(crop.truth[0, :, :60], hu)


def test_a_crop_lies_within_its_sub_volume_anywhere(small_store):
    store, config = Store.open(small_store), PretrainConfig().replace(restored_crop_size=(16, 32, 32))
    subvolume = SubVolume("middle", (12, 36), (0, 130), (0, 150))
    rng = np.random.default_rng(0)
    volume, places = store.volume("middle")[:].astype(np.float32), []
    for _ in range(30):
        truth = make_crop(store, subvolume, config, rng).truth[0].numpy()
        windows = np.lib.stride_tricks.sliding_window_view(volume, truth.shape)
        places.append(np.argwhere((windows[..., 0, 0, :4] == truth[0, 0, :4]).all(-1))[0])
    places = np.array(places)
    assert places[:, 0].min() >= 12 and places[:, 0].max() <= 36 - 16
    assert (places.max(0) - places.min(0) >= (5, 50, 60)).all()
