"""The commands use no network: with every way to one closed, they do their work, and none of them tried.

`nnunetv2_cads/demo/test_cli.py` has it of the whole job, fine-tuning and prediction included.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from closed_network import alone, attempts, closed_environment
from tiny_run import TINY_RUN

TINY = [*TINY_RUN, "--epochs=1", "--epoch-samples=2", "--warmup-epochs=0"]


@pytest.fixture
def closed(tmp_path):
    """Runs a function of the package as a command, with the network closed in it and in all its processes."""
    environment = os.environ | closed_environment(tmp_path / "closed")

    def run(function: str, *arguments):
        module, _, name = function.rpartition(".")
        code = f"import sys; from {module} import {name}; sys.exit({name}())"
        command = [*alone(), sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300
        )

    return run


def test_no_command_uses_a_network(closed, make_body, tmp_path):
    (tmp_path / "archive").mkdir()
    sitk.WriteImage(make_body((30, 64, 64)), str(tmp_path / "archive" / "a.nii.gz"))
    encoder = tmp_path / "encoder.safetensors"
    for function, *arguments in (
        ("pretraining.preprocess.main", tmp_path / "archive", tmp_path / "store", "-np", 1),
        ("pretraining.train.main", tmp_path / "store", tmp_path / "run", *TINY),
        ("pretraining.train.main", tmp_path / "store", tmp_path / "plain", *TINY, "--encoder-size=b1", "--plain"),
        ("pretraining.export.main", tmp_path / "run", encoder),
    ):
        done = closed(function, *arguments)
        assert done.returncode == 0, done.stderr
    doctor = closed("nnunetv2_cads.doctor.cli.main", "--encoder", encoder)
    assert f"ok       encoder: {encoder}: 204 matched" in doctor.stdout, doctor.stdout + doctor.stderr
    assert attempts(tmp_path / "closed") == ""


def test_the_network_is_closed_in_these_tests(closed, tmp_path):
    code = "import socket\ndef connect():\n    socket.create_connection(('192.0.2.1', 9), timeout=1)\n"
    (tmp_path / "attempt.py").write_text(code)
    assert "no network in this test" in closed("attempt.connect").stderr
    assert "socket.getaddrinfo" in attempts(tmp_path / "closed")


@pytest.mark.skipif(not alone(), reason="an empty network namespace needs root and unshare")
def test_the_network_is_closed_for_libraries_in_c_too(closed, tmp_path):
    code = "import os, socket\ndef show():\n    return os.readlink('/proc/self/ns/net') + str(socket.if_nameindex())\n"
    (tmp_path / "namespace.py").write_text(code)
    shown = closed("namespace.show").stderr.strip()
    assert shown.endswith("[(1, 'lo')]")
    assert not shown.startswith(str(Path("/proc/self/ns/net").readlink()))
