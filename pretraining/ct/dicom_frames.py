"""Frames of a multi-frame DICOM file (Enhanced CT, Legacy Converted Enhanced CT), each as a slice of its own.

Where a frame lies and how its values are scaled stands in functional groups: one that all frames share, and one for
each. ITK takes frames in the order of the file and the rescale of the first.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from pretraining.ct.dicom_file import DAMAGED
from pretraining.ct.dicom_series import Slice
from pretraining.ct.scan import UnusableScanError

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
# In the order of `PASS_KEYWORDS`: phase, time after the heart's beat, echo (CT has none), kind of image, series,
# contrast, acquisition.
PASSES = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("FrameContentSequence", "StackID"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("FrameContentSequence", "SeriesNumber"),  # of the whole file
    ("ContrastBolusUsageSequence", "ContrastBolusAgentNumber"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
)


def read_frame_headers(path: Path, whole: Slice) -> list[Slice]:
    """What the header states of each frame, in the order of the file.

    Args:
        path: a file with several frames.
        whole: its header as `read_slice` gives it.

    Raises:
        UnusableScanError: it does not state where each frame lies, or is a part of several files.
    """
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            return _frames(dcmread(path, stop_before_pixels=True, force=True), whole)
        except (UnusableScanError, OSError):
            raise
        except Exception:  # pydicom raises all kinds of errors over damaged headers
            raise UnusableScanError(DAMAGED) from None


def _frames(header: Dataset, whole: Slice) -> list[Slice]:
    parts = int(header.get("InConcatenationTotalNumber") or 1)
    if parts > 1:
        raise UnusableScanError(f"is one of {parts} files of a concatenation; merge them into one file")
    groups = list(header.get(PER_FRAME) or ())
    if not groups:
        raise UnusableScanError(
            f"has {whole.size[2]} frames without a position for each; export it as Enhanced CT or a CT series"
        )
    if len(groups) != whole.size[2]:
        raise UnusableScanError(
            f"claims {whole.size[2]} frames but describes {len(groups)}: frames are missing; export it again"
        )
    shared = next(iter(header.get(SHARED) or ()), Dataset())
    return [_frame(whole, header, group, shared) for group in groups]


def _frame(whole: Slice, header: Dataset, group: Dataset, shared: Dataset) -> Slice:
    def text(sequence: str, keyword: str) -> str:
        """A value of the frame's functional group, else of the shared one, else of the whole file."""
        return next(_texts(keyword, _item(group, sequence), _item(shared, sequence), header), "")

    passes = tuple(text(sequence, keyword) for sequence, keyword in PASSES)
    return replace(
        whole,
        size=(*whole.size[:2], 1),
        position=text("PlanePositionSequence", "ImagePositionPatient"),
        orientation=text("PlaneOrientationSequence", "ImageOrientationPatient"),
        pixel_spacing=text("PixelMeasuresSequence", "PixelSpacing"),
        passes=passes,
        pixels=replace(
            whole.pixels,
            slope=text("PixelValueTransformationSequence", "RescaleSlope"),
            intercept=text("PixelValueTransformationSequence", "RescaleIntercept"),
        ),
    )


def _item(group: Dataset, sequence: str) -> Dataset:
    return next(iter(group.get(sequence) or ()), Dataset())


def _texts(keyword: str, *holders: Dataset) -> Iterator[str]:
    """The value in each data set that has one, as a single file would state it."""
    for holder in holders:
        value = holder.get(keyword)
        if value is not None and value != "":
            values = value if isinstance(value, MultiValue) else [value]
            yield "\\".join(map(str, values))
