"""One tiny nnU-Net project for the whole session, made with nnU-Net's real commands from real NIfTI files."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.network_architecture import PVTv2Encoder

TRAINERS_OF_A_USER = '''
import os

from nnunetv2_cads.training.trainer import nnUNetTrainerCADS


class TinyTrainerCADS(nnUNetTrainerCADS):
    settings = {
        "num_epochs": 3, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "save_every": 1,
    }

    def on_epoch_end(self):
        super().on_epoch_end()
        if self.current_epoch == int(os.environ.get("STOP_BEFORE_EPOCH", -1)):
            raise SystemExit("stopped by the test")
'''


@dataclass(frozen=True)
class NnunetProject:
    """Folders and files of the project: dataset 1 with five CTs, planned for 3d_fullres and 2d."""

    root: Path
    encoder_file: Path

    @property
    def results(self) -> Path:
        return self.root / "results" / "Dataset001_Blobs"

    @property
    def trainer_folder(self) -> Path:
        return self.root / "my_trainers"

    def environment(self, **changes: str | None) -> dict[str, str]:
        """A fresh shell's: nnU-Net's three folders and its numbers of processes; None removes a variable."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet_", "PYTHON"))}
        folders = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        small = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
        merged = {**variables, **folders, **small, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, command: str, *arguments: str, python: str | None = None, **changes: str | None):
        """Run one of nnU-Net's console scripts in `environment`; returns the finished process, output as text."""
        script = shutil.which(command, path=sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"])
        return subprocess.run(
            [python or sys.executable, script, *map(str, arguments)],
            env=self.environment(**changes), cwd=self.root, text=True, capture_output=True, timeout=300,
        )  # fmt: skip


def _write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    """A body of water with two blobs of 100 and 250 HU in air, 3 x 1.5 x 1.5 mm."""
    shape = (20, 40, 40)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    labels = np.zeros(shape, np.uint8)
    for label in (1, 2):
        center = rng.uniform((5, 10, 10 + 12 * (label - 1)), (15, 30, 16 + 12 * (label - 1)))
        distance = (((grid - center[:, None, None, None]) / np.array((4, 6, 6))[:, None, None, None]) ** 2).sum(0)
        labels[distance < 1] = label
    body = ((grid[1:] - 20) ** 2).sum(0) < 18**2
    image = np.select([labels == 1, labels == 2, body], [100, 250, 0], -1000) + rng.normal(0, 20, shape)
    for array, path in ((image.astype(np.int16), f"imagesTr/{name}_0000"), (labels, f"labelsTr/{name}")):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing((1.5, 1.5, 3.0))
        sitk.WriteImage(volume, str(folder / f"{path}.nii.gz"))


def _write_dataset(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        _write_case(folder, f"case_{i}", rng)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "soft": 1, "hard": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _write_encoder(path: Path) -> None:
    """A file as cads_export writes it, of random weights that are not the initial ones."""
    torch.manual_seed(1)
    state = {f"backbone.{key}": value + 0.01 for key, value in PVTv2Encoder().state_dict().items()}
    torch.save({"teacher": state, "cads": {"spacing_mm": [1.0, 1.0, 1.0], "clip_hu": [-1024, 1024]}}, path)


@pytest.fixture(scope="session")
def nnunet_project(tmp_path_factory: pytest.TempPathFactory) -> NnunetProject:
    """The project, planned and preprocessed; trainings of one test must use a folder name of their own."""
    root = tmp_path_factory.mktemp("nnunet_project")
    project = NnunetProject(root, root / "cads_encoder.pth")
    _write_dataset(root / "raw" / "Dataset001_Blobs")
    _write_encoder(project.encoder_file)
    project.trainer_folder.mkdir()
    (project.trainer_folder / "my_trainers.py").write_text(TRAINERS_OF_A_USER)
    arguments = ("-d", 1, "-c", "3d_fullres", "2d", "-np", 1, 1, "-npfp", 1)
    done = project.run("nnUNetv2_plan_and_preprocess", *arguments, nnUNet_n_proc_DA="1")  # the planner refuses 0
    assert done.returncode == 0, done.stdout + done.stderr
    return project
