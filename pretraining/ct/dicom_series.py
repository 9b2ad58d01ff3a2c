"""DICOM headers, read by pydicom: Python code cannot crash over a damaged one, so one bad file costs itself alone.

Values are taken as they are stored. pydicom's validation would refuse sound scans, over numbers of more than 16
characters or over an unknown character set of names that nobody reads here.
"""

import errno
import io
import math
import re
import sys
import warnings
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pretraining.ct.dicom_file import DAMAGED, HeaderFile, begins_as_dicom
from pretraining.ct.scan import UnusableScanError
from pretraining.system.errors import environment_error

DICOM_SUFFIXES = (".dcm", ".ima")
# Storage classes of DICOM files without slices: media directories, waveforms, presentation states, reports and
# documents, raw data and segmentations, radiotherapy objects.
NOT_SLICES = tuple(
    f"1.2.840.10008.{root}."
    for root in ("1.3", "5.1.4.1.1.9", "5.1.4.1.1.11", "5.1.4.1.1.88", "5.1.4.1.1.104", "5.1.4.1.1.66", "5.1.4.1.1.481")
)
TEXTS = {
    keyword: Tag(keyword)
    for keyword in (
        "Modality", "SequenceName", "SliceThickness", "SeriesInstanceUID", "SeriesNumber", "ImagePositionPatient",
        "ImageOrientationPatient", "NumberOfFrames", "PixelSpacing", "SOPClassUID", "PatientID",
        "StudyInstanceUID", "FrameOfReferenceUID", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime",
        "EchoNumbers", "ImageType", "ContrastBolusAgent", "RescaleSlope", "RescaleIntercept",
        "PhotometricInterpretation",
    )
}  # fmt: skip
PASS_KEYWORDS = (
    "TemporalPositionIdentifier", "TriggerTime", "EchoNumbers", "ImageType", "SeriesNumber", "ContrastBolusAgent",
    "AcquisitionNumber",
)  # fmt: skip
"""What tells the passes of one series apart, the surest first."""
PIXELS = Tag("PixelData")
LAST_TAG = int(PIXELS)  # tags compare slowly
PADDING = (Tag("PixelPaddingValue"), Tag("PixelPaddingRangeLimit"))
OVERLAY_BITS = {Tag(group, 0x0102) for group in range(0x6000, 0x6020, 2)}
SHORTS = {
    keyword: Tag(keyword)
    for keyword in (
        "SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    )
}  # fmt: skip
TAGS = [*TEXTS.values(), *SHORTS.values(), *PADDING, *OVERLAY_BITS, PIXELS]
# Grey or colour (refused by whoever reads the voxels), in the sizes that GDCM reads.
SAMPLES, BITS = (None, 1, 3, 4), (1, 8, 12, 16, 24, 32)
MAX_VALUE_BYTES = 1024
UNDEFINED_LENGTH = 0xFFFFFFFF  # of compressed voxels
NATIVE = {ImplicitVRLittleEndian: "<", ExplicitVRLittleEndian: "<", ExplicitVRBigEndian: ">"}
"""The transfer syntaxes whose pixels are plain numbers, and their order of bytes."""


class NoSlice(Enum):
    """Why a file holds no slice."""

    NOT_DICOM = "not DICOM"
    DICOMDIR = "DICOMDIR"
    OTHER_OBJECT = "DICOM without slices"


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a file stores its pixels.

    Attributes:
        offset: of their first byte in the file.
        length: in bytes, `UNDEFINED_LENGTH` where they are compressed.
        byte_order: numpy's "<" or ">" of plain numbers; empty where the pixels must be decoded.
        bits: allocated, stored, and the highest one that is used.
        is_signed: Pixel Representation.
        is_grey: one sample per pixel that is an intensity, no index of a palette.
        has_overlay: whether bits above the stored ones hold overlays.
        slope: as in the file, and so is the intercept: HU = slope * stored + intercept; both empty if not stated.
        padding: the lowest and highest stored value that are declared as padding.
    """

    offset: int
    length: int
    byte_order: str
    bits: tuple[int, int, int]
    is_signed: bool
    is_grey: bool
    has_overlay: bool
    slope: str
    intercept: str
    padding: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Slice:
    """What the header of one DICOM file states. Texts are as in the file, and empty where it states nothing.

    Attributes:
        series_uid: the series it belongs to.
        identifier: GDCM's name of the series, of which the names of volumes in stores are made.
        whose: patient, study and frame of reference.
        passes: what `PASS_KEYWORDS` name.
        modality: "CT", for instance.
        size: columns, rows and frames.
        position: of the first voxel in mm; ``numbers`` makes numbers of this and the following.
        orientation: direction cosines of rows and columns.
        pixel_spacing: mm between rows, and between columns.
        pixels: how they are stored.
    """

    series_uid: str
    identifier: str
    whose: tuple[str, str, str]
    passes: tuple[str, ...]
    modality: str
    size: tuple[int, int, int]
    position: str
    orientation: str
    pixel_spacing: str
    pixels: Pixels

    @property
    def place_mm(self) -> float:
        """Position along the normal of the slice's plane; infinity where the header does not state it."""
        try:
            cosines = numbers(self.orientation)
            place = float(np.cross(cosines[:3], cosines[3:]) @ numbers(self.position))
        except ValueError:
            return math.inf
        return place if math.isfinite(place) else math.inf

    @property
    def is_localizer(self) -> bool:
        """Whether the header names it a localizer (scout), as value 3 of ImageType."""
        words = self.passes[PASS_KEYWORDS.index("ImageType")].split("\\")
        return len(words) > 2 and words[2].strip().upper() == "LOCALIZER"


def numbers(text: str) -> np.ndarray:
    """The numbers of a header's element, float64.

    Raises:
        ValueError: one of them is no number.
    """
    return np.array([float(word) for word in text.split("\\")])


def read_slice(path: Path) -> Slice | NoSlice:
    """Read the header of one file, no pipe and no device.

    It is DICOM by its first bytes, or by its suffix where they do not tell.

    Raises:
        UnusableScanError: it is or claims to be a DICOM image, but cannot be read.
        UserError: this process may not open any more files.
    """
    has_suffix = path.suffix.lower() in DICOM_SUFFIXES
    try:
        file = HeaderFile(io.FileIO(path))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise environment_error(error, path) from None  # no file can be read any more
        if not has_suffix:
            return NoSlice.NOT_DICOM
        raise UnusableScanError(f"cannot be read ({error.strerror}); check its permissions or copy it again") from None
    with file, warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            if path.name == "DICOMDIR":
                return NoSlice.DICOMDIR
            return _parse(file) if has_suffix or begins_as_dicom(file) else NoSlice.NOT_DICOM
        except UnusableScanError:
            raise
        except Exception:  # pydicom raises all kinds of errors over damaged headers
            raise UnusableScanError(DAMAGED) from None


def _parse(file: HeaderFile) -> Slice | NoSlice:
    """The slice of a file. Raises anything where it is damaged."""
    file.seek(0)
    start = read_partial(file, stop_when=lambda tag, vr, length: True, force=True)
    if str(start.file_meta.get("MediaStorageSOPClassUID", "")).startswith(NOT_SLICES):
        return NoSlice.OTHER_OBJECT
    header = read_dataset(
        file, *start.original_encoding, stop_when=lambda tag, vr, length: int(tag) > LAST_TAG,
        defer_size=MAX_VALUE_BYTES, specific_tags=TAGS,
    )  # fmt: skip
    text = {keyword: _text(header, tag) for keyword, tag in TEXTS.items()}
    if text["SOPClassUID"].startswith(NOT_SLICES):
        return NoSlice.OTHER_OBJECT
    number = {keyword: _short(header, keyword) for keyword in SHORTS}
    rows, columns, pixels = number["Rows"], number["Columns"], header.get_item(PIXELS, keep_deferred=True)
    if not (rows and columns and number["SamplesPerPixel"] in SAMPLES and number["BitsAllocated"] in BITS):
        raise UnusableScanError(DAMAGED)
    # Compressed voxels are not found where they have no end; others must end before the file does.
    if pixels.length != UNDEFINED_LENGTH and pixels.value_tell + pixels.length > file.seek(0, io.SEEK_END):
        raise UnusableScanError(DAMAGED)
    syntax = str(start.file_meta.get("TransferSyntaxUID", ""))
    details = text["SeriesNumber"] + text["SequenceName"] + text["SliceThickness"]  # what GDCM calls series details
    return Slice(
        series_uid=text["SeriesInstanceUID"],
        identifier=re.sub(r"[^0-9A-Za-z.]", "", f"{text['SeriesInstanceUID']}.{details}{rows}{columns}"),
        whose=(text["PatientID"], text["StudyInstanceUID"], text["FrameOfReferenceUID"]),
        passes=tuple(text[keyword] for keyword in PASS_KEYWORDS),
        modality=text["Modality"],
        size=(columns, rows, int(text["NumberOfFrames"] or 1)),
        position=text["ImagePositionPatient"],
        orientation=text["ImageOrientationPatient"],
        pixel_spacing=text["PixelSpacing"],
        pixels=Pixels(
            offset=pixels.value_tell,
            length=pixels.length,
            byte_order=NATIVE.get(syntax, "") if syntax else "<" if header.original_encoding[1] else ">",
            bits=tuple(number[keyword] or 0 for keyword in ("BitsAllocated", "BitsStored", "HighBit")),
            is_signed=bool(number["PixelRepresentation"]),
            is_grey=number["SamplesPerPixel"] in (None, 1) and text["PhotometricInterpretation"] != "PALETTE COLOR",
            has_overlay=any(header[tag].value for tag in header.keys() & OVERLAY_BITS),
            slope=text["RescaleSlope"],
            intercept=text["RescaleIntercept"],
            padding=_padding(header, bool(number["PixelRepresentation"])),
        ),
    )


def _padding(header: Dataset, is_signed: bool) -> tuple[int, int] | None:
    """The lowest and highest stored value that are padding, by their bytes: files differ in the type they state."""
    order = "little" if header.original_encoding[1] else "big"
    items = [header.get_item(tag) for tag in PADDING if tag in header]
    values = [item.value for item in items if item.value and len(item.value) in (2, 4)]
    ends = [int.from_bytes(value, order, signed=is_signed) for value in values]
    return (min(ends), max(ends)) if PADDING[0] in header and ends else None


def _short(header: Dataset, keyword: str) -> int | None:
    """A number of two bytes. pydicom's conversion takes as long for these as for all else, so it does only odd ones."""
    element = header.get_item(SHORTS[keyword], keep_deferred=True)
    if isinstance(element, RawDataElement) and element.VR in (None, "US") and len(element.value or b"") == 2:
        return int.from_bytes(element.value, "little" if element.is_little_endian else "big")
    return header.get(keyword)


def _text(header: Dataset, tag: BaseTag) -> str:
    element = header.get_item(tag, keep_deferred=True)
    # Most texts are those of all slices of a series, and archives have millions of slices.
    return sys.intern(((element and element.value) or b"").decode("latin-1").strip(" \0"))
