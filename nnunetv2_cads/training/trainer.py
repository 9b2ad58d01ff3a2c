"""nnUNetTrainerCADS: nnU-Net's trainer with PVT-UNet, AdamW and a pre-trained encoder.

Source: CADS method, "Downstream: PVT-UNet". Only hooks are overridden; data, augmentation, loss, gradient clipping
(norm 12, in nnU-Net's training step), validation and checkpoints are nnU-Net's.
Stock plans normalise CT by z-score, not as pre-training saw it. That does little harm: each convolution of the
encoder's stem is followed by an instance norm, so scale and offset matter only at the patch's zero-padded borders.
"""

import functools
import hashlib
import locale
import math
from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_cads.encoder_file.read import EncoderFileError
from nnunetv2_cads.encoder_file.record import preprocessing_differences
from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES, PVTUNet
from nnunetv2_cads.training.nnunet_checkpoint import NnunetCheckpointError, read_nnunet_checkpoint
from nnunetv2_cads.training.parameter_groups import parameter_groups
from nnunetv2_cads.training.pretrained_encoder import (
    LoadedEncoder,
    encoder_path_from_environment,
    load_pretrained_encoder,
)
from nnunetv2_cads.training.schedule import EpochSchedule, sawtooth_factor, warmup_poly_factor

DEFAULT_DEVICE = torch.device("cuda")


class TrainingCannotStart(SystemExit, RuntimeError):
    """Something that the user can fix; nnU-Net's command ends with only the sentence and exit code 1."""


class nnUNetTrainerCADS(nnUNetTrainer):
    """Fine-tunes PVT-UNet from the encoder file that the environment variable ``nnUNet_cads_encoder`` names.

    The variable is read when a training starts, but not to resume one (``--c``), to validate or to predict, nor where
    ``-pretrained_weights`` gave a whole network.

    Attributes (in addition to nnU-Net's; a subclass sets them after ``super().__init__`` or through ``settings``):
        initial_lr: base rate of the decoder, which starts from random weights.
        encoder_lr: base rate of the encoder; 1e-4 as in the CADS method.
        weight_decay: AdamW's, for matrices and kernels.
        warmup_fraction: share of the epochs, rounded up, over which the rates rise.
        frozen_encoder_epochs: first epochs in which the encoder keeps its weights, by a rate of 0. It is still computed
            with gradients, so that DDP and compiled networks need nothing special. Its warm-up comes afterwards.
        sawtooth: whether the decoder's rate falls in these first epochs, too, and rises once more with the encoder's.
        encoder_lr_decay: factor on the encoder's rate from each stage to the one before it, and to the stem.
        use_pretrained_encoder: False starts from random weights instead.
        mirroring: False neither trains nor predicts with mirrored patches: for short trainings whose labels differ
            between left and right.
    """

    settings: Mapping[str, Any] = {}
    """Attribute values of a variant."""

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = DEFAULT_DEVICE
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 5e-4
        self.encoder_lr = 1e-4
        self.weight_decay = 1e-2
        self.warmup_fraction = 0.05
        self.frozen_encoder_epochs = 0
        self.sawtooth = False
        self.encoder_lr_decay = 1.0
        self.use_pretrained_encoder = True
        self.mirroring = True
        for name, value in self.settings.items():
            if not hasattr(self, name):
                raise TrainingCannotStart(f"{type(self).__name__}: settings has {name!r}, which no trainer knows")
            setattr(self, name, value)

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """PVTUNet of the patch's dimension, whatever network the plans name. nnU-Net calls this to predict, too."""
        conv_op = nn.Conv2d if len(configuration_manager.patch_size) == 2 else nn.Conv3d
        return PVTUNet(num_input_channels, num_output_channels, conv_op, enable_deep_supervision)

    def initialize(self) -> None:
        """Build everything; remember the initial weights, to see later whether a checkpoint has replaced them."""
        super().initialize()
        self._initial_weights_digest = self._weights_digest()

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
            lengths = {"num_epochs": self.num_epochs, "warmup_epochs": warmup_epochs}
            decoder = functools.partial(sawtooth_factor, **lengths, first_epochs=self.frozen_encoder_epochs)
        factors = (decoder, decoder, *[encoder] * (len(groups) - 2))
        return optimizer, EpochSchedule(optimizer, factors)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's, with no axes to mirror where ``mirroring`` is off; checkpoints keep that for prediction."""
        *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirroring:
            self.inference_allowed_mirroring_axes = mirror_axes = None
        return *others, mirror_axes

    def print_to_log_file(self, *args: Any, **options: bool) -> None:
        """nnU-Net's, with characters that the locale's encoding lacks escaped: they would end the training."""
        encoding = locale.getpreferredencoding(False)
        super().print_to_log_file(
            *(str(a).encode(encoding, "backslashreplace").decode(encoding) for a in args), **options
        )

    def on_train_start(self) -> None:
        """Load the encoder into a network with initial weights, before any worker starts or any file is replaced.

        Raises:
            TrainingCannotStart: there is no encoder file, or it does not fit.
        """
        if not self.was_initialized:
            self.initialize()
        if self._weights_digest() != self._initial_weights_digest:
            self.print_to_log_file("The network's weights come from a checkpoint; no encoder file is read.")
        elif self.use_pretrained_encoder:
            self._load_encoder()
        else:
            self.print_to_log_file("The encoder starts from random weights.")
        super().on_train_start()

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
        sizes = output_sizes(patch_size, STRIDES[len(patch_size)])
        return [[n / patch for n, patch in zip(size, patch_size, strict=True)] for size in sizes]

    def _plain_network(self) -> PVTUNet:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return getattr(network, "_orig_mod", network)

    def _weights_digest(self) -> str:
        """SHA-256 of a kernel that every checkpoint replaces and no encoder file does."""
        kernel = self._plain_network().decoder.blocks[-1].layers[0].weight
        return hashlib.sha256(kernel.detach().cpu().numpy().tobytes()).hexdigest()

    def _load_encoder(self) -> None:
        encoder = self._plain_network().encoder
        try:
            loaded = load_pretrained_encoder(encoder, encoder_path_from_environment(), self._image_channels())
        except EncoderFileError as error:
            self.print_to_log_file(error, also_print_to_console=False)
            raise TrainingCannotStart(str(error)) from error
        self._log_encoder(loaded)

    def _image_channels(self) -> int:
        """Input channels that are images; a cascade has one more for each label of the previous stage."""
        labels = len(self.label_manager.foreground_labels) if self.is_cascaded else 0
        return self.num_input_channels - labels

    def _log_encoder(self, loaded: LoadedEncoder) -> None:
        configuration = self.configuration_manager
        self.print_to_log_file(f"Pre-trained encoder: {loaded.path.resolve()}, SHA-256 {loaded.sha256}")
        self.print_to_log_file(f"Encoder keys: {loaded.report}")
        if loaded.inflated:
            channels = f"{self._image_channels()} of {self.num_input_channels} input channels"
            rest = "; the others are the previous stage's and start at zero" if self.is_cascaded else ""
            self.print_to_log_file(f"Spread over {channels}: {', '.join(loaded.inflated)}{rest}")
        if len(configuration.patch_size) == 2:
            self.print_to_log_file("2d starts from the encoder's X-ray half, which saw radiographs but no CT slices.")
        seen = ", ".join(f"{name} {value}" for name, value in loaded.record.to_file().items())
        self.print_to_log_file(f"Its pre-training saw: {seen or 'unknown (the file has no record of it)'}")
        self.print_to_log_file(
            f"This training shows: spacing_mm {configuration.spacing}, patch size {configuration.patch_size}, "
            f"normalisation {configuration.normalization_schemes}"
        )
        for difference in preprocessing_differences(
            loaded.record,
            configuration.spacing,
            configuration.normalization_schemes,
            self.plans_manager.foreground_intensity_properties_per_channel,
            self.dataset_json.get("channel_names"),
        ):
            self.print_to_log_file(f"WARNING: {loaded.path.name} and these plans differ. {difference.text}")
