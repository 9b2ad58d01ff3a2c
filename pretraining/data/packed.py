"""The compressed voxels of NRRD and MetaImage files: whether they are whole.

ITK compares no checksum of NRRD, and of a MetaImage file whose voxels cannot be unpacked to the end it returns what it
has, with a line on the terminal but no error. So they are unpacked here once more, a little at a time, and compared.
"""

import re
import zlib
from pathlib import Path
from typing import BinaryIO

from pretraining.data.text_header import MAX_HEADER_BYTES, fields, is_nrrd

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
