"""From slices to scans: which files below INPUT are one volume.

A series is its identifier within INPUT, whatever the folders. Copies of a slice count once. Folders that anonymising
has given the same identifier, but that hold different scans, stay apart.
"""

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from pretraining.ct.dicom_checks import is_grid
from pretraining.ct.dicom_passes import split_passes
from pretraining.ct.dicom_series import UNDEFINED_LENGTH, Slice, numbers
from pretraining.ct.packed import PackedGroups, PackedPaths
from pretraining.ct.scan import Scan, volume_id

COPIES, LOCALIZERS = "copies of DICOM slices", "DICOM localizers"
SAMPLE_BYTES = 4096
MIN_SLICES_ALONE = 3
MAX_LOCALIZERS = 3
"""In places of their own, with one orientation; more could be the slices of a CT, whatever they are called."""
SAME_NUMBER = 1e-3
"""How far cosines and mm of one plane may be apart."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FoundSlice:
    """A file, what its header states, and its place along the patient, which is slow to compute."""

    path: Path
    slice: Slice
    place_mm: float

    @property
    def key(self) -> tuple:
        """What slices of one scan share, so that a picture in its series does not spoil it.

        Multi-frame files are volumes of their own.
        """
        uid = self.slice.series_uid
        alone = self.path if self.slice.size[2] > 1 else None
        return (uid or self.path.parent, self.slice.size[:2], self.slice.pixels.is_grey, alone)


def series_scans(source: Path, found: PackedGroups[FoundSlice]) -> tuple[list[Scan], Counter[str]]:
    """The scans that DICOM slices make, and how many slices are `COPIES` of others and how many `LOCALIZERS`.

    Args:
        source: where they were found.
        found: all slices, by their `FoundSlice.key`.
    """
    scans, localizers, count = [], 0, len(found)
    for series in _by_owner(found.groups()):
        parts = _grouped(series, lambda each: each.slice.is_localizer)
        if len(scouts := parts.get(True, [])) and not _could_be_a_volume(scouts):
            localizers += len(parts.pop(True))
        for part in parts.values():
            for together in _volumes(sorted(part, key=lambda each: (each.place_mm, each.path))):
                passes = [[together[index] for index in one] for one in split_passes([each.slice for each in together])]
                has_others = len(passes) > 1 or (part is scouts and len(parts) > 1)
                scans += [_scan(source, one, has_others) for one in passes]
    copies = count - localizers - sum(len(scan.files) for scan in scans)
    return _with_names_of_their_own(scans), Counter({COPIES: copies, LOCALIZERS: localizers})


def _could_be_a_volume(localizers: list[FoundSlice]) -> bool:
    """Whether slices that are called localizers are so many that they could be a CT with a wrong ImageType."""
    if localizers[0].slice.size[2] > 1:
        return True  # only its frames tell
    alike = _grouped(localizers, lambda each: each.slice.orientation).values()
    return max(len(set(map(_place, each))) for each in alike) > MAX_LOCALIZERS


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Hashable, list[T]]:
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _by_owner(groups: Iterable[list[FoundSlice]]) -> Iterator[list[FoundSlice]]:
    """The slices of each patient, study and frame of reference; where one is not stated, it is that of the others.

    An identifier that hardly two slices share is of the slice, as some writers make a new one for each file.
    """
    for series in groups:
        telling = []
        for index, column in enumerate(zip(*(each.slice.whose for each in series), strict=True)):
            counts = Counter(value for value in column if value)
            if len(counts) > 1 and np.median(list(counts.values())) >= MIN_SLICES_ALONE:
                telling.append(index)
        yield from _grouped(series, lambda each: tuple(each.slice.whose[index] for index in telling)).values()  # noqa: B023


def _without_copies(series: list[FoundSlice]) -> list[FoundSlice]:
    """The slices without those that have the place and the content of another; read only where places clash.

    What stays is that in the folder with most slices, so that a series copied in part is still the one in its folder.
    """
    copies: set[Path] = set()
    sizes = {folder: len(inside) for folder, inside in _grouped(series, lambda each: each.path.parent).items()}
    for same in _grouped(series, _place).values():
        for alike in _grouped(same, _sample).values() if len(same) > 1 else ():
            for equal in _grouped(alike, _content).values() if len(alike) > 1 else ():
                kept = min(equal, key=lambda each: (-sizes[each.path.parent], each.path))
                copies.update(each.path for each in equal if each is not kept)
    return [each for each in series if each.path not in copies]


def _place(found: FoundSlice) -> Hashable:
    """Where a slice lies, however its numbers are written."""
    return round(found.place_mm, 3) if math.isfinite(found.place_mm) else found.slice.position


def _sample(found: FoundSlice) -> Hashable:
    """What copies have in common, read quickly: how the pixels are stored, and some of them."""
    pixels = found.slice.pixels
    stored = (pixels.length, pixels.byte_order, pixels.bits, pixels.is_signed, pixels.slope, pixels.intercept)
    return found.slice.passes, stored, _pixel_bytes(found, SAMPLE_BYTES)


def _content(found: FoundSlice) -> Hashable:
    content = _pixel_bytes(found)
    return content if isinstance(content, Path) else hashlib.sha256(content).digest()


def _pixel_bytes(found: FoundSlice, count: int | None = None) -> bytes | Path:
    """The bytes of the pixels, or some from their middle; the path, which is no other's, where they cannot be read."""
    pixels = found.slice.pixels
    try:
        with found.path.open("rb") as file:
            length = pixels.length
            if length == UNDEFINED_LENGTH:
                length = os.fstat(file.fileno()).st_size - pixels.offset
            file.seek(pixels.offset + (length // 2 if count else 0))
            return file.read(count or length)
    except OSError:
        return found.path


def _volumes(series: list[FoundSlice]) -> list[list[FoundSlice]]:
    """The slices of one series, in order and without copies: all together, or those of each folder by itself."""
    whole = _without_copies(series)
    folders = list(_grouped(whole, lambda each: each.path.parent).values())
    if len(folders) == 1 or _belong_together(whole, folders):
        return [whole]
    return [_without_copies(folder) for folder in _grouped(series, lambda each: each.path.parent).values()]


def _belong_together(series: list[FoundSlice], folders: list[list[FoundSlice]]) -> bool:
    """Whether folders hold parts of one scan.

    They do not where the planes of the slices differ, where they clash (one place, different content), or where each
    is evenly spaced and all together are not.
    """
    if not _have_one_plane(series) or len(set(map(_place, series))) < len(series):
        return False
    slices = [each.slice for each in series]
    if all(is_grid([slices[index] for index in part]) for part in split_passes(slices)):
        return True
    return not all(len(folder) >= MIN_SLICES_ALONE and is_grid([each.slice for each in folder]) for folder in folders)


def _have_one_plane(series: list[FoundSlice]) -> bool:
    """Whether orientation and pixel spacing of all are the same, however their numbers are written."""
    try:
        stated = [numbers(f"{each.slice.orientation}\\{each.slice.pixel_spacing}") for each in series]
    except ValueError:
        return False
    return len({values.shape for values in stated}) == 1 and np.allclose(stated, stated[0], rtol=0, atol=SAME_NUMBER)


def _scan(source: Path, found: list[FoundSlice], is_pass: bool) -> Scan:
    """The scan that a series is, or one of its passes.

    Its name has a hash of the series' identifier: the same whatever else comes into the folder, and without anything
    of the patient. That of a pass has another hash, of what it is called in the headers.

    Args:
        source: where the slices were found.
        found: in order along the patient.
        is_pass: whether the series has others, or slices beside localizers.
    """
    relative = Path(os.path.commonpath([each.path.parent for each in found])).relative_to(source).as_posix()
    prefix = "" if relative == "." else f"{relative}/"
    name = f"{prefix}series-{_hash(found[0].slice.identifier)}"
    if is_pass:
        name += f"-{_hash('|'.join(found[0].slice.passes))[:4]}"
    return Scan(volume_id(name), name, PackedPaths.of(each.path for each in found), is_dicom=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _with_names_of_their_own(scans: list[Scan]) -> list[Scan]:
    """The scans; where several multi-frame files of one series would get one name, with that of each file."""
    result = []
    for same in _grouped(scans, lambda scan: scan.name).values():
        for scan in same:
            name = scan.name if len(same) == 1 else f"{scan.name}-{_hash(scan.files[0].name)[:4]}"
            result.append(Scan(volume_id(name), name, scan.files, is_dicom=True))
    return result
