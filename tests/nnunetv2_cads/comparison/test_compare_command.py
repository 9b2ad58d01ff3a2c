"""`cads_compare` on a dataset of nnU-Net's: real trainings, an arm that fails, resuming, the report; bad input."""

import csv
import dataclasses
import html.parser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_cads import startup
from nnunetv2_cads.comparison import cli
from nnunetv2_cads.comparison.dataset import open_dataset
from nnunetv2_cads.comparison.nnssl_resenc import check_patch, load_encoder_and_stem, resenc_architecture
from nnunetv2_cads.comparison.scores import organs_of, score_folder
from nnunetv2_cads.encoder_file.read import EncoderFileError
from pretraining.preprocess import main as preprocess
from pretraining.system.errors import UserError

REPOSITORY = Path(startup.__file__).parents[1]
FAILING = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class FailsInTheMiddle(nnUNetTrainer):
    def on_epoch_end(self):
        raise ValueError("the disk of this test is on fire")
"""
LENGTH = ["--epochs", "1", "--iterations", "1", "-device", "cpu", "--no-mirroring"]


def run(command, **options):
    """Run a command to its end, with its output as text."""
    return subprocess.run(command, encoding="utf-8", capture_output=True, timeout=600, **options)


@pytest.fixture(scope="module")
def variables(nnunet_project):
    (nnunet_project.trainer_folder / "failing.py").write_text(FAILING, encoding="utf-8")
    return nnunet_project.environment(nnUNet_extTrainer=str(nnunet_project.trainer_folder), PYTHONPATH=str(REPOSITORY))


@pytest.fixture
def compare(nnunet_project, variables, monkeypatch, capsys, tmp_path):
    """Runs the command in this process; returns its exit code and what it printed."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    discovery = Path(startup.__file__).parent / "training" / "discovery"  # which an interpreter adds when it starts
    monkeypatch.setenv("nnUNet_extTrainer", f"{discovery}{os.pathsep}{nnunet_project.trainer_folder}")

    def call(*arguments, out=tmp_path / "out"):
        dataset = [] if out.exists() else ["-d", "1"]
        code = cli.main([str(out), *dataset, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture(scope="module")
def compared(nnunet_project, variables, tmp_path_factory):
    """A comparison in which one arm fails, and which was then given an encoder."""
    out = tmp_path_factory.mktemp("compared") / "out"
    command = [sys.executable, "-m", "nnunetv2_cads.comparison.cli", str(out)]
    begin = ["-d", "1", *LENGTH, "--labels", "1", "--seeds", "1", "--arms", "FailsInTheMiddle"]
    first = run([*command, *begin], env=variables)
    times = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    second = run([*command, "--encoder", str(nnunet_project.encoder_file), "-device", "cpu"], env=variables)
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    return out, first, second


def test_other_arms_go_on_where_one_fails(compared):
    out, first, second = compared
    assert (first.returncode, second.returncode) == (1, 1)
    assert sorted(path.stem for path in (out / "results").iterdir()) == ["cads__1__0", "scratch__1__0"]
    assert "the disk of this test is on fire" in (out / "failed" / "FailsInTheMiddle__1__0.txt").read_text()
    assert [path.name for path in (out / "trainings").iterdir()] == ["FailsInTheMiddle__1__0"]
    assert "training 1 of 2: scratch, 1 labelled, seed 0" in first.stderr
    assert "scratch, 1 labelled, seed 0" not in second.stderr


def test_the_encoder_was_loaded_and_the_cases_are_those_of_the_split(compared, nnunet_project):
    out, *_ = compared
    results = {path.stem: json.loads(path.read_text()) for path in (out / "results").iterdir()}
    design = json.loads((out / "comparison.json").read_text())
    for result in results.values():
        assert {row["case"] for row in result["scores"]} == set(design["test"])
        assert len(result["cases"]) == 1 and not set(result["cases"]) & set(design["test"])
        assert len(result["curve"]["train_loss"]) == 1 and result["cost"]["parameters"] > 1e6
    assert results["cads__1__0"]["cases"] == results["scratch__1__0"]["cases"]
    assert str(nnunet_project.encoder_file) in (out / "logs" / "cads__1__0.log").read_text()
    assert results["cads__1__0"]["curve"] != results["scratch__1__0"]["curve"]


def test_scores_are_those_of_the_predictions(compared, variables, monkeypatch):
    out, *_ = compared
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    dataset = open_dataset(1, None, "3d_fullres")
    design = json.loads((out / "comparison.json").read_text())
    found = json.loads((out / "results" / "cads__1__0.json").read_text())["scores"]
    assert score_folder(out / "predictions" / "cads__1__0", dataset, design["test"]) == found
    case = design["test"][0]
    truth, predicted = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz")))
        for folder in (dataset.raw / "labelsTr", out / "predictions" / "cads__1__0")
    )
    expected = 2 * ((truth == 1) & (predicted == 1)).sum() / ((truth == 1).sum() + (predicted == 1).sum())
    assert next(row for row in found if row["case"] == case)["dice"] == pytest.approx(expected)


def test_the_report_needs_nothing_else_and_says_what_was_found(compared):
    out, _, second = compared
    page = (out / "report.html").read_text(encoding="utf-8")
    outside = [value for value in re.findall(r'(?:src|href)="([^"]*)"', page) if not value.startswith("data:")]
    assert not outside and "<script" not in page
    assert "Normalised surface Dice (1.5 mm)" in page
    assert page.count("<img") == 4  # budgets, gains, curves, and a picture of the arm that is done
    answer = next(line for line in second.stdout.splitlines() if line.startswith("With 1 labelled case, cads "))
    assert answer in page
    assert "FailsInTheMiddle, 1 labelled, seed 0 failed: the disk of this test is on fire" in page
    assert "1 of 3 trainings are not finished." in page
    parser = html.parser.HTMLParser()
    parser.feed(page)
    results = json.loads((out / "results.json").read_text())
    assert [gain["arm"] for gain in results["gains"]] == ["cads"] and len(results["encoder_sha256"]["cads"]) == 64
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(results["design"]["test"]) * 2


def test_a_report_without_images_shows_no_case(compared, compare):
    out, *_ = compared
    copy = shutil.copytree(out, out.with_name("copy"), symlinks=True)
    for flags in (["--no-images"], []):  # nor does any later one
        code, _ = compare("--report", *flags, out=copy)
        page = (copy / "report.html").read_text(encoding="utf-8")
        assert code == 0 and "image/png" not in page and page.count("image/svg") == 3
        assert not re.findall(r"case_\d", page) and str(out.parent) not in page
        assert "FailsInTheMiddle, 1 labelled, seed 0 failed; see failed/ in OUT" in page and "on fire" not in page


def test_a_stopped_training_resumes(nnunet_project, variables, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nnunetv2_cads.comparison.cli", str(out), "-d", "1", "--arms", "scratch"]
    command += ["--labels", "1", "--seeds", "1", "--epochs", "4", "--iterations", "1"]
    command += ["-device", "cpu", "--no-mirroring"]
    silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=variables, **silent)
    deadline = time.monotonic() + 240
    while not list(out.glob("trainings/*/results/*/*/fold_0/checkpoint_latest.pth")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=90) == 143
    assert not list(out.glob("results/*"))
    assert run(command, env=variables).returncode == 0
    curve = json.loads((out / "results" / "scratch__1__0.json").read_text())["curve"]
    assert len(curve["train_loss"]) == 4
    log = (out / "logs" / "scratch__1__0.log").read_text()
    assert "Epoch 0" not in re.findall(r"Epoch \d+", log)


def test_an_estimate_leaves_the_folder_alone(compared, compare, tmp_path):
    design = json.loads((compared[0] / "comparison.json").read_text())
    checkpoint = tmp_path / "out" / "trainings" / "scratch__1__0" / "checkpoint_latest.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    text_of_design = json.dumps(design | {"arms": design["arms"][:1]})
    (tmp_path / "out" / "comparison.json").write_text(text_of_design)
    code, text = compare("--labels", "2", "--estimate", "-device", "cpu")
    assert code == 0 and re.search(r"scratch: 2 trainings, \d+\.\d h \(\d+\.\d\d s per iteration", text)
    assert checkpoint.exists() and (tmp_path / "out" / "comparison.json").read_text() == text_of_design


def test_a_training_ends_with_the_command_that_started_it(nnunet_project, variables, tmp_path):
    command = [sys.executable, "-m", "nnunetv2_cads.comparison.cli", str(tmp_path / "out"), "-d", "1", "--labels", "1"]
    command += ["--seeds", "1", "--epochs", "1000", "--iterations", "1", "-device", "cpu"]
    silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**variables, "nnUNet_n_proc_DA": "1"}, **silent)
    log, deadline = tmp_path / "out" / "logs" / "scratch__1__0.log", time.monotonic() + 240
    while not log.exists() or "Epoch 0" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    assert len(training_processes(tmp_path / "out")) > 1  # with workers that would wait for ever
    process.kill()
    process.wait()
    while training_processes(tmp_path / "out"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def write_two_channels_with_regions(project):
    """Dataset 2, whose dataset.json says where its files are: those of dataset 1, each as two channels."""
    folder = project.root / "raw" / "Dataset002_Regions"
    folder.mkdir()
    description = {
        "channel_names": {"0": "PET", "1": "CT"},
        "labels": {"background": 0, "whole": [1, 2], "core": [2]},
        "regions_class_order": [1, 2],
        "numTraining": 5,
        "file_ending": ".nii.gz",
        "dataset": {
            f"case_{i}": {
                "images": [f"../Dataset001_Blobs/imagesTr/case_{i}_0000.nii.gz"] * 2,
                "label": f"../Dataset001_Blobs/labelsTr/case_{i}.nii.gz",
            }
            for i in range(5)
        },
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    arguments = ["nnUNetv2_plan_and_preprocess", "-d", 2, "-c", "3d_fullres", "-np", 1, "-npfp", 1]
    project.call(*arguments, nnUNet_n_proc_DA="1")


def write_resenc_of_nnssl(path):
    """A checkpoint as nnssl writes it, of a small network; returns the state of its encoder."""
    kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_blocks_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name, imported = (
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        ["conv_op", "norm_op", "nonlin"],
    )
    torch.manual_seed(5)
    network = get_network_from_plans(name, kwargs, imported, 1, 1, allow_init=True, deep_supervision=False)
    plan = {
        "architecture_plans": {
            "arch_class_name": "ResidualEncoderUNet", "arch_kwargs": kwargs, "arch_kwargs_requiring_import": imported,
        },
        "pretrain_num_input_channels": 1,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
    }  # fmt: skip
    torch.save({"network_weights": network.state_dict(), "nnssl_adaptation_plan": plan}, path)
    return network.encoder.state_dict()


def test_a_resenc_of_nnssl_is_loaded_with_its_stem_spread(tmp_path):
    state = write_resenc_of_nnssl(tmp_path / "resenc.pth")
    architecture = resenc_architecture(tmp_path / "resenc.pth")
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 2, 3
    )
    load_encoder_and_stem(network, tmp_path / "resenc.pth", 2)
    image = torch.randn(1, 1, 8, 16, 16)
    other = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 3
    )
    other.encoder.load_state_dict(state)
    for ours, theirs in zip(network.encoder(image.expand(-1, 2, -1, -1, -1)), other.encoder(image), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(UserError, match=r"multiples of \(2, 4, 4\), not \(8, 16, 18\)"):
        check_patch(tmp_path / "resenc.pth", architecture, (8, 16, 18))
    wider = {**architecture["arch_kwargs"], "features_per_stage": [4, 8, 16]}
    network = get_network_from_plans(
        architecture["network_class_name"], wider, architecture["_kw_requires_import"], 1, 3
    )
    with pytest.raises(EncoderFileError, match="does not fit the network that it names"):
        load_encoder_and_stem(network, tmp_path / "resenc.pth", 1)


def test_two_commands_share_two_channels_with_regions(nnunet_project, variables, tmp_path):
    write_two_channels_with_regions(nnunet_project)
    write_resenc_of_nnssl(tmp_path / "resenc.pth")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nnunetv2_cads.comparison.cli", str(out), "-d", "2", *LENGTH, "--labels", "1"]
    command += ["--seeds", "1", "--set", "initial_lr=4e-3", "--encoder"]
    processes = [
        subprocess.Popen([*command, encoder], env=variables, stderr=subprocess.PIPE, encoding="utf-8")
        for encoder in (str(nnunet_project.encoder_file), f"resenc={tmp_path / 'resenc.pth'}")
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    begun = [line.partition(": ")[2] for text in errors for line in text.splitlines() if line.startswith("training ")]
    arms = ("cads", "resenc", "scratch")
    assert sorted(begun) == [f"{arm}, 1 labelled, seed 0" for arm in arms]
    results = [json.loads(path.read_text()) for path in sorted((out / "results").iterdir())]
    assert [{row["organ"] for row in result["scores"]} for result in results] == [{"whole", "core"}] * 3
    assert "trainings are not finished" not in (out / "report.html").read_text()
    log = (out / "logs" / "cads__1__0.log").read_text()
    assert "Spread over 2 of 2 input channels" in log and "Current learning rate: 0.002" in log
    design = json.loads((out / "comparison.json").read_text())
    assert {arm["name"]: arm["settings"] for arm in design["arms"]} == {
        "scratch": {"initial_lr": 4e-3}, "cads": {"initial_lr": 4e-3}, "resenc": {},
    }  # fmt: skip


def training_processes(out):
    """Numbers of the processes that train in a folder."""
    found = run(["pgrep", "-f", f"comparison.training {out}"]).stdout.split()
    return [int(number) for number in found]


def test_dry_run_and_parts_list_the_work_and_write_nothing(compare, tmp_path):
    lines = []
    for part in (0, 1):
        flags = ["--labels", "1", "2", "--seeds", "2", "--arms", "nnUNetTrainer", "--dry-run"]
        code, text = compare(*flags, "--part", part, "--parts", "2")
        assert code == 0
        lines += [line for line in text.splitlines() if "learns from" in line]
    assert len(lines) == len(set(lines)) == 8
    assert not (tmp_path / "out").exists()
    of_two = next(line for line in lines if line.startswith("nnUNetTrainer, 2 labelled, seed 1"))
    of_one = next(line for line in lines if line.startswith("nnUNetTrainer, 1 labelled, seed 1"))
    assert of_two.split("learns from ")[1].startswith(of_one.split("learns from ")[1] + ", ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "5"], "5 labelled cases of 5 patients are too few to learn from 5"),
        (["--arms", "NoSuchTrainer"], "NoSuchTrainer: nnU-Net finds no trainer of this name"),
        (["--arms", "cads"], "--arms cads needs its encoder"),
        (["--arms", "nnUNetTrainerCADS"], "--arms nnUNetTrainerCADS needs its encoder"),
        (["-device", "cuda"], "PyTorch sees no GPU"),
        (["--encoder", "README"], "README: no such encoder file"),
        (["-p", "OtherPlans"], "has no OtherPlans.json; run cads_plan_and_preprocess -d 1 first"),
        (["-c", "3d_lowres"], "has no configuration 3d_lowres; choose one of"),
        (["--test", "TEST"], "case_9 is no labelled case"),
        (["--patient-pattern", "case"], "has no group"),
        (["--patient-pattern", "(x)"], "does not match case case_0"),
        (["--parts", "2", "--part", "2"], "--part 2: must be from 0 to 1"),
    ],
)
def test_bad_input_is_one_sentence(compare, tmp_path, arguments, message):
    (tmp_path / "test.txt").write_text("case_1\ncase_9\n", encoding="utf-8")
    arguments = [str(tmp_path / "test.txt") if word == "TEST" else word for word in arguments]
    flags = [] if "--arms" in arguments or "--encoder" in arguments else ["--arms", "scratch"]
    labels = [] if "--labels" in arguments else ["--labels", "1"]
    code, text = compare(*flags, *labels, *arguments)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_mistyped_flag_is_told_before_torch_is_imported():
    code = (
        "import sys; sys.modules['torch'] = None; from nnunetv2_cads.comparison.cli import main; main(['x', '--ams'])"
    )
    done = run([sys.executable, "-c", code], cwd=REPOSITORY)
    assert done.returncode == 2 and "unrecognized arguments: --ams" in done.stderr


def test_a_configuration_may_inherit_but_not_be_the_second_stage_of_a_cascade(compare, nnunet_project):
    folder = nnunet_project.root / "preprocessed" / "Dataset001_Blobs"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"] |= {
        "small": {"inherits_from": "3d_fullres", "batch_size": 3},
        "cascade": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    (folder / "InheritingPlans.json").write_text(json.dumps(plans))
    flags = ["--arms", "nnUNetTrainer", "--labels", "1", "-device", "cpu", "--dry-run", "-p", "InheritingPlans"]
    code, text = compare(*flags, "-c", "small")
    assert code == 0 and "learns from" in text
    code, text = compare(*flags, "-c", "cascade")
    assert code == 2 and "error: cascade: is the second stage of a cascade" in text


def test_a_dataset_that_is_not_there_is_named(compare, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    code, text = compare("--arms", "scratch", "--labels", "1")
    assert code == 2 and "nnUNet_raw is not set" in text


def test_a_folder_of_something_else_is_left_alone(compare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    code, text = compare("--arms", "scratch", "--labels", "1")
    assert code == 2 and "exists and holds no comparison" in text


def test_patients_stay_together(compare, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"case_{i},{'ab'[i > 2]}\n" for i in range(5)), encoding="utf-8")
    flags = ["--arms", "scratch", "--labels", "1", "--seeds", "1", "--dry-run"]
    code, text = compare(*flags, "--patient-table", table)
    test_cases = text.split("test cases: ")[1].split()
    assert code == 0 and len(test_cases) in (2, 3)
    (tmp_path / "test.txt").write_text("case_1\n", encoding="utf-8")
    code, text = compare(*flags, "--patient-table", table, "--test", tmp_path / "test.txt")
    assert code == 2 and "patient a has other cases, too" in text


def test_test_cases_of_the_pretraining_are_refused(compare, nnunet_project, tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    raw = nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr"
    for case in ("case_1", "case_3"):
        shutil.copy(raw / f"{case}_0000.nii.gz", archive / f"renamed_{case}.nii.gz")
    assert preprocess([str(archive), str(tmp_path / "store"), "-np", "1"]) == 0
    (tmp_path / "test.txt").write_text("case_1\ncase_2\n", encoding="utf-8")
    flags = ["--arms", "scratch", "--labels", "1", "--dry-run", "--store", tmp_path / "store"]
    code, text = compare(*flags, "--test", tmp_path / "test.txt")
    assert (
        code == 2 and "1 of 2 test cases were pre-trained on (case_1 is volume renamed_case_1: the same voxels)" in text
    )
    (tmp_path / "test.txt").write_text("case_2\ncase_4\n", encoding="utf-8")
    code, text = compare(*flags, "--test", tmp_path / "test.txt")
    assert code == 0 and "pre-trained on (" not in text
    assert text.count("whether it was pre-trained on cannot be told: case_") == 2  # bodies of 170 ml are too small


def test_regions_and_ignored_voxels_are_scored_as_nnunet_trains_them(tmp_path, compare):
    description = {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}}
    organs, ignored = organs_of(description)
    assert (organs, ignored) == ({"whole": [1, 2], "core": [2]}, 3)
    dataset = open_dataset(1, None, "3d_fullres")
    entry = {"a": {"images": ["a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}}
    description |= {"dataset": entry}
    changed = dataclasses.replace(dataset, raw=tmp_path, description=dataset.description | description)
    truth, predicted = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    truth[0], truth[1], truth[3] = 1, 2, 3
    predicted[0], predicted[1], predicted[3] = 2, 2, 1
    for folder, array in (("labelsTr", truth), ("predicted", predicted)):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / "a.nii.gz"))
    whole, core = score_folder(tmp_path / "predicted", changed, ["a"])
    truth[1] = 1
    sitk.WriteImage(sitk.GetImageFromArray(truth), str(tmp_path / "labelsTr" / "a.nii.gz"))
    assert score_folder(tmp_path / "predicted", changed, ["a"])[1] == {
        "case": "a", "organ": "core", "dice": None, "nsd": None,
    }  # fmt: skip
    assert (whole["organ"], whole["dice"], core["organ"]) == ("whole", 1.0, "core")
    assert core["dice"] == pytest.approx(2 / 3)
