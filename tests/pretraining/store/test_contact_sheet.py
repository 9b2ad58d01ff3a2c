"""The contact sheet: every radiograph is on it, bright where it is bright, on as many pages as it takes."""

import numpy as np
import pytest
from matplotlib.image import imread

from pretraining.store.contact_sheet import MAX_COLUMNS, MAX_ROWS, TILE_PIXELS, write_contact_sheets
from pretraining.store.store import Store
from pretraining.store.writer import Source, StoreWriter


def store_of(folder, radiographs):
    writer = StoreWriter(folder)
    writer.prepare()
    for index, radiograph in enumerate(radiographs):
        volume = np.zeros((radiograph.shape[0], 2, radiograph.shape[1]), np.int16)
        writer.add(f"scan_{index:03d}", volume, radiograph, Source("a", 1, 1, "", (1, 1, 1), (1.0, 1.0, 1.0)))
    manifest = writer.write_manifest(complete=True)
    return Store(folder, manifest), manifest["volumes"]


def test_pictures_stand_upright_in_one_scale(tmp_path):
    tall, small = np.full((2 * TILE_PIXELS, 100), -1.0), np.full((100, 2 * TILE_PIXELS), -1.0)
    tall[:100], small[:, -100:] = 1, 1
    (page,) = write_contact_sheets(*store_of(tmp_path / "store", [tall, small]))
    sheet = imread(page)
    left, right = np.array_split(sheet, 2, axis=1)
    rows, columns = np.nonzero(left[20:] > 0.9)  # below the label
    assert abs(np.ptp(rows) - 49) <= 2 and abs(np.ptp(columns) - 49) <= 2
    assert rows.min() <= 2
    rows, columns = np.nonzero(right[20:] > 0.9)
    assert abs(np.ptp(rows) - 49) <= 2 and abs(np.ptp(columns) - 49) <= 2
    assert columns.min() > 150


def test_many_radiographs_take_several_pages(tmp_path):
    count = MAX_COLUMNS * MAX_ROWS + 1
    pages = write_contact_sheets(
        *store_of(tmp_path / "store", [np.full((24, 24), index % 2) for index in range(count)])
    )
    assert [page.name for page in pages] == ["radiographs.png", "radiographs_2.png"]
    assert [min(imread(page).shape) > TILE_PIXELS for page in pages] == [True, True]


def test_only_pages_that_have_changed_are_drawn(tmp_path):
    count = MAX_COLUMNS * MAX_ROWS
    store, entries = store_of(tmp_path / "store", [np.full((24, 24), index % 2) for index in range(count + 1)])
    pages = write_contact_sheets(store, entries)
    content, times = [page.read_bytes() for page in pages], [page.stat().st_mtime_ns for page in pages]
    write_contact_sheets(store, entries)
    assert [page.stat().st_mtime_ns for page in pages] == times
    other = {**entries, store.ids[-1]: {**entries[store.ids[-1]], "sha256": "of other voxels"}}
    write_contact_sheets(store, other)
    assert [page.stat().st_mtime_ns == time for page, time in zip(pages, times, strict=True)] == [True, False]
    write_contact_sheets(store, entries)
    assert [page.read_bytes() for page in pages] == content


@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: b"", lambda content: b"no picture"])
def test_a_damaged_page_is_drawn_again(tmp_path, damage):
    store, entries = store_of(tmp_path / "store", [np.full((24, 24), 1.0)])
    (page,) = write_contact_sheets(store, entries)
    content = page.read_bytes()
    page.write_bytes(damage(content))
    write_contact_sheets(store, entries)
    assert page.read_bytes() == content
