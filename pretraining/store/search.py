"""Which scans are in a store: with the same voxels, or recognised by the pattern of their soft tissue."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from pretraining.ct.find_scans import SECONDS_WITHOUT_BAR
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.store.add_scan import read_volume
from pretraining.store.recognition import FINE_MM, LEAST_BODY_ML, PERHAPS, SAME_SCAN, Pattern, correlation, pattern_of
from pretraining.store.store import Store, read_manifest


@dataclass(frozen=True)
class Match:
    """A volume that is, or may be, a scan that was looked for.

    Attributes:
        volume_id: its name in the store.
        correlation: of the soft tissue of both where they match; None where all voxels are the same.
    """

    volume_id: str
    correlation: float | None = None

    @property
    def is_sure(self) -> bool:
        """Whether it is the same scan; otherwise it may show the same patient, or another."""
        return self.correlation is None or self.correlation >= SAME_SCAN

    def __str__(self) -> str:
        if self.correlation is None:
            return f"volume {self.volume_id}: the same voxels"
        if self.is_sure:
            return f"volume {self.volume_id}: the same scan, changed (soft tissue correlates at {self.correlation:.2f})"
        return (
            f"perhaps volume {self.volume_id} or another scan of its patient, which cannot be told (soft tissue "
            f"correlates at {self.correlation:.2f})"
        )


@dataclass
class Answer:
    """What a search has found.

    Attributes:
        volumes: how many were searched.
        found: scan -> its volume. A scan that matches several surely has one of them.
        unknown: scan -> why only its voxels were compared, or nothing; scans that were found are not in it.
        empty: names of volumes that show too little of a body to be recognised.
    """

    volumes: int
    found: dict[str, Match] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)


def search_store(scans: Mapping[str, Sequence[Path]], store: Path) -> Answer:
    """Look for scans in a store.

    Args:
        scans: name -> its files, one for each channel; one of several may be the CT.
        store: folder of the store.

    Raises:
        UserError: the store cannot be read.
    """
    opened = Store.open(store)
    names = {entry["sha256"]: name for name, entry in read_manifest(store)["volumes"].items()}
    answer, patterns = Answer(len(opened)), {}
    for scan, files in tqdm(
        scans.items(), desc="reading cases", unit="case", delay=SECONDS_WITHOUT_BAR, dynamic_ncols=True
    ):
        patterns[scan] = _read(scan, files, opened.spacing_mm, names, answer)
    patterns = {scan: found for scan, found in patterns.items() if found}
    if patterns:
        _compare(patterns, opened, answer)
    return answer


def _read(
    scan: str, files: Sequence[Path], spacing_mm: float, names: Mapping[str, str], answer: Answer
) -> list[Pattern]:
    """The patterns of a scan's channels, unless a volume has its voxels; adds what is known by now to the answer."""
    patterns, reasons = [], []
    for file in files:
        try:
            volume_hu, *_ = read_volume(Scan(file.name, file.name, (file,)), spacing_mm, may_be_clipped=True)
        except UnusableScanError as error:
            reasons.append(f"{file.name} {error}")
            continue
        if volume := names.get(hashlib.sha256(volume_hu.data).hexdigest()):
            answer.found[scan] = Match(volume)
            return []
        if spacing_mm > FINE_MM:
            reasons.append(f"the store has voxels of {spacing_mm:g} mm, recognition needs {FINE_MM:g} mm or less")
            continue
        pattern = pattern_of(volume_hu, spacing_mm)
        if pattern.body_ml < LEAST_BODY_ML:
            reasons.append(f"{file.name} shows {pattern.body_ml:.0f} ml of a body, recognition needs {LEAST_BODY_ML}")
        else:
            patterns.append(pattern)
    if not patterns:
        answer.unknown[scan] = reasons[0] if reasons else "it has no files"
    return patterns


def _compare(patterns: dict[str, list[Pattern]], store: Store, answer: Answer) -> None:
    """Compare scans with every volume; each volume is read once, and a scan that was found is not looked for again."""
    for volume_id in tqdm(store.ids, desc="comparing", unit="volume", delay=SECONDS_WITHOUT_BAR, dynamic_ncols=True):
        volume = pattern_of(store.window(volume_id, (slice(None),) * 3), store.spacing_mm)
        if volume.body_ml < LEAST_BODY_ML:
            answer.empty.append(volume_id)
            continue
        for scan, channels in patterns.items():
            best = answer.found.get(scan)
            if best and best.is_sure:
                continue
            value = max(correlation(channel, volume) for channel in channels)
            if value >= max(PERHAPS, best.correlation if best else 0):
                answer.found[scan] = Match(volume_id, value)
