"""Whether an image and its labels lie on each other, by the headers of their files.

nnU-Net lays them on each other voxel by voxel, wherever their headers say that they are.
"""

import itertools
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.system.errors import UserError

TOLERANCE = 0.5
"""Of a voxel's shortest edge: so far a corner of one file may be from the other's."""


def distance_text(image: Path, labels: Path) -> str:
    """How far labels are from where their image is, as words; empty where they lie on it, or no header says so.

    Raises:
        UserError: they have different numbers of voxels.
    """
    headers = [_header(path) for path in (image, labels)]
    if None in headers:
        return ""
    sizes = [header.GetSize() for header in headers]
    if sizes[0] != sizes[1]:
        shown = [" x ".join(map(str, size)) for size in sizes]
        raise UserError(
            f"{labels}: has {shown[1]} voxels, but the image {image.name} has {shown[0]}; label the image itself, or "
            "resample the labels to it (nearest neighbour)"
        )
    apart_mm = np.linalg.norm(np.subtract(*map(_corners_mm, headers)), axis=1).max()
    if apart_mm <= TOLERANCE * min(headers[0].GetSpacing()):
        return ""
    return f"up to {apart_mm:.3g} mm from where {image.name} is"


def _header(path: Path) -> sitk.ImageFileReader | None:
    """A file's header; None where ITK has no reader for the file, or refuses its geometry."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return reader


def _corners_mm(header: sitk.ImageFileReader) -> np.ndarray:
    """The positions of the first and last voxels along all axes, (2^axes, axes)."""
    axes = header.GetDimension()
    corners = np.array(list(itertools.product((0, 1), repeat=axes))) * (np.array(header.GetSize()) - 1)
    direction = np.reshape(header.GetDirection(), (axes, axes))
    return corners * header.GetSpacing() @ direction.T + header.GetOrigin()
