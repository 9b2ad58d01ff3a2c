"""Folders of synthetic torsos: an unlabelled archive, and a labelled data set in nnU-Net's raw format."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_cads.demo.torsos.torso import LABELS, Torso, TorsoConfig, make_torso

ARCHIVE, TRAIN, TEST = range(3)  # the middle number of a case's seed: no case serves twice


def orientations() -> list[str]:
    """The 48 ways to store a volume along the body's axes, as the letters towards which the stored axes grow."""
    pairs = ("LR", "PA", "SI")
    return ["".join(letters) for axes in itertools.permutations(pairs) for letters in itertools.product(*axes)]


def to_images(torso: Torso, orientation: str = "LPS") -> tuple[sitk.Image, sitk.Image]:
    """The torso's (image, labels) as SimpleITK images with spacing and direction cosines.

    ``orientation``: the directions in which the stored axes grow, as in `SimpleITK.DICOMOrient`; any of the 48 stores
    the same patient. "LPS" keeps the array as it is.
    """
    images = []
    for array in (torso.image_hu, torso.labels):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(torso.spacing_mm[::-1])
        images.append(sitk.DICOMOrient(image, orientation))
    return images[0], images[1]


def write_archive(
    folder: Path, n: int, config: TorsoConfig | None = None, seed: int = 0, random_orientation: bool = True
) -> list[Path]:
    """Write ``n`` unlabelled torsos as NIfTI files, stored in random orientations; files that exist are kept.

    Returns their paths. The axes are permuted and flipped together with the direction cosines, as real archives do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"torso_{i:04d}.nii.gz" for i in range(n)]
    for i, path in enumerate(paths):
        if path.exists():
            continue
        rng = np.random.default_rng((seed, ARCHIVE, i, 1))
        orientation = str(rng.choice(orientations())) if random_orientation else "LPS"
        image, _ = to_images(make_torso(config, (seed, ARCHIVE, i)), orientation)
        _write(image, path)
    return paths


def write_nnunet_dataset(
    folder: Path,
    dataset_id: int,
    name: str,
    n_train: int,
    n_test: int,
    config: TorsoConfig | None = None,
    seed: int = 0,
) -> Path:
    """Write a labelled data set into ``folder`` (an nnUNet_raw) and return its own folder ``DatasetXXX_name``.

    It holds imagesTr and labelsTr, imagesTs and, for scoring, labelsTs; `dataset.json` is written last. Files that
    exist are kept, so an interrupted call can be repeated.
    """
    dataset = folder / f"Dataset{dataset_id:03d}_{name}"
    for part, purpose, n in (("Tr", TRAIN, n_train), ("Ts", TEST, n_test)):
        for i in range(n):
            _write_case(dataset, part, f"torso_{part.lower()}_{i:03d}", config, (seed, purpose, i))
    description = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": n_train,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "description": f"Synthetic torsos of nnunetv2-cads, seed {seed}",
    }
    (dataset / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return dataset


def _write_case(dataset: Path, part: str, case: str, config: TorsoConfig | None, seed: Sequence[int]) -> None:
    image_path = dataset / f"images{part}" / f"{case}_0000.nii.gz"
    label_path = dataset / f"labels{part}" / f"{case}.nii.gz"
    if image_path.exists() and label_path.exists():
        return
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    image, labels = to_images(make_torso(config, seed))
    _write(image, image_path)
    _write(labels, label_path)


def _write(image: sitk.Image, path: Path) -> None:
    """Write under a temporary name first: an interrupted call leaves no half file behind."""
    temporary = path.with_name(f"tmp_{path.name}")
    sitk.WriteImage(image, str(temporary), useCompression=True)
    temporary.replace(path)
