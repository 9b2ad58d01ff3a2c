"""What a worker does with one scan: read, bring to the canonical grid, project, store.

Apart from `pretraining.preprocess`, so that workers load neither matplotlib nor the progress bar.
"""

import math

import numpy as np

from pretraining.ct.checks import check_extent
from pretraining.ct.gantry_tilt import straight_shape, straighten
from pretraining.ct.geometry import resample_hu, resampled_shape, to_canonical
from pretraining.ct.radiograph import ConstantRadiographError, frontal_radiograph
from pretraining.ct.read_ct import read_ct
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.store.coarse import coarse_reason
from pretraining.store.writer import Source, StoreWriter
from pretraining.system.errors import environment_error, is_environment_error


def preprocess_scan(scan: Scan, writer: StoreWriter) -> None:
    """Read one scan, bring it to the canonical grid, project it, and add both to the store.

    Args:
        scan: to add.
        writer: of the store.

    Raises:
        UnusableScanError: the scan cannot be used.
        UserError: the store cannot be written.
    """
    size_bytes, mtime_ns = scan.stat()
    volume_hu, shape, spacing_xyz_mm = read_volume(scan, writer.spacing_mm, writer.max_spacing_mm)
    source = Source(
        path=scan.source,
        size_bytes=size_bytes,
        mtime_ns=mtime_ns,
        sha256=scan.sha256(),
        size_xyz=shape[::-1],
        spacing_xyz_mm=spacing_xyz_mm,
    )
    try:
        radiograph = frontal_radiograph(volume_hu, writer.spacing_mm)
    except ConstantRadiographError:
        raise UnusableScanError("looks the same along every ray, so it has no radiograph; leave it out") from None
    try:
        writer.add(scan.volume_id, volume_hu, radiograph, source)
    except OSError as error:
        if not is_environment_error(error):
            raise
        raise environment_error(error, writer.path) from None


def read_volume(
    scan: Scan, spacing_mm: float, max_spacing_mm: float = math.inf, may_be_clipped: bool = False
) -> tuple[np.ndarray, tuple[int, ...], tuple[float, ...]]:
    """A scan as a store has it.

    Args:
        scan: its files.
        spacing_mm: of the store.
        max_spacing_mm: a scan with a longer voxel edge is left out.
        may_be_clipped: as in `read_ct`.

    Returns:
        The volume (z, y, x) in HU, int16, in cubic voxels of ``spacing_mm``; the shape (z, y, x) of the scan itself,
        and its spacing in mm along x, y, z.

    Raises:
        UnusableScanError: the scan cannot be used.
    """
    image = read_ct(scan, may_be_clipped)
    shape, spacing_xyz_mm = image.values.shape, tuple(float(edge) for edge in image.spacing_xyz_mm)
    if reason := coarse_reason(spacing_xyz_mm, max_spacing_mm):
        raise UnusableScanError(reason)
    volume, old_spacing_mm = to_canonical(image.values, image.spacing_xyz_mm, image.direction)
    tilt = image.tilt
    del image
    check_extent(resampled_shape(volume.shape, old_spacing_mm, spacing_mm), spacing_mm)
    if tilt:
        check_extent(straight_shape(volume.shape, old_spacing_mm, tilt, spacing_mm), spacing_mm)
        resampled = straighten(volume, old_spacing_mm, tilt, spacing_mm)
    else:
        resampled = resample_hu(volume, old_spacing_mm, spacing_mm)
    del volume
    return np.rint(resampled, out=resampled).astype(np.int16), shape, spacing_xyz_mm
