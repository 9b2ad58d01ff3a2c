"""The trainers that ``-tr`` can name: one class, and a table of what differs."""

from nnunetv2_cads.training.trainer import nnUNetTrainerCADS

STARTS = {
    "nnUNetTrainerCADS": {},
    "nnUNetTrainerCADS_scratch": {"use_pretrained_encoder": False},
}
LENGTHS = {
    "": {},
    "_5epochs": {"num_epochs": 5},
    "_50epochs": {"num_epochs": 50},
    "_250epochs": {"num_epochs": 250},
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


def _trainer(name: str, settings: dict) -> type[nnUNetTrainerCADS]:
    """A class of that name, by which nnU-Net finds it and names its output folder."""
    if not settings:
        return nnUNetTrainerCADS
    return type(name, (nnUNetTrainerCADS,), {"settings": settings, "__module__": __name__})


TRAINERS = {
    start + length: _trainer(start + length, {**start_settings, **length_settings})
    for start, start_settings in STARTS.items()
    for length, length_settings in LENGTHS.items()
}
"""Trainer class by name."""

globals().update(TRAINERS)  # importable by name, as a subclass or a pickle needs them
