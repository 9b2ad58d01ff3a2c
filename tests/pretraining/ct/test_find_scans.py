"""What counts as a scan in a folder, and its name in the store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretraining.ct.find_scans import find_scans
from pretraining.ct.scan import MAX_ID_LENGTH, volume_id
from pretraining.system.errors import UserError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names_in(folder, store="store"):
    return [scan.name for scan in find_scans(folder, folder / store)[0]]


def test_searches_all_below_but_not_what_is_hidden_or_the_store(tmp_path):
    touch(tmp_path, "a.nii.gz", "b/c/d.NRRD", "b/e.mha", "b/._e.mha", ".trash/f.nii", "readme.txt", "b/c/d.raw")
    touch(tmp_path, "out/volumes/g.nii.gz")
    assert names_in(tmp_path, "out") == ["a.nii.gz", "b/c/d.NRRD", "b/e.mha"]


def test_follows_links_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/a.nii", "scans/b.nii")
    (tmp_path / "scans" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "scans")
    assert names_in(tmp_path / "scans") == ["b.nii", "link/a.nii"]


def test_single_file(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    ((scan,), _) = find_scans(tmp_path / "a.nii.gz", tmp_path / "store")
    assert (scan.volume_id, scan.name) == ("a", "a.nii.gz")


@pytest.mark.parametrize(
    ("source", "reason"), [("missing", "no such file or folder"), (".", "INPUT and STORE at once")]
)
def test_unusable_input(tmp_path, source, reason):
    with pytest.raises(UserError, match=reason):
        find_scans(tmp_path / source, tmp_path)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_volume_ids_are_safe_file_names(parts):
    name = volume_id("/".join(parts))
    assert name == name.strip("/\\") and "/" not in name and "\0" not in name and not name.startswith(".")
    assert 1 <= len(name) <= MAX_ID_LENGTH + 9


def test_volume_ids_keep_what_tells_scans_apart():
    assert volume_id("patients/scan 1") == "patients__scan_1"
    assert volume_id("肺/左") == "肺__左"
    assert volume_id("x" * 300) != volume_id("y" + "x" * 300)
