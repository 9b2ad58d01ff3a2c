"""Torsos as files: geometry that survives storage, nnU-Net's own integrity check, and calls that can be repeated."""

import itertools
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_cads.demo.torsos.datasets import (
    ARCHIVE,
    TEST,
    TRAIN,
    orientations,
    to_images,
    write_archive,
    write_nnunet_dataset,
)
from nnunetv2_cads.demo.torsos.torso import LABELS, TorsoConfig, make_torso

TINY = TorsoConfig(body_scale=0.4, slice_spacing_mm=(5.0, 6.0), pixel_spacing_mm=(5.0, 6.0))


def test_there_are_48_orientations_and_each_stores_the_same_patient():
    torso = make_torso(TINY, 1)
    assert len(set(orientations())) == 48
    for orientation in orientations():
        image, labels = to_images(torso, orientation)
        cosines = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
        assert cosines == orientation
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")), torso.image_hu)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(labels, "LPS")), torso.labels)


def test_a_point_of_an_organ_keeps_its_place_in_space(tmp_path):
    torso = make_torso(TINY, 2)
    index = np.argwhere(torso.labels == LABELS["liver"])[0]
    point = to_images(torso)[1].TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
    for orientation in ("RAS", "SPL"):
        path = tmp_path / f"{orientation}.nii.gz"
        sitk.WriteImage(to_images(torso, orientation)[1], str(path))
        read = sitk.ReadImage(str(path))
        assert read[read.TransformPhysicalPointToIndex(point)] == LABELS["liver"]


def test_archive_is_stored_in_many_orientations(tmp_path):
    paths = write_archive(tmp_path / "archive", 6, TINY, seed=3)
    directions = set()
    for i, path in enumerate(paths):
        image = sitk.ReadImage(str(path))
        directions.add(image.GetDirection())
        np.testing.assert_array_equal(
            sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")), make_torso(TINY, (3, ARCHIVE, i)).image_hu
        )
    assert len(directions) >= 4
    assert sorted(paths) == sorted((tmp_path / "archive").iterdir())


def test_an_archive_can_be_written_on(tmp_path):
    first = write_archive(tmp_path, 2, TINY, seed=1)
    times = [path.stat().st_mtime_ns for path in first]
    assert write_archive(tmp_path, 3, TINY, seed=1)[:2] == first
    assert [path.stat().st_mtime_ns for path in first] == times


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_nnunet_dataset(folder, 7, "Torso", 3, 2, TINY, seed=5)
    return folder


def test_dataset_holds_what_nnunet_expects(raw):
    dataset = raw / "Dataset007_Torso"
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == LABELS
    for (part, purpose, n), kind in itertools.product((("Tr", TRAIN, 3), ("Ts", TEST, 2)), ("images", "labels")):
        paths = sorted((dataset / f"{kind}{part}").iterdir())
        assert len(paths) == n
        for i, path in enumerate(paths):
            torso = make_torso(TINY, (5, purpose, i))
            image = sitk.ReadImage(str(path))
            np.testing.assert_allclose(image.GetSpacing(), torso.spacing_mm[::-1], rtol=1e-5)
            expected = torso.image_hu if kind == "images" else torso.labels
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)


def test_nnunet_finds_no_fault_with_the_dataset(raw, tmp_path):
    script = Path(sysconfig.get_path("scripts")) / "nnUNetv2_extract_fingerprint"
    folders = {"nnUNet_raw": raw, "nnUNet_preprocessed": tmp_path / "preprocessed", "nnUNet_results": tmp_path}
    done = subprocess.run(
        [sys.executable, script, "-d", "7", "-np", "1", "--verify_dataset_integrity"],
        env={**os.environ, **{name: str(path) for name, path in folders.items()}},
        encoding="utf-8", capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verify_dataset_integrity Done" in done.stdout
    assert (tmp_path / "preprocessed" / "Dataset007_Torso" / "dataset_fingerprint.json").is_file()
