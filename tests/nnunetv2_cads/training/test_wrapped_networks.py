"""The trainer with DDP and torch.compile, which wrap the network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_cads.network_architecture import PVTUNet, pvt_v2

REPOSITORY = Path(__file__).parents[3]


def test_two_processes_train_one_network_without_unused_parameters(nnunet_project, tmp_path):
    folder = nnunet_project.root / "preprocessed" / "Dataset001_Blobs"
    changes = {"nnUNet_results": str(tmp_path / "results"), "nnUNet_cads_encoder": str(nnunet_project.encoder_file)}
    environment = nnunet_project.environment(**changes, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS="1")
    script = Path(__file__).with_name("ddp_process.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "rendezvous", folder, tmp_path / f"{rank}.json"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["without_gradient"] == second["without_gradient"] == []
    assert first["batch_size"] == second["batch_size"] == 1
    assert first["losses"] != second["losses"]  # each has its own half of the batch
    assert first["start"] == second["start"]
    assert first["end"] == second["end"]
    assert first["end"] != first["start"]
    assert first["keys_of_the_plain_network"]


def _outputs_and_gradients(network, parameters, x, amp) -> tuple[list, dict]:
    """Of a training step in which the same branches are dropped every time."""
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        outputs = network(x)
    sum(output.float().square().mean() for output in outputs).backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return outputs, gradients


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize(("conv_op", "size"), [(nn.Conv2d, (33, 45)), (nn.Conv3d, (17, 33, 30))])
def test_a_compiled_network_is_one_graph_and_learns_and_predicts_the_same(conv_op, size, amp, monkeypatch):
    monkeypatch.setitem(pvt_v2.SIZES, "b1", pvt_v2.Size((1, 1, 1, 1)))  # a second block is traced like the first
    torch.manual_seed(0)
    torch.compiler.reset()
    network = PVTUNet(1, 3, conv_op, drop_path_rate=0.5)
    parameters = dict(network.named_parameters())
    # forward and backward graphs as the compiler gets them, without its minutes of making code
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 1, *size)
    plain, expected = _outputs_and_gradients(network, parameters, x, amp)
    outputs, gradients = _outputs_and_gradients(compiled, parameters, x, amp)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if amp else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(outputs, plain, **tolerance)
    assert [name for name, value in gradients.items() if value is None or not value.isfinite().all()] == []
    # by a tensor's length; rounding errors, as of a bias that the following norm takes off again, have no direction
    far = {
        name: (float((gradients[name] - value).norm()), float(value.norm()))
        for name, value in expected.items()
        if (gradients[name] - value).norm() > 0.05 * value.norm() + (1e-2 if amp else 1e-4)
    }
    assert far == {}
    network.eval()
    network.decoder.deep_supervision = False
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        torch.testing.assert_close(compiled(x), network(x), **tolerance)


def test_encoder_and_checkpoints_pass_through_both_wrappers(make_trainer, nnunet_project, monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_cads_encoder", str(nnunet_project.encoder_file))
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    trainer = make_trainer()
    trainer.initialize()
    keys = trainer.network.state_dict().keys()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        trainer.network = DistributedDataParallel(torch.compile(trainer.network))  # as nnU-Net wraps; traces nothing
        trainer.is_ddp = True
        trainer.on_train_start()
        trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
        weights = torch.load(tmp_path / "checkpoint.pth", weights_only=False)["network_weights"]
        assert weights.keys() == keys
        saved = torch.load(nnunet_project.encoder_file, weights_only=True)["teacher"]
        assert torch.equal(weights["encoder.norm4.bias"], saved["backbone.norm4.bias"])
        trainer.load_checkpoint(str(tmp_path / "checkpoint.pth"))
        trainer.set_deep_supervision_enabled(False)
        assert trainer.network.module.decoder.deep_supervision is False
    finally:
        dist.destroy_process_group()
