"""The working folder of a demo: its paths, which steps are done, and whether it is a demo's at all."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.system.errors import UserError
from pretraining.system.files import write_json

DATASET_ID, DATASET_NAME = 1, "Torso"

VERSION = 2
"""Of what the demo does; a folder that an earlier one has begun is not resumed."""

NNUNET_KINDS = ("raw", "preprocessed", "results")
SCRATCH, PRETRAINED = "_scratch", ""
"""Endings of file names: of the training from random weights, and of the one from the encoder."""
_RECORD = "cads_demo.json"


@dataclass(frozen=True)
class WorkingFolder:
    """Paths below a folder ``root`` that holds everything from an archive to nnU-Net's results."""

    root: Path

    @property
    def archive(self) -> Path:
        """Unlabelled CT, as a user's own would be."""
        return self.root / "archive"

    @property
    def store(self) -> Path:
        """The store that `cads_preprocess` makes of it."""
        return self.root / "store"

    def nnunet(self, kind: str) -> Path:
        """nnU-Net's folder ``kind``: raw, preprocessed or results."""
        return self.root / f"nnUNet_{kind}"

    def nnunet_variables(self) -> dict[str, str]:
        """The environment variables that tell nnU-Net its three folders."""
        return {f"nnUNet_{kind}": str(self.nnunet(kind).absolute()) for kind in NNUNET_KINDS}


@dataclass(frozen=True)
class DemoFolder(WorkingFolder):
    """Paths below the demo's folder ``root``."""

    @property
    def run(self) -> Path:
        """The pre-training run."""
        return self.root / "run"

    @property
    def encoder(self) -> Path:
        return self.run / "cads_encoder.pth"

    @property
    def dataset(self) -> Path:
        """The labelled torsos, in nnU-Net's raw format."""
        return self.nnunet("raw") / f"Dataset{DATASET_ID:03d}_{DATASET_NAME}"

    @property
    def truths(self) -> Path:
        """Label maps of the held-out torsos."""
        return self.dataset / "labelsTs"

    def predictions(self, start: str) -> Path:
        """Segmentations of the held-out torsos by the training from ``start``: `SCRATCH` or `PRETRAINED`."""
        return self.root / f"predictions{start}"

    def summary(self, start: str) -> Path:
        """What `nnUNetv2_evaluate_folder` writes."""
        return self.predictions(start) / "summary.json"

    def scores(self, start: str) -> Path:
        return self.root / f"dice{start}.json"

    @property
    def overlay(self) -> Path:
        return self.root / "overlay.png"

    def log(self, step: str) -> Path:
        """The file with a step's output."""
        return self.root / "logs" / f"{step}.log"

    def seconds(self) -> dict[str, float]:
        """Seconds that each finished step took, by its name."""
        return self._read()["seconds"]

    def finish(self, step: str, seconds: float) -> None:
        """Record that a step is done, so that it is not done again."""
        record = self._read()
        record["seconds"][step] = round(seconds, 1)
        self._write(record)

    def claim(self, settings: dict[str, Any], overwrite: bool) -> bool:
        """Make the folder this demo's; True if it already was, so that the demo resumes.

        Raises:
            UserError: it holds something else, or a demo with other settings, or it cannot be written.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"{self.root}: is a file; choose another folder with --folder")
        try:
            ours = (self.root / _RECORD).is_file()
            if self.root.is_dir() and any(self.root.iterdir()) and not ours:
                raise UserError(f"{self.root}: exists and was not made by cads_demo; choose another with --folder")
            if ours and not overwrite:
                self._check_settings(settings)
                return True
            if ours:
                self._clear()
            self.root.mkdir(parents=True, exist_ok=True)
            self._write({"version": VERSION, "settings": settings, "seconds": {}})
        except OSError as error:
            message = f"{self.root}: cannot be used ({error.strerror}); choose another folder with --folder"
            raise UserError(message) from error
        return False

    def _check_settings(self, settings: dict[str, Any]) -> None:
        record = self._read()
        if record["version"] != VERSION:
            raise UserError(
                f"{self.root}: holds a demo of another version of cads_demo, which does other steps; choose another "
                "folder with --folder, or start again in this one with --overwrite"
            )
        present = record["settings"]
        if present != settings:
            raise UserError(
                f"{self.root}: holds a demo with {_describe(present)}, not {_describe(settings)}; "
                "choose another folder with --folder, or start again in this one with --overwrite"
            )

    def _clear(self) -> None:
        """Remove what a demo makes, and nothing else; the record goes last."""
        starts = (SCRATCH, PRETRAINED)
        folders = [self.archive, self.store, self.run, self.root / "logs", *map(self.predictions, starts)]
        for folder in [*folders, *(self.nnunet(kind) for kind in NNUNET_KINDS)]:
            if folder.exists():
                shutil.rmtree(folder)
        for file in (self.overlay, *map(self.scores, starts), self.root / _RECORD):
            file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        path = self.root / _RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version = record.get("version", 1)  # which wrote none
            return {"version": version, "settings": dict(record["settings"]), "seconds": dict(record["seconds"])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: is damaged; delete {self.root}, or choose another folder with --folder"
            ) from error

    def _write(self, record: dict[str, Any]) -> None:
        write_json(self.root / _RECORD, record)


def _describe(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
