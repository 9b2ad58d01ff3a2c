"""The demo's folder: starting again clears what a demo made, and nothing else."""

import json

import pytest

from nnunetv2_cads.demo.folder import DemoFolder
from pretraining.system.errors import UserError

SETTINGS = {"seed": 0, "quick": True}


def test_overwriting_keeps_what_the_demo_did_not_make(tmp_path):
    folder = DemoFolder(tmp_path / "demo")
    assert not folder.claim(SETTINGS, overwrite=False)
    folder.archive.mkdir()
    (folder.archive / "scan.nii.gz").touch()
    (folder.root / "my_notes.txt").write_text("keep")
    folder.finish("data", 3.21)
    assert folder.claim(SETTINGS, overwrite=False)
    assert folder.seconds() == {"data": 3.2}
    assert not folder.claim({"seed": 4, "quick": True}, overwrite=True)
    assert folder.seconds() == {}
    assert not folder.archive.exists()
    assert (folder.root / "my_notes.txt").read_text() == "keep"


def test_a_demo_of_an_earlier_version_is_not_resumed(tmp_path):
    (tmp_path / "cads_demo.json").write_text(json.dumps({"settings": SETTINGS, "seconds": {"data": 1.0}}))
    (tmp_path / "predictions_scratch").mkdir()
    folder = DemoFolder(tmp_path)
    with pytest.raises(UserError, match="holds a demo of another version of cads_demo"):
        folder.claim(SETTINGS, overwrite=False)
    assert not folder.claim(SETTINGS, overwrite=True)
    assert not folder.predictions("_scratch").exists() and folder.claim(SETTINGS, overwrite=False)


def test_a_damaged_record_is_named(tmp_path):
    folder = DemoFolder(tmp_path)
    folder.claim(SETTINGS, overwrite=False)
    (tmp_path / "cads_demo.json").write_text('{"seconds": 3')
    with pytest.raises(UserError, match=r"cads_demo\.json: is damaged"):
        folder.claim(SETTINGS, overwrite=False)


def test_an_empty_folder_is_taken(tmp_path):
    assert not DemoFolder(tmp_path).claim(SETTINGS, overwrite=False)
