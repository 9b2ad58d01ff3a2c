"""Every configuration of nnU-Net's, on two channels, regions, an ignore label and thick slices."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
EQUAL_SHARES = {"2d": "proj_2D", "3d_fullres": "proj", "3d_lowres": "proj", "3d_cascade_fullres": "proj"}
FIRST_RATE = 0.5e-4
"""The encoder's in the one epoch: half of 1e-4, as the warm-up takes one epoch."""


def fold_of(configuration: str) -> int | str:
    return "all" if configuration == "3d_lowres" else 0


def read(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_configuration_trains_from_the_encoder_and_validates(configuration, trained, nnunet_project):
    assert "Mean Validation Dice" in trained.printed[configuration]
    fold = trained.fold(configuration, fold_of(configuration))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"(1, 2)", "2"}  # the regions
    segmentation = read(fold / "validation" / "case_1.nii.gz")
    assert segmentation.shape == read(trained.raw / "labelsTr" / "case_1.nii.gz").shape
    assert set(np.unique(segmentation)) <= {0, 1, 2}

    weights = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    key = f"patch_embed1.{EQUAL_SHARES[configuration]}.0.weight"
    kernel = torch.load(nnunet_project.encoder_file, weights_only=True)["teacher"][f"backbone.{key}"]
    first = weights[f"encoder.{key}"]
    torch.testing.assert_close(first[:, :2], kernel.expand_as(first[:, :2]) / 2, rtol=0, atol=2 * FIRST_RATE)
    assert not torch.equal(first[:, :1], first[:, 1:2])  # both channels have learned
    previous_stage = first[:, 2:]
    assert previous_stage.shape[1] == (2 if "cascade" in configuration else 0)
    if "cascade" in configuration:  # from zero, one step of AdamW
        assert 0 < previous_stage.abs().max() < 1.1 * FIRST_RATE


def test_the_log_says_what_the_encoder_was_not_shown(trained):
    for configuration, printed in trained.printed.items():
        channels = 4 if "cascade" in configuration else 2
        assert f"Spread over 2 of {channels} input channels" in printed
        assert ("start at zero" in printed) == ("cascade" in configuration)
        assert ("saw radiographs but no CT slices" in printed) == (configuration == "2d")
        assert (
            "Channel 1 (PET): the plans have ZScoreNormalization, which is not for CT; the encoder saw only" in printed
        )
        assert "Channel 0" not in printed  # our plans show it what pre-training saw
    assert "the plans have 5 x 1.5 x 1.5 mm, the encoder saw 1 x 1 x 1 mm" in trained.printed["3d_fullres"]
    assert "the plans have 1.5 x 1.5 mm, the encoder saw 1 x 1 mm" in trained.printed["2d"]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_prediction_gives_what_validation_gave(configuration, trained, nnunet_project, tmp_path):
    for channel in ("0000", "0001"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(trained.raw / "imagesTr" / f"case_1_{channel}.nii.gz", tmp_path / "in")
    fold = trained.fold(configuration, fold_of(configuration))
    arguments = [
        "-i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "-d",
        2,
        "-c",
        configuration,
        "-f",
        fold_of(configuration),
    ]
    if "cascade" in configuration:
        lowres = trained.fold("3d_lowres", "all") / "validation"
        (tmp_path / "previous").mkdir()
        shutil.copy(lowres / "case_1.nii.gz", tmp_path / "previous")
        arguments += ["-prev_stage_predictions", tmp_path / "previous"]
    arguments += ["-f", fold_of(configuration), "-tr", trained.trainer, "-p", "nnUNetCADSPlans"]
    sequential = ("-device", "cpu", "-npp", 0, "-nps", 0)
    mine = {"nnUNet_extTrainer": str(nnunet_project.trainer_folder)}
    nnunet_project.call("nnUNetv2_predict", *arguments, *sequential, **mine)
    predicted, validated = (read(folder / "case_1.nii.gz") for folder in (tmp_path / "out", fold / "validation"))
    assert predicted.shape == validated.shape
    # the cascade sees the previous stage's segmentation resampled from the original grid instead of its own
    agreement = (predicted == validated).mean()
    assert agreement == 1 if "cascade" not in configuration else agreement > 0.9
