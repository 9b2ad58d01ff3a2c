"""NIfTI files: NIfTI-1 and NIfTI-2, in one piece or as .hdr and .img; voxels exactly as stored, and their geometry.

ITK's reader fills what a truncated file lacks with zeros, turns NaN to 0 and a spacing of 0 to 1, and takes the qform
where the sform is sheared, all without a word. So nibabel reads the header, without correcting it, and numpy the
voxels.
"""

import bz2
import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.spatialimages import HeaderDataError
from scipy.spatial.transform import Rotation

from pretraining.ct.checks import (
    check_grid,
    check_pixels,
    check_right_angles,
    check_stored_bytes,
    same_spacing,
    spacing_text,
)
from pretraining.ct.geometry import canonical_axes
from pretraining.ct.scan import UnusableScanError

PAIR, ZSTANDARD = ".hdr", ".nii.zst"
SUFFIXES = (".nii.gz", ".nii.bz2", ZSTANDARD, ".nii", PAIR)
HEADERS = {348: Nifti1Header, 540: Nifti2Header}
"""By their length, which is their first number."""
MAGIC = (b"n+1", b"n+2")
PAIR_MAGIC = (b"ni1", b"ni2")
DCM2NIIX = b"Time="
"""In descriptions that dcm2niix writes ("TE=0;Time=101500.000;mb=30")."""
SCANNER = 1
"""Code of an sform by which the scanner's own axes run; others come from registrations, which can shear, too."""
MAX_EXCESS_BYTES = 64 * 2**20
"""Of extensions before the voxels, and of what follows them."""
TO_LPS = np.diag([-1.0, -1.0, 1.0])
"""From NIfTI's axes (right, front, head) to those of DICOM (left, back, head)."""

Header = Nifti1Header | Nifti2Header


@dataclass(frozen=True)
class NiftiImage:
    """A file's voxels and geometry.

    Attributes:
        values: (z, y, x), as stored, or float32 where the header has a slope and intercept to scale them by.
        spacing_xyz_mm: voxel edges along x, y, z, as the header states them.
        direction: 3 x 3; column i is the direction of index i in the patient (left, back, head).
        is_of_dcm2niix: whether the header's description is of the kind that dcm2niix writes.
    """

    values: np.ndarray
    spacing_xyz_mm: tuple[float, float, float]
    direction: np.ndarray
    is_of_dcm2niix: bool


def is_nifti(path: Path) -> bool:
    """Whether a file has a suffix of NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def files_of(path: Path) -> tuple[Path, ...]:
    """A file with a suffix of NIfTI, and that of its voxels where it has one of its own and it is there."""
    if not path.name.lower().endswith(PAIR):
        return (path,)
    return (path, voxels) if (voxels := _voxels_of_pair(path)).is_file() else (path,)


def read_nifti(path: Path) -> NiftiImage:
    """Read a file once, from its header to its end; the voxels only after the header has passed the checks.

    Raises:
        UnusableScanError: the header lacks or contradicts something, or does not pass the checks.
        OSError, EOFError, ValueError, KeyError, zlib.error: the file cannot be read, or is too short.
    """
    with _opened(path) as (header, voxels):
        size_xyz = _size(header)
        spacing_xyz_mm = _spacing(header, path)
        check_grid(size_xyz, spacing_xyz_mm)
        direction = _direction(header)
        check_stored_bytes(size_xyz, _file_of_voxels(path).stat().st_size)
        values, is_of_dcm2niix = _read_values(voxels, header, size_xyz), DCM2NIIX in bytes(header["descrip"])
        return NiftiImage(values, spacing_xyz_mm, direction, is_of_dcm2niix)


def read_voxels(path: Path, has_spacing: bool = False) -> np.ndarray:
    """The voxels as `read_nifti` returns them, whatever the header says of orientation.

    Args:
        path: a file with a suffix of NIfTI.
        has_spacing: whether the spacing must pass the checks; else it is not used and may be missing.

    Raises:
        UnusableScanError: the header announces more than the file can hold, or its spacing does not pass the checks.
        OSError, EOFError, ValueError, KeyError, zlib.error: the file cannot be read, or is too short.
    """
    with _opened(path) as (header, voxels):
        size_xyz = _size(header)
        if has_spacing:
            check_grid(size_xyz, _spacing(header, path))
        check_stored_bytes(size_xyz, _file_of_voxels(path).stat().st_size)
        return _read_values(voxels, header, size_xyz)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, BinaryIO]]:
    """The header of a file, and the stream of its voxels, which for one in one piece has been read up to them."""
    with ExitStack() as files:
        stream = files.enter_context(_stream(path))
        try:
            header = _header(stream)
        except HeaderDataError as error:
            raise ValueError(str(error)) from None
        is_pair = path.name.lower().endswith(PAIR)
        yield header, files.enter_context(_stream(_file_of_voxels(path))) if is_pair else stream


def _voxels_of_pair(path: Path) -> Path:
    """The file of the voxels of a header of its own: that of the same name with .img, in the same case."""
    return path.with_suffix(".IMG" if path.suffix.isupper() else ".img")


def _file_of_voxels(path: Path) -> Path:
    """The file that holds the voxels.

    Raises:
        UnusableScanError: it is missing.
    """
    if not path.name.lower().endswith(PAIR):
        return path
    voxels = _voxels_of_pair(path)
    if not voxels.is_file():
        raise UnusableScanError(f"is a header without {voxels.name}, the file of its voxels; copy that, too")
    return voxels


def _stream(path: Path) -> BinaryIO:
    name = path.name.lower()
    if name.endswith(ZSTANDARD):
        raise UnusableScanError("is compressed with Zstandard, which is not read; unpack it (zstd -d)")
    return gzip.open(path) if name.endswith(".gz") else bz2.open(path) if name.endswith(".bz2") else path.open("rb")


def _header(stream: BinaryIO) -> Header:
    start = stream.read(4)
    kinds = [HEADERS.get(int.from_bytes(start, order)) for order in ("little", "big")]
    kind = next((kind for kind in kinds if kind), Nifti1Header)
    content = start + stream.read(kind.template_dtype.itemsize - len(start))
    if len(content) < kind.template_dtype.itemsize:
        raise EOFError("the header is truncated")
    return kind(content, check=False)  # checking would make a spacing of 0 one of 1


def _size(header: Header) -> tuple[int, int, int]:
    """Voxels along x, y, z, where they are three axes of real numbers."""
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise ValueError(f"{count} axes")
    size = [int(edge) for edge in header["dim"][1 : count + 1]]
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    try:
        pixels = header.get_data_dtype()
    except HeaderDataError as error:
        raise ValueError(str(error)) from None
    if not pixels.itemsize:  # bits, and types that are not known
        raise ValueError(f"a pixel type of {header['datatype']}")
    check_pixels(len(size), tuple(size), len(pixels.names or (1,)), str(pixels))
    return tuple(size)


def _spacing(header: Header, path: Path) -> tuple[float, float, float]:
    magic, is_pair = bytes(header["magic"])[:3], path.name.lower().endswith(PAIR)
    if is_pair and magic not in PAIR_MAGIC:
        raise UnusableScanError("is an Analyze file (its magic is not ni1), which states no orientation; give NIfTI")
    if not is_pair and magic not in MAGIC:  # ITK reads it as Analyze
        raise UnusableScanError("is no NIfTI file in one piece (its magic is not n+1); convert it to NIfTI-1")
    spacing = tuple(float(edge) for edge in header["pixdim"][1:4])
    if header["sform_code"] > 0 and min(spacing) > 0:
        columns = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        if not same_spacing(columns, spacing):
            raise UnusableScanError(
                f"states its voxel spacing as {spacing_text(spacing)} (pixdim) and as {spacing_text(columns)} (sform); "
                "correct its header"
            )
    return spacing


def _direction(header: Header) -> np.ndarray:
    """Directions of the axes by the sform, where its code is set, else by the qform, as nibabel takes them.

    A qform that leads to other axes than the sform makes the file ambiguous. One that is only turned a little, as after
    a registration, does not: a volume keeps its voxel grid.
    """
    stated = []
    if header["sform_code"] > 0:
        axes = header.get_sform()[:3, :3]
        stated.append(axes / np.linalg.norm(axes, axis=0))
    if header["qform_code"] > 0:
        stated.append(_rotation(header))
    if not stated:
        raise UnusableScanError(
            "states no orientation (the codes of sform and qform are 0); convert it again from DICOM, or set them if "
            "you are sure"
        )
    if not all(np.isfinite(direction).all() for direction in stated):
        raise ValueError("an orientation that is no number")
    if len({canonical_axes(direction) for direction in stated}) > 1:
        raise UnusableScanError(
            "states two orientations that contradict each other (sform and qform); correct its header, or convert it "
            "again from DICOM"
        )
    direction = TO_LPS @ stated[0]
    if header["sform_code"] > SCANNER:
        check_right_angles(direction)
    return direction


def _rotation(header: Header) -> np.ndarray:
    """The qform's directions. Quaternions are rounded, so their length is made 1, as ITK does."""
    vector = np.array([header[f"quatern_{letter}"] for letter in "bcd"], dtype=float)
    scalar = np.sqrt(max(0.0, 1.0 - float(vector @ vector)))
    rotation = Rotation.from_quat([*vector, scalar]).as_matrix()
    return rotation * np.array([1.0, 1.0, -1.0 if header["pixdim"][0] < 0 else 1.0])


def _read_values(stream: BinaryIO, header: Header, size_xyz: tuple[int, int, int]) -> np.ndarray:
    """The voxels of a stream that has been read up to the end of the header, or that begins with them."""
    begin, offset, dtype = stream.tell(), float(header["vox_offset"]), header.get_data_dtype()
    if not begin <= offset <= MAX_EXCESS_BYTES:
        raise ValueError(f"voxels at byte {offset:g} would be in the header or far beyond it")
    stream.seek(int(offset))
    # nibabel's own reader of voxels would hold those of a packed file twice.
    values = np.frombuffer(stream.read(int(np.prod(size_xyz)) * dtype.itemsize), dtype).reshape(size_xyz[::-1])
    excess = 0
    while block := stream.read(1 << 20):  # only at the end does gzip compare its checksum; it can be terabytes away
        excess += len(block)
        if excess > MAX_EXCESS_BYTES:
            raise ValueError("holds far more than its header announces")
    slope, intercept = np.float32(header["scl_slope"]), np.float32(header["scl_inter"])
    if slope == 0 or not np.isfinite([slope, intercept]).all() or (slope, intercept) == (1, 0):
        return values  # the standard's ways of saying: not scaled
    return values.astype(np.float32) * slope + intercept  # nibabel would make float64 of 32-bit integers
