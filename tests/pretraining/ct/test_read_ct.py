"""Reading scans of every format, and the sentence that each unusable one gets."""

import re
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from one_scan import read_only, refusal

from pretraining.ct.checks import check_extent, check_grid
from pretraining.ct.scan import UnusableScanError


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_formats_read_alike(tmp_path, make_body, name):
    body = sitk.DICOMOrient(make_body(spacing_xyz_mm=(0.75, 1.5, 2.0)), "LIP")
    sitk.WriteImage(body, str(tmp_path / name.lower()), useCompression=name != "a.nii")
    (tmp_path / name.lower()).rename(tmp_path / name)
    image = read_only(tmp_path)
    np.testing.assert_array_equal(image.values, sitk.GetArrayFromImage(body))
    assert image.spacing_xyz_mm == body.GetSpacing()
    np.testing.assert_allclose(image.direction.ravel(), body.GetDirection(), atol=1e-6)


@pytest.mark.parametrize("pixel_type", [sitk.sitkInt8, sitk.sitkInt32, sitk.sitkFloat32, sitk.sitkFloat64])
def test_nifti_number_types(tmp_path, make_body, pixel_type):
    body = sitk.Cast(sitk.Clamp(make_body(), sitk.sitkInt16, -1000, 127), sitk.sitkFloat32)
    if pixel_type == sitk.sitkInt8:
        body = sitk.Clamp(body / 8, sitk.sitkFloat32, -128, 127)
    body = sitk.Cast(body, pixel_type)
    sitk.WriteImage(body, str(tmp_path / "a.nii.gz"))
    if pixel_type == sitk.sitkInt8:  # read through a slope of 8
        path = tmp_path / "a.nii"
        sitk.WriteImage(body, str(path))
        (tmp_path / "a.nii.gz").unlink()
        patch(path, 112, struct.pack("<ff", 8, 0))
        body = sitk.Cast(body, sitk.sitkFloat32) * 8
    np.testing.assert_array_equal(read_only(tmp_path).values, sitk.GetArrayFromImage(body))


def test_big_endian_nifti(tmp_path, make_body):
    values = sitk.GetArrayFromImage(make_body())
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.Nifti1Image(values.T, np.diag([-1, -1, 1, 1]), header).to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_only(tmp_path).values, values)


def patch(path, offset, content):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, -20])
def test_truncated_file(tmp_path, make_body, name, kept):
    path = tmp_path / name
    sitk.WriteImage(make_body(), str(path), useCompression=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert "truncated" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "packed"), [
    ("a.nii.gz", "a.nii.gz"), ("a.nrrd", "a.nrrd"), ("a.nhdr", "a.raw.gz"), ("a.mha", "a.mha"), ("a.mhd", "a.zraw"),
])  # fmt: skip
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99, 0.9999])
def test_a_bit_flipped_in_compressed_voxels(tmp_path, make_body, name, packed, part):
    """ITK gives what it has unpacked of MetaImage, and compares no checksum of NRRD."""
    sitk.WriteImage(make_body(), str(tmp_path / name), useCompression=True)
    content = (tmp_path / packed).read_bytes()
    place = int(part * len(content))
    patch(tmp_path / packed, place, bytes([content[place] ^ 16]))
    assert "truncated, damaged" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "voxels"), [("a.nhdr", "a.raw.gz"), ("a.mhd", "a.zraw")])
def test_voxels_in_another_folder_and_none_at_all(tmp_path, make_body, name, voxels):
    sitk.WriteImage(make_body(), str(tmp_path / name), useCompression=True)
    (tmp_path / "voxels").mkdir()
    (tmp_path / voxels).rename(tmp_path / "voxels" / voxels)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace(voxels, f"voxels/{voxels}"))
    np.testing.assert_array_equal(read_only(tmp_path).values, sitk.GetArrayFromImage(make_body()))
    (tmp_path / "voxels" / voxels).unlink()
    assert f"is a header without {voxels}, the file of its voxels" in refusal(tmp_path)


@pytest.mark.parametrize("line", [b"CompressedDataSize = 1\n", b""])
def test_a_metaimage_file_that_does_not_say_how_long_its_voxels_are(tmp_path, make_body, line):
    path = tmp_path / "a.mha"
    sitk.WriteImage(make_body(), str(path), useCompression=True)
    path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", line, path.read_bytes()))
    assert "truncated, damaged" in refusal(tmp_path)


@pytest.mark.parametrize("offset", [0.0, 100.0, -352.0, 1e12, np.inf, np.nan])
def test_nifti_whose_voxels_begin_nowhere(tmp_path, make_body, offset):
    path = tmp_path / "a.nii"
    sitk.WriteImage(make_body(), str(path))
    patch(path, 108, struct.pack("<f", offset))
    assert "damaged" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_number(tmp_path, make_body, name, value):
    body = sitk.Cast(make_body(), sitk.sitkFloat32)
    body[3, 4, 5] = value
    sitk.WriteImage(body, str(tmp_path / name))
    assert "1 voxels that are NaN or infinite" in refusal(tmp_path)


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, 0.001, 1000.0])
def test_absurd_spacing_nifti(tmp_path, make_body, spacing):
    path = tmp_path / "a.nii"
    sitk.WriteImage(make_body(), str(path))
    patch(path, 80, struct.pack("<f", spacing))
    patch(path, 252, struct.pack("<hh", 0, 0))  # neither qform nor sform
    assert f"spacing of {spacing:g} x 1 x 1 mm" in refusal(tmp_path)


@pytest.mark.parametrize("spacing", ["0", "-1", "1000"])
def test_absurd_spacing_metaimage(tmp_path, make_body, spacing):
    path = tmp_path / "a.mha"
    sitk.WriteImage(make_body(), str(path))
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", f"ElementSpacing = {spacing} 1 1".encode()))
    assert f"spacing of {spacing} x 1 x 1 mm" in refusal(tmp_path)


def test_nifti_spacings_that_contradict_each_other(tmp_path, make_body):
    path = tmp_path / "a.nii"
    sitk.WriteImage(make_body(), str(path))
    patch(path, 80, struct.pack("<f", 2.0))
    assert "2 x 1 x 1 mm (pixdim) and as 1 x 1 x 1 mm (sform)" in refusal(tmp_path)


def test_absurd_size_is_refused_before_it_is_read(tmp_path, make_body):
    path = tmp_path / "a.nii"
    sitk.WriteImage(make_body(), str(path))
    patch(path, 42, struct.pack("<hhh", 30000, 30000, 30000))
    assert "claims 30000 x 30000 x 30000 voxels" in refusal(tmp_path)


def test_whole_body_scan_is_not_absurd():
    check_grid((512, 512, 2000), (0.98, 0.98, 1.0))
    check_extent((1900, 500, 500), 1.0)


@pytest.mark.parametrize("shape", [(23, 300, 300), (100, 23, 300), (100, 300, 23)])
def test_too_small(shape):
    with pytest.raises(UnusableScanError, match="24 mm"):
        check_extent(shape, 1.0)
    check_extent(tuple(max(24, edge) for edge in shape), 1.0)


def test_sizes_are_told_in_mm_whatever_the_spacing():
    with pytest.raises(UnusableScanError, match=r"covers 92 mm .* a sub-volume needs 96 mm"):
        check_extent((23, 50, 50), 4.0)
    with pytest.raises(UnusableScanError, match=r"would have 1001 x 1000 x 1000 voxels at 0\.5 mm"):
        check_extent((1001, 1000, 1000), 0.5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: sitk.JoinSeries([body, body]), "has 4 dimensions"),
        (lambda body: body[:, :, 9], "has 2 dimensions"),
        (lambda body: sitk.Compose([body] * 3), "has 3 values per voxel"),
        (lambda body: body * 0 - 1024, "same value -1024"),
        (lambda body: sitk.Cast(body > 0, sitk.sitkUInt8), "from 0 to 1 and no air"),
        (lambda body: sitk.Cast(sitk.RescaleIntensity(body, 0, 255), sitk.sitkUInt8), "labels or an 8-bit picture"),
        (lambda body: body + 1200, "rescale intercept"),
        (lambda body: body - 1900, "no soft tissue"),
        (lambda body: sitk.Clamp(body, body.GetPixelID(), -160, 240), "windowed"),
        (lambda body: sitk.Cast(body, sitk.sitkFloat32) / 1000, "normalised"),
    ],
)
def test_not_ct_in_hu(tmp_path, make_body, change, reason):
    sitk.WriteImage(change(make_body()), str(tmp_path / "a.nrrd"))
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "changed"),
    [
        ("a.mha", rb"TransformMatrix = [^\n]*\n", b""),
        ("a.nrrd", rb"space: [^\n]*\n", b"space dimension: 3\n"),
        ("a.nrrd", rb"space: [^\n]*\n", b"space: scanner-xyz\n"),
    ],
)
def test_without_an_orientation_it_is_not_known_where_the_head_is(tmp_path, make_body, name, line, changed):
    path = tmp_path / name
    sitk.WriteImage(make_body(), str(path))
    before, *_, after = re.split(line, path.read_bytes())
    path.write_bytes(before + changed + after)
    assert "states no orientation" in refusal(tmp_path)


def test_nrrd_with_spacings_alone_has_no_orientation(tmp_path, make_body):
    values = sitk.GetArrayFromImage(make_body())
    sizes = " ".join(map(str, values.shape[::-1]))
    header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nspacings: 1 1 1\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + values.astype("<i2").tobytes())
    assert "states no orientation" in refusal(tmp_path)


def test_skewed_axes(tmp_path, make_body):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(make_body(), str(path))
    path.write_bytes(path.read_bytes().replace(b"(1,0,0)", b"(1,0.4,0)"))
    assert "not at right angles" in refusal(tmp_path)


def test_text_with_the_suffix_of_an_image(tmp_path):
    (tmp_path / "a.nii.gz").write_text("not an image")
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(("slope", "offset"), [("2", "-1000"), (None, "-1024"), ("0.5", None), ("1", "0")])
def test_metaimage_that_states_the_unit_of_its_values(tmp_path, make_body, slope, offset):
    """ITK does not apply these lines."""
    hu = sitk.GetArrayFromImage(make_body()).astype(np.float32)
    stored = sitk.GetImageFromArray((hu - float(offset or 0)) / float(slope or 1))
    path = tmp_path / "a.mha"
    sitk.WriteImage(stored, str(path))
    lines = {"Slope": slope, "Offset": offset}
    text = "".join(f"ElementToIntensityFunction{name} = {word}\n" for name, word in lines.items() if word)
    path.write_bytes(path.read_bytes().replace(b"ElementType", text.encode() + b"ElementType", 1))
    np.testing.assert_allclose(read_only(tmp_path).values, hu, atol=1e-3)


@pytest.mark.parametrize("slope", ["0", "nan", "one", "1 2"])
def test_metaimage_with_an_impossible_unit(tmp_path, make_body, slope):
    path = tmp_path / "a.mha"
    sitk.WriteImage(make_body(), str(path))
    line = f"ElementToIntensityFunctionSlope = {slope}\n".encode()
    path.write_bytes(path.read_bytes().replace(b"ElementType", line + b"ElementType", 1))
    assert f"no possible slope and offset of its values ({slope})" in refusal(tmp_path)
