"""One training of a comparison, in a process of its own: train, segment the held-out cases, score them.

    python -m nnunetv2_cads.comparison.training OUT ARM__BUDGET__SEED DEVICE [--time ITERATIONS]

It resumes at nnU-Net's last checkpoint. With ``--time``, it takes a few steps and prints what they cost.
"""

import argparse
import functools
import json
import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunetv2_cads.comparison.arms import NNSSL, Arm
from nnunetv2_cads.comparison.dataset import Dataset, number_of, open_dataset
from nnunetv2_cads.comparison.design import Design, Training, read_design
from nnunetv2_cads.comparison.folder import FOLD, ComparisonFolder, write_nnunet_folders
from nnunetv2_cads.comparison.nnssl_resenc import NnsslResEncTrainer
from nnunetv2_cads.comparison.scores import score_folder
from nnunetv2_cads.comparison.trainers import find_trainer
from nnunetv2_cads.encoder_file.read import ENCODER_VARIABLE
from pretraining.run.estimate import forward_flops
from pretraining.system.files import atomic_path, remove_leftovers, write_json
from pretraining.system.machine import peak_memory, reset_peak_memory

VALIDATION_SHARE = 5
"""Iterations of training for one of validation, as nnU-Net has them."""
BEST = "checkpoint_best.pth"
"""Is not written: the network of the last epoch is compared."""
CHECKPOINTS = 10
"""A training saves about so often."""
TILE_STEP = 0.5
"""Of nnU-Net's sliding window, in patches."""
PARENT_SECONDS = 0.5
"""Between looks at whether the parent lives."""
UNTIMED = 2
"""First iterations, which are slower, are left out of a timing."""


def train(folder: ComparisonFolder, design: Design, training: Training, device: torch.device) -> None:
    """Do all of one training that is not done yet, and write its result."""
    dataset, trainer = _prepare(folder, design, training, device)
    remove_leftovers(Path(trainer.output_folder))
    maybe_load_checkpoint(trainer, continue_training=_is_begun(trainer), validation_only=False)
    reset_peak_memory(device)
    if trainer.current_epoch < design.epochs:
        trainer.run_training()
    cost = {
        "seconds_per_iteration": float(np.median(trainer.seconds)) if trainer.seconds else None,
        "peak_memory_bytes": peak_memory(device),
        **network_cost(trainer),
    }
    trainer.perform_actual_validation()
    predicted = Path(trainer.output_folder) / "validation"
    scores = score_folder(predicted, dataset, design.test)
    kept = folder.predictions(training)
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(predicted, kept)
    result = {
        **training._asdict(),
        "cases": design.learnt_cases(training.budget, training.seed),
        "scores": scores,
        "curve": curve_of(trainer),
        "cost": cost,
        "device": device_name(device),
    }
    folder.result(training).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder.result(training), result)


def time_steps(
    folder: ComparisonFolder, design: Design, training: Training, device: torch.device, iterations: int
) -> dict[str, float]:
    """What a step of a training costs, from a few that are thrown away."""
    _, trainer = _prepare(folder, design, training, device)
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    reset_peak_memory(device)
    for _ in range(UNTIMED + iterations):
        trainer.train_step(next(trainer.dataloader_train))
    seconds = float(np.median(trainer.seconds[UNTIMED:]))
    cost = {"seconds_per_iteration": seconds, "peak_memory_bytes": peak_memory(device)}
    return cost | network_cost(trainer) | {"seconds_per_case": _seconds_per_case(trainer, design)}


@torch.inference_mode()
def _seconds_per_case(trainer: nnUNetTrainer, design: Design) -> float:
    """Of segmenting a test case: the time of one patch, times the patches of a case and their mirror images."""
    manager, network = trainer.configuration_manager, trainer.network.eval()
    images = torch.zeros(1, trainer.num_input_channels, *manager.patch_size, device=trainer.device)
    seconds = []
    for _ in range(UNTIMED):
        started = time.perf_counter()
        float(network(images)[0].sum())  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    data = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(design.test))
    shapes = [data.load_case(case)[0].shape[1:] for case in design.test]
    steps = [compute_steps_for_sliding_window(shape, manager.patch_size, TILE_STEP) for shape in shapes]
    patches = float(np.mean([np.prod([len(along) for along in of_case]) for of_case in steps]))
    return seconds[-1] * patches * 2 ** len(trainer.inference_allowed_mirroring_axes or ())


def make_trainer(design: Design, training: Training, plans_file: Path, device: torch.device) -> nnUNetTrainer:
    """nnU-Net's trainer of an arm with the design's length, and with seeded weights and patches.

    nnU-Net's workers, where it has some, draw their augmentation from seeds of their own.
    """
    for seeding in (random.seed, np.random.seed, torch.manual_seed):
        seeding(training.seed)
    torch.backends.cudnn.benchmark = True  # as nnU-Net's own command has it
    arm = design.arm(training.arm)
    base = NnsslResEncTrainer if arm.network == NNSSL else find_trainer(arm.trainer)
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    description = json.loads((plans_file.parent / "dataset.json").read_text(encoding="utf-8"))
    made = _with_design(base, design, arm)(
        plans | {"continue_training": False}, design.configuration, FOLD, description, device
    )
    made.num_epochs, made.num_iterations_per_epoch = design.epochs, design.iterations
    made.num_val_iterations_per_epoch = max(design.iterations // VALIDATION_SHARE, 1)
    made.save_every = max(design.epochs // CHECKPOINTS, 1)
    return made


def _with_design(base: type[nnUNetTrainer], design: Design, arm: Arm) -> type[nnUNetTrainer]:
    """``base``, by its own name, with the design's mirroring and autocast, the arm's settings, whole checkpoints, and a
    clock."""

    class ComparedTrainer(base):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            self.iteration_began = time.perf_counter()

        def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
            outputs = super().train_step(batch)  # waits for the loss, so for a GPU
            now = time.perf_counter()
            self.seconds.append(now - self.iteration_began)
            self.iteration_began = now
            return outputs

        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
            *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            if not design.mirroring:
                self.inference_allowed_mirroring_axes = mirror_axes = None
            return *others, mirror_axes

        def save_checkpoint(self, filename: str) -> None:
            if Path(filename).name != BEST:
                with atomic_path(filename) as temporary:  # a training may be stopped while it writes
                    super().save_checkpoint(str(temporary))

        def initialize(self) -> None:
            super().initialize()
            self.seconds: list[float] = []  # of each iteration in this process, its data included
            self.iteration_began = time.perf_counter()
            if self.device.type == "cpu" and design.amp == "bf16":
                self.network.forward = _in_bf16(self.network.forward)

    ComparedTrainer.__name__ = base.__name__  # names nnU-Net's folders and checkpoints
    if arm.settings:
        ComparedTrainer.settings = {**base.settings, **arm.settings}
    return ComparedTrainer


def _in_bf16(forward: Callable[[Tensor], Tensor | list[Tensor]]) -> Callable[[Tensor], Tensor | list[Tensor]]:
    """``forward`` under autocast on the CPU, with outputs in float32, which softmax and loss need."""

    @functools.wraps(forward)
    def wrapped(images: Tensor) -> Tensor | list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = forward(images)
        return outputs.float() if isinstance(outputs, Tensor) else [output.float() for output in outputs]

    return wrapped


def network_cost(trainer: nnUNetTrainer) -> dict[str, float]:
    """Parameters, and FLOPs of a step: forward counted, backward taken as twice of it."""
    manager, network = trainer.configuration_manager, getattr(trainer.network, "_orig_mod", trainer.network)
    images = torch.zeros(manager.batch_size, trainer.num_input_channels, *manager.patch_size, device=trainer.device)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "flops_per_iteration": 3.0 * forward_flops(network, images),
    }


def curve_of(trainer: nnUNetTrainer) -> dict[str, list[float | None]]:
    """By epoch: loss of the training, and Dice of patches of the held-out cases, as nnU-Net estimates it."""
    names = {"train_loss": "train_losses", "patch_dice": "mean_fg_dice"}
    values = {name: trainer.logger.get_value(key, step=None) for name, key in names.items()}
    return {
        name: [float(value) if np.isfinite(value) else None for value in of_epochs]
        for name, of_epochs in values.items()
    }


def device_name(device: torch.device) -> str:
    """The name of a GPU, or ``cpu`` with the number of threads."""
    threads = torch.get_num_threads()
    cpu = f"cpu, {threads} thread{'s' * (threads > 1)}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu


def _is_begun(trainer: nnUNetTrainer) -> bool:
    return any((Path(trainer.output_folder) / f"checkpoint_{name}.pth").is_file() for name in ("latest", "final"))


def _prepare(
    folder: ComparisonFolder, design: Design, training: Training, device: torch.device
) -> tuple[Dataset, nnUNetTrainer]:
    """The user's dataset, and the trainer, which sees folders of its own in place of the user's."""
    dataset = open_dataset(number_of(design.dataset), design.plans, design.configuration)
    plans_file = write_nnunet_folders(folder, design, dataset, training)
    os.environ.update(folder.variables(training))
    return dataset, make_trainer(design, training, plans_file, device)


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, and with it the lock of the training."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def main(argv: list[str] | None = None) -> int:
    """The process of one training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--time", type=int, default=0)
    arguments = parser.parse_args(argv)
    folder = ComparisonFolder(arguments.out)
    design = read_design(folder.design)
    training = next(training for training in design.trainings() if training.name == arguments.name)
    encoder = design.arm(training.arm).encoder
    os.environ.pop(ENCODER_VARIABLE, None)
    if encoder:
        os.environ[ENCODER_VARIABLE] = str(encoder)
    threading.Thread(target=_end_with_parent, args=[os.getppid()], daemon=True).start()
    if arguments.time:
        cost = time_steps(folder, design, training, arguments.device, arguments.time)
        sys.stdout.write(f"\n{json.dumps(cost)}\n")
        return 0
    try:
        train(folder, design, training, arguments.device)
    except (Exception, SystemExit) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        failure = folder.failure(training)
        failure.parent.mkdir(exist_ok=True)
        failure.write_text(f"{reason}\n\n{traceback.format_exc()}", encoding="utf-8")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
