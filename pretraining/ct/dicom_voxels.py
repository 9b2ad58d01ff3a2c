"""The voxels of DICOM files in HU, each slice by its own rescale, its own sign and its own padding.

Numbers that are stored plainly are read without GDCM, which cuts them to the bits that the header calls stored:
padding of -2000 in a slice of 12 bits would come in as +1072 HU. GDCM decodes the others.
"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.ct.checks import MAX_HU, check_pixels
from pretraining.ct.dicom_series import Pixels, Slice
from pretraining.ct.scan import UnusableScanError

AIR_HU = -1024
"""What padding becomes; what is below becomes it where HU are clipped."""
CORNER_VOXELS = 3
PLAIN_BITS = (8, 16, 32)


def read_slices(files: list[Path], slices: list[Slice]) -> np.ndarray:
    """The voxels of slices in HU, (slices, rows, columns): int16 where they fit, else int32 or float32.

    Args:
        files: of one slice each.
        slices: their headers; all of one size.

    Raises:
        UnusableScanError: they are in colour.
        OSError, RuntimeError, ValueError: a file cannot be read, or is too short.
    """
    columns, rows, _ = slices[0].size
    values = np.empty((len(slices), rows, columns), np.int16)
    for index, (file, each) in enumerate(zip(files, slices, strict=True)):
        stored = read_stored(file, each)
        hu = _in_hu(_decoded(file), each.pixels, is_rescaled=True) if stored is None else _in_hu(stored[0], each.pixels)
        values = _put(values, index, hu)
    return values


def read_frames(file: Path, whole: Slice, frames: list[Slice], order: list[int]) -> np.ndarray:
    """The voxels of the frames of one file in HU, as `read_slices` returns them.

    Args:
        file: with several frames.
        whole: its header.
        frames: what the header states of each frame, as the file has them.
        order: the frames to read, by their indices in the file.

    Raises:
        UnusableScanError: they are in colour, or compressed and differ in rescale.
        OSError, RuntimeError, ValueError: the file cannot be read, or is too short.
    """
    stored = read_stored(file, whole)
    if stored is None and len({(each.pixels.slope, each.pixels.intercept) for each in frames}) > 1:
        raise UnusableScanError(
            "has compressed frames that differ in rescale slope or intercept; decompress it (gdcmconv --raw)"
        )
    source = sitk.GetArrayFromImage(_decode(file)) if stored is None else stored
    if len(source) != len(frames):
        raise ValueError(f"{len(source)} of {len(frames)} frames")
    values = np.empty((len(order), *source.shape[1:]), np.int16)
    for place, index in enumerate(order):
        values = _put(values, place, _in_hu(source[index], frames[index].pixels, is_rescaled=stored is None))
    return values


def read_stored(file: Path, header: Slice) -> np.ndarray | None:
    """Stored values, (frames, rows, columns); None where they are not plain numbers, or in colour.

    Raises:
        UnusableScanError: the header contradicts the values, or leaves open where their bits are.
        OSError, ValueError: the file cannot be read, or is too short.
    """
    pixels, (columns, rows, frames) = header.pixels, header.size
    allocated, used, high = pixels.bits
    is_plain = pixels.byte_order and allocated in PLAIN_BITS and not (allocated == 8 and pixels.byte_order == ">")
    below = high + 1 - used if used and high else 0  # unused bits; since 2011 the standard allows none
    if below and pixels.is_grey and not (is_plain and 0 < below <= allocated - used):
        raise UnusableScanError(
            f"states {used} stored bits up to bit {high} (HighBit), which must be {used - 1} here; correct its header, "
            "or export the original CT series"
        )
    if not (is_plain and pixels.is_grey):
        return None
    kind = np.dtype(f"{pixels.byte_order}{'i' if pixels.is_signed else 'u'}{allocated // 8}")
    needed, row_bytes = frames * rows * columns * kind.itemsize, columns * kind.itemsize
    if not needed <= pixels.length < needed + row_bytes:  # more would be rows of another length, or other frames
        raise ValueError(f"{pixels.length} bytes of pixels, not {needed}")
    with file.open("rb") as stream:
        stream.seek(pixels.offset)
        content = stream.read(needed)
    stored = np.frombuffer(content, kind).reshape(frames, rows, columns)
    if below:
        stored = _without_bits_below(stored, below, pixels)
    return stored if not used or used >= allocated else _without_unused_bits(stored, pixels)


def _without_bits_below(stored: np.ndarray, below: int, pixels: Pixels) -> np.ndarray:
    """Stored values of which the header says that they begin above the lowest bits, as some wrote them until 2011.

    GDCM would take the lowest bits for them.

    Raises:
        UnusableScanError: those bits are used, so that the values may be there, and HighBit wrong.
    """
    if not pixels.has_overlay and (stored & ((1 << below) - 1)).any():
        _, used, high = pixels.bits
        raise UnusableScanError(
            f"states {used} stored bits up to bit {high} (HighBit), but uses the {below} bits below them, too; "
            f"set HighBit to {used - 1} if you know that its values are in the lowest bits, or export the original CT"
        )
    return stored >> below  # keeps the sign


def _without_unused_bits(stored: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Stored values where the bits above the stored ones are no part of the numbers.

    They are where those bits are used without holding overlays: of signed numbers they repeat the sign, and padding
    can be beyond the stored bits.

    Raises:
        UnusableScanError: what unsigned numbers have there is neither.
    """
    used = pixels.bits[1]
    unsigned = stored.view(f"{stored.dtype.byteorder}u{stored.dtype.itemsize}")
    if pixels.has_overlay:
        unsigned = unsigned & ((1 << used) - 1)
    elif not pixels.is_signed:
        beyond = stored[stored >> used > 0]
        low, high = pixels.padding or (1, 0)
        if not ((beyond >= low) & (beyond <= high)).all():
            raise UnusableScanError(
                f"has values beyond the {used} bits that its header calls stored, which are neither declared padding "
                "nor declared overlays; export the original CT series"
            )
        return stored
    elif unsigned.max(initial=0) >> used:
        return stored
    if not pixels.is_signed:
        return unsigned
    sign = 1 << (used - 1)
    return (unsigned.astype(np.int64) ^ sign) - sign


def _decode(file: Path) -> sitk.Image:
    """A file as GDCM decodes and rescales it."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    image = reader.Execute()
    pixel_type = image.GetPixelIDTypeAsString()
    check_pixels(image.GetDimension(), image.GetSize(), image.GetNumberOfComponentsPerPixel(), pixel_type)
    return image


def _decoded(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(_decode(file))[0]


def _in_hu(values: np.ndarray, pixels: Pixels, is_rescaled: bool = False) -> np.ndarray:
    """One slice in HU, (rows, columns), with its padding made air.

    Args:
        values: as stored, or rescaled already.
        pixels: how they are stored.
        is_rescaled: whether ``values`` are HU.
    """
    slope, intercept = float(pixels.slope or 1), float(pixels.intercept or 0)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ValueError(f"a rescale slope of {slope:g}, an intercept of {intercept:g}")
    if not is_rescaled:
        values = _scaled(values, slope, intercept)
    elif values.dtype.kind in "iu":
        values = values.astype(np.int64)
    padding = _padding_after_decoding(pixels) if is_rescaled else pixels.padding
    if padding is None:
        return values
    low, high = sorted(slope * end + intercept for end in padding)
    if high <= AIR_HU:
        return values
    tolerance = abs(slope) / 2
    is_padding = (values > low - tolerance) & (values < high + tolerance)
    if low <= MAX_HU:  # where tissue can have these values
        is_padding = _at_corners(is_padding)
    values[is_padding] = AIR_HU
    return values


def _scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """A new array of stored values in HU: int64, or float32 where the rescale is not of whole numbers."""
    if slope.is_integer() and intercept.is_integer():
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return (stored * slope + intercept).astype(np.float32)


def _padding_after_decoding(pixels: Pixels) -> tuple[int, int] | None:
    """What GDCM makes of one stored value that is declared as padding: it cuts it to the stored bits."""
    used = pixels.bits[1]
    if pixels.padding is None or pixels.padding[0] != pixels.padding[1] or not used:
        return pixels.padding
    value = pixels.padding[0] % (1 << used)
    if pixels.is_signed and value >> (used - 1):
        value -= 1 << used
    return value, value


def _at_corners(mask: np.ndarray) -> np.ndarray:
    """The parts of a mask of one slice, (rows, columns), that fill a corner, as what lies around a circle does."""
    if not mask[:: mask.shape[0] - 1, :: mask.shape[1] - 1].any():
        return np.zeros_like(mask)
    from scipy.ndimage import label  # slow to load, and hardly ever needed

    labels, _ = label(mask)
    ends = (slice(None, CORNER_VOXELS), slice(-CORNER_VOXELS, None))
    corners = [(rows, columns) for rows in ends for columns in ends if mask[rows, columns].all()]
    return np.isin(labels, [labels[corner][0, 0] for corner in corners])


def _put(values: np.ndarray, index: int, slice_hu: np.ndarray) -> np.ndarray:
    """Put a slice into a volume; returns the volume, of a wider number type where the slice needs one."""
    if slice_hu.dtype.kind == "f":
        needed = np.float32
    else:
        limits = np.iinfo(np.int16)
        fits = limits.min <= slice_hu.min() and slice_hu.max() <= limits.max
        needed = np.int16 if fits else np.int32
    kinds = (np.int16, np.int32, np.float32)
    kind = max(values.dtype.type, needed, key=kinds.index)
    values = values.astype(kind, copy=False)
    values[index] = slice_hu
    return values
