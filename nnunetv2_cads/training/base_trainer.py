"""What our trainers share: settings of variants, mirroring, splits of few cases, checked checkpoints, sizes of labels,
AdamW and its rates.

Only nnU-Net's hooks are overridden; data, augmentation, loss, gradient clipping (norm 12, in nnU-Net's training step),
validation and checkpoints are nnU-Net's.
"""

import functools
import locale
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.training.nnunet_checkpoint import NnunetCheckpointError, read_nnunet_checkpoint
from nnunetv2_cads.training.parameter_groups import parameter_groups
from nnunetv2_cads.training.schedule import EpochSchedule, sawtooth_factor, warmup_poly_factor
from nnunetv2_cads.training.split import (
    NNUNET_FOLDS,
    ONE_CASE,
    OUTGROWN,
    SPLITS_FILE,
    few_cases_split,
    folds_in_words,
    is_outgrown,
    read_splits,
)
from pretraining.system.files import write_json

DEFAULT_DEVICE = torch.device("cuda")


class TrainingCannotStart(SystemExit, RuntimeError):
    """Something that the user can fix; nnU-Net's command ends with only the sentence and exit code 1."""


class BaseTrainer(nnUNetTrainer):
    """nnU-Net's trainer, for networks with fixed strides.

    Attributes (in addition to nnU-Net's; a subclass sets them after ``super().__init__`` or through ``settings``):
        mirroring: False neither trains nor predicts with mirrored patches: for short trainings whose labels differ
            between left and right.
    """

    strides: Mapping[int, Sequence[Sequence[int]]]
    """Of the network's maps, each relative to the map before it, by number of dimensions; see `output_sizes`."""
    defaults: Mapping[str, Any] = {"mirroring": True}
    """Values of a trainer's attributes where no variant says otherwise."""
    settings: Mapping[str, Any] = {}
    """Attribute values of a variant."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = DEFAULT_DEVICE
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        vars(self).update(self.defaults)
        for name, value in self.settings.items():
            if not hasattr(self, name):
                raise TrainingCannotStart(f"{type(self).__name__}: settings has {name!r}, which no trainer knows")
            setattr(self, name, value)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's, with no axes to mirror where ``mirroring`` is off; checkpoints keep that for prediction."""
        *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirroring:
            self.inference_allowed_mirroring_axes = mirror_axes = None
        return *others, mirror_axes

    def initialize(self) -> None:
        """nnU-Net's, after a check that there are preprocessed cases.

        Raises:
            TrainingCannotStart: there are none.
        """
        folder = Path(self.preprocessed_dataset_folder)
        if not folder.is_dir() or next(folder.iterdir(), None) is None:
            plans = self.plans_manager
            dataset = convert_dataset_name_to_id(plans.dataset_name)
            data = self.configuration_name.replace("_cascade", "")  # the cascade reads the data of 3d_fullres
            command = ["nnUNetv2_preprocess", "-d", str(dataset), "-plans_name", plans.plans_name, "-c", data]
            raise TrainingCannotStart(f"{folder}: holds no preprocessed case; run first: {shlex.join(command)}")
        super().initialize()

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, after a split has been made of fewer cases than its five folds need, where there is none.

        Raises:
            TrainingCannotStart: there are so few cases, and the fold is none of theirs.
        """
        if self.fold != "all":
            folder = self.preprocessed_dataset_folder
            cases = infer_dataset_class(folder).get_identifiers(folder)
            file = Path(self.preprocessed_dataset_folder_base, SPLITS_FILE)
            if 1 <= len(cases) < NNUNET_FOLDS:
                self._split_few(cases, file)
            elif is_outgrown(file, cases):
                self.print_to_log_file(f"WARNING: {file} {OUTGROWN.format(count=len(cases))}.")
        return super().do_split()

    def _split_few(self, cases: Sequence[str], file: Path) -> None:
        """Write the split of fewer than five cases, unless there is one; refuse a fold that it has not."""
        if not file.exists():
            write_json(file, few_cases_split(cases))
        count = len(read_splits(file))
        if not 0 <= self.fold < count:  # nnU-Net would split at random, with nothing to train on for a single case
            raise TrainingCannotStart(
                f"fold {self.fold} does not exist: {file} splits the {len(cases)} labelled cases into "
                f"{folds_in_words(count)}; give one of these instead (all trains and validates on every case)"
            )
        if len(cases) == 1:
            self.print_to_log_file(f"WARNING: {ONE_CASE}.")

    def print_to_log_file(self, *args: Any, **options: bool) -> None:
        """nnU-Net's, with characters that the locale's encoding lacks escaped: they would end the training."""
        encoding = locale.getpreferredencoding(False)
        super().print_to_log_file(
            *(str(a).encode(encoding, "backslashreplace").decode(encoding) for a in args), **options
        )

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """nnU-Net's, after a check that the checkpoint fits this network and optimizer.

        Raises:
            TrainingCannotStart: it is missing, damaged, would run code, or is of another network or optimizer.
        """
        if not self.was_initialized:
            self.initialize()
        if isinstance(filename_or_checkpoint, str):
            self._check_checkpoint(filename_or_checkpoint)
        super().load_checkpoint(filename_or_checkpoint)

    def _check_checkpoint(self, file: str) -> None:
        try:
            checkpoint = read_nnunet_checkpoint(file)
        except NnunetCheckpointError as error:
            raise TrainingCannotStart(str(error)) from error
        writer, reader = checkpoint.trainer_name, type(self).__name__
        shapes = {key: tuple(value.shape) for key, value in self._plain_network().state_dict().items()}
        group_sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        if (checkpoint.shapes, checkpoint.group_sizes) != (shapes, group_sizes):
            raise TrainingCannotStart(
                f"{file}: this checkpoint, written by {writer}, does not fit {reader} with "
                f"{self.num_input_channels} input channels and {self.label_manager.num_segmentation_heads} outputs; "
                f"resume it with -tr {writer} and its own plans, or start a new training without --c in an empty folder"
            )
        if writer != reader:
            self.print_to_log_file(
                f"WARNING: {file} was written by {writer}; from now on {reader}'s epochs and learning rates apply."
            )

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Output size / patch size per output: nnU-Net rounds their product, so labels get exactly our sizes."""
        if not self.enable_deep_supervision:
            return None
        patch_size = self.configuration_manager.patch_size
        sizes = output_sizes(patch_size, self.strides[len(patch_size)])
        return [[n / patch for n, patch in zip(size, patch_size, strict=True)] for size in sizes]

    def _plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return getattr(network, "_orig_mod", network)


class AdamWTrainer(BaseTrainer):
    """AdamW with our rates, for networks with ``encoder``.

    Attributes (in addition to `BaseTrainer`'s):
        initial_lr: base rate of what is not the encoder.
        encoder_lr: base rate of the encoder; 1e-4 as in the CADS method.
        weight_decay: AdamW's, for matrices and kernels.
        warmup_fraction: share of the epochs, rounded up, over which the rates rise.
        frozen_encoder_epochs: first epochs in which the encoder keeps its weights, by a rate of 0. It is still computed
            with gradients, so that DDP and compiled networks need nothing special. Its warm-up comes afterwards.
        sawtooth: whether the other rates fall in these first epochs, too, and rise once more with the encoder's.
        encoder_lr_decay: of PVT-UNet: factor on the encoder's rate from each stage to the one before it, and to the
            stem.
    """

    defaults: Mapping[str, Any] = {
        **BaseTrainer.defaults,
        "initial_lr": 5e-4,
        "encoder_lr": 1e-4,
        "weight_decay": 1e-2,
        "warmup_fraction": 0.05,
        "frozen_encoder_epochs": 0,
        "sawtooth": False,
        "encoder_lr_decay": 1.0,
    }

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """AdamW with the encoder's and the decoder's own rates; rates depend only on the epoch."""
        groups = parameter_groups(
            self._plain_network(), self.initial_lr, self.encoder_lr, self.weight_decay, self.encoder_lr_decay
        )
        optimizer = torch.optim.AdamW(groups, fused=True)  # on the CPU a tenth of the default's time
        warmup_epochs = math.ceil(self.warmup_fraction * self.num_epochs)
        decoder = functools.partial(warmup_poly_factor, num_epochs=self.num_epochs, warmup_epochs=warmup_epochs)
        encoder = functools.partial(decoder, frozen_epochs=self.frozen_encoder_epochs)
        if self.sawtooth:
            if not self.frozen_encoder_epochs:
                raise TrainingCannotStart(
                    "sawtooth needs first epochs for the decoder alone: set frozen_encoder_epochs"
                )
            lengths = {"num_epochs": self.num_epochs, "warmup_epochs": warmup_epochs}
            decoder = functools.partial(sawtooth_factor, **lengths, first_epochs=self.frozen_encoder_epochs)
        factors = (decoder, decoder, *[encoder] * (len(groups) - 2))
        return optimizer, EpochSchedule(optimizer, factors)
