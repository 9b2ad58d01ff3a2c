"""Writing a store so that a stop at any point costs at most the volumes that are being made.

Each volume is three files, each put in place by one rename: the array, the radiograph, and last its manifest entry.
A volume without its entry does not count. The manifest is made of the entries, so a kill between a volume and the
manifest loses nothing: the next run reads the entries again.
"""

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from nnunetv2_cads.encoder_file.record import CLIP_HU, SPACING_MM
from pretraining import __version__
from pretraining.store import store as layout
from pretraining.store.store import PRIVATE
from pretraining.system.errors import UserError
from pretraining.system.files import atomic_path, write_json

# Measured, see the table at the end of docs/preprocessing.md. Training reads random windows of 24 slices
# by 134 to 172 voxels in-plane that start at every 12th slice. Blocks are what is unpacked: half a window deep and a
# fifth of its edge wide, they waste little around it (twice as deep or wide: up to a third slower; one block per
# volume: forty times). Zstandard at level 5 saves 3% more space than at 1 and takes eight times as long to write;
# LZ4 reads in 60% of the time, a millisecond less per window, from files that are 15 to 28% larger.
CHUNK_SLICES = 24
BLOCK_SHAPE = (12, 32, 32)
COMPRESSION = {
    "codec": blosc2.Codec.ZSTD,
    "clevel": 1,
    "filters": [blosc2.Filter.SHUFFLE],
    "nthreads": 1,
}


@dataclass(frozen=True)
class Source:
    """Where a volume comes from, so that a later run sees whether the file is still the one that was preprocessed.

    Attributes:
        path: file or DICOM folder relative to INPUT, with forward slashes; a hash of it where the store is anonymised.
        size_bytes: size of the file, or sum over the files of a DICOM series.
        mtime_ns: last change, the latest over the files of a DICOM series.
        sha256: of the content (of the files of a DICOM series in slice order).
        size_xyz: voxels along the stored axes.
        spacing_xyz_mm: voxel edges along the stored axes.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    size_xyz: tuple[int, int, int]
    spacing_xyz_mm: tuple[float, float, float]


def new_manifest(
    volumes: dict[str, Any], complete: bool, anonymised: bool = False, spacing_mm: float = SPACING_MM
) -> dict[str, Any]:
    """Content of ``manifest.json`` for the given entries."""
    return {
        "format": layout.FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "complete": complete,
        "anonymised": anonymised,
        "spacing_mm": float(spacing_mm),
        "clip_hu": list(CLIP_HU),
        "axes": list(layout.AXES),
        "package_version": __version__,
        "volumes": dict(sorted(volumes.items())),
    }


def _is_source(source: Any) -> bool:
    """Whether an entry's source has the fields that are compared with a file."""
    kinds = {"path": str, "size_bytes": int, "mtime_ns": int, "sha256": str, "spacing_xyz_mm": list}
    return isinstance(source, dict) and all(type(source.get(key)) is kind for key, kind in kinds.items())


class StoreWriter:
    """Adds volumes to the store in one folder. Can be pickled, so that workers write their volumes themselves.

    Args:
        path: the folder.
        anonymised: whether the store names no source.
        spacing_mm: edge of the cubic voxels of its volumes.
        max_spacing_mm: longest voxel edge of the scans that it takes.
    """

    def __init__(
        self,
        path: str | Path,
        anonymised: bool = False,
        spacing_mm: float = SPACING_MM,
        max_spacing_mm: float = math.inf,
    ):
        self.path, self.anonymised = Path(path).absolute(), anonymised
        self.spacing_mm, self.max_spacing_mm = spacing_mm, max_spacing_mm

    def prepare(self) -> None:
        """Make the folder a store that is being written: new, or an existing store to add to.

        Raises:
            UserError: as `check_folder`, or the folder cannot be written.
        """
        self.check_folder()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            path = layout.manifest_path(self.path)
            manifest = layout.read_manifest(self.path) if path.exists() else self._manifest({}, complete=False)
            write_json(path, manifest | {"complete": False})  # first of all, since it makes the folder a store
            for folder in (self.path / "volumes", self.path / "radiographs"):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another STORE") from None

    def check_folder(self) -> None:
        """Refuse to write into a folder of something else.

        Raises:
            UserError: it is a file, holds something else, or is a store of another version.
        """
        try:
            if not self.path.exists() or self._is_empty():
                return
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); choose another STORE") from None
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; STORE must be a new folder or an existing store")
        if not layout.manifest_path(self.path).exists():
            raise UserError(f"{self.path}: is not empty and not a store; STORE must be a new folder or a store")
        manifest = layout.read_manifest(self.path)
        if manifest["spacing_mm"] != self.spacing_mm:
            raise UserError(
                f"{self.path}: the volumes of this store have voxels of {manifest['spacing_mm']:.10g} mm, not "
                f"{self.spacing_mm:.10g}; give --spacing-mm {manifest['spacing_mm']:.10g}, or choose another STORE"
            )
        if manifest.get("anonymised", False) != self.anonymised:
            begun, advice = ("without", "leave it out") if self.anonymised else ("with", "give it again")
            raise UserError(f"{self.path}: this store was begun {begun} --anonymise; {advice}, or choose another STORE")

    def _manifest(self, volumes: dict[str, Any], complete: bool) -> dict[str, Any]:
        return new_manifest(volumes, complete, self.anonymised, self.spacing_mm)

    def _is_empty(self) -> bool:
        """Whether the folder holds nothing but hidden files (of the file manager, or of a run killed at once)."""
        return self.path.is_dir() and all(file.name.startswith(".") for file in self.path.iterdir())

    def remove_leftovers(self, volume_ids: Collection[str] | None = None) -> None:
        """Remove the temporary files that a killed run left behind.

        Args:
            volume_ids: only those of these volumes, where other processes may be writing others; by default all.
        """
        for name in ("", "volumes", "radiographs", "failed", PRIVATE, f"{PRIVATE}/failed"):
            for file in (self.path / name).glob(".*.tmp"):
                if volume_ids is None or file.name[1:].rsplit(".", 3)[0] in volume_ids:  # .ID.SUFFIX.TOKEN.tmp
                    file.unlink(missing_ok=True)

    def add(self, volume_id: str, volume_hu: np.ndarray, radiograph: np.ndarray, source: Source) -> None:
        """Write one volume, its radiograph and its entry, in this order.

        Args:
            volume_id: name of the volume in the store.
            volume_hu: int16 HU at the store's spacing, (slices, height, width), canonical axes.
            radiograph: float32 in [-1, 1], (slices, width).
            source: where it comes from.
        """
        if volume_hu.dtype != np.int16 or volume_hu.ndim != 3:
            raise ValueError(f"volume_hu must be int16 of 3 dimensions, not {volume_hu.dtype} of {volume_hu.ndim}")
        volume_hu = np.ascontiguousarray(volume_hu)
        chunks = (min(CHUNK_SLICES, volume_hu.shape[0]), *volume_hu.shape[1:])
        blocks = tuple(min(block, chunk) for block, chunk in zip(BLOCK_SHAPE, chunks, strict=True))
        # packed in memory: where blosc2 writes itself, a full disk is a RuntimeError without a reason
        packed = blosc2.asarray(volume_hu, contiguous=True, chunks=chunks, blocks=blocks, cparams=COMPRESSION)
        with atomic_path(layout.volume_path(self.path, volume_id)) as file:
            file.write_bytes(packed.to_cframe())
        with atomic_path(layout.radiograph_path(self.path, volume_id)) as file, file.open("wb") as stream:
            np.save(stream, radiograph.astype(np.float32))
        write_json(
            layout.entry_path(self.path, volume_id),
            {
                "shape": list(volume_hu.shape),
                "sha256": hashlib.sha256(volume_hu.data).hexdigest(),
                "source": asdict(source),
            },
        )

    def finished_ids(self) -> set[str]:
        """Ids of the volumes that are whole."""
        radiographs, volumes, entries = (
            {file.stem for file in (self.path / folder).glob(f"*{suffix}")}
            for folder, suffix in (("radiographs", ".npy"), ("volumes", ".b2nd"), ("volumes", ".json"))
        )
        return radiographs & volumes & entries

    def finished(self) -> dict[str, dict[str, Any]]:
        """Entries of the volumes that are whole, by id."""
        entries = {}
        for volume_id in sorted(self.finished_ids()):
            try:
                entry = json.loads(layout.entry_path(self.path, volume_id).read_text(encoding="utf-8"))
            except (ValueError, RecursionError, FileNotFoundError):
                continue  # damaged or removed by someone: the volume is made again
            if layout.is_entry(entry) and _is_source(entry.get("source")):
                entries[volume_id] = entry
        return entries

    def write_manifest(self, complete: bool, volumes: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        """Write ``manifest.json`` and return it.

        Args:
            complete: whether every scan was tried.
            volumes: the entries to list by id; by default those of all volumes that are whole.
        """
        manifest = self._manifest(self.finished() if volumes is None else volumes, complete)
        write_json(layout.manifest_path(self.path), manifest)
        return manifest
