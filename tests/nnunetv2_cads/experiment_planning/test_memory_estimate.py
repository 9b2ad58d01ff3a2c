"""The memory estimate against the memory that a real training step takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_cads.experiment_planning.memory_estimate import largest_batch_size, training_bytes

REPOSITORY = Path(__file__).parents[3]
CASES = [((32, 64, 96), 2, 2, 8), ((160, 192), 3, 1, 4)]
"""Patch, batch size, input channels, classes: none of those that the estimate was fitted to."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is reset in /proc")
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_within_a_fifth_of_a_measured_step(case):
    folders = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "benchmarks")])
    variables = {"PYTHONPATH": folders, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
    code = f"import torch, finetune_memory as f; print(f.measure(*{case}, torch.device('cpu'))['peak'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables}, capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.splitlines()[-1])
    assert training_bytes(*case) == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("patch", [(48, 192, 192), (64, 64, 64), (512, 512)])
def test_the_largest_batch_leaves_room_for_what_is_not_estimated(patch):
    target = 16 * 2**30
    batch = largest_batch_size(target, patch, 1, 14)
    assert training_bytes(patch, batch, 1, 14) < 0.75 * target < training_bytes(patch, batch + 1, 1, 14) + 0.1 * target
