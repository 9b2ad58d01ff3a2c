"""Sub-volumes: windows of some slices over every volume of a store (CADS method, section 1.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretraining.config import ViewConfig
from pretraining.store.store import Store


@dataclass(frozen=True)
class SubVolume:
    """One window: ``slices`` of a volume, and the in-plane region that crops are drawn from."""

    volume_id: str
    slices: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


class SubVolumes(Sequence[SubVolume]):
    """All sub-volumes of a store, in the order of its ids.

    Ours: a last window ends flush with the volume, so that no slice is left out; a volume with fewer slices than a
    window is one sub-volume, which the views pad with air.

    A sub-volume is made when it is asked for: a store of 100,000 volumes has two million, and every loader worker has
    this list, so it keeps one number per volume.
    """

    def __init__(self, store: Store, config: ViewConfig) -> None:
        self._ids, self._config, self._spacing_mm = store.ids, config, store.spacing_mm
        self._shapes = np.array([store.shape(volume_id) for volume_id in store.ids])
        last = np.maximum(self._shapes[:, 0] - config.window_slices, 0)
        self._ends = np.cumsum(-(-last // config.window_stride) + 1)  # in the list, of each volume's windows

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> SubVolume:
        if not 0 <= index < len(self):
            raise IndexError(index)
        config = self._config
        volume = int(np.searchsorted(self._ends, index, side="right"))
        window = int(index) - (int(self._ends[volume - 1]) if volume else 0)
        depth, height, width = self._shapes[volume].tolist()
        start = min(window * config.window_stride, max(depth - config.window_slices, 0))
        fraction = config.central_fraction if width * self._spacing_mm > config.wide_volume else 1.0
        return SubVolume(
            volume_id=self._ids[volume],
            slices=(start, min(start + config.window_slices, depth)),
            rows=_central(height, fraction),
            columns=_central(width, fraction),
        )


def _central(size: int, fraction: float) -> tuple[int, int]:
    margin = round(size * (1.0 - fraction) / 2)
    return margin, size - margin
