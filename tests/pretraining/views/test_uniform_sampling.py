"""Uniform sampling: exactly one patch per group, balanced, unbiased and in order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.views.uniform_sampling import draw_patches, draw_positions, gather_patches, kept_patches


@settings(max_examples=40)
@given(depth=st.integers(1, 4), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_keeps_one_patch_of_every_group_each_position_equally_often(depth, height, width, seed):
    groups = (depth * 4, height, width)
    positions = draw_positions(groups, np.random.default_rng(seed))
    assert np.bincount(positions.ravel(), minlength=4).tolist() == [positions.size // 4] * 4
    kept = kept_patches(positions)
    assert (np.diff(kept) > 0).all()
    z, rest = np.divmod(kept, 4 * height * width)
    y, x = np.divmod(rest, 2 * width)
    group = (z * height + y // 2) * width + x // 2
    assert sorted(group) == list(range(positions.size))


def test_every_position_is_drawn_alike_over_many_views():
    rng = np.random.default_rng(0)
    draws = np.stack([draw_positions((4, 6, 6), rng) for _ in range(2000)])
    shares = np.stack([(draws == position).mean(0) for position in range(4)])
    assert np.abs(shares - 0.25).max() < 0.05  # five standard deviations


@settings(max_examples=30)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    patch=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_result_is_made_of_whole_patches_of_the_view(grid, patch, seed):
    shape = (grid[0] * 4 * patch[0], grid[1] * 2 * patch[1], grid[2] * 2 * patch[2])
    view = np.arange(np.prod(shape)).reshape(shape)
    kept = draw_patches(shape, patch, np.random.default_rng(seed))
    sampled = gather_patches(view, patch, kept)
    assert sampled.shape == (shape[0], shape[1] // 2, shape[2] // 2)
    corners = sampled[:: patch[0], :: patch[1], :: patch[2]]
    z, y, x = np.unravel_index(corners, shape)
    assert not (z % patch[0]).any() and not (y % patch[1]).any() and not (x % patch[2]).any()
    last = sampled[patch[0] - 1 :: patch[0], patch[1] - 1 :: patch[1], patch[2] - 1 :: patch[2]]
    assert (last - corners == view[tuple(p - 1 for p in patch)]).all()
    mirrored = np.flip(view, (0, 1, 2))  # a view of negative strides
    np.testing.assert_array_equal(gather_patches(mirrored, patch, kept), gather_patches(mirrored.copy(), patch, kept))


def test_two_views_are_sampled_independently():
    rng = np.random.default_rng(0)
    assert (draw_positions((4, 6, 6), rng) == draw_positions((4, 6, 6), rng)).mean() == pytest.approx(0.25, abs=0.15)
