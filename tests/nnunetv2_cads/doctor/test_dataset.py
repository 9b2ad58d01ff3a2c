"""`cads_doctor -d ID` on raw datasets: cases, folds, labels, channels and spacing."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_cads.doctor import cli as doctor
from nnunetv2_cads.encoder_file.record import EncoderRecord
from nnunetv2_cads.encoder_file.write import write_encoder_file
from nnunetv2_cads.network_architecture import PVTv2Encoder
from nnunetv2_cads.training.split import few_cases_split


@pytest.fixture
def make_dataset(tmp_path, monkeypatch):
    """Makes dataset 7 with so many cases and such labels and channels; returns its folder."""
    for kind in ("raw", "preprocessed", "results"):
        (tmp_path / kind).mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    monkeypatch.delenv("nnUNet_cads_encoder", raising=False)
    folder = tmp_path / "raw" / "Dataset007_Mine"

    def make(cases, labels, channels=("CT",), spacing_xyz_mm=(1.0, 1.0, 1.0)):
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir(parents=True)
        volume = np.zeros((4, 5, 6), np.int16)
        volume[1, 1, :3] = 0, 1, 2
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing(spacing_xyz_mm)
        for i in range(cases):
            sitk.WriteImage(image, str(folder / "labelsTr" / f"case_{i}.nii.gz"))
            for channel in range(len(channels)):
                sitk.WriteImage(image, str(folder / "imagesTr" / f"case_{i}_{channel:04d}.nii.gz"))
        description = {"channel_names": dict(enumerate(channels)), "labels": labels}
        description |= {"numTraining": cases, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(description))
        return folder

    return make


LABELS = {"background": 0, "a": 1, "b": 2}


def findings(capsys, *flags):
    """Level and text of each finding about the dataset."""
    doctor.main(["-d", "7", *map(str, flags)])
    lines = [line.split(" dataset: ") for line in capsys.readouterr().out.splitlines() if " dataset: " in line]
    return [(level.strip(), text) for level, text in lines]


def test_a_sound_dataset(make_dataset, capsys):
    folder = make_dataset(5, LABELS)
    text = f"{folder}: labelled cases: 5, each with the labels of dataset.json alone"
    assert findings(capsys) == [("ok", text)]


@pytest.mark.parametrize(("cases", "said"), [(1, "fold 0 and fold all"), (3, "folds 0 to 2 and fold all")])
def test_folds_of_few_cases(cases, said, make_dataset, tmp_path, capsys):
    make_dataset(cases, LABELS)
    level, text = findings(capsys)[0]
    assert level == "warning" and text.endswith(said)
    (tmp_path / "preprocessed" / "Dataset007_Mine").mkdir()
    (tmp_path / "preprocessed" / "Dataset007_Mine" / "splits_final.json").write_text("[]")
    assert [level for level, _ in findings(capsys)] == ["ok"]  # the user's own split


def test_a_split_of_fewer_cases_than_there_are_now(make_dataset, tmp_path, capsys):
    make_dataset(5, LABELS)
    file = tmp_path / "preprocessed" / "Dataset007_Mine" / "splits_final.json"
    file.parent.mkdir()
    file.write_text(json.dumps(few_cases_split(["case_0", "case_1"])))
    assert findings(capsys)[0] == (
        "warning",
        f"{file} was made of fewer cases than the 5 that there are now; remove it, and all of them are split anew",
    )


def test_label_gaps_and_labels_outside_dataset_json(make_dataset, capsys):
    folder = make_dataset(5, {"background": 0, "a": 1, "b": 3})
    level, text = findings(capsys)[-1]
    assert level == "problem" and text.startswith(f"{folder / 'dataset.json'}: has the labels 0, 1, 3")
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "labels": {"background": 0, "a": 1}}))
    level, text = findings(capsys)[-1]
    assert level == "problem" and text.startswith(f"{folder / 'labelsTr' / 'case_0.nii.gz'}: has the label 2")
    assert doctor.main(["-d", "7"]) == 1


def test_labels_that_lie_elsewhere_than_their_image(make_dataset, capsys):
    folder = make_dataset(5, LABELS)
    for case, change in (("case_1", lambda labels: labels.SetOrigin((0, 30, 40))),
                         ("case_3", lambda labels: labels.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1)))):  # fmt: skip
        file = str(folder / "labelsTr" / f"{case}.nii.gz")
        labels = sitk.ReadImage(file)
        change(labels)
        sitk.WriteImage(labels, file)
    named = [text for level, text in findings(capsys) if level == "warning"]
    assert len(named) == 1
    assert named[0].startswith(f"{folder / 'labelsTr' / 'case_1.nii.gz'}: lies up to 50 mm from where case_1_0000")
    assert "(label files like this: 2)" in named[0]


def test_labels_with_other_numbers_of_voxels_than_their_image(make_dataset, capsys):
    folder = make_dataset(5, LABELS)
    file = str(folder / "labelsTr" / "case_2.nii.gz")
    sitk.WriteImage(sitk.ReadImage(file)[:, :, :3], file)
    assert [(level, text.split("; ")[0]) for level, text in findings(capsys)] == [
        ("problem", f"{file}: has 6 x 5 x 3 voxels, but the image case_2_0000.nii.gz has 6 x 5 x 4")
    ]


def test_channels_and_spacing_before_there_are_plans(make_dataset, tmp_path, capsys):
    make_dataset(5, LABELS, ("CT", "PET"), (1.0, 1.0, 4.0))
    encoder = tmp_path / "encoder.pth"
    write_encoder_file(encoder, PVTv2Encoder().state_dict(), EncoderRecord(spacing_mm=(2.0, 2.0, 2.0)))
    (ok, channel, spacing) = findings(capsys, "--encoder", encoder)
    assert ok[0] == "ok" and channel == ("warning", "channel 1 is PET; the encoder saw only CT")
    assert spacing[0] == "warning" and "4 x 1 x 1 mm (median), the encoder saw 2 x 2 x 2 mm" in spacing[1]
    assert "--pretraining-spacing (0.5 times as many voxels" in spacing[1]
    assert len(findings(capsys)) == 2  # no encoder, nothing to compare the spacing with
