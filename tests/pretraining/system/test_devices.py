"""Which device a run takes, what is set on it, and what is reported where torchrun or the GPUs are missing."""

import json
from contextlib import contextmanager

import pytest
import torch

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.saving_and_stopping import LOST_RANK
from pretraining.system.devices import prepare_device
from pretraining.system.processes import LostRankError, Processes
from pretraining.train import main as pretrain

OF_TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
               "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip


@pytest.fixture
def said(monkeypatch, small_store, tmp_path, capfd):
    """Start a run with variables in the environment; it must be refused. Returns the message."""

    def run(variables: dict[str, str], *flags: str) -> str:
        for name in OF_TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert pretrain([str(small_store), str(tmp_path / "run"), *flags]) == 2
        assert not (tmp_path / "run").exists()
        return capfd.readouterr().err

    return run


def test_world_size_without_torchrun_is_named(said):
    message = said({"WORLD_SIZE": "4"})
    assert message.startswith("error: WORLD_SIZE is '4' in the environment, but RANK, LOCAL_RANK, LOCAL_WORLD_SIZE,")
    assert message.count("\n") == 1 and "unset WORLD_SIZE" in message
    assert "but WORLD_SIZE cannot be used" in said({**OF_TORCHRUN, "WORLD_SIZE": "many"})
    without = {name: value for name, value in OF_TORCHRUN.items() if name != "LOCAL_WORLD_SIZE"}
    assert "but LOCAL_WORLD_SIZE cannot be used" in said(without)


def test_too_few_gpus_are_reported_by_one_rank(said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = said(OF_TORCHRUN, "--device", "cuda")
    assert message == (
        "error: 2 processes of this machine need a GPU each (PyTorch finds 0 here); check the driver (nvidia-smi), or "
        "give --device cpu\n"
    )
    assert said({**OF_TORCHRUN, "RANK": "1", "LOCAL_RANK": "1"}, "--device", "cuda") == ""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "(PyTorch finds 1 here); start torchrun with --nproc_per_node=1" in said(OF_TORCHRUN, "--device", "cuda")


SMALL = ["--preset=cads", "--encoder-size=b0", "--batch-size=2", "--head-out-dim=32", "--head-hidden-dim=32",
         "--epochs=1", "--epoch-samples=2", "--num-workers=0"]  # fmt: skip


def test_a_run_that_resumes_takes_its_device_from_its_config(small_store, tmp_path, capfd):
    run, config = tmp_path / "run", tmp_path / "run" / "config.json"
    assert pretrain([str(small_store), str(run), *SMALL, "--device=cpu", "--max-hours=1e-9"]) == 0
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "run": {**content["run"], "device": "cuda:7"}}))
    assert pretrain([str(small_store), str(run), "--c"]) == 2
    assert "device 'cuda:7' cannot be used" in capfd.readouterr().err
    assert pretrain([str(small_store), str(run), "--c", "--device=cpu"]) == 0
    config.write_text("[]")
    assert pretrain([str(small_store), str(run), "--c"]) == 2
    assert f"{config}: damaged" in capfd.readouterr().err


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_exact_unless_tf32_is_asked_for(tf32):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = not tf32
        prepare_device(torch.device("cpu"), tf32)
        assert cudnn.allow_tf32 == matmul.allow_tf32 == (not tf32)  # as it was
        prepare_device(torch.device("cuda"), tf32)
        assert cudnn.allow_tf32 == matmul.allow_tf32 == tf32 and cudnn.benchmark
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_gpu_with_a_number_is_made_the_current_one():
    prepare_device(torch.device("cuda:1"))
    assert torch.cuda.current_device() == 1
    torch.cuda.set_device(0)


class Failing(Processes):
    """A run whose other rank is gone when the step's sums are exchanged."""

    def all_reduce(self, values):
        raise RuntimeError("Connection closed by peer")


def test_a_step_in_which_a_rank_is_lost_has_not_happened():
    config = PretrainConfig().replace(**(PRESETS["cads"] | {"batch_size": 2, "head_out_dim": 32}))
    pretrainer = Pretrainer(config, 2, torch.device("cpu"), Failing())
    before = {name: value.clone() for name, value in pretrainer.student.state_dict().items()}
    with pytest.raises(RuntimeError, match="Connection"):
        pretrainer.train_step(torch.randn(2, 1, 16, 32, 32), torch.randn(2, 1, 16, 32, 32), torch.randn(2, 1, 64, 64))
    assert any(name.endswith("running_mean") for name in before) and pretrainer.step == 0
    assert all(torch.equal(value, before[name]) for name, value in pretrainer.student.state_dict().items())


class Hangs(Exception):
    """In place of a read from a GPU that waits for the lost rank for ever."""


@pytest.mark.parametrize("hangs", [True, False])
def test_the_loss_of_a_rank_is_reported_before_anything_is_read_from_the_device(
    small_store, tmp_path, monkeypatch, capfd, hangs
):
    def lose(*_):
        raise RuntimeError("[gloo] Connection closed by peer")

    def read(_):
        raise Hangs

    monkeypatch.setattr(Pretrainer, "train_step", lose)
    monkeypatch.setattr("pretraining.system.devices.SINGLE_PROCESS", AmongOthers())
    if hangs:
        monkeypatch.setattr(Pretrainer, "is_finite", read)
    command = [str(small_store), str(tmp_path / "run"), *SMALL, "--device=cpu"]
    if hangs:
        with pytest.raises(Hangs):
            pretrain(command)
    else:
        assert pretrain(command) == LOST_RANK
    assert "another process of this run has ended; resume with" in capfd.readouterr().err
    assert (tmp_path / "run" / "checkpoint_latest.pth").exists() != hangs


class AmongOthers(Processes):
    """A rank that finds out about the loss of another."""

    @contextmanager
    def detect_lost_ranks(self):
        try:
            yield
        except RuntimeError as error:
            raise LostRankError("another process of this run has ended") from error
