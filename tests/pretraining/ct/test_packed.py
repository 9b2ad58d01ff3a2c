"""What is packed comes back as it was, in its order, and takes little memory."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_slices

from pretraining.ct import packed
from pretraining.ct.dicom_series import read_slice
from pretraining.ct.dicom_volumes import FoundSlice, series_scans
from pretraining.ct.packed import PackedGroups, PackedPaths


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("a",),
        ("/a",),
        ("b/a", "a"),
        ("/in/one/1", "/in/one/2", "/in/other/1", "/in/one/3"),
        ("a/\udcff.dcm", "a/\n.dcm", "a/ß 1.dcm", "../a/1"),
    ],
)
def test_paths(names):
    paths = tuple(map(Path, names))
    files = PackedPaths.of(paths)
    assert tuple(files) == paths and len(files) == len(paths) and files[1:] == paths[1:]
    assert not paths or files[0] == paths[0]
    assert files == PackedPaths.of(list(paths)) and hash(files) == hash(PackedPaths.of(paths))


def test_groups_keep_their_order(monkeypatch):
    monkeypatch.setattr(packed, "PACKED_AT_ONCE", 7)
    groups = PackedGroups(lambda number: number % 3)
    for number in range(100):
        groups.add(number)
    assert len(groups) == 100
    assert list(groups.groups()) == [list(range(first, 100, 3)) for first in range(3)]


def test_a_slice_takes_little_memory_while_it_is_searched_and_afterwards(tmp_path):
    """An archive of 100,000 scans has tens of millions of slices; a kilobyte for each was 30 GB."""
    write_slices(tmp_path, np.zeros((1, 2, 2), np.int16), [0])
    (file,) = tmp_path.iterdir()
    header, count = read_slice(file), 40 * 300

    def found(number: int) -> FoundSlice:
        series, index = divmod(number, 300)
        path = tmp_path / f"PAT{series:07d}" / "CT_thorax" / f"IM-0001-{index:04d}.dcm"
        slice_ = replace(header, series_uid=f"1.2.840.{series:030d}", position=f"-180.5\\-200.25\\{index * 1.25:.4f}")
        return FoundSlice(path, slice_, slice_.place_mm)

    tracemalloc.start()
    try:
        groups = PackedGroups(lambda each: each.key)
        for number in range(count):
            groups.add(found(number))
        scans, _ = series_scans(tmp_path, groups)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(scan.files) for scan in scans] == [300] * 40
    assert kept < 50 * count, kept / count
    assert peak < 100 * count + 1500 * packed.PACKED_AT_ONCE, peak
