"""Scans with the same voxels: an archive holds many a scan twice, and training would see those more often.

Decided when the store is completed, over the entries of all parts. Volumes that are left out keep their files in the
store, so that a later run does not make them anew.
"""

from typing import Any


def without_doubles(
    entries: dict[str, dict[str, Any]], names: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Of volumes with the same voxels, leave only the first by id: whichever process or part was first.

    Args:
        entries: of the store's volumes, by id.
        names: of the scans in INPUT, by their source as the store has it.

    Returns:
        The entries that stay, and the reason for each scan in INPUT whose volume does not.
    """
    first: dict[str, str] = {}
    kept, reasons = {}, {}
    for volume_id, entry in sorted(entries.items()):
        twin, source = first.setdefault(entry["sha256"], volume_id), entry["source"]["path"]
        if twin == volume_id:
            kept[volume_id] = entry
        elif source in names:
            other = entries[twin]["source"]["path"]
            reasons[names[source]] = (
                f"has the same voxels as volume '{twin}' ({names.get(other, other)}), so it is left out; remove it"
            )
    return kept, reasons
