"""A store of many volumes: what a loader worker has to hold, and that the compact forms say the same as plain ones."""

import json
import pickle
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretraining.config import PretrainConfig, ViewConfig
from pretraining.store import store as layout
from pretraining.store.store import Store
from pretraining.store.writer import StoreWriter, new_manifest
from pretraining.views.loader import ViewStream
from pretraining.views.subvolumes import SubVolumes

VOLUMES = 2000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store with the manifest of many volumes, and empty files for them."""
    folder = tmp_path_factory.mktemp("many")
    StoreWriter(folder).prepare()
    volumes = {}
    for number in range(VOLUMES):
        volume_id = f"hospital__patient_{number:05}__chest"
        source = {"path": f"hospital/patient_{number:05}/chest.nii.gz", "size_bytes": 10**8, "sha256": "cd" * 32}
        shape = [250 + number % 90, 300 + number % 70, 300 + number % 80]
        volumes[volume_id] = {"shape": shape, "sha256": f"{number:064x}", "source": source}
        for path_of in (layout.volume_path, layout.radiograph_path):
            path_of(folder, volume_id).touch()
    (folder / "manifest.json").write_text(json.dumps(new_manifest(volumes, complete=True)))
    return folder


def test_a_worker_gets_less_than_a_hundred_bytes_per_volume(many):
    stream = ViewStream(Store.open(many), PretrainConfig())
    assert len(stream.subvolumes) > 20 * VOLUMES
    assert len(pickle.dumps(stream)) < 100 * VOLUMES


def test_reading_leaves_nothing_behind_but_the_order_of_the_pass(small_store):
    stream = ViewStream(Store.open(small_store), PretrainConfig())
    stream[0]
    before = len(pickle.dumps(stream))
    for n in range(len(stream.subvolumes)):
        stream[n]
    assert len(pickle.dumps(stream)) == before


def test_fingerprint_is_that_of_the_first_version(many):
    assert Store.open(many).fingerprint() == "1c716db28b96a183acaf3388b4c5a431912ced425667393805c73991e63201e3"


def test_shape_of_what_the_store_does_not_hold(many):
    store = Store.open(many)
    assert store.shape("hospital__patient_00091__chest") == (251, 321, 311)
    for volume_id in ("", "hospital__patient_00091", "zzz"):
        with pytest.raises(KeyError):
            store.shape(volume_id)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 90), st.integers(24, 400), st.integers(24, 400)), min_size=1, max_size=6),
    stride=st.integers(1, 30),
)
def test_subvolumes_are_those_of_a_plain_list(shapes, stride):
    config = ViewConfig(window_stride=stride)
    named = {f"v{number}": shape for number, shape in enumerate(shapes)}
    expected = []
    for name, (depth, _, _) in named.items():
        last = max(depth - config.window_slices, 0)
        for start in sorted({*range(0, last + 1, stride), last}):
            expected.append((name, (start, min(start + config.window_slices, depth))))
    subvolumes = SubVolumes(SimpleNamespace(ids=list(named), spacing_mm=1.0, shape=named.__getitem__), config)
    assert [(subvolume.volume_id, subvolume.slices) for subvolume in subvolumes] == expected
    assert len(subvolumes) == len(expected)
