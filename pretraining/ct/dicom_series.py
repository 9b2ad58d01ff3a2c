"""From DICOM files to series: one reading of each file's header, in processes of their own.

GDCM raises or crashes over some damaged headers, opens pipes and devices that lie beside the slices, and reads a whole
folder again for each series that it is asked for. So it is given one regular file at a time: what is wrong with a file
costs that file alone, and the time grows with the number of files, not with that of series.
"""

import errno
import math
import re
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from pretraining.ct.scan import UnusableScanError, reason_of
from pretraining.system.errors import UserError, environment_error
from pretraining.system.worker_pool import run_in_processes

DAMAGED = "cannot be read as DICOM, it is truncated or damaged; copy it again or remove it"
FILES_PER_TASK = 32
SECONDS_WITHOUT_BAR = 5
POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
SERIES_UID, ROWS, COLUMNS = "0020|000e", "0028|0010", "0028|0011"
# Series number, sequence name, slice thickness and size: what GDCM calls "series details".
SERIES_DETAILS = ("0020|0011", "0018|0024", "0018|0050", ROWS, COLUMNS)


@dataclass(frozen=True)
class Slice:
    """What the header of one DICOM file says.

    Attributes:
        group: what the slices of one volume share: the UID of their series and their size.
        identifier: GDCM's name of the series, of which the names of volumes in stores are made.
        place_mm: its position along the normal of its plane; infinity where the header does not say.
    """

    group: tuple[str, str, str]
    identifier: str
    place_mm: float


def find_series(
    files: list[Path], processes: int
) -> tuple[list[tuple[str, tuple[Path, ...]]], dict[Path, UnusableScanError]]:
    """Sort DICOM files into series; those of one series in several folders, or of several sizes, are apart.

    Args:
        files: with names that are text; reading them must come to an end.
        processes: how many read at a time.

    Returns:
        Identifier and files of each series, in the order along the patient; and the reason for each file that cannot
        be read.

    Raises:
        UserError: no more files can be opened.
    """
    groups: dict[tuple, list[tuple[float, Path, str]]] = defaultdict(list)
    unreadable = {}
    for path, outcome in _read_all(files, processes).items():
        if isinstance(outcome, Slice):
            groups[(path.parent, *outcome.group)].append((outcome.place_mm, path, outcome.identifier))
        else:
            unreadable[path] = outcome
    series = [sorted(group) for group in groups.values()]
    return [(group[0][2], tuple(path for _, path, _ in group)) for group in series], unreadable


def read_slices(paths: tuple[Path, ...]) -> list[Slice | UnusableScanError]:
    """What the header of each file says, or why it cannot be read.

    Raises:
        UserError: this process may not open any more files.
    """
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return [_read_slice(path) for path in paths]


def _read_all(files: list[Path], processes: int) -> dict[Path, Slice | UnusableScanError]:
    """`read_slices` of all files in processes; of one that dies, each file in its hands once more, by itself."""
    outcomes: dict[Path, Slice | UnusableScanError] = {}
    with tqdm(
        total=len(files), desc="reading DICOM headers", unit="file", delay=SECONDS_WITHOUT_BAR, dynamic_ncols=True
    ) as bar:
        for size in (FILES_PER_TASK, 1):
            left = [path for path in files if path not in outcomes]
            tasks = [tuple(left[start : start + size]) for start in range(0, len(left), size)]
            with closing(run_in_processes(read_slices, tasks, processes)) as results:
                for paths, outcome in results:
                    if isinstance(outcome, UserError):
                        raise outcome
                    if isinstance(outcome, Exception) and size == 1:
                        outcome = [UnusableScanError(reason_of(outcome))]
                    if not isinstance(outcome, Exception):
                        outcomes.update(zip(paths, outcome, strict=True))
                        bar.update(len(paths))
    return outcomes


def _read_slice(path: Path) -> Slice | UnusableScanError:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        with path.open("rb"):  # GDCM does not say why it cannot open a file
            reader.ReadImageInformation()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise environment_error(error, path) from None  # no file can be read any more
        return UnusableScanError(f"cannot be read ({error.strerror}); check its permissions or copy it again")
    except RuntimeError:
        return UnusableScanError(DAMAGED)
    header = {tag: reader.GetMetaData(tag) for tag in reader.GetMetaDataKeys()}
    uid, rows, columns = (header.get(tag, "") for tag in (SERIES_UID, ROWS, COLUMNS))
    details = "".join(header.get(tag, "") for tag in SERIES_DETAILS)
    identifier = re.sub(r"[^0-9A-Za-z.]", "", f"{uid}.{details}")
    return Slice((uid, rows, columns), identifier, _place_mm(header))


def _place_mm(header: dict[str, str]) -> float:
    try:
        position, cosines = (numbers(header[tag]) for tag in (POSITION, ORIENTATION))
        place = float(np.cross(cosines[:3], cosines[3:]) @ position)
    except (KeyError, ValueError):
        return math.inf
    return place if math.isfinite(place) else math.inf


def numbers(text: str) -> np.ndarray:
    """The numbers of a header's element, float64.

    Raises:
        ValueError: one of them is no number.
    """
    return np.array([float(word) for word in text.split("\\")])
