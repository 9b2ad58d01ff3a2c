"""DICOM series: several in a folder, files without suffix, what is no slice, and series that are not whole."""

import hashlib
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from pretraining.ct.find_scans import find_scans
from pretraining.ct.geometry import to_canonical
from pretraining.ct.read_ct import read_ct
from pretraining.ct.scan import UnusableScanError

PATIENT = "DOE^JANE"


def write_series(folder, body, uid="1.2.3.4", suffix=".dcm", direction=1, modality="CT", shear_mm=0.0, **header):
    """Write each slice of a volume as a DICOM file, headward (direction 1) or footward."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    count = body.GetDepth()
    for index in range(count):
        piece = body[:, :, index : index + 1]
        where = body.TransformIndexToPhysicalPoint((0, 0, index))
        tags = {
            "0008|0060": modality,
            "0010|0010": PATIENT,
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0052": "1.2.3.9",
            "0008|0018": f"{uid}.{index + 1}",
            "0020|0013": str(index),
            "0020|0032": f"{where[0]}\\{where[1] + shear_mm * index}\\{where[2]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
            **header,
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        number = index if direction > 0 else count - index
        writer.SetFileName(str(folder / f"{uid[-3:]}_{number:03d}{suffix}"))
        writer.Execute(piece)


def scans_of(folder):
    return find_scans(folder, folder / "store")


@pytest.mark.parametrize("direction", [1, -1])
def test_series_is_read_in_order_and_in_hu(tmp_path, make_body, direction):
    body = make_body(spacing_xyz_mm=(0.75, 0.75, 2.5))
    write_series(tmp_path / "patient", body, direction=direction)
    ((scan,), unusable) = scans_of(tmp_path)
    image = read_ct(scan)
    volume, spacing = to_canonical(image.values, image.spacing_xyz_mm, image.direction)
    np.testing.assert_array_equal(volume, sitk.GetArrayFromImage(body))
    assert spacing == (2.5, 0.75, 0.75)
    assert not unusable


def test_several_series_without_suffix_beside_other_files(tmp_path, make_body):
    write_series(tmp_path / "study", make_body(seed=1), "1.2.3.101", suffix="")
    write_series(tmp_path / "study", make_body((26, 36, 44), seed=2), "1.2.3.102", suffix="")
    sitk.WriteImage(make_body(), str(tmp_path / "study" / "also.nii.gz"))
    (tmp_path / "study" / "notes.txt").write_text("nothing to see")
    (tmp_path / "study" / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(300))
    plan = b"\x02\x00\x02\x00UI\x1e\x001.2.840.10008.5.1.4.1.1.481.3\x00"
    (tmp_path / "study" / "structures").write_bytes(bytes(128) + b"DICM" + plan + bytes(300))
    scans, unusable = scans_of(tmp_path)
    assert not unusable
    assert sorted(len(scan.files) for scan in scans) == [1, 26, 30]
    assert sorted(read_ct(scan).values.shape[0] for scan in scans) == [26, 30, 30]
    assert len({scan.volume_id for scan in scans}) == 3
    before = {scan.volume_id for scan in scans}
    write_series(tmp_path / "study", make_body(seed=3), "1.2.3.100", suffix="")
    assert before < {scan.volume_id for scan in scans_of(tmp_path)[0]}  # names do not depend on what else is there


def by_gdcm(folder):
    """The names and the files, in their order, of the series in a folder that holds nothing else, as GDCM has them."""
    reader = sitk.ImageSeriesReader
    return {
        f"series-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}": reader.GetGDCMSeriesFileNames(
            str(folder), identifier, True
        )
        for identifier in reader.GetGDCMSeriesIDs(str(folder), True)
    }


HEADERS = [
    {}, {"0020|0011": "77"}, {"0018|0024": "seq *x"}, {"0018|0050": "2.50"}, {"0020|0011": "3", "0018|0050": "1e-1"},
    {"0020|0037": "-1\\0\\0\\0\\1\\0"}, {"0020|0037": "1\\0\\0\\0\\0.8\\-0.6"}, {"0020|0013": "1"},
]  # fmt: skip


def test_series_are_called_and_ordered_as_by_gdcm(tmp_path, make_body):
    """Stores have volumes with these names, and checksums of the slices in this order."""
    for index, header in enumerate(HEADERS):
        body = make_body((3 + index % 2, 8, 9), (1, 1, 2.5))
        write_series(tmp_path, body, f"1.2.3.{200 + index}", direction=(-1) ** index, **header)
    scans, unusable = scans_of(tmp_path)
    found = {scan.name: tuple(map(str, scan.files)) for scan in scans}
    assert not unusable and len(found) == len(HEADERS)
    assert found == by_gdcm(tmp_path)


def test_slices_of_another_size_are_a_volume_of_their_own(tmp_path, make_body):
    write_series(tmp_path, make_body())
    expected, _ = scans_of(tmp_path)
    write_series(tmp_path, make_body((2, 60, 60)), suffix=".localizer")
    scans, unusable = scans_of(tmp_path)
    assert not unusable and sorted(len(scan.files) for scan in scans) == [2, 30]
    assert expected[0] in scans


def link_to(target):
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize("make", [os.mkfifo, link_to("nowhere"), link_to("/dev/zero"), link_to("neighbour")])
@pytest.mark.parametrize("name", ["neighbour", "neighbour.dcm"])
def test_a_series_beside_what_is_no_file_is_whole(tmp_path, make_body, make, name):
    """GDCM, given the folder, opens whatever lies there, and loses slices over it."""
    write_series(tmp_path, make_body())
    expected, _ = scans_of(tmp_path)
    make(tmp_path / name)
    scans, unusable = scans_of(tmp_path)
    assert scans == expected and len(scans[0].files) == 30
    assert list(unusable) == [name] * name.endswith(".dcm")


@pytest.mark.parametrize("which", [(12,), range(30)])
def test_an_impossible_header_costs_its_file_alone(tmp_path, make_body, which):
    write_series(tmp_path / "good", make_body())
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    files = sorted((tmp_path / "bad").iterdir())
    for index in which:
        content = files[index].read_bytes()
        assert content.count(b"\x28\x00\x02\x00\x02\x00\x00\x00\x01\x00") == 1
        files[index].write_bytes(
            content.replace(b"\x28\x00\x02\x00\x02\x00\x00\x00\x01", b"\x28\x00\x02\x00\x02\0\0\0\xff")
        )
    scans, unusable = scans_of(tmp_path)
    assert set(unusable) == {f"bad/{files[index].name}" for index in which}
    assert [len(scan.files) for scan in scans if scan.name.startswith("good/")] == [30]
    for scan in scans:
        if scan.name.startswith("bad/"):
            with pytest.raises(UnusableScanError, match="slices are missing"):
                read_ct(scan)


def test_names_tell_nothing_of_the_patient(tmp_path, make_body):
    write_series(tmp_path, make_body())
    ((scan,), _) = scans_of(tmp_path)
    assert "DOE" not in scan.volume_id + scan.name
    assert "1.2.3" not in scan.volume_id + scan.name


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files: files[9].unlink(), "5 mm between slices 9 and 10: slices are missing"),
        (lambda files: files[3].with_name("twin.dcm").write_bytes(files[3].read_bytes()[:-1] + b"x"), "there twice"),
    ],
)
def test_series_that_is_not_whole(tmp_path, make_body, spoil, reason):
    write_series(tmp_path, make_body(spacing_xyz_mm=(1, 1, 2.5)))
    spoil(sorted(tmp_path.iterdir()))
    ((scan,), _) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match=reason):
        read_ct(scan)


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("spacing_xyz_mm", [(1, 1, 1), (0.75, 0.625, 2.5), (0.7, 0.7, 0.8)])
@pytest.mark.parametrize("orientation", ["1\\0\\0\\0\\1\\0", "0\\1\\0\\-1\\0\\0", "-1\\0\\0\\0\\-1\\0"])
def test_a_series_is_what_itk_reads(tmp_path, make_body, is_compressed, spacing_xyz_mm, orientation):
    write_series(tmp_path, make_body(spacing_xyz_mm=spacing_xyz_mm), **{"0020|0037": orientation})
    if is_compressed:
        for path in tmp_path.iterdir():
            header = dcmread(path)
            header.compress(RLELossless, generate_instance_uid=False)
            header.save_as(path)
    ((scan,), _) = scans_of(tmp_path)
    image, by_itk = read_ct(scan), sitk.ReadImage([str(file) for file in scan.files])
    np.testing.assert_array_equal(image.values, sitk.GetArrayFromImage(by_itk))
    np.testing.assert_allclose(image.spacing_xyz_mm, by_itk.GetSpacing(), rtol=1e-12)
    np.testing.assert_allclose(image.direction, np.reshape(by_itk.GetDirection(), (3, 3)), atol=1e-12)


@pytest.mark.parametrize("kept", [300, -1000, -1])
def test_truncated_slice_is_named(tmp_path, make_body, kept):
    write_series(tmp_path, make_body())
    last = sorted(tmp_path.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:kept])
    scans, unusable = scans_of(tmp_path)
    assert list(unusable) == [last.name]
    assert len(scans) == 1


ITEM = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"  # the first of a sequence, without a length


def read_and_save(path, transfer_syntax=ExplicitVRLittleEndian, compressed=None, **changes):
    """Write a slice of `write_series` again, by pydicom; returns its bytes up to the header, and from there on."""
    header = dcmread(path)
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    if compressed is not None:
        header.PixelData = encapsulate([compressed])
    header.file_meta.TransferSyntaxUID = transfer_syntax
    header.save_as(path, implicit_vr=False, little_endian=True)
    start, mark, rest = path.read_bytes().partition(b"\x08\x00\x60\x00CS")
    return start, mark + rest


@pytest.mark.parametrize(
    "insert",
    [
        (b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + ITEM) * 100_000,  # sequences in sequences; GDCM crashes
        b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + ITEM + b"\x08\x00\x50\x11OB\0\0\xf0\xff\xff\xff",
        b"\x08\x00\x41\x00OB\0\0\xff\xff\xff\xff",
        b"\x08\x00\x05\x00UN\0\0\xf0\xff\xff\xff",
    ],
)
def test_a_header_that_announces_what_is_not_there(tmp_path, make_body, insert):
    write_series(tmp_path, make_body())
    path = sorted(tmp_path.iterdir())[-1]
    start, rest = read_and_save(path)
    path.write_bytes(start + insert + rest)
    tracemalloc.start()
    scans, unusable = scans_of(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(unusable) == [path.name] and "truncated or damaged" in unusable[path.name]
    assert [len(scan.files) for scan in scans] == [29]
    assert peak < 100 * 2**20


def test_a_deflated_file_is_refused_in_words(tmp_path, make_body):
    """It can unpack to any size."""
    write_series(tmp_path, make_body())
    path = sorted(tmp_path.iterdir())[-1]
    read_and_save(path, DeflatedExplicitVRLittleEndian)
    scans, unusable = scans_of(tmp_path)
    assert list(unusable) == [path.name] and "is a deflated DICOM file" in unusable[path.name]
    assert [len(scan.files) for scan in scans] == [29]


@pytest.mark.parametrize("kept", [None, -8, -500])
def test_compressed_voxels_without_an_end_cost_their_file_alone(tmp_path, make_body, kept):
    write_series(tmp_path, make_body())
    path = sorted(tmp_path.iterdir())[-1]
    read_and_save(path, RLELossless, bytes(1000))
    path.write_bytes(path.read_bytes()[:kept])
    scans, unusable = scans_of(tmp_path)
    assert [len(scan.files) for scan in scans] == [30 if kept is None else 29]
    assert list(unusable) == ([] if kept is None else [path.name])


@pytest.mark.filterwarnings("ignore:Unknown encoding")  # where the test writes it
@pytest.mark.parametrize(
    "header",
    [
        {"SpecificCharacterSet": "any old set"},
        {"ImagePositionPatient": ["0.000000000000000000", "0.00000000000000001", "12.0000000000000000001"]},
    ],
)
def test_values_outside_the_standard_that_do_no_harm(tmp_path, make_body, header):
    body = make_body()
    write_series(tmp_path, body)
    with disable_value_validation():
        read_and_save(sorted(tmp_path.iterdir())[12], **header)
    ((scan,), unusable) = scans_of(tmp_path)
    assert not unusable
    np.testing.assert_array_equal(read_ct(scan).values, sitk.GetArrayFromImage(body))


@pytest.mark.parametrize("modality", ["CT", "OT", ""])
def test_modalities_that_are_taken(tmp_path, make_body, modality):
    body = make_body()
    write_series(tmp_path, body)
    for path in tmp_path.iterdir():
        read_and_save(path, Modality=modality)
    ((scan,), _) = scans_of(tmp_path)
    np.testing.assert_array_equal(read_ct(scan).values, sitk.GetArrayFromImage(body))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"1\\1 ", b"1\\3 ", "differ in pixel spacing"),
        (b"1\\1 ", b"0\\1 ", "differ in pixel spacing"),
        (b"1\\1 ", b"nan ", "cannot be read|differ in pixel spacing"),
        (b"1\\0\\0\\0\\1\\0", b"0\\0\\1\\0\\1\\0", "differ in orientation"),
        (b"0\\0\\%d", b"0\\0\\9e9"[:5], "missing or there twice|shifted|differ"),
        (b"0\\0\\%d", b"0\\9\\%d", "shifted|missing|differ"),
        (b"0\\0\\%d", b"x\\y\\%d", "cannot be read"),
    ],
)
@pytest.mark.parametrize("where", [0, 12, 29])
def test_one_slice_with_another_geometry(tmp_path, make_body, old, new, reason, where):
    write_series(tmp_path, make_body())
    path = sorted(tmp_path.iterdir())[where]
    old, new = (text % where if b"%" in text else text for text in (old, new))
    assert path.read_bytes().count(old) >= 1
    path.write_bytes(path.read_bytes().replace(old, new.ljust(len(old))[: len(old)]))
    scans, unusable = scans_of(tmp_path)
    assert len(scans) == 1 and not unusable
    with pytest.raises(UnusableScanError, match=reason):
        read_ct(scans[0])


def test_all_slices_in_one_place(tmp_path, make_body):
    write_series(tmp_path, make_body(), **{"0020|0032": "0\\0\\5"})
    ((scan,), _) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match="missing or there twice"):
        read_ct(scan)


@pytest.mark.parametrize(
    ("modality", "shear_mm", "reason"), [("MR", 0, "modality MR"), ("CT", 1, "45 degrees from the line")]
)
def test_series_that_is_no_ct_of_a_gantry(tmp_path, make_body, modality, shear_mm, reason):
    write_series(tmp_path, make_body(), modality=modality, shear_mm=shear_mm)
    ((scan,), _) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match=reason):
        read_ct(scan)
