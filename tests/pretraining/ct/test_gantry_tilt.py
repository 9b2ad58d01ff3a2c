"""Scans with a tilted gantry come into the store as the patient lay on the table."""

import json
from itertools import product

import nibabel
import numpy as np
import pytest
from dicom_files import write_slices
from scipy.spatial.transform import Rotation

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


def tissue_hu(left_mm, back_mm, head_mm):
    """Tissue beyond every edge of the scan, around a bubble; smooth as well."""
    bubble = 900 * np.exp(-((left_mm - 5) ** 2 + back_mm**2 + head_mm**2) / (2 * 12**2))
    return 60 * np.sin(left_mm / 9 + back_mm / 14 - head_mm / 12) - bubble


def swivelled_axes(order, degrees):
    """Slices are turned about x (left) and y (back), in this order, of the patient or of the gantry; steps are not."""
    turned = Rotation.from_euler(order, degrees, degrees=True).as_matrix()
    return np.column_stack([turned[:, 0], turned[:, 1], [0, 0, 1]])


def tilted_axes(degrees):
    """Directions of x, y, z in the patient (left, back, head): rows are turned about x, steps stay along the table."""
    angle = np.deg2rad(degrees)
    return np.array([[1, 0, 0], [0, np.cos(angle), np.sin(angle)], [0, 0, 1]]).T


def scanned(axes, shape_xyz=SHAPE_XYZ, hu=head_hu):
    """A phantom on the grid of these axes, its centre in the middle: values (x, y, z) and 3 x 4 affine (LPS)."""
    steps = axes * SPACING_XYZ_MM
    middle = (np.array(shape_xyz) - 1) / 2
    indices = np.stack(np.meshgrid(*map(np.arange, shape_xyz), indexing="ij"), -1) - middle
    values = np.rint(hu(*np.moveaxis(indices @ steps.T, -1, 0))).astype(np.int16)
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


SWIVELLED = [("xy", (20, 15)), ("yx", (15, 20)), ("XY", (-25, 8)), ("xy", (0, 18))]


@pytest.mark.parametrize("write", [write_nifti, write_dicom])
@pytest.mark.parametrize(("order", "degrees"), SWIVELLED)
def test_a_gantry_that_is_swivelled_too_is_straightened(archive, write, order, degrees):
    """The phantom's own axes come out, whichever turn was first."""
    path = archive / "head.nii.gz" if write is write_nifti else archive
    write(path, *scanned(swivelled_axes(order, degrees)))
    assert_is_the_phantom(only_volume(archive), inside=0.8)


@pytest.mark.parametrize("axes", [tilted_axes(20), swivelled_axes("xy", (20, 15))], ids=["tilted", "swivelled"])
def test_what_was_scanned_is_right_up_to_its_edge_and_all_else_is_air(archive, axes):
    write_nifti(archive / "tissue.nii.gz", *scanned(axes, hu=tissue_hu))
    volume = only_volume(archive)
    grid = np.meshgrid(*[np.arange(edge) - (edge - 1) / 2 for edge in volume.shape], indexing="ij")
    left_back_head = np.stack(grid[::-1])
    indices = np.einsum("ij,jzyx->izyx", np.linalg.inv(axes * SPACING_XYZ_MM), left_back_head)
    is_scanned = (np.abs(indices) <= np.reshape(SHAPE_XYZ, (3, 1, 1, 1)) / 2).all(0)
    assert 0.4 < is_scanned.mean() < 0.8 and (volume[~is_scanned] == -1024).all()
    difference = (volume - tissue_hu(*left_back_head))[is_scanned]
    assert np.abs(difference).max() < 40 and np.sqrt((difference**2).mean()) < 3


@pytest.mark.parametrize("axes", [tilted_axes(17), swivelled_axes("xy", (17, 12))], ids=["tilted", "swivelled"])
@pytest.mark.parametrize(("order", "flips"), list(product([(0, 1, 2), (1, 0, 2)], product([1, -1], repeat=3))))
def test_it_is_straight_however_it_is_stored(archive, order, flips, axes):
    """Rows and columns may be exchanged, and every index may run the other way."""
    values, affine = scanned(axes)
    steps = [affine[:, axis] * flip for axis, flip in zip(order, flips, strict=True)]
    values = values.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
    middle = (np.array(values.shape) - 1) / 2
    write_nifti(archive / "head.nii.gz", values, np.column_stack([*steps, -np.column_stack(steps) @ middle]))
    assert_is_the_phantom(only_volume(archive), inside=0.8)


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
    ("columns", "reason"),
    [
        ([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]], "axes that are not at right angles"),  # within the slice
        ([[1, 0, 0], [0, 1, 1.2], [0, 0, 1]], "slices that are 40 degrees from the line .* tilts them by more than 40"),
        (swivelled_axes("xy", (35, 30)).T, "slices that are 45 degrees from"),  # together
    ],
)
def test_what_no_gantry_does_is_refused(columns, reason):
    axes = np.array(columns, dtype=float).T
    with pytest.raises(UnusableScanError, match=reason):
        find_tilt(axes / np.linalg.norm(axes, axis=0))


def test_a_shear_that_a_gantry_or_a_registration_has_made_is_refused_until_that_is_said(archive):
    """nibabel gives what it reorients the code of a registration, and no qform."""
    path = archive / "head.nii.gz"
    write_nifti(path, *scanned(tilted_axes(10)))
    image = nibabel.as_closest_canonical(nibabel.load(path))
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    assert [int(image.header[f"{form}_code"]) for form in ("sform", "qform")] == [2, 0]
    image.to_filename(path)
    assert preprocess([str(archive), str(archive.parent / "store"), "-np", "1"]) == 2
    reason = (archive.parent / "store" / "failed.json").read_text()
    assert "sheared sform of code 2: of a tilted gantry" in reason and "set sform_code to 1" in reason
    image.set_sform(image.affine, code=1)  # what the reason advises
    image.to_filename(path)
    assert_is_the_phantom(only_volume(archive))


def test_air_is_where_no_slice_has_been(archive):
    values, affine = scanned(tilted_axes(25))
    write_nifti(archive / "head.nii.gz", np.maximum(values, 40), affine)  # no voxel of air in the scan
    values[0] = -1000  # but for one side, or it would be refused
    write_nifti(archive / "head.nii.gz", np.where(values > -1000, np.maximum(values, 40), -1000), affine)
    volume = only_volume(archive)
    assert (volume[0, -5:] == -1024).all() and (volume[-1, :5] == -1024).all()
    assert (volume[len(volume) // 2, :, 5:-5] > 0).all()
