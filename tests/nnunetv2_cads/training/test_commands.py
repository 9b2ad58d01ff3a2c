"""nnU-Net's own commands in an environment where the wheel is installed, with nothing exported but its folders."""

import math
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.training.schedule import warmup_poly_factor

TRAIN = ("nnUNetv2_train", 1, "3d_fullres", 0, "-device", "cpu")


@pytest.fixture(scope="module")
def trained(nnunet_project, installed):
    """Result folder of a user's own trainer on top of ours: started, stopped after an epoch, then, without an encoder
    file, continued to the end and validated."""
    mine = {"nnUNet_extTrainer": str(nnunet_project.trainer_folder)}
    arguments = (*TRAIN, "-tr", "TinyTrainerCADS")
    encoder = {"nnUNet_cads_encoder": str(nnunet_project.encoder_file), "STOP_BEFORE_EPOCH": "1"}
    stopped = nnunet_project.run(installed.python, *arguments, **mine, **encoder)
    assert stopped.stderr.strip().endswith("stopped by the test"), stopped.stdout + stopped.stderr
    assert "180 matched, 0 missing" in stopped.stdout
    finished = nnunet_project.run(installed.python, *arguments, "--c", "--npz", **mine)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "come from a checkpoint" in finished.stdout and "Mean Validation Dice" in finished.stdout
    return nnunet_project.results / "TinyTrainerCADS__nnUNetPlans__3d_fullres"


def test_a_continued_training_has_the_rates_of_an_unbroken_one(trained):
    checkpoint = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    epochs = 3
    expected = [5e-4 * warmup_poly_factor(epoch, epochs, math.ceil(0.05 * epochs)) for epoch in range(epochs)]
    assert checkpoint["logging"]["lrs"] == pytest.approx(expected)
    assert len(checkpoint["logging"]["train_losses"]) == epochs


def test_a_zipped_model_needs_the_installed_package_alone(trained, nnunet_project, installed, tmp_path):
    model = trained.with_name("nnUNetTrainerCADS__nnUNetPlans__3d_fullres")  # as if of the full-length trainer
    shutil.copytree(trained, model, ignore=shutil.ignore_patterns("*.pth"))
    checkpoint = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainerCADS"}, model / "fold_0" / "checkpoint_final.pth")
    of = ("-d", 1, "-c", "3d_fullres", "-f", 0, "-tr", "nnUNetTrainerCADS")
    nnunet_project.call("nnUNetv2_export_model_to_zip", *of, "-o", tmp_path / "model.zip")

    elsewhere = {"nnUNet_results": str(tmp_path / "results"), "nnUNet_raw": None, "nnUNet_preprocessed": None}
    (tmp_path / "results").mkdir()
    unzip = ("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    done = nnunet_project.run(installed.python, *unzip, **elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    images = tmp_path / "images"
    images.mkdir()
    known = next((trained / "fold_0" / "validation").glob("*.npz"))  # a case, as it was predicted in training
    case = nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr" / f"{known.stem}_0000.nii.gz"
    (images / case.name).write_bytes(case.read_bytes())
    sequential = ("-device", "cpu", "-npp", 1, "-nps", 1, "--save_probabilities")
    arguments = ("-i", images, "-o", tmp_path / "out", *of, *sequential)
    done = nnunet_project.run(installed.python, "nnUNetv2_predict", *arguments, **elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (np.load(file)["probabilities"] for file in (known, tmp_path / "out" / known.name))
    # nnU-Net adds logits up in half precision, whose steps of 0.004 between 4 and 8 are 0.001 of a probability, tile by
    # tile: some such steps can add up
    np.testing.assert_allclose(after, before, atol=4e-3)
    segmentation = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{known.stem}.nii.gz")))
    assert (segmentation == before.argmax(0)).mean() > 0.999


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
