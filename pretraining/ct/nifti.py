"""Voxels and spacing of NIfTI-1 files, exactly as stored.

ITK's reader fills what a truncated file lacks with zeros, and turns NaN to 0 and a spacing of 0 to 1, without a word.
So nibabel reads the header, without correcting it, and numpy the voxels. The geometry is left to ITK, so that it is
what nnU-Net will see.
"""

import gzip
from pathlib import Path
from typing import BinaryIO

import numpy as np
from nibabel import Nifti1Header

from pretraining.ct.checks import check_grid, check_stored_bytes, same_spacing, spacing_text
from pretraining.ct.scan import UnusableScanError

SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = Nifti1Header.template_dtype.itemsize
MAX_EXCESS_BYTES = 64 * 2**20
"""Of extensions before the voxels, and of what follows them."""


def is_nifti(path: Path) -> bool:
    """Whether a file has a suffix of NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, size_xyz: tuple[int, int, int]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Read a file once, from its header to its end; the voxels only after the header has passed the checks.

    Args:
        path: a file with a suffix of NIfTI.
        size_xyz: voxels along x, y, z, as ITK reads them.

    Returns:
        Voxels, (z, y, x), as stored, or float32 where the header has a slope and intercept to scale them by; and their
        edges in mm along x, y, z, as the header states them.

    Raises:
        UnusableScanError: the header contradicts itself or does not pass the checks.
        OSError, EOFError, ValueError, KeyError, zlib.error: the file cannot be read, or is too short.
    """
    with _stream(path) as stream:
        header = _header(stream)
        spacing = _spacing(header)
        check_grid(size_xyz, spacing)
        check_stored_bytes(size_xyz, path.stat().st_size)
        return _read_values(stream, header, size_xyz), spacing


def read_voxels(path: Path, size_xyz: tuple[int, int, int]) -> np.ndarray:
    """The voxels as `read_nifti` returns them, of a file whose spacing is not used and may be missing.

    Raises:
        UnusableScanError: the header announces more than the file can hold.
        OSError, EOFError, ValueError, KeyError, zlib.error: the file cannot be read, or is too short.
    """
    with _stream(path) as stream:
        header = _header(stream)
        check_stored_bytes(size_xyz, path.stat().st_size)
        return _read_values(stream, header, size_xyz)


def _stream(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _header(stream: BinaryIO) -> Nifti1Header:
    content = stream.read(HEADER_BYTES)
    if len(content) < HEADER_BYTES:
        raise EOFError("the header is truncated")
    return Nifti1Header(content, check=False)  # checking would make a spacing of 0 one of 1


def _spacing(header: Nifti1Header) -> tuple[float, float, float]:
    if bytes(header["magic"]).rstrip(b"\0") != b"n+1":  # ITK reads it as Analyze, which has no orientation
        raise UnusableScanError("is no NIfTI-1 file in one piece (its magic is not n+1); convert it to NIfTI-1")
    spacing = tuple(float(edge) for edge in header["pixdim"][1:4])
    if header["sform_code"] > 0 and min(spacing) > 0:
        columns = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
        if not same_spacing(columns, spacing):
            raise UnusableScanError(
                f"states its voxel spacing as {spacing_text(spacing)} (pixdim) and as {spacing_text(columns)} (sform); "
                "correct its header"
            )
    return spacing


def _read_values(stream: BinaryIO, header: Nifti1Header, size_xyz: tuple[int, int, int]) -> np.ndarray:
    """The voxels of a stream that has been read up to the end of the header."""
    offset, dtype = float(header["vox_offset"]), header.get_data_dtype()
    if not HEADER_BYTES <= offset <= MAX_EXCESS_BYTES:
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
