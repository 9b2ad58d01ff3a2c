"""The voxel spacing of NRRD and MetaImage files, as their text headers state it.

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
    stated = _nrrd_spacing(path) if path.suffix.lower() in (".nrrd", ".nhdr") else _metaimage_spacing(path)
    if stated is None:
        raise UnusableScanError("states no voxel spacing; export it again, with its geometry")
    if not np.allclose(stated, spacing_xyz_mm, rtol=SPACING_TOLERANCE, atol=0):
        told = [" x ".join(f"{edge:g}" for edge in edges) for edges in (stated, spacing_xyz_mm)]
        raise UnusableScanError(f"states a voxel spacing of {told[0]} mm, which ITK reads as {told[1]} mm; correct it")


def _nrrd_spacing(path: Path) -> list[float] | None:
    fields = _fields(path, ":")
    if "space directions" in fields:
        vectors = [_numbers(vector) for vector in _VECTOR.findall(fields["space directions"])]
        with np.errstate(over="ignore", invalid="ignore"):
            return _three([float(np.linalg.norm(vector)) for vector in vectors])
    return _three(_numbers(fields.get("spacings", "")))


def _metaimage_spacing(path: Path) -> list[float] | None:
    fields = _fields(path, "=")
    return _three(_numbers(fields.get("ElementSpacing") or fields.get("ElementSize") or ""))


def _fields(path: Path, separator: str) -> dict[str, str]:
    """The header's lines, by what stands before the separator; it ends with an empty line, or where voxels begin."""
    with path.open("rb") as file:
        text = file.read(MAX_HEADER_BYTES).decode("latin-1")
    fields = {}
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if not line or key.strip() == "ElementDataFile":
            break
        if found:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _numbers(text: str) -> list[float]:
    """Numbers with blanks or commas between them; none where one of them is no number."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return []


def _three(numbers: list[float]) -> list[float] | None:
    """The first three, for a fourth axis of length 1 is dropped; None where there are fewer."""
    return numbers[:3] if len(numbers) >= 3 else None
