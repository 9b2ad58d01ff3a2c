"""nnU-Net's own training command on fewer labelled cases than its five folds need."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_cads.training.base_trainer import TrainingCannotStart
from nnunetv2_cads.training.trainer import nnUNetTrainerCADS

DATASET = "Dataset001_Blobs"
DATA = "nnUNetPlans_3d_fullres"


@pytest.fixture
def few(nnunet_project, tmp_path) -> Callable[[int], Path]:
    """Makes the project's preprocessed dataset with its first cases alone; returns its folder."""
    source, folder = nnunet_project.root / "preprocessed" / DATASET, tmp_path / "preprocessed" / DATASET

    def make(count: int) -> Path:
        (folder / DATA).mkdir(parents=True, exist_ok=True)
        if not (folder / "gt_segmentations").exists():
            (folder / "gt_segmentations").symlink_to(source / "gt_segmentations")
        for file in source.glob("*.json"):
            if file.name != "splits_final.json":
                shutil.copy(file, folder)
        for i in range(count):
            for file in (source / DATA).glob(f"case_{i}[._]*"):
                shutil.copy(file, folder / DATA)
        return folder

    return make


@pytest.fixture
def make_trainer_of(few, monkeypatch, tmp_path) -> Callable[[int | str], nnUNetTrainerCADS]:
    """Makes the trainer of a fold as nnUNetv2_train does."""

    def make(fold: int | str) -> nnUNetTrainerCADS:
        for kind in ("preprocessed", "results"):
            monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
        folder = tmp_path / "preprocessed" / DATASET
        plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
        plans["continue_training"] = False
        return nnUNetTrainerCADS(plans, "3d_fullres", fold, dataset, torch.device("cpu"))

    return make


@pytest.mark.parametrize("count", [1, 3])
def test_each_of_few_cases_is_left_out_once(count, few, nnunet_project, tmp_path):
    """The whole of nnU-Net's command on the last fold."""
    folder, fold = few(count), count - 1
    here = {f"nnUNet_{kind}": str(tmp_path / kind) for kind in ("preprocessed", "results")}
    here["nnUNet_extTrainer"] = str(nnunet_project.trainer_folder)
    here["nnUNet_cads_encoder"] = str(nnunet_project.encoder_file)
    arguments = (1, "3d_fullres", fold, "-tr", "OneStepTrainerCADS", "-device", "cpu")
    printed = nnunet_project.call("nnUNetv2_train", *arguments, **here)
    splits = json.loads((folder / "splits_final.json").read_text())
    cases = [f"case_{i}" for i in range(count)]
    assert [split["val"] for split in splits] == [[case] for case in cases]
    assert all(sorted({*split["train"], *split["val"]}) == cases for split in splits)
    assert all(len(split["train"]) == max(1, count - 1) for split in splits)
    validated = tmp_path / "results" / DATASET / f"OneStepTrainerCADS__nnUNetPlans__3d_fullres/fold_{fold}/validation"
    assert [file.name for file in validated.glob("*.nii.gz")] == [f"case_{fold}.nii.gz"]
    assert ("WARNING: there is one labelled case" in printed) == (count == 1)


@pytest.mark.parametrize("folder_is_there", [True, False])
def test_data_that_are_not_preprocessed_end_with_the_command_to_run(folder_is_there, few, nnunet_project, tmp_path):
    data = few(0) / DATA
    if not folder_is_there:
        data.rmdir()
    here = {f"nnUNet_{kind}": str(tmp_path / kind) for kind in ("preprocessed", "results")}
    here["nnUNet_extTrainer"] = str(nnunet_project.trainer_folder)
    here["nnUNet_cads_encoder"] = str(nnunet_project.encoder_file)
    arguments = (1, "3d_fullres", 0, "-tr", "OneStepTrainerCADS", "-device", "cpu")
    with pytest.raises(TrainingCannotStart) as ended:
        nnunet_project.call("nnUNetv2_train", *arguments, **here)
    command = "nnUNetv2_preprocess -d 1 -plans_name nnUNetPlans -c 3d_fullres"
    assert str(ended.value) == f"{data}: holds no preprocessed case; run first: {command}"


@pytest.mark.parametrize(("count", "fold", "folds"), [(3, 3, "folds 0 to 2 and fold all"), (1, 1, "fold 0 and fold")])
def test_a_fold_that_few_cases_do_not_have_ends_with_one_sentence(count, fold, folds, few, make_trainer_of):
    folder = few(count)
    with pytest.raises(TrainingCannotStart, match=f"^fold {fold} does not exist: .* {folds}.*$") as ended:
        make_trainer_of(fold).do_split()
    assert str(folder / "splits_final.json") in str(ended.value) and "\n" not in str(ended.value)
    assert sorted(make_trainer_of("all").do_split()[0]) == [f"case_{i}" for i in range(count)]


def test_a_split_of_the_users_stays_as_it_is(few, make_trainer_of):
    file = few(3) / "splits_final.json"
    mine = '[{"train": ["case_0", "case_2"], "val": ["case_1"]}]'
    file.write_text(mine)
    assert make_trainer_of(0).do_split() == (["case_0", "case_2"], ["case_1"])
    with pytest.raises(TrainingCannotStart, match="into fold 0 and fold all; give one of these"):
        make_trainer_of(2).do_split()
    assert file.read_text() == mine


def test_a_split_of_fewer_cases_than_there_are_now_is_named(few, make_trainer_of, capsys):
    file = few(2) / "splits_final.json"
    make_trainer_of(0).do_split()
    few(5)
    capsys.readouterr()
    make_trainer_of(0).do_split()
    assert f"WARNING: {file} was made of fewer cases than the 5 that there are now" in capsys.readouterr().out
    file.unlink()
    make_trainer_of(0).do_split()
    assert "WARNING" not in capsys.readouterr().out
    assert len(json.loads(file.read_text())) == 5
