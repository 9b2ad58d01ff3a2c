"""nnU-Net's trainers by name."""

import contextlib
import io
import warnings

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_cads.training.base_trainer import BaseTrainer
from pretraining.system.errors import UserError


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """The class that ``nnUNetv2_train -tr`` finds.

    Raises:
        UserError: there is none.
    """
    try:
        # the search prints, and imports all of nnU-Net's trainers with what they need, which warns
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise UserError(f"{name}: nnU-Net finds no trainer of this name, and no --encoder has it") from error


def has_network_of_ours(trainer: type[nnUNetTrainer]) -> bool:
    """Whether a trainer builds PVT-UNet or CoTr, whatever network the plans name. Others need one of nnU-Net's there:
    even those that build their own read its parts from the plans."""
    return issubclass(trainer, BaseTrainer)
