"""Benchmarks are scripts, not a package: their folder is put where a script's own folder is."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pytest
from study.data import StudyFolder

from nnunetv2_cads.demo.datasets import write_archive, write_nnunet_dataset
from nnunetv2_cads.demo.torso import TorsoConfig
from pretraining.cli import preprocess

SMALL = TorsoConfig(body_scale=0.2, slice_spacing_mm=(2.0, 2.0), pixel_spacing_mm=(2.0, 2.0))


@pytest.fixture(scope="session")
def small_torsos(tmp_path_factory) -> dict[str, Path]:
    """A labelled ``dataset`` of small torsos, and a ``store`` of others."""
    folder = StudyFolder(tmp_path_factory.mktemp("torsos"))
    write_archive(folder.archive, 2, SMALL)
    assert preprocess([str(folder.archive), str(folder.store), "-np", "1"]) == 0
    dataset = write_nnunet_dataset(folder.nnunet("raw"), 1, "Torsos", 1, 1, SMALL)
    return {"dataset": dataset, "store": folder.store}
