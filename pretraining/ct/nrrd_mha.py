"""NRRD and MetaImage files, read by ITK; what ITK does not compare is compared here, with the file's text header.

Where a header states no spacing, or one that it cannot compute with, ITK takes 1 mm without a word. It gives what it
could unpack of damaged MetaImage voxels, and compares no checksum of NRRD.
"""

import os
import re
import zlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from pretraining.ct.checks import check_grid, check_stated_spacing
from pretraining.ct.scan import UnusableScanError

MAX_HEADER_BYTES = 2**20
MAX_FILES = 10**4
"""Of the voxels of one scan."""
DATA_FILE = ("data file", "datafile", "ElementDataFile")
"""What names the files of voxels that are not in the file of their header."""
SPACES = (*("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las"),)
"""NRRD's names of axes in a patient."""
BLOCK_BYTES = 2**20
GZIP_OR_ZLIB = 47  # zlib's way to ask for either, by what the stream begins with
_VECTOR = re.compile(r"\(([^)]*)\)")


@dataclass(frozen=True)
class TextHeader:
    """The header of a file: its lines, by what is before the separator, and the byte after it, where voxels begin.

    Where the files of the voxels are a list, which ends the header, these are its lines.
    """

    path: Path
    is_nrrd: bool
    fields: dict[str, str]
    end: int
    listed: tuple[str, ...] = ()


def read_nrrd_or_mha(path: Path, reader: sitk.ImageFileReader) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Voxels, (z, y, x), and their edges in mm along x, y, z, of a file whose header ``reader`` has read.

    Raises:
        UnusableScanError: the header does not pass the checks, or does not state the spacing that ITK has read.
        OSError, EOFError, ValueError, RuntimeError, zlib.error: the voxels are not whole.
    """
    spacing = reader.GetSpacing()
    check_grid(reader.GetSize(), spacing)
    header = read_header(path)
    check_stated_spacing(stated_spacing(header), spacing)
    if not states_orientation(header):
        raise UnusableScanError(
            "states no orientation (NRRD: space and space directions; MetaImage: TransformMatrix), so where its head "
            "is, is not known; convert it again from DICOM"
        )
    values = sitk.GetArrayFromImage(reader.Execute())
    _check_packed(header, values.nbytes)
    return _in_stated_units(values, header), spacing


def read_header(path: Path) -> TextHeader:
    """Read a header, which ends with an empty line, or where the voxels of MetaImage begin."""
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    found: dict[str, str] = {}
    with path.open("rb") as file:
        while line := file.readline(MAX_HEADER_BYTES).rstrip(b"\r\n"):
            key, separated, value = line.decode("latin-1").partition(":" if is_nrrd else "=")
            key = key.strip()
            if separated:
                found.setdefault(key, value.strip())
            if key in DATA_FILE and value.strip().upper().startswith("LIST"):
                lines = file.read(MAX_HEADER_BYTES).decode("latin-1").splitlines()
                return TextHeader(path, is_nrrd, found, file.tell(), tuple(filter(None, map(str.strip, lines))))
            if key == "ElementDataFile" or file.tell() > MAX_HEADER_BYTES:
                break
        return TextHeader(path, is_nrrd, found, file.tell())


def files_of(path: Path) -> tuple[Path, ...]:
    """A file, and those of its voxels where it has some of their own and they are there."""
    try:
        return (path, *(file for file in voxel_files(read_header(path)) if file.is_file()))
    except OSError:
        return (path,)


def check_voxel_files(path: Path) -> None:
    """Raise `UnusableScanError` where a header names a file of voxels that is not there."""
    for file in voxel_files(read_header(path)):
        if not file.exists():
            raise UnusableScanError(f"is a header without {file.name}, the file of its voxels; copy that, too")


def voxel_files(header: TextHeader) -> list[Path]:
    """The files that a header names as those of its voxels, by a name, a list, or a pattern with its numbers."""
    name = next((header.fields[key] for key in DATA_FILE if key in header.fields), "LOCAL")
    pattern, *rest = name.split() or [""]
    names = list(header.listed) or ([] if name.upper() == "LOCAL" else [name])
    if "%" in pattern and len(rest) >= 3:
        try:
            first, last, step = map(int, rest[:3])
            names = [pattern % number for number in islice(range(first, last + 1, step), MAX_FILES)]
        except (ValueError, TypeError):
            pass  # no pattern, but a name
    paths = (Path(os.path.normpath(header.path.parent / name)) for name in names)
    return [path for path in paths if path != header.path]


def stated_spacing(header: TextHeader) -> list[float] | None:
    """Voxel edges in mm along x, y, z, as the header states them; None where it does not."""
    fields = header.fields
    if not header.is_nrrd:
        edges = _numbers(fields.get("ElementSpacing") or fields.get("ElementSize") or "")
    elif "space directions" in fields:
        vectors = [_numbers(vector) for vector in _VECTOR.findall(fields["space directions"])]
        with np.errstate(over="ignore", invalid="ignore"):
            edges = [float(np.linalg.norm(vector)) for vector in vectors]
    else:
        edges = _numbers(fields.get("spacings", ""))
    return edges[:3] if len(edges) >= 3 else None  # a fourth axis of length 1 is dropped


def states_orientation(header: TextHeader) -> bool:
    """Whether a header states where the axes run in the patient; ITK takes left, back and head where it does not."""
    fields = header.fields
    if header.is_nrrd:
        return fields.get("space", "").lower().removesuffix("-time") in SPACES and "space directions" in fields
    return any(fields.get(key) for key in ("TransformMatrix", "Orientation", "Rotation"))


def _in_stated_units(values: np.ndarray, header: TextHeader) -> np.ndarray:
    """The voxels by MetaImage's slope and offset, which ITK does not apply; float32 where there are any.

    Raises:
        UnusableScanError: they are no numbers.
    """
    words = [header.fields.get(f"ElementToIntensityFunction{name}", "") for name in ("Slope", "Offset")]
    if header.is_nrrd or not any(words):
        return values
    slope, offset = (_numbers(word or neutral) for word, neutral in zip(words, ("1", "0"), strict=True))
    if len(slope) != 1 or len(offset) != 1 or not np.isfinite([*slope, *offset]).all() or slope[0] == 0:
        raise UnusableScanError(
            f"states no possible slope and offset of its values ({', '.join(filter(None, words))}); correct its header"
        )
    if (slope[0], offset[0]) == (1.0, 0.0):
        return values
    return values.astype(np.float32) * np.float32(slope[0]) + np.float32(offset[0])


def _numbers(text: str) -> list[float]:
    """Numbers with blanks or commas between them; none where one of them is no number."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return []


def _check_packed(header: TextHeader, nbytes: int) -> None:
    """Compare compressed voxels with their checksum and with the ``nbytes`` that they unpack to.

    Passes over voxels that are not compressed, and over those in several files.

    Raises:
        OSError, EOFError, ValueError, zlib.error: they are not whole.
    """
    file = _packed_file(header)
    if file is None:
        return
    is_attached = file == header.path
    with file.open("rb") as stream:
        stream.seek(header.end if is_attached else 0)
        used = _unpack(stream, nbytes)
    # Where a MetaImage file with voxels of its own does not state how many bytes they have, ITK begins with the header.
    stated = header.fields.get("CompressedDataSize", "0" if is_attached and not header.is_nrrd else used)
    if int(stated) < used:
        raise ValueError(f"the header announces {stated} of {used} compressed bytes")


def _packed_file(header: TextHeader) -> Path | None:
    """The file that holds the compressed voxels; None where they are not compressed, or in several files."""
    fields = header.fields
    if header.is_nrrd:
        is_packed = (
            fields.get("encoding", "").lower() in ("gzip", "gz") and not {"line skip", "byte skip"} & fields.keys()
        )
    else:
        is_packed = fields.get("CompressedData", "").lower().startswith(("t", "1"))
    file, *others = voxel_files(header) or [header.path]
    return file if is_packed and not others and file.is_file() else None


def _unpack(stream: BinaryIO, nbytes: int) -> int:
    """The number of bytes of one compressed stream, which must unpack to ``nbytes``; zlib compares its checksum."""
    unpacker, used, unpacked = zlib.decompressobj(GZIP_OR_ZLIB), 0, 0
    while not unpacker.eof:
        block = unpacker.unconsumed_tail
        if not block:
            block = stream.read(BLOCK_BYTES)
            used += len(block)
        before = unpacked
        unpacked += len(unpacker.decompress(block, BLOCK_BYTES))
        if unpacked > nbytes or (not block and unpacked == before):
            break
    if unpacked != nbytes or not unpacker.eof:
        raise EOFError(f"{unpacked} bytes of {nbytes} unpacked")
    return used - len(unpacker.unused_data)
