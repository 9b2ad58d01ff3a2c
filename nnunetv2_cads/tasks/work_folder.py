"""The folder in which a dataset is made: it gets its final name when it is complete, and not before."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunetv2_cads import __version__
from nnunetv2_cads.tasks.convert_case import Job
from nnunetv2_cads.tasks.find_cases import Case
from nnunetv2_cads.tasks.report import REPORT
from pretraining.system.errors import UserError
from pretraining.system.files import write_json


class WorkFolder:
    """A hidden folder beside the dataset that it will become; nnU-Net does not see it.

    It holds the files of the dataset and, beside them, a record of each finished case, so that a conversion that was
    interrupted resumes.

    Args:
        raw: nnU-Net's folder of raw datasets.
        name: of the dataset.
    """

    def __init__(self, raw: Path, name: str):
        self.final = raw / name
        self.path = raw / f".{name}.converting"
        self.dataset = self.path / "dataset"
        self._records = self.path / "cases"

    def make(self, with_test_images: bool) -> None:
        """Make the folder and those in it."""
        parts = ("imagesTr", "labelsTr", "imagesTs") if with_test_images else ("imagesTr", "labelsTr")
        for folder in (self._records, *(self.dataset / part for part in parts)):
            folder.mkdir(parents=True, exist_ok=True)

    def notes_of(self, case: Case, job: Job) -> list[str] | None:
        """The notes of a case that is finished and whose source has not changed since; None of any other."""
        try:
            record = json.loads(self._record_path(case).read_text(encoding="utf-8"))
            if record["made_from"] == self._made_from(case, job) and all(path.is_file() for path in job.outputs(case)):
                return [str(note) for note in record["notes"]]
        except (OSError, ValueError, LookupError, TypeError):
            pass  # not begun, or cut off by a power cut: the case is converted again
        return None

    def record(self, case: Case, job: Job, notes: list[str]) -> None:
        """Remember that a case is finished."""
        write_json(self._record_path(case), {"made_from": self._made_from(case, job), "notes": notes})

    def remove_all_but(self, cases: Iterable[Case], job: Job) -> None:
        """Remove what interrupted runs and cases that failed have left in the dataset."""
        wanted = {path for case in cases for path in job.outputs(case)}
        for path in self.dataset.rglob("*"):
            if path.is_file() and path not in wanted:
                path.unlink()

    def finish(self, description: dict[str, Any], report: dict[str, Any]) -> None:
        """Describe the dataset and give it its final name.

        Raises:
            UserError: a dataset of this name has come into being meanwhile.
        """
        write_json(self.dataset / REPORT, report)
        write_json(self.dataset / "dataset.json", description)
        if self.final.exists():
            raise UserError(f"{self.final}: exists by now; remove it, or give another number with -d")
        self.dataset.rename(self.final)

    def remove(self) -> None:
        """Remove the folder, when no lock in it is held any more."""
        shutil.rmtree(self.path)

    def _record_path(self, case: Case) -> Path:
        return self._records / f"{case.name}.json"

    def _made_from(self, case: Case, job: Job) -> list[Any]:
        files = [(path.absolute(), path.stat()) for path in case.files]
        return [__version__, job.ending, *([str(path), stat.st_size, stat.st_mtime_ns] for path, stat in files)]
