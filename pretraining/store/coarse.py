"""Scans with a longer voxel edge than `--max-spacing-mm`: refused, and left out where the store has them already."""

from collections.abc import Sequence
from typing import Any

from pretraining.ct.checks import spacing_text

ROUNDING = 1e-4
"""Of a spacing in a header, as a fraction."""


def coarse_reason(spacing_xyz_mm: Sequence[float], max_spacing_mm: float) -> str:
    """Why a scan with these voxel edges is left out; empty where it is not."""
    if max(spacing_xyz_mm) <= max_spacing_mm * (1 + ROUNDING):
        return ""
    return f"has a voxel spacing of {spacing_text(spacing_xyz_mm)}, coarser than --max-spacing-mm {max_spacing_mm:g}"


def without_coarse(
    entries: dict[str, dict[str, Any]], names: dict[str, str], max_spacing_mm: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Leave out the volumes of scans that are too coarse; a run that allows more lists them again.

    Args:
        entries: of the store's volumes, by id.
        names: of the scans in INPUT, by their source as the store has it.
        max_spacing_mm: the longest voxel edge.

    Returns:
        The entries that stay, and the reason for each other scan, whether it is in INPUT or was added from elsewhere.
    """
    kept, reasons = {}, {}
    for volume_id, entry in entries.items():
        source = entry["source"]
        if reason := coarse_reason(source["spacing_xyz_mm"], max_spacing_mm):
            reasons[names.get(source["path"], source["path"])] = reason
        else:
            kept[volume_id] = entry
    return kept, reasons
