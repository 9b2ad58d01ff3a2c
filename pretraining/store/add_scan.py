"""What a worker does with one scan: read, bring to the canonical grid, project, store.

Apart from `pretraining.preprocess`, so that workers load neither matplotlib nor the progress bar.
"""

import numpy as np

from nnunetv2_cads.encoder_file.record import CLIP_HU
from pretraining.ct.checks import check_extent
from pretraining.ct.geometry import resample_cubic, resampled_shape, to_canonical
from pretraining.ct.radiograph import ConstantRadiographError, frontal_radiograph
from pretraining.ct.read_ct import read_ct
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.store.writer import Source, StoreWriter
from pretraining.system.errors import environment_error, is_environment_error


def preprocess_scan(scan: Scan, writer: StoreWriter) -> None:
    """Read one scan, bring it to the canonical grid, project it, and add both to the store.

    Raises:
        UnusableScanError: the scan cannot be used.
        UserError: the store cannot be written.
    """
    size_bytes, mtime_ns = scan.stat()
    volume_hu, shape, spacing_xyz_mm = read_volume(scan, writer.spacing_mm)
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


def read_volume(scan: Scan, spacing_mm: float) -> tuple[np.ndarray, tuple[int, ...], tuple[float, ...]]:
    """A scan as a store has it.

    Returns:
        The volume (z, y, x) in HU, int16, in cubic voxels of ``spacing_mm``; the shape (z, y, x) of the scan itself,
        and its spacing in mm along x, y, z.

    Raises:
        UnusableScanError: the scan cannot be used.
    """
    image = read_ct(scan)
    shape, spacing_xyz_mm = image.values.shape, tuple(float(edge) for edge in image.spacing_xyz_mm)
    volume, old_spacing_mm = to_canonical(image.values, image.spacing_xyz_mm, image.direction)
    check_extent(resampled_shape(volume.shape, old_spacing_mm, spacing_mm), spacing_mm)
    del image
    resampled = resample_cubic(volume, old_spacing_mm, spacing_mm)
    del volume
    np.clip(resampled, *CLIP_HU, out=resampled)
    return np.rint(resampled, out=resampled).astype(np.int16), shape, spacing_xyz_mm
