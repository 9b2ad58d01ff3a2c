"""The text headers of NRRD and MetaImage files, and the voxel spacing as they state it.

ITK takes 1 mm, without a word, where a header states no spacing or one that it cannot compute with.
"""

import re
from pathlib import Path

import numpy as np

from pretraining.data.scan import UnusableScanError

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
