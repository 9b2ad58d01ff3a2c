"""Runs with further losses, beside the distillation and alone: they resume exactly, and two processes do as one."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_run import POINTS_ALONE, POINTS_WITH_CADS, RESTORATION_ALONE, RESTORATION_WITH_CADS

from pretraining.run.metrics import read_metrics
from pretraining.train import main as pretrain

KINDS = pytest.mark.parametrize(
    ("flags", "picture"),
    [
        (RESTORATION_WITH_CADS, "restored.png"),
        (RESTORATION_ALONE, "restored.png"),
        (POINTS_WITH_CADS, "points.png"),
        (POINTS_ALONE, "points.png"),
    ],
    ids=["restoration and cads", "restoration", "points and cads", "points"],
)


def losses(run) -> list[list[float]]:
    """All losses of each line, and the fractions of points that are found."""
    return [
        [value for name, value in line.items() if name.startswith(("loss", "points_found"))]
        for line in read_metrics(run / "metrics.jsonl")
    ]


@KINDS
def test_a_stopped_run_resumes_exactly(small_store, unbroken, tmp_path, flags, picture):
    run = tmp_path / "run"
    assert pretrain([str(small_store), str(run), *flags, "--max-hours=1e-9"]) == 0
    assert len(losses(run)) == 1
    assert pretrain([str(small_store), str(run), "--c", "--max-hours=0"]) == 0
    assert losses(run) == losses(unbroken(flags))
    ours, theirs = (
        torch.load(folder / "checkpoint_latest.pth", weights_only=True) for folder in (run, unbroken(flags))
    )
    for part in ("student", "teacher"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())


@KINDS
def test_two_processes_do_what_one_does(small_store, unbroken, tmp_path, flags, picture):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "pretraining.train", str(small_store), str(tmp_path / "run"), *flags]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(unbroken(flags)), rtol=2e-4)
    assert (tmp_path / "run" / picture).exists()
