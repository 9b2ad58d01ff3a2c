"""The probes on features whose answer is known; `test_probe_command.py` runs them on encoders."""

import numpy as np
import pytest
import torch

from pretraining.probing.cases import CROP_SIZE, NO_LABEL, LabelledCase, draw_crops, resample_nearest
from pretraining.probing.features import PooledFeatures, effective_rank, sample_map
from pretraining.probing.probes import draw_voxels, knn_probe, linear_probe, retrieval


def blobs(count: int, classes: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian blobs in 5 dimensions, class c at ``distance`` along axis c."""
    targets = np.arange(count) % classes
    noise = np.random.default_rng(seed).standard_normal((count, 5))
    return noise + distance * np.eye(5)[targets], targets


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_probes_find_classes_that_are_apart_and_guess_those_that_are_not(probe):
    assert probe(*blobs(300, 4, 8.0, 0), *blobs(300, 4, 8.0, 1)) > 0.97
    assert probe(*blobs(300, 4, 0.0, 0), *blobs(300, 4, 0.0, 1)) == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_features_need_no_common_scale(probe):
    scale = np.array([1e4, 1e-4, 1, 1, 1])
    (train, train_targets), (test, test_targets) = blobs(300, 2, 8.0, 0), blobs(300, 2, 8.0, 1)
    assert probe(scale * train + 100, train_targets, scale * test + 100, test_targets) > 0.97


def test_a_rare_class_counts_like_a_frequent_one():
    train, targets = blobs(300, 2, 8.0, 0)
    rare = np.array([0] * 99 + [1])
    assert linear_probe(train, targets, np.repeat(train[:1], 100, 0), rare) == 0.5


def test_voxel_features_lie_where_the_voxels_are():
    strides, depth, height, width = (2, 4, 4), 5, 4, 6
    z, y, x = torch.meshgrid(
        *(torch.arange(n) * s for n, s in zip((depth, height, width), strides, strict=True)), indexing="ij"
    )
    voxels = torch.tensor([[0, 0, 0], [3, 5, 17], [8, 12, 20], [1, 2, 3]])
    sampled = sample_map(torch.stack([z, y, x]).float(), voxels, strides)
    torch.testing.assert_close(sampled, voxels.float())


def test_retrieval_finds_what_is_alike_whatever_the_offset_between_the_modalities():
    generator = torch.Generator().manual_seed(0)
    volumes = torch.randn(16, 8, generator=generator)
    volume = torch.arange(16).repeat_interleave(3)
    ct = volumes[volume] + 0.1 * torch.randn(48, 8, generator=generator)
    found = retrieval(PooledFeatures(ct, volume, volumes + 50.0, []))
    assert found["top1"] == found["top5"] == 1.0 and found["chance_top1"] == 1 / 16
    others = torch.randn(16, 8, generator=generator)
    assert retrieval(PooledFeatures(ct, volume, others, []))["top1"] < 0.3


def test_rank_counts_directions():
    x = torch.zeros(40, 6)
    x[:, 0] = torch.arange(40.0)
    assert effective_rank(x + 3) == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    assert effective_rank(torch.randn(5000, 6, generator=generator)) == pytest.approx(6, abs=0.1)
    assert effective_rank(torch.ones(4, 3)) == 0.0


def test_every_crop_shows_a_label_and_keeps_image_and_labels_together():
    image = np.arange(40 * 70 * 50).reshape(40, 70, 50)
    labels = np.zeros(image.shape, np.int16)
    labels[35:37, 3:5, 40:42] = 2
    labels[:10] = NO_LABEL
    crops = draw_crops(LabelledCase(image, labels), np.random.default_rng(0))
    assert any((crop.labels == 2).any() for crop in crops)
    for crop in crops:
        assert crop.labels.shape == (CROP_SIZE[0], CROP_SIZE[1], 50)
        first = np.unravel_index(crop.image_hu[0, 0, 0], image.shape)
        box = tuple(slice(start, start + size) for start, size in zip(first, CROP_SIZE, strict=True))
        assert np.array_equal(crop.image_hu, image[box]) and np.array_equal(crop.labels, labels[box])
        voxels, targets = draw_voxels(crop.labels, [0, 2], 6, seed=0)
        assert crop.labels[tuple(voxels.T)].tolist() == [(0, 2)[target] for target in targets]


def test_labels_at_1_mm_are_those_of_the_nearest_voxel():
    labels = np.arange(6).reshape(1, 2, 3)
    fine = resample_nearest(labels, (3.0, 2.0, 0.5))
    assert fine.shape == (3, 4, 2)
    assert fine[0].tolist() == [[0, 2], [0, 2], [3, 5], [3, 5]]
