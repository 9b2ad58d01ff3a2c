"""Labelled cases of an nnU-Net raw dataset, brought to the grid that encoders are pre-trained on, in crops."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from pretraining.ct.checks import check_right_angles
from pretraining.ct.geometry import resample_hu, resampled_shape, to_canonical
from pretraining.ct.read_ct import read_ct
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.system.errors import UserError

NO_LABEL = -1
"""Label of voxels that take no part."""
CROP_SIZE = (32, 64, 64)
"""About the patch of a small fine-tuning. A whole volume would show by its padding where an organ lies."""
CROPS_PER_CASE = 6


@dataclass(frozen=True)
class LabelledCase:
    """An image (D, H, W) in HU and its labels, both in one shape."""

    image_hu: np.ndarray
    labels: np.ndarray


def find_raw_dataset(number: int) -> Path:
    """The folder of a dataset of nnU-Net's by its ID.

    Raises:
        UserError: nnUNet_raw is not set, or has none or several of this ID.
    """
    raw = os.environ.get("nnUNet_raw")
    if not raw:
        raise UserError("nnUNet_raw is not set; export it, or give the dataset's folder with --dataset")
    found = sorted(path for path in Path(raw).glob(f"Dataset{number:03d}_*") if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{raw}: must have one dataset {number:03d}, has {names}; check -d, or give --dataset")
    return found[0]


@dataclass(frozen=True)
class RawDataset:
    """An nnU-Net raw dataset.

    Attributes:
        folder: with imagesTr and labelsTr.
        file_ending: of its files.
        cases: names, sorted, of all that have labels.
        ignored: value in the labels of voxels that take no part, or None.
    """

    folder: Path
    file_ending: str
    cases: tuple[str, ...]
    ignored: int | None = None

    @classmethod
    def open(cls, folder: Path) -> "RawDataset":
        """Find the labelled cases of a dataset.

        Raises:
            UserError: no folder, no dataset.json, no CT, or fewer than two labelled cases.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the folder of an nnU-Net raw dataset")
        description = _read_description(folder / "dataset.json")
        channel = description.get("channel_names", {}).get("0", "CT")
        if str(channel).lower() != "ct":
            raise UserError(f"{folder}: its first channel is {channel}, not CT; the encoder knows CT alone")
        ending = description["file_ending"]
        labels = (folder / "labelsTr").glob(f"*{ending}")
        cases = tuple(sorted(path.name.removesuffix(ending) for path in labels if not path.name.startswith(".")))
        if len(cases) < 2:
            found = f"only one case with labels ({cases[0]})" if cases else "no labels"
            raise UserError(
                f"{folder / 'labelsTr'}: has {found}; at least two are needed, to learn from and to measure"
            )
        ignored = description.get("labels", {}).get("ignore")
        return cls(folder, ending, cases, ignored if isinstance(ignored, int) else None)

    def read(self, case: str, new_spacing_mm: float) -> LabelledCase:
        """Read a case in cubic voxels, with a store's axes: z headward, y to the back, x to the patient's left.

        Raises:
            UserError: a file is missing or cannot be read, or image and labels differ in shape.
        """
        image_path = self.folder / "imagesTr" / f"{case}_0000{self.file_ending}"
        labels_path = self.folder / "labelsTr" / f"{case}{self.file_ending}"
        if not image_path.is_file():
            raise UserError(f"{image_path}: no such file, but there are labels for it ({labels_path})")
        try:
            image = read_ct(Scan(case, image_path.name, (image_path,)))
            check_right_angles(image.direction)  # labels are not straightened
        except UnusableScanError as error:
            raise UserError(f"{image_path}: {error}") from error
        try:
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(labels_path)))
        except RuntimeError as error:
            raise UserError(f"{labels_path}: cannot be read, it is damaged or no image; copy it again") from error
        if labels.shape != image.values.shape:
            shapes = f"{labels.shape} voxels, its image {image.values.shape}"
            raise UserError(f"{labels_path}: has {shapes}; both must have the same")
        volume, spacing_mm = to_canonical(image.values, image.spacing_xyz_mm, image.direction)
        labels, _ = to_canonical(labels, image.spacing_xyz_mm, image.direction)
        labels = resample_nearest(labels, spacing_mm, new_spacing_mm).astype(np.int16)
        if self.ignored is not None:
            labels[labels == self.ignored] = NO_LABEL
        return LabelledCase(resample_hu(volume, spacing_mm, new_spacing_mm), labels)


def _read_description(path: Path) -> dict[str, Any]:
    """The content of dataset.json."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of an nnU-Net raw dataset") from None
    except ValueError:
        raise UserError(f"{path}: damaged (not valid JSON); write it again") from None
    if not isinstance(description, dict) or not isinstance(description.get("file_ending"), str):
        raise UserError(f"{path}: does not say file_ending, as nnU-Net v2 needs it; add it")
    return description


def resample_nearest(
    labels: np.ndarray, spacing_mm: tuple[float, float, float], new_spacing_mm: float = 1.0
) -> np.ndarray:
    """Labels on the grid of `resample_hu`, each voxel that of the nearest."""
    indices = []
    shape = resampled_shape(labels.shape, spacing_mm, new_spacing_mm)
    for old, new, spacing in zip(labels.shape, shape, spacing_mm, strict=True):
        positions = (np.arange(new) - (new - 1) / 2) * new_spacing_mm / spacing + (old - 1) / 2
        indices.append(np.clip(np.rint(positions).astype(int), 0, old - 1))
    return labels[np.ix_(*indices)]


def draw_crops(case: LabelledCase, rng: np.random.Generator) -> list[LabelledCase]:
    """Crops of `CROP_SIZE`, or of the case's own size where that is smaller, each with a voxel of a random label.

    The voxel lies anywhere in its crop, so its place there tells nothing of its label. Crops are copies, so that the
    case's memory can be freed.
    """
    present = [label for label in np.unique(case.labels).tolist() if label != NO_LABEL]
    crops = []
    for label in rng.permutation(np.resize(rng.permutation(present), CROPS_PER_CASE)):
        voxel = np.unravel_index(rng.choice(np.flatnonzero(case.labels == label)), case.labels.shape)
        box = []
        for place, edge, size in zip(voxel, case.labels.shape, CROP_SIZE, strict=True):
            first, last = max(0, place - size + 1), max(0, min(place, edge - size))
            start = int(rng.integers(first, last + 1))
            box.append(slice(start, start + size))
        crops.append(LabelledCase(case.image_hu[tuple(box)].copy(), case.labels[tuple(box)].copy()))
    return crops
