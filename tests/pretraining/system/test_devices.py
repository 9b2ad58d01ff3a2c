"""Which device a run takes, what is set on it, and what is said where torchrun or the GPUs are missing."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import pretraining.system.processes
import pretraining.train
from pretraining.config import PRESETS, PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.system.devices import prepare_device
from pretraining.system.processes import ALONE, LostProcessError, Processes
from pretraining.train import main as pretrain

OF_TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
               "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip


@pytest.fixture
def said(monkeypatch, small_store, tmp_path, capfd):
    """Start a run with variables in the environment; it must be refused. Returns what it says."""

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


def test_more_processes_than_gpus_are_named_by_one_of_them(said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    message = said(OF_TORCHRUN, "--device", "cuda")
    assert message == (
        "error: 2 processes of this machine need a GPU each (PyTorch finds 0 here); check the driver (nvidia-smi), or "
        "give --device cpu\n"
    )
    assert said({**OF_TORCHRUN, "RANK": "1", "LOCAL_RANK": "1"}, "--device", "cuda") == ""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "(PyTorch finds 1 here); start torchrun with --nproc_per_node=1" in said(OF_TORCHRUN, "--device", "cuda")


def test_a_run_that_goes_on_takes_its_device_from_its_config(small_store, tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def start(device):
        asked.append(device)
        yield ALONE

    monkeypatch.setattr(pretraining.system.processes, "start_processes", start)
    (tmp_path / "config.json").write_text(json.dumps({"run": {"device": "cpu"}, "wrong": 1}))
    for flags in (["--c"], ["--c", "--device", "cuda"], []):
        assert pretrain([str(small_store), str(tmp_path), *flags]) == 2
    (tmp_path / "config.json").write_text("[]")
    assert pretrain([str(small_store), str(tmp_path), "--c"]) == 2
    assert asked == ["cpu", "cuda", "auto", "auto"]


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_a_gpu_is_made_the_current_one_and_float32_is_exact_without_amp(monkeypatch, amp):
    current, cudnn, matmul = [], SimpleNamespace(), SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    prepare_device(torch.device("cuda:3"), amp)
    assert current == [torch.device("cuda:3")]
    assert cudnn.allow_tf32 == matmul.allow_tf32 == (amp != "none") and cudnn.benchmark
    prepare_device(torch.device("cuda"), amp)
    prepare_device(torch.device("cpu"), amp)
    assert len(current) == 1


class Failing(Processes):
    """A run whose other process is gone when the step's sums are exchanged."""

    def sum_(self, values):
        raise RuntimeError("Connection closed by peer")


def test_a_step_in_which_a_process_is_lost_has_not_happened():
    config = PretrainConfig().replace(**(PRESETS["demo"] | {"batch_size": 2, "head_out_dim": 32}))
    pretrainer = Pretrainer(config, 2, torch.device("cpu"), Failing())
    before = {name: value.clone() for name, value in pretrainer.student.state_dict().items()}
    with pytest.raises(RuntimeError, match="Connection"):
        pretrainer.train_step(torch.randn(2, 1, 16, 32, 32), torch.randn(2, 1, 16, 32, 32), torch.randn(2, 1, 64, 64))
    assert any(name.endswith("running_mean") for name in before) and pretrainer.step == 0
    assert all(torch.equal(value, before[name]) for name, value in pretrainer.student.state_dict().items())


def test_the_loss_of_a_process_is_told_before_anything_is_asked_of_the_device(
    small_store, tmp_path, monkeypatch, caplog
):
    """On a GPU with a lost peer every read may hang; so nothing may come between the loss and its sentence."""

    def lose(*_):
        raise LostProcessError("another process of this run has ended")
        yield

    order = []
    monkeypatch.setattr(pretraining.train, "_run_epochs", lose)
    monkeypatch.setattr(Pretrainer, "is_finite", lambda _: order.append(len(caplog.records)) or True)
    monkeypatch.setattr(pretraining.train, "save_checkpoint", lambda *_: order.append("saved"))
    small = ["--preset=demo", "--batch-size=2", "--head-out-dim=32", "--head-hidden-dim=32", "--device=cpu"]
    with caplog.at_level("ERROR", "pretraining"):
        assert pretrain([str(small_store), str(tmp_path / "run"), *small]) == pretraining.train.LOST_PROCESS
    assert order == [1, "saved"] and "another process of this run has ended; go on with" in caplog.text
