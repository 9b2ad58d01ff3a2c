"""One NIfTI file of a download: its header, the geometry that nnU-Net will read from it, and its voxels."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from pretraining.ct import checks
from pretraining.ct.geometry import canonical_axes
from pretraining.ct.nifti import read_voxels
from pretraining.ct.scan import UnusableScanError

UNREADABLE = "cannot be read, it is truncated, damaged or no NIfTI file; download it again"
UNIT_SPACING = (1.0, 1.0, 1.0)
DEFAULT_DIRECTIONS = (np.diag([1.0, 1.0, 1.0]), np.diag([-1.0, -1.0, 1.0]))
"""Of a header that nobody has set: as ITK reads one without an affine, and one with an affine of ones."""
SAME_DIRECTION = 0.01
"""How far cosines of one direction may be apart."""


class LeftOut(Exception):
    """A case that cannot be used. The message names the file, what is wrong with it and what to do."""


@dataclass(frozen=True)
class NiftiFile:
    """A file whose header has been read.

    Attributes:
        path: the file.
        header: as nibabel reads it.
        size_xyz: voxels along x, y, z; a fourth axis of 1 is not counted.
        spacing_xyz_mm: voxel edges in mm along x, y, z, as ITK reads them.
        origin_mm: of the first voxel, in ITK's axes (left, back, head).
        direction: 3 x 3 direction cosines, as `pretraining.ct.read_ct.CTImage` has them.
    """

    path: Path
    header: nib.Nifti1Header
    size_xyz: tuple[int, int, int]
    spacing_xyz_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: np.ndarray

    @property
    def has_three_axes(self) -> bool:
        """Whether the header has no further axis, not even one of 1."""
        return int(self.header["dim"][0]) == 3

    @property
    def states_orientation(self) -> bool:
        return bool(self.header["sform_code"] > 0 or self.header["qform_code"] > 0)

    @property
    def states_geometry(self) -> bool:
        """Whether spacing and orientation are more than what a header without any has."""
        default = any(np.allclose(self.direction, directions) for directions in DEFAULT_DIRECTIONS)
        return not (self.spacing_xyz_mm == UNIT_SPACING and default)

    @property
    def axes_in_order(self) -> bool:
        """Whether x, y, z run along the body's axes left-right, front-back, foot-head, in either direction."""
        return canonical_axes(self.direction)[0] == (0, 1, 2)

    @property
    def body_spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges along left-right, front-back and foot-head."""
        foot_head, front_back, left_right = canonical_axes(self.direction)[0]
        return tuple(self.spacing_xyz_mm[2 - axis] for axis in (left_right, front_back, foot_head))

    @property
    def affine(self) -> np.ndarray:
        """4 x 4, from indices x, y, z to mm in NIfTI's axes (right, front, head)."""
        affine = np.eye(4)
        affine[:3, :3] = self.direction * np.array(self.spacing_xyz_mm)
        affine[:3, 3] = self.origin_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def has_grid_of(self, other: "NiftiFile") -> bool:
        """Whether nnU-Net finds the same spacing, origin and directions in both."""
        return (
            np.allclose(self.spacing_xyz_mm, other.spacing_xyz_mm)
            and np.allclose(self.origin_mm, other.origin_mm, atol=1e-4)
            and np.allclose(self.direction, other.direction, atol=1e-5)
        )

    def has_directions_of(self, other: "NiftiFile") -> bool:
        """Whether the axes of both run in the same directions."""
        return np.allclose(self.direction, other.direction, atol=SAME_DIRECTION)

    def read_image(self) -> np.ndarray:
        """The voxels (z, y, x), after size and spacing have been checked.

        Raises:
            LeftOut: damaged, without a possible spacing, with contradictory axes, or with NaN.
        """
        with _faults_named(self.path):
            values = read_voxels(self.path, has_spacing=True)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise UnusableScanError("has voxels that are NaN or infinite; download it again")
        return values

    def read_labels(self) -> np.ndarray:
        """The voxels (z, y, x); the spacing is not used, so it may be missing.

        Raises:
            LeftOut: the file is damaged.
        """
        with _faults_named(self.path):
            return read_voxels(self.path)


def open_nifti(path: Path) -> NiftiFile:
    """Read a file's header.

    Raises:
        LeftOut: it cannot be read, or is no 3D volume of single numbers that ITK, and so nnU-Net, can read.
    """
    with _faults_named(path):
        header = nib.Nifti1Image.from_filename(path).header
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        pixels = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        checks.check_pixels(reader.GetDimension(), reader.GetSize(), reader.GetNumberOfComponents(), pixels)
        direction = np.array(reader.GetDirection()).reshape(3, 3)
        checks.check_right_angles(direction)
        return NiftiFile(path, header, reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), direction)


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn whatever reading a file raises into `LeftOut`."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except UnusableScanError as error:
        raise LeftOut(f"{path}: {error}") from error
    except PermissionError as error:
        raise LeftOut(f"{path}: cannot be read, permission denied; check its permissions") from error
    except (
        RuntimeError, OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError
    ) as error:  # fmt: skip
        raise LeftOut(f"{path}: {checks.SKEWED if 'orthonormal' in str(error) else UNREADABLE}") from error
