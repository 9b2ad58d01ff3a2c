"""`cads_plan_and_preprocess` on raw datasets whose labels, cases or description nnU-Net cannot use."""

import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_cads.experiment_planning import plan_and_preprocess

PLAN = ["-d", "9", "--no_pp", "-npfp", "1", "--no_pbar"]


@pytest.fixture
def raw(nnunet_project, monkeypatch, tmp_path):
    """A copy of the project's raw dataset, with ID 9, in folders of the test's own."""
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    monkeypatch.delenv("nnUNet_cads_encoder", raising=False)
    folder = tmp_path / "raw" / "Dataset009_Mine"
    shutil.copytree(nnunet_project.root / "raw" / "Dataset001_Blobs", folder)
    return folder


def describe(folder, **changes):
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def relabel(folder, case, label, dtype=np.uint8):
    """Write ``label`` into a corner of a case's labels."""
    file = str(folder / "labelsTr" / f"{case}.nii.gz")
    before = sitk.ReadImage(file)
    array = sitk.GetArrayFromImage(before).astype(dtype)
    array[0, 0, :3] = label
    after = sitk.GetImageFromArray(array)
    after.CopyInformation(before)
    sitk.WriteImage(after, file)


def assert_refused(capsys, said, *flags):
    """The command ends with 2 and one sentence, in which the pattern ``said`` is found."""
    assert plan_and_preprocess.main([*PLAN, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert re.search(said, error), error


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"background": 0, "a": 1, "b": 3},
            "has the labels 0, 1, 3, but nnU-Net needs each number from 0 on, and 2 is",
        ),
        ({"background": 0, "a": 1, "b": "2", "ignore": 4}, "has the labels 0, 1, 2, 4, .* and 3 is missing; number th"),
        ({"background": 0, "a": [1, 4], "b": 4}, "has the labels 0, 1, 4, .* number them 0 to 2, here and in labelsTr"),
        ({"background": 0, "ignore": 1, "b": 2}, "the ignore label is 1; it must be the last, 2"),
        ({"a": 1, "b": 2}, "has no label background = 0"),
        ({"background": 0, "a": "liver"}, "labels must be whole numbers by name"),
    ],
)
def test_labels_that_nnunet_cannot_use_are_named(labels, said, raw, capsys):
    describe(raw, labels=labels)
    assert_refused(capsys, f"^error: {raw / 'dataset.json'}: .*{said}")


@pytest.mark.parametrize(("label", "dtype"), [(7, np.uint8), (-1, np.int16), (1.5, np.float32)])
def test_a_label_outside_dataset_json_is_named_with_its_file(label, dtype, raw, capsys):
    relabel(raw, "case_3", label, dtype)
    file = raw / "labelsTr" / "case_3.nii.gz"
    assert_refused(capsys, f"{file}: has the label {label}, but dataset.json has only 0, 1, 2; correct the file or")
    relabel(raw, "case_4", 9)
    assert_refused(capsys, r"case_3.* \(label files like this: 2\)")


def test_labels_off_their_image_are_named_and_planned_for(raw, capsys):
    file = str(raw / "labelsTr" / "case_1.nii.gz")
    labels = sitk.ReadImage(file)
    labels.SetOrigin([mm + 3 for mm in labels.GetOrigin()])
    sitk.WriteImage(labels, file)
    assert plan_and_preprocess.main(PLAN) == 0
    assert f"warning: {file}: lies up to 5.2 mm from where case_1_0000.nii.gz is; nnU-Net" in capsys.readouterr().err


def test_labels_of_another_size_than_their_image_are_named(raw, capsys):
    file = str(raw / "labelsTr" / "case_1.nii.gz")
    sitk.WriteImage(sitk.ReadImage(file)[:, :, 1:], file)
    assert_refused(
        capsys, rf"{re.escape(file)}: has .* voxels, but the image case_1_0000.nii.gz has .*; label the image"
    )


def test_cases_that_are_not_complete_are_named(raw, capsys):
    (raw / "labelsTr" / "case_2.nii.gz").write_bytes(b"no image")
    assert_refused(capsys, "case_2.nii.gz: cannot be read")
    (raw / "labelsTr" / "case_2.nii.gz").unlink()
    assert_refused(capsys, "case_2.nii.gz: there is no such file; label the case, or take it out of imagesTr")
    describe(raw, channel_names={"0": "CT", "1": "PET"})
    assert_refused(capsys, "case case_0 has 1 image files for 2 channels")
    for file in (raw / "imagesTr").iterdir():
        file.unlink()
    assert_refused(capsys, "imagesTr: holds no case; nnU-Net looks for CASE_0000.nii.gz there")
    (raw / "imagesTr").rmdir()
    assert_refused(capsys, "imagesTr: there is no such folder")


def test_many_label_files_are_read_by_processes(raw, capsys):
    for i in range(5, 22):
        shutil.copy(raw / "labelsTr" / "case_0.nii.gz", raw / "labelsTr" / f"case_{i}.nii.gz")
        shutil.copy(raw / "imagesTr" / "case_0_0000.nii.gz", raw / "imagesTr" / f"case_{i}_0000.nii.gz")
    relabel(raw, "case_21", 3)
    assert_refused(capsys, "case_21.nii.gz: has the label 3", "-npfp", "2")


def test_what_nnunets_own_check_finds_ends_with_one_sentence(raw, capsys):
    describe(raw, numTraining=7)
    said = r"Did not find the expected number of training cases \(7\)"
    assert_refused(capsys, said, "--verify_dataset_integrity")
