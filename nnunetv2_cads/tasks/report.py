"""What a conversion has come to: for the terminal, for a file in the dataset, and for nnU-Net."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_cads.tasks.find_cases import Case
from nnunetv2_cads.tasks.sources import Source

REPORT = "conversion.json"
"""In the dataset: what each case was made from, what was found in it, and what was left out."""
SHOWN = 12
"""How many names stand in one line of the terminal; the file has all."""


@dataclass(frozen=True)
class Report:
    """The outcome of a conversion.

    Attributes:
        source: the task's download.
        folder: where it is.
        missing: published cases of which there is no file.
        converted: finished cases and their notes.
        left_out: the reason for each other case.
    """

    source: Source
    folder: Path
    missing: tuple[str, ...]
    converted: dict[Case, list[str]]
    left_out: dict[str, str]

    @property
    def labelled(self) -> int:
        """Number of finished cases with labels."""
        return sum(case.label is not None for case in self.converted)

    def text(self, dataset: Path) -> str:
        """The report for the terminal; ``dataset`` is the folder of the dataset."""
        without = len(self.converted) - self.labelled
        lines = [f"{dataset}: cases: {self.labelled}, scans without labels: {without}"]
        if self.labelled < self.source.scans:
            missing = f"; not in {self.folder}: {_names(self.missing)}" if self.missing else ""
            lines.append(f"warning: {self.source.scans} cases are published{missing}")
        for note in dict.fromkeys(note for notes in self.converted.values() for note in notes):
            names = [case.name for case, notes in self.converted.items() if note in notes]
            lines.append(f"{note}: {len(names)} ({_names(names)})")
        if self.left_out:
            lines.append(
                f"left out: {len(self.left_out)}; to add them, remove {dataset} and give the same command again"
            )
            lines += [f"  {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join([*lines, f"every case and what was done about it: {dataset / REPORT}"]) + "\n"

    def content(self) -> dict[str, Any]:
        """The report for its file; paths are relative to SOURCE."""
        return {
            "source": self.source.title,
            "cases": {
                case.name: {
                    "made_from": [path.relative_to(self.folder).as_posix() for path in case.files],
                    "notes": notes,
                }
                for case, notes in self.converted.items()
            },
            "left_out": self.left_out,
            "missing": list(self.missing),
        }

    def description(self, ending: str) -> dict[str, Any]:
        """dataset.json. ITK is named as the reader, since nnU-Net would take nibabel for .nii."""
        return {
            "channel_names": {"0": "CT"},
            "labels": self.source.labels,
            "numTraining": self.labelled,
            "file_ending": ending,
            "overwrite_image_reader_writer": "SimpleITKIO",
            "name": self.source.dataset_name,
            "description": self.source.title,
            "reference": self.source.reference,
            "licence": self.source.licence,
        }


def _names(names: list[str] | tuple[str, ...]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
