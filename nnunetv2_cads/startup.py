"""Runs at interpreter start (nnunetv2_cads.pth): adds the folder of our trainers to nnU-Net's search.

docs/how_the_trainer_is_found.md explains why this exists. It must stay cheap and must never fail.
"""

import os

_VARIABLE = "nnUNet_extTrainer"
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "training", "discovery")


def _append_folder() -> None:
    """Append the folder once; a user's own folders stay in front."""
    folders = [folder for folder in os.environ.get(_VARIABLE, "").split(os.pathsep) if folder]
    if _FOLDER not in folders and os.path.isdir(_FOLDER):
        os.environ[_VARIABLE] = os.pathsep.join([*folders, _FOLDER])


_append_folder()
