"""`cads_plan_and_preprocess`, then training and prediction by nnU-Net's own commands with its plans."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.experiment_planning import plan_and_preprocess

REPOSITORY = Path(__file__).parents[3]
START = "import sys; from nnunetv2_cads.experiment_planning.plan_and_preprocess import main; sys.exit(main())"
SMALL = ("-gpu_memory_target", "0.8", "-np", "1", "-npfp", "1", "--no_pbar")
TRAIN = ("nnUNetv2_train", 1, "3d_fullres", 0, "-device", "cpu", "-p", "nnUNetCADSPlans")


def plan(project):
    """Plan and preprocess 3d_fullres with the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", START, "-d", "1", *SMALL, "-c", "3d_fullres"],
        env=project.environment(PYTHONPATH=str(REPOSITORY), nnUNet_n_proc_DA="1"),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def planned(nnunet_project):
    """The project's preprocessed folder, with plans of ours; 3d_fullres preprocessed."""
    plan(nnunet_project)
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


def test_flags_change_spacing_normalisation_and_network(planned, nnunet_project):
    flags = ("--no_pp", "--pretraining-spacing", "--nnunet-normalization", "-overwrite_plans_name", "Other")
    nnunet_project.call(plan_and_preprocess.main, "-d", 1, *SMALL, *flags, "--network", "CoTr", nnUNet_n_proc_DA="1")
    plans = json.loads((planned / "Other.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [1, 1, 1]
    assert plans["cads"]["network"] == "CoTr"
    fingerprint = json.loads((planned / "dataset_fingerprint.json").read_text())
    key = "foreground_intensity_properties_per_channel"
    assert plans[key] == fingerprint[key]


def test_plans_show_what_the_named_encoder_saw(planned, nnunet_project, tmp_path):
    saw = {"spacing_mm": [4.0, 4.0, 4.0], "clip_hu": [-200, 300], "intensity_center_hu": 50, "intensity_scale_hu": 250}
    teacher = {"backbone.x": torch.zeros(1)}
    torch.save({"teacher": teacher, "cads": saw}, tmp_path / "encoder.pth")
    here = {"nnUNet_cads_encoder": str(tmp_path / "encoder.pth"), "nnUNet_n_proc_DA": "1"}
    flags = ("--no_pp", "--pretraining-spacing", "-overwrite_plans_name", "Named")
    nnunet_project.call(plan_and_preprocess.main, "-d", 1, *SMALL, *flags, **here)
    plans = json.loads((planned / "Named.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [4, 4, 4]
    ours = plans["foreground_intensity_properties_per_channel"]["0"]
    assert (ours["percentile_00_5"], ours["percentile_99_5"], ours["mean"], ours["std"]) == (-200, 300, 50, 250)
    assert plans["cads"]["pretraining"] == {"spacing_mm": [4.0] * 3, "clip_hu": [-200, 300], "axes": "zyx"}


@pytest.mark.parametrize(
    ("trainer", "key"),
    [
        ("OneStepStockTrainer", "encoder.patch_embed1.proj.0.weight"),
        ("nnUNetTrainerCADS_scratch_demo_quick", "encoder.patch_embed1.proj.0.weight"),
        ("OneStepTrainerCoTr_AdamW", "encoder_Detrans.level_embed"),
    ],
)
def test_train_and_predict_with_the_plans(trainer, key, planned, nnunet_project, tmp_path):
    folders = (nnunet_project.trainer_folder, REPOSITORY / "nnunetv2_cads" / "training" / "discovery")
    here = {"nnUNet_extTrainer": os.pathsep.join(map(str, folders))}
    nnunet_project.call(*TRAIN, "-tr", trainer, **here)
    model = nnunet_project.results / f"{trainer}__nnUNetCADSPlans__3d_fullres"
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert key in weights
    (tmp_path / "in").mkdir()
    case = nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr" / "case_0_0000.nii.gz"
    (tmp_path / "in" / case.name).write_bytes(case.read_bytes())
    arguments = ("-i", tmp_path / "in", "-o", tmp_path / "out", "-d", 1, "-f", 0, "-c", "3d_fullres", "-tr", trainer)
    sequential = ("-p", "nnUNetCADSPlans", "-device", "cpu", "-npp", 0, "-nps", 0)
    nnunet_project.call("nnUNetv2_predict", *arguments, *sequential, **here)
    assert (tmp_path / "out" / "case_0.nii.gz").exists()


def test_bad_arguments_end_with_one_sentence(capsys, monkeypatch, tmp_path):
    for flags in (["--unknown"], ["-pl", "ExperimentPlanner"], ["--cle"], ["-c", "3d"]):
        with pytest.raises(SystemExit):
            plan_and_preprocess.main(["-d", "1", *flags])
    with pytest.raises(SystemExit):
        plan_and_preprocess.main([])
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert plan_and_preprocess.main(["-d", "1"]) == 2
    assert "export nnUNet_raw=" in capsys.readouterr().err
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert plan_and_preprocess.main(["-d", "77"]) == 2
    assert f"no folder Dataset077_NAME in {tmp_path}" in capsys.readouterr().err
    description = tmp_path / "Dataset077_X" / "dataset.json"
    description.parent.mkdir()
    assert plan_and_preprocess.main(["-d", "77"]) == 2
    assert one_sentence(capsys).startswith(f"{description}: there is no such file; describe the dataset in it")
    for text, said in (
        ("{", "does not describe a dataset in JSON"),
        ("[]", "does not describe a dataset in JSON"),
        ('{"labels": {}}', "has no channel_names, file_end"),
    ):
        description.write_text(text)
        assert plan_and_preprocess.main(["-d", "77"]) == 2
        assert f"{description}: {said}" in one_sentence(capsys)
    description.write_text('{"labels": {}, "channel_names": {}, "numTraining": 1, "file_ending": ".nii.gz"}')
    for flags, said in (
        (["-c", "2d", "3d_fullres", "-np", "1", "2", "3"], "-np [1, 2, 3]: give one number"),
        (["-fpe", "Nope"], "-fpe Nope: nnU-Net has no such class"),
        (["-preprocessor_name", "Nope"], "-preprocessor_name Nope: nnU-Net has no such class"),
    ):
        assert plan_and_preprocess.main(["-d", "77", *flags]) == 2
        assert said in one_sentence(capsys)


def one_sentence(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error.removeprefix("error: ").strip()


@pytest.mark.parametrize("folder", ["a file", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_ends_with_one_sentence(folder, nnunet_project, capsys, monkeypatch, tmp_path):
    (tmp_path / "a file").write_text("")
    folder = tmp_path / folder
    for name, value in nnunet_project.environment(nnUNet_preprocessed=str(folder)).items():
        monkeypatch.setenv(name, value)
    assert plan_and_preprocess.main(["-d", "1", *SMALL]) == 2
    assert re.match(f"{folder}.*: .*; make it readable and writable", one_sentence(capsys))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a file system of the test's own needs root")
@pytest.mark.parametrize("kibibytes", [4, 64])
def test_a_full_disk_ends_with_one_sentence(kibibytes, nnunet_project, tmp_path):
    """Full at the fingerprint, and in the workers that preprocess."""
    mount = f'mount -t tmpfs -o size={kibibytes}k tmpfs "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, tmp_path, sys.executable, "-c", START, "-d", "1", *SMALL],
        env=nnunet_project.environment(PYTHONPATH=str(REPOSITORY), nnUNet_preprocessed=str(tmp_path)),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip("unshare does not work here")
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^error: {tmp_path}: the disk is full .*; make room", done.stderr.splitlines()[-1])
    assert "plan_and_preprocess.py" not in done.stderr  # no traceback of the command's
