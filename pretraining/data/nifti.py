"""Voxels and spacing of NIfTI-1 files, exactly as stored.

ITK's reader fills what a truncated file lacks with zeros, turns NaN to 0 and a spacing of 0 to 1, all without a word;
nibabel mends the spacing too. So these are read here; the geometry is left to ITK, for it is what nnU-Net will see.
Format: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

import gzip
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pretraining.data.scan import UnusableScanError

SUFFIXES = (".nii", ".nii.gz")
SPACING_TOLERANCE = 0.01

HEADER_BYTES = 348
FIELDS = {  # name: (format, offset in bytes)
    "dim": ("(8,)i2", 40),
    "datatype": ("i2", 70),
    "pixdim": ("(8,)f4", 76),
    "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112),
    "scl_inter": ("f4", 116),
    "sform_code": ("i2", 254),
    "srow": ("(3,4)f4", 280),
}
NUMBER_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"
}  # fmt: skip


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
        header = _parse(stream.read(HEADER_BYTES))
    spacing = tuple(float(edge) for edge in header["pixdim"][1:4])
    if header["sform_code"] > 0 and min(spacing) > 0:
        columns = np.linalg.norm(header["srow"][:, :3], axis=0)
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
    with _open(path) as stream:
        content = stream.read()  # to the end: only there does gzip compare its checksum
    header = _parse(content[:HEADER_BYTES])
    number_type = np.dtype(NUMBER_TYPES[int(header["datatype"])]).newbyteorder(_byte_order(header))
    count = size_xyz[0] * size_xyz[1] * size_xyz[2]
    values = np.frombuffer(content, number_type, count, int(header["vox_offset"])).reshape(size_xyz[::-1])
    slope, intercept = np.float32(header["scl_slope"]), np.float32(header["scl_inter"])
    if slope == 0 or not np.isfinite([slope, intercept]).all() or (slope, intercept) == (1, 0):
        return values  # the standard's ways of saying: not scaled
    return values.astype(np.float32) * slope + intercept


def _open(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _parse(start: bytes) -> np.void:
    """The header from its bytes, in the byte order that makes sense of it."""
    layout = np.dtype(
        {
            "names": list(FIELDS),
            "formats": [kind for kind, _ in FIELDS.values()],
            "offsets": [offset for _, offset in FIELDS.values()],
            "itemsize": HEADER_BYTES,
        }
    )
    header = np.frombuffer(start, layout, 1)[0]
    if 1 <= header["dim"][0] <= 7:  # the standard's way to tell
        return header
    return np.frombuffer(start, layout.newbyteorder(), 1)[0]


def _byte_order(header: np.void) -> str:
    """The byte order in which the header was parsed, as numpy writes it."""
    return header.dtype["datatype"].byteorder
