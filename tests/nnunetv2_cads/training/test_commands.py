"""nnU-Net's own commands in an environment where the wheel is installed, with nothing exported but its folders."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.training.schedule import warmup_poly_factor

TRAIN = ("nnUNetv2_train", 1, "3d_fullres", 0, "-device", "cpu")


@pytest.fixture(scope="module")
def trained(nnunet_project, installed):
    """Result folder of a user's own trainer on top of ours: started, stopped after an epoch, continued to the end."""
    mine = {"nnUNet_extTrainer": str(nnunet_project.trainer_folder), "SKIP_VALIDATION": "1"}
    arguments = (*TRAIN, "-tr", "TinyTrainerCADS")
    encoder = {"nnUNet_cads_encoder": str(nnunet_project.encoder_file), "STOP_BEFORE_EPOCH": "1"}
    stopped = nnunet_project.run(installed.python, *arguments, **mine, **encoder)
    assert stopped.stderr.strip().endswith("stopped by the test"), stopped.stdout + stopped.stderr
    assert "180 matched, 0 missing" in stopped.stdout
    finished = nnunet_project.run(installed.python, *arguments, "--c", **mine)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "come from a checkpoint" in finished.stdout
    return nnunet_project.results / "TinyTrainerCADS__nnUNetPlans__3d_fullres"


def test_a_continued_training_has_the_rates_of_an_unbroken_one(trained):
    checkpoint = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    epochs = 3
    expected = [5e-4 * warmup_poly_factor(epoch, epochs, math.ceil(0.05 * epochs)) for epoch in range(epochs)]
    assert checkpoint["logging"]["lrs"] == pytest.approx(expected)
    assert len(checkpoint["logging"]["train_losses"]) == epochs


def test_validation_needs_no_encoder(trained, nnunet_project, installed):
    mine = {"nnUNet_extTrainer": str(nnunet_project.trainer_folder)}
    done = nnunet_project.run(installed.python, *TRAIN, "-tr", "TinyTrainerCADS", "--val", **mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Mean Validation Dice" in done.stdout
    assert (trained / "fold_0" / "validation" / "summary.json").exists()


def test_prediction_needs_the_installed_package_alone(trained, nnunet_project, installed, tmp_path):
    model = trained.with_name("nnUNetTrainerCADS__nnUNetPlans__3d_fullres")  # as if trained by the full-length trainer
    checkpoint = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    (model / "fold_0").mkdir(parents=True, exist_ok=True)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainerCADS"}, model / "fold_0" / "checkpoint_final.pth")
    for name in ("plans.json", "dataset.json"):
        (model / name).write_text((trained / name).read_text())
    images = tmp_path / "images"
    images.mkdir()
    case = nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr" / "case_0_0000.nii.gz"
    (images / case.name).write_bytes(case.read_bytes())
    arguments = ("-i", images, "-o", tmp_path / "out", "-d", 1, "-c", "3d_fullres", "-f", 0, "-device", "cpu")
    done = nnunet_project.run(
        installed.python, "nnUNetv2_predict", *arguments, "-tr", "nnUNetTrainerCADS", "-npp", 1, "-nps", 1
    )
    assert done.returncode == 0, done.stdout + done.stderr
    segmentation = sitk.ReadImage(str(tmp_path / "out" / "case_0.nii.gz"))
    assert segmentation.GetSize() == sitk.ReadImage(str(case)).GetSize()
    assert set(np.unique(sitk.GetArrayViewFromImage(segmentation))) <= {0, 1, 2}


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_a_training_without_an_encoder_ends_with_one_sentence(
    editable, nnunet_project, installed, make_virtual_environment, source_tree
):
    environment = installed
    if editable:
        environment = make_virtual_environment()
        environment.install("-e", source_tree)
    done = nnunet_project.run(environment.python, *TRAIN, "-tr", "nnUNetTrainerCADS_5epochs")
    assert done.returncode == 1
    assert "Using trainer 'nnUNetTrainerCADS_5epochs' from: " in done.stdout
    assert done.stderr.startswith("nnUNet_cads_encoder is not set")
    assert len(done.stderr.strip().splitlines()) == 1
    results = nnunet_project.results / "nnUNetTrainerCADS_5epochs__nnUNetPlans__3d_fullres"
    assert [path.suffix for path in results.rglob("*") if path.is_file()] == [".txt"] * (1 + editable)  # logs alone
