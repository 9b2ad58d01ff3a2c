"""Voxels and spacing of NIfTI-1 files, exactly as stored.

ITK's reader fills what a truncated file lacks with zeros, turns NaN to 0 and a spacing of 0 to 1, all without a word.
So nibabel reads the header, unmended, and numpy the voxels; the geometry is left to ITK, as nnU-Net will see that.
"""

import gzip
from pathlib import Path

import numpy as np
from nibabel import Nifti1Header

from pretraining.data.scan import UnusableScanError

SUFFIXES = (".nii", ".nii.gz")
SPACING_TOLERANCE = 0.01
HEADER_BYTES = Nifti1Header.template_dtype.itemsize


def is_nifti(path: Path) -> bool:
    """Whether a file has a suffix of NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def read_spacing(path: Path) -> tuple[float, float, float]:
    """Voxel edges in mm along x, y, z, as the header has them.

    Raises:
        UnusableScanError: the header contradicts itself.
        OSError, EOFError, ValueError, zlib.error: the file cannot be read.
    """
    header, _ = _read(path, HEADER_BYTES)
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
    header, content = _read(path)
    count = size_xyz[0] * size_xyz[1] * size_xyz[2]
    offset = float(header["vox_offset"])
    if not HEADER_BYTES <= offset < len(content):
        raise ValueError(f"voxels at byte {offset:g} would be in the header or beyond the file")
    values = np.frombuffer(content, header.get_data_dtype(), count, int(offset)).reshape(size_xyz[::-1])
    slope, intercept = np.float32(header["scl_slope"]), np.float32(header["scl_inter"])
    if slope == 0 or not np.isfinite([slope, intercept]).all() or (slope, intercept) == (1, 0):
        return values  # the standard's ways of saying: not scaled
    return values.astype(np.float32) * slope + intercept  # nibabel would make float64 of 32-bit integers


def _read(path: Path, count: int = -1) -> tuple[Nifti1Header, bytes]:
    """The header and the first bytes of a file; by default all, for only at the end does gzip compare its checksum."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        content = stream.read(count)
    if len(content) < HEADER_BYTES:
        raise EOFError("the header is truncated")
    return Nifti1Header(content[:HEADER_BYTES], check=False), content  # checking would make a spacing of 0 one of 1
