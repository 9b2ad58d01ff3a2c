"""The probes on features whose answer is known; `test_evidence.py` runs them on real encoders."""

import numpy as np
import pytest
import torch

from pretraining.probing.features import PooledFeatures, effective_rank, sample_map
from pretraining.probing.probes import (
    LabelledCase,
    balanced_accuracy,
    draw_crops,
    draw_voxels,
    knn_probe,
    linear_probe,
    retrieval,
    split_by_slices,
)


def blobs(count: int, classes: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian blobs in 5 dimensions, class c at ``distance`` along axis c."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % classes
    return torch.randn(count, 5, generator=generator) + distance * torch.eye(5)[targets], targets


@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_probes_find_classes_that_are_apart_and_guess_those_that_are_not(probe):
    assert probe(*blobs(300, 4, 8.0, 0), *blobs(300, 4, 8.0, 1)) > 0.97
    assert probe(*blobs(300, 4, 0.0, 0), *blobs(300, 4, 0.0, 1)) == pytest.approx(0.25, abs=0.1)


def test_a_linear_probe_needs_no_common_scale_and_a_rare_class_counts_like_a_frequent_one():
    x, y = blobs(300, 2, 8.0, 0)
    assert (
        linear_probe(x * torch.tensor([1e4, 1e-4, 1, 1, 1]) + 100, y, x * torch.tensor([1e4, 1e-4, 1, 1, 1]) + 100, y)
        > 0.97
    )
    predicted, targets = torch.zeros(100, dtype=torch.long), torch.tensor([0] * 99 + [1])
    assert balanced_accuracy(predicted, targets) == 0.5


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
    scans = torch.randn(16, 8, generator=generator)
    scan = torch.arange(16).repeat_interleave(3)
    ct = scans[scan] + 0.1 * torch.randn(48, 8, generator=generator)
    found = retrieval(PooledFeatures(ct, scan, scans + 50.0, []))
    assert found["top1"] == found["top5"] == 1.0 and found["chance_top1"] == 1 / 16
    others = torch.randn(16, 8, generator=generator)
    assert retrieval(PooledFeatures(ct, scan, others, []))["top1"] < 0.3


def test_rank_counts_directions():
    x = torch.zeros(40, 6)
    x[:, 0] = torch.arange(40.0)
    assert effective_rank(x + 3) == pytest.approx(1.0)
    generator = torch.Generator().manual_seed(0)
    assert effective_rank(torch.randn(5000, 6, generator=generator)) == pytest.approx(6, abs=0.1)
    assert effective_rank(torch.ones(4, 3)) == 0.0


def test_crops_and_slabs_keep_image_and_labels_together():
    image = np.arange(20 * 30 * 40).reshape(20, 30, 40)
    case = LabelledCase(image, (image % 7).astype(np.int16))
    for crop in draw_crops(case, (8, 50, 16), 4, seed=0):
        assert crop.labels.shape == (8, 30, 16) and np.array_equal(crop.image_hu % 7, crop.labels)
    lower, upper = split_by_slices(case, gap=4)
    used = [np.flatnonzero((half.labels >= 0).any((1, 2))) for half in (lower, upper)]
    assert used[0].tolist() == list(range(8)) and used[1].tolist() == list(range(12, 20))
    voxels, targets = draw_voxels(lower.labels, [2, 5], 6, seed=0)
    assert targets.tolist() == [0] * 6 + [1] * 6
    assert lower.labels[tuple(voxels.T)].tolist() == [2] * 6 + [5] * 6
