"""nnUNetTrainerCoTr: nnU-Net's trainer with CoTr, a peer of PVT-UNet.

Paper: CoTr, Xie, Zhang, Shen, Xia, MICCAI 2021 (`network_architecture/cotr.py`).
Source: as published, optimizer (SGD, rate 0.01, Nesterov momentum 0.99, weight decay 3e-5), polynomial decay,
augmentation and loss are nnU-Net's; the weights of the four outputs are CoTr's.
Deviations: the paper trained with nnU-Net 1. What changed since is nnU-Net 2's here: augmentation, five random splits
instead of one fixed one, and no second start with momentum 0.95 where nothing was learnt in 100 epochs.
"""

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_cads.network_architecture.cotr import STRIDES, CoTr
from nnunetv2_cads.training.base_trainer import AdamWTrainer, BaseTrainer, TrainingCannotStart

LOSS_WEIGHTS = (8 / 15, 4 / 15, 2 / 15, 1 / 15)
"""Of the outputs, full resolution first. nnU-Net would give the coarsest 0."""


class nnUNetTrainerCoTr(BaseTrainer):
    """Trains CoTr from random weights with nnU-Net's own optimizer and schedule.

    Attributes (in addition to `BaseTrainer`'s, but of the class, since nnU-Net predicts without an instance):
        sampling_order: of the network; in ``settings`` or a subclass's body.
    """

    strides = STRIDES
    sampling_order = "corrected"

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """CoTr, whatever network the plans name. nnU-Net calls this to predict, too.

        Raises:
            TrainingCannotStart: the configuration is 2d, or ``sampling_order`` is none.
        """
        conv_op = nn.Conv2d if len(configuration_manager.patch_size) == 2 else nn.Conv3d
        order = cls.settings.get("sampling_order", cls.sampling_order)
        try:
            return CoTr(num_input_channels, num_output_channels, conv_op, enable_deep_supervision, order)
        except ValueError as error:
            raise TrainingCannotStart(f"{cls.__name__}: {error}") from error

    def _build_loss(self) -> nn.Module:
        """nnU-Net's, with the outputs' `LOSS_WEIGHTS`."""
        loss = super()._build_loss()
        return DeepSupervisionWrapper(loss.loss, LOSS_WEIGHTS) if self.enable_deep_supervision else loss


class nnUNetTrainerCoTr_AdamW(AdamWTrainer, nnUNetTrainerCoTr):
    """Trains CoTr with the optimizer and the rates that PVT-UNet has."""
