"""The curves of cost: exponents of known powers, and a large store made of a small one."""

import cost_curves
import numpy as np
import pytest

from pretraining.store.store import Store
from pretraining.store.writer import Source, StoreWriter


def test_exponents_are_those_of_powers_whatever_is_between():
    values = [(2, 3 * 2**1.5, 5.0), (4, 1.0, 1.0), (0, 0.1, 0.1), (8, 3 * 8**1.5, 5.0)]
    assert cost_curves.exponents(values) == [1.5, 0.0]


def test_the_size_of_a_crop_is_its_voxels():
    assert cost_curves.exponents([((16, 64, 64), 1.0), ((16, 128, 128), 4.0)]) == [1.0]


@pytest.fixture
def small(tmp_path):
    writer = StoreWriter(tmp_path / "small")
    writer.prepare()
    for name, slices in {"a": 40, "b": 50}.items():
        source = Source(f"{name}.nii", 1, 1, name * 64, (100, 100, slices), (1.0, 1.0, 1.0))
        writer.add(name, np.zeros((slices, 100, 100), np.int16), np.zeros((slices, 100), np.float32), source)
    writer.write_manifest(True, writer.finished())
    return tmp_path / "small"


def test_a_large_store_opens_with_every_volume_and_its_cost_is_measured(tmp_path, small):
    cost_curves.write_large_store(tmp_path / "large", small, 5)
    store = Store.open(tmp_path / "large")
    assert [store.volume(name)[:].shape[0] for name in store.ids] == [40, 50, 40, 50, 40]
    assert all(cost >= 0 for cost in cost_curves.store_cost(tmp_path / "large"))
