"""Another spacing than 1 mm: asked for once, then in the store, the run, its encoder file and the advice."""

import json

import pytest
import SimpleITK as sitk
from tiny_run import TINY_RUN

from nnunetv2_cads.encoder_file.read import read_encoder_file
from pretraining.preprocess import main as preprocess
from pretraining.store.store import Store
from pretraining.train import main as pretrain


@pytest.fixture(scope="module")
def archive(tmp_path_factory, make_body):
    """Two scans with voxels of 4 x 4 x 2 mm."""
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(2):
        sitk.WriteImage(make_body((60, 40, 50), (4.0, 4.0, 2.0), seed), str(folder / f"scan_{seed}.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def store(archive):
    path = archive.parent / f"{archive.name}_store"
    assert preprocess([str(archive), str(path), "-np", "1", "--spacing-mm", "4"]) == 0
    return path


def test_volumes_have_the_spacing_that_was_asked_for(store):
    opened = Store.open(store)
    assert opened.spacing_mm == 4.0
    assert [opened.shape(name) for name in opened.ids] == [(30, 40, 50)] * 2


@pytest.mark.parametrize("plain", [(), ("--plain", "--encoder-size=b1")], ids=["", "plain"])
def test_a_run_hands_the_spacing_on(store, tmp_path, plain):
    run = tmp_path / "run"
    assert pretrain([str(store), str(run), *TINY_RUN, "--epochs=1", "--warmup-epochs=0", *plain]) == 0
    assert read_encoder_file(run / "cads_encoder.pth").record.spacing_mm == (4.0, 4.0, 4.0)
    if not plain:
        assert json.loads((run / "config.json").read_text())["spacing_mm"] == 4.0
        assert read_encoder_file(run / "checkpoint_latest.pth").record.spacing_mm == (4.0, 4.0, 4.0)


def test_a_store_takes_no_volumes_of_another_spacing(archive, store, capfd):
    assert preprocess([str(archive), str(store), "-np", "1"]) == 2
    assert "have voxels of 4 mm, not 1; give --spacing-mm 4, or choose another STORE" in capfd.readouterr().err
    assert preprocess([str(archive), str(store), "-np", "1", "--spacing-mm", "4"]) == 0


def test_what_is_too_thin_for_the_spacing_is_named_in_mm(archive, tmp_path, capfd):
    assert preprocess([str(archive), str(tmp_path / "store"), "-np", "1", "--spacing-mm", "8"]) == 2
    assert "covers 120 mm from its lowest to its highest slice, a sub-volume needs 192 mm" in capfd.readouterr().err


def test_scans_that_are_too_coarse_are_left_out(archive, tmp_path, make_body):
    mixed = tmp_path / "archive"
    mixed.mkdir()
    for name, edge_mm in (("thin", 1.0), ("thick", 5.0)):
        sitk.WriteImage(make_body((30, 40, 50), (0.8, 0.8, edge_mm)), str(mixed / f"{name}.nii.gz"))
    assert preprocess([str(mixed), str(tmp_path / "store"), "-np", "1", "--max-spacing-mm", "2.5"]) == 1
    assert Store.open(tmp_path / "store").ids == ["thin"]
    (failed,) = json.loads((tmp_path / "store" / "failed.json").read_text())
    assert failed["file"] == "thick.nii.gz"
    assert failed["reason"] == "has a voxel spacing of 0.8 x 0.8 x 5 mm, coarser than --max-spacing-mm 2.5"
    assert preprocess([str(mixed), str(tmp_path / "other"), "-np", "1", "--max-spacing-mm", "0.8"]) == 2
    sitk.WriteImage(make_body((30, 40, 50), (0.8, 0.8, 0.8)), str(mixed / "thin.nii.gz"))  # 0.8 in float32 is more
    assert preprocess([str(mixed), str(tmp_path / "other"), "-np", "1", "--max-spacing-mm", "0.8"]) == 1
    assert preprocess([str(mixed), str(tmp_path / "store"), "-np", "1"]) in (0, 1)
    assert Store.open(tmp_path / "store").ids == ["thick", "thin"]


def test_a_limit_of_spacing_counts_for_what_the_store_has_already(tmp_path, make_body):
    mixed, store = tmp_path / "archive", tmp_path / "store"
    mixed.mkdir()
    for name, edge_mm in (("thin", 1.0), ("thick", 5.0)):
        sitk.WriteImage(make_body((30, 40, 50), (0.8, 0.8, edge_mm)), str(mixed / f"{name}.nii.gz"))
    assert preprocess([str(mixed), str(store), "-np", "1"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (store / "volumes").iterdir()}
    for flags, code, ids in ((["--max-spacing-mm", "3"], 1, ["thin"]), ([], 0, ["thick", "thin"])):
        assert preprocess([str(mixed), str(store), "-np", "1", *flags]) == code
        assert Store.open(store).ids == ids
        failed = json.loads((store / "failed.json").read_text())
        assert [entry["file"] for entry in failed] == ["thick.nii.gz"] * code
        assert all("coarser than --max-spacing-mm 3" in entry["reason"] for entry in failed)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was lost or made again
    (mixed / "thick.nii.gz").unlink()  # from another INPUT: named all the same
    assert preprocess([str(mixed), str(store), "-np", "1", "--max-spacing-mm", "3"]) == 1
    assert "thick.nii.gz" in (store / "failed.json").read_text() and Store.open(store).ids == ["thin"]
