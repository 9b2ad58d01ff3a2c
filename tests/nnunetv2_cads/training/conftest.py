"""A data set with all that is special, trained in every configuration through nnU-Net's commands."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.experiment_planning import plan_and_preprocess
from nnunetv2_cads.training.trainer import nnUNetTrainerCADS

CASES = ("case_0", "case_1")
TRAINER = "OneStepTrainerCADS"
"""Of `nnunet_project`'s user."""


@dataclass(frozen=True)
class Trained:
    """Results of the trainings, and what the command printed for each configuration."""

    raw: Path
    results: Path
    printed: dict[str, str]
    trainer: str = TRAINER

    def fold(self, configuration: str, fold: int | str = 0) -> Path:
        return self.results / f"{TRAINER}__nnUNetCADSPlans__{configuration}" / f"fold_{fold}"


def _write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    """CT and PET of 5 x 1.5 x 1.5 mm: an organ (1), a lesion (2) in it that PET shows, slices without a label (3)."""
    shape = (16, 92, 92)  # just large enough for nnU-Net to plan a low resolution
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    center = rng.uniform((7, 40, 40), (9, 50, 50))[:, None, None, None]
    distance = (((grid - center) / np.array((6, 25, 25))[:, None, None, None]) ** 2).sum(0)
    labels = np.select([distance < 0.2, distance < 1], [2, 1], 0).astype(np.uint8)
    images = [np.select([labels > 0], [80], -900), np.select([labels == 2, labels == 1], [9, 2], 0)]
    labels[:2] = 3
    named = {f"imagesTr/{name}_{i:04d}": image + rng.normal(0, 1, shape) for i, image in enumerate(images)}
    for path, array in {**named, f"labelsTr/{name}": labels}.items():
        volume = sitk.GetImageFromArray(array if array.dtype == np.uint8 else array.astype(np.float32))
        volume.SetSpacing((1.5, 1.5, 5.0))
        sitk.WriteImage(volume, str(folder / f"{path}.nii.gz"))


def _write_dataset(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in CASES:
        _write_case(folder, name, rng)
    description = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "organ": [1, 2], "lesion": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture(scope="session")
def special_dataset(nnunet_project) -> Path:
    """Raw folder of data set 2: two channels, regions, ignore label, anisotropic; planned and preprocessed by us."""
    raw = nnunet_project.root / "raw" / "Dataset002_Special"
    _write_dataset(raw)
    arguments = ("-d", 2, "-gpu_memory_target", 0.62, "-np", 1, "-npfp", 1, "--no_pbar")
    nnunet_project.call(plan_and_preprocess.main, *arguments, nnUNet_n_proc_DA="1")
    split = [{"train": [CASES[0]], "val": [CASES[1]]}]
    (nnunet_project.root / "preprocessed" / raw.name / "splits_final.json").write_text(json.dumps(split))
    return raw


@pytest.fixture(scope="session")
def trained(special_dataset, nnunet_project) -> Trained:
    """Every configuration. The cascade needs the low resolution's segmentation of every case, hence fold `all`."""
    here = {
        "nnUNet_cads_encoder": str(nnunet_project.encoder_file),
        "nnUNet_extTrainer": str(nnunet_project.trainer_folder),
    }
    printed = {}
    for configuration, fold in (("2d", 0), ("3d_fullres", 0), ("3d_lowres", "all"), ("3d_cascade_fullres", 0)):
        arguments = (2, configuration, fold, "-tr", TRAINER, "-p", "nnUNetCADSPlans", "-device", "cpu")
        printed[configuration] = nnunet_project.call("nnUNetv2_train", *arguments, **here)
    return Trained(special_dataset, nnunet_project.root / "results" / special_dataset.name, printed)


@pytest.fixture
def make_trainer(nnunet_project, monkeypatch, tmp_path):
    """Makes a trainer of the project as nnUNetv2_train does, with results in a folder of the test's own."""
    for name, value in nnunet_project.environment(nnUNet_results=str(tmp_path)).items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("nnUNet_cads_encoder", raising=False)
    folder = nnunet_project.root / "preprocessed" / "Dataset001_Blobs"
    if not (folder / "nnUNetPlans_2d").exists():  # what preprocessing for 2d would write is the same here
        (folder / "nnUNetPlans_2d").symlink_to(folder / "nnUNetPlans_3d_fullres")

    def make(trainer_class=nnUNetTrainerCADS, configuration="3d_fullres", channels=1):
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        dataset = json.loads((folder / "dataset.json").read_text())
        dataset["channel_names"] = {str(i): "CT" for i in range(channels)}
        return trainer_class({**plans, "continue_training": False}, configuration, 0, dataset, torch.device("cpu"))

    return make
