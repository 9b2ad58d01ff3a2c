"""The store: what is written is read back, in other processes too, and what is wrong with a folder is reported."""

import json
import pickle
import re
import shutil

import blosc2
import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from pretraining.store.store import Store
from pretraining.store.writer import Source, StoreWriter
from pretraining.system.errors import UserError


def a_source(path):
    return Source(path, 10, 20, "ab" * 32, (50, 40, 30), (1.0, 1.0, 1.0))


def a_volume(seed, shape=(30, 40, 50)):
    return np.random.default_rng(seed).integers(-1024, 1025, shape).astype(np.int16)


@pytest.fixture
def store_dir(tmp_path):
    """A finished store of two volumes."""
    writer = StoreWriter(tmp_path / "store")
    writer.prepare()
    for seed, name in enumerate(("b.2", "a__1")):
        volume = a_volume(seed)
        writer.add(name, volume, volume.mean(axis=1) / 1024, a_source(f"{name}.nii"))
    writer.write_manifest(complete=True)
    return tmp_path / "store"


def test_reads_what_was_written(store_dir):
    store = Store.open(store_dir)
    assert store.ids == ["a__1", "b.2"]
    assert len(store) == 2
    for seed, name in enumerate(("b.2", "a__1")):
        expected = a_volume(seed)
        assert store.shape(name) == (30, 40, 50)
        assert store.volume(name).dtype == np.int16
        np.testing.assert_array_equal(store.volume(name)[3:27, 5:39, 7:], expected[3:27, 5:39, 7:])
        assert store.radiograph(name).dtype == np.float32
        np.testing.assert_allclose(store.radiograph(name), expected.mean(axis=1) / 1024, rtol=1e-6)


def test_manifest_says_what_the_store_holds(store_dir):
    manifest = json.loads((store_dir / "manifest.json").read_text())
    assert manifest["spacing_mm"] == 1.0
    assert manifest["clip_hu"] == [-1024, 1024]
    assert manifest["volumes"]["a__1"]["source"]["path"] == "a__1.nii"
    assert manifest["volumes"]["a__1"]["source"]["size_xyz"] == [50, 40, 30]


class Windows(Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.store.volume(self.store.ids[index % 2])[index : index + 4, :5, :6].astype(np.int64).sum()


def test_is_read_by_loader_processes(store_dir):
    windows = Windows(pickle.loads(pickle.dumps(Store.open(store_dir))))
    loaded = [int(x) for batch in DataLoader(windows, batch_size=2, num_workers=2) for x in batch]
    assert loaded == [int(windows[index]) for index in range(8)]


def test_fingerprint_follows_the_data_alone(store_dir, tmp_path):
    fingerprint = Store.open(store_dir).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    shutil.copytree(store_dir, tmp_path / "copy")
    assert Store.open(tmp_path / "copy").fingerprint() == fingerprint
    writer = StoreWriter(tmp_path / "copy")
    writer.add("a__1", a_volume(1), np.zeros((30, 50)), a_source("elsewhere.nii"))
    writer.write_manifest(complete=True)
    assert Store.open(tmp_path / "copy").fingerprint() == fingerprint
    writer.add("a__1", a_volume(7), np.zeros((30, 50)), a_source("a__1.nii"))
    writer.write_manifest(complete=True)
    assert Store.open(tmp_path / "copy").fingerprint() != fingerprint


def edit_manifest(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not the manifest of a store"),
        (lambda folder: edit_manifest(folder, format_version=0), "format version 0"),
        (lambda folder: edit_manifest(folder, complete=False), "not finished"),
        (lambda folder: edit_manifest(folder, volumes={}), "holds no volumes"),
        (lambda folder: edit_manifest(folder, volumes={"a": {"shape": [1, 2]}}), "damaged"),
        (lambda folder: (folder / "volumes" / "b.2.b2nd").unlink(), "b.2.b2nd: missing"),
        (lambda folder: (folder / "radiographs" / "a__1.npy").unlink(), "a__1.npy: missing"),
    ],
)
def test_what_is_no_store_is_refused(store_dir, spoil, reason):
    spoil(store_dir)
    with pytest.raises(UserError, match=reason) as error:
        Store.open(store_dir)
    assert str(store_dir) in str(error.value) and "\n" not in str(error.value)


def test_damaged_volume_and_radiograph_are_named(store_dir):
    (store_dir / "volumes" / "b.2.b2nd").write_bytes(b"no volume")
    (store_dir / "radiographs" / "b.2.npy").write_bytes(b"no radiograph")
    store = Store.open(store_dir)
    with pytest.raises(UserError, match=r"b\.2\.b2nd: cannot be read"):
        store.volume("b.2")
    with pytest.raises(UserError, match=r"b\.2\.npy: cannot be read"):
        store.radiograph("b.2")


@pytest.mark.parametrize(
    ("read", "module", "name"),
    [(Store.volume, blosc2, "open"), (Store.radiograph, np, "load")],
    ids=["volume", "radiograph"],
)
def test_a_store_that_vanishes_just_before_it_is_read(store_dir, monkeypatch, read, module, name):
    """At the worst moment: all that was looked at before reading was there."""
    store, reader = Store.open(store_dir), getattr(module, name)

    def vanish_and_read(*arguments, **options):
        store_dir.rename(f"{store_dir}_")
        return reader(*arguments, **options)

    monkeypatch.setattr(module, name, vanish_and_read)
    with pytest.raises(UserError, match="is gone; restore it"):
        read(store, "b.2")


def test_volume_of_another_shape_is_refused(store_dir):
    writer = StoreWriter(store_dir)
    manifest = (store_dir / "manifest.json").read_text()
    writer.add("b.2", a_volume(0, (24, 30, 30)), np.zeros((24, 30)), a_source("b"))
    (store_dir / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"holds int16 \(24, 30, 30\), but the manifest says"):
        Store.open(store_dir).volume("b.2")


def test_volume_counts_only_with_all_three_files(store_dir):
    writer = StoreWriter(store_dir)
    assert set(writer.finished()) == {"a__1", "b.2"}
    (store_dir / "volumes" / "a__1.json").unlink()
    (store_dir / "radiographs" / "b.2.npy").unlink()
    assert not writer.finished()


def test_prepare_keeps_what_is_there_and_leftovers_are_removed_when_asked(store_dir):
    leftover = store_dir / "volumes" / ".c.b2nd.123.tmp"
    leftover.write_bytes(b"half")
    StoreWriter(store_dir).prepare()
    assert leftover.exists()  # another part may be writing it
    StoreWriter(store_dir).remove_leftovers()
    assert not leftover.exists()
    assert set(StoreWriter(store_dir).finished()) == {"a__1", "b.2"}
    with pytest.raises(UserError, match="not finished"):
        Store.open(store_dir)


def test_prepare_after_a_kill_at_its_very_start(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".manifest.json.123.tmp").write_text("{")
    StoreWriter(tmp_path / "store").prepare()
    StoreWriter(tmp_path / "store").remove_leftovers()
    assert [file.name for file in (tmp_path / "store").glob(".*")] == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("a file"), "is a file"),
        (lambda path: (path.mkdir(), (path / "thesis.tex").write_text("")), "not empty and not a store"),
    ],
)
def test_prepare_refuses_what_is_something_else(tmp_path, make, reason):
    make(tmp_path / "store")
    with pytest.raises(UserError, match=reason):
        StoreWriter(tmp_path / "store").prepare()


def test_prepare_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be"):
        StoreWriter(tmp_path / "file" / "store").prepare()
