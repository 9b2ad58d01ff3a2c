"""Reading one scan: voxels as they are, spacing and directions of the axes, all checked.

SimpleITK reads the geometry of NRRD and MetaImage, and their voxels (`pretraining.ct.nrrd_mha`). NIfTI is read without
it (`pretraining.ct.nifti` says why), and DICOM slice by slice (`pretraining.ct.dicom_voxels`).
"""

import errno
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.ct import checks
from pretraining.ct.dicom_checks import check_series
from pretraining.ct.dicom_frames import read_frame_headers
from pretraining.ct.dicom_grid import step_mm
from pretraining.ct.dicom_passes import check_one_pass
from pretraining.ct.dicom_series import Slice, numbers, read_slice
from pretraining.ct.dicom_voxels import read_frames, read_slices
from pretraining.ct.folder_names import names_that_begin
from pretraining.ct.gantry_tilt import Shear, find_tilt
from pretraining.ct.nifti import SUFFIXES, is_nifti, read_nifti
from pretraining.ct.nrrd_mha import check_voxel_files, read_nrrd_or_mha
from pretraining.ct.scan import Scan, UnusableScanError, without_suffix
from pretraining.system.errors import environment_error

UNREADABLE = "cannot be read, it is truncated, damaged or not what its suffix says; copy or export it again"


@dataclass(frozen=True)
class CTImage:
    """A scan as it is stored.

    Attributes:
        values: HU, (z, y, x) in SimpleITK's order of the axes, in the file's own number type where it can be.
        spacing_xyz_mm: voxel edges along x, y, z.
        direction: 3 x 3; column i is the direction of index i in the patient (left, back, head). At right angles, or
            sheared by a tilted gantry.
        tilt: the shears of such a gantry (`pretraining.ct.gantry_tilt`); empty where the axes are at right angles.
    """

    values: np.ndarray
    spacing_xyz_mm: tuple[float, float, float]
    direction: np.ndarray
    tilt: tuple[Shear, ...] = ()


def read_ct(scan: Scan, may_be_clipped: bool = False) -> CTImage:
    """Read one scan.

    Args:
        scan: its files.
        may_be_clipped: accept one that was clipped to a window (`checks.check_values`), which no store takes.

    Raises:
        UnusableScanError: it cannot be read, or is no CT volume in HU of a possible size and spacing.
        UnreadableDiskError: its disk fails.
        UserError: this process may not open any more files.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = _read_series(scan.files) if scan.is_dicom else _read_file(scan.files[0])
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise environment_error(error, scan.files[0]) from None  # no scan can be read any more
        if isinstance(error, PermissionError):
            raise UnusableScanError("cannot be read, permission denied; check its permissions") from None
        if "orthonormal" in str(error):
            raise UnusableScanError(checks.SKEWED) from None
        with suppress(OSError):
            scan.sha256()  # where the disk fails, that is the reason: libraries do not state it
        raise UnusableScanError(UNREADABLE) from None
    checks.check_values(image.values, may_be_clipped)
    return image


def _read_file(path: Path) -> CTImage:
    """Read a NIfTI, NRRD or MetaImage file; the voxels only after the header has passed the checks."""
    if is_nifti(path):
        return _read_nifti(path)
    check_voxel_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    pixel_type = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    checks.check_pixels(reader.GetDimension(), size, reader.GetNumberOfComponents(), pixel_type)
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    checks.check_right_angles(direction)  # neither format comes from a scanner
    return CTImage(*read_nrrd_or_mha(path, reader), direction)


def _read_nifti(path: Path) -> CTImage:
    """Read a NIfTI file.

    dcm2niix writes a scan with a tilted gantry, or with uneven slices, as it is, and once more corrected: one patient.
    The former it gives the distance between slices across their planes, where an affine has that along the table
    (measured with 1.0.20260724; other versions may differ), so of its own tilted files the truth is not known.
    """
    image = read_nifti(path)
    name = without_suffix(path.name, SUFFIXES)
    tilt = find_tilt(image.direction)
    for mark, what in (("_Tilt_", "was taken with a tilted gantry"), ("_Eq_", "has uneven slices")):
        corrected = [other for other in names_that_begin(path.parent, f"{name}{mark}") if ".nii" in other]
        if corrected and (tilt or mark != "_Tilt_"):
            raise UnusableScanError(f"{what}, and {corrected[0]} is the same scan, corrected; leave this one out")
    if tilt and (image.is_of_dcm2niix or _is_of_dcm2niix(path.with_name(f"{name}.json"))):
        raise UnusableScanError(
            "was taken with a tilted gantry, and dcm2niix does not state for sure how far its slices are apart; give "
            "the DICOM series, or dcm2niix's corrected file (_Tilt_)"
        )
    return CTImage(image.values, image.spacing_xyz_mm, image.direction, tilt)


def _is_of_dcm2niix(sidecar: Path) -> bool:
    """Whether the file of metadata beside a NIfTI file says that dcm2niix has written it."""
    try:
        return "dcm2niix" in sidecar.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _read_series(files: tuple[Path, ...]) -> CTImage:
    """Read the slices of a DICOM series, given in order along the patient; the voxels only after the headers."""
    slices = [read_slice(file) for file in files]
    if not all(isinstance(each, Slice) for each in slices):
        raise ValueError("files have changed since they were found")
    whole, order = slices[0], []
    has_frames = whole.size[2] > 1
    if has_frames:
        frames = read_frame_headers(files[0], whole)
        wanted = [index for index, frame in enumerate(frames) if not frame.is_localizer] or range(len(frames))
        order = sorted(wanted, key=lambda index: frames[index].place_mm)
        slices = [frames[index] for index in order]
    check_one_pass(slices)
    check_series(slices)
    size = (*whole.size[:2], len(slices))  # columns and rows are those of all (`find_scans`)
    spacing, direction = _grid(slices)
    tilt = find_tilt(direction)
    checks.check_grid(size, spacing)
    checks.check_stored_bytes(size, sum(file.stat().st_size for file in files))
    values = read_frames(files[0], whole, frames, order) if has_frames else read_slices(files, slices)
    return CTImage(values, spacing, direction, tilt)


def _grid(slices: list[Slice]) -> tuple[tuple[float, float, float], np.ndarray]:
    """Voxel edges in mm along x, y, z, and direction cosines, of slices that have passed the checks.

    A single slice has no edge along z; whatever stands there, it is too thin to be used.
    """
    if len(slices) == 1:
        row_mm, column_mm = numbers(slices[0].pixel_spacing or "1\\1")
        return (float(column_mm), float(row_mm), 1.0), np.eye(3)
    row_mm, column_mm = numbers(slices[0].pixel_spacing)
    cosines = numbers(slices[0].orientation)
    step = step_mm(np.array([numbers(each.position) for each in slices]))
    length = float(np.linalg.norm(step))
    direction = np.column_stack([cosines[:3], cosines[3:], step / length])
    return (float(column_mm), float(row_mm), length), direction
