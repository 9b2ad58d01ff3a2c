"""The frontal radiograph: against ITK's ray caster on real scans, and against the geometry of a point."""

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.ct.radiograph import ConstantRadiographError, frontal_radiograph


def on_reference_grid(path, source_in_front):
    """A scan on the grid of the reference: 1 mm, linear, stored orientation, first voxel kept; source at low y."""
    image = sitk.ReadImage(str(path))
    size = [round(edge * spacing) for edge, spacing in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    image = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), (1, 1, 1), image.GetDirection(), -1024.0,
        sitk.sitkFloat32,
    )  # fmt: skip
    volume = np.clip(sitk.GetArrayFromImage(image), -1024, 1024)
    to_the_back = image.GetDirection()[4] > 0
    return volume if to_the_back == source_in_front else volume[:, ::-1]


@pytest.mark.parametrize(
    ("name", "scan", "source_in_front"), [("ricord", "chest_2mm", False), ("abdomen", "abdomen_3mm", True)]
)
def test_reference_radiograph(reference_dir, ct_dir, name, scan, source_in_front):
    with np.load(reference_dir / "frontal_drr_reference.npz") as reference:
        expected = reference[name]
    result = frontal_radiograph(on_reference_grid(ct_dir / f"{scan}.nii.gz", source_in_front))
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    assert (result.min(), result.max()) == (-1, 1)
    correlation = max(np.corrcoef(picture.ravel(), expected.ravel())[0, 1] for picture in (result, result[:, ::-1]))
    assert correlation > 0.9985  # 0.995 is asked for; a parallel sum reaches 0.97


@pytest.mark.parametrize("y", [4, 60, 115])
@pytest.mark.parametrize(("focal_distance_mm", "tolerance"), [(500.0, 0.25), (10_000.0, 0.1)])
def test_point_is_projected_with_its_own_magnification(y, focal_distance_mm, tolerance):
    slices, height, width = 61, 121, 141
    volume = np.full((slices, height, width), -1024, np.int16)
    z, x = 48, 33
    volume[z - 1 : z + 2, y, x - 1 : x + 2] = 1024
    picture = frontal_radiograph(volume, focal_distance_mm=focal_distance_mm) + 1
    rows, columns = np.indices(picture.shape)
    centre = (rows * picture).sum() / picture.sum(), (columns * picture).sum() / picture.sum()
    magnification = (focal_distance_mm + slices) / (focal_distance_mm + y - (height - 1) / 2)
    expected = (
        (slices - 1) / 2 - (z - (slices - 1) / 2) * magnification,  # head up: high z, low row
        (width - 1) / 2 + (x - (width - 1) / 2) * magnification,
    )
    np.testing.assert_allclose(centre, expected, atol=tolerance)


def test_head_is_up_and_the_patients_right_at_the_left(make_body):
    body = sitk.GetArrayFromImage(make_body((60, 60, 60)))
    body[50:, 20:40, 10:15] = 1024  # high up, on the patient's right
    picture = frontal_radiograph(body)
    assert picture[:8, 10:15].mean() > picture[:8, -15:-10].mean() + 0.5
    assert picture[:8, 10:15].mean() > picture[-8:, 10:15].mean() + 0.5


def test_air_alone_has_no_radiograph():
    with pytest.raises(ConstantRadiographError):
        frontal_radiograph(np.full((24, 30, 30), -1024, np.int16))


def test_the_spacing_is_the_unit_of_the_rays(make_body):
    body = sitk.GetArrayFromImage(make_body((40, 60, 50)))
    np.testing.assert_array_equal(
        frontal_radiograph(body, spacing_mm=4.0, focal_distance_mm=2_000.0),
        frontal_radiograph(body, focal_distance_mm=500.0),
    )
    assert (
        np.abs(frontal_radiograph(body, spacing_mm=4.0, focal_distance_mm=500.0) - frontal_radiograph(body)).max() > 0.1
    )
