"""nnU-Net's trainer of an arm, with what the design of a comparison says."""

import functools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunetv2_cads.comparison.arms import NNSSL, Arm
from nnunetv2_cads.comparison.design import Design, Training
from nnunetv2_cads.comparison.folder import FOLD
from nnunetv2_cads.comparison.nnssl_resenc import NnsslResEncTrainer
from nnunetv2_cads.comparison.trainers import find_trainer
from pretraining.system.files import atomic_path

VALIDATION_SHARE = 5
"""Iterations of training for one of validation, as nnU-Net has them."""
BEST = "checkpoint_best.pth"
"""Is not written: the network of the last epoch is compared."""
CHECKPOINTS = 10
"""A training saves about so often."""


def make_trainer(design: Design, training: Training, plans_file: Path, device: torch.device) -> nnUNetTrainer:
    """nnU-Net's trainer of an arm with the design's length, and with seeded weights and patches.

    nnU-Net's workers, where it has some, draw their augmentation from seeds of their own.
    """
    seed_all(training.seed)
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


def seed_all(seed: int) -> None:
    """Seed every generator that weights and patches are drawn from."""
    for seeding in (random.seed, np.random.seed, torch.manual_seed):
        seeding(seed)


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
                self.network.forward = in_bf16(self.network.forward)

    ComparedTrainer.__name__ = base.__name__  # names nnU-Net's folders and checkpoints
    if arm.settings:
        ComparedTrainer.settings = {**base.settings, **arm.settings}
    return ComparedTrainer


def in_bf16(forward: Callable[[Tensor], Tensor | list[Tensor]]) -> Callable[[Tensor], Tensor | list[Tensor]]:
    """``forward`` under autocast on the CPU, with outputs in float32, which softmax and loss need."""

    @functools.wraps(forward)
    def wrapped(images: Tensor) -> Tensor | list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = forward(images)
        return outputs.float() if isinstance(outputs, Tensor) else [output.float() for output in outputs]

    return wrapped
