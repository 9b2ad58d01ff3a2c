"""The trainers that ``-tr`` can name: a table of what differs."""

from nnunetv2_cads.training.base_trainer import BaseTrainer
from nnunetv2_cads.training.cotr_trainer import nnUNetTrainerCoTr, nnUNetTrainerCoTr_AdamW
from nnunetv2_cads.training.trainer import nnUNetTrainerCADS

CADS_STARTS = {
    "nnUNetTrainerCADS": {},
    "nnUNetTrainerCADS_scratch": {"use_pretrained_encoder": False},
}
LENGTHS = {
    "": {},
    "_5epochs": {"num_epochs": 5},
    "_50epochs": {"num_epochs": 50},
    "_250epochs": {"num_epochs": 250},
}
DEMO_LENGTHS = {
    "_demo": {
        "num_epochs": 5,
        "num_iterations_per_epoch": 15,
        "num_val_iterations_per_epoch": 1,
        "initial_lr": 2e-3,
        "encoder_lr": 1e-3,
        "mirroring": False,
    },
    "_demo_quick": {
        "num_epochs": 1,
        "num_iterations_per_epoch": 4,
        "num_val_iterations_per_epoch": 1,
        "mirroring": False,
    },
}
PUBLISHED_SAMPLING = {"sampling_order": "published"}


def _variants(
    base: type[BaseTrainer], starts: dict[str, dict], lengths: dict[str, dict]
) -> dict[str, type[BaseTrainer]]:
    """A class of each name, by which nnU-Net finds it and names its output folder."""
    rows = {
        start + length: {**start_settings, **length_settings}
        for start, start_settings in starts.items()
        for length, length_settings in lengths.items()
    }
    return {
        name: type(name, (base,), {"settings": settings, "__module__": __name__}) if settings else base
        for name, settings in rows.items()
    }


TRAINERS = {
    **_variants(nnUNetTrainerCADS, CADS_STARTS, {**LENGTHS, **DEMO_LENGTHS}),
    **_variants(
        nnUNetTrainerCoTr, {"nnUNetTrainerCoTr": {}, "nnUNetTrainerCoTr_published": PUBLISHED_SAMPLING}, LENGTHS
    ),
    **_variants(nnUNetTrainerCoTr_AdamW, {"nnUNetTrainerCoTr_AdamW": {}}, LENGTHS),
}
"""Trainer class by name."""

globals().update(TRAINERS)  # importable by name, as a subclass or a pickle needs them
