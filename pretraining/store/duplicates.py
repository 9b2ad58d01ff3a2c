"""Volumes with the same voxels: an archive holds many a scan twice, and training would see those more often."""

from typing import Any


def without_duplicates(
    entries: dict[str, dict[str, Any]], names: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Of volumes with the same voxels, keep only the first by id, whichever process or part wrote first.

    Args:
        entries: of the store's volumes, by id.
        names: of the scans in INPUT, by their source as the store has it.

    Returns:
        The entries that stay, and the reason for each scan in INPUT whose volume is left out.
    """
    first_ids: dict[str, str] = {}
    kept, reasons = {}, {}
    for volume_id, entry in sorted(entries.items()):
        first, source = first_ids.setdefault(entry["sha256"], volume_id), entry["source"]["path"]
        if first == volume_id:
            kept[volume_id] = entry
        elif source in names:
            other = entries[first]["source"]["path"]
            reasons[names[source]] = (
                f"has the same voxels as volume '{first}' ({names.get(other, other)}), so it is left out; remove it"
            )
    return kept, reasons
