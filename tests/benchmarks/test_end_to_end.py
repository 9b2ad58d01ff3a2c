"""The benchmark of whole commands, at its smallest size: what it measures, and that both sides make the same."""

import sys

import numpy as np
import pytest
from end_to_end import archive
from end_to_end.measured import measure
from end_to_end.scans import NOISE_HU, make_body, with_noise


def test_both_sides_make_the_same_of_an_archive(tmp_path, capsys):
    ratios = archive.compare(tmp_path, scans=1, rounds=1, edge=128)
    assert set(ratios) == {f"{kind}_{what}" for kind in archive.KINDS for what in ("seconds", "cpu_seconds", "memory")}
    assert min(ratios.values()) > 0
    assert "scan_000: 0.00% of the voxels differ by more than 1 HU" in capsys.readouterr().out


def test_a_command_is_measured_with_its_children():
    child = "import time; held = bytearray(300 << 20); time.sleep(1)"
    code = f"""
import subprocess, sys, time
print('begun')
subprocess.run([sys.executable, '-c', {child!r}])
begun = time.process_time()
while time.process_time() - begun < 0.5: pass
print('\\r 50%|x| 1/2 [00:01<00:01]', end='')
time.sleep(0.5)
"""
    measured = measure([sys.executable, "-c", code], {})
    assert measured.peak_bytes > 300 << 20
    assert measured.cpu_seconds > 0.5
    assert measured.seconds_to("begun") < 1 < 1.5 < measured.seconds_to(r"1/2 \[") < measured.seconds - 0.4
    with pytest.raises(ValueError, match="no line"):
        measured.seconds_to("another")


def test_a_command_that_fails_is_named_with_its_last_lines():
    with pytest.raises(RuntimeError, match="exit code 3:\nwhy it failed"):
        measure([sys.executable, "-c", "print('why it failed'); raise SystemExit(3)"], {})


def test_scans_differ_in_noise_alone():
    body = make_body(64)
    one, other = (with_noise(body, seed) for seed in (0, 1))
    inside = body > -500
    assert inside.any() and (one != other).any()
    np.testing.assert_allclose((one - other)[inside].std(), NOISE_HU * 2**0.5, rtol=0.05)
