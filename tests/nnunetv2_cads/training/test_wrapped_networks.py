"""The trainer with DDP and torch.compile, which wrap the network."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_cads.network_architecture import PVTUNet

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


def test_a_compiled_network_is_one_graph_and_gives_the_same():
    torch.manual_seed(0)
    network = PVTUNet(1, 2, drop_path_rate=0.0)
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # the graph, without the compiler's minutes
    x = torch.randn(1, 1, 16, 32, 32)
    for plain, other in zip(network(x), compiled(x), strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-3, atol=1e-4)


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
