"""A folder of many scans is listed once by whoever reads them, and again when it has changed."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import SimpleITK as sitk

from pretraining.ct.folder_names import names_that_begin
from pretraining.ct.read_ct import read_ct
from pretraining.ct.scan import Scan

LISTED: Counter[str] = Counter()
sys.addaudithook(lambda event, arguments: LISTED.update([event]) if event in ("os.listdir", "os.scandir") else None)


def test_scans_of_one_folder_list_it_once(tmp_path, make_body):
    sitk.WriteImage(make_body(), str(tmp_path / "scan_0.nii"))
    for number in range(1, 9):
        os.link(tmp_path / "scan_0.nii", tmp_path / f"scan_{number}.nii")
    LISTED.clear()
    for number in range(9):
        file = tmp_path / f"scan_{number}.nii"
        read_ct(Scan(file.stem, file.name, (file,)))
    assert LISTED.total() == 1


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("a_", ["a_1", "a_2"]),
        ("a", ["a", "a_1", "a_2", "ab"]),
        ("c", []),
        ("B", []),
        ("", ["a", "a_1", "a_2", "ab", "b"]),
    ],
)
def test_names_that_begin(tmp_path, start, expected):
    for name in ("ab", "a_2", "b", "a", "a_1"):
        Path(tmp_path, name).touch()
    os.utime(tmp_path, ns=(1, 1))
    assert names_that_begin(tmp_path, start) == expected
    (tmp_path / f"{start}zz").touch()
    assert names_that_begin(tmp_path, start) == sorted([*expected, f"{start}zz"])
