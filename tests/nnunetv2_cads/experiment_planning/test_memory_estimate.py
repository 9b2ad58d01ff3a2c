"""The memory estimate against the memory that a real training step takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_cads.experiment_planning.memory_estimate import NETWORKS, largest_batch_size, training_bytes

REPOSITORY = Path(__file__).parents[3]
CASES = [((32, 64, 96), 2, 2, 8, "PVT-UNet"), ((160, 192), 3, 1, 4, "PVT-UNet"), ((16, 64, 80), 2, 2, 8, "CoTr")]
"""Patch, batch size, input channels, classes, network: none of those that the estimate was fitted to."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is reset in /proc")
@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_within_a_fifth_of_a_measured_step(case):
    *sizes, network = case
    folders = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "benchmarks")])
    variables = {"PYTHONPATH": folders, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
    code = f"import torch, finetune_memory as f; print(f.measure(*{sizes}, torch.device('cpu'), '{network}')['peak'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables}, capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.splitlines()[-1])
    assert training_bytes(*sizes, network=network) == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("patch", [(48, 192, 192), (64, 64, 64), (512, 512)])
def test_the_largest_batch_leaves_room_for_what_is_not_estimated(patch, network):
    target = 16 * 2**30
    batch = largest_batch_size(target, patch, 1, 14, network)
    fits, too_large = (training_bytes(patch, n, 1, 14, network=network) for n in (batch, batch + 1))
    assert fits < 0.75 * target < too_large + 0.1 * target


def test_cotr_is_estimated_on_the_padded_patch():
    assert training_bytes((41, 60, 60), 2, 1, 3, network="CoTr") == training_bytes(
        (48, 64, 64), 2, 1, 3, network="CoTr"
    )
