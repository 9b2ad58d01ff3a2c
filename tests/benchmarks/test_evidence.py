"""The whole experiment, tiny: real pre-training, nnU-Net's own trainers, results, and going on."""

import dataclasses
import itertools
import json
import shutil

import evidence
import pytest
import SimpleITK as sitk
import torch
from few_labels import tasks
from few_labels.data import StudyFolder

from nnunetv2_cads.encoder_file.read import read_encoder_file

ARMS = ("nnUNetTrainer", "CADS", "MAE", "oracle")


def keep_environment(patch: pytest.MonkeyPatch) -> None:
    """The experiment tells nnU-Net its own folders; what it sets is undone afterwards."""
    for kind in ("raw", "preprocessed", "results"):
        patch.setenv(f"nnUNet_{kind}", "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an experiment that was run for some arms, then for all."""
    folder = tmp_path_factory.mktemp("evidence")
    command = [str(folder), "--quick", "--out", str(folder / "out"), "--arms"]
    with pytest.MonkeyPatch.context() as patch:
        keep_environment(patch)
        assert evidence.main([*command, *ARMS[:1]]) == 0
        times = {path: path.stat().st_mtime_ns for path in (folder / "finetuned").glob("*.json")}
        assert len(times) == 1
        assert evidence.main([*command, *ARMS]) == 0
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    return folder


@pytest.fixture
def trained(finished, tmp_path, monkeypatch):
    """Trains an arm once more, on the finished experiment's only fold, and returns its encoder's weights."""
    keep_environment(monkeypatch)
    experiment = evidence.Experiment(StudyFolder(finished), evidence.QUICK, None, [])
    task = tasks.torso_task(experiment.folder, evidence.QUICK.data, (1,), 1)

    def train(arm, seed=0, pretraining=None):
        out = tmp_path / f"{arm}_{seed}.pth"
        encoder = experiment.encoder_path(pretraining) if pretraining else None
        experiment.train(task, 0, seed, arm, out.with_suffix(".log"), encoder=encoder, encoder_out=out)
        return read_encoder_file(out).state

    return train


def test_records_name_arm_labels_seed_case_and_organ(finished):
    results = json.loads((finished / "out" / "results.json").read_text(encoding="utf-8"))
    assert {row["arm"] for row in results["records"]} == set(ARMS)
    assert len(results["records"]) == len(ARMS) * 8  # one budget, seed and held-out case, eight organs
    for row in results["records"]:
        assert {"labels", "seed", "case", "organ", "dice", "nsd"} <= set(row)
        assert row["dice"] is None or 0 <= row["dice"] <= 1
    assert set(results["pretraining"]) == {"CADS", "MAE"}
    assert all(cost["gflop_per_sample"] > 0 for cost in results["pretraining"].values())
    assert set(results["probes"]) == {"random", "CADS", "MAE", "oracle"}
    for found in results["probes"].values():
        assert 1 / 9 < found["linear"] <= 1 and 0 <= found["top1"] <= found["top5"] <= 1 and len(found["ranks"]) == 4
    flops = {run["arm"]: run["cost"]["flops_per_iteration"] for run in results["runs"]}
    assert flops["CADS"] != flops["nnUNetTrainer"] > 0


def test_table_and_figure_are_written(finished):
    text = (finished / "out" / "table.md").read_text(encoding="utf-8")
    assert all(f"| {arm} | 0." in text for arm in ARMS)
    assert "| CADS - nnUNetTrainer | " in text
    assert (finished / "out" / "evidence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arm", ["CADS", "MAE", "oracle"])
def test_a_pretrained_arm_began_with_its_own_encoder(finished, arm):
    checkpoint = read_encoder_file(finished / "runs" / arm / "cads_encoder.pth")
    assert checkpoint.sha256 in (finished / "finetuned" / f"torsos__{arm}__1__0.log").read_text(encoding="utf-8")


def test_a_frozen_encoder_is_what_it_was_and_another_one_is_not(finished, trained):
    begun_with = read_encoder_file(finished / "runs" / "CADS" / "cads_encoder.pth").state
    unchanged = {}
    for arm in ("CADS_frozen", "CADS"):
        after = trained(arm, pretraining="CADS")
        unchanged[arm] = all(torch.equal(after[key], value) for key, value in begun_with.items() if key in after)
    assert unchanged == {"CADS_frozen": True, "CADS": False}


def test_a_slow_encoder_moves_less(finished, trained):
    begun_with = read_encoder_file(finished / "runs" / "CADS" / "cads_encoder.pth").state
    moved = {}
    for arm in ("CADS_slow", "CADS"):
        after = trained(arm, pretraining="CADS")
        moved[arm] = sum((value - begun_with[key]).abs().sum().item() for key, value in after.items())
    assert 0 < moved["CADS_slow"] < 0.5 * moved["CADS"]


def test_the_oracle_was_taught_with_a_seed_that_no_fine_tuning_has(finished, trained):
    oracle = read_encoder_file(finished / "runs" / "oracle" / "cads_encoder.pth").state
    same = {}
    for seed in (0, evidence.QUICK.seeds):
        after = trained(evidence.SCRATCH, seed)
        same[seed] = all(torch.equal(oracle[key], value) for key, value in after.items())
    assert same == {0: False, 1: True}


def test_results_go_on_in_another_folder_and_are_not_replaced_by_others(finished, tmp_path, monkeypatch):
    keep_environment(monkeypatch)
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    before = json.loads((out / "results.json").read_text(encoding="utf-8"))
    command = [str(tmp_path / "new"), "--quick", "--tables", "--out", str(out)]
    assert evidence.main(command) == 0
    after = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert after["records"] == before["records"] and after["runs"] == before["runs"]
    assert after["probes"] == before["probes"] and after["pretraining"] == before["pretraining"]
    monkeypatch.setattr(evidence, "QUICK", dataclasses.replace(evidence.QUICK, recipe={**evidence.RECIPE, "lr": 1.0}))
    assert evidence.main([str(tmp_path / "other_recipe"), *command[1:]]) == 0
    after = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {row["arm"] for row in after["records"]} == {"nnUNetTrainer"}
    monkeypatch.setattr(evidence, "QUICK", dataclasses.replace(evidence.QUICK, schedule={"epochs": 2}))
    with pytest.raises(SystemExit, match="holds results of other data"):
        evidence.main([str(tmp_path / "other_size"), *command[1:]])


def test_no_time_left_begins_no_training(finished, tmp_path, capsys):
    size = evidence.QUICK
    experiment = evidence.Experiment(StudyFolder(finished), size, None, ["ResEncM"])
    assert experiment.run(deadline=0.0) is False
    assert not list((finished / "finetuned").glob("*ResEncM*"))


def test_torso_folds_use_other_cases_for_each_seed_and_never_a_held_out_one(finished):
    task = tasks.torso_task(StudyFolder(finished), evidence.QUICK.data, (1,), 2)
    assert [(fold.labels, fold.seed) for fold in task.folds] == [(1, 0), (1, 1)]
    assert not {name for fold in task.folds for name in fold.train} & set(task.folds[0].test)


@pytest.mark.parametrize("name", tasks.REAL_SOURCES)
def test_real_slabs_do_not_touch_and_all_have_labels(name, ct_dir, tmp_path):
    source = tasks.REAL_SOURCES[name]
    task = tasks.real_task(name, ct_dir, StudyFolder(tmp_path))
    whole = sitk.DICOMOrient(sitk.ReadImage(str(ct_dir / source.image)), "LPS")
    places = {}
    assert len({fold.seed for fold in task.folds}) == len(task.folds) == source.seeds * source.slabs
    for fold in task.folds:
        assert len(fold.train) == source.slabs - 1 and not set(fold.train) & set(fold.test)
        (case,) = task.test_cases(fold).values()
        assert case.image_hu.shape == case.labels.shape and case.labels.any()
        image = sitk.ReadImage(str(task.dataset / "imagesTr" / f"{fold.test[0]}_0000.nii.gz"))
        places[fold.test[0]] = whole.TransformPhysicalPointToIndex(image.GetOrigin())[2], len(case.labels)
    starts = sorted(places.values())
    gaps = [b - (a + n) for (a, n), (b, _) in itertools.pairwise(starts)]
    assert all(gap * whole.GetSpacing()[2] == tasks.GAP_MM for gap in gaps)
