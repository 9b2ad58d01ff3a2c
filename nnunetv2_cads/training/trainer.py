"""nnUNetTrainerCADS: nnU-Net's trainer with PVT-UNet, AdamW and a pre-trained encoder.

Source: CADS method, "Downstream: PVT-UNet".
Stock plans normalise CT by z-score, not as pre-training saw it. That does little harm: each convolution of the
encoder's stem is followed by an instance norm, so scale and offset matter only at the patch's zero-padded borders.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_cads.encoder_file.read import EncoderFileError
from nnunetv2_cads.encoder_file.record import preprocessing_differences
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES, PVTUNet
from nnunetv2_cads.training.base_trainer import AdamWTrainer, TrainingCannotStart
from nnunetv2_cads.training.pretrained_encoder import (
    LoadedEncoder,
    find_encoder_file,
    load_pretrained_encoder,
)


class nnUNetTrainerCADS(AdamWTrainer):
    """Fine-tunes PVT-UNet from the encoder file that the environment variable ``nnUNet_cads_encoder`` names, or else
    from the one that the plans were made for.

    It is read when a training starts, but not to resume one (``--c``), to validate or to predict, nor where
    ``-pretrained_weights`` gave a whole network.

    Attributes (in addition to `AdamWTrainer`'s):
        use_pretrained_encoder: False starts from random weights instead.
    """

    strides = STRIDES
    defaults: Mapping[str, Any] = {**AdamWTrainer.defaults, "use_pretrained_encoder": True}

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

    def _weights_digest(self) -> str:
        """SHA-256 of a kernel that every checkpoint replaces and no encoder file does."""
        kernel = self._plain_network().decoder.blocks[-1].layers[0].weight
        return hashlib.sha256(kernel.detach().cpu().numpy().tobytes()).hexdigest()

    def _load_encoder(self) -> None:
        encoder = self._plain_network().encoder
        try:
            loaded = load_pretrained_encoder(
                encoder, find_encoder_file(self.plans_manager.plans), self._image_channels()
            )
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
