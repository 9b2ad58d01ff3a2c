"""`cads_doctor` in a sound environment and in broken ones."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

from nnunetv2_cads import doctor
from nnunetv2_cads.network_architecture import PVTv2Encoder

RECORD = {"format_version": 1, "spacing_mm": [1.0] * 3, "clip_hu": [-1024, 1024], "intensity_scale_hu": 1024}
INTENSITIES = {"percentile_00_5": -1024.0, "percentile_99_5": 1024.0, "mean": 0.0, "std": 1024.0}


@pytest.fixture
def sound(tmp_path, monkeypatch):
    """An environment in which all is well; returns its folder."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(doctor.__file__).parent / "training" / "discovery"))
    write_encoder(tmp_path, RECORD)
    monkeypatch.setenv("nnUNet_cads_encoder", str(tmp_path / "encoder.pth"))
    return tmp_path


def write_encoder(folder, record, drop=0):
    state = {f"backbone.{key}": value for key, value in list(PVTv2Encoder().state_dict().items())[drop:]}
    torch.save({"teacher": state, "cads": record}, folder / "encoder.pth")


def write_plans(folder, intensities, spacing=(1.0, 1.0, 1.0)):
    dataset = folder / "preprocessed" / "Dataset007_Any"
    dataset.mkdir()
    plans = {
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"3d_fullres": {"spacing": spacing, "normalization_schemes": ["CTNormalization"]}},
    }
    (dataset / "nnUNetCADSPlans.json").write_text(json.dumps(plans))


def test_a_sound_environment_has_no_problem(sound, capsys):
    write_plans(sound, INTENSITIES)
    assert doctor.main(["-d", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("problem")]
    assert any("finds nnUNetTrainerCADS" in line for line in lines)
    assert not [line for line in lines if line.startswith("warning") and "GPU" not in line]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("nnUNet_raw", None, "-> export nnUNet_raw="),
        ("nnUNet_results", "/no/such/folder", "-> mkdir -p '/no/such/folder'"),
        ("nnUNet_extTrainer", "", "-> export nnUNet_extTrainer="),
        ("nnUNet_cads_encoder", "/no/such/file", "there is no such file"),
    ],
)
def test_broken_variables(variable, value, said, sound, monkeypatch, capsys):
    monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    assert doctor.main([]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("record", "drop"), [({**RECORD, "format_version": 99}, 0), (RECORD, 3)])
def test_an_encoder_that_does_not_fit(record, drop, sound, capsys):
    write_encoder(sound, record, drop)
    assert doctor.main(["--encoder", str(sound / "encoder.pth")]) == 1
    assert ("format_version = 99" in (out := capsys.readouterr().out)) or "3 missing" in out


def test_other_intensities_and_spacing_are_warnings_with_both_values(sound, capsys):
    write_plans(sound, {**INTENSITIES, "mean": 77.0}, (2.5, 0.8, 0.8))
    assert doctor.main(["-d", "7"]) == 0
    out = capsys.readouterr().out
    assert "(HU - 77) / 1024" in out and "(HU - 0) / 1024" in out
    assert "2.5 x 0.8 x 0.8 mm" in out and "1 x 1 x 1 mm" in out and "--pretraining-spacing" in out


def test_plans_that_do_not_exist(sound, capsys):
    assert doctor.main(["-d", "8"]) == 1
    assert "cads_plan_and_preprocess -d" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["torch", "nnunetv2"])
def test_packages_that_are_missing(name, sound, monkeypatch, capsys):
    stock = importlib.metadata.version

    def version(package):
        if package == name:
            raise importlib.metadata.PackageNotFoundError(package)
        return stock(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor.main([]) == 1
    assert f"{name} is not installed" in capsys.readouterr().out


def test_versions_that_do_not_fit(sound, monkeypatch, capsys):
    stock = importlib.import_module

    def import_module(package, *args):
        if package == "torch":
            raise RuntimeError("operator torchvision::nms does not exist")
        return stock(package, *args)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.7.9")
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "torchvision::nms" in out and "2.7.9 is older than 2.8.1" in out
