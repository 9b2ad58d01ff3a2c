"""The few-labels benchmark: whom its split keeps apart, its grid, and a pre-training that goes on exactly."""

import dataclasses
import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from few_labels.data import StudyFolder
from few_labels.head_and_neck import finetuning, restoration
from few_labels.head_and_neck.cases import LARGEST_RIM, make_split
from few_labels.head_and_neck.data import make_task, read_resampled, read_resampled_labels
from few_labels.head_and_neck.finetuning import Benchmark, schedule_of
from few_labels.head_and_neck.restoration import (
    RestorationConfig,
    draw_blocks,
    draw_crops,
    learning_rate,
    pretrain,
    restoration_loss,
)
from few_labels.head_and_neck.tables import curve_table, dice_table, read_records
from few_labels.head_and_neck.trainings import EPOCH, QUESTIONS, Training
from few_labels.tasks import Task

TINY = RestorationConfig(crops=12, batch_size=2, crop_size=(16, 32, 32), warmup_steps=2, snapshots=(4,))


def patients(usable=60, others=20):
    """Scans as ``index.json`` describes them; the others show a label each, or lack one."""
    clean = [{"name": f"pt_{i}", "rim_outside_mask": dict.fromkeys(LARGEST_RIM, 0.0)} for i in range(usable)]
    leaking = [
        {"name": f"pt_{usable + i}", "rim_outside_mask": dict.fromkeys(LARGEST_RIM, 0.0) | {"SpinalCord": 0.02}}
        for i in range(others - 1)
    ]
    missing = {"name": f"pt_{usable + others}", "rim_outside_mask": dict.fromkeys(list(LARGEST_RIM)[1:], 0.0)}
    return [*clean, *leaking, missing]


def test_test_scans_are_in_nothing_that_is_learnt_from():
    split = make_split(patients())
    assert (len(split.test), len(split.validation), len(split.pool)) == (30, 16, 14)
    assert len({*split.test, *split.validation, *split.pool}) == 60
    assert set(split.archive) == {p["name"] for p in patients()} - set(split.test)
    assert all(int(name[3:]) < 60 for name in (*split.test, *split.validation, *split.pool))


def test_the_split_does_not_depend_on_the_order_of_the_index():
    assert make_split(patients()[::-1]) == make_split(patients())


def test_budgets_are_nested_and_differ_between_seeds():
    split = make_split(patients())
    assert [split.labelled(n, 0) for n in (1, 2, 4)] == [split.labelled(8, 0)[:n] for n in (1, 2, 4)]
    assert split.labelled(8, 0) != split.labelled(8, 1)
    with pytest.raises(ValueError, match="budget must be 1 to 14, got 16"):
        split.labelled(16, 0)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SRA"])
def test_image_and_labels_keep_their_place_on_the_common_grid(tmp_path, orientation):
    hu, labels = np.zeros((20, 30, 40), np.int16), np.zeros((20, 30, 40), np.uint8)
    box = (slice(4, 12), slice(6, 18), slice(20, 32))
    hu[box], labels[box] = 500, 7
    for name, array in (("ct", hu), ("seg", labels)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((3.0, 3.0, 2.0))
        sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / f"{name}.nii.gz"))
    resampled, found = read_resampled(tmp_path / "ct.nii.gz"), read_resampled_labels(tmp_path / "seg.nii.gz", [1, 7])
    assert resampled.shape == found.shape == (10, 22, 30)
    assert set(np.unique(found)) == {0, 2}
    assert np.array_equal(found == 2, resampled > 250)
    centre = (np.argwhere(found).mean(0) - (np.array(found.shape) - 1) / 2) * 4
    truth = (np.argwhere(labels).mean(0) - (np.array(labels.shape) - 1) / 2) * (2, 3, 3)
    assert np.abs(centre - truth).max() < 2


def test_milestones_fall_on_the_iterations_that_a_training_names():
    for training in (t for trainings in QUESTIONS.values() for t in trainings):
        schedule = schedule_of(training)
        scored = [round(share * schedule.epochs) * EPOCH for share in schedule.milestones]
        assert scored == list(training.milestones)
        assert schedule.epochs * schedule.iterations == training.iterations
    assert not any(t.tested for name in ("curve", "rates") for t in QUESTIONS[name])


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Fine-tunes by a stand-in that scores what it is given; returns which cases those were, and the record."""
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", "")
    (tmp_path / "index.json").write_text(json.dumps({"patients": patients()}), encoding="utf-8")
    (tmp_path / "dataset.json").write_text("{}", encoding="utf-8")
    benchmark = Benchmark(StudyFolder(tmp_path / "work"), tmp_path, tmp_path / "records")
    task = make_task(tmp_path, benchmark.split, (1, 2), 2)
    given = []

    def stand_in(trainer, plans, dataset_json, fold, seed, schedule, held_out, encoder):
        given.append((trainer, fold, list(held_out), encoder))
        rows = [
            {"case": case, "organ": o, "dice": 0.5 + seed / 4, "nsd": 1.0} for case in held_out for o in LARGEST_RIM
        ]
        points = [{"iteration": 25, "dice": 0.5}]
        return {"scores": rows, "curve": [], "milestones": points, "cost": {"seconds_per_iteration": 1}}

    monkeypatch.setattr(finetuning, "finetune", stand_in)
    monkeypatch.setattr(finetuning, "read_plans", lambda *_: {})
    monkeypatch.setattr(Task, "test_cases", lambda _, fold: dict.fromkeys(fold.test))

    def run(training):
        benchmark.finetune(task, training)
        record = json.loads(benchmark.record_path(training).read_text(encoding="utf-8"))
        return benchmark, given[-1], record

    return run


def test_what_tunes_something_never_sees_the_test_cases(recorded):
    benchmark, (trainer, fold, cases, encoder), record = recorded(Training("rates", 2, 1, 25, ()))
    assert cases == list(benchmark.split.validation) and record["test"] == []
    assert (trainer, fold, encoder) == ("nnUNetTrainerCADS_scratch", 3, None)
    assert record["cases"] == list(benchmark.split.labelled(2, 1))


def test_validation_and_test_are_recorded_apart_and_tabled(recorded):
    for seed in (0, 1):
        training = Training("baselines", 1, seed, 25, (), tested=True, start="restoration@2000")
        benchmark, (trainer, _, _, encoder), record = recorded(training)
        assert {row["case"] for row in record["validation"]} == set(benchmark.split.validation)
        assert {row["case"] for row in record["test"]} == set(benchmark.split.test)
        assert trainer == "nnUNetTrainerCADS"
        assert encoder == benchmark.folder.runs / "restoration" / "encoder_002000.pth"
    runs = read_records(benchmark.records)
    assert "| baselines | restoration@2000 | 25 | 1 | 0: 0.500, 1: 0.750 | 0.625 |" in dice_table(runs)
    assert "| 0.001, 0.002 | 25: 0.500 | 0.750 |" in curve_table(runs)


@pytest.fixture(scope="module")
def volumes():
    """Two scans, one of them narrower than a crop."""
    rng = np.random.default_rng(0)
    return [rng.integers(-1000, 1000, shape, dtype=np.int16) for shape in ((20, 40, 40), (20, 30, 40))]


def test_a_narrow_scan_is_continued_with_air(volumes):
    crops = draw_crops(volumes[1:], TINY, np.random.default_rng(0))
    assert crops.shape == (2, 1, 16, 32, 32)
    assert (crops[:, :, :, 30:] == -1024).all() and (crops[:, :, :, :30] > -1024).all()


def test_the_loss_sees_blanked_voxels_within_the_window_alone(volumes):
    hu, blanked = draw_crops(volumes, TINY, np.random.default_rng(0)), draw_blocks(TINY)
    assert blanked.float().mean().item() == pytest.approx(0.6, abs=0.01)
    answer = torch.where(blanked, hu.clamp(-256, 358.4) / 102.4, 99.0)
    assert restoration_loss(answer, hu, blanked, TINY) == 0
    assert restoration_loss(answer + 1, hu, blanked, TINY) == pytest.approx(0.5)


def test_the_rate_rises_stays_and_falls():
    config = RestorationConfig(crops=4_000)
    rates = [learning_rate(config, step) for step in range(config.steps)]
    assert rates[0] == pytest.approx(1e-5) and rates[99] == rates[799] == 1e-3 > rates[801] > rates[999] > 0


def test_a_pretraining_that_was_stopped_goes_on_exactly(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(restoration, "LOG_STEPS", 1)
    assert pretrain(volumes, tmp_path / "whole", TINY, math.inf)
    answers = iter([False] * 3 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(restoration, "is_over", lambda deadline: next(answers))
        assert not pretrain(volumes, tmp_path / "parts", TINY, math.inf)
    with (tmp_path / "parts" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "loss": 0}\n{"st')
    assert pretrain(volumes, tmp_path / "parts", TINY, math.inf)
    whole, parts = (torch.load(tmp_path / n / "checkpoint_latest.pth", weights_only=True) for n in ("whole", "parts"))
    assert all(torch.equal(value, parts["network"][key]) for key, value in whole["network"].items())
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == TINY.steps
    assert (tmp_path / "parts" / "encoder_000004.pth").exists()


def test_a_snapshot_can_be_ended_at_another_length_but_not_with_other_settings(volumes, tmp_path):
    assert pretrain(volumes, tmp_path / "long", TINY, math.inf)
    snapshot = tmp_path / "long" / "snapshot_000004.pth"
    shorter = dataclasses.replace(TINY, crops=8)
    assert pretrain(volumes, tmp_path / "short", shorter, math.inf, go_on_from=snapshot)
    assert torch.load(tmp_path / "short" / "checkpoint_latest.pth", weights_only=True)["step"] == shorter.steps
    with pytest.raises(ValueError, match=r"ratio = 0\.6, this one 0\.5"):
        pretrain(volumes, tmp_path / "other", dataclasses.replace(TINY, ratio=0.5), math.inf, go_on_from=snapshot)
