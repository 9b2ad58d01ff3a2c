"""Finding the scans below a folder: NIfTI, NRRD and MetaImage files, and DICOM series."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from pretraining.ct.dicom_series import SECONDS_WITHOUT_BAR, find_series
from pretraining.ct.scan import Scan, is_text, volume_id
from pretraining.system.errors import UserError

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_SUFFIXES = (".dcm", ".ima")

# Storage classes of DICOM files without slices: media directories, waveforms, presentation states, reports and
# documents, raw data and segmentations, radiotherapy objects.
NOT_SLICES = tuple(
    f"1.2.840.10008.{root}."
    for root in ("1.3", "5.1.4.1.1.9", "5.1.4.1.1.11", "5.1.4.1.1.88", "5.1.4.1.1.104", "5.1.4.1.1.66", "5.1.4.1.1.481")
)


def find_scans(source: Path, store: Path, processes: int = 1) -> tuple[list[Scan], dict[str, str]]:
    """Every scan in ``source``, a file or a folder with all below it, and what looked like one but cannot be.

    Hidden files, links that lead round in a circle, and the store itself are passed over; so is, silently, all that
    is no image.

    Args:
        source: where to search.
        store: the store's folder.
        processes: how many read DICOM headers at a time.

    Returns:
        The scans, sorted by name, and the reason for each file that looked like a scan and is none.

    Raises:
        UserError: ``source`` does not exist, cannot be read, is a file of another kind, or is the store; or no more
            files can be opened.
    """
    try:
        if source.is_file():
            return [_single_scan(source)], {}
        if not source.is_dir():
            raise UserError(f"{source}: no such file or folder; give the folder of your CT scans as INPUT")
        if source.resolve() == store.resolve():
            raise UserError(f"{source}: is INPUT and STORE at once; choose another STORE")
        next(source.iterdir(), None)  # raises where the folder must not be read
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check its permissions") from None
    scans: list[Scan] = []
    unusable: dict[str, str] = {}
    slices: list[Path] = []
    files = _walk(source, store.resolve())
    for path in tqdm(files, desc="searching", unit="file", delay=SECONDS_WITHOUT_BAR, dynamic_ncols=True):
        relative = path.relative_to(source).as_posix()
        stem = _without_suffix(relative)
        if not _may_be_read(path):
            if stem is not None or _has_dicom_suffix(path):
                unusable[relative] = "is no regular file (a pipe, socket or device); remove it"
        elif stem is None and not _is_slice(path):
            continue
        elif not is_text(relative):
            unusable[relative] = "has a name that is not valid UTF-8, which ITK cannot open; rename it"
        elif stem is None:
            slices.append(path)
        else:
            scans.append(Scan(volume_id(stem), relative, (path,)))
    series, unreadable = find_series(slices, processes)
    scans.extend(_series_scan(source, identifier, paths) for identifier, paths in series)
    unusable.update({path.relative_to(source).as_posix(): str(reason) for path, reason in unreadable.items()})
    return sorted(scans, key=lambda scan: scan.name), unusable


def _single_scan(source: Path) -> Scan:
    """The scan that INPUT itself is."""
    stem, is_dicom = _without_suffix(source.name), _is_slice(source)
    if stem is None and not is_dicom:
        with source.open("rb"):  # where it may not be read, that is the news
            raise UserError(f"{source}: is no CT file; give NIfTI, NRRD, MHA or DICOM, or a folder of them, as INPUT")
    return Scan(volume_id(stem or source.stem), source.name, (source,), is_dicom=is_dicom)


def _without_suffix(name: str) -> str | None:
    """The name without the suffix of a volume's file; None where it has none."""
    for suffix in VOLUME_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


def _walk(source: Path, store: Path) -> Iterator[Path]:
    """The visible files at and below ``source``, each real folder once, without ``store``."""
    seen = {store}
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


def _has_dicom_suffix(path: Path) -> bool:
    return path.suffix.lower() in DICOM_SUFFIXES


def _is_slice(path: Path) -> bool:
    """Whether a file is or claims to be a DICOM image, by its first bytes (the suffix where they do not tell)."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError:
        return _has_dicom_suffix(path)
    if head[128:132] != b"DICM":
        return _has_dicom_suffix(path)
    tag = head.find(b"\x02\x00\x02\x00UI")  # (0002,0002): the storage class
    length = int.from_bytes(head[tag + 6 : tag + 8], "little") if tag >= 0 else 0
    storage_class = head[tag + 8 : tag + 8 + length].decode("ascii", "replace")
    return path.name != "DICOMDIR" and not storage_class.startswith(NOT_SLICES)


def _series_scan(source: Path, identifier: str, paths: tuple[Path, ...]) -> Scan:
    """The scan that a DICOM series is, whose files are all in one folder.

    Its name carries a hash of the series' identifier: the same whatever else comes into the folder, and telling
    nothing of the patient.
    """
    relative = paths[0].parent.relative_to(source).as_posix()
    prefix = "" if relative == "." else f"{relative}/"
    name = f"{prefix}series-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}"
    return Scan(volume_id(name), name, paths, is_dicom=True)
