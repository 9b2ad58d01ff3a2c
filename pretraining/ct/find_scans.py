"""Finding the scans below a folder: NIfTI, NRRD and MetaImage files, and DICOM series."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from pretraining.ct import nifti, nrrd_mha
from pretraining.ct.dicom_series import DICOM_SUFFIXES, NoSlice, Slice, read_slice
from pretraining.ct.dicom_volumes import COPIES, LOCALIZERS, FoundSlice, series_scans
from pretraining.ct.packed import PackedGroups
from pretraining.ct.scan import Scan, UnusableScanError, is_text, volume_id, without_suffix
from pretraining.system.errors import UserError

VOLUME_SUFFIXES = (*nifti.SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
SECONDS_WITHOUT_BAR = 5
MAX_KINDS = 8


def find_scans(source: Path, store: Path, passed_over: Counter[str] | None = None) -> tuple[list[Scan], dict[str, str]]:
    """Every scan in ``source``, a file or a folder with all below it, and what looked like one but cannot be used.

    Passed over are hidden files, links that lead round in a circle, the store itself, and whatever is no image.

    Args:
        source: where to search.
        store: the store's folder.
        passed_over: to count the files that are no scan, by kind; hidden ones are not counted.

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
    slices: PackedGroups[FoundSlice] = PackedGroups(lambda each: each.key)
    others: list[tuple[Path, NoSlice]] = []
    passed_over = Counter() if passed_over is None else passed_over

    def refuse_folder(error: OSError) -> None:
        relative = Path(error.filename).relative_to(source).as_posix()
        unusable[relative] = f"is a folder that cannot be listed ({error.strerror}); check its permissions and the disk"

    files = visible_files(source, store.resolve(), refuse_folder)
    for path in tqdm(files, desc="searching", unit="file", delay=SECONDS_WITHOUT_BAR, dynamic_ncols=True):
        relative = path.relative_to(source).as_posix()
        try:
            found = _look_at(path, relative)
        except UnusableScanError as error:
            unusable[relative] = str(error)
            continue
        if isinstance(found, Scan):
            scans.append(found)
        elif isinstance(found, Slice):
            slices.add(FoundSlice(path, found, found.place_mm))
        else:
            others.append((path, found))
    parts = {file for scan in scans for file in scan.files}  # voxels beside their header
    passed_over.update(_kind(path, why) for path, why in others if path not in parts)
    of_series, set_aside = series_scans(source, slices)
    scans += of_series
    passed_over.update(+set_aside)  # without what is 0
    return sorted(scans, key=lambda scan: scan.name), unusable


def _single_scan(source: Path) -> tuple[list[Scan], dict[str, str]]:
    """What `find_scans` returns where INPUT is a file."""
    try:
        found = _look_at(source, source.name)
    except UnusableScanError as error:
        return [], {source.name: str(error)}
    if isinstance(found, NoSlice):
        with source.open("rb"):  # where it may not be read, that is what to report
            raise UserError(f"{source}: is no CT file; give NIfTI, NRRD, MHA or DICOM, or a folder of them, as INPUT")
    if isinstance(found, Slice):
        found = Scan(volume_id(source.stem), source.name, (source,), is_dicom=True)
    return [found], {}


def _look_at(path: Path, relative: str) -> Scan | Slice | NoSlice:
    """What a file holds, by its suffix or its first bytes.

    Raises:
        UnusableScanError: it looks like a scan or slice, but cannot be used.
        UserError: no more files can be opened.
    """
    stem = without_suffix(relative, VOLUME_SUFFIXES)
    if not _may_be_read(path):
        if stem is None and path.suffix.lower() not in DICOM_SUFFIXES:
            return NoSlice.NOT_DICOM
        raise UnusableScanError("is no regular file (a pipe, socket or device); remove it")
    files_of = nifti.files_of if nifti.is_nifti(path) else nrrd_mha.files_of
    found = read_slice(path) if stem is None else Scan(volume_id(stem), relative, files_of(path))
    if not isinstance(found, NoSlice) and not is_text(relative):
        raise UnusableScanError("has a name that is not valid UTF-8, which ITK cannot open; rename it")
    return found


def _kind(path: Path, why: NoSlice) -> str:
    """What to call a file that is no scan: by its suffix, if that is one and no part of a name."""
    if why is not NoSlice.NOT_DICOM:
        return why.value
    suffix = path.suffix.lower()
    return suffix if re.fullmatch(r"\.(?!\d+$)[a-z0-9]{1,5}", suffix) else f"without suffix ({why.value})"


def passed_over_text(passed_over: Counter[str], by_kind: bool = True) -> str:
    """What `find_scans` has counted, in words: "5 files are no CT: 4 .txt, 1 .json". Kinds may be left out."""
    counts = Counter({kind: number for kind, number in passed_over.items() if kind not in (COPIES, LOCALIZERS)})
    kinds = [f"{number} {kind}" for kind, number in counts.most_common(MAX_KINDS)]
    if len(counts) > MAX_KINDS:
        kinds.append(f"{sum(sorted(counts.values())[:-MAX_KINDS])} of other kinds")
    listed = ": " + ", ".join(kinds) if by_kind else ""
    texts = [f"{counts.total()} file{'s are' if counts.total() > 1 else ' is'} no CT{listed}"] if counts else []
    return "; ".join(texts + [f"{kind}: {passed_over[kind]}" for kind in (COPIES, LOCALIZERS) if passed_over[kind]])


def visible_files(
    source: Path, without: Path | None = None, on_error: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """The files below ``source`` that are not hidden, each real folder once; not those below ``without``.

    ``on_error`` is called with the error over a folder that cannot be listed, which by default is passed over.
    """
    seen = {without}
    for folder, subfolders, names in os.walk(source, onerror=on_error, followlinks=True):
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
