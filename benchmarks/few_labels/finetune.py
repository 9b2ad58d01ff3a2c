"""One fine-tuning by nnU-Net's own trainer objects, in this process, and its score on the held-out cases."""

import copy
import itertools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from torch import nn

from few_labels.plans import CONFIGURATION
from few_labels.tasks import StudyCase
from nnunetv2_cads.comparison.compared_trainer import in_bf16
from nnunetv2_cads.comparison.cost import network_cost
from nnunetv2_cads.comparison.surface import dice, normalised_surface_dice
from nnunetv2_cads.encoder_file.read import ENCODER_VARIABLE
from nnunetv2_cads.encoder_file.record import EncoderRecord
from nnunetv2_cads.training.variants import TRAINERS
from pretraining.run.checkpoint import save_encoder
from pretraining.system.machine import peak_memory, reset_peak_memory
from pretraining.system.worker_pool import changed_environment


class nnUNetTrainerAdamWNoMirroring(nnUNetTrainerAdam, nnUNetTrainerNoMirroring):
    """nnU-Net's own networks with nnU-Net's variant for AdamW."""


CLASSES: dict[str, type[nnUNetTrainer]] = {
    **{cls.__name__: cls for cls in (nnUNetTrainerNoMirroring, nnUNetTrainerAdamWNoMirroring)},
    **TRAINERS,
}
TILE_STEP = 0.9
"""Step of the sliding window, in patches: a fifth of nnU-Net's overlap, for a third of the time."""


@dataclass(frozen=True)
class Schedule:
    """Length and rates of a fine-tuning; the same for all arms of one network.

    Attributes:
        epochs: units of the schedule.
        iterations: steps of an epoch.
        milestones: shares of the training after which a few held-out cases are scored; the end is one, too.
        milestone_cases: how many.
        decoder_lr: of PVT-UNet's decoder, and of all of a network of nnU-Net's with AdamW; with SGD it keeps nnU-Net's.
        encoder_lr: of its encoder.
    """

    epochs: int = 10
    iterations: int = 10
    milestones: tuple[float, ...] = (0.3, 0.5)
    milestone_cases: int = 3
    decoder_lr: float = 2e-3
    encoder_lr: float = 1e-3

    def times(self, length: float) -> "Schedule":
        """A longer or shorter one, with the same rates."""
        return replace(self, epochs=max(round(length * self.epochs), 1))


def finetune(
    trainer_name: str,
    plans: dict,
    dataset_json: dict,
    fold: int,
    seed: int,
    schedule: Schedule,
    held_out: dict[str, StudyCase],
    encoder: Path | None = None,
    encoder_out: Path | None = None,
    frozen: bool = False,
    decoder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train on the cases of a fold and score on the held-out ones.

    Args:
        trainer_name: in `CLASSES`.
        plans: nnU-Net's, of the network and of what is preprocessed.
        dataset_json: of the dataset.
        fold: in ``splits_final.json``.
        seed: of weights, order and augmentation.
        schedule: length and rates.
        held_out: cases by name.
        encoder: a pre-trained one to start from.
        encoder_out: where to write the trained network's encoder.
        frozen: whether the encoder keeps its weights; of PVT-UNet.
        settings: of the trainer, that differ from the schedule's.
        decoder: checkpoint of a pre-training that restored crops, whose decoder PVT-UNet's starts from.

    Returns:
        ``scores`` [{case, organ, dice, nsd}], None where neither truth nor prediction has the organ; ``curve`` (train
        loss by epoch), ``milestones``, ``cost``.
    """
    for seeding in (random.seed, np.random.seed, torch.manual_seed):
        seeding(seed)
    reset_peak_memory(torch.device("cpu"))
    variables = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}
    with changed_environment(variables | ({ENCODER_VARIABLE: str(encoder)} if encoder else {})):
        trainer = _make_trainer(CLASSES[trainer_name], plans, fold, dataset_json, schedule)
        vars(trainer).update(settings or {})
        if frozen:
            trainer.frozen_encoder_epochs = schedule.epochs
        trainer.after_epoch = lambda: _score_milestone(trainer, schedule, held_out)
        if decoder:
            trainer.initialize()
            load_decoder(trainer.network.decoder, decoder)
            trainer._initial_weights_digest = trainer._weights_digest()  # it is no checkpoint: the encoder is loaded
        started = time.perf_counter()
        trainer.run_training()
    seconds = time.perf_counter() - started - trainer.scoring_seconds
    cost = {
        "seconds_per_iteration": seconds / (schedule.epochs * schedule.iterations),
        "peak_memory_bytes": peak_memory(torch.device("cpu")),
        **network_cost(trainer),
    }
    if encoder_out:
        save_encoder(encoder_out, trainer.network.encoder.state_dict(), EncoderRecord())
    scores = score(trainer, held_out)
    last = _milestone(trainer, schedule, [row for row in scores if row["case"] in _some(held_out, schedule)])
    return {
        "scores": scores,
        "curve": [float(trainer.logger.get_value("train_losses", step=i)) for i in range(schedule.epochs)],
        "milestones": [*trainer.milestone_scores, last],
        "cost": cost,
    }


def _make_trainer(
    base: type[nnUNetTrainer], plans: dict, fold: int, dataset_json: dict, schedule: Schedule
) -> nnUNetTrainer:
    class StudyTrainer(base):
        """``base`` with a call after each epoch, and autocast, which nnU-Net has on GPUs alone."""

        def initialize(self) -> None:
            super().initialize()
            self.network.forward = in_bf16(self.network.forward)

        def on_epoch_end(self) -> None:
            super().on_epoch_end()
            self.after_epoch()

    plans = copy.deepcopy(plans) | {"continue_training": False}  # nnU-Net takes it out again
    trainer = StudyTrainer(plans, CONFIGURATION, fold, dataset_json, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = schedule.epochs, schedule.iterations
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    trainer.milestone_scores, trainer.scoring_seconds = [], 0.0
    if base in TRAINERS.values():
        trainer.mirroring = False
        trainer.encoder_lr = schedule.encoder_lr
    if base is not nnUNetTrainerNoMirroring:
        trainer.initial_lr = schedule.decoder_lr
    return trainer


def load_decoder(decoder: nn.Module, checkpoint: Path) -> None:
    """Start PVT-UNet's decoder, but for its heads, from the steps of that of a restoration.

    A run of cads_pretrain has none at full resolution, a peer has all.
    """
    content, prefix = torch.load(checkpoint, weights_only=True), "decoder."
    state = content["student" if "student" in content else "method"]  # of cads_pretrain, or of a peer
    steps = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    wanted = {key for key in decoder.state_dict() if not key.startswith("seg_layers.")}
    known = {key: value for key, value in steps.items() if key in wanted}
    if not known:
        raise ValueError(f"{checkpoint}: holds no decoder; give the checkpoint of a run that restored crops")
    decoder.load_state_dict(known, strict=False)


def _score_milestone(trainer: nnUNetTrainer, schedule: Schedule, held_out: dict[str, StudyCase]) -> None:
    """Score some held-out cases where the epoch that has just ended is a milestone."""
    if trainer.current_epoch not in {round(share * schedule.epochs) for share in schedule.milestones}:
        return
    started = time.perf_counter()
    trainer.milestone_scores.append(_milestone(trainer, schedule, score(trainer, _some(held_out, schedule))))
    trainer.scoring_seconds += time.perf_counter() - started


def _some(held_out: dict[str, StudyCase], schedule: Schedule) -> dict[str, StudyCase]:
    return dict(itertools.islice(held_out.items(), schedule.milestone_cases))


def _milestone(trainer: nnUNetTrainer, schedule: Schedule, rows: list[dict[str, Any]]) -> dict[str, Any]:
    dice_of_all = float(np.mean([row["dice"] for row in rows if row["dice"] is not None]))
    return {"iteration": trainer.current_epoch * schedule.iterations, "dice": dice_of_all}


def score(trainer: nnUNetTrainer, cases: dict[str, StudyCase]) -> list[dict[str, Any]]:
    """Dice and normalised surface Dice of every organ in every case, predicted as nnU-Net predicts."""
    predictor = nnUNetPredictor(
        tile_step_size=TILE_STEP, use_mirroring=False, perform_everything_on_device=False,
        device=trainer.device, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, trainer.__class__.__name__, None,
    )  # fmt: skip
    trainer.set_deep_supervision_enabled(False)
    rows = []
    for name, case in cases.items():
        properties = {"spacing": case.spacing_mm}
        predicted = predictor.predict_single_npy_array(case.image_hu[None].astype(np.float32), properties)
        for organ, label in trainer.dataset_json["labels"].items():
            if label:
                masks = predicted == label, case.labels == label
                surface = normalised_surface_dice(*masks, case.spacing_mm)
                rows.append({"case": name, "organ": organ, "dice": dice(*masks), "nsd": surface})
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return rows
