"""The working folder of a demo: where things lie, which steps are done, and whose folder it is."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATASET_ID, DATASET_NAME = 1, "Torso"

NNUNET_KINDS = ("raw", "preprocessed", "results")
_RECORD = "cads_demo.json"


class DemoError(Exception):
    """Something the user can put right; the message is one sentence."""


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
        """What `cads_preprocess` makes of it."""
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
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def overlay(self) -> Path:
        return self.root / "overlay.png"

    @property
    def scores(self) -> Path:
        return self.root / "dice.json"

    def log(self, step: str) -> Path:
        """The file that takes a step's output."""
        return self.root / "logs" / f"{step}.log"

    def seconds(self) -> dict[str, float]:
        """Seconds that each finished step took, by its name."""
        return self._read()["seconds"]

    def finish(self, step: str, seconds: float) -> None:
        """Note that a step is done, so that it is not done again."""
        record = self._read()
        record["seconds"][step] = round(seconds, 1)
        self._write(record)

    def claim(self, settings: dict[str, Any], overwrite: bool) -> bool:
        """Make the folder this demo's, or go on in it; True where an earlier start left something to go on with.

        Raises:
            DemoError: it holds something else, or a demo with other settings, or it cannot be written.
        """
        if self.root.exists() and not self.root.is_dir():
            raise DemoError(f"{self.root}: is a file; choose another folder with --folder")
        try:
            ours = (self.root / _RECORD).is_file()
            if self.root.is_dir() and any(self.root.iterdir()) and not ours:
                raise DemoError(f"{self.root}: exists and was not made by cads_demo; choose another with --folder")
            if ours and not overwrite:
                self._check_settings(settings)
                return True
            if ours:
                self._clear()
            self.root.mkdir(parents=True, exist_ok=True)
            self._write({"settings": settings, "seconds": {}})
        except OSError as error:
            message = f"{self.root}: cannot be used ({error.strerror}); choose another folder with --folder"
            raise DemoError(message) from error
        return False

    def _check_settings(self, settings: dict[str, Any]) -> None:
        present = self._read()["settings"]
        if present != settings:
            raise DemoError(
                f"{self.root}: holds a demo with {_describe(present)}, not {_describe(settings)}; "
                "choose another folder with --folder, or start again in this one with --overwrite"
            )

    def _clear(self) -> None:
        """Remove what a demo makes, and nothing that somebody else put beside it; the record goes last."""
        folders = [self.archive, self.store, self.run, self.predictions, self.root / "logs"]
        for folder in [*folders, *(self.nnunet(kind) for kind in NNUNET_KINDS)]:
            if folder.exists():
                shutil.rmtree(folder)
        for file in (self.overlay, self.scores, self.root / _RECORD):
            file.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        path = self.root / _RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return {"settings": dict(record["settings"]), "seconds": dict(record["seconds"])}
        except (ValueError, KeyError, TypeError) as error:
            raise DemoError(f"{path}: damaged; delete {self.root}, or choose another folder with --folder") from error

    def _write(self, record: dict[str, Any]) -> None:
        temporary = self.root / f".{_RECORD}.tmp"
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.root / _RECORD)


def _describe(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
