"""Reading one scan: voxels as they are, spacing and direction cosines, all checked.

SimpleITK reads the geometry of every format, so that it is what nnU-Net will see, and the voxels of all but NIfTI
(`pretraining.ct.nifti` says why).
"""

import errno
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.ct import nifti
from pretraining.ct.checks import SKEWED, check_direction, check_grid, check_pixels, check_stored_bytes, check_values
from pretraining.ct.dicom_series import ORIENTATION, PIXEL_SPACING, POSITION, numbers
from pretraining.ct.nrrd_mha import SPACING_TOLERANCE, check_packed, check_spacing
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.system.errors import environment_error

UNREADABLE = "cannot be read, it is truncated, damaged or not what its suffix says; copy or export it again"
SLICE_GAP_TOLERANCE = 0.1
MAX_TILT = 0.05


@dataclass(frozen=True)
class CTImage:
    """A scan as it is stored.

    Attributes:
        values: HU, (z, y, x) in SimpleITK's order of the axes, in the file's own number type where it can be.
        spacing_xyz_mm: voxel edges along x, y, z.
        direction: 3 x 3 direction cosines; column i is the way of index i in the patient (left, back, head).
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
            raise UnusableScanError(SKEWED) from None
        raise UnusableScanError(UNREADABLE) from None
    check_values(image.values)
    return image


def _read_file(path: Path) -> CTImage:
    """Read a NIfTI, NRRD or MetaImage file; the voxels only after the header has passed the checks."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    pixel_type = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    check_pixels(reader.GetDimension(), size, reader.GetNumberOfComponents(), pixel_type)
    spacing = nifti.read_spacing(path) if nifti.is_nifti(path) else reader.GetSpacing()
    check_grid(size, spacing)
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    check_direction(direction)
    if nifti.is_nifti(path):  # the others may have their voxels in another file; ITK looks before it takes memory
        check_stored_bytes(size, path.stat().st_size)
        values = nifti.read_values(path, size)
    else:
        check_spacing(path, spacing)
        values = sitk.GetArrayFromImage(reader.Execute())
        check_packed(path, values.nbytes)
    return CTImage(values, spacing, direction)


def _read_series(files: tuple[Path, ...]) -> CTImage:
    """Read the slices of a DICOM series, given in order along the patient."""
    _check_slice_header(files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    keys = reader.GetMetaDataKeys(0)
    modality = reader.GetMetaData(0, "0008|0060").strip() if "0008|0060" in keys else "CT"
    if modality not in ("CT", "OT"):
        raise UnusableScanError(f"is of modality {modality}, not CT; leave it out")
    check_pixels(
        image.GetDimension(), image.GetSize(), image.GetNumberOfComponentsPerPixel(), image.GetPixelIDTypeAsString()
    )
    if len(files) > 1:
        _check_slices(reader, len(files), image.GetSpacing()[:2])
    check_grid(image.GetSize(), image.GetSpacing())
    return CTImage(sitk.GetArrayFromImage(image), image.GetSpacing(), np.array(image.GetDirection()).reshape(3, 3))


def _check_slice_header(files: tuple[Path, ...]) -> None:
    """Refuse a series of absurd size before its voxels are read; all its slices have one size (`find_scans`)."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(files[0]))
    reader.ReadImageInformation()
    width, height, *frames = reader.GetSize()
    size = (width, height, math.prod(frames) * len(files))
    check_grid(size, (*reader.GetSpacing()[:2], 1.0))
    check_stored_bytes(size, sum(file.stat().st_size for file in files))


def _check_slices(reader: sitk.ImageSeriesReader, count: int, spacing_xy_mm: tuple[float, float]) -> None:
    """Raise `UnusableScanError` where slices of a series are missing, double, or do not lie in one grid."""
    tags = (POSITION, ORIENTATION, PIXEL_SPACING)
    if not all(tag in reader.GetMetaDataKeys(index) for index in range(count) for tag in tags):
        raise UnusableScanError(
            "has slices without position, orientation or pixel spacing; export the original CT series"
        )
    positions, cosines, edges = (
        np.array([numbers(reader.GetMetaData(index, tag)) for index in range(count)]) for tag in tags
    )
    if not np.allclose(edges, spacing_xy_mm[::-1], rtol=SPACING_TOLERANCE, atol=0):  # ITK takes 1 mm for 0
        raise UnusableScanError("has slices that differ in pixel spacing, or state none; export the whole series again")
    if not np.allclose(cosines, cosines[0], rtol=0, atol=MAX_TILT):
        raise UnusableScanError("has slices that differ in orientation; export each orientation as a series of its own")
    normal = np.cross(cosines[0, :3], cosines[0, 3:])
    steps = np.diff(positions, axis=0)
    if np.linalg.norm(steps - np.outer(steps @ normal, normal)) > MAX_TILT * np.linalg.norm(steps):
        raise UnusableScanError("was taken with a tilted gantry; straighten it (resample it to upright slices)")
    gaps = np.abs(steps @ normal)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if not usual > 0 or not abs(gaps[worst] - usual) <= SLICE_GAP_TOLERANCE * usual:  # also where one is NaN
        raise UnusableScanError(
            f"has slices {usual:g} mm apart but {gaps[worst]:g} mm between slices {worst + 1} and {worst + 2}: slices "
            "are missing or double; export the whole series again"
        )
