"""The commands ask for no network: with every way to one closed, they do their work, and nothing was tried."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

import pretraining

REPOSITORY = Path(pretraining.__file__).parents[1]
# Python's audit events see each use of a socket, also by libraries; AF_UNIX (1) is how processes of one machine talk.
CLOSED = """
import os, sys

def refuse(event, arguments):
    tried = event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect")
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        tried = int(arguments[0].family) != 1
    if tried:
        with open(os.environ["ATTEMPTS"], "a") as file:
            print(event, arguments[1:], file=file)
        raise OSError("no network in this test")

sys.addaudithook(refuse)
"""
TINY = [
    "--preset=demo", "--batch-size=2", "--head-out-dim=32", "--head-hidden-dim=32", "--head-bottleneck-dim=16",
    "--epochs=1", "--epoch-samples=2", "--warmup-epochs=0", "--device=cpu", "--num-workers=1",
]  # fmt: skip


@pytest.fixture
def closed(tmp_path):
    """Runs a function of the package as a command, with the network closed in it and in all its processes."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOSED)
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": path, "ATTEMPTS": str(tmp_path / "attempts")}

    def run(function: str, *arguments, cwd=tmp_path, **changes):
        module, _, name = function.rpartition(".")
        code = f"import sys; from {module} import {name}; sys.exit({name}())"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command, env=environment | changes, cwd=cwd, capture_output=True, encoding="utf-8", timeout=300
        )

    return run


def test_no_command_asks_for_a_network(closed, make_body, tmp_path):
    (tmp_path / "archive").mkdir()
    sitk.WriteImage(make_body((30, 64, 64)), str(tmp_path / "archive" / "a.nii.gz"))
    encoder = tmp_path / "encoder.safetensors"
    for function, *arguments in (
        ("pretraining.cli.preprocess", tmp_path / "archive", tmp_path / "store", "-np", 1),
        ("pretraining.cli.pretrain", tmp_path / "store", tmp_path / "run", *TINY),
        ("pretraining.cli.export", tmp_path / "run", encoder),
    ):
        done = closed(function, *arguments)
        assert done.returncode == 0, done.stderr
    doctor = closed("nnunetv2_cads.doctor.main", "--encoder", encoder)
    assert f"ok       encoder: {encoder}: 204 matched" in doctor.stdout, doctor.stdout + doctor.stderr
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()


def test_the_network_is_closed_in_these_tests(closed, tmp_path):
    code = "import socket\ndef connect():\n    socket.create_connection(('192.0.2.1', 9), timeout=1)\n"
    (tmp_path / "attempt.py").write_text(code)
    assert "no network in this test" in closed("attempt.connect").stderr
    assert "socket.getaddrinfo" in (tmp_path / "attempts").read_text()
