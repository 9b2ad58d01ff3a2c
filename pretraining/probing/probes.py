"""Probes of frozen features: which label a voxel has, and which radiograph belongs to a sub-volume."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pretraining.probing.cases import NO_LABEL, LabelledCase
from pretraining.probing.features import MAPS, FrozenEncoder, PooledFeatures, voxel_features

WEIGHT_PENALTY = 1e-3
"""Of the squared weights, beside the mean cross-entropy of a sample."""
MAX_ITERATIONS = 1000
NEIGHBOURS = 20
VOXELS = 25
"""Of each label in a crop, at most."""


def common_labels(train: Sequence[LabelledCase], test: Sequence[LabelledCase]) -> list[int]:
    """The labels, background among them, that occur in the crops of both parts."""
    present = [set().union(*(np.unique(crop.labels).tolist() for crop in crops)) for crops in (train, test)]
    return sorted(present[0] & present[1] - {NO_LABEL})


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
    encoder: FrozenEncoder, train: Sequence[LabelledCase], test: Sequence[LabelledCase], per_class: int = VOXELS
) -> dict[str, float]:
    """Balanced accuracy of telling the labels (background, too) apart by frozen voxel features.

    Args:
        encoder: in eval mode.
        train: crops to learn from.
        test: crops to measure on.
        per_class: voxels of each label, at most, that are drawn from a crop.

    Returns:
        ``linear`` and ``knn`` on all maps together, ``linear_<map>`` and ``knn_<map>`` on each alone; ``chance``
        is what guessing gives.
    """
    classes = common_labels(train, test)
    (train_maps, train_targets), (test_maps, test_targets) = (
        _features(encoder, crops, classes, per_class, first_seed=1000 * part)
        for part, crops in enumerate((train, test))
    )
    parts = {"": (np.concatenate(train_maps, 1), np.concatenate(test_maps, 1))}
    parts |= {f"_{name}": maps for name, *maps in zip(MAPS, train_maps, test_maps, strict=True)}
    scores = {}
    for part, (x, y) in parts.items():
        scores["linear" + part] = linear_probe(x, train_targets, y, test_targets)
        scores["knn" + part] = knn_probe(x, train_targets, y, test_targets)
    return scores | {"chance": 1 / len(classes)}


def _features(
    encoder: FrozenEncoder, crops: Sequence[LabelledCase], classes: list[int], per_class: int, first_seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Features (N, channels) of drawn voxels by map, and their classes' places (N,)."""
    rows, targets = [], []
    for seed, crop in enumerate(crops, start=first_seed):
        voxels, target = draw_voxels(crop.labels, classes, per_class, seed)
        if len(voxels):
            rows.append(voxel_features(encoder, crop.image_hu, voxels))
            targets.append(target)
    return [torch.cat(of_map).numpy() for of_map in zip(*rows, strict=True)], np.concatenate(targets)


def linear_probe(train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray) -> float:
    """Balanced accuracy on ``test`` of a multinomial logistic regression on (N, C) standardised features."""
    strength = 1 / (2 * WEIGHT_PENALTY * len(train))  # scikit-learn sums over samples and halves the squared weights
    return _score(LogisticRegression(C=strength, max_iter=MAX_ITERATIONS), train, train_targets, test, test_targets)


def knn_probe(train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, test_targets: np.ndarray) -> float:
    """Balanced accuracy on ``test`` of the vote of the nearest training samples by cosine of standardised features."""
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train)), metric="cosine")
    return _score(neighbours, train, train_targets, test, test_targets)


def _score(classifier, train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, targets: np.ndarray) -> float:
    fitted = make_pipeline(StandardScaler(), classifier).fit(train, train_targets)
    return float(balanced_accuracy_score(targets, fitted.predict(test)))


def retrieval(features: PooledFeatures) -> dict[str, float]:
    """How often the radiograph of a sub-volume's own volume is nearest (top-1), or among the five nearest, by cosine.

    Each modality's features are centred on their own mean, so that what sets CT and X-ray apart does not count.
    """
    ct, xray = (F.normalize(x - x.mean(0), dim=1) for x in (features.ct, features.xray))
    order = (ct @ xray.T).argsort(dim=1, descending=True)
    place = (order == features.volume[:, None]).float().argmax(1)
    volumes = len(xray)
    return {
        "top1": (place < 1).float().mean().item(),
        "top5": (place < 5).float().mean().item(),
        "chance_top1": 1 / volumes,
        "chance_top5": min(5, volumes) / volumes,
    }
