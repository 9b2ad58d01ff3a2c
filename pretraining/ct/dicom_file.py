"""A DICOM file from its outside: whether its first bytes are DICOM, and how much of it may be read for a header."""

import io
from typing import Literal

from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from pretraining.ct.scan import UnusableScanError

DAMAGED = "cannot be read as DICOM, it is truncated or damaged; copy it again or remove it"
DEFLATED = "is a deflated DICOM file, which can unpack to any size; convert it to another transfer syntax"
MAX_HEADER_BYTES = 16 * 2**20
PREAMBLE_BYTES = 128
MAX_FIRST_BYTES = 1024
"""Of the first element of a file without preamble; those that come first are short."""


class HeaderFile(io.BufferedReader):
    """A file of which no more is read than a header can have, whatever lengths the header announces."""

    bytes_left = MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        if size < 0:  # pydicom asks for all that is left only to inflate it
            raise UnusableScanError(DEFLATED)
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise UnusableScanError(DAMAGED)
        return super().read(size)


def begins_as_dicom(file: HeaderFile) -> bool:
    """Whether a file begins with a preamble, or with two elements in their order, both of group 2 or of group 8."""
    start = file.read(PREAMBLE_BYTES + 4)
    if start[PREAMBLE_BYTES:] == b"DICM":
        return True
    order = "big" if start[:1] == b"\0" else "little"
    first = _element(start, order)
    if first is None or first[0] not in (2, 8):
        return False
    file.seek(first[2])
    second = _element(file.read(12), order)
    return second is not None and second[0] == first[0] and second[1] > first[1]


def _element(start: bytes, order: Literal["little", "big"]) -> tuple[int, int, int] | None:
    """Group and number of the element that begins here, and its length in all; None where none can begin here."""
    if len(start) < 12:
        return None
    group, number = (int.from_bytes(start[at : at + 2], order) for at in (0, 2))
    vr = start[4:6].decode("latin-1")
    if vr in EXPLICIT_VR_LENGTH_32:
        begin, length = 12, int.from_bytes(start[8:12], order)
    elif vr in frozenset(VR):
        begin, length = 8, int.from_bytes(start[6:8], order)
    elif order == "little":
        begin, length = 8, int.from_bytes(start[4:8], order)
    else:
        return None
    return (group, number, begin + length) if length <= MAX_FIRST_BYTES and length % 2 == 0 else None
