"""Doing trainings beside other processes: what these have done or failed at is not done again."""

import threading

import pytest

from nnunetv2_cads.comparison import work
from nnunetv2_cads.comparison.arms import make_arms
from nnunetv2_cads.comparison.design import Design, Training
from nnunetv2_cads.comparison.folder import ComparisonFolder
from pretraining.system.errors import UserError
from pretraining.system.lock import held_if_free, new_lease

TRAINING = Training("scratch", 1, 0)
FULL = """
import errno, os
raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
"""


@pytest.fixture
def folder(tmp_path):
    """OUT of a comparison of one training."""
    found = ComparisonFolder(tmp_path / "out")
    found.root.mkdir()
    return found


@pytest.fixture
def design():
    return Design(
        dataset="Dataset001_Blobs", plans="nnUNetPlans", plans_sha256="0", configuration="3d_fullres",
        patients={"a": "a", "b": "b"}, test=("b",), arms=make_arms([], []), budgets=(1,), seeds=1, epochs=1,
        iterations=1,
    )  # fmt: skip


def do(folder, design):
    return work.do_trainings(folder, design, list(design.trainings()), "cpu", [])


def test_what_another_process_fails_at_meanwhile_is_not_tried_again(folder, design, monkeypatch):
    monkeypatch.setattr(work, "WAIT_SECONDS", 0.1)
    failure, failed = folder.failure(TRAINING), []
    failure.parent.mkdir()
    with held_if_free(new_lease(folder.root / f".{TRAINING.name}.lock", folder.root)) as ours:
        assert ours
        waiting = threading.Thread(target=lambda: failed.extend(do(folder, design)))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive()
        failure.write_text("it failed\n")
    waiting.join(60)
    assert failed == [TRAINING] and not folder.log(TRAINING).exists()


def test_checkpoints_of_a_finished_training_are_removed(folder, design):
    folder.result(TRAINING).parent.mkdir()
    folder.result(TRAINING).write_text("{}")
    (folder.training(TRAINING) / "results").mkdir(parents=True)
    assert do(folder, design) == [] and not folder.training(TRAINING).exists()


def test_a_disk_that_is_full_for_a_checkpoint_alone_is_told(folder, design, tmp_path, monkeypatch):
    """A checkpoint that did not fit is gone when the command looks, and there is room again."""
    (tmp_path / "full_disk.py").write_text(FULL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(work, "MODULE", "full_disk")
    with pytest.raises(UserError, match="out: the disk is full; make room"):
        do(folder, design)


def test_a_failure_without_a_reason_does_not_cost_the_report(folder, design):
    folder.failure(TRAINING).parent.mkdir()
    folder.failure(TRAINING).touch()
    assert work.failures(folder, design) == {TRAINING: "the reason could not be written"}
