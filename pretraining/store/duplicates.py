"""Volumes with the same voxels: an archive holds many a scan twice, and training would see those more often."""

from collections import defaultdict
from typing import Any


def without_duplicates(
    entries: dict[str, dict[str, Any]], names: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Of volumes with the same voxels, keep only the first by id, whichever process or part wrote first.

    A scan is called a duplicate only of one that is in INPUT itself: else whoever removes it, as the reason advises,
    would remove the last copy.

    Args:
        entries: of the store's volumes, by id.
        names: of the scans in INPUT from which volumes were made, by their source as the store has it.

    Returns:
        The entries that stay, and the reason for each scan in INPUT that is a duplicate of another one there.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for volume_id, entry in sorted(entries.items()):
        alike[entry["sha256"]].append(volume_id)
    reasons = {}
    for ids in alike.values():
        sources = [(volume_id, entries[volume_id]["source"]["path"]) for volume_id in ids]
        there = [(volume_id, names[source]) for volume_id, source in sources if source in names]
        for _, name in there[1:]:
            reasons[name] = (
                f"has the same voxels as volume '{there[0][0]}' ({there[0][1]}), so it is left out; remove it"
            )
    firsts = {ids[0] for ids in alike.values()}
    return {volume_id: entry for volume_id, entry in entries.items() if volume_id in firsts}, reasons
