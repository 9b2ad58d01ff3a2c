"""Segmentation tasks of the study, as nnU-Net raw datasets, and which cases each fold learns from and is scored on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from few_labels.data import DataSize, StudyFolder, make_torso_task
from pretraining.probing.cases import LabelledCase

TORSOS = "torsos"
GAP_MM = 12
"""Left out between slabs of one scan, so that no slab shows its neighbour's slices."""


@dataclass(frozen=True)
class StudyCase(LabelledCase):
    """A case on its own grid, as nnU-Net shows it."""

    spacing_mm: tuple[float, float, float]


def read_case(image: Path, labels: Path) -> StudyCase:
    """Read a case of an nnU-Net raw dataset."""
    images = [sitk.ReadImage(str(path)) for path in (image, labels)]
    arrays = [sitk.GetArrayFromImage(image) for image in images]
    return StudyCase(arrays[0], arrays[1].astype(np.int16), images[0].GetSpacing()[::-1])


@dataclass(frozen=True)
class Fold:
    """One training of an arm: its number of labelled cases, its seed, and the cases by name."""

    labels: int
    seed: int
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A raw dataset and its folds.

    Attributes:
        name: in the records.
        dataset: folder of the raw dataset.
        folds: in the order of ``splits_final.json``.
    """

    name: str
    dataset: Path
    folds: tuple[Fold, ...]

    def write_splits(self, preprocessed: Path) -> None:
        """Tell nnU-Net the folds. Its validation while training, which decides nothing, uses a training case."""
        splits = [{"train": list(fold.train), "val": list(fold.train[:1])} for fold in self.folds]
        path = preprocessed / self.dataset.name / "splits_final.json"
        path.write_text(json.dumps(splits), encoding="utf-8")

    def test_cases(self, fold: Fold) -> dict[str, StudyCase]:
        """The cases that a fold is scored on."""
        cases = {}
        for name in fold.test:
            part = "Ts" if (self.dataset / "labelsTs" / f"{name}.nii.gz").exists() else "Tr"
            image = self.dataset / f"images{part}" / f"{name}_0000.nii.gz"
            cases[name] = read_case(image, self.dataset / f"labels{part}" / f"{name}.nii.gz")
        return cases


def torso_task(folder: StudyFolder, size: DataSize, budgets: tuple[int, ...], seeds: int) -> Task:
    """Synthetic torsos: each seed takes other labelled cases, as far as there are; all are scored on the same."""
    dataset = make_torso_task(folder, size)
    names, held_out = (
        [path.name.removesuffix(".nii.gz") for path in sorted((dataset / part).glob("*.nii.gz"))]
        for part in ("labelsTr", "labelsTs")
    )
    folds = []
    for seed in range(seeds):
        for labels in budgets:
            train = tuple(names[(seed * labels + i) % len(names)] for i in range(labels))
            folds.append(Fold(labels, seed, train, tuple(held_out)))
    return Task(TORSOS, dataset, tuple(folds))


@dataclass(frozen=True)
class RealSource:
    """A labelled scan: its files, its labels' numbers by organ, into how many slabs it is cut, and how many seeds
    score each slab."""

    dataset_id: int
    image: str
    labels: str
    organs: Mapping[str, tuple[int, ...]]
    slabs: int
    seeds: int = 1


REAL_SOURCES = {
    "vertebrae": RealSource(
        811, "abdomen_3mm.nii.gz", "labelled/abdomen_3mm_vertebrae.nii.gz", {"vertebrae": tuple(range(26, 34))}, 4, 3
    ),
    "pulmonary_artery": RealSource(
        812,
        "labelled/thorax_crop_1.5mm.nii.gz",
        "labelled/thorax_crop_1.5mm_pulmonary_artery.nii.gz",
        {"pulmonary_artery": (1,)},
        2,
    ),
    "abdominal_organs": RealSource(
        813,
        "labelled/abdomen_slab_3mm.nii.gz",
        "labelled/abdomen_slab_3mm_seg.nii.gz",
        {"spleen": (1,), "kidney_right": (2,), "kidney_left": (3,), "liver": (5,), "stomach": (6,)},
        2,
    ),
}


def real_task(name: str, ct_dir: Path, folder: StudyFolder) -> Task:
    """One real scan cut into slabs along its slices; each slab in turn is scored, the others are learnt from, with
    seeds of its own.

    Slices beyond the first and the last one with a label are left out, for some scans are labelled in part.
    """
    source = REAL_SOURCES[name]
    dataset = folder.nnunet("raw") / f"Dataset{source.dataset_id}_{name}"
    image, labels = (
        sitk.DICOMOrient(sitk.ReadImage(str(ct_dir / file)), "LPS") for file in (source.image, source.labels)
    )
    array = sitk.GetArrayFromImage(labels)
    grouped = np.zeros_like(array, dtype=np.uint8)
    for number, values in enumerate(source.organs.values(), start=1):
        grouped[np.isin(array, values)] = number
    labelled = np.flatnonzero(grouped.any((1, 2)))
    first, last = int(labelled[0]), int(labelled[-1])
    gap = round(GAP_MM / image.GetSpacing()[2])
    depth = (last + 1 - first - gap * (source.slabs - 1)) // source.slabs
    slabs = [f"slab_{i}" for i in range(source.slabs)]
    for i, slab in enumerate(slabs):
        start = first + i * (depth + gap)
        piece = sitk.GetImageFromArray(grouped[start : start + depth])
        cut = image[:, :, start : start + depth]
        piece.CopyInformation(cut)
        _write(sitk.Cast(cut, sitk.sitkInt16), dataset / "imagesTr" / f"{slab}_0000.nii.gz")
        _write(piece, dataset / "labelsTr" / f"{slab}.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{organ: i for i, organ in enumerate(source.organs, start=1)}},
        "numTraining": source.slabs,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    (dataset / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    folds = [
        Fold(source.slabs - 1, number, tuple(other for other in slabs if other != slab), (slab,))
        for number, slab in enumerate(slabs * source.seeds)
    ]
    return Task(name, dataset, tuple(folds))


def _write(image: sitk.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        sitk.WriteImage(image, str(path), useCompression=True)
