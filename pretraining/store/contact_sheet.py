"""All radiographs of a store on a few pages, to see at a glance whether every scan is frontal and head up."""

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pretraining.store.store import Store
from pretraining.system.files import atomic_path

TILE_PIXELS = 220
MAX_COLUMNS, MAX_ROWS = 10, 8
MARGIN_PIXELS, LABEL_PIXELS = 6, 18
MAX_LABEL = 34
DPI = 100


def write_contact_sheets(store: Store) -> list[Path]:
    """Write ``radiographs.png``, and ``radiographs_2.png`` ... where one page of 80 is not enough, into the store.

    All pictures of a page have the same scale, so a small body looks small.

    Returns:
        The paths of the pages.
    """
    per_page = MAX_COLUMNS * MAX_ROWS
    pages = []
    for number, first in enumerate(range(0, len(store.ids), per_page), start=1):
        path = store.path / ("radiographs.png" if number == 1 else f"radiographs_{number}.png")
        _write_page(path, store, store.ids[first : first + per_page])
        pages.append(path)
    return pages


def _write_page(path: Path, store: Store, ids: list[str]) -> None:
    """Write one page."""
    columns = min(MAX_COLUMNS, math.ceil(math.sqrt(len(ids))))
    rows = math.ceil(len(ids) / columns)
    tile_width, tile_height = TILE_PIXELS + MARGIN_PIXELS, TILE_PIXELS + LABEL_PIXELS
    pictures = [store.radiograph(volume_id) for volume_id in ids]
    step = max(1.0, max(max(picture.shape) for picture in pictures) / TILE_PIXELS)
    sheet = np.full((rows * tile_height, columns * tile_width), -1, dtype=np.float32)
    width, height = sheet.shape[1], sheet.shape[0]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, (volume_id, picture) in enumerate(zip(ids, pictures, strict=True)):
        top, left = (index // columns) * tile_height, (index % columns) * tile_width
        small = _shrink(picture, step)
        below, right = top + LABEL_PIXELS, left + (TILE_PIXELS - small.shape[1]) // 2
        sheet[below : below + small.shape[0], right : right + small.shape[1]] = small
        label = volume_id if len(volume_id) <= MAX_LABEL else f"…{volume_id[1 - MAX_LABEL :]}"
        axes.text(left + 3, top + LABEL_PIXELS / 2, label, color="white", fontsize=6.5, va="center", parse_math=False)
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1, interpolation="none", aspect="auto")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _shrink(picture: np.ndarray, step: float) -> np.ndarray:
    """A picture at 1 / ``step`` of its size, each pixel the mean of those that it stands for."""
    height, width = (max(1, int(edge / step)) for edge in picture.shape)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
