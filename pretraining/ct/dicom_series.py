"""DICOM headers, read by pydicom: Python code cannot crash over a damaged one, so one bad file costs itself alone.

Values are taken as they are stored. pydicom's validation would refuse sound scans, over numbers of more than 16
characters or over an unknown character set of names that nobody reads here.
"""

import errno
import io
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag

from pretraining.ct.scan import UnusableScanError
from pretraining.system.errors import environment_error

DAMAGED = "cannot be read as DICOM, it is truncated or damaged; copy it again or remove it"
DEFLATED = "is a deflated DICOM file, which can unpack to any size; convert it to another transfer syntax"
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
        "ImageOrientationPatient", "NumberOfFrames", "PixelSpacing",
    )
}  # fmt: skip
PIXELS = Tag("PixelData")
LAST_TAG = int(PIXELS)  # tags compare slowly
TAGS = [*TEXTS.values(), *map(Tag, ("SamplesPerPixel", "Rows", "Columns", "BitsAllocated")), PIXELS]
# Grey or colour (refused by whoever reads the voxels), in the sizes that GDCM reads.
SAMPLES, BITS = (None, 1, 3, 4), (1, 8, 12, 16, 24, 32)
MAX_HEADER_BYTES = 16 * 2**20
MAX_VALUE_BYTES = 1024
UNDEFINED_LENGTH = 0xFFFFFFFF  # of compressed voxels


@dataclass(frozen=True)
class Slice:
    """What the header of one DICOM file states. Texts are as in the file, and empty where it states nothing.

    Attributes:
        series_uid: the series it belongs to.
        identifier: GDCM's name of the series, of which the names of volumes in stores are made.
        modality: "CT", for instance.
        size: columns, rows and frames.
        position: of the first voxel in mm; ``numbers`` makes numbers of this and the following.
        orientation: direction cosines of rows and columns.
        pixel_spacing: mm between rows, and between columns.
    """

    series_uid: str
    identifier: str
    modality: str
    size: tuple[int, int, int]
    position: str
    orientation: str
    pixel_spacing: str

    @property
    def place_mm(self) -> float:
        """Position along the normal of the slice's plane; infinity where the header does not state it."""
        try:
            cosines = numbers(self.orientation)
            place = float(np.cross(cosines[:3], cosines[3:]) @ numbers(self.position))
        except ValueError:
            return math.inf
        return place if math.isfinite(place) else math.inf


def numbers(text: str) -> np.ndarray:
    """The numbers of a header's element, float64.

    Raises:
        ValueError: one of them is no number.
    """
    return np.array([float(word) for word in text.split("\\")])


def read_slice(path: Path) -> Slice | None:
    """Read the header of one file, no pipe and no device; None where it is no DICOM image.

    It is one by its first bytes, or by its suffix where they do not tell.

    Raises:
        UnusableScanError: it is or claims to be a DICOM image, but cannot be read.
        UserError: this process may not open any more files.
    """
    has_suffix = path.suffix.lower() in DICOM_SUFFIXES
    try:
        file = _HeaderFile(io.FileIO(path))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise environment_error(error, path) from None  # no file can be read any more
        if not has_suffix:
            return None
        raise UnusableScanError(f"cannot be read ({error.strerror}); check its permissions or copy it again") from None
    with file, warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            is_dicom = file.read(132)[128:] == b"DICM" or has_suffix
            return _parse(file) if is_dicom and path.name != "DICOMDIR" else None
        except UnusableScanError:
            raise
        except Exception:  # pydicom raises all kinds of errors over damaged headers
            raise UnusableScanError(DAMAGED) from None


class _HeaderFile(io.BufferedReader):
    """A file of which no more is read than a header can have, whatever lengths the header announces."""

    bytes_left = MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        if size < 0:  # pydicom asks for all that is left only to inflate it
            raise UnusableScanError(DEFLATED)
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise UnusableScanError(DAMAGED)
        return super().read(size)


def _parse(file: _HeaderFile) -> Slice | None:
    """The slice of a file; None where its storage class has no slices. Raises anything where it is damaged."""
    file.seek(0)
    start = read_partial(file, stop_when=lambda tag, vr, length: True, force=True)
    if str(start.file_meta.get("MediaStorageSOPClassUID", "")).startswith(NOT_SLICES):
        return None
    header = read_dataset(
        file, *start.original_encoding, stop_when=lambda tag, vr, length: int(tag) > LAST_TAG,
        defer_size=MAX_VALUE_BYTES, specific_tags=TAGS,
    )  # fmt: skip
    rows, columns, pixels = header.get("Rows"), header.get("Columns"), header.get_item(PIXELS, keep_deferred=True)
    if not (rows and columns and header.get("SamplesPerPixel") in SAMPLES and header.get("BitsAllocated") in BITS):
        raise UnusableScanError(DAMAGED)
    # Compressed voxels are not found where they have no end; others must end before the file does.
    if pixels.length != UNDEFINED_LENGTH and pixels.value_tell + pixels.length > file.seek(0, io.SEEK_END):
        raise UnusableScanError(DAMAGED)
    text = {keyword: _text(header, tag) for keyword, tag in TEXTS.items()}
    details = text["SeriesNumber"] + text["SequenceName"] + text["SliceThickness"]  # what GDCM calls series details
    return Slice(
        series_uid=text["SeriesInstanceUID"],
        identifier=re.sub(r"[^0-9A-Za-z.]", "", f"{text['SeriesInstanceUID']}.{details}{rows}{columns}"),
        modality=text["Modality"],
        size=(columns, rows, int(text["NumberOfFrames"] or 1)),
        position=text["ImagePositionPatient"],
        orientation=text["ImageOrientationPatient"],
        pixel_spacing=text["PixelSpacing"],
    )


def _text(header: Dataset, tag: BaseTag) -> str:
    element = header.get_item(tag, keep_deferred=True)
    return ((element and element.value) or b"").decode("latin-1").strip(" \0")
