"""What counts as a scan in a folder, and its name in the store."""

from collections import Counter

import numpy as np
import pytest
from dicom_files import plain_header, slice_header, write_slices
from hypothesis import given
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pretraining.ct.find_scans import find_scans, passed_over_text
from pretraining.ct.read_ct import read_ct
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


SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize("has_meta", [False, True])
def test_dicom_without_preamble_and_suffix(tmp_path, make_body, syntax, has_meta):
    hu = np.arange(24 * 8 * 9).reshape(24, 8, 9) - 1000
    for index, plane in enumerate(hu):
        dataset = slice_header((plane + 1024).astype("<u2" if syntax.is_little_endian else ">u2"), index)
        dataset.file_meta.TransferSyntaxUID = syntax
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
        dataset._pixel_array = None
        if has_meta:
            write_file_meta_info(buffer, dataset.file_meta, enforce_standard=True)
        write_dataset(buffer, dataset)
        (tmp_path / f"IM{index}").write_bytes(buffer.getvalue())
    (scan,), unusable = find_scans(tmp_path, tmp_path / "store")
    assert not unusable
    np.testing.assert_array_equal(read_ct(scan).values, hu)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08", bytes(200), b"\x08\0\x05\0" + bytes(300), b"\x08\0\x05\0\x0a\0\0\0" + bytes(300), b"\x02\0" * 99,
     b"\0\x08\0\x05CS\0\x04" + bytes(300), b"\x08\0\x05\0CS\xff\xff" + bytes(300), np.arange(8, 999).tobytes()],
)  # fmt: skip
def test_what_begins_with_an_eight_is_not_dicom_for_that(tmp_path, content):
    (tmp_path / "data").write_bytes(content)
    passed_over = Counter()
    assert find_scans(tmp_path, tmp_path / "store", passed_over) == ([], {})
    assert passed_over == {"without suffix (not DICOM)": 1}


def test_what_is_passed_over_is_counted_by_kind(tmp_path):
    write_slices(tmp_path / "series", np.full((3, 4, 4), 1000, "u2"), range(3))
    write_slices(tmp_path / "copy", np.full((3, 4, 4), 1000, "u2"), range(3))
    for name, sop_class in (("report", "1.2.840.10008.5.1.4.1.1.88.11"), ("plan.dcm", "1.2.840.10008.5.1.4.1.1.481.5")):
        plain_header(np.zeros((1, 1), "u2"), sop_class).save_as(tmp_path / name, enforce_file_format=True)
    touch(tmp_path, "a.txt", "b/a.TXT", "c.json", "DICOMDIR", "README", "scan.DOE^JANE", "1.2.840", ".hidden.txt")
    touch(tmp_path, "v.mhd", "v.raw", "lonely.raw")
    (tmp_path / "v.mhd").write_text("ElementDataFile = v.raw\n")
    passed_over = Counter()
    scans, unusable = find_scans(tmp_path, tmp_path / "store", passed_over)
    assert [scan.name for scan in scans] == ["copy/series-" + scans[0].name[-8:], "v.mhd"] and not unusable
    assert passed_over_text(passed_over) == (
        "10 files are no CT: 3 without suffix (not DICOM), 2 .txt, 2 DICOM without slices, 1 DICOMDIR, 1 .json, "
        "1 .raw; copies of DICOM slices: 3"
    )
    assert passed_over_text(passed_over, by_kind=False) == "10 files are no CT; copies of DICOM slices: 3"


DETACHED = [
    ("a.nhdr", "data file: voxels/b.raw.gz", ["voxels/b.raw.gz"]),
    ("a.nhdr", "datafile: ./b.raw", ["b.raw"]),
    ("a.nhdr", "data file: b%02d.raw 1 3 1", ["b01.raw", "b02.raw", "b03.raw"]),
    ("a.nrrd", "data file: LIST\nb.raw\nc.raw", ["b.raw", "c.raw"]),
    ("a.mhd", "ElementDataFile = 100% b.zraw", ["100% b.zraw"]),
    ("a.mhd", "ElementDataFile = b%d.raw 2 4 2", ["b2.raw", "b4.raw"]),
    ("a.mhd", "ElementDataFile = LIST\nb.raw\nc.raw", ["b.raw", "c.raw"]),
]


@pytest.mark.parametrize(("name", "line", "voxels"), DETACHED)
def test_voxels_beside_their_header_are_part_of_the_scan(tmp_path, name, line, voxels):
    touch(tmp_path, *voxels, "lonely.raw.gz")
    (tmp_path / name).write_text(f"{line}\n")
    passed_over = Counter()
    ((scan,), _) = find_scans(tmp_path, tmp_path / "store", passed_over)
    assert scan.files == tuple(tmp_path / file for file in (name, *voxels))
    assert passed_over == {".gz": 1}


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_volume_ids_are_safe_file_names(parts):
    name = volume_id("/".join(parts))
    assert name == name.strip("/\\") and "/" not in name and "\0" not in name and not name.startswith(".")
    assert 1 <= len(name) <= MAX_ID_LENGTH + 9


def test_volume_ids_keep_what_tells_scans_apart():
    assert volume_id("patients/scan 1") == "patients__scan_1"
    assert volume_id("肺/左") == "肺__左"
    assert volume_id("x" * 300) != volume_id("y" + "x" * 300)
