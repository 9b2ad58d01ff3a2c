"""The store's records of scans that could not be used: one file per scan, like the entries of its volumes.

Parts of one job write here at the same time; the part that ends last makes `failed.json` of these files.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from pretraining.ct.scan import name_bytes
from pretraining.store.store import PRIVATE
from pretraining.system.files import write_json

FAILED = "failed.json"


class Failures:
    """The records in the folder ``failed`` of a store; the first one makes the folder.

    Args:
        store: the store's folder.
        are_private: keep them in its folder ``private``, since they name files.
    """

    def __init__(self, store: Path, are_private: bool = False):
        self.are_private = are_private
        self.folder = store / PRIVATE if are_private else store
        self.summary = self.folder / FAILED
        self._folder = self.folder / "failed"

    def record(self, name: str, reason: str) -> None:
        """Write down why the scan ``name`` could not be used."""
        self._folder.mkdir(exist_ok=True)
        write_json(self._path(name), {"file": name, "reason": reason})

    def forget(self, names: Collection[str] | None = None) -> None:
        """Remove the records of these scans, by default all: they are tried again."""
        records = {file.name: file for file in self._folder.glob("*.json")}
        for file in records if names is None else records.keys() & {self._path(name).name for name in names}:
            records[file].unlink(missing_ok=True)

    def read(self) -> dict[str, str]:
        """The reason for each scan with a record, by its name."""
        reasons = {}
        for file in self._folder.glob("*.json"):
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
                reasons[str(record["file"])] = str(record["reason"])
            except FileNotFoundError:
                continue  # another part has just started to try this scan again
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # damaged by someone; the next run writes it again
        return reasons

    def write_summary(self, failed: dict[str, str]) -> None:
        """Write ``failed.json``."""
        write_json(self.summary, [{"file": name, "reason": reason} for name, reason in sorted(failed.items())])

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name_bytes(name)).hexdigest()[:16]}.json"
