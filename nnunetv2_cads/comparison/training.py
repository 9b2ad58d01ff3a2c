"""One training of a comparison, in a process of its own: train, segment the held-out cases, score them.

    python -m nnunetv2_cads.comparison.training OUT ARM__BUDGET__SEED DEVICE [--time ITERATIONS] [--parent PID]

It resumes at nnU-Net's last checkpoint. With ``--time``, it takes a few steps and prints what they cost. With
``--parent``, it ends, and with it all processes of its session, when its parent is no longer that process.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_cads.comparison.arms import check_encoder_file
from nnunetv2_cads.comparison.compared_trainer import make_trainer, seed_all
from nnunetv2_cads.comparison.cost import UNTIMED, device_name, network_cost, seconds_per_case
from nnunetv2_cads.comparison.dataset import Dataset, number_of, open_dataset
from nnunetv2_cads.comparison.design import Design, Training, read_design
from nnunetv2_cads.comparison.folder import ComparisonFolder, write_nnunet_folders
from nnunetv2_cads.comparison.scores import score_folder
from nnunetv2_cads.encoder_file.read import ENCODER_VARIABLE
from pretraining.system.files import remove_leftovers, write_json
from pretraining.system.machine import peak_memory, reset_peak_memory

RESUMED_SEED = 10_000
"""More than a training has epochs: each epoch that a training of a seed is resumed at has a seed of its own."""
PARENT_SECONDS = 0.5
"""Between looks at whether the parent lives."""


def train(folder: ComparisonFolder, design: Design, training: Training, device: torch.device) -> None:
    """Do all of one training that is not done yet, and write its result."""
    dataset, trainer = _prepare(folder, design, training, device)
    remove_leftovers(Path(trainer.output_folder))
    maybe_load_checkpoint(trainer, continue_training=_is_begun(trainer), validation_only=False)
    if trainer.current_epoch:  # the seed of its beginning would show the patches of its beginning again
        seed_all(RESUMED_SEED * training.seed + trainer.current_epoch)
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
    trainer.network.eval()
    started = time.perf_counter()
    trainer.validation_step(next(trainer.dataloader_val))  # ends with numbers, so it waits for a GPU
    validation = trainer.num_val_iterations_per_epoch * (time.perf_counter() - started)
    cost = {"seconds_per_iteration": seconds, "peak_memory_bytes": peak_memory(device)}
    cost |= {"seconds_per_validation": validation, "seconds_per_case": seconds_per_case(trainer, design)}
    return cost | network_cost(trainer)


def curve_of(trainer: nnUNetTrainer) -> dict[str, list[float | None]]:
    """By epoch: loss of the training, and Dice of patches of the held-out cases, as nnU-Net estimates it."""
    names = {"train_loss": "train_losses", "patch_dice": "mean_fg_dice"}
    values = {name: trainer.logger.get_value(key, step=None) for name, key in names.items()}
    return {
        name: [float(value) if np.isfinite(value) else None for value in of_epochs]
        for name, of_epochs in values.items()
    }


def _is_begun(trainer: nnUNetTrainer) -> bool:
    return any((Path(trainer.output_folder) / f"checkpoint_{name}.pth").is_file() for name in ("latest", "final"))


def _prepare(
    folder: ComparisonFolder, design: Design, training: Training, device: torch.device
) -> tuple[Dataset, nnUNetTrainer]:
    """The user's dataset, and the trainer, which sees folders of its own in place of the user's."""
    arm = design.arm(training.arm)
    os.environ.pop(ENCODER_VARIABLE, None)
    if arm.encoder:
        check_encoder_file(arm)
        os.environ[ENCODER_VARIABLE] = str(arm.encoder)
    dataset = open_dataset(number_of(design.dataset), design.plans, design.configuration)
    plans_file = write_nnunet_folders(folder, design, dataset, training)
    os.environ.update(folder.variables(training))
    return dataset, make_trainer(design, training, plans_file, device)


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, and with it the lock of the training."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    if os.getpgid(0) == os.getpid():  # nnU-Net's workers would wait for it for ever
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(argv: list[str] | None = None) -> int:
    """The process of one training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("device", type=torch.device)
    parser.add_argument("--time", type=int, default=0)
    parser.add_argument("--parent", type=int)
    arguments = parser.parse_args(argv)
    folder = ComparisonFolder(arguments.out)
    design = read_design(folder.design)
    training = next(training for training in design.trainings() if training.name == arguments.name)
    if arguments.parent:
        threading.Thread(target=_end_with_parent, args=[arguments.parent], daemon=True).start()
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
