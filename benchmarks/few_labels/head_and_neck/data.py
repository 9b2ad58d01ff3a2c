"""The scans at 4 mm: the archive as a store, the task as an nnU-Net raw data set. What exists is kept."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from few_labels.head_and_neck.cases import LARGEST_RIM, Split
from few_labels.tasks import Fold, Task
from nnunetv2_cads.encoder_file.record import CLIP_HU
from pretraining.ct.geometry import resample_cubic, to_canonical
from pretraining.preprocess import Part, preprocess
from pretraining.store.store import read_manifest

SPACING_MM = 4.0
DATASET, COMPARED_DATASET = "Dataset821_HeadAndNeck", "Dataset822_HeadAndNeckCompared"
TASK = "head_and_neck"
LARGEST_HU = 3071
"""Of 12-bit CT; interpolation at metal exceeds it."""


def make_store(openkbp: Path, archive: Path, store: Path, split: Split) -> None:
    """Make or finish the store that pre-training sees, of links to the scans in a folder ``archive``."""
    if (store / "manifest.json").exists() and read_manifest(store)["complete"]:
        return
    archive.mkdir(parents=True, exist_ok=True)
    for name in split.archive:
        link = archive / f"{name}_ct.nii.gz"
        if not link.is_symlink():
            link.symlink_to(openkbp.absolute() / link.name)
    if preprocess(archive, store, 1, Part(0, 1), spacing_mm=SPACING_MM):
        raise RuntimeError(f"{store}: some scans could not be used")


def write_dataset(openkbp: Path, raw: Path, split: Split) -> Path:
    """Write the task as a raw data set of nnU-Net: the pool to learn from, validation and test among ``Ts``."""
    dataset = raw / DATASET
    numbers = json.loads((openkbp / "index.json").read_text(encoding="utf-8"))["labels"]
    for part, names in (("Tr", split.pool), ("Ts", (*split.validation, *split.test))):
        for name in names:
            _write_case(openkbp, dataset, part, name, [numbers[organ] for organ in LARGEST_RIM])
    _write_description(dataset, len(split.pool))
    return dataset


def write_compared_dataset(dataset: Path, split: Split) -> Path:
    """The task once more, for `cads_compare`, which holds test cases out itself: pool and test scans are all labelled.

    Args:
        dataset: of `write_dataset`, whose files it names.
        split: that ``dataset`` was written for.
    """
    compared = dataset.with_name(COMPARED_DATASET)
    compared.mkdir(exist_ok=True)
    parts = {**dict.fromkeys(split.pool, "Tr"), **dict.fromkeys(split.test, "Ts")}
    files = {
        name: {
            "images": [f"../{dataset.name}/images{part}/{name}_0000.nii.gz"],
            "label": f"../{dataset.name}/labels{part}/{name}.nii.gz",
        }
        for name, part in parts.items()
    }
    _write_description(compared, len(files), dataset=files)
    return compared


def _write_description(folder: Path, cases: int, **more: object) -> None:
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{organ: i for i, organ in enumerate(LARGEST_RIM, start=1)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def make_task(dataset: Path, split: Split, budgets: Iterable[int], seeds: int) -> Task:
    """The task with one fold for each seed and budget; validation comes first among what is scored."""
    folds = [
        Fold(budget, seed, split.labelled(budget, seed), (*split.validation, *split.test))
        for seed in range(seeds)
        for budget in budgets
    ]
    return Task(TASK, dataset, tuple(folds))


def read_resampled(path: Path) -> np.ndarray:
    """A scan in float32 HU on the canonical axes, at `SPACING_MM`."""
    return resample_cubic(*_read_canonical(path), SPACING_MM)


def read_resampled_labels(path: Path, numbers: list[int]) -> np.ndarray:
    """A map of labels at `SPACING_MM`, uint8: 1 for the first of ``numbers``, and so on; 0 for all others.

    Each label is resampled on its own, as 0 and 1; a voxel gets the largest one where that is above a half.
    """
    labels, spacing_mm = _read_canonical(path)
    shares = np.stack([resample_cubic(labels == number, spacing_mm, SPACING_MM) for number in numbers])
    return np.where(shares.max(0) > 0.5, shares.argmax(0) + 1, 0).astype(np.uint8)


def to_integers(hu: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """HU clipped and rounded to int16."""
    return np.rint(np.clip(hu, lowest, highest)).astype(np.int16)


def _read_canonical(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    image = sitk.ReadImage(str(path))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return to_canonical(sitk.GetArrayFromImage(image), image.GetSpacing(), direction)


def _write_case(openkbp: Path, dataset: Path, part: str, name: str, numbers: list[int]) -> None:
    image = dataset / f"images{part}" / f"{name}_0000.nii.gz"
    labels = dataset / f"labels{part}" / f"{name}.nii.gz"
    if not image.exists():
        _write(to_integers(read_resampled(openkbp / f"{name}_ct.nii.gz"), CLIP_HU[0], LARGEST_HU), image)
    if not labels.exists():
        _write(read_resampled_labels(openkbp / f"{name}_seg.nii.gz", numbers), labels)


def _write(array: np.ndarray, path: Path) -> None:
    """Write an array on the canonical axes, which are those of an image without a direction, at `SPACING_MM`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([SPACING_MM] * 3)
    temporary = path.with_name(f"tmp_{path.name}")
    sitk.WriteImage(image, str(temporary), useCompression=True)
    temporary.replace(path)
