"""NIfTI files: NIfTI-1 and NIfTI-2, in one piece or as .hdr and .img; voxels exactly as stored, and their geometry.

ITK's reader fills what a truncated file lacks with zeros, turns NaN to 0 and a spacing of 0 to 1, and takes the qform
where the sform is sheared, all without a word. So nibabel reads the header (`pretraining.ct.nifti_header`), and numpy
the voxels.
"""

import bz2
import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from nibabel.spatialimages import HeaderDataError

from pretraining.ct.checks import check_grid, check_stored_bytes
from pretraining.ct.nifti_header import Header, direction_of, read_header, size_of, spacing_of
from pretraining.ct.scan import UnusableScanError, without_suffix

PACKED = ("", ".gz", ".bz2")
"""What is behind a suffix, by how the file is compressed."""
PAIR_SUFFIXES, ZSTANDARD = tuple(f".hdr{packed}" for packed in PACKED), ".nii.zst"
SUFFIXES = (".nii.gz", ".nii.bz2", ZSTANDARD, ".nii", *PAIR_SUFFIXES)
DCM2NIIX = b"Time="
"""In descriptions that dcm2niix writes ("TE=0;Time=101500.000;mb=30")."""
MAX_EXCESS_BYTES = 64 * 2**20
"""Of extensions before the voxels, and of what follows them."""


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
    voxels = _voxels_of_pair(path)
    return (path, voxels) if voxels and voxels.is_file() else (path,)


def read_nifti(path: Path) -> NiftiImage:
    """Read a file once, from its header to its end; the voxels only after the header has passed the checks.

    Raises:
        UnusableScanError: the header lacks or contradicts something, or does not pass the checks.
        OSError, EOFError, ValueError, KeyError, zlib.error: the file cannot be read, or is too short.
    """
    with _opened(path) as (header, voxels):
        size_xyz = size_of(header)
        spacing_xyz_mm = spacing_of(header, _is_pair(path))
        check_grid(size_xyz, spacing_xyz_mm)
        direction = direction_of(header)
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
        size_xyz = size_of(header)
        if has_spacing:
            check_grid(size_xyz, spacing_of(header, _is_pair(path)))
        check_stored_bytes(size_xyz, _file_of_voxels(path).stat().st_size)
        return _read_values(voxels, header, size_xyz)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, BinaryIO]]:
    """The header of a file, and the stream of its voxels, which for one in one piece has been read up to them."""
    with ExitStack() as files:
        stream = files.enter_context(_stream(path))
        try:
            header = read_header(stream)
        except HeaderDataError as error:
            raise ValueError(str(error)) from None
        yield header, files.enter_context(_stream(_file_of_voxels(path))) if _is_pair(path) else stream


def _is_pair(path: Path) -> bool:
    return path.name.lower().endswith(PAIR_SUFFIXES)


def _voxels_of_pair(path: Path) -> Path | None:
    """The file of the voxels of a header of its own; None for a file in one piece.

    It has the same name with .img, in the same case, compressed as the header is, or else in another way.
    """
    stem = without_suffix(path.name, PAIR_SUFFIXES)
    if stem is None:
        return None
    own = path.name[len(stem) + len(".hdr") :]
    letters = ".IMG" if path.name[len(stem) :].isupper() else ".img"
    endings = [own, *(packed.upper() if letters.isupper() else packed for packed in PACKED)]
    files = [path.with_name(f"{stem}{letters}{ending}") for ending in endings]
    return next((file for file in files if file.exists()), files[0])


def _file_of_voxels(path: Path) -> Path:
    """The file that holds the voxels.

    Raises:
        UnusableScanError: it is missing.
    """
    voxels = _voxels_of_pair(path)
    if voxels is None:
        return path
    if not voxels.is_file():
        raise UnusableScanError(f"is a header without {voxels.name}, the file of its voxels; copy that, too")
    return voxels


def _stream(path: Path) -> BinaryIO:
    name = path.name.lower()
    if name.endswith(ZSTANDARD):
        raise UnusableScanError("is compressed with Zstandard, which is not read; unpack it (zstd -d)")
    return gzip.open(path) if name.endswith(".gz") else bz2.open(path) if name.endswith(".bz2") else path.open("rb")


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
