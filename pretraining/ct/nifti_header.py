"""What a NIfTI header states of its voxels: their type and number, their spacing, and where their axes run.

nibabel reads it, without correcting it.
"""

from typing import BinaryIO

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from pretraining.ct.checks import check_pixels, check_right_angles, same_spacing, spacing_text
from pretraining.ct.geometry import canonical_axes
from pretraining.ct.scan import UnusableScanError

HEADERS = {348: Nifti1Header, 540: Nifti2Header}
"""By their length, which is their first number."""
MAGIC = (b"n+1", b"n+2")
PAIR_MAGIC = (b"ni1", b"ni2")
SCANNER = 1
"""Code of an sform by which the scanner's own axes run; others come from registrations, which can shear, too."""
TO_LPS = np.diag([-1.0, -1.0, 1.0])
"""From NIfTI's axes (right, front, head) to those of DICOM (left, back, head)."""

Header = Nifti1Header | Nifti2Header


def read_header(stream: BinaryIO) -> Header:
    """The header at the beginning of a stream."""
    start = stream.read(4)
    kinds = [HEADERS.get(int.from_bytes(start, order)) for order in ("little", "big")]
    kind = next((kind for kind in kinds if kind), Nifti1Header)
    content = start + stream.read(kind.template_dtype.itemsize - len(start))
    if len(content) < kind.template_dtype.itemsize:
        raise EOFError("the header is truncated")
    return kind(content, check=False)  # checking would make a spacing of 0 one of 1


def size_of(header: Header) -> tuple[int, int, int]:
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


def spacing_of(header: Header, is_pair: bool) -> tuple[float, float, float]:
    """Voxel edges in mm along x, y, z; ``is_pair`` where the voxels are in a file of their own."""
    magic = bytes(header["magic"])[:3]
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


def direction_of(header: Header) -> np.ndarray:
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
        _check_no_shear(direction, header)
    return direction


def _check_no_shear(direction: np.ndarray, header: Header) -> None:
    """Refuse a sheared sform of which it is not known whether a gantry or a registration has sheared it."""
    try:
        check_right_angles(direction)
    except UnusableScanError:
        code = int(header["sform_code"])
        raise UnusableScanError(
            f"has a sheared sform of code {code}: of a tilted gantry, in a file that nibabel has reoriented, or of a "
            "registration, which is not known; give the DICOM series, or set sform_code to 1 if you know that it is "
            "the gantry's tilt"
        ) from None


def _rotation(header: Header) -> np.ndarray:
    """The qform's directions. Quaternions are rounded, so their length is made 1, as ITK does."""
    vector = np.array([header[f"quatern_{letter}"] for letter in "bcd"], dtype=float)
    with np.errstate(over="ignore"):
        squares = float(vector @ vector)
    if not np.isfinite(squares):
        raise ValueError("a quaternion that is no number")
    scalar = np.sqrt(max(0.0, 1.0 - squares))
    return quat2mat([scalar, *vector]) * np.array([1.0, 1.0, -1.0 if header["pixdim"][0] < 0 else 1.0])
