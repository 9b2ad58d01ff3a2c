"""One process of a training on two: ``python ddp_process.py RANK RENDEZVOUS_FILE DATASET_FOLDER OUTPUT_FILE``.

nnU-Net's DDP is for CUDA; here it runs on the CPU over gloo. Only what names the device is replaced.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_cads.training.trainer import nnUNetTrainerCADS


class TrainerOnCPU(nnUNetTrainerCADS):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = torch.device("cpu"), None


def fingerprint(parameters) -> list[float]:
    return [value.double().sum().item() for value in parameters]


def main(rank: int, rendezvous: str, folder: Path, output: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    module.DDP = lambda network, device_ids: DistributedDataParallel(network)
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    torch.manual_seed(rank)  # so that equal weights come from DDP and from the encoder file
    trainer = TrainerOnCPU({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.on_train_start()
    trainer.lr_scheduler.step(0)
    parameters = dict(trainer.network.module.named_parameters())
    result = {"batch_size": trainer.batch_size, "start": fingerprint(parameters.values())}
    losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(2)]
    result["without_gradient"] = [name for name, value in parameters.items() if value.grad is None]
    result |= {"losses": losses, "end": fingerprint(parameters.values())}
    checkpoint = output.with_suffix(".pth")
    trainer.save_checkpoint(str(checkpoint))
    dist.barrier()
    if rank == 0:
        keys = torch.load(checkpoint, weights_only=False)["network_weights"].keys()
        result["keys_of_the_plain_network"] = keys == trainer.network.module.state_dict().keys()
    trainer.load_checkpoint(str(output.with_name("0.pth")))
    output.write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
