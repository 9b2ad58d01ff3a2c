"""Scans with a tilted gantry come into the store as the patient lay on the table."""

import json
from itertools import product

import nibabel
import numpy as np
import pytest
from dicom_files import write_slices

from pretraining.ct.gantry_tilt import find_tilt
from pretraining.ct.scan import UnusableScanError
from pretraining.preprocess import main as preprocess
from pretraining.store.store import Store

SHAPE_XYZ, SPACING_XYZ_MM = (60, 70, 30), (1.3, 1.1, 2.5)


def head_hu(left_mm, back_mm, head_mm):
    """A soft phantom that no mirror or turn leaves as it is; smooth, so that a spline can follow it."""
    blobs = [((0, 0, 0), 30, 1050), ((14, 5, 8), 7, -500), ((-8, 16, -9), 9, 400), ((3, -15, 13), 6, 250)]
    hu = np.full(np.broadcast(left_mm, back_mm, head_mm).shape, -1000.0)
    for (left, back, head), width, height in blobs:
        squares = (left_mm - left) ** 2 + (back_mm - back) ** 2 + (head_mm - head) ** 2
        hu += height * np.exp(-squares / (2 * width**2))
    return hu


def tilted_axes(degrees):
    """Directions of x, y, z in the patient (left, back, head): rows are turned about x, steps stay along the table."""
    angle = np.deg2rad(degrees)
    return np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, 0, 1]]).T


def scanned(axes, shape_xyz=SHAPE_XYZ):
    """The phantom on the grid of these axes, its centre in the middle: values (x, y, z) and 3 x 4 affine (LPS)."""
    steps = axes * SPACING_XYZ_MM
    middle = (np.array(shape_xyz) - 1) / 2
    indices = np.stack(np.meshgrid(*map(np.arange, shape_xyz), indexing="ij"), -1) - middle
    values = np.rint(head_hu(*np.moveaxis(indices @ steps.T, -1, 0))).astype(np.int16)
    return values, np.column_stack([steps, -steps @ middle])


def write_nifti(path, values, affine_lps):
    """As dcm2niix writes it: the true affine as sform, and a qform, which cannot be sheared, at right angles."""
    affine = np.vstack([np.diag([-1.0, -1.0, 1.0]) @ affine_lps, [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    image.to_filename(path)


def write_dicom(folder, values, affine_lps, decimals=6):
    """Slices of the same scan, with positions that are rounded."""
    directions = affine_lps[:, :3] / SPACING_XYZ_MM
    places = [affine_lps @ [0, 0, index, 1] for index in range(values.shape[2])]
    write_slices(
        folder, (values.transpose(2, 1, 0) + 1024).astype(np.uint16), np.zeros(len(places)),
        each=lambda index: {"ImagePositionPatient": [float(number) for number in places[index].round(decimals)]},
        ImageOrientationPatient=[float(number) for number in directions[:, :2].T.ravel().round(6)],
        PixelSpacing=[SPACING_XYZ_MM[1], SPACING_XYZ_MM[0]],
    )  # fmt: skip


def only_volume(archive):
    store = archive.parent / "store"
    assert preprocess([str(archive), str(store), "-np", "1"]) == 0
    volumes = Store.open(store)
    return volumes.volume(volumes.ids[0])[:].astype(float)


def assert_is_the_phantom(volume, inside=1.0):
    """``inside``: the part of the size, from the centre, in which voxels are compared."""
    grid = [np.arange(edge) - (edge - 1) / 2 for edge in volume.shape]
    head, back, left = np.meshgrid(*grid, indexing="ij")
    near = np.all([np.abs(g) < 24 * inside for g in (head, back, left)], axis=0)
    assert np.abs(volume - head_hu(left, back, head))[near].max() < 12


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("degrees", [-28, -2, 0, 20])
def test_a_sheared_sform_is_straightened(archive, degrees):
    write_nifti(archive / "head.nii.gz", *scanned(tilted_axes(degrees)))
    volume = only_volume(archive)
    assert_is_the_phantom(volume)
    angle = np.deg2rad(abs(degrees))
    height, back = 30 * 2.5 + 69 * 1.1 * np.sin(angle), 70 * 1.1 * np.cos(angle)
    np.testing.assert_allclose(volume.shape, (height, back, 60 * 1.3), atol=0.51)


@pytest.mark.parametrize(("degrees", "decimals"), [(-20, 6), (2, 6), (0, 6), (25, 1)])
def test_a_dicom_series_is_straightened(archive, degrees, decimals):
    write_dicom(archive, *scanned(tilted_axes(degrees)), decimals)
    assert_is_the_phantom(only_volume(archive))


@pytest.mark.parametrize(("order", "flips"), list(product([(0, 1, 2), (1, 0, 2)], product([1, -1], repeat=3))))
def test_it_is_straight_however_it_is_stored(archive, order, flips):
    """Rows and columns may be exchanged, and every index may run the other way."""
    values, affine = scanned(tilted_axes(17))
    steps = [affine[:, axis] * flip for axis, flip in zip(order, flips, strict=True)]
    values = values.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
    middle = (np.array(values.shape) - 1) / 2
    write_nifti(archive / "head.nii.gz", values, np.column_stack([*steps, -np.column_stack(steps) @ middle]))
    assert_is_the_phantom(only_volume(archive))


def test_a_scan_and_its_correction_are_one_patient(archive):
    write_nifti(archive / "7_head.nii.gz", *scanned(tilted_axes(20)))
    write_nifti(archive / "7_head_Tilt_1.nii.gz", *scanned(np.eye(3)))
    write_nifti(archive / "8_head.nii.gz", *scanned(np.eye(3), (60, 64, 30)))
    write_nifti(archive / "8_head_Tilt_1.nii.gz", *scanned(np.eye(3), (60, 66, 30)))
    store = archive.parent / "store"
    assert preprocess([str(archive), str(store), "-np", "1"]) == 1
    (failed,) = json.loads((store / "failed.json").read_text())
    assert failed["file"] == "7_head.nii.gz" and "7_head_Tilt_1.nii.gz is the same scan, corrected" in failed["reason"]
    assert Store.open(store).ids == ["7_head_Tilt_1", "8_head", "8_head_Tilt_1"]


def test_a_scan_with_uneven_slices_and_its_correction_are_one_patient(archive):
    write_nifti(archive / "7.nii.gz", *scanned(np.eye(3)))
    write_nifti(archive / "7_Eq_1.nii.gz", *scanned(np.eye(3), (60, 70, 31)))
    store = archive.parent / "store"
    assert preprocess([str(archive), str(store), "-np", "1"]) == 1
    (failed,) = json.loads((store / "failed.json").read_text())
    assert failed["reason"] == "has uneven slices, and 7_Eq_1.nii.gz is the same scan, corrected; leave this one out"


@pytest.mark.parametrize("by", ["sidecar", "description"])
def test_a_tilted_file_of_dcm2niix_is_refused(archive, by):
    """It states the distance between the planes of slices as if it were along the table."""
    values, affine = scanned(tilted_axes(20))
    write_nifti(archive / "head.nii.gz", values, affine)
    if by == "sidecar":
        (archive / "head.json").write_text('{"ConversionSoftware": "dcm2niix"}')
    else:
        image = nibabel.load(archive / "head.nii.gz")
        image.header["descrip"] = "Time=0.000;mb=30"
        nibabel.Nifti1Image(values, image.affine, image.header).to_filename(archive / "head.nii.gz")
    assert preprocess([str(archive), str(archive.parent / "store"), "-np", "1"]) == 2
    reason = (archive.parent / "store" / "failed.json").read_text()
    assert "dcm2niix does not state for sure how far its slices are apart" in reason


def test_what_is_too_short_when_it_is_straight_is_refused(archive):
    write_nifti(archive / "head.nii.gz", *scanned(tilted_axes(30), (60, 24, 30)))
    assert preprocess([str(archive), str(archive.parent / "store"), "-np", "1"]) == 2
    assert "every edge must have at least 24 mm" in (archive.parent / "store" / "failed.json").read_text()


@pytest.mark.parametrize(
    "columns",
    [
        [[1, 0.2, 0], [0, 1, 0], [0, 0, 1]],  # within the slice
        [[1, 0, 0.2], [0, 1, 0.2], [0, 0, 1]],  # about two axes
        [[1, 0, 0], [0, 1, 1.2], [0, 0, 1]],  # farther than a gantry turns
    ],
)
def test_what_no_gantry_does_is_refused(columns):
    axes = np.array(columns, dtype=float).T
    with pytest.raises(UnusableScanError, match="not at right angles"):
        find_tilt(axes / np.linalg.norm(axes, axis=0))


def test_a_shear_by_registration_is_refused(archive):
    values, affine = scanned(tilted_axes(10))
    write_nifti(archive / "head.nii.gz", values, affine)
    image = nibabel.load(archive / "head.nii.gz")
    image.set_sform(image.affine, code=2)
    nibabel.Nifti1Image(values, None, image.header).to_filename(archive / "head.nii.gz")
    assert preprocess([str(archive), str(archive.parent / "store"), "-np", "1"]) == 2
    assert "not at right angles" in (archive.parent / "store" / "failed.json").read_text()


def test_air_is_where_no_slice_has_been(archive):
    values, affine = scanned(tilted_axes(25))
    write_nifti(archive / "head.nii.gz", np.maximum(values, 40), affine)  # no voxel of air in the scan
    values[0] = -1000  # but for one side, or it would be refused
    write_nifti(archive / "head.nii.gz", np.where(values > -1000, np.maximum(values, 40), -1000), affine)
    volume = only_volume(archive)
    assert (volume[0, -5:] < -1000).all() and (volume[-1, :5] < -1000).all()
    assert (volume[len(volume) // 2, :, 5:-5] > 0).all()
