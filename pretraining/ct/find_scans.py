"""Finding the scans below a folder: NIfTI, NRRD and MetaImage files, and DICOM series."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from pretraining.ct import nifti
from pretraining.ct.dicom_series import DICOM_SUFFIXES, Slice, read_slice
from pretraining.ct.scan import Scan, UnusableScanError, is_text, volume_id
from pretraining.system.errors import UserError

VOLUME_SUFFIXES = (*nifti.SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
SECONDS_WITHOUT_BAR = 5


def find_scans(source: Path, store: Path) -> tuple[list[Scan], dict[str, str]]:
    """Every scan in ``source``, a file or a folder with all below it, and what looked like one but cannot be used.

    Passed over are hidden files, links that lead round in a circle, the store itself, and whatever is no image.

    Args:
        source: where to search.
        store: the store's folder.

    Returns:
        The scans, sorted by name, and the reason for each file that looked like a scan and is none.

    Raises:
        UserError: ``source`` does not exist, cannot be read, is a file of another kind, or is the store; or no more
            files can be opened.
    """
    try:
        if source.is_file():
            return _single_scan(source)
        if not source.is_dir():
            raise UserError(f"{source}: no such file or folder; give the folder of your CT scans as INPUT")
        if source.resolve() == store.resolve():
            raise UserError(f"{source}: is INPUT and STORE at once; choose another STORE")
        next(source.iterdir(), None)  # raises where the folder must not be read
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check its permissions") from None
    scans: list[Scan] = []
    unusable: dict[str, str] = {}
    # Slices of one series in several folders, or of several sizes, are several series.
    series: dict[tuple, list[tuple[float, Path, str]]] = defaultdict(list)
    files = visible_files(source, store.resolve())
    for path in tqdm(files, desc="searching", unit="file", delay=SECONDS_WITHOUT_BAR, dynamic_ncols=True):
        relative = path.relative_to(source).as_posix()
        try:
            found = _look_at(path, relative)
        except UnusableScanError as error:
            unusable[relative] = str(error)
            continue
        if isinstance(found, Scan):
            scans.append(found)
        elif found is not None:
            key = (path.parent, found.series_uid, found.size[:2])
            series[key].append((found.place_mm, path, found.identifier))
    scans.extend(_series_scan(source, sorted(slices)) for slices in series.values())
    return sorted(scans, key=lambda scan: scan.name), unusable


def _single_scan(source: Path) -> tuple[list[Scan], dict[str, str]]:
    """What `find_scans` returns where INPUT is a file."""
    try:
        found = _look_at(source, source.name)
    except UnusableScanError as error:
        return [], {source.name: str(error)}
    if found is None:
        with source.open("rb"):  # where it may not be read, that is what to report
            raise UserError(f"{source}: is no CT file; give NIfTI, NRRD, MHA or DICOM, or a folder of them, as INPUT")
    if isinstance(found, Slice):
        found = Scan(volume_id(source.stem), source.name, (source,), is_dicom=True)
    return [found], {}


def _look_at(path: Path, relative: str) -> Scan | Slice | None:
    """What a file holds, by its suffix or its first bytes; None where it is no image.

    Raises:
        UnusableScanError: it looks like a scan or slice, but cannot be used.
        UserError: no more files can be opened.
    """
    stem = _without_suffix(relative)
    if not _may_be_read(path):
        if stem is None and path.suffix.lower() not in DICOM_SUFFIXES:
            return None
        raise UnusableScanError("is no regular file (a pipe, socket or device); remove it")
    found = read_slice(path) if stem is None else Scan(volume_id(stem), relative, nifti.files_of(path))
    if found is not None and not is_text(relative):
        raise UnusableScanError("has a name that is not valid UTF-8, which ITK cannot open; rename it")
    return found


def _without_suffix(name: str) -> str | None:
    """The name without the suffix of a volume's file; None where it has none."""
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


def visible_files(source: Path, without: Path | None = None) -> Iterator[Path]:
    """The files below ``source`` that are not hidden, each real folder once; not those below ``without``."""
    seen = {without}
    for folder, subfolders, names in os.walk(source, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _may_be_read(path: Path) -> bool:
    """Whether reading a file comes to an end: not that of a pipe or device. A link to nothing fails at once."""
    try:
        return path.is_file() or not path.exists()
    except OSError:  # a link to itself
        return True


def _series_scan(source: Path, slices: list[tuple[float, Path, str]]) -> Scan:
    """The scan that a DICOM series is, whose files are all in one folder.

    Its name has a hash of the series' identifier: the same whatever else comes into the folder, and without anything
    of the patient.

    Args:
        source: where the scan was found.
        slices: place in mm, file and identifier of the series, of each slice in order along the patient.
    """
    paths, identifier = tuple(path for _, path, _ in slices), slices[0][2]
    relative = paths[0].parent.relative_to(source).as_posix()
    prefix = "" if relative == "." else f"{relative}/"
    name = f"{prefix}series-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}"
    return Scan(volume_id(name), name, paths, is_dicom=True)
