"""The whole study, tiny: real pre-training, nnU-Net's own trainers, results, and resuming."""

import dataclasses
import itertools
import shutil

import blosc2
import evidence
import pytest
import SimpleITK as sitk
import torch
from few_labels import tasks
from few_labels.arms import SCRATCH
from few_labels.data import StudyFolder
from few_labels.experiment import QUICK, RECIPE, Experiment
from few_labels.plans import CONFIGURATION, PLANS, plans_in_window, read_plans
from few_labels.results import read_results

from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.network_architecture import PVTUNet

ARMS = ("nnUNetTrainer", "CADS_scratch_in_window", "CADS", "MAE", "oracle")


def keep_environment(patch: pytest.MonkeyPatch) -> None:
    """The study sets nnU-Net's variables to its own folders; they are set back afterwards."""
    for kind in ("raw", "preprocessed", "results"):
        patch.setenv(f"nnUNet_{kind}", "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an experiment that was run for some arms, then for all."""
    folder = tmp_path_factory.mktemp("evidence")
    command = [str(folder), "--quick", "--out", str(folder / "out"), "--arms"]
    with pytest.MonkeyPatch.context() as patch:
        keep_environment(patch)
        patch.setattr(evidence, "keep_freed_memory", lambda: None)  # for speed alone; it would hold 6 GB here
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
    experiment = Experiment(StudyFolder(finished), QUICK, None, [])
    task = tasks.torso_task(experiment.folder, QUICK.data, (1,), 1)

    def train(arm, seed=0, pretraining=None):
        out = tmp_path / f"{arm}_{seed}.pth"
        encoder = experiment.encoder_path(pretraining) if pretraining else None
        experiment.train(task, 0, seed, arm, out.with_suffix(".log"), encoder=encoder, encoder_out=out)
        return read_encoder_file(out).state

    return train


def test_results_have_every_arm_case_and_organ(finished):
    results = read_results(finished / "out" / "results.json")
    assert {run["arm"] for run in results["runs"]} == set(ARMS) and len(results["runs"]) == len(ARMS)
    for run in results["runs"]:
        assert len(run["scores"]) == 8  # one held-out case, eight organs
        assert all(row["dice"] is None or 0 <= row["dice"] <= 1 for row in run["scores"])
    assert set(results["pretraining"]) == {"CADS", "MAE"}
    assert all(cost["gflop_per_sample"] > 0 for cost in results["pretraining"].values())
    assert set(results["probes"]) == {"random", "CADS", "MAE", "oracle"}
    assert all(1 / 9 < found["linear"] <= 1 and len(found["ranks"]) == 4 for found in results["probes"].values())
    text = (finished / "out" / "table.md").read_text(encoding="utf-8")
    assert all(f"| {arm} | 0." in text for arm in ARMS) and "| CADS - nnUNetTrainer | " in text
    assert (finished / "out" / "evidence.png").stat().st_size > 10_000


@pytest.mark.parametrize("arm", ["CADS", "MAE", "oracle"])
def test_a_pretrained_arm_began_with_its_own_encoder(finished, arm):
    checkpoint = read_encoder_file(finished / "runs" / arm / "cads_encoder.pth")
    assert checkpoint.sha256 in (finished / "finetuned" / f"torsos__{arm}__1__0.log").read_text(encoding="utf-8")


def test_a_frozen_encoder_stays_and_a_slow_one_moves_less(finished, trained):
    begun_with = read_encoder_file(finished / "runs" / "CADS" / "cads_encoder.pth").state
    moved = {}
    for arm in ("CADS_frozen", "CADS_slow", "CADS"):
        after = trained(arm, pretraining="CADS")
        moved[arm] = sum((value - begun_with[key]).abs().sum().item() for key, value in after.items())
    assert moved["CADS_frozen"] == 0 < moved["CADS_slow"] < 0.5 * moved["CADS"]


def test_a_decoder_that_is_handed_on_leaves_the_encoder_to_its_file(finished, tmp_path, monkeypatch):
    keep_environment(monkeypatch)
    experiment = Experiment(StudyFolder(finished), QUICK, None, [])
    task, log = tasks.torso_task(experiment.folder, QUICK.data, (1,), 1), tmp_path / "log"
    decoder = PVTUNet(1, 9).decoder.state_dict()
    torch.save({"method": {f"decoder.{key}": value for key, value in decoder.items()}}, tmp_path / "peer.pth")
    encoder = experiment.encoder_path("CADS")
    experiment.train(task, 0, 0, "CADS", log, encoder=encoder, decoder=tmp_path / "peer.pth")
    assert f"Pre-trained encoder: {encoder.resolve()}" in log.read_text(encoding="utf-8")


def test_the_oracle_was_taught_with_a_seed_that_no_fine_tuning_has(finished, trained):
    oracle = read_encoder_file(finished / "runs" / "oracle" / "cads_encoder.pth").state
    same = {}
    for seed in (0, QUICK.seeds):
        after = trained(SCRATCH, seed)
        same[seed] = all(torch.equal(oracle[key], value) for key, value in after.items())
    assert same == {0: False, 1: True}


def test_results_resume_in_another_folder_and_are_not_replaced_by_others(finished, tmp_path, monkeypatch):
    keep_environment(monkeypatch)
    out = shutil.copytree(finished / "out", tmp_path / "out")
    before = {name: (out / name).read_bytes() for name in ("results.json", "table.md", "evidence.png")}
    command = [str(tmp_path / "new"), "--quick", "--tables", "--out", str(out)]
    assert evidence.main(command) == 0
    assert before == {name: (out / name).read_bytes() for name in before}
    monkeypatch.setattr(evidence, "QUICK", dataclasses.replace(QUICK, recipe={**RECIPE, "lr": 1.0}))
    assert evidence.main([str(tmp_path / "other_recipe"), *command[1:]]) == 0
    kept = {run["arm"] for run in read_results(out / "results.json")["runs"]}
    assert kept == {"nnUNetTrainer", "CADS_scratch_in_window"}
    monkeypatch.setattr(evidence, "QUICK", dataclasses.replace(QUICK, schedule={"epochs": 2}))
    with pytest.raises(SystemExit, match="holds results of other data"):
        evidence.main([str(tmp_path / "other_size"), *command[1:]])


def test_all_plans_share_what_is_preprocessed_in_a_window(finished, monkeypatch):
    folder = StudyFolder(finished)
    for variable, path in folder.nnunet_variables().items():
        monkeypatch.setenv(variable, path)
    preprocessed = folder.nnunet("preprocessed")
    dataset = tasks.torso_task(folder, QUICK.data, (1,), 1).dataset
    data = set()
    for base in reversed(PLANS):
        plans, of_base = (
            read_plans(preprocessed / dataset.name, name)["configurations"][CONFIGURATION]
            for name in (plans_in_window(dataset, preprocessed, (-100.0, 100.0), base), base)
        )
        assert plans | {"data_identifier": ""} == of_base | {"data_identifier": ""}
        data.add(plans["data_identifier"])
    (name,) = data
    images = [blosc2.open(str(path))[:] for path in (preprocessed / dataset.name / name).glob("[!_]*[!g].b2nd")]
    assert images and all(image.min() == -1 and image.max() == 1 for image in images)


def test_no_time_left_begins_no_training(finished):
    experiment = Experiment(StudyFolder(finished), QUICK, None, ["ResEncM"])
    assert experiment.run(deadline=0.0) is False
    assert not list((finished / "finetuned").glob("*ResEncM*"))


def test_torso_folds_use_other_cases_for_each_seed_and_never_a_held_out_one(finished):
    task = tasks.torso_task(StudyFolder(finished), QUICK.data, (1,), 2)
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
