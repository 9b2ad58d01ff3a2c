"""Checks of a raw dataset of nnU-Net's that its own commands leave to a traceback in planning or training.

dataset.json must describe it, and number its labels from 0 on without a gap; every label file must be there and hold no
other label than these, and as many voxels as the image. Labels that lie elsewhere than their image are named.
"""

import functools
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_cads.experiment_planning.grids import distance_text
from pretraining.system.errors import UserError

DESCRIPTION = "dataset.json"
DATASET_KEYS = {"labels", "file_ending", "numTraining"}
"""What nnU-Net needs in a dataset.json, besides names of channels."""
READ_AT_ONCE = 20
"""So many label files are read faster than processes start that would share them."""


class LabelFile(NamedTuple):
    """What a file of labels holds."""

    path: Path
    labels: tuple[float, ...]  # whole numbers, if all is well
    spacing_mm: tuple[float, ...]
    elsewhere: str  # how far they are from where the image is, see `distance_text`


def read_description(folder: Path) -> dict[str, Any]:
    """The dataset.json of a raw dataset.

    Raises:
        UserError: it is missing, damaged, or lacks what nnU-Net needs.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise UserError(f"{file}: there is no such file; describe the dataset in it (nnU-Net's dataset format)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        missing = sorted(DATASET_KEYS - content.keys())
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: does not describe a dataset in JSON ({error}); write it again") from error
    if not content.keys() & {"channel_names", "modality"}:
        missing = ["channel_names", *missing]
    if missing:
        raise UserError(f"{file}: has no {', '.join(missing)}; add it as nnU-Net's dataset format says")
    return content


def channel_names(description: Mapping[str, Any]) -> dict[str, str]:
    """Names of the channels by number, as text."""
    return description.get("channel_names") or description["modality"]


def declared_labels(folder: Path, description: Mapping[str, Any]) -> list[int]:
    """The labels of dataset.json, those of regions and the ignore label too: 0, 1, 2, ...

    Raises:
        UserError: one is no whole number, the background is not 0, there is a gap, or the ignore label is not the last.
    """
    file, named = folder / DESCRIPTION, description["labels"]
    try:
        lists = {name: value if isinstance(value, list) else [value] for name, value in named.items()}
        values = {name: [int(label) for label in of_name] for name, of_name in lists.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: labels must be whole numbers by name ({error}); correct it") from error
    if values.get("background") != [0]:
        raise UserError(f"{file}: has no label background = 0; nnU-Net needs it")
    labels = sorted({label for of_name in values.values() for label in of_name})
    if labels != list(range(len(labels))):
        gap = next(label for label in range(labels[-1]) if label not in labels) if labels[0] == 0 else labels[0]
        raise UserError(
            f"{file}: has the labels {_listed(labels)}, but nnU-Net needs each number from 0 on, and {gap} is "
            f"{'missing' if gap >= 0 else 'below 0'}; number them 0 to {len(labels) - 1}, here and in labelsTr"
        )
    if "ignore" in values and values["ignore"] != labels[-1:]:
        raise UserError(f"{file}: the ignore label is {_listed(values['ignore'])}; it must be the last, {labels[-1]}")
    return labels


class Case(NamedTuple):
    """The files of a labelled case."""

    images: tuple[Path, ...]
    labels: Path


def find_cases(folder: Path, description: Mapping[str, Any]) -> dict[str, Case]:
    """The cases of imagesTr (or of dataset.json's own list) by name.

    Raises:
        UserError: there is none, or one lacks a channel or its labels.
    """
    if "dataset" not in description and not (folder / "imagesTr").is_dir():
        raise UserError(f"{folder / 'imagesTr'}: there is no such folder; put the images of the labelled cases there")
    cases = get_filenames_of_train_images_and_targets(str(folder), dict(description))
    if not len(cases):
        raise UserError(
            f"{folder / 'imagesTr'}: holds no case; nnU-Net looks for CASE_0000{description['file_ending']} there"
        )
    channels, found = len(channel_names(description)), {}
    for name, files in cases.items():
        if len(files["images"]) != channels:
            raise UserError(
                f"{folder}: case {name} has {len(files['images'])} image files for {channels} channels; add the others "
                f"to imagesTr, or correct {DESCRIPTION}"
            )
        found[str(name)] = case = Case(tuple(map(Path, files["images"])), Path(files["label"]))
        if not case.labels.is_file():
            raise UserError(f"{case.labels}: there is no such file; label the case, or take it out of imagesTr")
    return found


def check_labels(folder: Path, processes: int) -> list[LabelFile]:
    """Read every label file of a raw dataset, as nnU-Net will.

    Args:
        folder: Dataset###_NAME.
        processes: that share the files, where there are many.

    Raises:
        UserError: dataset.json, the list of cases or a label file is not as nnU-Net needs it.
    """
    description = read_description(folder)
    declared = declared_labels(folder, description)
    cases = find_cases(folder, description)
    read = functools.partial(_read_labels, _reader(description, next(iter(cases.values())).images[0]))
    if len(cases) <= READ_AT_ONCE or processes == 1:
        files = [read(case) for case in cases.values()]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            files = pool.map(read, cases.values())
    wrong = [file for file in files if not set(file.labels) <= set(declared)]
    if wrong:
        others = [label for label in wrong[0].labels if label not in declared]
        more = f" (label files like this: {len(wrong)})" if len(wrong) > 1 else ""
        raise UserError(
            f"{wrong[0].path}: has the label{'s' if len(others) > 1 else ''} {_listed(others)}, but {DESCRIPTION} has "
            f"only {_listed(declared)}{more}; correct the file or {DESCRIPTION}"
        )
    return files


def _reader(description: dict[str, Any], image: Path) -> type[BaseReaderWriter]:
    """nnU-Net's class for the files of a dataset, chosen as nnU-Net does: one that can read its first image."""
    try:
        return determine_reader_writer_from_dataset_json(description, str(image), verbose=False)
    except RuntimeError as error:
        raise UserError(f"{image}: no reader of nnU-Net's can read this file; write it again") from error


def misplaced_text(files: Sequence[LabelFile]) -> str:
    """A sentence that names labels which lie elsewhere than their images; empty where all lie on them."""
    misplaced = [file for file in files if file.elsewhere]
    if not misplaced:
        return ""
    more = f" (label files like this: {len(misplaced)})" if len(misplaced) > 1 else ""
    return (
        f"{misplaced[0].path}: lies {misplaced[0].elsewhere}{more}; nnU-Net lays labels on images voxel by voxel "
        "whatever the headers say, so look at both; if the voxels do not belong together, resample the labels"
    )


def _read_labels(reader: type[BaseReaderWriter], case: Case) -> LabelFile:
    path = case.labels
    elsewhere = distance_text(case.images[0], path)
    try:
        array, properties = reader().read_seg(str(path))
    except Exception as error:  # readers of all kinds raise types of all kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"{path}: cannot be read ({reason}); write it again") from None
    return LabelFile(path, tuple(np.unique(array).tolist()), tuple(map(float, properties["spacing"])), elsewhere)


def _listed(labels: Sequence[float]) -> str:
    shown = [f"{label:g}" for label in labels]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:10], "...", shown[-1]])
