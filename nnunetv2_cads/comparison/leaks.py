"""Whether a test case was among the scans of a pre-training."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cads.comparison.dataset import Dataset
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.store.add_scan import read_volume
from pretraining.store.store import Store, read_manifest


def leaked_cases(dataset: Dataset, cases: Sequence[str], store: Path) -> dict[str, str]:
    """Cases whose voxels, on the store's grid, are those of a volume in the store: case -> volume.

    A scan that was cut, resampled or stored with other values before it came into the store is not recognised.

    Args:
        dataset: of the cases.
        cases: their names.
        store: folder of the store that encoders were pre-trained on.
    """
    entries = read_manifest(store)["volumes"]
    volumes, spacing_mm = {entry["sha256"]: name for name, entry in entries.items()}, Store.open(store).spacing_mm
    found = {}
    for case in cases:
        for path in dataset.images(case):  # one of several channels may be the CT
            if (digest := _digest(path, spacing_mm)) in volumes:
                found[case] = volumes[digest]
    return found


def _digest(path: Path, spacing_mm: float) -> str | None:
    """SHA-256 of a scan as a store would have it; None for what no store takes."""
    try:
        volume_hu, *_ = read_volume(Scan(path.name, path.name, (path,)), spacing_mm)
    except UnusableScanError:
        return None
    return hashlib.sha256(volume_hu.data).hexdigest()
