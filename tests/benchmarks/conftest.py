"""Benchmarks are scripts, not a package: their folder is put where a script's own folder is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pytest
from few_labels.data import StudyFolder

from nnunetv2_cads.demo.torsos.datasets import write_archive
from nnunetv2_cads.demo.torsos.torso import TorsoConfig
from pretraining.preprocess import main as preprocess

SMALL = TorsoConfig(body_scale=0.2, slice_spacing_mm=(2.0, 2.0), pixel_spacing_mm=(2.0, 2.0))


@pytest.fixture(scope="session")
def small_torso_store(tmp_path_factory) -> Path:
    """A store of two small torsos."""
    folder = StudyFolder(tmp_path_factory.mktemp("torsos"))
    write_archive(folder.archive, 2, SMALL)
    assert preprocess([str(folder.archive), str(folder.store), "-np", "1"]) == 0
    return folder.store
