"""`cads_demo` as a user meets it: the whole job, without a network, resuming after a stop; folders of others."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from closed_network import alone, attempts, closed_environment

from nnunetv2_cads.demo.cli import compared
from nnunetv2_cads.demo.folder import VERSION, DemoFolder
from nnunetv2_cads.demo.steps import PLANS, QUICK, command_steps
from nnunetv2_cads.demo.torsos.torso import LABELS
from nnunetv2_cads.experiment_planning.planner import PLANS_NAME
from pretraining.system.subcommand import find_command

TRAININGS = [f"{step}{start}" for start in ("_scratch", "") for step in ("train", "predict", "evaluate")]
STEPS = ("data", "preprocess", "pretrain", "plan", *TRAININGS)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}


def demo(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [find_command("cads_demo"), *map(str, arguments)], env=environment(), encoding="utf-8", capture_output=True
    )


@pytest.fixture(scope="module")
def stopped_and_finished(tmp_path_factory) -> tuple[Path, int, subprocess.CompletedProcess]:
    """A quick demo that SIGTERM stops as it pre-trains, started again without a network: folder and both ends."""
    folder = tmp_path_factory.mktemp("demo") / "here"
    log = folder / "logs" / "pretrain.log"
    process = subprocess.Popen(
        [find_command("cads_demo"), "--folder", folder, "--quick", "--seed", "1"],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not log.exists():
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    first = process.wait()
    closed = closed_environment(folder.parent / "closed")
    command = [*alone(), find_command("cads_demo"), "--folder", folder, "--quick", "--seed", "1"]
    second = subprocess.run(command, env=environment() | closed, encoding="utf-8", capture_output=True)
    return folder, first, second


def test_the_whole_job_uses_no_network(stopped_and_finished):
    assert attempts(stopped_and_finished[0].parent / "closed") == ""


def test_a_stopped_demo_resumes_and_ends_with_its_mean_dice(stopped_and_finished):
    folder, first, second = stopped_and_finished
    assert first == 128 + signal.SIGTERM
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("done before") == 2
    scratch, mean = (
        json.loads((folder / f"predictions{start}" / "summary.json").read_text())["foreground_mean"]["Dice"]
        for start in ("_scratch", "")
    )
    *_, before, last = second.stdout.rstrip("\n").splitlines()
    assert before.startswith(f"mean Dice from random weights: {scratch:.2f}; the encoder ")
    assert last == f"mean Dice: {mean:.2f}"
    for start, dice in (("_scratch", scratch), ("", mean)):
        assert json.loads((folder / f"dice{start}.json").read_text())["mean_dice"] == pytest.approx(dice)
    record = json.loads((folder / "cads_demo.json").read_text())
    assert tuple(record["seconds"]) == STEPS


def test_the_demo_shows_the_commands_for_own_data(stopped_and_finished):
    output = stopped_and_finished[2].stdout
    for command in ("cads_preprocess ", "cads_pretrain ", "cads_plan_and_preprocess -d 1 -c 3d_fullres"):
        assert command in output
    for command in (
        "nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainerCADS_scratch_demo",
        "nnUNetv2_train 1 3d_fullres 0 -tr nnUNetTrainerCADS_demo",
        "nnUNetv2_predict -i ",
        "nnUNetv2_evaluate_folder ",
    ):
        assert command in output
    assert output.count("export nnUNet_cads_encoder=") == 1


def test_the_demo_leaves_segmentations_scores_and_pictures(stopped_and_finished):
    folder = stopped_and_finished[0]
    for picture in (folder / "overlay.png", folder / "run" / "progress.png", *(folder / "store").glob("*.png")):
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(picture))).std() > 10, picture
    assert (folder / "run" / "cads_encoder.pth").is_file()
    truths = sorted((folder / "nnUNet_raw" / "Dataset001_Torso" / "labelsTs").iterdir())
    scores = json.loads((folder / "dice.json").read_text())
    assert sorted(scores["cases"]) == [path.name.removesuffix(".nii.gz") for path in truths]
    for path in truths:
        case = path.name.removesuffix(".nii.gz")
        truth, prediction = (sitk.ReadImage(str(file)) for file in (path, folder / "predictions" / path.name))
        measure = sitk.LabelOverlapMeasuresImageFilter()
        measure.Execute(truth, prediction)
        for organ, label in LABELS.items():
            if label and measure.GetUnionOverlap(label) == measure.GetUnionOverlap(
                label
            ):  # not NaN: one of them has it
                assert scores["cases"][case][organ] == pytest.approx(measure.GetDiceCoefficient(label))


def test_one_training_starts_from_the_pretrained_encoder_and_sees_what_that_has_seen(stopped_and_finished):
    folder = stopped_and_finished[0]
    encoder = folder / "run" / "cads_encoder.pth"
    log, of_scratch = ((folder / "logs" / f"train{start}.log").read_text() for start in ("", "_scratch"))
    assert str(encoder.resolve()) in log and str(encoder.resolve()) not in of_scratch
    plans = json.loads((folder / "nnUNet_preprocessed" / "Dataset001_Torso" / "nnUNetCADSPlans.json").read_text())
    record = torch.load(encoder, weights_only=True)["cads"]
    assert plans["cads"]["pretraining"]["clip_hu"] == record["clip_hu"] == [-256, 358]


def test_a_finished_demo_prints_its_result_again(stopped_and_finished):
    folder, _, second = stopped_and_finished
    again = demo("--folder", folder, "--quick", "--seed", 1)
    assert again.returncode == 0
    assert again.stdout.count("done before") == len(STEPS)
    assert again.stdout.splitlines()[-1] == second.stdout.splitlines()[-1]


def test_a_training_that_was_begun_is_resumed(stopped_and_finished, tmp_path):
    def resumed(root):
        steps = command_steps(DemoFolder(root), QUICK, "cpu")
        return {step.name for step in steps if "--c" in step.command}

    assert resumed(tmp_path) == set()
    assert resumed(stopped_and_finished[0]) == {"pretrain", "train_scratch", "train"}
    assert PLANS == PLANS_NAME


@pytest.mark.parametrize(
    ("scratch", "ours", "line"),
    [
        (0.514, 0.733, "mean Dice from random weights: 0.51; the encoder adds 22 points"),
        (0.733, 0.701, "mean Dice from random weights: 0.73; the encoder loses 3 points"),
        (0.733, 0.731, "mean Dice from random weights: 0.73; the encoder adds 0 points"),
    ],
)
def test_the_gain_is_in_words(scratch, ours, line):
    assert compared(scratch, ours) == line


def test_another_seed_is_refused_in_the_folder_of_a_demo(stopped_and_finished):
    folder = stopped_and_finished[0]
    done = demo("--folder", folder, "--quick", "--seed", 2)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {folder}: holds a demo with seed 1")
    assert (folder / "overlay.png").is_file()


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, flags):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = demo("--folder", tmp_path, "--quick", *flags)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: exists and was not made by cads_demo; choose another with --folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = demo("--folder", file)
    assert done.returncode == 2
    assert done.stderr == f"error: {file}: is a file; choose another folder with --folder\n"


def test_a_failing_command_ends_the_demo_with_its_own_words(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    settings = {"seed": 1, "quick": True}
    (folder / "cads_demo.json").write_text(
        json.dumps({"version": VERSION, "settings": settings, "seconds": {"data": 1.0}})
    )
    done = demo("--folder", folder, "--quick", "--seed", 1)
    assert done.returncode == 1
    assert "cads_preprocess ended with code 2; its whole output is in " in done.stderr
    assert str(folder / "archive") in done.stderr
