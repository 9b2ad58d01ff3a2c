"""A scan before it is read: its files, its name in the store, and why it could not be used."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.system.errors import is_disk_error, reason_and_advice
from pretraining.system.worker_pool import TaskTimeoutError, WorkerDiedError

MAX_ID_LENGTH = 120


class UnusableScanError(Exception):
    """A scan that cannot be used. The message says what is wrong and what to do; the file's name goes before it."""


class UnreadableDiskError(UnusableScanError):
    """A scan that cannot be read since its disk or file server fails."""


@dataclass(frozen=True)
class Scan:
    """One scan: what becomes a volume of the store.

    Attributes:
        volume_id: its name in the store.
        name: the file, or the DICOM folder and series, relative to INPUT; messages call it so.
        files: the file, or the slices of a DICOM series in order.
        is_dicom: whether the files are a DICOM series.
        stored_name: what the store records as its source; empty for ``name``.
    """

    volume_id: str
    name: str
    files: Sequence[Path]
    is_dicom: bool = False
    stored_name: str = ""

    @property
    def source(self) -> str:
        """What the store records as its source."""
        return self.stored_name or self.name

    def stat(self) -> tuple[int, int]:
        """Size in bytes (sum) and time of the last change in ns (latest) of the files.

        Raises:
            UnusableScanError: a file is missing, or a link leads nowhere.
        """
        try:
            stats = [file.stat() for file in self.files]
        except OSError as error:
            raise UnusableScanError(f"cannot be read ({error.strerror}); copy it again or remove it") from None
        return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)

    def sha256(self) -> str:
        """SHA-256 (hex) of the content of the files, one after the other.

        Raises:
            UnreadableDiskError: the disk fails.
        """
        digest = hashlib.sha256()
        try:
            for file in self.files:
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
        except OSError as error:
            if not is_disk_error(error):
                raise
            raise UnreadableDiskError(f"cannot be read: {reason_and_advice(error)}") from None
        return digest.hexdigest()


def name_bytes(name: str) -> bytes:
    """A file's name as bytes, for hashing; names need not be valid text."""
    return name.encode("utf-8", "surrogateescape")


def is_text(name: str) -> bool:
    """Whether a file's name is valid text: ITK ends the process over one that is not."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


def printable(name: str) -> str:
    """A file's name for one line of a log: control characters and what is not valid text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def without_suffix(name: str, suffixes: Iterable[str]) -> str | None:
    """A file's name without the first of these suffixes that it has, in any case; None where it has none."""
    return next((name[: -len(suffix)] for suffix in suffixes if name.lower().endswith(suffix)), None)


def volume_id(relative: str) -> str:
    """A name for a file of the store, from a path relative to INPUT without its suffix.

    Folders are joined by two underscores; letters and digits of any script stay, and so do dots, dashes and
    underscores; all else becomes an underscore. Two different paths can get one name, which the caller must check.
    """
    name = unicodedata.normalize("NFC", relative).replace(os.sep, "__").replace("/", "__")
    name = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "scan"
    if len(name) > MAX_ID_LENGTH:
        name = name[-MAX_ID_LENGTH:] + "-" + hashlib.sha256(name_bytes(relative)).hexdigest()[:8]
    return name


def reason_of(error: Exception) -> str:
    """Why a scan failed, in words, from the error that ended its task in a worker."""
    if isinstance(error, UnusableScanError):
        return str(error)
    if isinstance(error, WorkerDiedError) and error.crashed:
        return f"crashed the library that read it ({error}), so it is damaged; copy or export it again"
    if isinstance(error, TaskTimeoutError):
        return (
            f"took longer than {error.seconds / 60:g} minutes; if it is not that large, it is damaged and hangs its "
            "reader: copy or export it again; otherwise raise --scan-minutes"
        )
    if isinstance(error, WorkerDiedError | MemoryError):
        return f"ended the process that read it ({error}), most likely for want of memory; crop it or lower -np"
    return f"could not be preprocessed because of an unexpected {type(error).__name__} ({error}); please report this"
