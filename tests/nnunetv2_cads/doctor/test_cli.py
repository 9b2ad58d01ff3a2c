"""`cads_doctor` in a sound environment and in broken ones."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pip._internal.commands import create_command

from nnunetv2_cads.doctor import cli as doctor
from nnunetv2_cads.doctor import memory as memory_checks
from nnunetv2_cads.experiment_planning import plan_and_preprocess
from nnunetv2_cads.experiment_planning.memory_estimate import training_bytes
from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.system import machine

RECORD = {"format_version": 1, "spacing_mm": [1.0] * 3, "clip_hu": [-1024, 1024], "intensity_scale_hu": 1024}
INTENSITIES = {"percentile_00_5": -1024.0, "percentile_99_5": 1024.0, "mean": 0.0, "std": 1024.0}


@pytest.fixture
def sound(tmp_path, monkeypatch):
    """An environment in which all is well; returns its folder."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(doctor.__file__).parents[1] / "training" / "discovery"))
    write_encoder(tmp_path, RECORD)
    monkeypatch.setenv("nnUNet_cads_encoder", str(tmp_path / "encoder.pth"))
    return tmp_path


def write_encoder(folder, record, drop=0):
    state = {f"backbone.{key}": value for key, value in list(PVTv2Encoder().state_dict().items())[drop:]}
    torch.save({"teacher": state, "cads": record}, folder / "encoder.pth")


def write_plans(folder, intensities, spacing=(1.0, 1.0, 1.0), batch_size=2):
    dataset = folder / "preprocessed" / "Dataset007_Any"
    dataset.mkdir()
    full = {"spacing": spacing, "normalization_schemes": ["CTNormalization"]}
    full |= {"patch_size": [32, 64, 64], "batch_size": batch_size}
    plans = {
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"3d_fullres": full, "3d_cascade_fullres": {"inherits_from": "3d_fullres"}},
    }
    (dataset / "nnUNetCADSPlans.json").write_text(json.dumps(plans))
    (dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 1}}))


def report_of(capsys, *arguments):
    """What the command prints, once it is seen that each fix in it is a command that can be given as it stands."""
    doctor.main([*map(str, arguments)])
    out = capsys.readouterr().out
    for line in out.splitlines():
        if line.startswith(f"{'':8} -> "):
            check_command(line[12:])
    return out


def check_command(text):
    assert subprocess.run(["bash", "-nc", text], check=False).returncode == 0, text
    name, *arguments = shlex.split(text)
    if name == "cads_plan_and_preprocess":
        plan_and_preprocess._parser().parse_args(arguments)
    elif name == "pip":
        create_command(arguments[0]).parse_args(arguments[1:])
    else:
        assert name in ("export", "mkdir", "chmod", "python3.12"), text
        assert not any(word in text for word in ("/path/", " ID", "RUN", "FILE", ", ")), text


def test_a_sound_environment_has_no_problem(sound, capsys):
    write_plans(sound, INTENSITIES)
    assert doctor.main(["-d", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("problem")]
    assert any("finds nnUNetTrainerCADS" in line for line in lines)
    assert not [line for line in lines if line.startswith("warning") and "GPU" not in line and "memory" not in line]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("nnUNet_raw", None, "-> export nnUNet_raw="),
        ("nnUNet_raw", "/no/such/folder", "-> mkdir -p /no/such/folder"),
        ("nnUNet_results", "/dev/null/results", "-> mkdir -p /dev/null/results"),
        ("nnUNet_extTrainer", "", "-> export nnUNet_extTrainer="),
        ("nnUNet_cads_encoder", "/no/such/file", "there is no such file"),
    ],
)
def test_broken_variables(variable, value, said, sound, monkeypatch, capsys):
    monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    assert said in report_of(capsys)
    assert doctor.main([]) == 1


def test_folders_that_nnunet_makes_need_not_exist(sound, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_results", str(sound / "new" / "results"))
    assert doctor.main([]) == 0
    assert f"ok       folders: nnUNet_results: {sound / 'new' / 'results'} will be made\n" in report_of(capsys)


@pytest.mark.parametrize(("record", "drop"), [({**RECORD, "format_version": 99}, 0), (RECORD, 3)])
def test_an_encoder_that_does_not_fit(record, drop, sound, capsys):
    write_encoder(sound, record, drop)
    assert doctor.main(["--encoder", str(sound / "encoder.pth")]) == 1
    assert ("format_version = 99" in (out := report_of(capsys))) or "3 missing" in out


def test_other_intensities_and_spacing_are_warnings_with_both_values(sound, capsys):
    write_plans(sound, {**INTENSITIES, "mean": 77.0}, (2.5, 0.8, 0.8))
    assert doctor.main(["-d", "7"]) == 0
    out = report_of(capsys, "-d", 7)
    assert "-> cads_plan_and_preprocess -d 7\n" in out
    assert "-> cads_plan_and_preprocess -d 7 --pretraining-spacing\n" in out
    assert "(HU - 77) / 1024" in out and "(HU - 0) / 1024" in out
    assert "2.5 x 0.8 x 0.8 mm" in out and "1 x 1 x 1 mm" in out
    assert "plan again (1.6 times as many voxels, so the disk, preprocessing and prediction take so many" in out


def test_plans_that_do_not_exist(sound, capsys):
    assert doctor.main(["-d", "8"]) == 1
    assert "-> cads_plan_and_preprocess -d 8 -c 3d_fullres --pretraining-spacing\n" in report_of(capsys, "-d", 8)
    assert "cads_plan_and_preprocess" not in report_of(capsys, "--plans", sound / "plans.json")


def test_plans_are_read_without_an_encoder_too(sound, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_cads_encoder")
    write_plans(sound, INTENSITIES)
    assert "3d_fullres (32 x 64 x 64, batch 2)" in report_of(capsys, "-d", 7)
    assert doctor.main(["-d", "7"]) == 0 and doctor.main(["-d", "8"]) == 1
    (sound / "plans.json").write_text("[]")
    assert doctor.main(["--plans", str(sound / "plans.json")]) == 1


def test_a_folder_for_an_encoder(sound, capsys):
    assert "is a folder; give the path of a cads_encoder.pth" in report_of(capsys, "--encoder", sound)


def test_a_mistyped_encoder_file_is_answered_with_the_one_it_may_mean(sound, capsys):
    out = report_of(capsys, "--encoder", sound / "encodr.pth")
    assert f"-> export nnUNet_cads_encoder={sound / 'encoder.pth'}\n" in out
    assert "nnUNet_cads_encoder=" not in report_of(capsys, "--encoder", sound / "other.bin")


def test_a_gpu_that_is_too_small_for_the_plans(sound):
    write_plans(sound, INTENSITIES)
    file = sound / "preprocessed" / "Dataset007_Any" / "nnUNetCADSPlans.json"
    needed = memory_checks.memory_needed(file, half_precision=True)
    assert needed == {"3d_fullres": training_bytes([32, 64, 64], 2, 1, 2, half_precision=True)}
    size = needed["3d_fullres"]
    assert [f.level for f in memory_checks.gpu_findings("A", size + 1, 2 * size, needed, file)] == ["ok"]
    (finding,) = memory_checks.gpu_findings("A", size - 1, 2 * size, needed, file)
    assert finding.level == "warning" and "3d_fullres takes about" in finding.text
    assert finding.fix == "cads_plan_and_preprocess -d 7 -gpu_memory_target 1"
    check_command(finding.fix)
    plans = json.loads(file.read_text())
    file.write_text(json.dumps({**plans, "cads": {"network": "CoTr"}}))
    larger = memory_checks.memory_needed(file, half_precision=True)
    assert larger == {"3d_fullres": training_bytes([32, 64, 64], 2, 1, 2, half_precision=True, network="CoTr")}
    (finding,) = memory_checks.gpu_findings("A", size, 2 * size, larger, file)
    assert finding.fix == "cads_plan_and_preprocess -d 7 -gpu_memory_target 1 --network CoTr"
    check_command(finding.fix)
    (finding,) = memory_checks.gpu_findings("A", 5 * 2**30, 6 * 2**30, {}, None)
    assert "5.0 of 6.0 GB free, but plans are made for 8 by default" in finding.text and not finding.fix
    assert memory_checks.memory_needed(sound / "nothing.json", True) == memory_checks.memory_needed(None, True) == {}


def test_the_gpu_is_asked_and_compared_with_the_plans(sound, monkeypatch, capsys):
    write_plans(sound, INTENSITIES, batch_size=100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 * 2**30, 8 * 2**30))
    out = report_of(capsys, "-d", 7)
    assert re.search(r"warning  GPU: Card, .* 7\.0 of 8\.0 GB free; 3d_fullres takes about \d\d\.\d GB", out)
    assert "-> cads_plan_and_preprocess -d 7 -gpu_memory_target 7\n" in out


def test_too_little_ram(sound, monkeypatch, capsys):
    write_plans(sound, INTENSITIES, batch_size=100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (sound / "cgroup").mkdir()  # of a container with less than the machine has
    for name, content in (("max", 3 * 2**30), ("current", 2**30), ("stat", f"inactive_file {2**30}")):
        (sound / "cgroup" / f"memory.{name}").write_text(f"{content}\n")
    (sound / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:  99999999 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", sound / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", sound / "cgroup")
    out = report_of(capsys, "-d", 7)
    assert "memory: 3.0 GB available; 3d_fullres on the CPU takes about" in out
    assert "-> export nnUNet_n_proc_DA=2\n" in out


def test_a_system_that_does_not_report_its_memory(sound, monkeypatch, capsys):
    monkeypatch.setattr(machine, "_MEMINFO", sound / "none")
    monkeypatch.setattr(machine, "_CGROUP", sound / "none")
    assert "ok       memory: this system does not report" in report_of(capsys)


@pytest.mark.parametrize("name", ["torch", "nnunetv2"])
def test_packages_that_are_missing(name, sound, monkeypatch, capsys):
    stock = importlib.metadata.version

    def version(package):
        if package == name:
            raise importlib.metadata.PackageNotFoundError(package)
        return stock(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor.main([]) == 1
    assert f"{name} is not installed" in report_of(capsys)


def test_without_torch_every_check_still_reports(sound):
    code = "import sys; sys.modules['torch'] = None; from nnunetv2_cads.doctor.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == ""
    for name in ("trainer", "encoder", "GPU", "memory"):
        assert re.search(rf"^problem  {name}: .*torch.*\n {{8}} -> pip install 'torch>=2\.6'$", done.stdout, re.M), name
    assert re.search("^ok       folders: nnUNet_raw", done.stdout, re.M)


def test_versions_that_do_not_fit(sound, monkeypatch, capsys):
    stock = importlib.import_module

    def import_module(package, *args):
        if package == "torch":
            raise RuntimeError("operator torchvision::nms does not exist")
        return stock(package, *args)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.7.9")
    assert doctor.main([]) == 1
    out = report_of(capsys)
    assert "torchvision::nms" in out and "2.7.9 is older than 2.8.1" in out
