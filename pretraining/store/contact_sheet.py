"""All radiographs of a store on a few pages, to see at a glance whether every scan is frontal and head up.

A page says in its file what it shows, so that only pages that have changed are drawn: a store of 100,000 volumes has
1,250 of them, and tens of gigabytes of radiographs.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pretraining.store.store import Store
from pretraining.system.files import atomic_path

TILE_PIXELS = 220
MAX_COLUMNS, MAX_ROWS = 10, 8
MARGIN_PIXELS, LABEL_PIXELS = 6, 18
MAX_LABEL = 34
FONT_PIXELS = 9
FONT = "fonts/ttf/DejaVuSans.ttf"  # of matplotlib: of its letters, Pillow's own font has few
SHOWN = "cads-shown"
"""Name of the text in a page's file that says what it shows."""


def write_contact_sheets(store: Store, entries: dict[str, dict[str, Any]]) -> list[Path]:
    """Write ``radiographs.png``, and ``radiographs_2.png`` ... where one page of 80 is not enough, into the store.

    All pictures of a page have the same scale, so a small body looks small. A page that shows the same already stays.

    Args:
        store: to show.
        entries: of its volumes, by id.

    Returns:
        The paths of the pages.
    """
    per_page = MAX_COLUMNS * MAX_ROWS
    pages = []
    for number, first in enumerate(range(0, len(store.ids), per_page), start=1):
        path = store.path / ("radiographs.png" if number == 1 else f"radiographs_{number}.png")
        ids = store.ids[first : first + per_page]
        shown = json.dumps([(volume_id, entries[volume_id]["sha256"]) for volume_id in ids])
        digest = hashlib.sha256(shown.encode()).hexdigest()
        if _shown_on(path) != digest:
            _write_page(path, store, ids, digest)
        pages.append(path)
    return pages


def _shown_on(path: Path) -> str | None:
    """What a page says that it shows; None where there is none, or it is damaged."""
    with suppress(OSError, SyntaxError, ValueError), Image.open(path) as page:  # what Pillow raises over a bad file
        shown = page.info.get(SHOWN)
        page.verify()
        return shown
    return None


def _write_page(path: Path, store: Store, ids: Sequence[str], shown: str) -> None:
    """Write one page."""
    columns = min(MAX_COLUMNS, math.ceil(math.sqrt(len(ids))))
    rows = math.ceil(len(ids) / columns)
    tile_width, tile_height = TILE_PIXELS + MARGIN_PIXELS, TILE_PIXELS + LABEL_PIXELS
    pictures = [store.radiograph(volume_id) for volume_id in ids]
    step = max(1.0, max(max(picture.shape) for picture in pictures) / TILE_PIXELS)
    sheet = Image.new("L", (columns * tile_width, rows * tile_height))
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(Path(matplotlib.get_data_path(), FONT), FONT_PIXELS)
    for index, (volume_id, picture) in enumerate(zip(ids, pictures, strict=True)):
        top, left = (index // columns) * tile_height, (index % columns) * tile_width
        small = _shrink(picture, step)
        grey = np.rint((np.clip(small, -1, 1) + 1) * 127.5).astype(np.uint8)
        sheet.paste(Image.fromarray(grey), (left + (TILE_PIXELS - grey.shape[1]) // 2, top + LABEL_PIXELS))
        label = volume_id if len(volume_id) <= MAX_LABEL else f"…{volume_id[1 - MAX_LABEL :]}"
        draw.text((left + 3, top + LABEL_PIXELS // 2), label, fill=255, font=font, anchor="lm")
    about = PngInfo()
    about.add_text(SHOWN, shown)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="png", pnginfo=about)


def _shrink(picture: np.ndarray, step: float) -> np.ndarray:
    """A picture at 1 / ``step`` of its size, each pixel the mean of those that it stands for."""
    height, width = (max(1, int(edge / step)) for edge in picture.shape)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
