"""Writing files so that a reader never sees half of one, and a power cut loses none that was finished."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it into place.

    On an error the temporary file is removed and ``path`` is left as it was. Several processes may write the same path
    at once, on one machine or several: the last one's file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        with suppress(OSError):  # the first error is the one to report; a vanished folder has no such file either
            temporary.unlink()


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically, and piece by piece: a manifest can hold 100,000 volumes."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def is_leftover(file: Path) -> bool:
    """Whether a file is, by its name, a temporary one of `atomic_path`."""
    return file.name.startswith(".") and file.name.endswith(".tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder that no other process writes to."""
    for file in folder.iterdir():
        if is_leftover(file):
            file.unlink(missing_ok=True)


def remove_leftovers_of(path: Path) -> None:
    """Remove the temporary files that killed processes left of ``path``, which no process is writing now."""
    for file in path.parent.iterdir():
        if is_leftover(file) and file.name.startswith(f".{path.name}."):
            file.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk: otherwise a power cut may undo a rename."""
    with suppress(OSError):  # some file systems and Windows cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
