"""What a run of `cads_preprocess` has to do, from what was found in INPUT and what the store holds."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

from pretraining.ct.scan import Scan

MAX_NAMED = 3
"""Of the scans that would get one id: thousands can, where names are in characters that an id cannot have."""


@dataclass(frozen=True)
class Part:
    """One part of a job: of the sorted names of all scans every ``count``-th, the first being ``number`` (from 0)."""

    number: int = 0
    count: int = 1

    @property
    def is_all(self) -> bool:
        """Whether there are no other parts."""
        return self.count == 1


@dataclass(frozen=True)
class Plan:
    """The work of one part.

    Attributes:
        part: which part.
        to_do: the part's scans that the store lacks.
        done: the part's scans that the store holds.
        failed: the reason for each of the part's scans that cannot be used.
        usable: the scans of all parts that can be tried.
        names: the names of all scans in INPUT, usable or not.
        part_names: those of the part.
    """

    part: Part
    to_do: list[Scan]
    done: list[Scan]
    failed: dict[str, str]
    usable: list[Scan]
    names: frozenset[str]
    part_names: frozenset[str]

    @property
    def own_names(self) -> frozenset[str] | None:
        """Names of the scans whose records the part may remove; None for all, where no other part is at work."""
        return None if self.part.is_all else self.part_names

    @property
    def own_ids(self) -> set[str] | None:
        """Ids of the volumes whose leftovers the part may remove; None for all, where no other part is at work."""
        return None if self.part.is_all else {scan.volume_id for scan in self.to_do + self.done}

    def open_names(self, stored_ids: Collection[str], failed: Collection[str]) -> set[str]:
        """Names of the scans, of all parts, that are neither stored nor failed.

        Args:
            stored_ids: of the volumes that the store holds now.
            failed: names of the scans with a reason why they cannot be used.
        """
        stored = {scan.name for scan in self.usable if scan.volume_id in stored_ids}
        return set(self.names - stored - set(failed))


def make_plan(scans: list[Scan], unusable: dict[str, str], part: Part, stored: dict[str, str]) -> Plan:
    """Plan a part. Clashes of ids are judged over all parts: two must not make one volume of two scans.

    Args:
        scans: what was found in INPUT, for all parts.
        unusable: the reason for each file that looked like a scan and is none.
        part: which part.
        stored: the name of its scan for each volume that the store holds, by id.
    """
    names = {scan.name for scan in scans} | unusable.keys()
    part_names = frozenset(sorted(names)[part.number :: part.count])
    usable, clashes = split_id_clashes(scans, stored)
    own = [scan for scan in usable if scan.name in part_names]
    return Plan(
        part=part,
        to_do=[scan for scan in own if scan.volume_id not in stored],
        done=[scan for scan in own if scan.volume_id in stored],
        failed={name: reason for name, reason in (unusable | clashes).items() if name in part_names},
        usable=usable,
        names=frozenset(names),
        part_names=part_names,
    )


def split_id_clashes(scans: list[Scan], stored: dict[str, str]) -> tuple[list[Scan], dict[str, str]]:
    """Set aside the scans that would get the same id in the store, or ids that differ in case alone.

    Args:
        scans: what was found.
        stored: the name of its scan for each volume that the store holds, by id; these stay.

    Returns:
        The scans without a rival, and the reason for each of the others.
    """
    rivals: dict[str, dict[str, None]] = defaultdict(dict)  # names in the order in which they came
    for volume_id, name in [*((scan.volume_id, scan.name) for scan in scans), *stored.items()]:
        rivals[volume_id.casefold()][name] = None
    found = Counter(scan.volume_id.casefold() for scan in scans)
    usable, reasons = [], {}
    for scan in scans:
        names = rivals[scan.volume_id.casefold()]
        if len(names) == 1 or stored.get(scan.volume_id) == scan.name:
            usable.append(scan)
        else:
            others = ", ".join(islice((name for name in names if name != scan.name), MAX_NAMED))
            more = f" and {len(names) - 1 - MAX_NAMED} more" if len(names) - 1 > MAX_NAMED else ""
            has_rival = found[scan.volume_id.casefold()] > 1
            advice = "; rename or remove one of them" if has_rival else ", which is not in INPUT any more; rename this"
            reasons[scan.name] = f"would be called '{scan.volume_id}' in the store, and so would {others}{more}{advice}"
    return usable, reasons
