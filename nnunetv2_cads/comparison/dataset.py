"""A user's nnU-Net dataset: where it is, its labelled cases, and its patients."""

import copy
import csv
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from pretraining.system.errors import UserError

FINGERPRINT = "dataset_fingerprint.json"
DEFAULT_PLANS = ("nnUNetCADSPlans", "nnUNetPlans")
"""The plans that are taken where none are named: the first that are there."""


@dataclass(frozen=True)
class Dataset:
    """A planned and preprocessed dataset.

    Attributes:
        name: ``Dataset005_Heart``.
        raw: its folder with dataset.json.
        preprocessed: its folder with plans.
        plans_name: of the plans.
        plans: their content.
        configuration: of the plans.
        description: content of dataset.json.
    """

    name: str
    raw: Path
    preprocessed: Path
    plans_name: str
    plans: dict[str, Any]
    configuration: str
    description: dict[str, Any]

    @property
    def data_folder(self) -> Path:
        """Of the preprocessed cases."""
        return self.preprocessed / self.plans["configurations"][self.configuration]["data_identifier"]

    @property
    def file_ending(self) -> str:
        return self.description["file_ending"]

    @property
    def plans_sha256(self) -> str:
        """Of the plans' content: plans that were made anew have the same name."""
        return hashlib.sha256(json.dumps(self.plans, sort_keys=True).encode()).hexdigest()

    def images(self, case: str) -> list[Path]:
        """The files of a labelled case, one for each channel."""
        return [Path(file) for file in self._files[case]["images"]]

    def label(self, case: str) -> Path:
        """The label map of a labelled case."""
        return Path(self._files[case]["label"])

    @functools.cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        """By case, as nnU-Net finds them: in imagesTr and labelsTr, or where dataset.json's ``dataset`` says."""
        try:
            return get_filenames_of_train_images_and_targets(str(self.raw), copy.deepcopy(self.description))
        except (OSError, LookupError) as error:
            raise UserError(
                f"{self.raw}: its cases cannot be listed ({error}); check imagesTr and dataset.json"
            ) from error

    def cases(self) -> list[str]:
        """Names of all labelled cases, sorted.

        Raises:
            UserError: a case has no label map or is not preprocessed, or there are fewer than two.
        """
        names = sorted(self._files)
        if len(names) < 2:
            raise UserError(
                f"{self.raw}: has {len(names)} cases; at least two are needed, to learn from and to test on"
            )
        for name in names:
            if not self.label(name).is_file():
                raise UserError(
                    f"{self.label(name)}: is missing; add the labels of case {name}, or take its images away"
                )
            if not any((self.data_folder / f"{name}{suffix}").exists() for suffix in (".b2nd", ".npz", ".npy")):
                raise UserError(
                    f"{self.data_folder}: case {name} is not preprocessed; run cads_plan_and_preprocess -d "
                    f"{self.number} again"
                )
        return names

    @property
    def number(self) -> int:
        """nnU-Net's ID."""
        return number_of(self.name)


def number_of(name: str) -> int:
    """nnU-Net's ID in the name of a dataset."""
    return int(name.removeprefix("Dataset").partition("_")[0])


def open_dataset(number: int, plans_name: str | None, configuration: str) -> Dataset:
    """Find a dataset in nnU-Net's folders.

    Args:
        number: its ID.
        plans_name: of its plans; None: the first of `DEFAULT_PLANS` that are there.
        configuration: of the plans, such as 3d_fullres.

    Raises:
        UserError: variables, dataset, plans or configuration are missing.
    """
    folders = {kind: _folder(kind) for kind in ("raw", "preprocessed")}
    names = [name for name in find_candidate_datasets(number) if (folders["raw"] / name).is_dir()]
    if not names:
        raise UserError(f"{folders['raw']}: has no Dataset{number:03d}_*; check -d and nnUNet_raw")
    if len(names) > 1:
        raise UserError(f"{folders['raw']}: has {' and '.join(names)}, of one ID; nnU-Net needs an ID for each")
    raw, preprocessed = (folder / names[0] for folder in folders.values())
    candidates = [plans_name] if plans_name else DEFAULT_PLANS
    plans_file = next((file for name in candidates if (file := preprocessed / f"{name}.json").is_file()), None)
    if plans_file is None:
        raise UserError(
            f"{preprocessed}: has no {' or '.join(f'{name}.json' for name in candidates)}; run "
            f"cads_plan_and_preprocess -d {number} first"
        )
    plans, description = _read_json(plans_file), _read_json(raw / "dataset.json")
    if not (preprocessed / FINGERPRINT).is_file():
        raise UserError(f"{preprocessed}: has no {FINGERPRINT}; run cads_plan_and_preprocess -d {number} again")
    if configuration not in plans["configurations"]:
        raise UserError(
            f"{plans_file}: has no configuration {configuration}; choose one of {', '.join(plans['configurations'])}"
        )
    plans["configurations"][configuration] = _complete(plans, configuration)
    return Dataset(names[0], raw, preprocessed, plans_file.stem, plans, configuration, description)


def _complete(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with what it inherits, and without the next stage of a cascade, which is not compared.

    Raises:
        UserError: it is the second stage of a cascade.
    """
    complete = PlansManager(plans).get_configuration(configuration).configuration
    if complete.get("previous_stage"):
        raise UserError(
            f"{configuration}: is the second stage of a cascade, which has no start of its own; choose another"
        )
    return {name: value for name, value in complete.items() if name not in ("inherits_from", "next_stage")}


def patients_of(cases: Iterable[str], pattern: str | None, table: Path | None) -> dict[str, str]:
    """The patient of each case: by a pattern or a table; where neither is given, every case is a patient.

    Args:
        cases: names.
        pattern: regular expression whose first group, found in the case's name, is the patient.
        table: CSV with the columns ``case`` and ``patient``.

    Raises:
        UserError: pattern or table cannot be used, or lacks a case.
    """
    if table:
        rows = _read_table(table)
        if missing := [case for case in cases if case not in rows]:
            raise UserError(f"{table}: has no line for case {missing[0]}; add it")
        return {case: rows[case] for case in cases}
    if not pattern:
        return {case: case for case in cases}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--patient-pattern {pattern}: is no regular expression ({error})") from error
    if not expression.groups:
        raise UserError(f"--patient-pattern {pattern}: has no group; put brackets around what is the patient's")
    found = {case: expression.search(case) for case in cases}
    if missing := [case for case, match in found.items() if not (match and match[1])]:
        raise UserError(f"--patient-pattern {pattern}: does not match case {missing[0]}")
    return {case: match[1] for case, match in found.items()}


def read_test_cases(file: Path, cases: Iterable[str]) -> list[str]:
    """The held-out cases that a file lists, one name in a line.

    Raises:
        UserError: the file cannot be read, is empty, or names a case that is not there.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read; give a text file with one case in a line") from error
    known = set(cases)
    if not names or not set(names) < known:
        wrong = next((name for name in names if name not in known), None)
        reason = f"{wrong} is no labelled case" if wrong else "it names no case, or all"
        raise UserError(f"{file}: {reason}; give some of the names in labelsTr, without suffix")
    return sorted(set(names))


def _read_table(file: Path) -> dict[str, str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return {row["case"].strip(): row["patient"].strip() for row in csv.DictReader(stream)}
    except (OSError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: is no table with the columns case and patient; give a CSV file") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is missing or damaged; run cads_plan_and_preprocess again") from error


def _folder(kind: str) -> Path:
    value = os.environ.get(f"nnUNet_{kind}")
    if not value:
        raise UserError(f"nnUNet_{kind} is not set; export it as for nnU-Net's own commands")
    return Path(value)
