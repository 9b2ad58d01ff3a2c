"""`cads_probe` on synthetic torsos: its results, and one sentence for whatever is wrong with what it is given."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.demo.torsos.datasets import write_archive, write_nnunet_dataset
from nnunetv2_cads.demo.torsos.torso import TorsoConfig
from nnunetv2_cads.encoder_file.record import EncoderRecord, completed
from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.preprocess import main as preprocess
from pretraining.probe import main
from pretraining.probing.cases import RawDataset
from pretraining.probing.features import FrozenEncoder
from pretraining.run.checkpoint import save_encoder

SMALL = TorsoConfig(body_scale=0.2, slice_spacing_mm=(3.0, 3.0), pixel_spacing_mm=(2.0, 2.0))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three labelled torsos as an nnU-Net raw dataset without test cases."""
    return write_nnunet_dataset(tmp_path_factory.mktemp("raw"), 7, "Torsos", 3, 0, SMALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of three torsos."""
    folder = tmp_path_factory.mktemp("store")
    write_archive(folder / "archive", 3, SMALL)
    assert preprocess([str(folder / "archive"), str(folder / "store"), "-np", "1"]) == 0
    return folder / "store"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder file with random weights of another seed."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("encoder") / "cads_encoder.pth"
    save_encoder(path, PVTv2Encoder().state_dict(), EncoderRecord())
    return path


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_encoders_stand_beside_random_weights_in_table_and_file(dataset, store, encoder, tmp_path, capsys):
    assert run(encoder, "--dataset", dataset, "--store", store, "--json", tmp_path / "out.json") == 0
    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [result["encoder"] for result in results] == ["random", str(encoder)]
    for result in results:
        assert result["linear"] > 3 * result["chance"] and result["knn"] > 3 * result["chance"]  # organs differ in HU
        assert {f"{name}_{part}" for name in ("linear", "knn") for part in ("stem", "stage4")} <= set(result)
        assert 0 <= result["top1"] <= result["top5"] == 1  # there are three radiographs
    assert results[0]["linear"] != results[1]["linear"]
    shown = capsys.readouterr().out
    for result in results:
        assert shown.count(result["encoder"]) == 3 and f"{result['linear']:.3f}" in shown


def test_a_dataset_is_found_by_its_id_and_the_probes_are_drawn(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    (tmp_path / "Dataset007_Here").symlink_to(dataset)
    assert run("random", "-d", 7, "--png", tmp_path / "probes.png") == 0
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "probes.png")))
    assert picture.shape[1] > 1000 and np.ptp(picture[..., :3].astype(int), axis=2).max() > 60  # a coloured line
    capsys.readouterr()
    (tmp_path / "Dataset007_There").mkdir()
    assert run("random", "-d", 7) == 2
    assert "must have one dataset 007, has Dataset007_Here, Dataset007_There" in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_raw")
    assert run("random", "-d", 7) == 2 and "nnUNet_raw is not set" in capsys.readouterr().err


def test_cases_are_read_at_the_encoders_spacing_and_mixed_ones_are_refused(dataset, encoder, tmp_path, capfd):
    coarse = tmp_path / "coarse.pth"
    save_encoder(coarse, PVTv2Encoder().state_dict(), EncoderRecord(spacing_mm=(4.0, 4.0, 4.0)))
    assert run(coarse, encoder, "--dataset", dataset) == 2
    said = capfd.readouterr().err
    assert f"different spacings cannot be compared ({coarse} 4 mm, {encoder} 1 mm)" in said
    raw = RawDataset.open(dataset)
    fine, rough = (raw.read(raw.cases[0], spacing) for spacing in (1.0, 4.0))
    assert all(abs(4 * b - a) <= 4 for a, b in zip(fine.labels.shape, rough.labels.shape, strict=True))
    shares = [np.bincount(case.labels.ravel(), minlength=9) / case.labels.size for case in (fine, rough)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02


def test_an_encoder_is_shown_the_intensities_that_it_saw():
    hu = torch.tensor([-2000.0, -100.0, 100.0, 200.0, 2000.0])
    saw = EncoderRecord(clip_hu=(-100, 300), intensity_center_hu=100, intensity_scale_hu=200)
    assert FrozenEncoder(PVTv2Encoder(), completed(saw)).shown(hu).tolist() == [-1, -1, 0, 0.5, 1]
    assert FrozenEncoder(PVTv2Encoder()).shown(hu)[[0, 4]].tolist() == [-1, 1]


def test_the_same_cases_stored_in_another_orientation_give_the_same_numbers(dataset, tmp_path):
    turned = tmp_path / "turned"
    shutil.copytree(dataset, turned)
    for path in turned.rglob("*.nii.gz"):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "SAR"), str(path), useCompression=True)
    results = []
    for folder in (dataset, turned):
        assert run("random", "--dataset", folder, "--json", tmp_path / "out.json") == 0
        results += json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(results) == 2 and "top1" not in results[0]
    assert all(results[0][key] == value for key, value in results[1].items() if key != "seconds")


def copy_of(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "copy")


def refused(capsys, *arguments) -> str:
    """The one sentence of a command that could do nothing."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    *_, error = captured.err.strip().splitlines()
    assert error.startswith("error: ") and "Traceback" not in captured.err
    return error


def test_a_dataset_that_cannot_serve_is_refused_in_one_sentence(dataset, tmp_path, capsys):
    assert "no such folder" in refused(capsys, "random", "--dataset", tmp_path / "nothing")
    folder = copy_of(dataset, tmp_path)
    (image, *_), (_, *others) = (sorted((folder / part).iterdir()) for part in ("imagesTr", "labelsTr"))
    image.write_bytes(image.read_bytes()[:1000])
    assert str(image) in refused(capsys, "random", "--dataset", folder)
    image.unlink()
    assert f"{image}: no such file" in refused(capsys, "random", "--dataset", folder)
    for path in others:
        path.unlink()
    assert "only one case with labels" in refused(capsys, "random", "--dataset", folder)
    shutil.rmtree(folder / "labelsTr")
    assert "no labels" in refused(capsys, "random", "--dataset", folder)
    (folder / "dataset.json").write_text("{}", encoding="utf-8")
    assert "file_ending" in refused(capsys, "random", "--dataset", folder)
    (folder / "dataset.json").unlink()
    assert "dataset.json: no such file" in refused(capsys, "random", "--dataset", folder)


def test_labels_that_do_not_suit_are_refused_in_one_sentence(dataset, tmp_path, capsys):
    folder = copy_of(dataset, tmp_path)
    for path in (folder / "labelsTr").iterdir():
        labels = sitk.ReadImage(str(path))
        sitk.WriteImage(labels * 0, str(path))
    assert "fewer than two labels" in refused(capsys, "random", "--dataset", folder)
    for path in (folder / "labelsTr").iterdir():
        sitk.WriteImage(sitk.ReadImage(str(path))[:-1], str(path))
    assert "must have the same" in refused(capsys, "random", "--dataset", folder)
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    description["channel_names"]["0"] = "T2"
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    assert "T2, not CT" in refused(capsys, "random", "--dataset", folder)


def test_an_encoder_that_does_not_fit_is_refused_in_one_sentence(dataset, store, encoder, tmp_path, capsys):
    assert "no such file" in refused(capsys, tmp_path / "none.pth", "--dataset", dataset)
    assert "seed" in refused(capsys, "random:x", "--dataset", dataset)
    state = PVTv2Encoder().state_dict()
    volumes_alone = {key: value for key, value in state.items() if "_2D" not in key}
    save_encoder(tmp_path / "volumes.pth", volumes_alone, EncoderRecord())
    assert "leave --store out" in refused(capsys, tmp_path / "volumes.pth", "--dataset", dataset, "--store", store)
    first = next(iter(volumes_alone))
    save_encoder(tmp_path / "part.pth", {key: value for key, value in state.items() if key != first}, EncoderRecord())
    assert f"{first} is missing" in refused(capsys, tmp_path / "part.pth", "--dataset", dataset)
    save_encoder(tmp_path / "other.pth", state | {first: torch.zeros(3)}, EncoderRecord())
    assert f"{first} (3,)" in refused(capsys, tmp_path / "other.pth", "--dataset", dataset)


def test_a_store_of_one_volume_has_nothing_to_find(dataset, tmp_path, capsys):
    write_archive(tmp_path / "archive", 1, SMALL)
    assert preprocess([str(tmp_path / "archive"), str(tmp_path / "store"), "-np", "1"]) == 0
    capsys.readouterr()
    assert "larger store" in refused(capsys, "random", "--dataset", dataset, "--store", tmp_path / "store")
