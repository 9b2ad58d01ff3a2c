"""Voxels and spacing of NIfTI-1 files, exactly as stored.

ITK's reader fills what a truncated file lacks with zeros, turns NaN to 0 and a spacing of 0 to 1, all without a word.
So nibabel reads the header, unmended, and numpy the voxels; the geometry is left to ITK, as nnU-Net will see that.
"""

import gzip
from pathlib import Path
from typing import BinaryIO

import numpy as np
from nibabel import Nifti1Header

from pretraining.ct.scan import UnusableScanError

SUFFIXES = (".nii", ".nii.gz")
SPACING_TOLERANCE = 0.01
HEADER_BYTES = Nifti1Header.template_dtype.itemsize
MAX_EXCESS_BYTES = 64 * 2**20
"""Of extensions before the voxels, and of what follows them."""


def is_nifti(path: Path) -> bool:
    """Whether a file has a suffix of NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_spacing(path: Path) -> tuple[float, float, float]:
    """Voxel edges in mm along x, y, z, as the header has them.

    Raises:
        UnusableScanError: the header contradicts itself.
        OSError, EOFError, ValueError, zlib.error: the file cannot be read.
    """
    with _open(path) as stream:
        header = _read_header(stream)
    if bytes(header["magic"]).rstrip(b"\0") != b"n+1":  # ITK reads it as Analyze, which has no orientation
        raise UnusableScanError("is no NIfTI-1 file in one piece (its magic is not n+1); convert it to NIfTI-1")
    spacing = tuple(float(edge) for edge in header["pixdim"][1:4])
    if header["sform_code"] > 0 and min(spacing) > 0:
        columns = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        if not np.allclose(columns, spacing, rtol=SPACING_TOLERANCE):
            told = [" x ".join(f"{edge:g}" for edge in edges) for edges in (spacing, columns)]
            raise UnusableScanError(
                f"gives its voxel spacing as {told[0]} mm (pixdim) and as {told[1]} mm (sform); correct its header"
            )
    return spacing


def read_values(path: Path, size_xyz: tuple[int, int, int]) -> np.ndarray:
    """Voxels, (z, y, x), scaled by the header's slope and intercept (then float32, else as stored).

    Raises:
        OSError, EOFError, ValueError, KeyError, zlib.error: the file cannot be read, or is too short.
    """
    count = size_xyz[0] * size_xyz[1] * size_xyz[2]
    with _open(path) as stream:
        header = _read_header(stream)
        offset, dtype = float(header["vox_offset"]), header.get_data_dtype()
        if not HEADER_BYTES <= offset <= MAX_EXCESS_BYTES:
            raise ValueError(f"voxels at byte {offset:g} would be in the header or far beyond it")
        stream.read(int(offset) - HEADER_BYTES)
        content = stream.read(count * dtype.itemsize)
        if len(content) < count * dtype.itemsize:
            raise EOFError("voxels are missing")
        _read_to_end(stream)
    values = np.frombuffer(content, dtype, count).reshape(size_xyz[::-1])
    slope, intercept = np.float32(header["scl_slope"]), np.float32(header["scl_inter"])
    if slope == 0 or not np.isfinite([slope, intercept]).all() or (slope, intercept) == (1, 0):
        return values  # the standard's ways of saying: not scaled
    return values.astype(np.float32) * slope + intercept  # nibabel would make float64 of 32-bit integers


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_header(stream: BinaryIO) -> Nifti1Header:
    content = stream.read(HEADER_BYTES)
    if len(content) < HEADER_BYTES:
        raise EOFError("the header is truncated")
    return Nifti1Header(content, check=False)  # checking would make a spacing of 0 one of 1


def _read_to_end(stream: BinaryIO) -> None:
    """Read what follows the voxels, for only at the end does gzip compare its checksum; a little is kept at a time.

    A few megabytes can unpack to terabytes, so there is a limit.
    """
    excess = 0
    while block := stream.read(1 << 20):
        excess += len(block)
        if excess > MAX_EXCESS_BYTES:
            raise ValueError("holds far more than its header announces")
