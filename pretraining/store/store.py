"""The store: preprocessed CT volumes and their radiographs, as `cads_preprocess` writes and `cads_pretrain` reads them.

    STORE/
      manifest.json            what the store holds; the fields are described in docs/preprocessing.md
      volumes/<id>.b2nd        blosc2 array, int16 HU, cubic voxels, axes (z headward, y to the back, x to the
                               patient's left)
      volumes/<id>.json        the volume's entry of the manifest, written last: a volume without it is not finished
      radiographs/<id>.npy     float32 in [-1, 1], (slices, width), head up, patient's right on the picture's left

A `Store` only reads. `pretraining.store.writer` writes.
"""

import hashlib
import json
import math
import os
import shlex
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np

from pretraining.system.errors import UserError, environment_error, is_environment_error
from pretraining.system.machine import collection_paused

PRIVATE = "private"
FORMAT = "cads-store"
FORMAT_VERSION = 1
AXES = ("headward", "to the back", "to the patient's left")

MANIFEST = "manifest.json"


def manifest_path(store: Path) -> Path:
    """Path of the manifest of the store in folder ``store``."""
    return store / MANIFEST


def volume_path(store: Path, volume_id: str) -> Path:
    """Path of one volume."""
    return store / "volumes" / f"{volume_id}.b2nd"


def entry_path(store: Path, volume_id: str) -> Path:
    """Path of one volume's entry of the manifest."""
    return store / "volumes" / f"{volume_id}.json"


def radiograph_path(store: Path, volume_id: str) -> Path:
    """Path of one volume's radiograph."""
    return store / "radiographs" / f"{volume_id}.npy"


def read_manifest(store: Path) -> dict[str, Any]:
    """Read and check the manifest of the store in folder ``store``, finished or not.

    Raises:
        UserError: the folder or its manifest is missing, unreadable, or of another format or version.
    """
    path = manifest_path(store)
    if not store.is_dir():
        raise UserError(f"{store}: no such folder; make a store with: cads_preprocess INPUT {shlex.quote(str(store))}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{store}: not a store, it has no {MANIFEST}; give the folder that cads_preprocess wrote"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged (not valid JSON); run cads_preprocess into a new folder") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not the manifest of a store; give the folder that cads_preprocess wrote")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: store format version {manifest.get('format_version')!r}, but this program reads version "
            f"{FORMAT_VERSION}; run cads_preprocess into a new folder"
        )
    if not _is_well_formed(manifest):
        raise UserError(f"{path}: damaged (entries are missing or wrong); run cads_preprocess into a new folder")
    return manifest


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Whether the fields that readers rely on are there."""
    volumes, spacing_mm = manifest.get("volumes"), manifest.get("spacing_mm")
    if type(spacing_mm) not in (int, float) or not 0 < spacing_mm < math.inf or not isinstance(volumes, dict):
        return False
    return all(_is_plain_name(name) and is_entry(entry) for name, entry in volumes.items())


def is_entry(entry: Any) -> bool:
    """Whether a volume's entry has the fields that readers rely on."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("shape"), list)
        and len(entry["shape"]) == 3
        and all(type(edge) is int and 0 < edge < 2**31 for edge in entry["shape"])
    )


def _is_plain_name(volume_id: str) -> bool:
    """Whether an id is the name of a file in the store's folders, and does not lead out of them."""
    return bool(volume_id) and not volume_id.startswith(".") and not set(volume_id) & {"/", "\\", "\0"}


class StoreSummary(NamedTuple):
    """What a run keeps of its store."""

    fingerprint: str  # see `Store.fingerprint`
    spacing_mm: float  # edge of the cubic voxels


class Store:
    """A finished store, for reading.

    Opening reads the manifest and lists two folders, no volume. Nothing stays open between calls, so a `Store` can be
    pickled into the workers of a `DataLoader`, and a store of any size needs no file handles. Every worker has a copy,
    so of the manifest only names, shapes and fingerprint are kept: 10 MB for 100,000 volumes.

    Attributes:
        path: the folder.
        ids: names of the volumes, sorted.
        spacing_mm: edge of the cubic voxels of every volume.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        volumes = manifest["volumes"]
        self.path = path
        self.ids: list[str] = sorted(volumes)
        self._shapes = np.array([volumes[volume_id]["shape"] for volume_id in self.ids], dtype=np.int32)
        self.spacing_mm = float(manifest["spacing_mm"])
        self._fingerprint = _fingerprint(manifest)

    @classmethod
    @collection_paused()
    def open(cls, path: str | Path) -> "Store":
        """Open the store in folder ``path``.

        Raises:
            UserError: not a store, of another format version, not finished, empty, or with files missing.
        """
        path = Path(path).absolute()
        manifest = read_manifest(path)
        if not manifest.get("complete"):
            raise UserError(
                f"{path}: this store is not finished; run the same cads_preprocess command again to resume it "
                "(of a job array: once more without -num_parts, for whatever is left)"
            )
        if not manifest["volumes"]:
            raise UserError(f"{path}: this store holds no volumes; its failed.json says why each scan was refused")
        store = cls(path, manifest)
        store._check_files()
        return store

    def _check_files(self) -> None:
        """Raise `UserError` for the first file that the manifest promises and the folder lacks."""
        for path_of in (volume_path, radiograph_path):
            folder = path_of(self.path, "any").parent
            suffix = path_of(self.path, "any").suffix
            present = {file.name for file in os.scandir(folder)} if folder.is_dir() else set()
            for volume_id in self.ids:
                if volume_id + suffix not in present:
                    path = path_of(self.path, volume_id)
                    raise UserError(f"{path}: missing; run the same cads_preprocess command again")

    def __len__(self) -> int:
        """Number of volumes."""
        return len(self.ids)

    def shape(self, volume_id: str) -> tuple[int, int, int]:
        """(slices, height, width) of one volume in voxels, from the manifest."""
        index = bisect_left(self.ids, volume_id)
        if index == len(self.ids) or self.ids[index] != volume_id:
            raise KeyError(volume_id)
        slices, height, width = self._shapes[index].tolist()
        return slices, height, width

    def volume(self, volume_id: str) -> blosc2.NDArray:
        """One volume, int16 HU, (slices, height, width); slicing it reads and unpacks only the blocks it touches.

        It unpacks with one thread: the loader's workers already share the cores.

        Raises:
            UserError: the file is damaged or not the one that the manifest describes.
        """
        path = volume_path(self.path, volume_id)
        with _reading(path):
            # Opening takes about 0.1 ms, so keeping the array open would save nothing and cost a handle per volume.
            volume = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        if tuple(volume.shape) != self.shape(volume_id) or volume.dtype != np.int16:
            raise UserError(
                f"{path}: holds {volume.dtype} {tuple(volume.shape)}, but the manifest says int16 "
                f"{self.shape(volume_id)}; delete it and run cads_preprocess again"
            )
        return volume

    def window(self, volume_id: str, region: tuple[slice, slice, slice]) -> np.ndarray:
        """A region of a volume, int16 HU.

        Raises:
            UserError: as `volume`, or what is read is damaged.
        """
        volume = self.volume(volume_id)
        with _reading(volume_path(self.path, volume_id)):
            return volume[region]

    def radiograph(self, volume_id: str) -> np.ndarray:
        """One volume's frontal radiograph: float32 in [-1, 1], (slices, width), head up, patient's right at the left.

        Raises:
            UserError: the file is damaged.
        """
        path = radiograph_path(self.path, volume_id)
        with _reading(path):
            return np.load(path, allow_pickle=False)

    def summary(self) -> StoreSummary:
        """What a run keeps of this store."""
        return StoreSummary(self._fingerprint, self.spacing_mm)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the manifest says of the data: format, grid, every volume's name, shape and voxels.

        It stays the same when the store is copied or moved, or its sources are.
        """
        return self._fingerprint


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors over a volume's file in the block into a `UserError`.

    Whether the file can be opened at all is tried after a failure, not before: a file server may go away in between.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError, EOFError) as error:  # of blosc2, NumPy and the system
        reason = error
        try:
            with path.open("rb"):
                pass
        except OSError as refusal:
            reason = refusal
        if isinstance(reason, OSError) and is_environment_error(reason):
            raise environment_error(reason, path, ", then resume with --c") from None
        raise UserError(f"{path}: cannot be read ({reason}); delete it and run cads_preprocess again") from None


def _fingerprint(manifest: dict[str, Any]) -> str:
    """What `Store.fingerprint` returns."""
    described = {key: manifest.get(key) for key in ("format", "format_version", "spacing_mm", "clip_hu", "axes")}
    described["volumes"] = {
        volume_id: [entry[key] for key in ("shape", "sha256")] for volume_id, entry in manifest["volumes"].items()
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
