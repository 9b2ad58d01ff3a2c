"""What NIfTI files state of themselves: which of them are read, and the sentence that the others get."""

import bz2
import gzip
import re
import struct
from collections import Counter

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from one_scan import read_only, refusal
from scipy.spatial.transform import Rotation

from pretraining.ct.find_scans import find_scans

ONE_MM = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def values(make_body):
    return sitk.GetArrayFromImage(make_body())


def with_codes(path, values, sform=ONE_MM, sform_code=1, qform=ONE_MM, qform_code=1):
    image = nibabel.Nifti1Image(values.T, None)
    image.header.set_sform(sform, sform_code)
    image.header.set_qform(qform, qform_code)
    image.header.set_zooms((1, 1, 1))
    image.to_filename(path)


def turned(degrees):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    return affine @ ONE_MM


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2"])
def test_versions_and_compressions_read_alike(tmp_path, values, kind, name):
    kind(values.T, ONE_MM).to_filename(tmp_path / name)
    image = read_only(tmp_path)
    np.testing.assert_array_equal(image.values, values)
    np.testing.assert_allclose(image.direction, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
@pytest.mark.parametrize(
    ("header", "voxels"),
    [
        *[("a.hdr", "a.img"), ("a.hdr.gz", "a.img.gz"), ("a.hdr.bz2", "a.img.bz2"), ("A.HDR.GZ", "A.IMG.GZ")],
        *[("a.hdr", "a.img.gz"), ("a.hdr.gz", "a.img")],  # as the NIfTI library's own tools find them
    ],
)
def test_a_header_with_voxels_beside_it(tmp_path, values, kind, header, voxels):
    kind(values.T, ONE_MM).to_filename(tmp_path / "plain.hdr")
    for plain, name in (("plain.hdr", header), ("plain.img", voxels)):
        packer = {".gz": gzip.compress, ".bz2": bz2.compress}.get((tmp_path / name.lower()).suffix, bytes)
        (tmp_path / name).write_bytes(packer((tmp_path / plain).read_bytes()))
        (tmp_path / plain).unlink()
    passed_over = Counter()
    scans, _ = find_scans(tmp_path, tmp_path / "store", passed_over)
    assert [file.name for file in scans[0].files] == [header, voxels] and not passed_over
    assert scans[0].volume_id.lower() == "a"
    np.testing.assert_array_equal(read_only(tmp_path).values, values)
    (tmp_path / voxels).write_bytes((tmp_path / voxels).read_bytes()[:-1])
    assert "truncated" in refusal(tmp_path)
    (tmp_path / voxels).unlink()
    assert re.search(r"without a\.img", refusal(tmp_path), re.IGNORECASE)


def test_analyze_has_no_orientation(tmp_path, values):
    nibabel.AnalyzeImage(values.T, None).to_filename(tmp_path / "a.img")
    assert "Analyze" in refusal(tmp_path)


def test_zstandard_is_named(tmp_path):
    (tmp_path / "a.nii.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    assert "unpack it (zstd -d)" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 100, -20])
def test_a_truncated_bzip2_file(tmp_path, values, kept):
    nibabel.Nifti1Image(values.T, ONE_MM).to_filename(tmp_path / "a.nii")
    packed = bz2.compress((tmp_path / "a.nii").read_bytes())
    (tmp_path / "a.nii").unlink()
    (tmp_path / "a.nii.bz2").write_bytes(packed[:kept])
    assert "truncated" in refusal(tmp_path)


def test_without_codes_no_orientation_is_known(tmp_path, values):
    with_codes(tmp_path / "a.nii", values, sform_code=0, qform_code=0)
    assert "states no orientation (the codes of sform and qform are 0)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("codes", "counts"),
    [((1, 1), "sform"), ((2, 0), "sform"), ((4, 0), "sform"), ((0, 1), "qform"), ((0, 2), "qform")],
)
def test_the_affine_that_counts(tmp_path, values, codes, counts):
    """The sform where its code is set, else the qform; the other one is turned by 10 degrees."""
    turns = {"sform": turned(0 if counts == "sform" else 10), "qform": turned(10 if counts == "sform" else 0)}
    with_codes(tmp_path / "a.nii", values, turns["sform"], codes[0], turns["qform"], codes[1])
    np.testing.assert_allclose(read_only(tmp_path).direction, np.eye(3), atol=1e-6)


@pytest.mark.parametrize("qform", [np.diag([1.0, -1.0, 1.0, 1.0]), np.diag([-1.0, 1.0, 1.0, 1.0]), turned(90)])
def test_orientations_that_contradict_each_other(tmp_path, values, qform):
    with_codes(tmp_path / "a.nii", values, qform=qform)
    assert "two orientations that contradict each other" in refusal(tmp_path)


def test_a_quaternion_that_rounding_made_too_long(tmp_path, values):
    with_codes(tmp_path / "a.nii", values, sform_code=0, qform=np.diag([1.0, -1.0, -1.0, 1.0]))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[256:260] = struct.pack("<f", 1.0001)  # of b; the rotation is by 180 degrees about x
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_allclose(read_only(tmp_path).direction, np.diag([-1.0, 1.0, -1.0]), atol=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e300])
def test_a_quaternion_that_is_no_number(tmp_path, values, number):
    image = nibabel.Nifti2Image(values.T, None)
    image.header.set_qform(ONE_MM, 1)
    image.header["quatern_b"] = number
    image.to_filename(tmp_path / "a.nii")
    assert "damaged" in refusal(tmp_path)
