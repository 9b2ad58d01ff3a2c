"""Reading one scan: voxels as they are, spacing and directions of the axes, all checked.

SimpleITK reads every format but NIfTI (`pretraining.ct.nifti` says why).
"""

import errno
import glob
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.ct import checks
from pretraining.ct.dicom_checks import check_series
from pretraining.ct.dicom_series import numbers, read_slice
from pretraining.ct.gantry_tilt import find_tilt
from pretraining.ct.nifti import SUFFIXES, is_nifti, read_nifti
from pretraining.ct.nrrd_mha import read_nrrd_or_mha
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.system.errors import environment_error

UNREADABLE = "cannot be read, it is truncated, damaged or not what its suffix says; copy or export it again"


@dataclass(frozen=True)
class CTImage:
    """A scan as it is stored.

    Attributes:
        values: HU, (z, y, x) in SimpleITK's order of the axes, in the file's own number type where it can be.
        spacing_xyz_mm: voxel edges along x, y, z.
        direction: 3 x 3; column i is the direction of index i in the patient (left, back, head). At right angles, or
            sheared by a tilted gantry (`pretraining.ct.gantry_tilt`).
    """

    values: np.ndarray
    spacing_xyz_mm: tuple[float, float, float]
    direction: np.ndarray


def read_ct(scan: Scan) -> CTImage:
    """Read one scan.

    Raises:
        UnusableScanError: it cannot be read, or is no CT volume in HU of a possible size and spacing.
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
        raise UnusableScanError(UNREADABLE) from None
    checks.check_values(image.values)
    return image


def _read_file(path: Path) -> CTImage:
    """Read a NIfTI, NRRD or MetaImage file; the voxels only after the header has passed the checks."""
    if is_nifti(path):
        return _read_nifti(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    pixel_type = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    checks.check_pixels(reader.GetDimension(), size, reader.GetNumberOfComponents(), pixel_type)
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    checks.check_right_angles(direction)
    return CTImage(*read_nrrd_or_mha(path, reader), direction)


def _read_nifti(path: Path) -> CTImage:
    """Read a NIfTI file. dcm2niix writes a scan with a tilted gantry as it is, and once more corrected: one patient."""
    image = read_nifti(path)
    name = next(path.name[: -len(suffix)] for suffix in SUFFIXES if path.name.lower().endswith(suffix))
    corrected = sorted(path.parent.glob(f"{glob.escape(name)}_Tilt_*.nii*"))
    if corrected and find_tilt(image.direction) is not None:
        raise UnusableScanError(
            f"was taken with a tilted gantry, and {corrected[0].name} is the same scan, corrected; leave this one out"
        )
    return CTImage(image.values, image.spacing_xyz_mm, image.direction)


def _read_series(files: tuple[Path, ...]) -> CTImage:
    """Read the slices of a DICOM series, given in order along the patient; the voxels only after the headers."""
    slices = [read_slice(file) for file in files]
    if None in slices:
        raise ValueError("files have changed since they were found")
    check_series(slices)
    columns, rows, _ = slices[0].size  # that of all (`find_scans`)
    size = (columns, rows, sum(slice_.size[2] for slice_ in slices))
    stated = tuple(numbers(slices[0].pixel_spacing)[::-1]) if slices[0].pixel_spacing else None
    checks.check_grid(size, (*(stated or (1.0, 1.0)), 1.0))
    checks.check_stored_bytes(size, sum(file.stat().st_size for file in files))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    image = reader.Execute()
    pixel_type = image.GetPixelIDTypeAsString()
    checks.check_pixels(image.GetDimension(), image.GetSize(), image.GetNumberOfComponentsPerPixel(), pixel_type)
    spacing = image.GetSpacing()
    if len(slices) > 1:
        checks.check_stated_spacing(stated, spacing[:2])
    checks.check_grid(image.GetSize(), spacing)
    return CTImage(sitk.GetArrayFromImage(image), spacing, np.array(image.GetDirection()).reshape(3, 3))
