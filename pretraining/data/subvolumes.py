"""Sub-volumes: windows of some slices over every volume of a store (CADS method, section 1.3)."""

from dataclasses import dataclass

from pretraining.config import ViewConfig
from pretraining.data.store import Store


@dataclass(frozen=True)
class SubVolume:
    """One window: ``slices`` of a volume, and the in-plane region that crops are drawn from."""

    volume_id: str
    slices: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


def list_subvolumes(store: Store, config: ViewConfig) -> list[SubVolume]:
    """All sub-volumes of a store, in the order of its ids.

    Ours: a last window ends flush with the volume, so that no slice is left out; a volume with fewer slices than a
    window is one sub-volume, which the views pad with air.
    """
    subvolumes = []
    for volume_id in store.ids:
        depth, height, width = store.shape(volume_id)
        fraction = config.central_fraction if width > config.wide_volume else 1.0
        rows, columns = _central(height, fraction), _central(width, fraction)
        for start in _window_starts(depth, config.window_slices, config.window_stride):
            end = min(start + config.window_slices, depth)
            subvolumes.append(SubVolume(volume_id, (start, end), rows, columns))
    return subvolumes


def _window_starts(depth: int, length: int, stride: int) -> list[int]:
    last = max(depth - length, 0)
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def _central(size: int, fraction: float) -> tuple[int, int]:
    margin = round(size * (1.0 - fraction) / 2)
    return margin, size - margin
