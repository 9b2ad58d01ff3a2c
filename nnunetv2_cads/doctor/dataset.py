"""`cads_doctor -d ID`: whether the labelled cases can be planned for and trained on."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from nnunetv2_cads.doctor.finding import OK, PROBLEM, WARNING, Finding

FAR = 1.25
"""From this factor between spacings on, before there are plans: the planner may choose another spacing than the
median."""


def check_dataset(number: int | None, encoder_file: str | None, plans_file: Path | None) -> Iterator[Finding]:
    """The raw dataset: its description, cases, folds and labels; its channels and spacing, where no plans show them.

    Nothing is reported where the raw dataset is not on this machine: a training does without it.

    Args:
        number: of the dataset; None if none was asked for.
        encoder_file: to compare the spacing with; None for what nnUNet_cads_encoder names.
        plans_file: of the dataset; may not exist.
    """
    from nnunetv2_cads.experiment_planning.raw_dataset import (
        channel_names,
        check_labels,
        find_cases,
        misplaced_text,
        read_description,
    )
    from pretraining.system.errors import UserError
    from pretraining.system.machine import default_processes

    root = os.environ.get("nnUNet_raw")
    folders = sorted(Path(root).glob(f"Dataset{number:03d}_*")) if root and number is not None else []
    if not folders:
        return
    try:
        description = read_description(folders[0])
        cases = find_cases(folders[0], description)
        yield from _folds(folders[0].name, list(cases))
        labels = check_labels(folders[0], default_processes())
    except UserError as error:
        yield Finding(PROBLEM, str(error))
        return
    yield Finding(OK, f"{folders[0]}: labelled cases: {len(cases)}, each with the labels of dataset.json alone")
    if misplaced := misplaced_text(labels):
        yield Finding(WARNING, misplaced)
    if plans_file is not None and plans_file.is_file():
        return  # the check of the encoder compares it with them
    for channel, name in channel_names(description).items():
        if name.upper() != "CT":
            yield Finding(WARNING, f"channel {channel} is {name}; the encoder saw only CT")
    yield from _spacing(np.median([file.spacing_mm for file in labels], axis=0).tolist(), encoder_file)


def _folds(name: str, cases: Sequence[str]) -> Iterator[Finding]:
    """Which folds fewer than five cases have, unless a split of the user's says otherwise."""
    from nnunetv2_cads.training.split import NNUNET_FOLDS, ONE_CASE, OUTGROWN, SPLITS_FILE, folds_in_words, is_outgrown

    file = Path(os.environ.get("nnUNet_preprocessed") or ".") / name / SPLITS_FILE
    if is_outgrown(file, cases):
        yield Finding(WARNING, f"{file} {OUTGROWN.format(count=len(cases))}", f"rm {shlex.quote(str(file))}")
    elif len(cases) == 1 and not file.exists():
        yield Finding(WARNING, f"{ONE_CASE}. It has {folds_in_words(1)}")
    elif len(cases) < NNUNET_FOLDS and not file.exists():
        yield Finding(
            WARNING,
            f"{len(cases)} labelled cases are fewer than nnU-Net's five folds need; our trainers leave out each in "
            f"turn: {folds_in_words(len(cases))}",
        )


def _spacing(median_mm: Sequence[float], encoder_file: str | None) -> Iterator[Finding]:
    """The cases' median spacing, where it is far from the encoder's."""
    from nnunetv2_cads.encoder_file.read import EncoderFileError, read_encoder_file
    from nnunetv2_cads.encoder_file.record import completed

    file = encoder_file or os.environ.get("nnUNet_cads_encoder")
    if not file:
        return
    try:
        seen_mm = completed(read_encoder_file(file).record).spacing_mm
    except EncoderFileError:
        return  # the check of the encoder reports it
    if any(max(a / b, b / a) > FAR for a, b in zip(median_mm, seen_mm[-len(median_mm) :], strict=True)):
        shown, seen = (" x ".join(f"{mm:.4g}" for mm in spacing) for spacing in (median_mm, seen_mm))
        yield Finding(
            WARNING,
            f"the cases have {shown} mm (median), the encoder saw {seen} mm; plan with --pretraining-spacing "
            f"({cost_of_spacing(median_mm, seen_mm)}), or pre-train at a spacing near theirs (cads_preprocess "
            "--spacing-mm)",
        )


def cost_of_spacing(before_mm: Sequence[float], after_mm: Sequence[float]) -> str:
    """What other voxels cost, in words.

    The hours of a training do not depend on them: nnU-Net's epoch has a fixed number of patches, of a size that the
    memory allows.
    """
    times = math.prod(before_mm) / math.prod(after_mm[-len(before_mm) :])
    return f"{times:.2g} times as many voxels, so the disk, preprocessing and prediction take so many times as much"
