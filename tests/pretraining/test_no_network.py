"""The commands use no network: with every way to one closed, they do their work, and none of them tried.

Where the tests run as root, the commands are also in an empty network namespace, because Python's audit events do not
show what libraries written in C try.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from tiny_run import TINY_RUN

import pretraining

PREDICT = "nnunetv2.inference.predict_from_raw_data.predict_entry_point"
REPOSITORY = Path(pretraining.__file__).parents[1]
# Python's audit events show each use of a socket, also by libraries; AF_UNIX (1) is for processes of one machine.
CLOSED = """
import os, sys

def refuse(event, arguments):
    tried = event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect")
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        tried = int(arguments[0].family) != 1
    if event == "socket.bind" and arguments[1] == ("::1", 0):  # urllib3, which pydicom loads, asks if there is IPv6
        raise OSError("no IPv6 in this test")
    if tried:
        with open(os.environ["ATTEMPTS"], "a") as file:
            print(event, arguments[1:], file=file)
        raise OSError("no network in this test")

sys.addaudithook(refuse)
"""
TINY = [*TINY_RUN, "--epochs=1", "--epoch-samples=2", "--warmup-epochs=0"]


@pytest.fixture
def closed(tmp_path):
    """Runs a function of the package as a command, with the network closed in it and in all its processes."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOSED)
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": path, "ATTEMPTS": str(tmp_path / "attempts")}

    def run(function: str, *arguments, cwd=tmp_path, **changes):
        module, _, name = function.rpartition(".")
        code = f"import sys; from {module} import {name}; sys.exit({name}())"
        command = [*alone(), sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, env=environment | changes, cwd=cwd, capture_output=True, encoding="utf-8", timeout=300
        )

    return run


def alone() -> list[str]:
    """What begins a command in an empty network namespace; nothing where that is not allowed."""
    words = ["unshare", "-n"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def write_dataset(folder, make_body) -> None:
    """Two scans with a label each, as nnU-Net wants them."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for i in range(2):
        image = make_body((20, 40, 40), (3.0, 3.0, 3.0), seed=i)
        sitk.WriteImage(image, str(folder / "imagesTr" / f"case_{i}_0000.nii.gz"))
        sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8), str(folder / "labelsTr" / f"case_{i}.nii.gz"))
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "body": 1}}
    description |= {"numTraining": 2, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def test_fine_tuning_uses_no_network(closed, make_body, tmp_path):
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    write_dataset(tmp_path / "raw" / "Dataset001_Body", make_body)
    here = {**folders, "nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
    here["nnUNet_extTrainer"] = str(REPOSITORY / "nnunetv2_cads" / "training" / "discovery")
    of = ("-tr", "nnUNetTrainerCADS_scratch_demo_quick", "-p", "nnUNetCADSPlans", "-device", "cpu")
    plan = ("-d", 1, "-c", "3d_fullres", "-gpu_memory_target", 0.7, "-np", 1, "-npfp", 1, "--no_pbar")
    images = ("-i", tmp_path / "raw" / "Dataset001_Body" / "imagesTr", "-o", tmp_path / "out")
    for function, *arguments in (
        ("nnunetv2_cads.experiment_planning.plan_and_preprocess.main", *plan),
        ("nnunetv2.run.run_training.run_training_entry", 1, "3d_fullres", "all", *of),
        (PREDICT, *images, "-d", 1, "-c", "3d_fullres", "-f", "all", *of, "--disable_tta", "-npp", 0, "-nps", 0),
    ):
        done = closed(function, *arguments, **here)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "case_1.nii.gz").exists()
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()


def test_no_command_uses_a_network(closed, make_body, tmp_path):
    (tmp_path / "archive").mkdir()
    sitk.WriteImage(make_body((30, 64, 64)), str(tmp_path / "archive" / "a.nii.gz"))
    encoder = tmp_path / "encoder.safetensors"
    for function, *arguments in (
        ("pretraining.preprocess.main", tmp_path / "archive", tmp_path / "store", "-np", 1),
        ("pretraining.train.main", tmp_path / "store", tmp_path / "run", *TINY),
        ("pretraining.export.main", tmp_path / "run", encoder),
    ):
        done = closed(function, *arguments)
        assert done.returncode == 0, done.stderr
    doctor = closed("nnunetv2_cads.doctor.cli.main", "--encoder", encoder)
    assert f"ok       encoder: {encoder}: 204 matched" in doctor.stdout, doctor.stdout + doctor.stderr
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()


def test_the_network_is_closed_in_these_tests(closed, tmp_path):
    code = "import socket\ndef connect():\n    socket.create_connection(('192.0.2.1', 9), timeout=1)\n"
    (tmp_path / "attempt.py").write_text(code)
    assert "no network in this test" in closed("attempt.connect").stderr
    assert "socket.getaddrinfo" in (tmp_path / "attempts").read_text()


@pytest.mark.skipif(not alone(), reason="an empty network namespace needs root and unshare")
def test_the_network_is_closed_for_libraries_in_c_too(closed, tmp_path):
    code = "import os, socket\ndef show():\n    return os.readlink('/proc/self/ns/net') + str(socket.if_nameindex())\n"
    (tmp_path / "namespace.py").write_text(code)
    shown = closed("namespace.show").stderr.strip()
    assert shown.endswith("[(1, 'lo')]")
    assert not shown.startswith(str(Path("/proc/self/ns/net").readlink()))
