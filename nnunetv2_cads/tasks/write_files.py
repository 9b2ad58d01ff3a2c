"""A case's files in the dataset: those of the download where they can stay as they are, rewritten where they cannot."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from nnunetv2_cads.tasks.nifti_file import NiftiFile
from pretraining.system.files import atomic_path

CANONICAL = ("L", "P", "S")
"""Where x, y and z run after turning, as in the store of pre-training."""


def write_image(path: Path, image: NiftiFile, values: np.ndarray) -> None:
    """Put an image into the dataset.

    Args:
        path: where to.
        image: the file of the download.
        values: its voxels, (z, y, x).
    """
    if _can_stay(image, path):
        take(image.path, path)
    else:
        _write(path, values, image)


def write_labels(path: Path, label: NiftiFile, values: np.ndarray, image: NiftiFile) -> None:
    """Put a label map into the dataset, as uint8 if it must be rewritten.

    Args:
        path: where to.
        label: the file of the download.
        values: its voxels, (z, y, x).
        image: its image, whose grid it gets.
    """
    if _can_stay(label, path) and label.has_grid_of(image) and values.dtype.kind in "iu":
        take(label.path, path)
    else:
        _write(path, values.astype(np.uint8), image)


def take(source: Path, path: Path) -> None:
    """Give a file a second name, which takes no room; copy it where the file system cannot."""
    path.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), path)
    except OSError:
        with atomic_path(path) as temporary:
            shutil.copyfile(source, temporary)


def _can_stay(file: NiftiFile, path: Path) -> bool:
    return file.axes_in_order and file.has_three_axes and file.path.suffix == path.suffix


def _write(path: Path, values: np.ndarray, grid: NiftiFile) -> None:
    """Write voxels (z, y, x) on the grid of an image; with its own header, unless its axes must be turned.

    nibabel writes, since ITK does not notice a full disk.
    """
    if grid.axes_in_order:
        header = grid.header.copy()
        header.set_data_dtype(values.dtype)
        file = nib.Nifti1Image(values.T, None, header)
    else:
        file = nib.Nifti1Image(values.T, grid.affine)
        file = file.as_reoriented(ornt_transform(io_orientation(grid.affine), axcodes2ornt(CANONICAL)))
        file.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
                file.to_stream(packed)
        else:
            file.to_stream(raw)
