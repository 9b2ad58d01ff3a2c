"""DICOM series: several in a folder, files without suffix, what is no slice, and series that are not whole."""

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.data.find_scans import find_scans
from pretraining.data.geometry import to_canonical
from pretraining.data.read_ct import read_ct
from pretraining.data.scan import UnusableScanError

PATIENT = "DOE^JANE"


def write_series(folder, body, uid="1.2.3.4", suffix=".dcm", direction=1, modality="CT", shear_mm=0.0):
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


def test_names_tell_nothing_of_the_patient(tmp_path, make_body):
    write_series(tmp_path, make_body())
    ((scan,), _) = scans_of(tmp_path)
    assert "DOE" not in scan.volume_id + scan.name
    assert "1.2.3" not in scan.volume_id + scan.name


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files: files[9].unlink(), "5 mm between slices 9 and 10: slices are missing"),
        (lambda files: files[3].with_name("copy.dcm").write_bytes(files[3].read_bytes()), "missing or double"),
    ],
)
def test_series_that_is_not_whole(tmp_path, make_body, spoil, reason):
    write_series(tmp_path, make_body(spacing_xyz_mm=(1, 1, 2.5)))
    spoil(sorted(tmp_path.iterdir()))
    ((scan,), _) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match=reason):
        read_ct(scan)


def test_truncated_slice_is_named(tmp_path, make_body):
    write_series(tmp_path, make_body())
    last = sorted(tmp_path.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:300])
    scans, unusable = scans_of(tmp_path)
    assert list(unusable) == [last.name]
    assert len(scans) == 1


@pytest.mark.parametrize(("modality", "shear_mm", "reason"), [("MR", 0, "modality MR"), ("CT", 0.5, "tilted gantry")])
def test_series_that_is_no_upright_ct(tmp_path, make_body, modality, shear_mm, reason):
    write_series(tmp_path, make_body(), modality=modality, shear_mm=shear_mm)
    ((scan,), _) = scans_of(tmp_path)
    with pytest.raises(UnusableScanError, match=reason):
        read_ct(scan)
