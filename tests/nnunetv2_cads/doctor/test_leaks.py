"""`cads_doctor -d ID --store STORE`: cases that were in the pre-training, as they were or changed."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_cads.demo.torsos.datasets import to_images, write_archive
from nnunetv2_cads.demo.torsos.torso import TorsoConfig, make_torso
from nnunetv2_cads.doctor import cli as doctor
from pretraining.preprocess import main as preprocess

CONFIG = TorsoConfig(body_scale=0.7)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Three torsos, and stores of them by their voxels' edge in mm."""
    folder = tmp_path_factory.mktemp("archive")
    paths = write_archive(folder / "scans", 3, CONFIG)
    stores = {}
    for spacing_mm in ("2", "4", "5"):
        stores[spacing_mm] = folder / f"store_{spacing_mm}"
        assert preprocess([str(folder / "scans"), str(stores[spacing_mm]), "--spacing-mm", spacing_mm, "-np", "1"]) == 0
    return paths, stores


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """The folder of an empty dataset 7."""
    folder = tmp_path / "raw" / "Dataset007_Torsos"
    for name in ("imagesTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return folder


def leaks(capsys, store):
    """The exit code, and the check's lines."""
    code = doctor.main(["-d", "7", "--store", str(store)])
    return code, [line for line in capsys.readouterr().out.splitlines() if " leaks: " in line]


def change(path, spacing_xyz_mm, target):
    """Crop, resample by half voxels, clip, add noise and turn a scan."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path), sitk.sitkFloat32), "LPS")
    size = image.GetSize()
    image = sitk.RegionOfInterest(image, [edge * 3 // 4 for edge in size], [edge // 8 for edge in size])
    origin = image.TransformContinuousIndexToPhysicalPoint((0.5, 0.5, 0.5))
    extent = zip(image.GetSize(), image.GetSpacing(), spacing_xyz_mm, strict=True)
    size = [int((edge - 1) * old / new) for edge, old, new in extent]
    image = sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, origin, spacing_xyz_mm, image.GetDirection())
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 20, size[::-1]).astype(np.float32))
    noise.CopyInformation(image)
    image = sitk.DICOMOrient(sitk.Clamp(image + noise, lowerBound=-160, upperBound=240), "IPR")
    sitk.WriteImage(sitk.Cast(sitk.Round(image), sitk.sitkInt16), str(target))


@pytest.mark.parametrize(("store_mm", "spacing_xyz_mm"), [("2", (3.0, 3.0, 5.0)), ("4", (1.0, 1.0, 1.0))])
def test_cases_of_the_pretraining_are_found(archive, dataset, capsys, store_mm, spacing_xyz_mm):
    paths, stores = archive
    change(paths[1], spacing_xyz_mm, dataset / "imagesTs" / "changed_0000.nii.gz")
    shutil.copy(paths[2], dataset / "imagesTr" / "copied_0000.nii.gz")
    image, _ = to_images(make_torso(CONFIG, (0, 2, 9)))
    sitk.WriteImage(image, str(dataset / "imagesTs" / "other_0000.nii.gz"))
    code, lines = leaks(capsys, stores[store_mm])
    assert code == 1 and len(lines) == 3
    assert lines[0].startswith("problem  leaks: imagesTs/changed is volume torso_0001: the same scan, changed (soft")
    assert lines[1] == "warning  leaks: imagesTr/copied is volume torso_0002: the same voxels"
    assert "is legitimate" in lines[2]


def test_other_bodies_are_not_found(archive, dataset, capsys):
    for seed in range(6):
        image, _ = to_images(make_torso(CONFIG, (0, 2, seed)))
        sitk.WriteImage(image, str(dataset / "imagesTs" / f"other_{seed}_0000.nii.gz"))
    _, (line,) = leaks(capsys, archive[1]["2"])
    assert line.startswith("ok       leaks: no case of Dataset007_Torsos was found in ")
    assert line.endswith("(3 volumes; 6 of 6 cases compared by voxels and by soft tissue)")


def test_what_cannot_be_known_is_said(archive, dataset, capsys):
    paths, stores = archive
    image = sitk.ReadImage(str(paths[0]))
    middle = [edge // 2 - 12 for edge in image.GetSize()]
    sitk.WriteImage(sitk.RegionOfInterest(image, [24, 24, 24], middle), str(dataset / "imagesTs" / "part_0000.nii.gz"))
    sitk.WriteImage(image + 1024, str(dataset / "imagesTs" / "raised_0000.nii.gz"))
    code, lines = leaks(capsys, stores["2"])
    assert [line.partition(" cannot be told: ")[0] for line in lines[:2]] == [
        "warning  leaks: imagesTs/part", "warning  leaks: imagesTs/raised",
    ]  # fmt: skip
    assert "ml of a body" in lines[0] and "so they are not HU" in lines[1]
    assert "0 of 2 cases compared" in lines[2]
    shutil.copy(paths[0], dataset / "imagesTs" / "copied_0000.nii.gz")
    clipped = sitk.Clamp(sitk.ReadImage(str(paths[1])), lowerBound=-160, upperBound=240)
    sitk.WriteImage(clipped, str(dataset / "imagesTs" / "changed_0000.nii.gz"))
    code, lines = leaks(capsys, stores["5"])
    assert code == 1 and lines[0] == "problem  leaks: imagesTs/copied is volume torso_0000: the same voxels"
    assert "imagesTs/changed cannot be told: the store has voxels of 5 mm" in lines[1]


def test_many_cases_are_counted(archive, dataset, capsys):
    paths, stores = archive
    for index in range(12):
        shutil.copy(paths[0], dataset / "imagesTs" / f"case_{index:02d}_0000.nii.gz")
    code, lines = leaks(capsys, stores["5"])
    assert code == 1 and len(lines) == 11 and lines[-1] == "problem  leaks: and 2 more"


def test_what_is_missing_is_named(archive, dataset, capsys, tmp_path):
    assert doctor.main(["--store", str(tmp_path)]) == 1
    assert "leaks: --store is compared with a dataset; give its ID, too: -d ID" in capsys.readouterr().out
    assert "has no cases in imagesTs or imagesTr" in leaks(capsys, archive[1]["2"])[1][0]
    shutil.copy(archive[0][0], dataset / "imagesTs" / "case_0000.nii.gz")
    assert "no such folder" in leaks(capsys, tmp_path / "none")[1][0]
