"""Probes of frozen features: which organ a voxel belongs to, and which radiograph a sub-volume."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.probing.features import MAPS, PooledFeatures, voxel_features

ITERATIONS = 60
WEIGHT_PENALTY = 1e-3
NEIGHBOURS = 20


@dataclass(frozen=True)
class LabelledCase:
    """An image (D, H, W) in HU and its labels; voxels with label -1 take no part."""

    image_hu: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def read_case(image: Path, labels: Path) -> LabelledCase:
    """Read a case of an nnU-Net raw data set."""
    images = [sitk.ReadImage(str(path)) for path in (image, labels)]
    arrays = [sitk.GetArrayFromImage(image) for image in images]
    return LabelledCase(arrays[0], arrays[1].astype(np.int16), images[0].GetSpacing()[::-1])


def split_by_slices(case: LabelledCase, gap: int) -> tuple[LabelledCase, LabelledCase]:
    """A case's lower and upper half as two, with ``gap`` slices between them that belong to neither."""
    middle = len(case.labels) // 2
    lower, upper = case.labels.copy(), case.labels.copy()
    lower[middle - gap // 2 :] = -1
    upper[: middle + gap - gap // 2] = -1
    return LabelledCase(case.image_hu, lower), LabelledCase(case.image_hu, upper)


def draw_crops(case: LabelledCase, size: tuple[int, int, int], count: int, seed: int) -> list[LabelledCase]:
    """Random crops of ``size``, or of the case's own where that is smaller.

    Features of a whole volume would tell an organ by its place: the zero padding shows where the image ends.
    """
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(count):
        starts = [int(rng.integers(max(n - edge, 0) + 1)) for n, edge in zip(case.labels.shape, size, strict=True)]
        box = tuple(slice(start, start + edge) for start, edge in zip(starts, size, strict=True))
        crops.append(LabelledCase(case.image_hu[box], case.labels[box]))
    return crops


def draw_voxels(labels: np.ndarray, classes: list[int], per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to ``per_class`` random voxels (N, 3) of each class, and their classes' places in the list (N,)."""
    rng = np.random.default_rng(seed)
    voxels, targets = [], []
    for place, label in enumerate(classes):
        found = np.flatnonzero(labels == label)
        chosen = rng.choice(found, min(per_class, len(found)), replace=False)
        voxels.append(np.stack(np.unravel_index(chosen, labels.shape), 1))
        targets.append(np.full(len(chosen), place))
    return np.concatenate(voxels), np.concatenate(targets)


def organ_probe(
    encoder: PVTv2Encoder, train: list[LabelledCase], test: list[LabelledCase], per_class: int
) -> dict[str, float]:
    """Balanced accuracy of telling the organs (background, too) apart by frozen voxel features.

    Args:
        encoder: in eval mode.
        train: crops to learn from.
        test: crops to measure on.
        per_class: voxels of each class, at most, that are drawn from a crop.

    Returns:
        ``linear`` and ``knn`` on all maps together, and ``linear_<map>`` on each alone.
    """
    present = [set().union(*(np.unique(case.labels).tolist() for case in cases)) for cases in (train, test)]
    classes = sorted(present[0] & present[1] - {-1})
    sets = []
    for number, cases in enumerate((train, test)):
        rows, targets = [], []
        for i, case in enumerate(cases):
            voxels, target = draw_voxels(case.labels, classes, per_class, seed=1000 * number + i)
            rows.append(voxel_features(encoder, case.image_hu, voxels))
            targets.append(torch.from_numpy(target))
        sets.append(([torch.cat(level) for level in zip(*rows, strict=True)], torch.cat(targets)))
    (train_maps, train_targets), (test_maps, test_targets) = sets
    everything = torch.cat(train_maps, 1), train_targets, torch.cat(test_maps, 1), test_targets
    scores = {"linear": linear_probe(*everything), "knn": knn_probe(*everything)}
    for name, x, y in zip(MAPS, train_maps, test_maps, strict=True):
        scores[f"linear_{name}"] = linear_probe(x, train_targets, y, test_targets)
    return scores


def linear_probe(train: Tensor, train_targets: Tensor, test: Tensor, test_targets: Tensor) -> float:
    """Balanced accuracy on ``test`` of a multinomial logistic regression on (N, C) standardised features."""
    train, test = _standardise(train, test)
    count = int(train_targets.max()) + 1
    weights = torch.zeros(train.shape[1], count, requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(train @ weights + bias, train_targets) + WEIGHT_PENALTY * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return balanced_accuracy((test @ weights + bias).argmax(1), test_targets)


def knn_probe(train: Tensor, train_targets: Tensor, test: Tensor, test_targets: Tensor) -> float:
    """Balanced accuracy on ``test`` of the vote of the nearest training samples by cosine of standardised features."""
    train, test = (F.normalize(x, dim=1) for x in _standardise(train, test))
    nearest = (test @ train.T).topk(min(NEIGHBOURS, len(train)), dim=1).indices
    votes = F.one_hot(train_targets[nearest], int(train_targets.max()) + 1).sum(1)
    return balanced_accuracy(votes.argmax(1), test_targets)


def _standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    return (train - mean) / std, (test - mean) / std


def balanced_accuracy(predicted: Tensor, targets: Tensor) -> float:
    """Mean over the classes of the share of their samples that are recognised."""
    return float(np.mean([(predicted[targets == c] == c).float().mean().item() for c in targets.unique()]))


def retrieval(features: PooledFeatures) -> dict[str, float]:
    """How often a sub-volume's own radiograph is nearest (top-1), or among the five nearest, by cosine.

    Each modality's features are centred on their own mean: what only tells CT from X-ray does not count.
    """
    ct, xray = (F.normalize(x - x.mean(0), dim=1) for x in (features.ct, features.xray))
    order = (ct @ xray.T).argsort(dim=1, descending=True)
    place = (order == features.scan[:, None]).float().argmax(1)
    scans = len(xray)
    return {
        "top1": (place < 1).float().mean().item(),
        "top5": (place < 5).float().mean().item(),
        "chance_top1": 1 / scans,
        "chance_top5": min(5, scans) / scans,
    }
