"""The few-labels benchmark: whom its split keeps apart, its grid, its pre-training and its tables."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
import SimpleITK as sitk
from few_labels.data import StudyFolder
from few_labels.finetune import CLASSES, load_decoder
from few_labels.head_and_neck import benchmark as benchmark_module
from few_labels.head_and_neck import pretrainings
from few_labels.head_and_neck.benchmark import Benchmark, schedule_of
from few_labels.head_and_neck.cases import LARGEST_RIM, make_split
from few_labels.head_and_neck.data import make_task, read_resampled, read_resampled_labels, write_compared_dataset
from few_labels.head_and_neck.gains import gains, variant_gains
from few_labels.head_and_neck.pretrainings import (
    CADS,
    PRETRAININGS,
    RESTORATION,
    SAMPLES_PER_EPOCH,
    Pretraining,
    config_of,
)
from few_labels.head_and_neck.tables import (
    curve_table,
    dice_table,
    draw_head_and_neck,
    gain_table,
    lines_of,
    read_records,
    variant_table,
)
from few_labels.head_and_neck.trainings import EPOCH, NETWORKS, RANDOM, TUNING, VARIANTS, Training, comparison
from few_labels.pretrain import flops_per_sample
from few_labels.summary import Gain, summary, write_summary
from few_labels.tasks import Task
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.network_architecture import PVTUNet


def patients(usable=60, others=20):
    """Scans as ``index.json`` describes them; the others show a label each, or lack one."""
    clean = [{"name": f"pt_{i}", "rim_outside_mask": dict.fromkeys(LARGEST_RIM, 0.0)} for i in range(usable)]
    leaking = [
        {"name": f"pt_{usable + i}", "rim_outside_mask": dict.fromkeys(LARGEST_RIM, 0.0) | {"SpinalCord": 0.02}}
        for i in range(others - 1)
    ]
    missing = {"name": f"pt_{usable + others}", "rim_outside_mask": dict.fromkeys(list(LARGEST_RIM)[1:], 0.0)}
    return [*clean, *leaking, missing]


def test_the_compared_data_set_names_the_files_of_pool_and_test(tmp_path):
    split, task = make_split(patients()), tmp_path / "Dataset821_Task"
    task.mkdir()
    compared = write_compared_dataset(task, split)
    files = json.loads((compared / "dataset.json").read_text(encoding="utf-8"))["dataset"]
    assert files.keys() == {*split.pool, *split.test} and not files.keys() & set(split.validation)
    for names, part in ((split.pool, "Tr"), (split.test, "Ts")):
        for name in names:
            (image,) = files[name]["images"]
            assert (compared / image).resolve() == task / f"images{part}" / f"{name}_0000.nii.gz"
            assert (compared / files[name]["label"]).resolve() == task / f"labels{part}" / f"{name}.nii.gz"


def write_index(folder):
    """Of `patients`; returns the folder, which serves as that of the scans."""
    (folder / "index.json").write_text(json.dumps({"patients": patients()}), encoding="utf-8")
    return folder


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
    compared = list(comparison([RANDOM, "restoration"], (1, 2), (0, 1), 600))
    assert len({t.name for t in compared}) == 8 and all(t.tested for t in compared)
    for training in (*TUNING, *compared):
        schedule = schedule_of(training)
        scored = [round(share * schedule.epochs) * EPOCH for share in schedule.milestones]
        assert scored == list(training.milestones)
        assert schedule.epochs * schedule.iterations == training.iterations
    assert not any(t.tested for t in TUNING)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Fine-tunes by a stand-in that scores what it is given; returns which cases those were, and the record."""
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", "")
    (tmp_path / "dataset.json").write_text("{}", encoding="utf-8")
    benchmark = Benchmark(StudyFolder(tmp_path / "work"), write_index(tmp_path))
    task = make_task(tmp_path, benchmark.split, (1, 2), 2)
    given = []

    def stand_in(trainer, plans, dataset_json, fold, seed, schedule, held_out, encoder, decoder, settings):
        given.append((trainer, plans, fold, list(held_out), encoder, settings))
        rows = [
            {"case": case, "organ": o, "dice": 0.5 + seed / 4, "nsd": 1.0} for case in held_out for o in LARGEST_RIM
        ]
        points = [{"iteration": 25, "dice": 0.5}]
        return {"scores": rows, "curve": [], "milestones": points, "cost": {"seconds_per_iteration": 1}}

    monkeypatch.setattr(benchmark_module, "finetune", stand_in)
    monkeypatch.setattr(benchmark_module, "read_plans", lambda _, name: name)
    monkeypatch.setattr(Task, "test_cases", lambda _, fold: dict.fromkeys(fold.test))

    def run(training):
        path = tmp_path / "records" / f"{training.name}.json"
        path.parent.mkdir(exist_ok=True)
        benchmark.finetune(task, training, path)
        return benchmark, given[-1], json.loads(path.read_text(encoding="utf-8"))

    return run


def test_what_tunes_something_never_sees_the_test_cases(recorded):
    benchmark, (trainer, _, fold, cases, encoder, settings), record = recorded(Training("rates", RANDOM, 2, 1, 25))
    assert cases == list(benchmark.split.validation) and record["test"] == []
    assert (trainer, fold, encoder, settings) == ("nnUNetTrainerCADS_scratch", 3, None, {})
    assert record["cases"] == list(benchmark.split.labelled(2, 1))


@pytest.mark.parametrize("start", [name for name in NETWORKS if name != RANDOM])
def test_networks_of_nnunet_are_trained_by_its_own_trainers_and_plans(recorded, start):
    _, (trainer, plans, _, _, encoder, _), record = recorded(Training("test", start, 1, 0, 25))
    assert (issubclass(CLASSES[trainer], nnUNetTrainerAdam), encoder) == (start.endswith("_adamw"), None)
    assert plans == {"nnunet": "nnUNetPlans", "resenc": "nnUNetResEncUNetMPlans"}[start.split("_")[0]]
    assert record["start"] == start


def test_variants_are_settings_of_the_trainer_and_stand_apart(recorded, tmp_path):
    for variant in VARIANTS:
        training = Training("test", "x", 1, 0, 25, tested=True, variant=variant)
        _, (*_, settings), record = recorded(training)
        assert settings == VARIANTS[variant] and record["variant"] == variant and training.name.endswith(variant)
    recorded(Training("test", RANDOM, 1, 0, 25, tested=True))
    assert [found.start for found in gains(read_records(tmp_path / "records"))] == ["x"]  # of the variant "" alone


def test_validation_and_test_are_recorded_apart_and_tabled(recorded, tmp_path):
    for seed in (0, 1):
        training = Training("test", "restoration", 1, seed, 25, tested=True)
        benchmark, (trainer, _, _, _, encoder, _), record = recorded(training)
        assert {row["case"] for row in record["validation"]} == set(benchmark.split.validation)
        assert {row["case"] for row in record["test"]} == set(benchmark.split.test)
        assert trainer == "nnUNetTrainerCADS"
        assert encoder == benchmark.folder.runs / "restoration" / "cads_encoder.pth"
    runs = read_records(tmp_path / "records")
    assert "| test | restoration | nnU-Net's | 25 | 1 | 0: 0.500, 1: 0.750 | 0.625 |" in dice_table(runs)
    assert "| 0.001, 0.002 | 25: 0.500 | 0.750 |" in curve_table(runs)


def test_the_figure_has_a_line_for_each_start_of_one_setting(recorded, tmp_path):
    one, both = tmp_path / "one.png", tmp_path / "both.png"
    for start, labels, seed in ((RANDOM, 1, 0), (RANDOM, 2, 0), ("restoration", 2, 1)):
        recorded(Training("test", start, labels, seed, 25, tested=True))
    recorded(Training("test", "points", 2, 0, 50, tested=True))
    runs = read_records(tmp_path / "records")
    lines = lines_of(runs)
    assert list(lines) == [RANDOM, "restoration"]
    assert lines[RANDOM].by_budget == [(1, 0.5, 0.0), (2, 0.5, 0.0)]
    assert lines["restoration"].by_budget == [(2, 0.75, 0.0)] and lines["restoration"].by_iteration == [(25, 0.5)]
    draw_head_and_neck(one, [run for run in runs if run["start"] == RANDOM])
    draw_head_and_neck(both, runs)
    pictures = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (one, both)]
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()


def test_gains_are_paired_by_seed_and_their_interval_widens_with_the_spread_of_the_seeds():
    cases = [f"pt_{i}" for i in range(30)]
    alike = {"iterations": 25, "encoder_lr": 1, "decoder_lr": 1, "labels": 2, "window": None}

    def run(start, seed, dice):
        rows = [{"case": case, "organ": "Brainstem", "dice": dice + i / 100} for i, case in enumerate(cases)]
        return alike | {"start": start, "seed": seed, "test": rows}

    def start(*added):
        return [run("x", seed, 0.4 + gain) for seed, gain in enumerate(added)]

    random, steady, unsteady = [run(RANDOM, seed, 0.4) for seed in range(3)], start(*(0.04,) * 3), start(0, 0, 0.12)
    (found,) = gains([*random, *steady, run("x", 3, 0.9)])
    assert (found.gain, found.low, found.high) == pytest.approx((4, 4, 4))
    assert (found.seeds, found.seeds_ahead) == (3, 3) and found.mean == pytest.approx(58.5)
    assert not gains([*random, *(run | {"window": (-256.0, 358.0)} for run in steady)])  # of another window
    (found,) = gains([*random, *unsteady])
    assert found.gain == pytest.approx(4) and (found.low, found.high) == pytest.approx((-13.2, 21.2), abs=0.1)
    assert found.seeds_ahead == 1
    assert gain_table([found]).endswith("| x | nnU-Net's | 25 | 2 | 58.5 | +4.0 | -13.2 to +21.2 | 1 of 3 |")
    smaller = dataclasses.replace(found, start="y", gain=3.9)
    rarely = dataclasses.replace(found, start="z", gain=9.0)
    more = [dataclasses.replace(gain, labels=labels) for gain in (smaller, found) for labels in (4, 8)]
    rows = summary([smaller, found, rarely, *more])
    named = [(row["start"], row["pretraining"], row["gain"]) for row in rows[:3]]
    assert named == [("y", "y", 3.9), ("best", "x", 4.0), ("z", "z", 9.0)]


def test_a_summary_keeps_the_rows_of_other_tasks(tmp_path):
    gain = Gain("torsos", "x", None, 100, 1, 50.0, 4.0, 1.0, 7.0, 3, 3)
    file = tmp_path / "summary.json"
    for task, added in (("torsos", 4.0), ("head_and_neck", 5.0), ("torsos", 6.0)):
        write_summary(file, task, [dataclasses.replace(gain, task=task, gain=added)])
    assert [(row["task"], row["gain"]) for row in json.loads(file.read_text())] == [("head_and_neck", 5), ("torsos", 6)]


def test_variants_are_paired_with_the_own_way_of_the_same_start_on_validation_cases():
    alike = {"window": None, "iterations": 25, "labels": 2, "encoder_lr": 1, "decoder_lr": 1, "test": []}
    row = {"case": "a", "organ": "Mandible"}
    runs = [
        {**alike, "start": start, "variant": variant, "seed": seed, "validation": [row | {"dice": dice}]}
        for start, variant, seed, dice in (
            ("x", "", 0, 0.5), ("x", "", 1, 0.6), ("x", "decay", 0, 0.52), ("x", "decay", 1, 0.62),
            ("y", "", 0, 0.1), ("y", "decay", 1, 0.9),
        )
    ]  # fmt: skip
    ((start, gain),) = variant_gains(runs)
    assert (start, gain.arm, gain.seeds, gain.seeds_ahead) == ("x", "decay", 2, 2)
    assert (gain.gain, gain.mean) == pytest.approx((2, 57))
    assert variant_table([(start, gain)]).endswith("| x | decay | 2 | 57.0 | +2.0 | +2.0 to +2.0 | 2 of 2 |")


def test_pretrainings_have_equal_flops():
    worth = 100_000 * flops_per_sample("cads", config_of(RESTORATION))
    for name in ("cads", "both", "points", "moco_v3", "dira"):
        pretraining = dataclasses.replace(PRETRAININGS[name], crops=100_000)
        config = config_of(pretraining.with_length())
        samples = config.optim.epochs * SAMPLES_PER_EPOCH
        assert samples * flops_per_sample(pretraining.method, config) == pytest.approx(worth, rel=0.02)


def test_a_pretraining_is_the_commands_and_resumes(tmp_path, monkeypatch):
    """Two made-up scans in place of the archive, and a run of four crops."""
    benchmark = Benchmark(StudyFolder(tmp_path / "work"), write_index(tmp_path))
    body = np.full((40, 50, 50), -1000, np.int16)
    body[:, 10:40, 10:40] = np.random.default_rng(0).integers(0, 100, (40, 30, 30))
    for i, name in enumerate(benchmark.split.archive[:2]):
        image = sitk.GetImageFromArray(body + np.int16(i))
        image.SetSpacing((4.0, 4.0, 4.0))
        sitk.WriteImage(image, str(tmp_path / f"{name}_ct.nii.gz"))
    monkeypatch.setattr(benchmark, "split", dataclasses.replace(benchmark.split, archive=benchmark.split.archive[:2]))
    short = {"epoch_samples": 2, "batch_size": 2, "amp": "none"}
    tiny = RESTORATION | short
    monkeypatch.setattr(pretrainings, "SAMPLES_PER_EPOCH", 2)
    monkeypatch.setitem(PRETRAININGS, "restoration", Pretraining(tiny, crops=4))
    views = CADS | short | {"crop_size": (16, 32, 32), "uniform_sampling": False}
    monkeypatch.setitem(PRETRAININGS, "peer", Pretraining(views, crops=1, method="moco_v3"))
    assert benchmark.pretrain("peer", math.inf) == 0
    assert read_encoder_file(benchmark.files_of("peer")[0]).record.notes["crop_size"] == [16, 32, 32]
    assert benchmark.pretrain("restoration", time.monotonic()) == 0
    assert not benchmark.files_of("restoration")[0].exists()
    assert benchmark.pretrain("restoration", math.inf) == 0
    record = read_encoder_file(benchmark.files_of("restoration")[0]).record
    assert record.spacing_mm == (4.0, 4.0, 4.0) and record.notes["steps"] == 2
    decoder = PVTUNet(1, 3).decoder
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    load_decoder(decoder, benchmark.files_of("restoration+decoder")[1])
    changed = {
        tuple(name.split(".")[:2]) for name, value in decoder.state_dict().items() if not value.equal(before[name])
    }
    assert changed == {(kind, str(step)) for kind in ("blocks", "upsamplings") for step in range(4)}
