"""`cads_plan_and_preprocess`, then training and prediction by nnU-Net's own commands with its plans."""

import json
import os
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.experiment_planning import cli

REPOSITORY = Path(__file__).parents[3]
START = "import sys; from nnunetv2_cads.experiment_planning.cli import main; sys.exit(main())"
SMALL = ("-gpu_memory_target", "0.8", "-np", "1", "-npfp", "1", "--no_pbar")
TRAIN = ("nnUNetv2_train", 1, "3d_fullres", 0, "-device", "cpu", "-p", "nnUNetCADSPlans")
STOCK_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class ShortStockTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1

    def perform_actual_validation(self, save_probabilities=False):
        pass
"""


def plan(project, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", START, "-d", "1", *SMALL, *arguments],
        env=project.environment(PYTHONPATH=str(REPOSITORY), nnUNet_n_proc_DA="1"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def planned(nnunet_project):
    """The project's preprocessed folder, with plans of ours; 3d_fullres preprocessed."""
    plan(nnunet_project, "-c", "3d_fullres")
    return nnunet_project.root / "preprocessed" / "Dataset001_Blobs"


def test_plans_name_the_network_and_what_pretraining_saw(planned):
    plans = json.loads((planned / "nnUNetCADSPlans.json").read_text())
    stock = json.loads((planned / "nnUNetPlans.json").read_text())
    assert set(plans["configurations"]) == set(stock["configurations"]) == {"2d", "3d_fullres"}
    for name, configuration in plans["configurations"].items():
        assert configuration["architecture"]["network_class_name"].endswith("pvt_unet.PVTUNet")
        assert configuration["batch_size"] >= 2
        assert configuration["spacing"] == stock["configurations"][name]["spacing"]
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [16, 32, 32]
    assert plans["cads"]["pretraining"]["clip_hu"] == [-1024, 1024]
    ours = plans["foreground_intensity_properties_per_channel"]["0"]
    assert (ours["percentile_00_5"], ours["percentile_99_5"], ours["mean"], ours["std"]) == (-1024, 1024, 0, 1024)
    fingerprint = json.loads((planned / "dataset_fingerprint.json").read_text())
    assert fingerprint["foreground_intensity_properties_per_channel"]["0"]["mean"] > 50  # other planners' as it was


def test_preprocessed_data_are_hu_over_1024(planned, nnunet_project):
    data = blosc2.open(str(planned / "nnUNetCADSPlans_3d_fullres" / "case_0.b2nd"), mode="r")[0]
    raw = nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr" / "case_0_0000.nii.gz"
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(raw)))
    assert data.shape == hu.shape  # the spacing is the median's, so nothing was resampled
    assert np.abs(data - np.clip(hu, -1024, 1024) / 1024).max() < 1e-6


def test_flags_change_spacing_and_normalisation(planned, nnunet_project):
    plan(nnunet_project, "--no_pp", "--pretraining-spacing", "--nnunet-normalization", "-overwrite_plans_name", "Other")
    plans = json.loads((planned / "Other.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [1, 1, 1]
    fingerprint = json.loads((planned / "dataset_fingerprint.json").read_text())
    key = "foreground_intensity_properties_per_channel"
    assert plans[key] == fingerprint[key]


@pytest.mark.parametrize("trainer", ["ShortStockTrainer", "nnUNetTrainerCADS_scratch_demo_quick"])
def test_train_and_predict_with_the_plans(trainer, planned, nnunet_project, tmp_path):
    folders = (tmp_path, REPOSITORY / "nnunetv2_cads" / "training" / "discovery")
    (tmp_path / "short_stock_trainer.py").write_text(STOCK_TRAINER)
    here = {"PYTHONPATH": str(REPOSITORY), "nnUNet_extTrainer": os.pathsep.join(map(str, folders))}
    done = nnunet_project.run(sys.executable, *TRAIN, "-tr", trainer, **here)
    assert done.returncode == 0, done.stdout + done.stderr
    model = nnunet_project.results / f"{trainer}__nnUNetCADSPlans__3d_fullres"
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert any(key.startswith("encoder.patch_embed1") for key in weights)
    (tmp_path / "in").mkdir()
    case = nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr" / "case_0_0000.nii.gz"
    (tmp_path / "in" / case.name).write_bytes(case.read_bytes())
    done = nnunet_project.run(
        sys.executable, "nnUNetv2_predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "-d", 1, "-f", 0,
        *("-c", "3d_fullres", "-p", "nnUNetCADSPlans", "-tr", trainer, "-device", "cpu", "-npp", 1, "-nps", 1), **here,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "case_0.nii.gz").exists()


def test_bad_arguments_end_with_one_sentence(capsys, monkeypatch, tmp_path):
    for flags in (["-d", "1", "--unknown"], ["-d", "1", "-pl", "ExperimentPlanner"], ["-d", "1", "--cle"], []):
        with pytest.raises(SystemExit):
            cli.main(flags)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert cli.main(["-d", "1"]) == 2
    assert "export nnUNet_raw=" in capsys.readouterr().err
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert cli.main(["-d", "77"]) == 2
    assert "dataset with the ID 77" in capsys.readouterr().err
    (tmp_path / "Dataset077_X").mkdir()
    assert cli.main(["-d", "77", "-c", "2d", "3d_fullres", "-np", "1", "2", "3"]) == 2
    assert "-np" in capsys.readouterr().err
