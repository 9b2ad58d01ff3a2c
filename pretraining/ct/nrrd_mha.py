"""The text headers of NRRD and MetaImage files, and the voxel spacing as they state it.

ITK takes 1 mm, without a word, where a header states no spacing or one that it cannot compute with.
"""

import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pretraining.ct.scan import UnusableScanError

MAX_HEADER_BYTES = 2**20
SPACING_TOLERANCE = 0.01
_VECTOR = re.compile(r"\(([^)]*)\)")


def check_spacing(path: Path, spacing_xyz_mm: tuple[float, float, float]) -> None:
    """Raise `UnusableScanError` unless the header of a file states the spacing that ITK has read."""
    stated = _nrrd_spacing(path) if is_nrrd(path) else _metaimage_spacing(path)
    if stated is None:
        raise UnusableScanError("states no voxel spacing; export it again, with its geometry")
    if not np.allclose(stated, spacing_xyz_mm, rtol=SPACING_TOLERANCE, atol=0):
        told = [" x ".join(f"{edge:g}" for edge in edges) for edges in (stated, spacing_xyz_mm)]
        raise UnusableScanError(f"states a voxel spacing of {told[0]} mm, which ITK reads as {told[1]} mm; correct it")


def _nrrd_spacing(path: Path) -> list[float] | None:
    header = fields(path)
    if "space directions" in header:
        vectors = [_numbers(vector) for vector in _VECTOR.findall(header["space directions"])]
        with np.errstate(over="ignore", invalid="ignore"):
            return _three([float(np.linalg.norm(vector)) for vector in vectors])
    return _three(_numbers(header.get("spacings", "")))


def _metaimage_spacing(path: Path) -> list[float] | None:
    header = fields(path)
    return _three(_numbers(header.get("ElementSpacing") or header.get("ElementSize") or ""))


def fields(path: Path) -> dict[str, str]:
    """The header's lines, by what stands before the separator; it ends with an empty line, or where voxels begin."""
    separator = ":" if is_nrrd(path) else "="
    with path.open("rb") as file:
        text = file.read(MAX_HEADER_BYTES).decode("latin-1")
    found = {}
    for line in text.splitlines():
        key, separated, value = line.partition(separator)
        if not line:
            break
        if separated:
            found.setdefault(key.strip(), value.strip())
        if key.strip() == "ElementDataFile":
            break
    return found


def is_nrrd(path: Path) -> bool:
    """Whether a file has a suffix of NRRD; those of MetaImage are the others with a text header."""
    return path.suffix.lower() in (".nrrd", ".nhdr")


def _numbers(text: str) -> list[float]:
    """Numbers with blanks or commas between them; none where one of them is no number."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return []


def _three(numbers: list[float]) -> list[float] | None:
    """The first three, for a fourth axis of length 1 is dropped; None where there are fewer."""
    return numbers[:3] if len(numbers) >= 3 else None


BLOCK_BYTES = 2**20
GZIP_OR_ZLIB = 47  # zlib's way to ask for either, by what the stream begins with
_END_OF_NRRD, _END_OF_METAIMAGE = re.compile(rb"\n\r?\n"), re.compile(rb"^ElementDataFile[ \t]*=[^\n]*\n", re.MULTILINE)


def check_packed(path: Path, nbytes: int) -> None:
    """Compare the compressed voxels of a file with their checksum and with the ``nbytes`` that they unpack to.

    Passes over voxels that are not compressed, and over those in several files.

    Raises:
        OSError, EOFError, ValueError, zlib.error: they are not whole.
    """
    header = fields(path)
    file = _packed_in(path, header)
    if file is None:
        return
    with file.open("rb") as stream:
        if file == path:
            end = (_END_OF_NRRD if is_nrrd(path) else _END_OF_METAIMAGE).search(stream.read(MAX_HEADER_BYTES))
            stream.seek(end.end() if end else 0)
        used = _unpack(stream, nbytes)
    # Where a MetaImage file with voxels of its own does not say how many they are, ITK begins with the header.
    stated = header.get("CompressedDataSize", "0" if file == path and not is_nrrd(path) else used)
    if int(stated) < used:
        raise ValueError(f"the header announces {stated} of {used} compressed bytes")


def _packed_in(path: Path, header: dict[str, str]) -> Path | None:
    """The file that holds the compressed voxels; None where they are not compressed, or in several files."""
    if is_nrrd(path):
        packed = header.get("encoding", "").lower() in ("gzip", "gz") and not {"line skip", "byte skip"} & header.keys()
        name = header.get("data file") or header.get("datafile") or path.name
    else:
        packed = header.get("CompressedData", "").lower().startswith(("t", "1"))
        name = header.get("ElementDataFile", "LOCAL")
        name = path.name if name.lower() == "local" else name
    file = path.parent / name
    return file if packed and file.is_file() else None


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
            raise EOFError(f"{unpacked} bytes of {nbytes} unpacked")
    if unpacked != nbytes:
        raise EOFError(f"{unpacked} bytes of {nbytes} unpacked")
    return used - len(unpacker.unused_data)
