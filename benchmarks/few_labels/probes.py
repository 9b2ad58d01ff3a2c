"""The study's probes: the organs of its torsos and of one slab of real CT, and retrieval among unseen torsos."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from few_labels.tasks import read_case
from pretraining.config import ViewConfig
from pretraining.probing.cases import CROP_SIZE, CROPS_PER_CASE, NO_LABEL, LabelledCase
from pretraining.probing.features import load_frozen, pooled_features
from pretraining.probing.probes import VOXELS, organ_probe, retrieval
from pretraining.store.store import Store

TRAIN_CASES, TEST_CASES = 2, 6
GAP_SLICES = 4
REAL_CLASSES = (0, 1, 2, 3, 5, 6)
"""Background, spleen, kidneys, liver and stomach of the labelled slab."""


def probe(source: str, dataset: Path, store: Path, ct_dir: Path | None, view: ViewConfig) -> dict[str, Any]:
    """All probes of one encoder.

    Args:
        source: as `load_frozen` takes it.
        dataset: the torsos, with imagesTr, labelsTr, imagesTs and labelsTs.
        store: of torsos that no encoder was pre-trained on.
        ct_dir: folder of real CT with a folder ``labelled``.
        view: size of the sub-volumes.
    """
    started = time.perf_counter()
    encoder = load_frozen(source, for_radiographs=False)  # the oracle has no 2D weights
    result: dict[str, Any] = {"encoder": source}
    result |= organ_probe(encoder, read_crops(dataset, "Tr", TRAIN_CASES), read_crops(dataset, "Ts", TEST_CASES))
    features = pooled_features(encoder, Store.open(store), view)
    result |= retrieval(features) | {"ranks": features.ranks}
    if ct_dir:
        lower, upper = (draw_crops(half, seed=0) for half in real_cases(ct_dir))
        real = organ_probe(encoder, lower, upper, 2 * VOXELS)
        result |= {"real_linear": real["linear"], "real_knn": real["knn"]}
    return result | {"seconds": time.perf_counter() - started}


def read_crops(dataset: Path, part: str, count: int) -> list[LabelledCase]:
    """Crops of the first cases of a part (Tr or Ts) of a dataset."""
    crops = []
    for i, labels in enumerate(sorted((dataset / f"labels{part}").glob("*.nii.gz"))[:count]):
        image = dataset / f"images{part}" / labels.name.replace(".nii.gz", "_0000.nii.gz")
        crops += draw_crops(read_case(image, labels), seed=i)
    return crops


def real_cases(ct_dir: Path) -> tuple[LabelledCase, LabelledCase]:
    """The halves of the labelled slab of real CT."""
    folder = ct_dir / "labelled"
    case = read_case(folder / "abdomen_slab_3mm.nii.gz", folder / "abdomen_slab_3mm_seg.nii.gz")
    case.labels[~np.isin(case.labels, REAL_CLASSES)] = NO_LABEL
    return split_by_slices(case)


def split_by_slices(case: LabelledCase, gap: int = GAP_SLICES) -> tuple[LabelledCase, LabelledCase]:
    """A case's lower and upper half as two, with ``gap`` slices between them that belong to neither."""
    middle = len(case.labels) // 2
    lower, upper = case.labels.copy(), case.labels.copy()
    lower[middle - gap // 2 :] = NO_LABEL
    upper[: middle + gap - gap // 2] = NO_LABEL
    return LabelledCase(case.image_hu, lower), LabelledCase(case.image_hu, upper)


def draw_crops(case: LabelledCase, seed: int) -> list[LabelledCase]:
    """Crops from anywhere, since bodies are small; `pretraining.probing.cases` has those of the command."""
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(CROPS_PER_CASE):
        edges = zip(case.labels.shape, CROP_SIZE, strict=True)
        starts = [int(rng.integers(max(n - edge, 0) + 1)) for n, edge in edges]
        box = tuple(slice(start, start + edge) for start, edge in zip(starts, CROP_SIZE, strict=True))
        crops.append(LabelledCase(case.image_hu[box], case.labels[box]))
    return crops
